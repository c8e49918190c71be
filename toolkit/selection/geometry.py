"""Methods that look at where rows lie: their features, or what the teacher said of them.

Each holds one float32 copy of its pool on `how.device` (contextual_diversity: of 2c columns; moderate: a class at a
time): a class's rows where the subset is balanced, of everything where it is not. A pick reads that copy once. It is in
random order, so that of equal rows any may be picked first.

Shapes: n rows, d features, c classes, m rows picked, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from toolkit.selection.pool import How, Picked, Pool

_BLOCK_ROWS = 8192
_TICK_PICKS = 128


def moderate(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Rows neither near their class's centre nor far from it: Xia et al., Moderate Coreset (ICLR 2023).

    The centre is the mean feature of a class, a row's distance dᵢ = ‖xᵢ − centre‖, and rows come by |dᵢ − median of the
    class's d|, smallest first. The pool may be of one class or of many. The authors' code takes the median of every
    coordinate as a class's centre and keeps the middle share of the ranks of d, over all classes together.
    """
    assert pool.features_nd is not None
    off_n = np.empty(len(pool))
    for label in np.unique(pool.labels_n):
        rows_k = np.flatnonzero(pool.labels_n == label)
        centred_kd = _centred(_on_device(pool.features_nd[rows_k], np.arange(len(rows_k)), how))
        distance_k = centred_kd.norm(dim=1).cpu().double().numpy()
        off_n[rows_k] = np.abs(distance_k - np.median(distance_k))
    how.tick(keep)
    return Picked(np.lexsort((rng.permutation(len(pool)), off_n))[:keep])


def herding(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Rows whose running mean stays as near as can be to the mean of all: Welling, Herding (ICML 2009).

    Pick t is the row not yet picked nearest to what would make the mean of t rows exact: with w = t·μ − Σ picked, the
    argmin of ‖w − x‖, which is the argmax of ⟨w, x⟩ − ½‖x‖². Where rows are equally long, as Chen, Welling and Smola
    (Super-Samples from Kernel Herding, UAI 2010) have them, that is the paper's argmax of ⟨w, x⟩ with w ← w + μ − x;
    where they are not, that one leans to long rows, and the mean suffers.
    """
    assert pool.features_nd is not None
    order_n = rng.permutation(len(pool))
    x_nd = _centred(_on_device(pool.features_nd, order_n, how))  # now μ = 0 and w = −Σ picked
    half_n = _squares(x_nd) / 2
    free_n = torch.zeros_like(half_n)
    sum_d = x_nd.new_zeros(x_nd.shape[1])

    def take(at_1: Tensor) -> Tensor:
        free_n.index_fill_(0, at_1, -torch.inf)
        sum_d.add_(x_nd[at_1][0])
        return free_n - half_n - x_nd @ sum_d

    return Picked(order_n[_greedy(-half_n, take, keep, how)])


def k_center(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Each pick the row farthest from all before it: Sener and Savarese, Core-Set (ICLR 2018), the greedy algorithm.

    Distances are Euclidean; the first row is random. The largest distance of any row to its nearest pick is at most
    twice the smallest possible (Gonzalez 1985).
    """
    assert pool.features_nd is not None
    order_n = rng.permutation(len(pool))
    x_nd = _on_device(pool.features_nd, order_n, how)

    def distance(rows: slice, at_1: Tensor) -> Tensor:
        # of differences: ‖x‖² + ‖y‖² − 2⟨x, y⟩ would lose the digits in which rows of a tight cluster differ
        return (x_nd[rows] - x_nd[at_1]).square_().sum(dim=1)

    return Picked(order_n[_farthest_first(x_nd.new_full((len(pool),), torch.inf), distance, keep, how)])


def contextual_diversity(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """As k_center, but far is what the teacher says differently: Agarwal et al., Contextual Diversity (ECCV 2020).

    The distance of rows with softmax p and q is ½KL(p‖q) + ½KL(q‖p) = ½Σ_c (p − q)(log p − log q). That is DeepCore's
    simplification for one label per image; the paper compares mixtures of an image's predictions, one for each class.
    """
    assert pool.logits_nc is not None
    order_n = rng.permutation(len(pool))
    log_nc = torch.log_softmax(_on_device(pool.logits_nc, order_n, how), dim=1)
    p_nc = log_nc.exp()

    def distance(rows: slice, at_1: Tensor) -> Tensor:
        return (p_nc[rows] - p_nc[at_1]).mul_(log_nc[rows] - log_nc[at_1]).sum(dim=1)

    return Picked(order_n[_farthest_first(log_nc.new_full((len(pool),), torch.inf), distance, keep, how)])


def _farthest_first(nearest_n: Tensor, distance: Callable[[slice, Tensor], Tensor], keep: int, how: How) -> np.ndarray:
    """Positions, the first 0, each then the farthest from all before. `distance(rows, it)`, (b,), is how far a block of
    rows is from the pick, or a number that grows with it; `nearest_n` (n,) is infinite, and written over."""
    blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, len(nearest_n), _BLOCK_ROWS)]

    def take(at_1: Tensor) -> Tensor:
        for rows in blocks:
            nearest_b = nearest_n[rows]
            torch.minimum(nearest_b, distance(rows, at_1), out=nearest_b)
        return nearest_n.index_fill_(0, at_1, -torch.inf)

    return _greedy(nearest_n, take, keep, how)


def _greedy(value_n: Tensor, take: Callable[[Tensor], Tensor], keep: int, how: How) -> np.ndarray:
    """`keep` positions, (m,) int64, each the one of most value; `take(it)`, of shape (1,), gives the values after.

    Equal values go to the first. The positions stay on the device until the end: nothing waits for a pick.
    """
    at_m = torch.empty(keep, dtype=torch.int64, device=value_n.device)
    for pick in range(keep):
        at_1 = at_m[pick : pick + 1]
        at_1.copy_(value_n.argmax())
        value_n = take(at_1)
        if (pick + 1) % _TICK_PICKS == 0:
            how.tick(_TICK_PICKS)
    how.tick(keep % _TICK_PICKS)
    return at_m.cpu().numpy()


def _on_device(array_nd: np.ndarray, order_n: np.ndarray, how: How) -> Tensor:
    """The rows in the order given, (n, d) float32 on the device. They may be mapped: they are read first to last."""
    out_nd = torch.empty(array_nd.shape, dtype=torch.float32, device=how.device)
    place_n = torch.from_numpy(np.argsort(order_n)).to(how.device)
    for start in range(0, len(array_nd), _BLOCK_ROWS):
        block_bd = torch.from_numpy(np.array(array_nd[start : start + _BLOCK_ROWS], dtype=np.float32))
        out_nd[place_n[start : start + _BLOCK_ROWS]] = block_bd.to(how.device)
    return out_nd


def _centred(x_nd: Tensor) -> Tensor:
    """The rows less their mean, in place. The mean is summed in float64: it is what herding aims at."""
    sum_d = x_nd.new_zeros(x_nd.shape[1], dtype=torch.float64)
    for block_bd in x_nd.split(_BLOCK_ROWS):
        sum_d += block_bd.sum(dim=0, dtype=torch.float64)
    return x_nd.sub_((sum_d / len(x_nd)).float())


def _squares(x_nd: Tensor) -> Tensor:
    """‖x‖² of every row, (n,), without a second copy of them."""
    return torch.cat([block_bd.square().sum(dim=1) for block_bd in x_nd.split(_BLOCK_ROWS)])
