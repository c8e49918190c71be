"""Selection by the loss's gradients in the last linear layer, which are never written out for all rows.

Shapes: n rows, d features, c classes, m rows picked, e errors and i = d + 1 inputs of a layer, D = e · i gradients.

For logits W h + b the gradient of cross-entropy is (p − y) hᵀ for W and p − y for b: the outer product of the errors
p − y and the inputs [h, 1]. So ⟨g_i, g_j⟩ = ((p_i − y_i)·(p_j − y_j)) (h_i·h_j + 1), and ⟨g_i, R⟩ for a matrix R (e, i)
is (p_i − y_i)ᵀ R [h_i, 1].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from toolkit.selection.pool import How, Picked, Pool

if TYPE_CHECKING:
    import torch

RIDGE = 0.5
LARGEST = 4096  # gradients of one row: GradMatch inverts a matrix of this size
STEP = 0.1  # learning rate of GLISTER's look ahead
UPDATES = 100  # of GLISTER's gradient, where all rows are picked


class Gradients(NamedTuple):
    """Of n rows, as factors: row j's gradient is the outer product of `errors_ne[j]` and `inputs_ni[j]`, float64."""

    errors_ne: torch.Tensor
    inputs_ni: torch.Tensor

    def of(self, rows_m: torch.Tensor | list[int]) -> torch.Tensor:
        """The gradients themselves, (m, D)."""
        return (self.errors_ne[rows_m][:, :, None] * self.inputs_ni[rows_m][:, None, :]).flatten(1)

    def along(self, direction_ei: torch.Tensor) -> torch.Tensor:
        """The inner product of each row's gradient and a direction, (n,)."""
        return (self.inputs_ni @ direction_ei.T).mul_(self.errors_ne).sum(dim=1)

    def total(self) -> torch.Tensor:
        """Their sum, (e, i)."""
        return self.errors_ne.T @ self.inputs_ni


def last_layer(pool: Pool, device: str) -> Gradients:
    """The gradients of each row's cross-entropy in the last layer: errors (n, c) and inputs (n, d + 1)."""
    import torch

    assert pool.features_nd is not None and pool.logits_nc is not None
    inputs_ni = np.ones((len(pool), pool.features_nd.shape[1] + 1))
    inputs_ni[:, :-1] = pool.features_nd
    logits_nc = torch.from_numpy(pool.logits_nc.astype(np.float64)).to(device)
    labels_n = torch.from_numpy(pool.labels_n.astype(np.int64)).to(device)
    return Gradients(errors(logits_nc, labels_n), torch.from_numpy(inputs_ni).to(device))


