"""Selection by each row's nearest neighbours in the pool.

Shapes: n rows, d features, c classes, k neighbours, b rows of a block, m picked.
"""

from __future__ import annotations

import heapq

import numpy as np

from toolkit.core.nearest import nearest
from toolkit.selection.pool import How, Picked, Pool

CAL_NEIGHBOURS = 10
D2_NEIGHBOURS = 5
GAMMA_FORWARD, GAMMA_REVERSE = 1.0, 0.1  # the authors' settings for images
BLOCK = 1024  # rows whose neighbours' predictions are held at once


def cal(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """The rows whose prediction differs most from their neighbours' (Margatina et al., CAL, EMNLP 2021).

    Score of a row: the mean of KL(p_neighbour ‖ p_row) over its 10 nearest neighbours by the features' Euclidean
    distance, highest first. In the paper neighbours are labelled rows and candidates unlabelled ones; here both are the
    pool's.
    """
    assert pool.features_nd is not None and pool.logits_nc is not None
    order_n = rng.permutation(len(pool))
    _, neighbours_nk = nearest(pool.features_nd[order_n], CAL_NEIGHBOURS, how.device)
    contrast_n = _contrast(pool.logits_nc[order_n], neighbours_nk)
    picked_m = np.argsort(-contrast_n, kind="stable")[:keep]
    how.tick(keep)
    return Picked(order_n[picked_m])


def _contrast(logits_nc: np.ndarray, neighbours_nk: np.ndarray) -> np.ndarray:
    """The mean KL(p_neighbour ‖ p_row) of every row, (n,) float64; 0 where there are no neighbours."""
    contrast_n = np.zeros(len(logits_nc))
    if neighbours_nk.shape[1] == 0:
        return contrast_n
    shifted_nc = logits_nc.astype(np.float64) - logits_nc.max(axis=1, keepdims=True)
    log_p_nc = shifted_nc - np.log(np.exp(shifted_nc).sum(axis=1, keepdims=True))
    for start in range(0, len(logits_nc), BLOCK):
        rows = slice(start, start + BLOCK)
        log_q_bkc = log_p_nc[neighbours_nk[rows]]
        contrast_n[rows] = (np.exp(log_q_bkc) * (log_q_bkc - log_p_nc[rows, None])).sum(axis=2).mean(axis=1)
    return contrast_n


def d2(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Hard and unlike each other, by messages on the graph of 5 nearest neighbours (Maharana et al., ICLR 2024).

    Forward: x_i = s_i + Σ_{j ∈ N(i)} exp(−γ_f d_ij²) s_j, with γ_f = 1. Then the row i of the largest x is picked,
    again and again, and sends its neighbours a reverse message: x_j −= exp(−γ_r d_ij²) x_i, with γ_r = 0.1. The
    authors' code stratifies by score before this; here the whole pool is one stratum.

    d² are squared Euclidean distances over their mean over all edges, so that a typical edge weighs exp(−γ) whatever
    the features' scale. Where a score is below 0, all are shifted to start at 0. A picked row whose x has fallen below
    0 sends nothing: by the equation it would raise its neighbours.
    """
    assert pool.features_nd is not None and pool.scores_n is not None
    order_n = rng.permutation(len(pool))
    distances_nk, neighbours_nk = nearest(pool.features_nd[order_n], D2_NEIGHBOURS, how.device)
    squared_nk = distances_nk.astype(np.float64) ** 2
    mean = squared_nk.mean() if squared_nk.size else 0.0
    squared_nk = squared_nk / (mean if mean > 0 else 1.0)
    scores_n = pool.scores_n[order_n].astype(np.float64)
    scores_n -= min(scores_n.min(), 0.0)
    values_n = scores_n + (np.exp(-GAMMA_FORWARD * squared_nk) * scores_n[neighbours_nk]).sum(axis=1)
    picked_m = _pick_by_messages(values_n, neighbours_nk, np.exp(-GAMMA_REVERSE * squared_nk), keep)
    how.tick(keep)
    return Picked(order_n[picked_m])


def _pick_by_messages(values_n: np.ndarray, neighbours_nk: np.ndarray, weights_nk: np.ndarray, keep: int) -> np.ndarray:
    """Positions (keep,), the largest value first, its neighbours' values lowered after each."""
    values, neighbours, weights = values_n.tolist(), neighbours_nk.tolist(), weights_nk.tolist()
    # values only fall, so that an entry of the heap that is out of date stands too early and is put back
    heap = [(-value, row) for row, value in enumerate(values)]
    heapq.heapify(heap)
    picked: list[int] = []
    while len(picked) < keep:
        bound, row = heapq.heappop(heap)
        if -bound != values[row]:
            heapq.heappush(heap, (-values[row], row))
            continue
        picked.append(row)
        if values[row] > 0:
            for neighbour, weight in zip(neighbours[row], weights[row], strict=True):
                values[neighbour] -= weight * values[row]
    return np.array(picked, dtype=np.int64)
