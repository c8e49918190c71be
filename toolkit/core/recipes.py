"""Optimisation recipes as data: what the paper used, exactly, a short one for small machines, and ffcv-imagenet's.

The paper's: Ben-Baruch et al., Distilling the Knowledge in Data Pruning (ICML 2025), section 5 and its appendix.
ffcv-imagenet's: github.com/libffcv/ffcv-imagenet at 4dd291a, train_imagenet.py and the files of rn18_configs and
rn50_configs. What theirs have and these do not: images that grow from 160 to 192 pixels (these stay at the data's
size), blurred strides (a network of one's own may have them), mirrored images at test time, and a ragged last batch
left out.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from toolkit.core.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Recipe:
    """SGD settings. `milestones` and `warmup` are shares of the run, so that one of another length keeps its shape.

    `label_smoothing` is of the cross-entropy with the labels. `ema` is how much of an average of the weights is kept at
    each step, None where the weights themselves are what is trained for. `batchnorm_decay` says whether weight decay is
    on batch normalisation's parameters too.
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: str
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    ema: float | None = None
    batchnorm_decay: bool = True

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, list(SCHEDULES))
        if self.epochs < 1:
            raise UsageError(f"--epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, got {self.batch_size}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"--lr must be a positive number, got {self.lr}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--label-smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"--ema must be above 0 and below 1, such as 0.999, got {self.ema}")


def _steps(recipe: Recipe, progress: float) -> float:
    # a whisper of tolerance: 150/240 of 240 epochs must be reached at epoch 150, not one step later
    return 0.1 ** sum(progress >= milestone - 1e-12 for milestone in recipe.milestones)


def _cosine(recipe: Recipe, progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(recipe: Recipe, progress: float) -> float:
    return (1 - progress) / (1 - recipe.warmup)


SCHEDULES = {"steps": _steps, "cosine": _cosine, "linear": _linear}


def _ffcv_imagenet(epochs: int, batch_size: int, lr: float, weight_decay: float) -> Recipe:
    """One of ffcv-imagenet's files. Their script takes the rate as it stands there, and scales it by no batch size: who
    changes --batch-size says --lr too. Its weight decay goes by names with bn in them, which misses the batch
    normalisation of torchvision's shortcuts; this recipe spares all of them."""
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule="linear",  # lr_schedule_type cyclic: in a line to the peak, and in a line to 0 at the end
        warmup=2 / epochs,  # lr_peak_epoch 2, the script's default too
        momentum=0.9,
        weight_decay=weight_decay,
        label_smoothing=0.1,
        batchnorm_decay=False,  # bn_wd 0
    )


_FFCV_EPOCHS = (16, 24, 32, 40, 56, 88)

RECIPES = {
    # ResNet-32 on CIFAR and SVHN: divided by ten at epochs 150, 180 and 210 of 240
    "paper-cifar": Recipe(
        epochs=240, batch_size=64, lr=0.05, schedule="steps", milestones=(150 / 240, 180 / 240, 210 / 240)
    ),
    # ResNet-50. The number of epochs is ours (torchvision's): the paper's text does not settle it.
    "paper-imagenet": Recipe(epochs=90, batch_size=128, lr=0.1, schedule="cosine"),
    "fast": Recipe(epochs=30, batch_size=128, lr=0.1, schedule="linear", nesterov=True, warmup=0.15),
    # ResNet-18, on one GPU: lr 0.5 at batch_size 1024, weight_decay 5e-5
    **{f"ffcv-imagenet-rn18-{epochs}": _ffcv_imagenet(epochs, 1024, 0.5, 5e-5) for epochs in _FFCV_EPOCHS},
    # ResNet-50: lr 1.7 at batch_size 512 on each of world_size 8 GPUs, weight_decay 1e-4
    **{f"ffcv-imagenet-rn50-{epochs}": _ffcv_imagenet(epochs, 8 * 512, 1.7, 1e-4) for epochs in _FFCV_EPOCHS},
}
_LATER = {"label_smoothing": 0.0, "ema": None, "batchnorm_decay": True}  # 0.5 and earlier knew nothing else


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


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """As run.json keeps it: what earlier versions knew no other value of is there only where it is another."""
    said = {**asdict(recipe), "milestones": list(recipe.milestones)}
    return {name: value for name, value in said.items() if name not in _LATER or value != _LATER[name]}


def resolve_recipe(
    name: str,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    label_smoothing: float | None = None,
    ema: float | None = None,
) -> Recipe:
    """The preset `name` with what the user said instead. Raises UsageError for unknown names and bad values."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, list(RECIPES))
    said = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "label_smoothing": label_smoothing, "ema": ema}
    return replace(RECIPES[name], **{key: value for key, value in said.items() if value is not None})  # type: ignore[arg-type]
