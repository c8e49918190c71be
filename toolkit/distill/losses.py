"""Distillation losses: pure functions on logits. Shapes: b batch, c classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from toolkit.training.loop import Loss
from toolkit.training.showing import Batch


def soft_target_loss(student_bc: Tensor, teacher_bc: Tensor, temperature: float) -> Tensor:
    """τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)), mean over the batch, in nats: a scalar.

    Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2; τ² keeps the gradient's size.
    """
    log_student_bc = F.log_softmax(student_bc / temperature, dim=1)
    log_teacher_bc = F.log_softmax(teacher_bc / temperature, dim=1)
    kl = F.kl_div(log_student_bc, log_teacher_bc, reduction="batchmean", log_target=True)
    return temperature**2 * kl


def distillation_loss(alpha: float, temperature: float) -> Loss:
    """(1 − α)·CE(labels) + α·τ²·KL(teacher ‖ student): Ben-Baruch et al. (ICML 2025), equation 1.

    α = 0 never looks at the teacher's logits, α = 1 never at the labels.
    """

    def loss(student_bc: Tensor, batch: Batch) -> Tensor:
        if alpha == 0:
            return F.cross_entropy(student_bc, batch.labels_b)
        assert batch.logits_bc is not None
        soft = soft_target_loss(student_bc, batch.logits_bc, temperature)
        return soft if alpha == 1 else (1 - alpha) * F.cross_entropy(student_bc, batch.labels_b) + alpha * soft

    return loss
