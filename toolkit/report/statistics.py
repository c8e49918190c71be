"""Means, spreads, and paired differences with a confidence interval. Shapes: n repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple


class Difference(NamedTuple):
    """The mean of n paired differences, its 95 % interval by Student's t, and their standard deviation."""

    mean: float
    low: float
    high: float
    sigma: float
    n: int


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Ours minus theirs, pair by pair. Raises ValueError for fewer than two pairs, or lists of different lengths."""
    from scipy.stats import t

    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < 2:
        raise ValueError(f"an interval needs at least two pairs, got {len(differences)}")
    sigma = stdev(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * sigma / math.sqrt(len(differences))
    centre = mean(differences)
    return Difference(centre, centre - half, centre + half, sigma, len(differences))


def mean_and_sigma(values: Sequence[float]) -> str:
    """`mean ± sample standard deviation` to two decimals; the mean alone for one value."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"
