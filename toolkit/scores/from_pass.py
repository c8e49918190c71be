"""Scores from one pass of the teacher.

Shapes: v cached views (the first is the image itself), n rows, c classes, d features. p is the softmax of the first
view's logits at temperature 1, y the one-hot label, h the features the last linear layer read. All give (n,) float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class PassArrays(NamedTuple):
    """`logits_vnc` (v, n, c) and `features_nd` (n, d) of any float type, `labels_n` (n,) integers. Features are None
    where only logits are known."""

    logits_vnc: np.ndarray
    features_nd: np.ndarray | None
    labels_n: np.ndarray


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64. log p of the largest is −log1p of the others' odds: exact however near to 0."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    odds = np.exp(shifted)
    np.put_along_axis(odds, logits.argmax(axis=-1)[..., None], 0, axis=-1)
    return shifted - np.log1p(odds.sum(axis=-1, keepdims=True))


def _negative(values: np.ndarray) -> np.ndarray:
    """−values, but 0 of 0."""
    return 0 - values


def _entropy(log_p: np.ndarray) -> np.ndarray:
    return _negative((np.exp(log_p) * log_p).sum(axis=-1))


def _log_of_sums(p_nc: np.ndarray) -> np.ndarray:
    """log p, that of the largest by what the others leave it, as in `log_softmax`."""
    log_p_nc = np.log(np.maximum(p_nc, np.finfo(np.float64).tiny))
    largest_n1 = p_nc.argmax(axis=1)[:, None]
    others_nc = p_nc.copy()
    np.put_along_axis(others_nc, largest_n1, 0, axis=1)
    np.put_along_axis(log_p_nc, largest_n1, np.log1p(-others_nc.sum(axis=1, keepdims=True)), axis=1)
    return log_p_nc


def _error(arrays: PassArrays) -> np.ndarray:
    """p − y: (n, c)."""
    log_p_nc = log_softmax(arrays.logits_vnc[0])
    rows_n = np.arange(len(log_p_nc))
    error_nc = np.exp(log_p_nc)
    error_nc[rows_n, arrays.labels_n] = np.expm1(log_p_nc[rows_n, arrays.labels_n])
    return error_nc


def loss(arrays: PassArrays) -> np.ndarray:
    """−log p_y."""
    log_p_nc = log_softmax(arrays.logits_vnc[0])
    return _negative(log_p_nc[np.arange(len(log_p_nc)), arrays.labels_n])


def el2n(arrays: PassArrays) -> np.ndarray:
    """‖p − y‖₂ (Paul et al. 2021, definition 2.2)."""
    return np.linalg.norm(_error(arrays), axis=1)


def entropy(arrays: PassArrays) -> np.ndarray:
    """−Σ p_c log p_c, in nats."""
    return _entropy(log_softmax(arrays.logits_vnc[0]))


def margin(arrays: PassArrays) -> np.ndarray:
    """1 − (largest p − second largest p), so that high is hard."""
    log_p_nc = np.partition(log_softmax(arrays.logits_vnc[0]), -2, axis=1)
    return _negative(np.expm1(log_p_nc[:, -1])) + np.exp(log_p_nc[:, -2])


def least_confidence(arrays: PassArrays) -> np.ndarray:
    """1 − largest p."""
    return _negative(np.expm1(log_softmax(arrays.logits_vnc[0]).max(axis=1)))


def grand(arrays: PassArrays) -> np.ndarray:
    """The norm of the loss's gradient in the last linear layer (Paul et al. 2021, definition 2.1, for that layer).

    For logits W h + b the gradient is (p − y) hᵀ for W and p − y for b, so the norm is ‖p − y‖ √(‖h‖² + 1), exactly.
    """
    if arrays.features_nd is None:
        raise ValueError("grand is of the features, and there are none")
    squared_n = (arrays.features_nd.astype(np.float64) ** 2).sum(axis=1)
    return el2n(arrays) * np.sqrt(squared_n + 1)


def disagreement(arrays: PassArrays) -> np.ndarray:
    """Entropy of the views' mean prediction less the mean of their entropies (Lin 1991, equation 5.1), in nats."""
    log_p_vnc = log_softmax(arrays.logits_vnc)
    mean_nc = np.exp(log_p_vnc).mean(axis=0)
    entropy_of_mean_n = _negative((mean_nc * _log_of_sums(mean_nc)).sum(axis=1))
    return np.maximum(entropy_of_mean_n - _entropy(log_p_vnc).mean(axis=0), 0)