def errors(logits_nc: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
    """softmax(logits) − one-hot labels, (n, c)."""
    errors_nc = logits_nc.softmax(dim=1)
    errors_nc[range(len(labels_n)), labels_n] -= 1
    return errors_nc


# GradMatch


def grad_match(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Rows whose weighted gradients add up to all rows' (Killamsetty et al., GRAD-MATCH, ICML 2021):

        min over S and w ≥ 0 of ‖Σ_{j ∈ S} w_j g_j − Σ_j g_j‖² + λ ‖w‖², λ = 0.5,

    by orthogonal matching pursuit: the row that correlates most with the residual is picked, and the ridge regression
    on all picks gives the next residual. The weights, at last, are the non-negative ridge regression's, exactly. Where
    no row correlates positively any more, the others follow at random, with weight 0. The λ is that of CORDS' settings
    for CIFAR-10 (its class has 0, DeepCore 1 by default), and the weights are not DeepCore's, which solves the normal
    equations (GGᵀ + λ)w = Gt by non-negative least squares and so minimises another norm than the problem's.

    Where a row has more than 4,096 gradients, only its own class's are taken, (p_y − 1) [h, 1], a problem for each
    class: the approximation the authors' library makes per class. The next pick is that of the largest correlation in
    any of them.
    """
    import torch

    order_n = rng.permutation(len(pool))
    shuffled = pool.of(order_n)
    gradients = last_layer(shuffled, how.device)
    groups = _groups(gradients, torch.from_numpy(shuffled.labels_n.astype(np.int64)).to(how.device))
    pursuits = [_Pursuit(group, rows_g) for group, rows_g in groups]
    picked: list[int] = []
    while len(picked) < keep:
        best = max(pursuits, key=lambda pursuit: pursuit.gain)
        if best.gain <= 0:
            break
        picked.append(best.pick())
        how.tick(1)
    weights_n = np.zeros(len(pool))
    for pursuit in pursuits:
        weights_n[pursuit.rows_g[pursuit.picked]] = nonnegative_ridge(
            pursuit.gradients.of(pursuit.picked), pursuit.target_D, RIDGE
        )
    rest_n = np.ones(len(pool), bool)
    rest_n[picked] = False
    how.tick(keep - len(picked))
    picked_m = np.array([*picked, *np.flatnonzero(rest_n)[: keep - len(picked)]], np.int64)
    return Picked(order_n[picked_m], weights_n[picked_m])


def _groups(gradients: Gradients, labels_n: torch.Tensor) -> list[tuple[Gradients, np.ndarray]]:
    """All rows with all their gradients, or each class's rows with their own class's, and the rows' positions (g,)."""
    errors_nc, inputs_ni = gradients
    if errors_nc.shape[1] * inputs_ni.shape[1] <= LARGEST:
        return [(gradients, np.arange(len(labels_n)))]
    groups = []
    for label in labels_n.unique():
        rows_g = (labels_n == label).nonzero()[:, 0]
        groups.append((Gradients(errors_nc[rows_g, label, None], inputs_ni[rows_g]), rows_g.cpu().numpy()))
    return groups


class _Pursuit:
    """Orthogonal matching pursuit with a ridge, of the sum t of all gradients, by its residual.

    With the picks' gradients G (m, D) the residual t − Gᵀ(GGᵀ + λ)⁻¹Gt is λ(GᵀG + λ)⁻¹t: a pick is a rank-one update of
    an inverse (D, D). The newest are kept as factors V, (GᵀG + λ)⁻¹ = B − VᵀV; every so many picks B is inverted
    afresh, which also ends the drift. B is 1/λ before the first time.
    """

    def __init__(self, gradients: Gradients, rows_g: np.ndarray):
        import torch

        self.gradients, self.rows_g = gradients, rows_g
        self.target_D = gradients.total().flatten()
        self.residual_D = self.target_D
        self.inverse_DD: torch.Tensor | None = None
        self.squared_DD: torch.Tensor | None = None
        self.factors_vD = self.target_D.new_empty(64, len(self.target_D))
        self.factors = 0
        self.picked: list[int] = []
        self.taken_g = torch.zeros(len(rows_g), dtype=torch.bool, device=self.target_D.device)
        self._find_best()

    def _find_best(self) -> None:
        gains_g = self.gradients.along(self.residual_D.view(self.gradients.errors_ne.shape[1], -1))
        gains_g.masked_fill_(self.taken_g, -math.inf)
        self.best = int(gains_g.argmax())
        self.gain = float(gains_g[self.best])

    def pick(self) -> int:
        """Takes the best row; its position among all rows."""
        row = self.best
        self.picked.append(row)
        self.taken_g[row] = True
        self._add(self.gradients.of([row])[0])
        self._find_best()
        return int(self.rows_g[row])

    def _add(self, gradient_D: torch.Tensor) -> None:
        import torch

        if self.factors == len(self.factors_vD):
            if 2 * self.factors >= len(self.target_D):  # by now they cost as much as the inverse
                self._invert()
                return
            self.factors_vD = torch.cat([self.factors_vD, torch.empty_like(self.factors_vD)])
        factors_vD = self.factors_vD[: self.factors]
        base_D = gradient_D / RIDGE if self.inverse_DD is None else self.inverse_DD @ gradient_D
        solved_D = base_D - factors_vD.T @ (factors_vD @ gradient_D)
        scale = 1 + gradient_D @ solved_D
        self.residual_D = self.residual_D - solved_D * ((gradient_D @ self.residual_D) / scale)
        self.factors_vD[self.factors] = solved_D / scale.sqrt()
        self.factors += 1

    def _invert(self) -> None:
        import torch

        newest_vD = self.gradients.of(self.picked[-self.factors - 1 :])
        added_DD = newest_vD.T @ newest_vD
        self.squared_DD = added_DD if self.squared_DD is None else self.squared_DD + added_DD
        ridge_DD = RIDGE * torch.eye(len(added_DD), dtype=torch.float64, device=added_DD.device)
        self.inverse_DD = torch.cholesky_inverse(torch.linalg.cholesky(self.squared_DD + ridge_DD))
        self.residual_D = RIDGE * (self.inverse_DD @ self.target_D)
        self.factors = 0


def nonnegative_ridge(gradients_mD: torch.Tensor, target_D: torch.Tensor, ridge: float) -> np.ndarray:
    """The w ≥ 0 of the smallest ‖Gᵀw − t‖² + λ‖w‖², (m,) float64.

    At the solution w = max(0, Gr) / λ, where the residual r = t − Gᵀw minimises ‖r − t‖² + ‖max(0, Gr)‖² / λ: without a
    constraint, piecewise quadratic, so Newton's method with a line search ends after a few steps, exactly. A general
    solver takes a step per weight.
    """
    import torch

    def objective(residual_D: torch.Tensor) -> float:
        return float(
            ((residual_D - target_D) ** 2).sum() + (gradients_mD @ residual_D).clamp_min(0).square().sum() / ridge
        )

    residual_D = _ridge_residual(gradients_mD, target_D, ridge)
    value = objective(residual_D)
    for _ in range(200):
        active_m = gradients_mD @ residual_D > 0
        step_D = _ridge_residual(gradients_mD[active_m], target_D, ridge) - residual_D
        length = 1.0
        while length > 1e-9 and objective(residual_D + length * step_D) >= value:
            length /= 2
        if length <= 1e-9:
            break
        residual_D = residual_D + length * step_D
        value = objective(residual_D)
        if length == 1.0 and torch.equal(gradients_mD @ residual_D > 0, active_m):
            break
    return ((gradients_mD @ residual_D).clamp_min(0) / ridge).cpu().numpy()


def _ridge_residual(gradients_fD: torch.Tensor, target_D: torch.Tensor, ridge: float) -> torch.Tensor:
    """t − Gᵀw of the ridge regression's w, by whichever matrix is smaller."""
    import torch

    wide = len(gradients_fD) < len(target_D)
    squared = gradients_fD @ gradients_fD.T if wide else gradients_fD.T @ gradients_fD
    factor = torch.linalg.cholesky(
        squared + ridge * torch.eye(len(squared), dtype=squared.dtype, device=squared.device)
    )
    if wide:
        weights_f1 = torch.cholesky_solve((gradients_fD @ target_D)[:, None], factor)
        return target_D - gradients_fD.T @ weights_f1[:, 0]
    return ridge * torch.cholesky_solve(target_D[:, None], factor)[:, 0]


# GLISTER


def glister(pool: Pool, keep: int, rng: np.random.Generator, how: How) -> Picked:
    """Rows whose gradients lower the loss of the whole pool most (Killamsetty et al., GLISTER, AAAI 2021).

    By Taylor's approximation a step against g_j lowers the mean loss L in proportion to ⟨g_j, ∇L⟩, so the largest are
    picked. After every n/100 picks (rounded up) the last layer takes a step of 0.1 from the teacher's against the mean
    of all picked gradients (the paper's sum would lengthen the step with every pick), which changes row i's logits by
    −0.1 · mean over picks j of (p_j − y_j) (h_j·h_i + 1), and with them ∇L. The pool itself stands for the validation
    set that the method wants. All weights are 1.
    """
    import torch

    order_n = rng.permutation(len(pool))
    shuffled = pool.of(order_n)
    assert shuffled.logits_nc is not None
    gradients = last_layer(shuffled, how.device)
    logits_nc = torch.from_numpy(shuffled.logits_nc.astype(np.float64)).to(how.device)
    labels_n = torch.from_numpy(shuffled.labels_n.astype(np.int64)).to(how.device)
    batch = math.ceil(len(pool) / UPDATES)
    mean_ei = gradients.total() / len(pool)
    picked_sum_ei = torch.zeros_like(mean_ei)
    free_n = torch.ones(len(pool), dtype=torch.bool, device=logits_nc.device)
    picked: list[int] = []
    while len(picked) < keep:
        gains_n = gradients.along(mean_ei).masked_fill_(~free_n, -math.inf)
        best_b = gains_n.sort(descending=True, stable=True).indices[: min(batch, len(pool) - len(picked))]
        free_n[best_b] = False
        picked += best_b.tolist()
        how.tick(min(len(picked), keep) - len(picked) + len(best_b))
        picked_sum_ei += gradients.errors_ne[best_b].T @ gradients.inputs_ni[best_b]
        moved_nc = logits_nc - STEP / len(picked) * (gradients.inputs_ni @ picked_sum_ei.T)
        mean_ei = errors(moved_nc, labels_n).T @ gradients.inputs_ni / len(pool)
    return Picked(order_n[np.array(picked[:keep], np.int64)], np.ones(keep))
