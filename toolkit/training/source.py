"""The resident source: images, labels and targets live on the device, and a batch is one gather and one drawing.

Which view a row shows, and in which order rows come, depend only on (seed, epoch, row), never on the batch.

Shapes: n rows, b batch, c classes, k cached slots, v views of the family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.core.errors import UsageError, unknown_name
from toolkit.core.hashing import rng_for
from toolkit.views.plan import Plan
from toolkit.views.render import Renderer, normalise
from toolkit.views.schedule import nearest_slots, slots_shown

MATCHES = ("exact", "nearest", "mean")
_SALT_ORDER = 0x0DE5


class Batch(NamedTuple):
    """`images_bchw` normalised; `labels_b` int64; `rows_b` positions in the source; `logits_bc` the teacher's, or None."""

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


def row_order(rows: int, epoch: int, seed: int) -> np.ndarray:
    """The order of `epoch`: a permutation of 0 … rows − 1, int64."""
    return rng_for(seed, _SALT_ORDER, epoch).permutation(rows)


class ResidentSource:
    """Batches of any epoch from images held on `device`, in the dtype of `dtype`.

    `rows_n` are the rows' numbers in the packed data set: they decide the views, so a row looks the same in every
    subset. Without `targets`, and with a match other than `exact`, a row walks through its whole family of views;
    with `exact` through its cached slots only.
    """

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
    ) -> None:
        if not len(images_nhwc) == len(labels_n) == len(rows_n):
            raise ValueError(f"{len(images_nhwc)} images, {len(labels_n)} labels, {len(rows_n)} row numbers")
        if targets is not None and targets.logits_knc.shape[1] != len(rows_n):
            raise UsageError(f"targets are for {targets.logits_knc.shape[1]} rows, the images are {len(rows_n)}")
        self.plan, self.batch_size, self.seed, self.device = plan, batch_size, seed, device
        self.rows_n = np.asarray(rows_n, dtype=np.int64)
        self._renderer = Renderer(torch.from_numpy(np.ascontiguousarray(images_nhwc)).to(device), plan)
        self._labels_n = torch.from_numpy(np.asarray(labels_n, dtype=np.int64)).to(device)
        self._mean_c = torch.tensor(mean, dtype=dtype, device=device)
        self._std_c = torch.tensor(std, dtype=dtype, device=device)
        self._dtype = dtype
        self._match = targets.match if targets else None
        self._slots = targets.slots if targets and targets.match == "exact" else plan.size
        self._views_nk = plan.views(self.rows_n, self._slots)
        self._logits_kn_c, self._nearest_nv = self._prepare(targets)

    def _prepare(self, targets: Targets | None) -> tuple[Tensor | None, np.ndarray | None]:
        """The logits as one (k·n, c) table on the device, and for `nearest` the slot that serves each view."""
        if targets is None:
            return None, None
        logits_knc = targets.logits_knc
        if targets.match == "mean":
            logits_knc = np.mean(logits_knc, axis=0, dtype=np.float32, keepdims=True)
        table = torch.from_numpy(np.ascontiguousarray(logits_knc)).to(self.device).flatten(0, 1)
        nearest_nv = None
        if targets.match == "nearest":
            nearest_nv = nearest_slots(self.plan, self._views_nk[:, : targets.slots])
        return table, nearest_nv

    def __len__(self) -> int:
        return len(self.rows_n)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self) // self.batch_size)

    def epoch_views(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The view each row shows in `epoch`, and the target slot it gets: two (n,) int64 arrays."""
        every_n = np.arange(len(self))
        slot_n = slots_shown(self.rows_n, epoch, self._slots, self.seed)
        view_n = self._views_nk[every_n, slot_n].astype(np.int64)
        if self._match == "nearest":
            assert self._nearest_nv is not None
            return view_n, self._nearest_nv[every_n, view_n].astype(np.int64)
        return view_n, np.zeros_like(slot_n) if self._match == "mean" else slot_n

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of `epoch` (from 0); the last may be smaller."""
        view_n, slot_n = self.epoch_views(epoch)
        dy_n, dx_n, mirrored_n = (torch.from_numpy(values).to(self.device) for values in self.plan.decode(view_n))
        target_n = torch.from_numpy(slot_n * len(self) + np.arange(len(self))).to(self.device)
        order = torch.from_numpy(row_order(len(self), epoch, self.seed)).to(self.device)
        for rows_b in order.split(self.batch_size):
            images_bhwc = self._renderer.draw(rows_b, dy_n[rows_b], dx_n[rows_b], mirrored_n[rows_b])
            logits_bc = None
            if self._logits_kn_c is not None:
                logits_bc = self._logits_kn_c.index_select(0, target_n[rows_b]).to(self._dtype)
            yield Batch(normalise(images_bhwc, self._mean_c, self._std_c), self._labels_n[rows_b], rows_b, logits_bc)
