"""Means, spreads, and paired differences and ratios with a confidence interval. Shapes: n repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple


class Difference(NamedTuple):
    """The mean of n paired differences, its interval by Student's t, and their standard deviation."""

    mean: float
    low: float
    high: float
    sigma: float
    n: int

    @property
    def in_words(self) -> str:
        """`+1.23 [+0.45, +2.01]`: the mean and its interval to two decimals."""
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Ours minus theirs, pair by pair, with the 95 % interval. Raises ValueError for fewer than two pairs, or lists of
    different lengths."""
    return mean_of([a - b for a, b in zip(ours, theirs, strict=True)])


def mean_of(differences: Sequence[float], confidence: float = 0.95) -> Difference:
    """Of differences, or of whatever else is 0 where there is no effect. Raises ValueError for fewer than two."""
    from scipy.stats import t

    if len(differences) < 2:
        raise ValueError(f"an interval needs at least two pairs, got {len(differences)}")
    sigma = stdev(differences)
    half = float(t.ppf((1 + confidence) / 2, len(differences) - 1)) * sigma / math.sqrt(len(differences))
    centre = mean(differences)
    return Difference(centre, centre - half, centre + half, sigma, len(differences))


class Ratio(NamedTuple):
    """The ratio of two paired means, its 95 % interval, and the number of pairs."""

    ratio: float
    low: float
    high: float
    n: int


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Mean of ours over mean of theirs, with Fieller's interval (J. R. Stat. Soc. B 16, 1954) for paired values.

    It holds every r for which a t-test would accept that ours − r·theirs has mean 0; from −∞ to ∞ where theirs may
    well be 0. Raises ValueError for fewer than two pairs, or lists of different lengths.
    """
    from scipy.stats import t

    n = len(ours)
    if n != len(theirs) or n < 2:
        raise ValueError(f"a ratio needs at least two pairs, got {n} and {len(theirs)}")
    a, b = mean(ours), mean(theirs)
    weight = float(t.ppf(0.975, n - 1)) ** 2 / (n * (n - 1))
    aa = weight * sum((x - a) ** 2 for x in ours)
    bb = weight * sum((y - b) ** 2 for y in theirs)
    ab = weight * sum((x - a) * (y - b) for x, y in zip(ours, theirs, strict=True))
    leading, inner = b * b - bb, (a * b - ab) ** 2 - (a * a - aa) * (b * b - bb)
    if leading <= 0:
        return Ratio(a / b if b else math.nan, -math.inf, math.inf, n)
    root = math.sqrt(max(inner, 0.0))  # below 0 by rounding alone, where ours are all but theirs, scaled
    return Ratio(a / b, (a * b - ab - root) / leading, (a * b - ab + root) / leading, n)


def mean_and_sigma(values: Sequence[float]) -> str:
    """`mean ± sample standard deviation` to two decimals; the mean alone for one value."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"
