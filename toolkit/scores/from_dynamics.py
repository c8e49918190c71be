"""Scores from how a training went, as dynamics.h5 tells it. High always means hard, or apt to change.

Shapes: s seeds, e epochs, n rows, c classes, d features. What is said to be (s, e, n) may be any iterable of the
seeds' (e, n) arrays, so that one seed at a time is in memory. All give (n,) float64, the mean over the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from toolkit.scores.from_pass import PassArrays
from toolkit.scores.from_pass import grand as grand_of

WINDOW = 10
DECAY = 0.9


def _mean(per_seed: Iterable[np.ndarray]) -> np.ndarray:
    total_n, seeds = np.zeros(()), 0
    for seeds, values_n in enumerate(per_seed, start=1):  # noqa: B007 - how many there were
        total_n = total_n + values_n
    if seeds == 0:
        raise ValueError("a mean over seeds needs at least one")
    return total_n / seeds


def _each(series_sen: Iterable[np.ndarray], least: int, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    def checked(series_en: np.ndarray) -> np.ndarray:
        if len(series_en) < least:
            raise ValueError(f"needs at least {least} epochs, got {len(series_en)}")
        return score(series_en)

    return _mean(checked(series_en) for series_en in series_sen)


def forgetting(correct_sen: Iterable[np.ndarray]) -> np.ndarray:
    """Σ_t [right in epoch t and wrong in epoch t + 1]; a row never right scores e (Toneva et al. 2019).

    The paper counts a row that was never learned as forgotten infinitely often. e stands for that: there are at most
    e / 2 events, so it is above any count, and a mean over seeds stays a number. `correct_sen` (s, e, n), true or not.
    """

    def events(correct_en: np.ndarray) -> np.ndarray:
        correct_en = np.asarray(correct_en, dtype=bool)
        count_n = (correct_en[:-1] & ~correct_en[1:]).sum(axis=0)
        return np.where(correct_en.any(axis=0), count_n, len(correct_en)).astype(np.float64)

    return _each(correct_sen, 2, events)


def el2n(el2n_sn: Iterable[np.ndarray]) -> np.ndarray:
    """E‖p − y‖₂ in one epoch, the mean over seeds (Paul et al. 2021, definition 2.2): `el2n_sn` (s, n), recorded."""
    return _mean(np.asarray(el2n_n, dtype=np.float64) for el2n_n in el2n_sn)


def grand(logits_snc: Iterable[np.ndarray], features_snd: Iterable[np.ndarray], labels_n: np.ndarray) -> np.ndarray:
    """E(‖p − y‖₂ √(‖h‖₂² + 1)), the mean over seeds (Paul et al. 2021, definition 2.1).

    It is exact for the last linear layer. `logits_snc` (s, n, c) and `features_snd` (s, n, d), of any float type,
    are one snapshot's.
    """
    return _mean(
        grand_of(PassArrays(logits_nc[None], features_nd, labels_n))
        for logits_nc, features_nd in zip(logits_snc, features_snd, strict=True)
    )


def aum(true_sen: Iterable[np.ndarray], other_sen: Iterable[np.ndarray]) -> np.ndarray:
    """−mean_t(z_y − max_{c≠y} z_c) over the epochs, z the logits (Pleiss et al. 2020, equations 1 and 2, negated).

    `true_sen` (s, e, n) is the label's logit, `other_sen` likewise the largest of the others.
    """

    def area(true_en: np.ndarray, other_en: np.ndarray) -> np.ndarray:
        return np.mean(np.asarray(other_en, np.float64) - np.asarray(true_en, np.float64), axis=0)

    return _mean(area(true_en, other_en) for true_en, other_en in zip(true_sen, other_sen, strict=True))


def dyn_unc(loss_sen: Iterable[np.ndarray], window: int = WINDOW) -> np.ndarray:
    """mean_k √(Σ_{j<J} (p_{k+j} − p̄_k)² / (J − 1)), p = exp(−loss) the label's probability (He et al. 2023).

    The standard deviation in every window of J consecutive epochs, p̄_k the window's mean, averaged over the windows;
    J is `window`, or all epochs where there are fewer. The authors' code leaves the last window out; it is in here, for
    a training of J epochs has no other. Theirs is ten times as large. `loss_sen` (s, e, n).
    """

    def spread(loss_en: np.ndarray) -> np.ndarray:
        p_en = np.exp(-np.asarray(loss_en, dtype=np.float64))
        length = min(window, len(p_en))
        return _mean(p_en[k : k + length].std(axis=0, ddof=1) for k in range(len(p_en) - length + 1))

    return _each(loss_sen, 2, spread)


def tdds(kl_sen: Iterable[np.ndarray], window: int = WINDOW, decay: float = DECAY) -> np.ndarray:
    """Σ_k β(1 − β)^(K−k) ‖Δ_k − mean Δ_k‖₂ over windows of J epochs, k = 1 … K (Zhang et al. 2024).

    Δ_k holds |KL(p_t ‖ p_{t−1})| of the J − 1 pairs of consecutive epochs in window k, β is `decay`; J is `window`, or
    all epochs where there are fewer. `kl_sen` (s, e, n) is the recorded KL, whose first epoch compares with nothing and
    never enters. With β = 0.9 little but the last J epochs counts, and those of a converged training tell little: the
    authors stop at an early T (--trajectory_len of their code, such as 30 of 200 epochs). Give the first T epochs for
    that; kdtool score calls it tdds@T. The authors' code sums |p_c log(p_c / q_c)| over the classes, where the paper,
    and this, has the absolute value of the sum.
    """

    def scored(kl_en: np.ndarray) -> np.ndarray:
        change_en = np.abs(np.asarray(kl_en[1:], dtype=np.float64))
        pairs = min(window - 1, len(change_en))
        windows = len(change_en) - pairs + 1
        total_n = np.zeros(change_en.shape[1])
        for k in range(windows):
            delta_jn = change_en[k : k + pairs]
            total_n += (
                decay * (1 - decay) ** (windows - 1 - k) * np.linalg.norm(delta_jn - delta_jn.mean(axis=0), axis=0)
            )
        return total_n

    return _each(kl_sen, 3, scored)
