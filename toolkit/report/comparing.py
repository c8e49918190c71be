"""How alike scores are, and subsets: rank correlations, overlaps, and what chance alone would give.

Shapes: n rows, k scores or subsets, m rows of a subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def rank_correlations(scores_kn: np.ndarray) -> np.ndarray:
    """Spearman's ρ of every two scores: (k, k) float64, of ranks in which equal scores share their mean rank.

    Spearman, The proof and measurement of association between two things (Am. J. Psychol. 15, 1904): Pearson's
    correlation of the ranks. NaN where a score is the same for all rows. Infinite scores have ranks like any other;
    raises ValueError for a NaN."""
    from scipy.stats import rankdata

    if np.isnan(scores_kn).any():
        raise ValueError("a score that is not a number has no rank")
    centred_kn = np.stack([rankdata(scores_n) for scores_n in scores_kn])
    centred_kn -= centred_kn.mean(axis=1, keepdims=True)
    norms_k = np.sqrt((centred_kn**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho_kk = (centred_kn @ centred_kn.T / norms_k / norms_k[:, None]).clip(-1, 1)
    np.fill_diagonal(rho_kk, np.where(norms_k > 0, 1.0, np.nan))
    return rho_kk


class Overlaps(NamedTuple):
    """Of every two subsets, (k, k): rows in common, int64, their share of the smaller subset and of the union, float64,
    and the mean of both shares for subsets of these sizes drawn at random."""

    common: np.ndarray
    share: np.ndarray
    jaccard: np.ndarray
    share_by_chance: np.ndarray
    jaccard_by_chance: np.ndarray


def overlaps(subsets: Sequence[np.ndarray], n: int) -> Overlaps:
    """|A∩B| / min(|A|, |B|) and Jaccard's |A∩B| / |A∪B| of subsets, each (m,) distinct row numbers, of n rows.

    By chance: |A∩B| of independent uniform subsets is hypergeometric; the means are exact. Raises ValueError for an
    empty subset, or one larger than the data."""
    sizes_k = np.array([len(rows_m) for rows_m in subsets])
    if len(subsets) and not (sizes_k.min() >= 1 and sizes_k.max() <= n):
        raise ValueError(f"subsets of {sizes_k.tolist()} rows of {n}")
    k = len(subsets)
    common_kk = np.zeros((k, k), dtype=np.int64)
    by_chance_kk = np.zeros((k, k))
    for a in range(k):
        for b in range(a, k):
            common_kk[a, b] = common_kk[b, a] = len(np.intersect1d(subsets[a], subsets[b]))
            by_chance_kk[a, b] = by_chance_kk[b, a] = _jaccard_by_chance(int(sizes_k[a]), int(sizes_k[b]), n)
    smaller_kk, larger_kk = np.minimum(sizes_k, sizes_k[:, None]), np.maximum(sizes_k, sizes_k[:, None])
    union_kk = smaller_kk + larger_kk - common_kk
    return Overlaps(common_kk, common_kk / smaller_kk, common_kk / union_kk, larger_kk / n, by_chance_kk)


def _jaccard_by_chance(a: int, b: int, n: int) -> float:
    """The mean of x / (a + b − x) where x rows are in common."""
    from scipy.stats import hypergeom

    common = np.arange(max(0, a + b - n), min(a, b) + 1)
    return float((hypergeom.pmf(common, n, a, b) * common / (a + b - common)).sum())
