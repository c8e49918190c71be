"""Which layer makes a network's logits, so that they can be computed again from what it reads: decided once for each
network, by watching it.

Shapes: b batch, c classes, d features, h and w height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.models.counting import uncounted
from toolkit.models.resnet_cifar import CifarResNet

_ASKED = 2  # images: enough to know the network by
_AGREES = 1e-3  # of the largest logit: float32's rounding, summed in another order

_HEADS: WeakKeyDictionary[nn.Module, nn.Linear | None] = WeakKeyDictionary()


def head_of(model: nn.Module, x_bchw: Tensor | None = None) -> nn.Linear | None:
    """The linear layer whose output is the network's, or None where no layer's is: a head of another kind, something
    done after it, or, of a network not asked before, no images to ask it with."""
    if isinstance(model, CifarResNet):
        return model.fc
    if model not in _HEADS:
        if x_bchw is None:
            return None
        _HEADS[model] = _watched(model, x_bchw)
    return _HEADS[model]


@contextmanager
def asked(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Runs inside leave no trace: modes, buffers, generators and counts are as they were. Autocast is off."""
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    # of inference tensors torch keeps no count of changes, which tells a layer's output from one changed in place
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        uncounted(model),
    ):
        model.train(training)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, before in buffers:
                buffer.copy_(before)


def _watched(model: nn.Module, x_bchw: Tensor) -> nn.Linear | None:
    """The layer that made the very tensor the network gives for the first of these images, untouched since. Equal
    numbers alone would not do: a scale after the layer may begin at 1."""
    heard: list[tuple[nn.Linear, Tensor, Tensor, int]] = []

    def listen(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if args and isinstance(layer, nn.Linear):
            heard.append((layer, args[0], output, output._version))

    linears = [module for module in model.modules() if getattr(type(module), "forward", None) is nn.Linear.forward]
    handles = [layer.register_forward_hook(listen) for layer in linears]
    try:
        with asked(model):
            logits_bc = model(x_bchw[:_ASKED].clone())
            for layer, read_bd, output_bc, version in reversed(heard):
                if output_bc is logits_bc and output_bc._version == version and read_bd.dim() == 2:
                    again_bc = F.linear(read_bd, layer.weight, layer.bias)
                    off, span = (again_bc - logits_bc).abs().max(), logits_bc.abs().max()
                    return layer if bool(off <= _AGREES * span) else None
    finally:
        for handle in handles:
            handle.remove()
    return None
