"""KD in two parts: how sure the teacher is of the label, and how it spreads the rest.

Shapes: b batch, c classes, o the c − 1 other classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.distill.terms import computing, every_logit, kl, mean, outcomes
from toolkit.training.targets import TopK


def dkd_loss(
    student_bc: Tensor,
    teacher: Tensor | TopK,
    labels_b: Tensor,
    temperature: float,
    beta: float = 8.0,
    weights_b: Tensor | None = None,
) -> Tensor:
    """τ²·(TCKD + β·NCKD), mean over the batch, in nats: a scalar.

    Zhao et al., Decoupled Knowledge Distillation (CVPR 2022), section 3, with their α = 1 and without the warm-up of
    their code. TCKD is the KL between teacher and student over two outcomes, the label and any other class; NCKD that
    over the other classes alone, given that it is one of them. With each row's β = 1 − p(label), p the teacher's,
    it would be KD. `labels_b` are int64; with `weights_b` the mean of w_i·l_i. Raises UsageError for a TopK.
    """
    student_bc = computing(student_bc) / temperature
    teacher_bc = every_logit(teacher, "dkd").to(student_bc.dtype) / temperature
    label_b1 = labels_b[:, None]
    target_b = kl(outcomes(teacher_bc, label_b1), outcomes(student_bc, label_b1))
    rest_b = kl(_given_another(teacher_bc, label_b1), _given_another(student_bc, label_b1))
    return temperature**2 * mean(target_b + beta * rest_b, weights_b)


def _given_another(scaled_bc: Tensor, label_b1: Tensor) -> Tensor:
    """Log-probabilities of the classes that are not the label, given that it is one of them: (b, o).

    They are gathered, not masked: the log-probability of a masked class would be −∞, and its share of the KL 0·∞.
    """
    others_o = torch.arange(scaled_bc.shape[1] - 1, device=scaled_bc.device)
    return F.log_softmax(scaled_bc.gather(1, others_o + (others_o >= label_b1)), dim=1)
