"""What is shown: which view of each row in each epoch, in which order, and which cached logits are its target.

Views and targets depend only on (seed, epoch, row number), and the order on (seed, epoch, how many rows): never on the
batch or the device.

Shapes: n rows, b batch, c classes, k cached slots, v views of the family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from toolkit.core.errors import unknown_name
from toolkit.core.hashing import rng_for
from toolkit.views.plan import Plan
from toolkit.views.schedule import nearest_slots, slots_shown

MATCHES = ("exact", "nearest", "mean")
_SALT_ORDER = 0x0DE5


class Batch(NamedTuple):
    """`images_bchw` normalised; `labels_b` and `rows_b` (numbers in the packed data) int64; `logits_bc` the teacher's,
    or None."""

    images_bchw: Tensor
    labels_b: Tensor
    rows_b: Tensor
    logits_bc: Tensor | None


@dataclass(frozen=True)
class Targets:
    """Cached logits (k, n, c) of the first k slots, and how a shown view finds its own among them."""

    logits_knc: np.ndarray
    match: str

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise unknown_name("match", self.match, list(MATCHES))

    @property
    def slots(self) -> int:
        return self.logits_knc.shape[0]

    def table(self) -> np.ndarray:
        """The logits a batch is gathered from: (k, n, c), or (1, n, c) float32 where the mean stands for all."""
        if self.match == "mean":
            return np.asarray(np.mean(self.logits_knc, axis=0, dtype=np.float32))[None]
        return self.logits_knc


def row_order(rows: int, epoch: int, seed: int) -> np.ndarray:
    """The order of `epoch`: a permutation of 0 … rows − 1, int64."""
    return rng_for(seed, _SALT_ORDER, epoch).permutation(rows)


class Showing:
    """Without targets, and with a match other than `exact`, a row walks through its whole family of views; with `exact`
    through its cached slots only."""

    def __init__(self, rows_n: np.ndarray, plan: Plan, seed: int, targets: Targets | None) -> None:
        self.rows_n, self.plan, self.seed = np.asarray(rows_n, dtype=np.int64), plan, seed
        self.match = targets.match if targets else None
        self._slots = targets.slots if targets and targets.match == "exact" else plan.size
        self._views_nk = plan.views(self.rows_n, self._slots)
        self._nearest_nv = None
        if targets and targets.match == "nearest":
            self._nearest_nv = nearest_slots(plan, self._views_nk[:, : targets.slots])

    def __len__(self) -> int:
        return len(self.rows_n)

    def order(self, epoch: int) -> np.ndarray:
        return row_order(len(self), epoch, self.seed)

    def views(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The view each row shows in `epoch`, and the row of the target table's first axis it gets: two (n,) int64."""
        every_n = np.arange(len(self))
        slot_n = slots_shown(self.rows_n, epoch, self._slots, self.seed)
        view_n = self._views_nk[every_n, slot_n].astype(np.int64)
        if self._nearest_nv is not None:
            return view_n, self._nearest_nv[every_n, view_n].astype(np.int64)
        return view_n, np.zeros_like(slot_n) if self.match == "mean" else slot_n
