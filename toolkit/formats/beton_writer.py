"""Writing a .beton with FFCV's own encoder, supervised: a bad sample or a dead worker is an error, never a hang.

FFCV's DatasetWriter waits for a count that a dead worker will never reach. `SupervisedWriter` replaces only that wait.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toolkit.core.children import end_with_parent
from toolkit.core.errors import FailureError
from toolkit.core.files import whole_file
from toolkit.core.progress import Progress, silent
from toolkit.formats.beton import FIELDS, PAGE_BYTES
from toolkit.formats.ffcv_guard import torch_threads_kept

with torch_threads_kept():
    from ffcv.fields import IntField, RGBImageField, rgb_image
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.types import ALLOC_TABLE_TYPE
    from ffcv.writer import DatasetWriter, worker_job_indexed_dataset

_IMAGE_MODES = {mode: rgb_image.IMAGE_MODES[mode] for mode in ("raw", "jpg")}  # Numba's takes 5 µs a look-up
_POLL_S = 0.05
_SMART_BYTES = 1 << 16


class Samples(Protocol):
    """What can be packed: `samples[i]` is an image (h, w, 3) uint8 and a label."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]: ...


@dataclass(frozen=True)
class Storage:
    """How FFCV stores images: `raw` pixels; `jpg`, at `jpeg_quality` from 1 to 100; or `smart`, raw up to 65,536 bytes
    of pixels and jpg above. Before that, a longer side than `max_resolution` is scaled to it by area averaging.

    (FFCV's own smart compares the bytes to a threshold that it must be given: without one it stores all raw.)
    """

    write_mode: str = "raw"
    jpeg_quality: int = 90
    max_resolution: int | None = None

    @property
    def page_bytes(self) -> int:
        """A power of two that holds any image of the resolution, as pixels or as a JPEG larger than them."""
        most = 4 * (self.max_resolution or 0) ** 2
        return max(PAGE_BYTES, 1 << (most - 1).bit_length() if most else 0)

    def field(self) -> Any:
        return RGBImageField(self.write_mode, self.max_resolution, _SMART_BYTES, self.jpeg_quality)


PIXELS = Storage()


def stored_size(size: tuple[int, ...], max_resolution: int | None) -> tuple[int, int]:
    """The (height, width) at which FFCV stores an image of `size`: by its own arithmetic, which rounds down."""
    height, width = size
    if max_resolution is None or max(height, width) <= max_resolution:
        return height, width
    ratio = max_resolution / max(height, width)
    return int(ratio * height), int(ratio * width)


class _Checked:
    """Checks every sample before FFCV's encoder sees it, and adds the row number."""

    def __init__(self, samples: Samples, classes: int, storage: Storage) -> None:
        self.samples, self.classes, self.storage = samples, classes, storage

    def __getitem__(self, row: int) -> tuple[np.ndarray, int, int]:
        try:
            image, label = self.samples[row]
        except OSError as error:  # told apart here from one of the disk that is written to
            raise FailureError(f"row {row}: could not be read ({error}). Mend the source, then pack again") from error
        wrong = _what_is_wrong(image, label, self.classes, self.storage)
        if wrong:
            raise FailureError(f"row {row}: expected {wrong}. Mend the source, then pack again")
        return image, int(label), row


def _what_is_wrong(image: Any, label: Any, classes: int, storage: Storage) -> str:
    """`what was expected, found what`; nothing for a sample that FFCV can write."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        return f"an image of shape (height, width, 3) and type uint8, found {found}"
    stored = stored_size(image.shape[:2], storage.max_resolution)
    if 0 in stored or max(stored) >= 1 << 16:
        return f"an image of 1 to 65,535 pixels a side, found {image.shape[:2]}"
    if stored[0] * stored[1] * 3 > storage.page_bytes:
        return f"an image of at most {storage.page_bytes:,} bytes, found {image.nbytes:,}"
    if not isinstance(label, (int, np.integer)) or not 0 <= label < classes:
        return f"a label from 0 to {classes - 1}, found {label}"
    return ""


def _reporting(work: Callable[..., None], errors: Any, *arguments: Any) -> None:
    """Runs one of FFCV's workers; an error goes to the parent as its number in the operating system, if it has one,
    and its text, instead of to the user's screen. A worker ends with its parent: it would hold its lock for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends its workers
    end_with_parent()
    rgb_image.IMAGE_MODES = _IMAGE_MODES  # in this process alone
    rgb_image.cv2.setNumThreads(1)  # each worker has a CPU of its own
    try:
        work(*arguments)
    except Exception as error:
        errors.put((getattr(error, "errno", None), str(error) or type(error).__name__))
        errors.close()
        errors.join_thread()
        os._exit(1)  # FFCV's other workers may wait on this one's page: no clean-up can be hoped for


