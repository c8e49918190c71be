"""Methods: each ranks all rows, the ones to keep first. Shapes: n rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Method(NamedTuple):
    """`rank(scores_n, rng)` gives (n,) int64, best first."""

    rank: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    needs_score: bool
    paper: str


def rank_random(scores_n: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All rows in random order."""
    return rng.permutation(len(scores_n))


def rank_easiest(scores_n: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lowest score first. Equal scores come in random order: by position, class-ordered data would skew the subset."""
    return np.lexsort((rng.permutation(len(scores_n)), scores_n))


def rank_hardest(scores_n: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Highest score first, equal scores in random order."""
    return rank_easiest(-scores_n, rng)


METHODS = {
    "random": Method(rank_random, False, "uniform; with KD, the winner of Ben-Baruch et al. (ICML 2025)"),
    "hardest": Method(rank_hardest, True, "Paul et al., Deep Learning on a Data Diet (NeurIPS 2021), with its scores"),
    "easiest": Method(rank_easiest, True, "Sorscher et al., Beyond neural scaling laws (NeurIPS 2022), for small data"),
}
