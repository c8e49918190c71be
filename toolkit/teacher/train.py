"""Training a teacher: cross-entropy on labels, every view of the family in turn.

Shapes: b batch, c classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from toolkit.training.showing import Batch


def label_loss(logits_bc: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy with the labels."""
    return F.cross_entropy(logits_bc, batch.labels_b)
