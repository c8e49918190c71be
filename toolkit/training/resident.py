"""The resident source: images, labels and targets live on the device, and a batch is one gather and one drawing.

Shapes: n rows, b batch, c classes, k cached slots.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from toolkit.training.showing import Batch, Showing, shares, weights_of
from toolkit.training.targets import Targets
from toolkit.views.plan import Plan
from toolkit.views.render import Renderer, normalise


class ResidentSource:
    """Batches of any epoch from images held on `device`; networks are fed in `dtype`.

    `rows_n` are the rows' numbers in the packed data set: they decide the views, so a row looks the same in every
    subset. `mean` and `std` are per channel, of 0 … 1 pixel values. `weights_n` are what each row counts in a loss, or
    None. Of several processes, number `part[0]` of `part[1]` is given its share of each batch. Raises UsageError where
    targets and rows differ.
    """

    name = "resident"

    def __init__(
        self,
        images_nhwc: np.ndarray,
        labels_n: np.ndarray,
        rows_n: np.ndarray,
        plan: Plan,
        mean: list[float],
        std: list[float],
        batch_size: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        targets: Targets | None = None,
        weights_n: np.ndarray | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if not len(images_nhwc) == len(labels_n) == len(rows_n):
            raise ValueError(f"{len(images_nhwc)} images, {len(labels_n)} labels, {len(rows_n)} row numbers")
        weights = weights_of(weights_n, len(rows_n), dtype)
        self.batch_size, self._device, self._part = batch_size, device, part
        self.showing = Showing(rows_n, plan, seed, targets)
        self._renderer = Renderer(torch.from_numpy(np.ascontiguousarray(images_nhwc)).to(device), plan)
        self._labels_n = torch.from_numpy(np.array(labels_n, dtype=np.int64)).to(device)
        self._rows_n = torch.from_numpy(self.showing.rows_n).to(device, torch.int64)
        self._mean_c = torch.tensor(mean, dtype=dtype, device=device)
        self._std_c = torch.tensor(std, dtype=dtype, device=device)
        self._targets = targets.table(device, dtype) if targets is not None else None
        self._weights_n = weights.to(device) if weights is not None else None

    def __len__(self) -> int:
        """How many batches an epoch has, as of any loader; of several processes, each has as many."""
        return -(-self.rows // self.batch_size)

    @property
    def rows(self) -> int:
        """How many images an epoch shows, by all processes together."""
        return len(self.showing)

    def batches(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of `epoch` (from 0), from batch `start` on; the last may be smaller."""
        view_n, slot_n = self.showing.views(epoch)
        shown = (
            self.showing.geometry(view_n),
            slot_n * self.rows + np.arange(self.rows),
            self.showing.order(epoch),
        )
        geometry_n3, target_n, order = (torch.from_numpy(values).to(self._device) for values in shown)
        for first, end in shares(self.rows, self.batch_size, self._part, start):
            at_b = order[first:end]
            images_bhwc = self._renderer.draw(at_b, geometry_n3[at_b])
            yield Batch(
                normalise(images_bhwc, self._mean_c, self._std_c),
                self._labels_n[at_b],
                self._rows_n[at_b],
                self._targets.gather(target_n[at_b]) if self._targets is not None else None,
                self._weights_n[at_b] if self._weights_n is not None else None,
            )
