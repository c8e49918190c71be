"""What is shown: which view of each row in each epoch, in which order, and which cached logits are its target.

Views and targets depend only on (seed, epoch, row number), and the order on (seed, epoch, how many rows): never on the
batch or the device.

Shapes: n rows, b batch, c classes, k cached slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.core.errors import UsageError
from toolkit.core.hashing import rng_for
from toolkit.core.processes import share_of
from toolkit.training.targets import Targets, TopK
from toolkit.views.plan import Plan
from toolkit.views.schedule import geometry_of_slots, nearest_slots, slots_shown

_SALT_ORDER = 0x0DE5


class Batch(NamedTuple):
    """`images_bchw` normalised; `labels_b` and `rows_b` (numbers in the packed data) int64; `logits_bc` the teacher's,
    all of them or a TopK, or None; `weights_b` how much each row counts, in the dtype of the images, or None where all
    count alike."""

    images_bchw: Tensor
    labels_b: Tensor
    rows_b: Tensor
    logits_bc: Tensor | TopK | None
    weights_b: Tensor | None = None


def weights_of(weights_n: np.ndarray | None, rows: int, dtype: torch.dtype) -> Tensor | None:
    """The rows' weights on the CPU, in the dtype networks are fed in. Raises ValueError for more or fewer of them."""
    if weights_n is None:
        return None
    if len(weights_n) != rows:
        raise ValueError(f"{len(weights_n)} weights for {rows} rows")
    return torch.from_numpy(np.array(weights_n)).to(dtype)


def shares(rows: int, batch_size: int, part: tuple[int, int], start: int = 0) -> Iterator[tuple[int, int]]:
    """Where the share of process `part` = (number, of how many) lies in each batch of an epoch, from batch `start` on:
    (first, one past the last) position in the epoch's order. Shares may be empty, batches are not."""
    for first in range(start * batch_size, rows, batch_size):
        share = share_of(min(batch_size, rows - first), *part)
        yield first + share.start, first + share.stop


def row_order(rows: int, epoch: int, seed: int) -> np.ndarray:
    """The order of `epoch`: a permutation of 0 … rows − 1, int64."""
    return rng_for(seed, _SALT_ORDER, epoch).permutation(rows)


class Showing:
    """Without targets, and with a match other than `exact`, a row walks through its whole family of views; with `exact`
    through its cached slots only. `sizes_n2` are the images' own heights and widths."""

    def __init__(
        self, rows_n: np.ndarray, plan: Plan, seed: int, targets: Targets | None, sizes_n2: np.ndarray | None = None
    ) -> None:
        self.rows_n, self.plan, self.seed = np.asarray(rows_n, dtype=np.int64), plan, seed
        self.sizes_n2 = np.tile((plan.height, plan.width), (len(rows_n), 1)) if sizes_n2 is None else sizes_n2
        if targets is not None and targets.rows != len(rows_n):
            raise UsageError(f"targets are for {targets.rows} rows, the images are {len(rows_n)}")
        self.match = targets.match if targets else None
        self._slots = targets.slots if targets and self.match == "exact" else plan.size
        self._views_nk = plan.views(self.rows_n, self._slots)
        self._cached_nkg = None
        if targets and self.match == "nearest":
            cached_nk = self._views_nk[:, : targets.slots]
            self._cached_nkg = geometry_of_slots(plan, self.rows_n, cached_nk, self.sizes_n2)

    def __len__(self) -> int:
        return len(self.rows_n)

    def order(self, epoch: int) -> np.ndarray:
        return row_order(len(self), epoch, self.seed)

    def views(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The view each row shows in `epoch`, and the row of the target table's first axis it gets: two (n,) int64."""
        slot_n = slots_shown(self.rows_n, epoch, self._slots, self.seed)
        view_n = self._views_nk[np.arange(len(self)), slot_n].astype(np.int64)
        if self._cached_nkg is not None:
            return view_n, nearest_slots(self.geometry(view_n), self._cached_nkg)
        return view_n, np.zeros_like(slot_n) if self.match == "mean" else slot_n

    def geometry(self, view_n: np.ndarray) -> np.ndarray:
        """What the renderer is told of each row's view; see Plan.geometry."""
        return self.plan.geometry(self.rows_n, view_n, self.sizes_n2)
