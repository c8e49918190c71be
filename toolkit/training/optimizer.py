"""The optimizer that a recipe asks for."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD

from toolkit.core.recipes import Recipe

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def sgd(model: nn.Module, recipe: Recipe, fused: bool) -> SGD:
    """SGD on all of the network's parameters, with weight decay on them, or on all but batch normalisation's."""
    how: dict[str, Any] = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    how |= {"nesterov": recipe.nesterov, "fused": fused}
    return SGD(model.parameters() if recipe.batchnorm_decay else _but_batchnorms(model), **how)


def _but_batchnorms(model: nn.Module) -> list[dict[str, Any]]:
    """All parameters, in groups: those that decay, and batch normalisation's, which do not."""
    normed = {id(one) for part in model.modules() if isinstance(part, _BATCHNORMS) for one in part.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [one for one in model.parameters() if id(one) not in normed]},
        {"params": [one for one in model.parameters() if id(one) in normed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
