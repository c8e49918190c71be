"""Difficulty scores: pure functions of what one pass of the teacher, or its training, left on disk. High always means
hard.

`SCORES` are of the pass, `DYNAMICS` of the training, `FEATURES` of the features' geometry. Each entry carries its
definition, paper and equation, which are written beside the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from toolkit.scores import from_dynamics, from_features, from_pass
from toolkit.scores.from_pass import PassArrays


class Score(NamedTuple):
    compute: Callable[[PassArrays], np.ndarray]
    definition: str
    paper: str
    needs_views: int = 1
    needs_features: bool = False


SCORES = {
    "loss": Score(from_pass.loss, "−log p_y", "cross-entropy of the teacher on the label"),
    "el2n": Score(
        from_pass.el2n,
        "‖p − y‖₂",
        "Paul et al., Deep Learning on a Data Diet (NeurIPS 2021), definition 2.2, of the teacher itself",
    ),
    "entropy": Score(from_pass.entropy, "−Σ p_c log p_c", "Shannon 1948; selection: Coleman et al. (ICLR 2020)"),
    "margin": Score(
        from_pass.margin,
        "1 − (p_first − p_second)",
        "Scheffer et al., Active Hidden Markov Models (2001); turned so that high is hard",
    ),
    "least_confidence": Score(from_pass.least_confidence, "1 − max_c p_c", "Lewis and Gale (SIGIR 1994)"),
    "grand": Score(
        from_pass.grand,
        "‖p − y‖₂ · √(‖h‖₂² + 1)",
        "Paul et al., Deep Learning on a Data Diet (NeurIPS 2021), definition 2.1, exact for the last linear layer's "
        "weights and bias",
        needs_features=True,
    ),
    "disagreement": Score(
        from_pass.disagreement,
        "H(mean_k p_k) − mean_k H(p_k) over the cached views k",
        "generalised Jensen–Shannon divergence: Lin, IEEE Trans. Inf. Theory 37 (1991), equation 5.1",
        needs_views=2,
    ),
}


def compute_scores(arrays: PassArrays, names: Iterable[str] = SCORES) -> dict[str, np.ndarray]:
    """Every score of `names` that the arrays allow: name to (n,) float32."""
    possible = possible_scores(arrays.logits_vnc.shape[0], arrays.features_nd is not None)
    return {name: SCORES[name].compute(arrays).astype(np.float32) for name in names if name in possible}


def possible_scores(views: int, features: bool) -> list[str]:
    """The scores of the pass that so many views allow, with or without features."""
    return [
        name for name, score in SCORES.items() if views >= score.needs_views and (features or not score.needs_features)
    ]


class DynamicsScore(NamedTuple):
    """`needs` names what was recorded, in the order of the function's arguments. `of` is what the function looks at:
    the `training` (every epoch; `name@T` the first T), one `epoch` (`name@E`), or one `snapshot` (`name@E`, together
    with the labels). `least` is the fewest epochs that it means anything for."""

    compute: Callable[..., np.ndarray]
    needs: tuple[str, ...]
    of: str
    definition: str
    paper: str
    least: int = 1
    parameters: dict[str, float] = {}  # noqa: RUF012 - read only


DYNAMICS = {
    "forgetting": DynamicsScore(
        from_dynamics.forgetting,
        ("correct",),
        "training",
        "transitions from right to wrong from epoch to epoch; never right: the number of epochs; mean over seeds",
        "Toneva et al., An Empirical Study of Example Forgetting (ICLR 2019)",
        least=2,
    ),
    "el2n": DynamicsScore(
        from_dynamics.el2n,
        ("el2n",),
        "epoch",
        "‖p − y‖₂ in the training forward of one epoch, mean over seeds",
        "Paul et al., Deep Learning on a Data Diet (NeurIPS 2021), definition 2.2",
    ),
    "grand": DynamicsScore(
        from_dynamics.grand,
        ("logits", "features"),
        "snapshot",
        "‖p − y‖₂ · √(‖h‖₂² + 1) by the weights after one epoch, mean over seeds",
        "Paul et al., Deep Learning on a Data Diet (NeurIPS 2021), definition 2.1, exact for the last linear layer's "
        "weights and bias",
    ),
    "aum": DynamicsScore(
        from_dynamics.aum,
        ("logit_true", "logit_other"),
        "training",
        "−mean_t(z_y − max_{c≠y} z_c) over the epochs, mean over seeds",
        "Pleiss et al., Identifying Mislabeled Data using the Area Under the Margin Ranking (NeurIPS 2020); turned so "
        "that high is hard",
    ),
    "dyn_unc": DynamicsScore(
        from_dynamics.dyn_unc,
        ("loss",),
        "training",
        "mean over windows of J epochs of the standard deviation (J − 1 below) of p_y; mean over seeds",
        "He et al., Large-scale Dataset Pruning with Dynamic Uncertainty (2023), arXiv 2306.05175",
        least=2,
        parameters={"window": from_dynamics.WINDOW},
    ),
    "tdds": DynamicsScore(
        from_dynamics.tdds,
        ("kl",),
        "training",
        "Σ_k β(1 − β)^(K−k) ‖Δ_k − mean Δ_k‖₂, Δ_k the |KL(p_t ‖ p_{t−1})| in window k of J epochs; mean over seeds; "
        "all epochs; name@T the first T",
        "Zhang et al., Spanning Training Progress: Temporal Dual-Depth Scoring (CVPR 2024)",
        least=3,
        parameters={"window": from_dynamics.WINDOW, "decay": from_dynamics.DECAY},
    ),
}

AT_INITIALISATION = (
    "GraNd at initialisation does not reproduce: it does not rank samples by difficulty (Kirsch, arXiv 2303.14753)"
)


class FeatureScore(NamedTuple):
    definition: str
    paper: str


FEATURES = {
    "prototype": FeatureScore(
        "min_k (1 − cos(h, μ_k)), μ_k the centroids of spherical k-means with as many clusters as classes, without "
        "labels",
        "Sorscher et al., Beyond neural scaling laws (NeurIPS 2022), self-supervised prototypes; here of the teacher's "
        "features",
    ),
    "centroid": FeatureScore(
        "‖h − μ_y‖₂, μ_y the mean of the row's class",
        "Xia et al., Moderate Coreset (ICLR 2023): distance to the centre",
    ),
    "knn_distance": FeatureScore(
        "mean distance ‖h − h_j‖₂ to the k nearest rows of the same class; high is sparse",
        "Angiulli and Pizzuti, Fast Outlier Detection in High Dimensional Spaces (PKDD 2002)",
    ),
}


def feature_score(
    name: str,
    features_nd: np.ndarray,
    labels_n: np.ndarray,
    clusters: int,
    rng: np.random.Generator,
    device: str = "cpu",
    tick: from_features.Tick = lambda rows: None,
) -> np.ndarray:
    """The score `name` of FEATURES: (n,) float64. `clusters` and `rng` are prototype's, `device` is knn_distance's."""
    if name == "prototype":
        return from_features.prototype(features_nd, clusters, rng, tick)
    if name == "centroid":
        return from_features.centroid(features_nd, labels_n, tick)
    return from_features.knn_distance(features_nd, labels_n, device=device, tick=tick)
