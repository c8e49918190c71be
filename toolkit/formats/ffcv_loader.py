"""The one place that opens an FFCV Loader, with its traps closed.

A boolean or out-of-range index makes FFCV hang or crash, `drop_last` defaults to losing rows, batches are views into a
ring of buffers, and an abandoned epoch leaks a thread. Importing this module imports FFCV: 4 to 8 seconds.

Shapes: m chosen rows, b batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.core.threads import end_of
from toolkit.formats.beton import open_beton
from toolkit.formats.ffcv_guard import torch_threads_kept

with torch_threads_kept():
    import ffcv.loader.loader
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_managers.os_cache import OSCacheContext, OSCacheManager
    from ffcv.transforms import ToTensor
    from numba.core.config import NUMBA_NUM_THREADS  # type: ignore[attr-defined]


class _ToldEpoch(EpochIterator):
    """FFCV's epoch in a thread; an error there ends the epoch, and is kept in `died`."""

    died: Exception | None = None

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            self.died = error
            self.output_queue.put(None)


class _LeanManager(OSCacheManager):
    """FFCV's, without its dictionaries of every row and page: of all orders only its quasi-random one asks them, and
    they take 700 bytes a row and seconds."""

    def __init__(self, reader: Any) -> None:
        order = np.argsort(reader.alloc_table["ptr"])
        self.reader, self.context = reader, OSCacheContext(self)
        self.ptrs, self.sizes = reader.alloc_table["ptr"][order], reader.alloc_table["size"][order]
        reader.alloc_table = None


_ours_alone = threading.Lock()


@contextmanager
def _instead(name: str, ours: type) -> Iterator[None]:
    """Within the block a Loader makes `ours` where FFCV says `name`: it takes no other as an argument. Other loaders of
    this process are FFCV's own."""
    with _ours_alone:
        theirs = getattr(ffcv.loader.loader, name)
        setattr(ffcv.loader.loader, name, ours)
        try:
            yield
        finally:
            setattr(ffcv.loader.loader, name, theirs)


ORDERS = {"sequential": OrderOption.SEQUENTIAL, "random": OrderOption.RANDOM}


def checked_rows(rows_m: np.ndarray, available: int) -> np.ndarray:
    """`rows_m` as FFCV needs them, uint64: of int64 the same memory. Raises UsageError unless they are sorted, unique,
    in range and integers."""
    rows_m = np.asarray(rows_m)
    if rows_m.dtype.kind not in "iu" or rows_m.ndim != 1 or len(rows_m) == 0:
        raise UsageError(f"rows must be a list of row numbers, got {rows_m.dtype} of shape {rows_m.shape}")
    if np.any(rows_m[1:] <= rows_m[:-1]):
        raise UsageError("rows must be in increasing order and each named once")
    if rows_m[0] < 0 or rows_m[-1] >= available:
        raise UsageError(f"rows must lie between 0 and {available - 1}, got {rows_m[0]} to {rows_m[-1]}")
    return rows_m.view(np.uint64) if rows_m.dtype == np.int64 else rows_m.astype(np.uint64, copy=False)


def open_loader(
    path: Path,
    batch_size: int,
    rows_m: np.ndarray | None = None,
    order: str = "sequential",
    seed: int = 0,
    workers: int = 2,
    decoder: Any = None,
) -> Any:
    """An ffcv.loader.Loader of image (b, h, w, 3) uint8, label (b, 1) and row (b, 1) int64, dropping nothing.

    `decoder` draws the images; without one they come as they are, all of one size.

    `rows_m` restricts it to those rows of the file. Raises UsageError or FailureError for bad rows or a bad file.
    """
    if order not in ORDERS:
        raise unknown_name("order", order, list(ORDERS))
    available = len(open_beton(path))
    rows_m = checked_rows(np.arange(available, dtype=np.uint64) if rows_m is None else rows_m, available)
    with torch_threads_kept(), _instead("OSCacheManager", _LeanManager):
        loader = Loader(
            str(path),
            batch_size=batch_size,
            num_workers=min(workers, NUMBA_NUM_THREADS),  # Numba refuses more than it began with
            order=ORDERS[order],
            seed=seed,
            indices=rows_m,
            drop_last=False,
            pipelines={
                "image": [decoder or SimpleRGBImageDecoder(), ToTensor()],
                "label": [IntDecoder(), ToTensor()],
                "row": [IntDecoder(), ToTensor()],
            },
        )
    # FFCV keeps the rows three times; of the order of the first epoch it asks the length alone
    loader.indices = loader.traversal_order.indices = rows_m
    loader.first_traversal_order = range(len(rows_m))
    return loader


def ordered_by(loader: Any, order: Any) -> None:
    """Lets `order.sample_order(epoch)` decide which rows the loader gives: its own lists of them, 8 bytes a row, go.
    FFCV refuses an order of one's own at construction (it checks the wrong thing), but asks for it each epoch."""
    loader.traversal_order, loader.indices, loader._args = order, None, {}


def own(tensor: Tensor, pinned: bool = False) -> Tensor:
    """A copy, in pinned memory if asked. Not by pin_memory(): where FFCV finds a GPU its buffers are pinned already,
    and that would give them back as they are, to be written over."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
    copy.numpy()[...] = tensor.numpy()  # in this thread: torch would wake a team of its own for it
    return copy


@contextmanager
def one_epoch(loader: Any, pinned: bool = False) -> Iterator[Iterator[tuple[Tensor, ...]]]:
    """The batches of the loader's next epoch, each the caller's to keep (`pinned`: in pinned memory); its thread ends
    with the block.

    Raises FailureError where FFCV's thread dies, for which its own iterator would wait for ever.
    """
    with torch_threads_kept(), _instead("EpochIterator", _ToldEpoch):
        epoch = iter(loader)
    try:
        yield (tuple(own(tensor, pinned) for tensor in batch) for batch in epoch)
        if epoch.died is not None:
            raise FailureError(
                f"{loader.reader.file_name}: FFCV's loader failed ({epoch.died}). Check the file: kdtool inspect"
            ) from epoch.died
    finally:
        epoch.close()
        end_of(epoch, epoch.output_queue)
