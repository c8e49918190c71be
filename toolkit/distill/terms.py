"""What the losses are made of, row by row.

Shapes: b batch, c classes, K classes kept of each row's targets, o outcomes, n, m any.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.core.errors import UsageError
from toolkit.training.targets import TopK

# A vector whose spread is below so many roundings of its largest number is constant: the rest is noise.
_NOISE = 16


def computing(student_bc: Tensor) -> Tensor:
    """The student's logits in the dtype a loss is computed in: float32, or float64 where they are."""
    return student_bc.to(torch.promote_types(student_bc.dtype, torch.float32))


def every_logit(teacher: Tensor | TopK, loss: str) -> Tensor:
    """The teacher's logits of all classes. Raises UsageError for a TopK, naming the `loss` that needs them."""
    if isinstance(teacher, TopK):
        raise needs_every_logit(loss, f"topk:{teacher.values_bk.shape[1]}")
    return teacher


def needs_every_logit(
    loss: str, encoding: str, again: str = "kdtool cache-teacher --force, with the subset's --subset"
) -> UsageError:
    """The error of a loss that is not exact on the targets' `encoding`; `again` makes these targets again."""
    return UsageError(
        f"--loss {loss}: needs the teacher's logits of all classes, and these targets are {encoding}. "
        f"Use --loss kd or hard, or run: {again} --encoding int8"
    )


def outcomes(scaled_bc: Tensor, indices_bk: Tensor) -> Tensor:
    """Log-probabilities of the classes at `indices_bk` and of any other, of logits divided by τ: (b, K + 1).

    The others are summed themselves: 1 − Σp of the kept ones would be 0, and its log lost, long before they are.
    """
    others_b1 = scaled_bc.scatter(1, indices_bk, -math.inf).logsumexp(dim=1, keepdim=True)
    return F.log_softmax(torch.cat([scaled_bc.gather(1, indices_bk), others_b1], dim=1), dim=1)


def kl(log_p_bo: Tensor, log_q_bo: Tensor) -> Tensor:
    """Σ p (log p − log q) over o outcomes, of each row: (b,).

    Σ(q − p) is zero and so is its gradient. Added outcome by outcome it leaves no negative term, and at high
    temperatures, where p is nearly q, no difference of large terms that would be lost in float32.
    """
    p_bo, gap_bo = log_p_bo.exp(), log_p_bo - log_q_bo
    with torch.no_grad():
        q_less_p_bo = torch.where(gap_bo > -1, p_bo * torch.expm1(-gap_bo), log_q_bo.exp() - p_bo)
    return (p_bo * gap_bo + q_less_p_bo).sum(dim=1)


def directions(x_nm: Tensor, dim: int) -> Tensor:
    """Each vector along `dim` less its mean, scaled to length 1; zero, with no gradient, where all its numbers are the
    same. Two directions' inner product is Pearson's correlation."""
    shift = x_nm.amax(dim, keepdim=True).detach()  # no direction changes, and equal numbers become exact zeros
    centred_nm = x_nm - shift
    centred_nm = centred_nm - centred_nm.mean(dim, keepdim=True)
    square = centred_nm.square().sum(dim, keepdim=True)
    noise = _NOISE * torch.finfo(x_nm.dtype).eps * x_nm.abs().amax(dim, keepdim=True).detach()
    constant = square <= noise.square()
    # both branches of a `where` are differentiated: the root of 0 would be 0/0 in the one that is not taken
    length = torch.where(constant, 1.0, square).sqrt()
    return torch.where(constant, 0.0, centred_nm / length)


def mean(losses_b: Tensor, weights_b: Tensor | None) -> Tensor:
    """The mean of w_i·l_i over the batch, divided by how many there are; of l_i where all count alike."""
    return losses_b.mean() if weights_b is None else (losses_b * weights_b).mean()


def weighted_cross_entropy(
    student_bc: Tensor, labels_b: Tensor, weights_b: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with labels smoothed by ε, mean over the batch (see `mean`), in nats: a scalar.

    (1 − ε)·(−log p_y) + ε·Σ_k (−log p_k)/c for each row of label y: Szegedy et al., Rethinking the Inception
    Architecture (CVPR 2016), section 7, with the uniform distribution over the c classes.
    """
    if weights_b is None:
        return F.cross_entropy(student_bc, labels_b, label_smoothing=label_smoothing)
    return mean(F.cross_entropy(student_bc, labels_b, reduction="none", label_smoothing=label_smoothing), weights_b)
