"""Methods that look at scores alone, or at nothing. Shapes: n rows, r of them not removed, m rows picked."""

from __future__ import annotations

import math

import numpy as np

from toolkit.core.places import place_in_class
from toolkit.selection.pool import How, Picked, Pool

STRATA = 50  # as in the paper


def random(pool: Pool, rng: np.random.Generator, how: How) -> np.ndarray:
    """All rows in random order: (n,) int64."""
    return rng.permutation(len(pool))


def easiest(pool: Pool, rng: np.random.Generator, how: How) -> np.ndarray:
    """Lowest score first. Equal scores come in random order: by position, class-ordered data would skew the subset."""
    assert pool.scores_n is not None
    return np.lexsort((rng.permutation(len(pool)), pool.scores_n))


def hardest(pool: Pool, rng: np.random.Generator, how: How) -> np.ndarray:
    """Highest score first, equal scores in random order."""
    assert pool.scores_n is not None
    return np.lexsort((rng.permutation(len(pool)), -pool.scores_n))


def window(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """The rows whose quantile of the score lies nearest `how.center`: neighbours in the order of the score.

    The i-th easiest of n rows (from 0) has the quantile (i + ½) / n. Near an end, the window grows on its other side.
    Equal scores come in random order, as do two rows equally near. Choi et al. (BWS, ICML 2024) slide a window of this
    kind from hard to easy and keep the one that a regression on features likes best; here its place is given.
    """
    easiest_n = easiest(pool, rng, how)
    # in rows, and rounded: of two places equally near, the one with the smaller last digit would always win
    distance_n = np.abs(np.arange(len(pool)) + 0.5 - how.center * len(pool)).round(6)
    nearest_n = easiest_n[np.lexsort((rng.permutation(len(pool)), distance_n))]
    how.tick(keep)
    return Picked(nearest_n[:keep])


def stratified(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Rows from all over the range of the score, without the hardest: Zheng et al. (CCS, ICLR 2023), Algorithm 1.

    The hardest ⌊drop_hardest · n⌋ rows are removed, and the score range of the others is cut into 50 strata of equal
    width. Each gives the same number of rows at random, but for strata that have fewer, whose share the others take
    over. The paper fills the smallest stratum first; here every stratum in turn gives a row, while it has any, which
    comes to the same numbers for each `keep` (up to which strata give one more), and fewer are the beginning of more.
    Where `keep` is more than the others, the removed rows follow, easiest first.
    """
    assert pool.scores_n is not None
    rest_r, removed = without_hardest(pool, rng, how)
    stratum_r = _strata(pool.scores_n[rest_r])
    by_turn_r = np.lexsort((rng.permutation(STRATA)[stratum_r], place_in_class(stratum_r)))
    how.tick(keep)
    return Picked(np.concatenate([rest_r[by_turn_r], removed])[:keep])


def without_hardest(pool: Pool, rng: np.random.Generator, how: How) -> tuple[np.ndarray, np.ndarray]:
    """The pool's rows without its hardest ⌊drop_hardest · n⌋, at least one row, in random order: (r,) int64. And those
    removed, easiest first, equal scores in random order."""
    removed = min(math.floor(how.drop_hardest * len(pool) + 1e-9), len(pool) - 1)  # 0.29 · 100 is a bit less than 29
    hardest_n = hardest(pool, rng, how)
    return rng.permutation(hardest_n[removed:]), hardest_n[:removed][::-1]


def _strata(scores_r: np.ndarray) -> np.ndarray:
    """Which of the strata of equal width each score lies in, the top one closed: (r,) int64."""
    low, high = scores_r.min(), scores_r.max()
    if low == high:
        return np.zeros(len(scores_r), np.int64)
    return np.minimum((scores_r - low) / (high - low) * STRATA, STRATA - 1).astype(np.int64)
