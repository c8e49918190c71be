"""What is shown: which view of each row in each epoch, in which order, and which cached logits are its target.

Views and targets depend only on (seed, epoch, row number), and the order on (seed, epoch, how many rows): never on the
batch or the device.

Shapes: n rows, b batch, c classes, k cached slots, g what a renderer is told of a view (Plan.geometry).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.core.errors import UsageError
from toolkit.core.hashing import rng_for, smallest_index
from toolkit.core.processes import share_of
from toolkit.training.targets import Targets, TopK
from toolkit.views.plan import Plan
from toolkit.views.schedule import geometry_of_slots, nearest_slots, slots_shown

_SALT_ORDER = 0x0DE5
_ALL = slice(None)


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
    through its cached slots only. `sizes_n2` are the images' own heights and widths.

    Every row's views, and where its cached ones lie for `nearest`, are computed once and held where they take no more
    than `most_bytes`; else a batch's are, each time.
    """

    def __init__(
        self,
        rows_n: np.ndarray,
        plan: Plan,
        seed: int,
        targets: Targets | None,
        sizes_n2: np.ndarray | None = None,
        most_bytes: float = math.inf,
    ) -> None:
        self.rows_n = np.asarray(rows_n).astype(smallest_index(1 + int(np.max(rows_n, initial=0))))
        self.plan, self.seed = plan, seed
        size = np.array((plan.height, plan.width))
        self.sizes_n2 = np.broadcast_to(size, (len(rows_n), 2)) if sizes_n2 is None else sizes_n2
        if targets is not None and targets.rows != len(rows_n):
            raise UsageError(
                f"targets: for {targets.rows} rows, the images are {len(rows_n):,}. Cut them for the same rows"
            )
        self.match = targets.match if targets else None
        self._slots = targets.slots if targets and self.match == "exact" else plan.size
        self._cached = targets.slots if targets and self.match == "nearest" else 0
        self._views_nk, self._cached_nkg = None, None
        numbers = 2 if plan.finite else 5
        if len(self.rows_n) * 2 * (self._slots * plan.finite + self._cached * numbers) <= most_bytes:
            self._views_nk = plan.views(self.rows_n, self._slots)
            self._cached_nkg = self._candidates(self.rows_n, self.sizes_n2) if self._cached else None

    def __len__(self) -> int:
        return len(self.rows_n)

    def order(self, epoch: int) -> np.ndarray:
        return row_order(len(self), epoch, self.seed)

    def views(self, epoch: int, at_b: np.ndarray | slice = _ALL) -> tuple[np.ndarray, np.ndarray]:
        """The view each row shows in `epoch`, or each of those at `at_b`, and the row of the target table's first axis
        it gets: two (n,) or (b,) int64."""
        slot_b, view_b = self._walked(epoch, at_b)
        if self._cached:
            return view_b, self._nearest(self.geometry(view_b, at_b), at_b)
        return view_b, np.zeros_like(slot_b) if self.match == "mean" else slot_b

    def shown(self, epoch: int, at_b: np.ndarray | slice = _ALL) -> np.ndarray:
        """The geometry of what `views` says is shown: (b, g) int32."""
        return self.geometry(self._walked(epoch, at_b)[1], at_b)

    def geometry(self, view_b: np.ndarray, at_b: np.ndarray | slice = _ALL) -> np.ndarray:
        """What the renderer is told of each row's view; see Plan.geometry."""
        return self.plan.geometry(self.rows_n[at_b], view_b, self.sizes_n2[at_b])

    def _walked(self, epoch: int, at_b: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """(the slot, the view) of each row."""
        rows_b = self.rows_n[at_b]
        slot_b = slots_shown(rows_b, epoch, self._slots, self.seed)
        if self._views_nk is None:
            return slot_b, self.plan.views_in(rows_b, slot_b).astype(np.int64)
        return slot_b, self._views_nk[at_b][np.arange(len(rows_b)), slot_b].astype(np.int64)

    def _candidates(self, rows_b: np.ndarray, sizes_b2: np.ndarray) -> np.ndarray:
        return geometry_of_slots(self.plan, rows_b, self.plan.views(rows_b, self._cached), sizes_b2)

    def _nearest(self, shown_bg: np.ndarray, at_b: np.ndarray | slice) -> np.ndarray:
        if self._cached_nkg is not None:
            return nearest_slots(shown_bg, self._cached_nkg[at_b])
        return nearest_slots(shown_bg, self._candidates(self.rows_n[at_b], self.sizes_n2[at_b]))
