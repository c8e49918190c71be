"""Models by name, with the width they accept and the features their last linear layer reads.

Shapes: b batch, c classes, d features, hw image size.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.models.resnet_cifar import DEPTHS, CifarResNet

CIFAR_RESNETS = {f"resnet{depth}": depth for depth in DEPTHS}


def _torchvision_names() -> list[str]:
    from torchvision.models import list_models

    return list_models(module=__import__("torchvision").models)


def build_model(arch: str, classes: int, width: int = 16, seed: int = 0) -> nn.Module:
    """A freshly initialised network that maps (b, 3, h, w) to logits (b, classes), float32.

    `arch` is one of the CIFAR-style ResNets (resnet8 … resnet110; resnet32 means He et al.'s) or `torchvision:<name>`;
    a torchvision name that is no CIFAR-style one may stand bare. `width` belongs to the CIFAR-style ones. The same
    `seed` gives the same weights; torch's global generator is left as it was. Raises UsageError for unknown names.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs' generators
        if arch in CIFAR_RESNETS:
            if width < 1:
                raise UsageError(f"--width must be at least 1, got {width}")
            return _counted(CifarResNet(CIFAR_RESNETS[arch], classes, width))
        name = arch.removeprefix("torchvision:")
        known = _torchvision_names()
        if name not in known:
            prefixed = [f"torchvision:{known_name}" for known_name in known]
            raise unknown_name("architecture", arch, [*CIFAR_RESNETS, *(known if name == arch else prefixed)])
        if width != 16:
            raise UsageError(f"--width belongs to the CIFAR-style ResNets ({', '.join(CIFAR_RESNETS)}), not to {arch}")
        from torchvision.models import get_model

        return _counted(get_model(name, weights=None, num_classes=classes))


def last_linear(model: nn.Module) -> nn.Linear:
    """The layer that turns features into logits: the last nn.Linear in definition order."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UsageError(f"{type(model).__name__} has no linear layer, so it has no features to keep")
    return linears[-1]


class FeatureReader:
    """Runs a network and also returns the features (b, d) its last linear layer read, and logits (b, c), both float32.

    The last layer is computed again in float32 from those features: under bfloat16 autocast its output would keep
    only three significant digits, which the cache's float16 could not mend. It costs d × c multiplications an image.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.head = last_linear(model)

    def __call__(self, x_bchw: Tensor) -> tuple[Tensor, Tensor]:
        read: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda module, args: read.append(args[0]))
        try:
            self.model(x_bchw)
        finally:
            handle.remove()
        features_bd = read[0].to(self.head.weight.dtype)
        with torch.autocast(x_bchw.device.type, enabled=False):
            return features_bd, F.linear(features_bd, self.head.weight, self.head.bias)


class _Ledger:
    """Images that went forward, through any model built here, in this process."""

    images = 0


def _counted(model: nn.Module) -> nn.Module:
    """The model, counting at the module itself every image that goes forward through it."""

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        _Ledger.images += args[0].shape[0]
        module.images_seen += args[0].shape[0]  # type: ignore[operator,assignment]

    model.images_seen = 0  # type: ignore[assignment]
    model.register_forward_pre_hook(count)
    return model


def images_seen(model: nn.Module | None = None) -> int:
    """How many images went forward through `model`, or through every model built in this process."""
    return _Ledger.images if model is None else int(model.images_seen)  # type: ignore[arg-type]


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads `state` strictly. Raises FailureError naming `source` and the first few keys or shapes that do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = re.sub(r"\s+", " ", str(error))[:300]
        raise FailureError(f"{source}: its weights do not fit the architecture it names ({detail})") from error
