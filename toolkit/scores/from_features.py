"""Scores from where a row lies among the others, by its features alone. High means far from the rest, hard.

Shapes: n rows, d features, b rows of one block, m rows of a sample or a class, k centroids or neighbours. Features may
be float16 and mapped from disk: they are read block by block, and never held whole. All give (n,) float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from toolkit.core.nearest import nearest

BLOCK_ROWS = 8192
NEIGHBOURS = 10
PASSES = 10  # over the sample, at most
WHOLE_PASSES = 2  # over all rows, where the sample was not all of them
SAMPLE_ROWS = 8192
_SAMPLED_PER_CLUSTER = 5
_SEED_TRIALS = 16  # rows drawn for each seed, of which the best is taken: with one, clusters share a centroid
_SEEDING_WIDTH = 64  # k-means++ compares all rows with every row it draws; a random projection keeps distances

Tick = Callable[[int], None]


def _silent(rows: int) -> None:
    """Nobody watches."""


def _sampled(rows: int, clusters: int) -> int:
    return min(rows, max(SAMPLE_ROWS, _SAMPLED_PER_CLUSTER * clusters))


def visits_of(rows: int, clusters: int) -> int:
    """How many rows `prototype` goes through in all, the same one counted each time."""
    sampled = _sampled(rows, clusters)
    return PASSES * sampled + (WHOLE_PASSES * rows if sampled < rows else 0) + rows


def _unit(features_bd: np.ndarray) -> np.ndarray:
    """Rows at length 1 in float32; one of zeros stays so."""
    wide_bd = features_bd.astype(np.float32)
    norms_b = np.linalg.norm(wide_bd, axis=1, keepdims=True)
    return wide_bd / np.where(norms_b > 0, norms_b, 1)


def _unit_blocks(features_nd: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(features_nd), BLOCK_ROWS):
        yield _unit(features_nd[start : start + BLOCK_ROWS])


def _add_to(sums_kd: np.ndarray, group_b: np.ndarray, features_bd: np.ndarray) -> None:
    """Adds every row to the sum of its group, in float64."""
    order_b = np.argsort(group_b, kind="stable")
    present, first = np.unique(group_b[order_b], return_index=True)
    sums_kd[present] += np.add.reduceat(features_bd[order_b].astype(np.float64), first, axis=0)


def _seeds(unit_md: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """(k, d): rows that lie far from each other, by greedy k-means++ (Arthur and Vassilvitskii 2007)."""
    from sklearn.cluster import kmeans_plusplus

    narrow_md = unit_md
    if unit_md.shape[1] > _SEEDING_WIDTH:
        narrow_md = unit_md @ rng.standard_normal((unit_md.shape[1], _SEEDING_WIDTH), dtype=np.float32)
    state = int(rng.integers(2**31))
    # float64, for scikit-learn would convert all rows of float32 again at each centroid
    _, at_k = kmeans_plusplus(narrow_md.astype(np.float64), clusters, n_local_trials=_SEED_TRIALS, random_state=state)
    return unit_md[at_k]


def _lloyd(blocks: Iterable[np.ndarray], centroids_kd: np.ndarray, tick: Tick) -> tuple[np.ndarray, np.ndarray]:
    """One pass over blocks of unit rows: the centroids moved to their rows' directions, and whose each row was (n,).

    A centroid without rows stays where it is.
    """
    sums_kd, labels = np.zeros(centroids_kd.shape), []
    for unit_bd in blocks:
        labels.append((unit_bd @ centroids_kd.T).argmax(axis=1))
        _add_to(sums_kd, labels[-1], unit_bd)
        tick(len(unit_bd))
    moved_k1 = sums_kd.any(axis=1, keepdims=True)
    return np.where(moved_k1, _unit(sums_kd), centroids_kd), np.concatenate(labels)


def _of_sample(unit_md: np.ndarray, centroids_kd: np.ndarray, tick: Tick) -> np.ndarray:
    """The centroids after PASSES passes, or when no row changes its own."""
    starts = range(0, len(unit_md), BLOCK_ROWS)
    before_m = None
    for done in range(1, PASSES + 1):
        blocks = (unit_md[start : start + BLOCK_ROWS] for start in starts)
        centroids_kd, labels_m = _lloyd(blocks, centroids_kd, tick)
        if before_m is not None and np.array_equal(before_m, labels_m):
            tick((PASSES - done) * len(unit_md))
            break
        before_m = labels_m
    return centroids_kd


def prototype(features_nd: np.ndarray, clusters: int, rng: np.random.Generator, tick: Tick = _silent) -> np.ndarray:
    """min_k (1 − cos(h, μ_k)): to the nearest k-means centroid, without labels (Sorscher et al. 2022, section 5).

    The paper clusters ImageNet into 1,000, its number of classes. Spherical k-means (Dhillon and Modha 2001) goes by
    the same cosine as the score: each row belongs to argmax_k cos(h, μ_k), and μ_k is the direction of the sum of its
    rows at length 1. It starts from k-means++ seeds of a random sample, takes up to PASSES of Lloyd's passes over the
    sample, then WHOLE_PASSES over all rows, where these are more. A row of zeros is at distance 1 from all.
    `features_nd` (n, d). Raises ValueError for fewer rows than `clusters`, or fewer than 1 cluster.
    """
    rows = len(features_nd)
    if not 1 <= clusters <= rows:
        raise ValueError(f"clusters must be 1 to {rows}, the number of rows, got {clusters}")
    sample_m = np.sort(rng.choice(rows, _sampled(rows, clusters), replace=False))
    unit_md = _unit(features_nd[sample_m])
    centroids_kd = _of_sample(unit_md, _seeds(unit_md, clusters, rng), tick)
    del unit_md
    for _ in range(WHOLE_PASSES if len(sample_m) < rows else 0):
        centroids_kd, _ = _lloyd(_unit_blocks(features_nd), centroids_kd, tick)
    nearest_n = []
    for unit_bd in _unit_blocks(features_nd):
        nearest_n.append((unit_bd @ centroids_kd.T).max(axis=1))
        tick(len(unit_bd))
    return np.maximum(1 - np.concatenate(nearest_n).astype(np.float64), 0)


def centroid(features_nd: np.ndarray, labels_n: np.ndarray, tick: Tick = _silent) -> np.ndarray:
    """‖h − μ_y‖₂: to the mean of the row's own class (Xia et al. 2023). `features_nd` (n, d).

    The authors' code takes the coordinate-wise median of the class as its centre, where this takes the mean.
    """
    labels, class_n, counts = np.unique(labels_n, return_inverse=True, return_counts=True)
    sums_kd = np.zeros((len(labels), features_nd.shape[1]))
    starts = range(0, len(features_nd), BLOCK_ROWS)
    for start in starts:
        block_bd = features_nd[start : start + BLOCK_ROWS]
        _add_to(sums_kd, class_n[start : start + BLOCK_ROWS], block_bd)
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
