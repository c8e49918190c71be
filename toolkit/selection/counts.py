"""How many rows each class keeps, and which make room for a class that would keep too few.

Counts are dicts, label → rows, in the order of the labels. Shapes: n rows, m kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toolkit.core.places import place_in_class


def least_counts(labels_n: np.ndarray, min_per_class: int) -> dict[int, int]:
    """What every class keeps at least: `min_per_class` rows, or all it has."""
    labels, sizes = np.unique(labels_n, return_counts=True)
    return dict(zip(labels.tolist(), np.minimum(sizes, min_per_class).tolist(), strict=True))


def balanced_counts(labels_n: np.ndarray, keep: int, min_per_class: int = 1) -> dict[int, int]:
    """Each class's share of `keep` in proportion to its size, by largest remainders; their sum is `keep`.

    A class keeps no fewer than min(min_per_class, its size). Equal remainders go to the lower label. `keep` must be at
    least the sum of what classes keep at least.
    """
    labels, sizes = np.unique(labels_n, return_counts=True)
    rows, least = sizes.sum(), np.minimum(sizes, min_per_class)
    shares = keep * sizes  # in units of 1/n row: in floating point, equal remainders would come out unequal
    counts = np.maximum(shares // rows, least)
    while counts.sum() < keep:  # the shares are rounded down, so at most one turn per class
        counts[np.argmax(np.where(counts < sizes, shares - counts * rows, -np.inf))] += 1
    while counts.sum() > keep:  # classes lifted to their least are paid for by those furthest above their share
        counts[np.argmax(np.where(counts > least, counts * rows - shares, -np.inf))] -= 1
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def nested_counts(labels_n: np.ndarray, keep: int, min_per_class: int = 1) -> dict[int, int]:
    """Each class's share of `keep`, such that no class's falls as `keep` grows; their sum is `keep`.

    Largest remainders do not promise that: a class may lose a row as `keep` grows by one (the Alabama paradox). A
    divisor method does. The first min(min_per_class, size) rows of every class come first; the k-th row of a class of s
    rows then comes in the order of s / (k − ½), largest first (Webster, Sainte-Laguë: shares rounded to the nearest).
    Equal ones go to the lower label. No class is given more rows than it has: for k ≤ s the ratio is above 1, past it
    below.
    """
    labels, sizes = np.unique(labels_n, return_counts=True)
    class_n = np.repeat(np.arange(len(labels)), sizes)
    k_n = place_in_class(class_n) + 1
    # one division of integers, rounded once: equal ratios stay equal, and others apart below 2²⁶ rows
    ratio_n = np.where(k_n <= min_per_class, np.inf, sizes[class_n] / (2 * k_n - 1))
    seats_m = class_n[np.lexsort((class_n, -ratio_n))[:keep]]
    return dict(zip(labels.tolist(), np.bincount(seats_m, minlength=len(labels)).tolist(), strict=True))


def keep_every_class(
    picked_m: np.ndarray, labels_n: np.ndarray, least: dict[int, int], best: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """The picked rows, (m,), best first, with `least` rows of every class.

    `best(label, count)` are a class's first `count` rows. Those of a class that falls short, which were not picked,
    replace the last picked rows of classes that can spare them.
    """
    kept = picked_m.copy()
    present, counts = np.unique(labels_n[kept], return_counts=True)
    count_of = dict.fromkeys(least, 0) | dict(zip(present.tolist(), counts.tolist(), strict=True))
    place = len(kept) - 1
    for label, wanted in least.items():
        short = wanted - count_of[label]
        if short <= 0:
            continue
        rows = best(label, wanted)
        for row in rows[~np.isin(rows, picked_m)][:short]:
            # a class that can spare none never can later: counts only fall to their least, or rise to it
            while count_of[spared := int(labels_n[kept[place]])] <= least[spared]:
                place -= 1
            count_of[spared] -= 1
            kept[place] = row
            place -= 1
        count_of[label] = wanted
    return kept
