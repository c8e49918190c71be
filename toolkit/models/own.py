"""Networks of one's own: module:function, called as function(classes), and what is asked of what it returns."""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from toolkit.core.errors import UsageError
from toolkit.core.imported import aside, imported, told

_BUILT: WeakSet[nn.Module] = WeakSet()


def own_network(arch: str, classes: int, seed: int) -> nn.Module:
    """What the function named by `arch` returns for so many classes, torch's generator seeded just before.

    Raises UsageError where it can't be found or fails, or returns no new network with weights.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled()):  # scripts for evaluation turn it off for good
        build = imported(arch, "--arch")
    torch.default_generator.manual_seed(seed)  # again: the import may have drawn, and only the first one does
    try:
        with aside(), torch.set_grad_enabled(torch.is_grad_enabled()):
            model = build(classes)
    except (Exception, SystemExit) as error:
        raise UsageError(f"--arch {arch}: called with {classes} classes it fails: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"--arch {arch}: returns {type(model).__name__}, expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(f"--arch {arch}: returns TorchScript. Return the network as Python defines it")
    if "_parameters" not in vars(model):
        raise UsageError(
            f"--arch {arch}: {type(model).__name__} does not call super().__init__() when it is made. Call it first"
        )
    if model in _BUILT:
        raise UsageError(f"--arch {arch}: returns the same network again. Build a new one in each call")
    _BUILT.add(model)
    parameters = list(model.parameters())
    if not parameters:
        raise UsageError(
            f"--arch {arch}: its network ({type(model).__name__}) has no parameters. Give it some to train"
        )
    if any(tensor.is_meta for tensor in (*parameters, *model.buffers())):
        raise UsageError(f"--arch {arch}: its network is on the meta device, so it has no numbers. Build it on the CPU")
    odd = [name for name, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise UsageError(f"--arch {arch}: no checkpoint keeps its {odd[0]}, which is no tensor. Make it one")
    if any(is_lazy(parameter) for parameter in parameters):
        raise UsageError(f"--arch {arch}: its network has lazy layers, which no seed reaches. Give them their sizes")
    return model
