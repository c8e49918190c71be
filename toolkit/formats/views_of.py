"""The pixels that teacher and student are shown: any views of any rows of a packed file, one way for both families.

Shapes: m rows asked for, b batch, h and w height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from toolkit.formats.beton import Beton
from toolkit.views.plan import Plan
from toolkit.views.render import Renderer

_HELD_ROWS = 8192
_HELD_BYTES = 1 << 26  # of frames


class ViewReader:
    """Draws views of a packed file's rows as `plan` says, a batch at a time, onto `device`.

    Pad-crops are drawn in torch from whole frames; resized crops in FFCV's decoder. FFCV is opened (and compiled: some
    seconds) when first needed, which is never for pad-crops of raw frames.
    """

    def __init__(self, beton: Beton, plan: Plan, batch_size: int, device: torch.device, workers: int = 2) -> None:
        self.beton, self.plan, self.batch_size, self.device, self._workers = beton, plan, batch_size, device, workers
        self._loader: _RowLoader | None = None

    def slot(self, positions_m: np.ndarray, slot: int) -> Iterator[Tensor]:
        """The views of `slot` of the rows at `positions_m`, in that order: batches (b, h, w, 3) uint8."""
        return self._views(positions_m, lambda block, rows_b: self.plan.views_in(rows_b, np.full(len(rows_b), slot)))

    def views(self, positions_m: np.ndarray, views_m: np.ndarray) -> Iterator[Tensor]:
        """Like `slot`, for a view of each row's own."""
        return self._views(positions_m, lambda block, rows_b: views_m[block])

    def _views(self, positions_m: np.ndarray, views: Callable[[slice, np.ndarray], np.ndarray]) -> Iterator[Tensor]:
        for start in range(0, len(positions_m), _HELD_ROWS):
            block = slice(start, start + _HELD_ROWS)
            at = positions_m[block]
            rows_b = self.beton.rows_n[at]
            geometry = self.plan.geometry(rows_b, views(block, rows_b), self.beton.sizes_n2[at])
            yield from self._shifted(at, geometry) if self.plan.finite else self.boxed(at, geometry)

    def frames(self, positions_m: np.ndarray) -> np.ndarray:
        """The whole frames of the rows at `positions_m`, in that order: (m, h, w, 3) uint8.

        Raises FailureError where they are not all of one size.
        """
        if self.beton.raw:
            return self.beton.frames(positions_m)
        return torch.cat(list(self._opened().batches(positions_m))).numpy()

    def _shifted(self, positions_m: np.ndarray, views_m3: np.ndarray) -> Iterator[Tensor]:
        """Whole batches' frames at a time: batches are the same, however few are held."""
        batches = _HELD_BYTES // (3 * self.plan.height * self.plan.width * self.batch_size)
        rows = max(1, batches) * self.batch_size
        for start in range(0, len(positions_m), rows):
            yield from self._drawn(positions_m[start : start + rows], views_m3[start : start + rows])

    def _drawn(self, positions_m: np.ndarray, views_m3: np.ndarray) -> Iterator[Tensor]:
        renderer = Renderer(torch.from_numpy(self.frames(positions_m)).to(self.device), self.plan)
        on_device_m3 = torch.from_numpy(views_m3).to(self.device)
        for b in torch.arange(len(positions_m), device=self.device).split(self.batch_size):
            yield renderer.draw(b, on_device_m3[b])

    def boxed(self, positions_m: np.ndarray, boxes_m5: np.ndarray) -> Iterator[Tensor]:
        """Like `slot`, for a box of each row's own (see Plan.geometry), of a family of resized crops."""
        for images_bhwc in self._opened().batches(positions_m, boxes_m5):
            yield images_bhwc.to(self.device)

    def _opened(self) -> _RowLoader:
        if self._loader is None:
            self._loader = _RowLoader(self.beton, self.plan, self.batch_size, self._workers)
        return self._loader


class _RowLoader:
    """An FFCV Loader over a whole file that is told which rows to decode and, for resized crops, in which boxes."""

    def __init__(self, beton: Beton, plan: Plan, batch_size: int, workers: int) -> None:
        from toolkit.formats.ffcv_loader import open_loader, ordered_by

        self._positions_m = np.empty(0, dtype=np.uint64)
        self._boxes_n5, decoder = None, None
        if plan.finite:
            beton.need_one_size()
        else:
            from toolkit.formats.ffcv_boxes import BoxDecoder, no_boxes

            self._boxes_n5 = no_boxes(len(beton))
            decoder = BoxDecoder(self._boxes_n5, plan.height, plan.width)
        self._loader = open_loader(beton.path, batch_size, workers=workers, decoder=decoder)
        ordered_by(self._loader, self)

    def sample_order(self, epoch: int) -> np.ndarray:
        """FFCV asks for the rows of an epoch."""
        return self._positions_m

    def batches(self, positions_m: np.ndarray, boxes_m5: np.ndarray | None = None) -> Iterator[Tensor]:
        from toolkit.formats.ffcv_loader import one_epoch

        self._positions_m = np.asarray(positions_m, dtype=np.uint64)
        if self._boxes_n5 is not None and boxes_m5 is not None:
            self._boxes_n5[positions_m] = boxes_m5
            if not np.array_equal(self._boxes_n5[positions_m], boxes_m5):
                raise ValueError("a row can be drawn in one box at a time, some were asked for in several")
        with one_epoch(self._loader) as batches:
            for images_bhwc, _, _ in batches:
                yield images_bhwc
