"""Methods that look at where rows lie: their features, or what the teacher said of them.

Each holds one float32 copy of its pool on `how.device` (contextual_diversity: of 2c columns), and a pick costs one
matrix-vector product with it. The copy is in random order, so that of equal rows any may be picked first.

Shapes: n rows, d features, c classes, m rows picked.
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
    class's d|, smallest first. The pool may be of one class or of many.
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
    x_nd = _centred(_on_device(pool.features_nd, order_n, how))  # short rows lose less in ‖x‖² + ‖y‖² − 2⟨x, y⟩
    square_n = _squares(x_nd)
    return Picked(order_n[_farthest_first(square_n, lambda at_1: 2 * (x_nd @ x_nd[at_1][0]), keep, how)])


def contextual_diversity(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """As k_center, but far is what the teacher says differently: Agarwal et al., Contextual Diversity (ECCV 2020).

    The distance of rows with softmax p and q is ½KL(p‖q) + ½KL(q‖p) = ½Σ_c (p − q)(log p − log q).
    """
    assert pool.logits_nc is not None
    order_n = rng.permutation(len(pool))
    log_nc = torch.log_softmax(_on_device(pool.logits_nc, order_n, how), dim=1)
    # Neither factor changes when all rows lose the same, and short rows lose less to rounding, as in k_center.
    p_nc = _centred(log_nc.exp())
    both_n2c = torch.cat([p_nc, _centred(log_nc)], dim=1)
    classes = p_nc.shape[1]
    own_n = (both_n2c[:, :classes] * both_n2c[:, classes:]).sum(dim=1)  # Σ p log p

    def shared(at_1: Tensor) -> Tensor:
        return both_n2c @ both_n2c[at_1][0].roll(classes)  # Σ p log q + Σ q log p

    return Picked(order_n[_farthest_first(own_n, shared, keep, how)])


def _farthest_first(own_n: Tensor, shared: Callable[[Tensor], Tensor], keep: int, how: How) -> np.ndarray:
    """Positions, the first 0, each then the farthest from all before; ownᵢ + ownⱼ − shared(j)ᵢ is how far i is from j,
    at least 0 but for rounding."""
    nearest_n = torch.full_like(own_n, torch.inf)

    def take(at_1: Tensor) -> Tensor:
        torch.minimum(nearest_n, (own_n + own_n[at_1] - shared(at_1)).clamp_(min=0), out=nearest_n)
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
