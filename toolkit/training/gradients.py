"""One gradient from the shares of several processes.

Shapes: g all gradients, end to end.
"""

from __future__ import annotations

import torch
from torch import nn

from toolkit.core.processes import Processes


def sum_gradients(model: nn.Module, processes: Processes) -> None:
    """Gives every parameter that is trained the sum of the processes' gradients, by one exchange. Nothing where there
    is one process.

    Not by DistributedDataParallel: it divides by the number of processes and not by the rows that each of them has, it
    needs a backward pass where a process has no rows at all, and its hooks would be part of what is compiled. What it
    gains, computing while exchanging, is little for networks of this size.
    """
    if processes.count == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # what no process used keeps no gradient, as in one process: one of zeros would let weight decay shrink it
    anywhere = processes.agreed(*(int(parameter.grad is not None) for parameter in trained))
    used = [parameter for parameter, somewhere in zip(trained, anywhere, strict=True) if somewhere]
    for parameter in used:
        if parameter.grad is None:  # of no row here: the same places must be added up everywhere
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in used if parameter.grad is not None]
    sum_g = processes.sum_(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, part in zip(gradients, sum_g.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
