"""Writing a .beton with FFCV's own encoder, supervised: a bad sample or a dead worker is an error, never a hang.

FFCV's DatasetWriter waits for a count that a dead worker will never reach. `SupervisedWriter` replaces only that wait.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterable
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
    from ffcv.writer import DatasetWriter

_IMAGE_MODES = {mode: rgb_image.IMAGE_MODES[mode] for mode in ("raw", "jpg")}  # Numba's takes 5 µs a look-up
_POLL_S = 0.05


class Samples(Protocol):
    """What can be packed: `samples[i]` is an image (h, w, 3) uint8 and a label."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]: ...


class _Checked:
    """Checks every sample before FFCV's encoder sees it, and adds the row number."""

    def __init__(self, samples: Samples, classes: int) -> None:
        self.samples, self.classes = samples, classes

    def __getitem__(self, row: int) -> tuple[np.ndarray, int, int]:
        try:
            image, label = self.samples[row]
        except OSError as error:  # told apart here from one of the disk that is written to
            raise FailureError(f"row {row}: could not be read ({error})") from error
        wrong = _what_is_wrong(image, label, self.classes)
        if wrong:
            raise FailureError(f"row {row}: expected {wrong}. Mend the source, then pack again")
        return image, int(label), row


def _what_is_wrong(image: Any, label: Any, classes: int) -> str:
    """`what was expected, found what`; nothing for a sample that FFCV can write."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        return f"an image of shape (height, width, 3) and type uint8, found {found}"
    if 0 in image.shape or max(image.shape) >= 1 << 16:
        return f"an image of 1 to 65,535 pixels a side, found {image.shape[:2]}"
    if image.nbytes > PAGE_BYTES:
        return f"an image of at most {PAGE_BYTES:,} bytes, found {image.nbytes:,}"
    if not isinstance(label, (int, np.integer)) or not 0 <= label < classes:
        return f"a label from 0 to {classes - 1}, found {label}"
    return ""


def _reporting(work: Callable[..., None], errors: Any, *arguments: Any) -> None:
    """Runs one of FFCV's workers; an error goes to the parent as its number in the operating system, if it has one,
    and its text, instead of to the user's screen. A worker ends with its parent: it would hold its lock for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends its workers
    end_with_parent()
    rgb_image.IMAGE_MODES = _IMAGE_MODES  # in this process alone
    try:
        work(*arguments)
    except Exception as error:
        errors.put((getattr(error, "errno", None), str(error) or type(error).__name__))
        errors.close()
        errors.join_thread()
        os._exit(1)  # FFCV's other workers may wait on this one's page: no clean-up can be hoped for


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
        allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
        shared = (work, self.metadata_sm, self.metadata_type, self.fields, allocator, done, results, *extra)
        workers = [
            fork.Process(target=_reporting, args=(work_fn, errors, *shared), daemon=True)
            for _ in range(self.num_workers)
        ]
        try:
            for worker in workers:
                worker.start()
            # as one entry: FFCV makes an array of each
            self.finalize([np.array(self._allocations(workers, done, results, errors), dtype=ALLOC_TABLE_TYPE)])
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()
            work.cancel_join_thread()
            self.metadata_sm.close()
            self.metadata_sm.unlink()

    def _allocations(self, workers: list[Any], done: Any, results: Any, errors: Any) -> list[Any]:
        """Waits for every worker's table of allocations, watching that they live."""
        tables: list[list[Any]] = []
        shown = 0
        with self._progress("pack", self.num_samples, "img") as tick:
            while len(tables) < len(workers):
                try:
                    tables.append(results.get(timeout=_POLL_S))
                except queue.Empty:
                    if results.empty():  # a worker may have handed over its table and ended just now
                        self._raise_if_dead(workers, errors)
                tick(done.value - shown)
                shown = done.value
        return [allocation for table in tables for allocation in table]

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
    write_mode: str = "raw",
) -> None:
    """Packs `samples` in row order to `path`, which appears whole or not at all.

    `write_mode` is FFCV's: `raw` pixels, or `jpg`.

    Raises FailureError naming the first bad sample found, or the reason why a writing process died.
    """
    fields = dict(zip(FIELDS, (RGBImageField(write_mode=write_mode), IntField(), IntField()), strict=True))
    if len(samples) == 0:
        raise FailureError(f"{path}: there are no samples to write")
    with whole_file(path) as temporary:
        writer = SupervisedWriter(str(temporary), fields, page_size=PAGE_BYTES, num_workers=workers, progress=progress)
        rows = range(len(samples))
        writer.from_indexed_dataset(_Checked(samples, classes), indices=list(rows), chunksize=500)
