"""The model: y = Xᵀθ* + η, a teacher fitted to a part t of the samples, a student to a part f of them, within t.

It is the setting in which Ben-Baruch et al. (ICML 2025) motivate self-distillation on pruned data; α, f, f_t, λ, γ are
theirs. The parts are the first f·N and f_t·N columns of X: its columns are independent, so this is pruning at random.
Everything is float64. The error is ‖θ̂ − θ*‖², which with such an X is also the excess risk on new data.

Shapes: d features, N samples, r draws of X, T draws of the noise, a values of α. A curve is c_23: bias² and variance
(2) as polynomials in α, constant first (3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Setting:
    """One problem; ‖θ*‖ = 1. A ridge regression of all d features is at its best with λ = dγ², whatever N is.

    Off the paper's path, ours: the teacher's own λ (`lam_t`), and noise of this standard deviation that its labels
    have and the student's don't (`noise_t`); how many of the d features each of them sees (`sees`, `sees_t`); and
    whether the teacher learned from samples that the student has no part of (`apart`).
    Raises ValueError for fractions that are not 0 < f ≤ f_t ≤ 1 or keep no sample, λ ≤ 0, or noise < 0.
    """

    f: float = 0.1
    f_t: float = 1.0
    lam: float = 10.0
    gamma: float = 1.0
    d: int = 100
    N: int = 1000
    lam_t: float | None = None
    noise_t: float = 0.0
    sees: int | None = None
    sees_t: int | None = None
    apart: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.f <= self.f_t <= 1 or self.kept < 1:
            raise ValueError(f"fractions must be 0 < f ≤ f_t ≤ 1 and keep a sample, got f {self.f}, f_t {self.f_t}")
        if min(self.lam, self.teachers_lam) <= 0 or min(self.gamma, self.noise_t) < 0:
            raise ValueError(f"λ must be > 0 and noise ≥ 0, got {self}")

    @property
    def kept(self) -> int:
        return round(self.f * self.N)

    @property
    def taught(self) -> slice:
        """The teacher's columns of X."""
        start = self.N if self.apart else 0
        return slice(start, start + round(self.f_t * self.N))

    @property
    def teachers_lam(self) -> float:
        return self.lam if self.lam_t is None else self.lam_t


