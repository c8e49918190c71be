"""The streaming source: images come batch by batch from FFCV's Loader, targets from disk, both ahead of the step.

Shapes: n rows, b batch, c classes, k cached slots, g what a renderer is told of a view (Plan.geometry).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import smallest_index
from toolkit.core.processes import share_of
from toolkit.formats.beton import Beton
from toolkit.training.prefetch import made_ahead
from toolkit.training.showing import Batch, Showing, shares, weights_of
from toolkit.training.targets import Columns, TargetReader, Targets
from toolkit.views.plan import Plan
from toolkit.views.render import Renderer, normalise

_CPU = torch.device("cpu")
_AHEAD = 2  # batches read beyond the one in the step; FFCV decodes some more
_BOXES_AT_A_TIME = 8192
_VIEWS_BYTES = 1 << 24  # of all rows' views: those of more rows are computed batch by batch


class _Read(NamedTuple):
    """A batch as it comes from disk, on the CPU (pinned for a GPU): images uint8, labels and rows int64, weights as the
    network is fed."""

    images_bhwc: Tensor
    labels_b: Tensor
    rows_b: Tensor
    views_b3: Tensor | None
    targets: Columns | None
    weights_b: Tensor | None


class StreamSource:
    """Batches of any epoch through an FFCV Loader (`loader`) over the rows of `images` at `indices_n`, increasing.

    A thread of its own waits for FFCV, copies what it gave, and gathers targets; to a GPU everything is sent from
    pinned memory without waiting. Pad-crops are drawn in torch on `device`, resized crops in the decoder. Iterating
    over the source itself gives one epoch after the other. Each of several processes has a loader over its own shares
    of the batches. Other parameters as in ResidentSource.
    """

    name = "stream"

    def __init__(
        self,
        images: Beton,
        indices_n: np.ndarray,
        plan: Plan,
        mean: list[float],
        std: list[float],
        batch_size: int,
        seed: int,
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
        targets: Targets | None = None,
        workers: int = 2,
        weights_n: np.ndarray | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        from toolkit.formats.ffcv_loader import open_loader, ordered_by

        self.batch_size, self._device, self._part = batch_size, device, part
        sizes_n2 = None if plan.finite else images.sizes_n2[indices_n]
        self.showing = Showing(images.rows_n[indices_n], plan, seed, targets, sizes_n2, _VIEWS_BYTES)
        self._mean_c = torch.tensor(mean, dtype=dtype, device=device)
        self._std_c = torch.tensor(std, dtype=dtype, device=device)
        self._targets = TargetReader(targets, dtype) if targets is not None else None
        self._weights_n = weights_of(weights_n, len(indices_n), dtype)
        self._next_epoch, self._begun = 0, 0
        self._order_n, self._start = np.empty(0, dtype=np.int32), 0  # of the epoch under way
        self._boxes_n5 = None  # of every row of the file: FFCV's decoder looks them up
        decoder = None
        if plan.finite:
            images.need_one_size()
        else:
            from toolkit.formats.ffcv_boxes import BoxDecoder, no_boxes

            self._boxes_n5 = no_boxes(len(images))
            decoder = BoxDecoder(self._boxes_n5, plan.height, plan.width)
        share = share_of(min(batch_size, len(indices_n)), *part)
        size = share.stop - share.start  # of every batch but the last, which has no more
        self.loader = open_loader(images.path, size, indices_n, workers=workers, decoder=decoder)
        self._indices_n = indices_n
        ordered_by(self.loader, self)

    def __len__(self) -> int:
        """How many batches an epoch has, as of any loader; of several processes, each has as many."""
        return -(-self.rows // self.batch_size)

    @property
    def rows(self) -> int:
        """How many images an epoch shows, by all processes together."""
        return len(self.showing)

    def sample_order(self, epoch: int) -> np.ndarray:
        """FFCV asks for the order of the epoch under way: positions in the file, uint64, of this process's rows from
        the batch on that it was begun at."""
        mine = self._shares(self._start)
        positions_m, at = np.empty(sum(end - first for first, end in mine), dtype=np.uint64), 0
        for first, end in mine:
            positions_m[at : at + end - first] = self._indices_n[self._order_n[first:end]]
            at += end - first
        return positions_m

    def _shares(self, start: int) -> list[tuple[int, int]]:
        return list(shares(self.rows, self.batch_size, self._part, start))

    def __iter__(self) -> Iterator[Batch]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.batches(epoch)

    def batches(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of `epoch` (from 0), from batch `start` on; the last may be smaller. Leaving early leaves no
        thread behind."""
        from toolkit.formats.ffcv_loader import one_epoch

        self._begun += 1
        begun = self._begun
        if self._boxes_n5 is not None:
            for row in range(0, self.rows, _BOXES_AT_A_TIME):
                block = slice(row, row + _BOXES_AT_A_TIME)
                self._boxes_n5[self._indices_n[block]] = self.showing.shown(epoch, block)
        self.loader.next_epoch, self._start = epoch, start
        self._order_n = order_n = self.showing.order(epoch).astype(smallest_index(self.rows))
        at = [order_n[first:end] for first, end in self._shares(start)]
        with (
            one_epoch(self.loader, pinned=self._device.type == "cuda") as given,
            made_ahead(self._read(given, begun, epoch, at), _AHEAD) as batches,
        ):
            for batch in batches:
                yield self._drawn(batch)

    def _read(
        self,
        given: Iterator[tuple[Tensor, ...]],
        begun: int,
        epoch: int,
        at: list[np.ndarray],
    ) -> Generator[_Read, None, None]:
        """What FFCV gives, with the views and targets that belong to it."""
        for at_b in (part.astype(np.int64) for part in at):
            read = next(given, None) if len(at_b) else self._no_rows()
            if read is None:  # FFCV's thread died: the epoch ends with its error
                return
            images_bhwc, labels_b1, rows_b1 = read
            if begun != self._begun:
                raise UsageError("loader: it has begun another epoch. Take one at a time, or open a second loader")
            if not np.array_equal(rows_b1[:, 0].numpy(), self.showing.rows_n[at_b]):
                raise FailureError(
                    f"{self.loader.reader.file_name}: FFCV's loader gave other rows than asked for. "
                    "Make the file again: kdtool pack --force"
                )
            views_b3, columns = None, None
            if self._boxes_n5 is None or self._targets is not None:
                view_b, slot_b = self.showing.views(epoch, at_b)
            if self._boxes_n5 is None:
                views_b3 = self._ready(torch.from_numpy(self.showing.geometry(view_b, at_b)))
            if self._targets is not None:
                stored = self._targets.read(slot_b, at_b)
                columns = {name: self._ready(rows) for name, rows in stored.items()}
            weights_b = None if self._weights_n is None else self._ready(self._weights_n[torch.from_numpy(at_b)])
            yield _Read(images_bhwc, labels_b1[:, 0], rows_b1[:, 0], views_b3, columns, weights_b)

    def _no_rows(self) -> tuple[Tensor, ...]:
        """What FFCV would give of none: the share that some processes have in the last batch."""
        plan, number = self.showing.plan, torch.empty((0, 1), dtype=torch.int64)
        return torch.empty((0, plan.height, plan.width, 3), dtype=torch.uint8), number, number

    def _drawn(self, read: _Read) -> Batch:
        images_bhwc = self._sent(read.images_bhwc)
        if read.views_b3 is not None:
            views_b3 = self._sent(read.views_b3)
            renderer = Renderer(images_bhwc, self.showing.plan)
            images_bhwc = renderer.draw(torch.arange(len(views_b3), device=self._device), views_b3)
        logits_bc = None
        if self._targets is not None and read.targets is not None:
            logits_bc = self._targets.decode({name: self._sent(rows) for name, rows in read.targets.items()})
        images_bchw = normalise(images_bhwc, self._mean_c, self._std_c)
        weights_b = None if read.weights_b is None else self._sent(read.weights_b)
        return Batch(images_bchw, self._sent(read.labels_b), self._sent(read.rows_b), logits_bc, weights_b)

    def _ready(self, tensor: Tensor) -> Tensor:
        return tensor if self._device.type == "cpu" else tensor.pin_memory()

    def _sent(self, tensor: Tensor) -> Tensor:
        """On the device. From pinned memory the host does not wait for it to arrive."""
        return tensor.to(self._device, non_blocking=True)
