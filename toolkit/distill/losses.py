"""The losses by name, and a student's whole loss. Each is a pure function on logits, in a file of its own story.

Shapes: b batch, c classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from toolkit.core import defaults
from toolkit.core.errors import UsageError
from toolkit.distill.decoupled import dkd_loss
from toolkit.distill.plain import mse_loss, pseudo_label_loss
from toolkit.distill.relational import dist_loss
from toolkit.distill.soft_targets import soft_target_loss, standardised_loss
from toolkit.distill.terms import weighted_cross_entropy
from toolkit.training.loop import Loss
from toolkit.training.showing import Batch


@dataclass(frozen=True)
class DistillLoss:
    """A loss of student and teacher, and what else it takes: the labels, a temperature, a `beta` (its default), rows'
    weights (then it is a mean over rows). `top_k`: exact where targets keep the largest logits alone. `rows_apart`:
    each row is looked at alone, none beside the others of its batch."""

    function: Callable[..., Tensor]
    paper: str
    top_k: bool = False
    labels: bool = False
    temperature: bool = True
    beta: float | None = None
    weights: bool = True
    rows_apart: bool = True


LOSSES = {
    "kd": DistillLoss(soft_target_loss, "Hinton et al. 2015", top_k=True),
    "dkd": DistillLoss(dkd_loss, "Zhao et al., CVPR 2022", labels=True, beta=8.0),
    "dist": DistillLoss(dist_loss, "Huang et al., NeurIPS 2022", beta=1.0, weights=False, rows_apart=False),
    "kd-std": DistillLoss(standardised_loss, "Sun et al., CVPR 2024"),
    "mse": DistillLoss(mse_loss, "Kim et al., IJCAI 2021", temperature=False),
    "hard": DistillLoss(pseudo_label_loss, "Lee, ICML 2013 workshop", top_k=True, temperature=False),
}


def no_mean_over_rows(loss: str) -> UsageError:
    """The error of weights for a loss that is a function of the whole batch."""
    return UsageError(
        f"--weights: --loss {loss} compares the rows of a batch with each other, and is no mean over rows to be "
        "weighted. Leave one of them out"
    )


def distillation_loss(
    alpha: float,
    temperature: float | None,
    loss: str = defaults.LOSS,
    beta: float | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    """(1 − α)·CE(labels) + α·L(student, teacher), L one of LOSSES: Ben-Baruch et al. (ICML 2025), equation 1, for KD.

    α = 0 never looks at the teacher's logits, α = 1 never at the labels but through L. `label_smoothing` is of CE's
    labels alone: see `weighted_cross_entropy`. `temperature` and `beta` are for losses that have them; without `beta`
    it is the loss's own. Where the batch has weights, both terms are means of w_i·l_i: over batches drawn evenly from a
    subset whose weights have mean 1, that estimates the subset's weighted mean Σ w_i l_i / Σ w_i without bias, as a
    division by the batch's own Σ w_i would not. The loss raises UsageError for a TopK, or for weights, that L is not
    exact on.
    """
    kind = LOSSES[loss]
    fixed = {"temperature": temperature} if kind.temperature else {}
    if kind.beta is not None:
        fixed["beta"] = kind.beta if beta is None else beta

    def labelled(student_bc: Tensor, batch: Batch) -> Tensor:
        return weighted_cross_entropy(student_bc, batch.labels_b, batch.weights_b, label_smoothing)

    def whole(student_bc: Tensor, batch: Batch) -> Tensor:
        if alpha == 0:
            return labelled(student_bc, batch)
        given: dict[str, Tensor | None] = {"labels_b": batch.labels_b} if kind.labels else {}
        if kind.weights:
            given["weights_b"] = batch.weights_b
        elif batch.weights_b is not None:
            raise no_mean_over_rows(loss)
        taught = kind.function(student_bc, batch.logits_bc, **given, **fixed)
        if alpha == 1:
            return taught
        return (1 - alpha) * labelled(student_bc, batch) + alpha * taught

    return whole
