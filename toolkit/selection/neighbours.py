"""Selection by each row's nearest neighbours in the pool.

Both hold a copy of the pool's features, as they are stored, in random order, beside what `nearest` holds of them: of a
class where the subset is balanced, of everything where it is not.

Shapes: n rows, r of them not removed, d features, c classes, k neighbours, b rows of a block, m picked.
"""

from __future__ import annotations

import heapq

import numpy as np

from toolkit.core.nearest import nearest
from toolkit.selection.pool import How, Picked, Pool
from toolkit.selection.ranking import without_hardest

CAL_NEIGHBOURS = 10
D2_NEIGHBOURS = 5
GAMMA_FORWARD, GAMMA_REVERSE = 1.0, 0.1  # as in the authors' commands for images, which mean other distances (see d2)
BLOCK = 1024  # rows whose neighbours' predictions are held at once


def cal(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """The rows whose prediction differs most from their neighbours' (Margatina et al., CAL, EMNLP 2021).

    Score of a row: the mean of KL(p_neighbour ‖ p_row) over its 10 nearest neighbours by the features' Euclidean
    distance, highest first. In the paper neighbours are labelled rows and candidates unlabelled ones; here both are the
    pool's. Of a balanced subset that is a class, so neighbours are of the row's own and the contrast between classes is
    lost; without balance (--no-balance) they are any rows, as in the paper.
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

    The hardest ⌊drop_hardest · n⌋ rows are removed first, as the authors do: the largest scores are often wrong labels.
    Forward: x_i = s_i + Σ_{j ∈ N(i)} exp(−γ_f d_ij²) s_j, with γ_f = 1. Then the row i of the largest x is picked,
    again and again, and sends its neighbours a reverse message: x_j −= exp(−γ_r d_ij²) x_i, with γ_r = 0.1. Where
    `keep` is more than the others, the removed rows follow, easiest first.

    d² are squared Euclidean distances over their mean over all edges, so that a typical edge weighs exp(−γ) whatever
    the features' scale. Where a score is below 0, all are shifted to start at 0. A picked row whose x has fallen below
    0 sends nothing: by the equation it would raise its neighbours.

    The authors' code weighs an edge by exp(−d) forward, without a γ_f to set, and by exp(−γ_r d) in reverse, d not
    squared and in the features' own units, and makes the graph symmetric. Here d is squared and scaled, so
    that one γ serves all networks, and N(i) are the 5 nearest alone, so that the work and the number of
    messages are the same for every row, however many rows it is a neighbour of.
    """
    assert pool.features_nd is not None and pool.scores_n is not None
    rest_r, removed = without_hardest(pool, rng, how)
    distances_rk, neighbours_rk = nearest(pool.features_nd[rest_r], D2_NEIGHBOURS, how.device)
    squared_rk = distances_rk.astype(np.float64) ** 2
    mean = squared_rk.mean() if squared_rk.size else 0.0
    squared_rk = squared_rk / (mean if mean > 0 else 1.0)
    scores_r = pool.scores_n[rest_r].astype(np.float64)
    scores_r -= min(scores_r.min(), 0.0)
    values_r = scores_r + (np.exp(-GAMMA_FORWARD * squared_rk) * scores_r[neighbours_rk]).sum(axis=1)
    weights_rk = np.exp(-GAMMA_REVERSE * squared_rk)
    picked_m = _pick_by_messages(values_r, neighbours_rk, weights_rk, min(keep, len(rest_r)))
    how.tick(keep)
    return Picked(np.concatenate([rest_r[picked_m], removed])[:keep])


def _pick_by_messages(values_r: np.ndarray, neighbours_rk: np.ndarray, weights_rk: np.ndarray, keep: int) -> np.ndarray:
    """Positions (keep,), the largest value first, its neighbours' values lowered after each."""
    values, neighbours, weights = values_r.tolist(), neighbours_rk.tolist(), weights_rk.tolist()
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
