"""Scores from where a row lies among the others, by its features alone. High means far from the rest, hard.

Shapes: n rows, d features, b rows of one block, k centroids or neighbours. Features may be float16 and mapped from
disk: they are read block by block, and never held whole. All give (n,) float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from toolkit.core.nearest import nearest

BLOCK_ROWS = 8192
NEIGHBOURS = 10
PASSES = 10
_MOST_ROWS = 2_500_000  # that k-means looks at, if that is two passes or more
_RUN_ROWS = 64  # read in one piece: data may be ordered by class, and blocks must not be
_SEEDS_PER_CLUSTER = 5
_MANY_CLUSTERS = 100  # from here on k-means++ tries one candidate a centroid: several cost minutes

Tick = Callable[[int], None]


def _silent(rows: int) -> None:
    """Nobody watches."""


def passes_of(rows: int) -> int:
    """How often `prototype` goes through all rows to find its centroids."""
    return max(2, min(PASSES, _MOST_ROWS // max(rows, 1)))


def _unit(features_bd: np.ndarray) -> np.ndarray:
    """Rows at length 1 in float32; one of zeros stays so."""
    wide_bd = features_bd.astype(np.float32)
    norms_b = np.linalg.norm(wide_bd, axis=1, keepdims=True)
    return wide_bd / np.where(norms_b > 0, norms_b, 1)


def _mixed_blocks(rows: int, block: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Every row once, in blocks of short runs from all over the data: positions, increasing in a block."""
    run = max(1, min(_RUN_ROWS, block // 16))
    starts = rng.permutation(np.arange(0, rows, run))
    for first in range(0, len(starts), block // run):
        chosen = np.sort(starts[first : first + block // run])
        positions = (chosen[:, None] + np.arange(run)).ravel()
        yield positions[positions < rows]


def prototype(features_nd: np.ndarray, clusters: int, rng: np.random.Generator, tick: Tick = _silent) -> np.ndarray:
    """min_k (1 − cos(h, μ_k)): to the nearest k-means centroid, without labels (Sorscher et al. 2022, section 5).

    The paper clusters ImageNet into 1,000, its number of classes. Rows and centroids are brought to length 1, so that
    k-means goes by the same distance as the score; a row of zeros is at distance 1 from all. Mini-batch k-means
    (Sculley 2010) from k-means++ seeds, by scikit-learn: `passes_of(n)` passes, and one to score. `features_nd` (n, d).
    Raises ValueError for fewer rows than `clusters`, or fewer than 1 cluster.
    """
    from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

    rows = len(features_nd)
    if not 1 <= clusters <= rows:
        raise ValueError(f"clusters must be 1 to {rows}, the number of rows, got {clusters}")
    state = int(rng.integers(2**31))
    sample = np.sort(rng.choice(rows, min(rows, max(BLOCK_ROWS, _SEEDS_PER_CLUSTER * clusters)), replace=False))
    trials = 1 if clusters > _MANY_CLUSTERS else None
    seeds_kd, _ = kmeans_plusplus(_unit(features_nd[sample]), clusters, random_state=state, n_local_trials=trials)
    block = max(min(BLOCK_ROWS, rows // 16), min(256, rows), 1)
    means = MiniBatchKMeans(clusters, init=seeds_kd, n_init=1, batch_size=block, random_state=state)
    for _ in range(passes_of(rows)):
        for positions_b in _mixed_blocks(rows, block, rng):
            means.partial_fit(_unit(features_nd[positions_b]))
            tick(len(positions_b))
    centroids_kd = _unit(means.cluster_centers_)
    distance_n = np.empty(rows)
    for start in range(0, rows, BLOCK_ROWS):
        cosine_bk = _unit(features_nd[start : start + BLOCK_ROWS]) @ centroids_kd.T
        distance_n[start : start + BLOCK_ROWS] = 1 - cosine_bk.max(axis=1)
        tick(len(cosine_bk))
    return np.maximum(distance_n, 0)


def centroid(features_nd: np.ndarray, labels_n: np.ndarray, tick: Tick = _silent) -> np.ndarray:
    """‖h − μ_y‖₂: to the mean of the row's own class (Xia et al. 2023). `features_nd` (n, d)."""
    labels, class_n, counts = np.unique(labels_n, return_inverse=True, return_counts=True)
    sums_kd = np.zeros((len(labels), features_nd.shape[1]))
    starts = range(0, len(features_nd), BLOCK_ROWS)
    for start in starts:
        order_b = np.argsort(class_n[start : start + BLOCK_ROWS], kind="stable")
        present, first = np.unique(class_n[start : start + BLOCK_ROWS][order_b], return_index=True)
        block_bd = features_nd[start : start + BLOCK_ROWS].astype(np.float64)[order_b]
        sums_kd[present] += np.add.reduceat(block_bd, first, axis=0)
        tick(len(block_bd))
    means_kd = sums_kd / counts[:, None]
    distance_n = np.empty(len(features_nd))
    for start in starts:
        away_bd = features_nd[start : start + BLOCK_ROWS] - means_kd[class_n[start : start + BLOCK_ROWS]]
        distance_n[start : start + BLOCK_ROWS] = np.linalg.norm(away_bd, axis=1)
        tick(len(away_bd))
    return distance_n


def knn_distance(
    features_nd: np.ndarray, labels_n: np.ndarray, k: int = NEIGHBOURS, device: str = "cpu", tick: Tick = _silent
) -> np.ndarray:
    """(1 / k) Σ_j ‖h − h_(j)‖₂ over the k nearest rows of the same class: how sparse it is about the row.

    The weight of Angiulli and Pizzuti (2002), divided by k; a k-NN estimate of the density (Loftsgaarden and
    Quesenberry 1965) falls as it rises. Only the row's own class is searched, so that the cost is the sum of the
    classes' squares and not the square of the sum. Where a class has fewer, its other rows are the neighbours; a row
    alone in its class is given the largest distance found. `features_nd` (n, d).
    """
    distance_n = np.full(len(features_nd), np.nan)
    for label in np.unique(labels_n):
        rows_m = np.flatnonzero(labels_n == label)
        if len(rows_m) > 1:
            distances_mk, _ = nearest(features_nd[rows_m], k, device)
            distance_n[rows_m] = distances_mk.mean(axis=1, dtype=np.float64)
        tick(len(rows_m))
    alone_n = np.isnan(distance_n)
    distance_n[alone_n] = distance_n[~alone_n].max(initial=0)
    return distance_n
