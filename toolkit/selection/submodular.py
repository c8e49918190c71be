"""Greedy maximisation of set functions that say how well a subset stands for the pool.

Shapes: n rows, d features, m rows picked, b rows of a block.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from toolkit.selection.gradients import last_layer
from toolkit.selection.pool import How, Picked, Pool

if TYPE_CHECKING:
    import torch

Similarities = Callable[[list[int]], "torch.Tensor"]  # of some rows to all: (b,) positions -> (b, n)

HELD_BYTES = 2**30  # a matrix of all similarities is held up to this size; beyond, they are computed as they are needed
BLOCK = 256  # rows evaluated at once, at most
FIRST_BLOCK = 8  # and at first: the next pick is seldom far below the top of the heap


def facility_location(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Greedily the largest F(S) = Σ_i max_{j ∈ S} s_ij, s = (1 + cos(h_i, h_j)) / 2 of the features (Iyer et al. 2021).

    F is monotone and submodular, so F of the greedy picks is at least 1 − 1/e of the best possible.
    """
    import torch

    order_n = rng.permutation(len(pool))
    directions_nd = _directions(pool, order_n, how.device)

    def similarities(rows_b: list[int]) -> torch.Tensor:
        return directions_nd[rows_b] @ directions_nd.T

    lowest_n = -torch.ones(len(pool), device=how.device)  # a cosine of −1 is s = 0: F in other units, the same picks
    rows_m, _ = lazy_greedy(_held(similarities, lowest_n), lowest_n, keep, how.tick)
    return Picked(order_n[rows_m])


def craig(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Rows whose gradients lie near all others' (Mirzasoleiman et al., CRAIG, ICML 2020).

    Greedily the largest Σ_i max_{j ∈ S} (D − ‖g_i − g_j‖), g the gradient of the loss in the last layer. D is twice the
    largest norm, so at least the largest distance; any such D gives the same picks. The weight of a pick is how many
    rows lie nearest to it, itself among them; a row as near to two belongs to the one picked first. The weights add up
    to n.
    """
    order_n = rng.permutation(len(pool))
    errors_nc, inputs_ni = last_layer(pool.of(order_n), how.device)
    squared_n = (errors_nc**2).sum(dim=1) * (inputs_ni**2).sum(dim=1)

    def nearness(rows_b: list[int]) -> torch.Tensor:
        # in float64: the differences of nearly equal squares would leave noise of a thousandth of a norm in float32
        products_bn = (errors_nc[rows_b] @ errors_nc.T).mul_(inputs_ni[rows_b] @ inputs_ni.T)
        squared_bn = products_bn.mul_(-2).add_(squared_n).add_(squared_n[rows_b, None])
        squared_bn[range(len(rows_b)), rows_b] = 0
        return squared_bn.clamp_min_(0).sqrt_().neg_().float()

    farthest_n = (-2 * squared_n.max().sqrt()).float().repeat(len(pool))
    rows_m, nearest_n = lazy_greedy(_held(nearness, farthest_n), farthest_n, keep, how.tick)
    counts_n = np.bincount(nearest_n, minlength=len(pool))
    return Picked(order_n[rows_m], counts_n[rows_m].astype(np.float64))


def graph_cut(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Greedily the largest f(S) = Σ_{i ∈ V, j ∈ S} s_ij − λ Σ_{i, j ∈ S} s_ij, λ = 1 (Iyer et al. 2021, generalised).

    s = (1 + cos(h_i, h_j)) / 2 of the features. The gain of j is Σ_{i ∈ V} s_ij − λ (2 Σ_{i ∈ S} s_ij + s_jj); up to
    what is the same for all j, that is (Σ_{i ∈ V} x_i − 2λ Σ_{i ∈ S} x_i)·x_j / 2 with features x of length 1, so that
    a pick costs one product of a matrix and a vector. (s_jj is 1, and 1/2 for a row of zeros, whose gain is thereby
    taken for λ/2 less than it is.) DeepCore's λ multiplies the first sum instead: at 1, its default, both are the same.
    Above 1/2 f is not monotone, and gains may be negative: rows are picked all the same.
    """
    import torch

    order_n = rng.permutation(len(pool))
    directions_nd = _directions(pool, order_n, how.device)
    gains_n = (directions_nd @ directions_nd.double().sum(dim=0).float()).double()
    rows_m = torch.zeros(keep, dtype=torch.int64, device=gains_n.device)
    for at in range(keep):
        row = gains_n.argmax()
        rows_m[at] = row
        gains_n -= 2 * (directions_nd @ directions_nd[row])
        gains_n[row] = -torch.inf
        how.tick(1)
    return Picked(order_n[rows_m.cpu().numpy()])


def lazy_greedy(
    similarities: Similarities, best_n: torch.Tensor, keep: int, tick: Callable[[int], None] = lambda picked: None
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy picks for F(S) = Σ_i max(best_i, max_{j ∈ S} s_ij) (Minoux, Accelerated greedy algorithms, 1978).

    A row's gain can only fall as others are picked, so one whose gain is known to be the largest, against bounds from
    before for the others, is the greedy choice. The top of the heap of bounds is computed again a block at a time.

    `best_n` (n,) is what each row has before the first pick. Returns the picks (keep,), equal gains by position, and
    which of them each row is most similar to (n,), each pick to itself; both int64 positions.
    """
    import torch

    rows = len(best_n)
    best_n = best_n.clone()
    owner_n = torch.zeros(rows, dtype=torch.int64, device=best_n.device)

    def gains(rows_b: list[int]) -> list[float]:
        return (similarities(rows_b) - best_n).clamp_min_(0).sum(dim=1).tolist()

    bounds = [g for start in range(0, rows, BLOCK) for g in gains(list(range(start, min(start + BLOCK, rows))))]
    heap = [(-bound, row) for row, bound in enumerate(bounds)]
    heapq.heapify(heap)
    known_at = [0] * rows  # how many picks a bound has seen
    picked: list[int] = []
    block = FIRST_BLOCK
    while len(picked) < keep:
        if known_at[heap[0][1]] == len(picked):
            row = heapq.heappop(heap)[1]
            similar_n = similarities([row])[0]
            owner_n[similar_n > best_n] = row
            owner_n[row] = row
            best_n = torch.maximum(best_n, similar_n)
            picked.append(row)
            tick(1)
            block = FIRST_BLOCK
            continue
        stale: list[int] = []
        while heap and len(stale) < block and known_at[heap[0][1]] < len(picked):
            stale.append(heapq.heappop(heap)[1])
        for row, gain in zip(stale, gains(stale), strict=True):
            known_at[row] = len(picked)
            heapq.heappush(heap, (-gain, row))
        block = min(2 * block, BLOCK)
    return np.array(picked, np.int64), owner_n.cpu().numpy()


def _held(similarities: Similarities, like_n: torch.Tensor) -> Similarities:
    """The same similarities, from a matrix of all of them where it is small enough to be held."""
    import torch

    rows = len(like_n)
    if rows * rows * 4 > HELD_BYTES:
        return similarities
    held_nn = torch.empty(rows, rows, dtype=torch.float32, device=like_n.device)
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        held_nn[start:stop] = similarities(list(range(start, stop)))
    return lambda rows_b: held_nn[rows_b]


def _directions(pool: Pool, order_n: np.ndarray, device: str) -> torch.Tensor:
    """The features in that order, each row divided by its length, (n, d) float32; a row of zeros stays."""
    import torch

    assert pool.features_nd is not None
    features_nd = torch.from_numpy(pool.features_nd[order_n].astype(np.float32)).to(device)
    return torch.nn.functional.normalize(features_nd, dim=1)