def draw(s: Setting, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """X_dN of independent standard normals (2N columns where the teacher learns apart), and θ* of norm 1, (d,)."""
    theta_d = rng.standard_normal(s.d)
    return rng.standard_normal((s.N * (1 + s.apart), s.d)).T, theta_d / np.linalg.norm(theta_d)


def closed_form(X_dN: np.ndarray, theta_d: np.ndarray, s: Setting) -> np.ndarray:
    """c_23 of the student of a given X, in expectation over the noise. Setting's `sees`, `sees_t`, `apart` don't apply.

    With Σ_s = X_sX_sᵀ, G_s = (Σ_s + λI)⁻¹, A_f = G_fΣ_f the student is θ̂ = G_fX_f[(1−α)y_f + αX_fᵀθ̂_t], and
    bias = −(λG_f + αλ_tA_fG_t)θ*,
    variance = γ² tr[(1−α)²A_fG_f + 2α(1−α)A_fG_tA_f + α²A_fG_tΣ_tG_tA_f], noise_t² more on its last term.
    """
    X_f, X_t = X_dN[:, : s.kept], X_dN[:, s.taught]
    S_f, S_t = X_f @ X_f.T, X_t @ X_t.T
    G_f, G_t = np.linalg.inv(S_f + s.lam * np.eye(s.d)), np.linalg.inv(S_t + s.teachers_lam * np.eye(s.d))
    A_f = G_f @ S_f
    AG = A_f @ G_t
    b0, b1 = -s.lam * G_f @ theta_d, -s.teachers_lam * AG @ theta_d
    v00 = s.gamma**2 * np.vdot(A_f, G_f)  # tr(AB) = vdot(A, Bᵀ); A_f and G_f commute and are symmetric
    v01 = s.gamma**2 * np.vdot(AG, A_f)
    v11 = (s.gamma**2 + s.noise_t**2) * np.vdot(AG, AG @ S_t)
    return np.array([[b0 @ b0, 2 * b0 @ b1, b1 @ b1], [v00, 2 * (v01 - v00), v00 - 2 * v01 + v11]])


def ridge_weights(X_dN: np.ndarray, lam: float, sees: int | None, part: slice) -> np.ndarray:
    """W_dN of θ̂ = Wy, ridge regression of a part of the samples on the first `sees` features; 0 for all others."""
    W_dN = np.zeros_like(X_dN)
    seen = X_dN[:sees, part]
    W_dN[:sees, part] = np.linalg.solve(seen @ seen.T + lam * np.eye(len(seen)), seen)
    return W_dN


def linear_form(X_dN: np.ndarray, theta_d: np.ndarray, s: Setting) -> np.ndarray:
    """c_23 of any Setting. Teacher and student are linear in y: θ̂ = [(1−α)W_f + αW_fXᵀW_t]y = W(α)y, so that
    bias = W(α)Xᵀθ* − θ* and variance = γ²‖W(α)‖²."""
    W_0 = ridge_weights(X_dN, s.lam, s.sees, slice(s.kept))
    W_1 = W_0 @ X_dN.T @ ridge_weights(X_dN, s.teachers_lam, s.sees_t, s.taught)
    b0, b1 = W_0 @ X_dN.T @ theta_d - theta_d, (W_1 - W_0) @ X_dN.T @ theta_d
    D = W_1 - W_0
    variance_3 = s.gamma**2 * np.array([np.vdot(W_0, W_0), 2 * np.vdot(W_0, D), np.vdot(D, D)])
    variance_3[2] += s.noise_t**2 * np.vdot(W_1, W_1)
    return np.stack([np.array([b0 @ b0, 2 * b0 @ b1, b1 @ b1]), variance_3])


def curves(s: Setting, draws: int, seed: int = 0) -> np.ndarray:
    """c_r23 of `draws` X and θ*, the same ones for every f, f_t, λ and γ: differences between settings are paired."""
    rng = np.random.default_rng(seed)
    form = linear_form if s.apart or s.sees or s.sees_t else closed_form
    return np.stack([form(*draw(s, rng), s) for _ in range(draws)])


def at(c_23: np.ndarray, alpha: float) -> np.ndarray:
    """(bias², variance) at one α: (2,), or (r, 2) of curves of r draws."""
    return c_23 @ np.array([1.0, alpha, alpha**2])


def error(c_23: np.ndarray, alpha: float) -> np.ndarray:
    """E‖θ̂ − θ*‖² = bias² + variance: a scalar, or (r,)."""
    return at(c_23, alpha).sum(axis=-1)


def best_alpha(c_23: np.ndarray) -> float:
    """α*, which minimises the error, a parabola; it may lie outside of [0, 1]. Of r draws: of their mean error."""
    _, linear, square = c_23.reshape(-1, 2, 3).mean(axis=0).sum(axis=0)
    return float(-linear / (2 * square))


def fit(X_dN: np.ndarray, y_NT: np.ndarray, lam: float) -> np.ndarray:
    """θ̂_dT, the ridge regression of each column of y."""
    return np.linalg.solve(X_dN @ X_dN.T + lam * np.eye(len(X_dN)), X_dN @ y_NT)


def simulate(X_dN: np.ndarray, theta_d: np.ndarray, s: Setting, alphas_a: list[float], trials: int,
             rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """errors_aT: teachers and students of the paper's model, fitted to labels with drawn noise. It uses no formula."""
    y_NT = (X_dN.T @ theta_d)[:, None] + s.gamma * rng.standard_normal((X_dN.shape[1], trials))
    noisier_NT = y_NT + s.noise_t * rng.standard_normal(y_NT.shape)
    X_f = X_dN[:, : s.kept]
    soft_fT = X_f.T @ fit(X_dN[:, s.taught], noisier_NT[s.taught], s.teachers_lam)
    targets = [(1 - alpha) * y_NT[: s.kept] + alpha * soft_fT for alpha in alphas_a]
    return np.stack([((fit(X_f, y, s.lam) - theta_d[:, None]) ** 2).sum(axis=0) for y in targets])
