"""Models by name or of one's own, with the width they accept and the features their last linear layer reads.

Shapes: b batch, c classes, d features, hw image size.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.core.imported import is_reference, told
from toolkit.core.probabilities import look_like_probabilities
from toolkit.models.counting import counted, images_seen
from toolkit.models.heads import asked, head_of
from toolkit.models.own import own_network
from toolkit.models.pretrained import build_network
from toolkit.models.resnet_cifar import DEPTHS, CifarResNet

__all__ = ["CIFAR_RESNETS", "FeatureReader", "build_model", "check_network", "head_of", "images_seen", "load_weights"]

CIFAR_RESNETS = {f"resnet{depth}": depth for depth in DEPTHS}


def _torchvision_names() -> list[str]:
    from torchvision.models import list_models

    return list_models(module=__import__("torchvision").models)


def build_model(arch: str, classes: int, width: int = 16, seed: int = 0) -> nn.Module:
    """A freshly initialised network that maps (b, 3, h, w) to logits (b, classes), float32.

    `arch` is one of the CIFAR-style ResNets (resnet8 … resnet110; resnet32 means He et al.'s), `torchvision:<name>`,
    `timm:<name>`, or `module:function` for a network of one's own, which function(classes) returns; a torchvision name
    that is no CIFAR-style one may stand bare. `width` belongs to the CIFAR-style ones. The same `seed` gives the same
    weights; torch's global generator is left as it was. Raises UsageError for unknown names, and for what one's own
    code does, and FailureError where timm is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs' generators
        if arch in CIFAR_RESNETS:
            if width < 1:
                raise UsageError(f"--width must be at least 1, got {width}")
            return counted(CifarResNet(CIFAR_RESNETS[arch], classes, width))
        if is_reference(arch):
            _refuse_width(arch, width)
            return counted(own_network(arch, classes, seed))
        if arch.startswith("timm:"):
            _refuse_width(arch, width)
            return build_network(arch, classes)
        name = arch.removeprefix("torchvision:")
        known = _torchvision_names()
        if name not in known:
            prefixed = [f"torchvision:{known_name}" for known_name in known]
            error = unknown_name("architecture", arch, [*CIFAR_RESNETS, *(known if name == arch else prefixed)])
            raise UsageError(f"{error}; or module:function for one of your own")
        _refuse_width(arch, width)
        return build_network(f"torchvision:{name}", classes)


def _refuse_width(arch: str, width: int) -> None:
    if width != 16:
        raise UsageError(f"--width belongs to the CIFAR-style ResNets ({', '.join(CIFAR_RESNETS)}), not to {arch}")


def check_network(
    model: nn.Module,
    arch: str,
    classes: int,
    height: int,
    width: int,
    trains: bool = True,
    option: str = "--arch",
) -> None:
    """Asks a network, placed where it will run, what it makes of two images of the data's size, evaluating and, where
    it will train, training too: that leaves no trace in it. kdtool's own are known, and not asked. `option` is the one
    that named it `arch`.

    Raises UsageError unless both answers are finite floats (2, classes), no probabilities, and, where it will train,
    follow from parameters that can learn.
    """
    if isinstance(model, CifarResNet):
        return
    named = f"{option} {arch}"
    if trains and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"{named}: all of its network is frozen. Leave some parameter its requires_grad")
    parameter = next(model.parameters())
    size = f"images of {height} × {width} pixels"
    # noise, as normalised images are: some networks divide by an image's own deviation, which black ones have none of
    x_bchw = torch.randn((2, 3, height, width), generator=torch.Generator().manual_seed(0))
    x_bchw = x_bchw.to(device=parameter.device, dtype=parameter.dtype, memory_format=torch.channels_last)
    for training in (False, True) if trains else (False,):
        try:
            with asked(model, training), torch.set_grad_enabled(training):
                logits_bc = model(x_bchw)
        except (Exception, SystemExit) as error:  # whatever code of one's own raises
            of_view = "view size is not compatible" in str(error)
            hint = ". kdtool's images are channels last: use .flatten(1) or .reshape" if of_view else ""
            raise UsageError(f"{named}: fails on two {size}: {told(error)}{hint}") from error
        mode = "training" if training else "evaluating"
        if not isinstance(logits_bc, Tensor):
            raise UsageError(f"{named}: gives {type(logits_bc).__name__} when {mode}, expected logits alone")
        if logits_bc.shape != (2, classes) or not logits_bc.is_floating_point():
            found = f"{str(logits_bc.dtype).removeprefix('torch.')} {tuple(logits_bc.shape)}"
            raise UsageError(f"{named}: of two {size} gives {found}, expected float logits (2, {classes})")
        if not torch.isfinite(logits_bc).all():
            raise UsageError(f"{named}: of two {size} gives logits that are not finite, when {mode}. Mend its layers")
        if look_like_probabilities(logits_bc.detach().float().cpu().numpy()):
            raise UsageError(f"{named}: gives probabilities when {mode}, expected logits. Leave its softmax out")
        if training and not logits_bc.requires_grad:
            raise UsageError(f"{named}: its logits have no gradient. Leave no_grad, detach and the like out")
    head_of(model, x_bchw)  # decided now, before anything listens to it


class FeatureReader:
    """Runs a network and also returns the features (b, d) its last linear layer read, and logits (b, c), both float32.

    The last layer is computed again in float32 from those features: under bfloat16 autocast its output would keep
    only three significant digits, which the cache's float16 could not mend. It costs d × c multiplications an image.

    Where no linear layer's output is the network's own the logits are those the network
    gives, at the precision it ran at, and they stand for features too. A network that kdtool does not know is asked
    once which is so, with two images of its first batch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, x_bchw: Tensor) -> tuple[Tensor, Tensor]:
        head = head_of(self.model, x_bchw)
        if head is None:
            logits_bc = self.model(x_bchw).to(x_bchw.dtype)
            return logits_bc, logits_bc
        read: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda module, args: read.append(args[0]))
        try:
            self.model(x_bchw)
        finally:
            handle.remove()
        features_bd = read[-1].to(head.weight.dtype)
        with torch.autocast(x_bchw.device.type, enabled=False):
            return features_bd, F.linear(features_bd, head.weight, head.bias)


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads `state` strictly. Raises FailureError naming `source` and the first few keys or shapes that do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = re.sub(r"\s+", " ", str(error))[:300]
        raise FailureError(
            f"{source}: its weights do not fit the architecture ({detail}). Name the network that they are of"
        ) from error
