"""Learning how the teacher's probabilities vary, over the classes of a row and over the rows of a class, not how large
they are.

Shapes: b batch, c classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from toolkit.distill.terms import computing, directions, every_logit
from toolkit.training.targets import TopK


def dist_loss(student_bc: Tensor, teacher: Tensor | TopK, temperature: float, beta: float = 1.0) -> Tensor:
    """τ²·(inter + β·intra), each 1 less a mean of Pearson's correlations of probabilities at τ: a scalar.

    Huang et al., Knowledge Distillation from A Stronger Teacher (NeurIPS 2022), section 4, with the τ² of its later
    code. Inter is over a row's classes, mean over the rows; intra over the batch's rows, mean over the classes. It
    compares rows with each other, so it is a function of the whole batch; one row alone has no intra part.

    Correlations are exact: the authors' code adds 1e-8 below the fraction. A row or class whose probabilities are all
    the same has none: it counts as uncorrelated, and gives no gradient. Raises UsageError for a TopK.
    """
    student_bc = F.log_softmax(computing(student_bc) / temperature, dim=1)
    teacher_bc = F.log_softmax(every_logit(teacher, "dist").to(student_bc.dtype) / temperature, dim=1)
    loss = 1 - _correlation(student_bc, teacher_bc, dim=1).mean()
    if len(student_bc) > 1:
        loss = loss + beta * (1 - _correlation(student_bc, teacher_bc, dim=0).mean())
    return temperature**2 * loss


def _correlation(log_p_bc: Tensor, log_q_bc: Tensor, dim: int) -> Tensor:
    """Pearson's, of probabilities along `dim`. It does not change with their scale, so each vector's largest is made 1:
    a class that no row finds likely would be lost in float32, or its gradient overflow."""
    p_bc, q_bc = ((x_bc - x_bc.amax(dim, keepdim=True).detach()).exp() for x_bc in (log_p_bc, log_q_bc))
    return (directions(p_bc, dim) * directions(q_bc, dim)).sum(dim)
