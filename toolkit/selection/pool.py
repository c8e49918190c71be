"""What a method may look at, and what it answers. Shapes: n rows, d features, c classes, m rows picked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Pool:
    """The rows a method picks from: of one class, or of all data. A method names what it needs, the rest may be None.

    `labels_n` (n,) integers. `scores_n` (n,) floats, high = hard. `features_nd` (n, d) floats, what the teacher's last
    linear layer read of the canonical view, perhaps float16 and mapped from disk; `logits_nc` (n, c) floats likewise,
    what it said, or rows decoded when asked for (`rows[at]`). `finite` names those of the three that are known to have
    no NaN or infinity: they are not read for it again (`toolkit.selection.checked`).
    """

    labels_n: np.ndarray
    scores_n: np.ndarray | None = None
    features_nd: np.ndarray | None = None
    logits_nc: Any = None
    finite: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.labels_n)

    def of(self, rows_m: np.ndarray) -> Pool:
        """The pool of the rows at the positions `rows_m`, in memory."""

        def part(array: Any) -> np.ndarray | None:
            return None if array is None else array[rows_m]

        seen = (part(self.scores_n), part(self.features_nd), part(self.logits_nc))
        return Pool(self.labels_n[rows_m], *seen, self.finite)


@dataclass(frozen=True)
class How:
    """Settings that methods share. `center`, of window, is a quantile of the score (0 easiest, 1 hardest);
    `drop_hardest`, of stratified and d2, the share of the hardest rows removed first. `device` is where torch
    computes; `tick` is told how many rows were picked since it was last called."""

    center: float = 0.5
    drop_hardest: float = 0.1
    device: str = "cpu"
    tick: Callable[[int], None] = lambda picked: None

    def __post_init__(self) -> None:
        if not 0 <= self.center <= 1:
            raise ValueError(f"--center must be from 0 (easiest) to 1 (hardest), got {self.center}")
        if not 0 <= self.drop_hardest < 1:
            raise ValueError(f"--drop-hardest must be at least 0 and below 1, got {self.drop_hardest}")


class Picked(NamedTuple):
    """`rows_m` are positions in the pool, int64, in the order they were picked, so that fewer picks are its beginning;
    `weights_m` float64, at least 0, or None where all count alike."""

    rows_m: np.ndarray
    weights_m: np.ndarray | None = None
