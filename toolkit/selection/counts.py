"""How many rows each class keeps. Shapes: n rows, m kept."""

from __future__ import annotations

import numpy as np


def balanced_counts(labels_n: np.ndarray, keep: int) -> dict[int, int]:
    """Each class's share of `keep` in proportion to its size, by largest remainders, at least one; their sum is `keep`.

    Equal remainders go to the lower label. `keep` must be at least the number of classes.
    """
    labels, sizes = np.unique(labels_n, return_counts=True)
    rows = sizes.sum()
    shares = keep * sizes  # in units of 1/n row: in floating point, equal remainders would come out unequal
    counts = np.maximum(shares // rows, 1)
    while counts.sum() < keep:  # the shares are rounded down, so at most one turn per class
        counts[np.argmax(np.where(counts < sizes, shares - counts * rows, -np.inf))] += 1
    while counts.sum() > keep:  # classes lifted to one row are paid for by those furthest above their share
        counts[np.argmax(np.where(counts > 1, counts * rows - shares, -np.inf))] -= 1
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def keep_every_class(ranked_n: np.ndarray, labels_n: np.ndarray, keep: int) -> np.ndarray:
    """The first `keep` of the ranking, (m,); a missing class's first row replaces the last row that can be spared."""
    kept = ranked_n[:keep].copy()
    present, counts = np.unique(labels_n[kept], return_counts=True)
    count_of = dict(zip(present.tolist(), counts.tolist(), strict=True))
    for label in np.setdiff1d(np.unique(labels_n), present):
        first = ranked_n[labels_n[ranked_n] == label][0]
        position = next(p for p in range(keep - 1, -1, -1) if count_of.get(int(labels_n[kept[p]]), 0) > 1)
        count_of[int(labels_n[kept[position]])] -= 1
        count_of[int(label)] = 1
        kept[position] = first
    return kept