class _Allocations:
    """FFCV's list of (row, ptr, bytes), in 24 bytes each."""

    def __init__(self) -> None:
        self.numbers = array("Q")

    def __len__(self) -> int:
        return len(self.numbers) // 3

    def __getitem__(self, at: int) -> tuple[int, ...]:
        first = range(0, len(self.numbers), 3)[at]
        return tuple(self.numbers[first : first + 3])

    def append(self, allocation: tuple[int, int, int]) -> None:
        self.numbers.extend(allocation)

    def pop(self) -> None:
        del self.numbers[-3:]


class _Allocator(MemoryAllocator):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.allocations = _Allocations()


@dataclass(frozen=True)
class _Chunk:
    """Rows start … stop − 1, as FFCV goes through them."""

    start: int
    stop: int

    def __iter__(self) -> Iterator[Any]:
        return ((row, row) for row in range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


class SupervisedWriter(DatasetWriter):
    """FFCV's DatasetWriter with a wait that notices dead workers. Raises FailureError with the worker's message."""

    def __init__(self, *arguments: Any, progress: Progress, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._progress = progress

    def _write_common(
        self, num_samples: int, queue_content: Iterable[Any], work_fn: Callable[..., None], extra: tuple[Any, ...]
    ) -> None:
        fork = multiprocessing.get_context("fork")  # the samples are shared, not pickled
        self.num_samples = num_samples
        self.prepare()
        work, results, errors = fork.Queue(), fork.Queue(), fork.Queue()
        done = fork.Value(ctypes.c_uint64, 0)
        for item in [*queue_content, *[None] * self.num_workers]:
            work.put(item)
        allocator = _Allocator(self.fname, self.data_region_start, self.page_size)
        shared = (work, self.metadata_sm, self.metadata_type, self.fields, allocator, done, results, *extra)
        workers = [
            fork.Process(target=_reporting, args=(work_fn, errors, *shared), daemon=True)
            for _ in range(self.num_workers)
        ]
        try:
            for worker in workers:
                worker.start()
            # as one entry: FFCV makes an array of each, and one of these
            self.finalize([np.concatenate(self._allocations(workers, done, results, errors))])
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()
            work.cancel_join_thread()
            self.metadata_sm.close()
            self.metadata_sm.unlink()

    def _allocations(self, workers: list[Any], done: Any, results: Any, errors: Any) -> list[np.ndarray]:
        """Waits for every worker's table of allocations, watching that they live."""
        tables: list[np.ndarray] = []
        shown = 0
        with self._progress("pack", self.num_samples, "img") as tick:
            while len(tables) < len(workers):
                try:
                    numbers = np.array(results.get(timeout=_POLL_S).numbers, dtype=np.uint64)
                    tables.append(numbers.view(ALLOC_TABLE_TYPE))
                except queue.Empty:
                    if results.empty():  # a worker may have handed over its table and ended just now
                        self._raise_if_dead(workers, errors)
                tick(done.value - shown)
                shown = done.value
        return tables

    @staticmethod
    def _raise_if_dead(workers: list[Any], errors: Any) -> None:
        codes = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0)]
        if not codes and any(worker.is_alive() for worker in workers):
            return
        try:
            number, message = errors.get(timeout=1)
        except queue.Empty:
            code = codes[0] if codes else 0
            died = f"a writing process died (exit code {code}; a negative one is a signal, −9 often lack of memory)"
            number, message = None, f"{died}. Pack again with fewer --workers"
        if number is not None:
            raise OSError(number, os.strerror(number))
        raise FailureError(message)


def write_beton(
    samples: Samples,
    path: Path,
    classes: int,
    workers: int = 2,
    progress: Progress = silent,
    storage: Storage = PIXELS,
) -> None:
    """Packs `samples` in row order to `path`, which appears whole or not at all.

    Raises FailureError naming the first bad sample found, or the reason why a writing process died.
    """
    fields = dict(zip(FIELDS, (storage.field(), IntField(), IntField()), strict=True))
    rows = len(samples)
    if rows == 0:
        raise FailureError(f"{path}: there are no samples to write. Give the data set rows")
    workers = min(workers, rows)
    with whole_file(path) as temporary:
        writer = SupervisedWriter(
            str(temporary), fields, page_size=storage.page_bytes, num_workers=workers, progress=progress
        )
        # several chunks a worker, so that all end at about the same time
        chunk = max(1, min(500, rows // (8 * workers)))
        chunks = [_Chunk(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
        writer._write_common(rows, chunks, worker_job_indexed_dataset, (_Checked(samples, classes, storage),))
