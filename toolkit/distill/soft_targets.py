"""Learning a teacher's softened probabilities: as they are, or of logits that are standardised first.

Shapes: b batch, c classes.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from toolkit.distill.terms import computing, directions, every_logit, kl, mean, outcomes
from toolkit.distill.top_k import teacher_outcomes
from toolkit.training.targets import TopK


def soft_target_loss(
    student_bc: Tensor, teacher: Tensor | TopK, temperature: float, weights_b: Tensor | None = None
) -> Tensor:
    """τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)), mean over the batch, in nats: a scalar.

    Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2; τ² keeps the gradient's size.
    Computed in float32, or in float64 where the student's logits are. With `weights_b` the mean of w_i·l_i.

    `teacher` is the logits (b, c), or a TopK: then the KL is over K + 1 outcomes, the kept classes and "any other". By
    the data-processing inequality it is at most the KL over all classes. The two are equal where one class is left out,
    or teacher and student spread the rest alike. Raises UsageError for a TopK and a temperature below 1.
    """
    student_bc = computing(student_bc) / temperature
    if isinstance(teacher, TopK):
        log_teacher = teacher_outcomes(teacher, student_bc.shape[1], student_bc.dtype, temperature)
        log_student = outcomes(student_bc, teacher.indices_bk)
    else:
        log_teacher = F.log_softmax(teacher.to(student_bc.dtype) / temperature, dim=1)
        log_student = F.log_softmax(student_bc, dim=1)
    return temperature**2 * mean(kl(log_teacher, log_student), weights_b)


def standardised_loss(
    student_bc: Tensor, teacher: Tensor | TopK, temperature: float, weights_b: Tensor | None = None
) -> Tensor:
    """`soft_target_loss` of each row's z-scores, the teacher's and the student's: a scalar, in nats.

    Sun et al., Logit Standardization in Knowledge Distillation (CVPR 2024), algorithm 1. A row's standard deviation is
    the unbiased one, with c − 1 below the fraction, as in the authors' code (which adds 1e-7 to it). A row of equal
    logits has no z-score: it counts as zeros, and gives no gradient. Raises UsageError for a TopK.
    """
    student_bc = computing(student_bc)
    teacher_bc = every_logit(teacher, "kd-std").to(student_bc.dtype)
    scale = math.sqrt(student_bc.shape[1] - 1)
    return soft_target_loss(
        scale * directions(student_bc, 1), scale * directions(teacher_bc, 1), temperature, weights_b
    )
