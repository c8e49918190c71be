"""An average of the weights that follows them step by step: what an evaluated and saved network may hold instead."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The exponential moving average of a network's state, by name in `tensors`; empty until the first step.

    After each step a ← decay·a + (1 − decay)·w, begun at the first step's w: the temporal averaging of Kingma & Ba,
    Adam (ICLR 2015), section 7.2. Batch normalisation's running statistics are averaged as the weights are, which they
    belong to; what is no number with a fraction (how many batches it saw), and extra state, is the network's own.

    Not torch's AveragedModel: it asks a tensor whether this is the first step, and a GPU would be waited for.
    """

    def __init__(self, decay: float) -> None:
        self._merge = get_ema_multi_avg_fn(decay)
        self.tensors: dict[str, Tensor] = {}

    def follow(self, model: nn.Module) -> None:
        """Takes in the weights after a step. Nothing in it waits for the device."""
        now = model.state_dict()
        if not self.tensors:
            self.tensors = {name: tensor.clone() for name, tensor in now.items()}
            return
        averaged = [name for name, tensor in now.items() if tensor.is_floating_point() and not _is_extra(name)]
        self._merge([self.tensors[name] for name in averaged], [now[name] for name in averaged], None)
        for name in now.keys() - set(averaged):
            self.tensors[name] = now[name].clone()  # extra state may change its shape

    def load(self, tensors: dict[str, Tensor], model: nn.Module) -> None:
        """Goes on from `tensors`, on the network's device. Raises KeyError where they are of another network."""
        self.tensors = {name: tensors[name].to(known.device) for name, known in model.state_dict().items()}


def _is_extra(name: str) -> bool:
    """Whether it is what a module's get_extra_state said, which is no weight."""
    return name.rpartition(".")[2] == "_extra_state"
