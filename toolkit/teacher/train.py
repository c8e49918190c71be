"""Training a teacher: cross-entropy on labels, every view of the family in turn.

Shapes: b batch, c classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from toolkit.training.showing import Batch


def label_loss(logits_bc: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels, mean over the batch, in nats: a scalar.

    The label's share of the target is 1 − ε + ε/c, every other class's ε/c, ε the `label_smoothing`: Szegedy et al.,
    Rethinking the Inception Architecture (CVPR 2016), section 7.
    """
    return F.cross_entropy(logits_bc, batch.labels_b, label_smoothing=label_smoothing)
