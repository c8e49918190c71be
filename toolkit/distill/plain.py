"""Learning what the teacher says without a temperature: its logits as they are, or its first choice alone.

Shapes: b batch, c classes.
"""

from __future__ import annotations

from torch import Tensor

from toolkit.distill.terms import computing, every_logit, mean, weighted_cross_entropy
from toolkit.training.targets import TopK


def mse_loss(student_bc: Tensor, teacher: Tensor | TopK, weights_b: Tensor | None = None) -> Tensor:
    """The squared difference of the logits, mean over classes and batch: a scalar.

    Kim et al., Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation (IJCAI
    2021), section 3. As τ grows, `soft_target_loss` becomes half of the variance over the classes of that difference;
    this is twice that limit plus, which a softmax does not see, the square of the difference's mean. With `weights_b`
    the mean of w_i·l_i. Raises UsageError for a TopK.
    """
    student_bc = computing(student_bc)
    difference_bc = student_bc - every_logit(teacher, "mse").to(student_bc.dtype)
    return mean(difference_bc.square().mean(dim=1), weights_b)


def pseudo_label_loss(student_bc: Tensor, teacher: Tensor | TopK, weights_b: Tensor | None = None) -> Tensor:
    """Cross-entropy with the class the teacher finds likeliest, mean over the batch, in nats: a scalar.

    Lee, Pseudo-Label (ICML 2013 workshop), with a teacher's choice in place of the network's own: what KD's targets
    become as τ falls to 0. With `weights_b` the mean of w_i·l_i. Exact for a TopK; of equal logits the first counts.
    """
    classes_b = teacher.indices_bk[:, 0] if isinstance(teacher, TopK) else teacher.argmax(dim=1)
    return weighted_cross_entropy(computing(student_bc), classes_b, weights_b)
