"""Distillation losses: pure functions on logits, in float32 or, where the student's are, float64.

Shapes: b batch, c classes, K classes kept of each row's targets.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.core.errors import UsageError
from toolkit.formats.encodings import TAIL_TEMPERATURES
from toolkit.training.loop import Loss
from toolkit.training.showing import Batch
from toolkit.training.targets import TopK


def soft_target_loss(
    student_bc: Tensor, teacher: Tensor | TopK, temperature: float, weights_b: Tensor | None = None
) -> Tensor:
    """τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)), mean over the batch (see `_mean`), in nats: a scalar.

    Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2; τ² keeps the gradient's size.

    `teacher` is the logits (b, c), or a TopK: then the KL is over K + 1 outcomes, the kept classes and "any other". By
    the data-processing inequality it is at most the KL over all classes. The two are equal where one class is left out,
    or teacher and student spread the rest alike. Raises UsageError for a TopK and a temperature below 1.
    """
    student_bc = student_bc.to(torch.promote_types(student_bc.dtype, torch.float32)) / temperature
    if isinstance(teacher, TopK):
        log_teacher = _teacher_outcomes(teacher, student_bc.shape[1], student_bc.dtype, temperature)
        log_student = _outcomes(student_bc, teacher.indices_bk)
    else:
        log_teacher = F.log_softmax(teacher.to(student_bc.dtype) / temperature, dim=1)
        log_student = F.log_softmax(student_bc, dim=1)
    return temperature**2 * _mean(_kl(log_teacher, log_student), weights_b)


def distillation_loss(alpha: float, temperature: float) -> Loss:
    """(1 − α)·CE(labels) + α·τ²·KL(teacher ‖ student): Ben-Baruch et al. (ICML 2025), equation 1.

    α = 0 never looks at the teacher's logits, α = 1 never at the labels. Where the batch has weights, both terms are
    means of w_i·l_i: over batches drawn evenly from a subset whose weights have mean 1, that estimates the subset's
    weighted mean Σ w_i l_i / Σ w_i without bias, as a division by the batch's own Σ w_i would not.
    """

    def loss(student_bc: Tensor, batch: Batch) -> Tensor:
        if alpha == 0:
            return weighted_cross_entropy(student_bc, batch.labels_b, batch.weights_b)
        assert batch.logits_bc is not None
        soft = soft_target_loss(student_bc, batch.logits_bc, temperature, batch.weights_b)
        if alpha == 1:
            return soft
        return (1 - alpha) * weighted_cross_entropy(student_bc, batch.labels_b, batch.weights_b) + alpha * soft

    return loss


def weighted_cross_entropy(student_bc: Tensor, labels_b: Tensor, weights_b: Tensor | None = None) -> Tensor:
    """Cross-entropy, mean over the batch (see `_mean`), in nats: a scalar."""
    if weights_b is None:
        return F.cross_entropy(student_bc, labels_b)
    return _mean(F.cross_entropy(student_bc, labels_b, reduction="none"), weights_b)


def tail_log_sum_exp(tail_b4: Tensor, left_out: int, temperature: float) -> Tensor:
    """log Σ exp(z/τ) over the `left_out` classes that are not kept, from its values at TAIL_TEMPERATURES: (b,).

    Exact at those temperatures and where one class is left out, else interpolated (see `tail_weights`). Raises
    UsageError for a temperature below 1.
    """
    at_infinity, *weights = tail_weights(temperature)
    tail_b = weights[0] * tail_b4[:, 0]  # a sum of columns: a tensor of weights would have to be sent to the device
    for column, weight in enumerate(weights[1:], start=1):
        tail_b = tail_b + weight * tail_b4[:, column]
    return tail_b + at_infinity * math.log(left_out)


@cache
def tail_weights(temperature: float) -> tuple[float, ...]:
    """L(β) = log Σ exp(βz), β = 1/τ, as a fixed combination of L(0), the log of a count, and L at TAIL_TEMPERATURES.

    The line from L(0) to L(1), and the polynomial of degree 4 in log(1 + 4β) through what L is off that line. L is
    straight for large β and bends near 0: in β itself the polynomial would swing between τ = 1 and 2, and enlarge the
    rounding of the stored values 15 times; so it is 3.6 at most. A line is reproduced. Raises UsageError below τ = 1.
    """
    if temperature < 1:
        raise UsageError(
            f"--temperature {temperature:g}: top-k targets serve temperatures from 1. "
            "Run: kdtool cache-teacher --encoding float16 --force, with the subset's --subset"
        )
    nodes, beta = [0.0, *(1 / tau for tau in TAIL_TEMPERATURES)], 1 / temperature
    bend = _lagrange([math.log1p(4 * node) for node in nodes], math.log1p(4 * beta))
    zero, one = nodes.index(0), nodes.index(1)
    weights = list(bend)
    weights[zero] += (1 - beta) - sum(w * (1 - node) for w, node in zip(bend, nodes, strict=True))
    weights[one] += beta - sum(w * node for w, node in zip(bend, nodes, strict=True))
    return tuple(weights)


def _lagrange(nodes: list[float], x: float) -> list[float]:
    """The weights of the values at `nodes` in the polynomial through them, at x."""
    return [math.prod((x - other) / (node - other) for other in nodes if other != node) for node in nodes]


def _teacher_outcomes(teacher: TopK, classes: int, dtype: torch.dtype, temperature: float) -> Tensor:
    """Log-probabilities at τ of the classes kept and of any other: (b, K + 1)."""
    left_out = classes - teacher.values_bk.shape[1]
    tail_b = tail_log_sum_exp(teacher.tail_b4.to(dtype), left_out, temperature)
    return F.log_softmax(torch.cat([teacher.values_bk.to(dtype) / temperature, tail_b[:, None]], dim=1), dim=1)


def _outcomes(scaled_bc: Tensor, indices_bk: Tensor) -> Tensor:
    """Log-probabilities of the classes at `indices_bk` and of any other, of logits divided by τ: (b, K + 1).

    The others are summed themselves: 1 − Σp of the kept ones would be 0, and its log lost, long before they are.
    """
    others_b1 = scaled_bc.scatter(1, indices_bk, -math.inf).logsumexp(dim=1, keepdim=True)
    return F.log_softmax(torch.cat([scaled_bc.gather(1, indices_bk), others_b1], dim=1), dim=1)


def _kl(log_p_bo: Tensor, log_q_bo: Tensor) -> Tensor:
    """Σ p (log p − log q) over o outcomes, of each row: (b,).

    Σ(q − p) is zero and so is its gradient. Added outcome by outcome it leaves no negative term, and at high
    temperatures, where p is nearly q, no difference of large terms that would be lost in float32.
    """
    p_bo, gap_bo = log_p_bo.exp(), log_p_bo - log_q_bo
    with torch.no_grad():
        q_less_p_bo = torch.where(gap_bo > -1, p_bo * torch.expm1(-gap_bo), log_q_bo.exp() - p_bo)
    return (p_bo * gap_bo + q_less_p_bo).sum(dim=1)


def _mean(losses_b: Tensor, weights_b: Tensor | None) -> Tensor:
    """The mean of w_i·l_i over the batch, divided by how many there are; of l_i where all count alike."""
    return losses_b.mean() if weights_b is None else (losses_b * weights_b).mean()
