"""Optimisation recipes as data: what the paper used, exactly, and a short one for small machines.

The paper's: Ben-Baruch et al., Distilling the Knowledge in Data Pruning (ICML 2025), section 5 and its appendix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from toolkit.core.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Recipe:
    """SGD settings. `milestones` and `warmup` are shares of the run, so that one of another length keeps its shape."""

    epochs: int
    batch_size: int
    lr: float
    schedule: str
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, list(SCHEDULES))
        if self.epochs < 1:
            raise UsageError(f"--epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, got {self.batch_size}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"--lr must be a positive number, got {self.lr}")


def _steps(recipe: Recipe, progress: float) -> float:
    # a whisper of tolerance: 150/240 of 240 epochs must be reached at epoch 150, not one step later
    return 0.1 ** sum(progress >= milestone - 1e-12 for milestone in recipe.milestones)


def _cosine(recipe: Recipe, progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(recipe: Recipe, progress: float) -> float:
    return (1 - progress) / (1 - recipe.warmup)


SCHEDULES = {"steps": _steps, "cosine": _cosine, "linear": _linear}

RECIPES = {
    # ResNet-32 on CIFAR and SVHN: divided by ten at epochs 150, 180 and 210 of 240
    "paper-cifar": Recipe(
        epochs=240, batch_size=64, lr=0.05, schedule="steps", milestones=(150 / 240, 180 / 240, 210 / 240)
    ),
    # ResNet-50. The number of epochs is ours (torchvision's): the paper's text does not settle it.
    "paper-imagenet": Recipe(epochs=90, batch_size=128, lr=0.1, schedule="cosine"),
    "fast": Recipe(epochs=30, batch_size=128, lr=0.1, schedule="linear", nesterov=True, warmup=0.15),
}


def lr_at(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate of `step` (from 0) in a run of `total_steps`."""
    progress = step / total_steps
    if progress < recipe.warmup:
        return recipe.lr * (step + 1) / (recipe.warmup * total_steps + 1)
    return recipe.lr * SCHEDULES[recipe.schedule](recipe, progress)


def check_one_length(epochs: int | None, iterations: int | None) -> None:
    """Raises UsageError where both say how long a run is."""
    if epochs is not None and iterations is not None:
        raise UsageError(f"--epochs {epochs} and --iterations {iterations} both say how long: give one of them")


def resolve_recipe(
    name: str, epochs: int | None = None, batch_size: int | None = None, lr: float | None = None
) -> Recipe:
    """The preset `name` with what the user said instead. Raises UsageError for unknown names and bad values."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, list(RECIPES))
    said = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    return replace(RECIPES[name], **{key: value for key, value in said.items() if value is not None})  # type: ignore[arg-type]
