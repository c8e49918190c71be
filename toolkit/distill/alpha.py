"""Alpha, the weight of the teacher, where no number was given: by a rule, or by successive halving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

# 0 is not among them: a student without the teacher is shown every view, and so another one than in these trials
CANDIDATES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


def alpha_rule(fraction: float) -> float:
    """`--alpha auto`: 1 − f/2, f the fraction of the rows that were kept, to four digits: from 1 down to 0.5.

    Ben-Baruch et al. (ICML 2025) report that the best alpha rises as f falls, and give no formula; their model, ridge
    regression, does not tell: little regularised, its best alpha is about 1 for every f < 1. Of the lines 1 − k·f this
    is the one that loses least on average over the runs of `make paper`: two data sets, two teachers, five fractions.
    docs/guide.md has what it and others lose.
    """
    return round(1 - fraction / 2, 4)


def rungs_of(steps: int) -> tuple[int, ...]:
    """How many steps a trial of each rung has: a twelfth, a sixth and a third of so many, at least 1."""
    return tuple(max(1, (2 * steps + part) // (2 * part)) for part in (12, 6, 3))


def tried_on(rungs: Sequence[int], candidates: int) -> list[int]:
    """The steps of each trial that `halve` will ask for."""
    return [
        steps for index, steps in enumerate(rungs) if steps not in rungs[:index] for _ in range(-(-candidates >> index))
    ]


class Halved(NamedTuple):
    """The best candidate. `tied`: another was as good on the last rung, so that what is `likely` decided."""

    alpha: float
    tied: bool


def halve(
    candidates: Sequence[float], rungs: Sequence[int], accuracy: Callable[[float, int], float], likely: float
) -> Halved:
    """The best candidate by successive halving: on each rung all that are left are tried, and the better half stays.

    Jamieson & Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization (AISTATS 2016), section
    3: each rung trains half as many for twice as long. `accuracy(alpha, steps)` is what a trial of so many reaches, and
    asked for once; of equals the one nearer to `likely` is better, then the larger.
    """
    reached: dict[tuple[float, int], float] = {}
    left, tied = list(candidates), False
    for steps in rungs:
        for alpha in left:
            if (alpha, steps) not in reached:
                reached[alpha, steps] = accuracy(alpha, steps)
        # rounded: 0.9 and 0.8 are equally far from 0.85, but not in binary
        left.sort(key=lambda alpha: (-reached[alpha, steps], round(abs(alpha - likely), 9), -alpha))
        tied = len({reached[alpha, steps] for alpha in left[:2]}) < len(left[:2])
        left = left[: -(-len(left) // 2)]
    return Halved(left[0], tied)
