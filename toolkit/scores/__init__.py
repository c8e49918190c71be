"""Difficulty scores: pure functions of what one pass of the teacher left on disk. High always means hard.

`SCORES` is the list; each entry carries its definition, paper and equation, which are written beside the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from toolkit.scores import from_pass
from toolkit.scores.from_pass import PassArrays


class Score(NamedTuple):
    compute: Callable[[PassArrays], np.ndarray]
    definition: str
    paper: str
    needs_views: int = 1


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
    views = arrays.logits_vnc.shape[0]
    return {
        name: SCORES[name].compute(arrays).astype(np.float32) for name in names if views >= SCORES[name].needs_views
    }
