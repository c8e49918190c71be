"""train-teacher and distill with --dry-run: images, bytes, and minutes by a few steps of the training itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from toolkit.core.recipes import Recipe
from toolkit.distill.losses import distillation_loss
from toolkit.formats.beton import Beton
from toolkit.formats.dataset import DataRecord
from toolkit.formats.dynamics import SERIES
from toolkit.pipeline.alpha_search import images_of, search_share
from toolkit.pipeline.foresee.foreseen import Foreseen
from toolkit.pipeline.known_networks import new_network
from toolkit.pipeline.runtime import Compute
from toolkit.pipeline.sources import open_source
from toolkit.pipeline.student_request import StudentRequest
from toolkit.training.loop import Batch, Trainer
from toolkit.training.trial import Rate, rate_of

_BATCHES = 24  # that a trial of a teacher has rows for
_STEPS = 10_000  # whatever the run's: its first steps are tried
_UNCOMPILED = ", without --compile"

Loss = Callable[[Any, Batch], Any]


def weights_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def basis(rate: Rate, compiled: bool = False) -> str:
    tried = f"{rate.steps} step{'' if rate.steps == 1 else 's'} tried here"
    return f"{tried}{_UNCOMPILED if compiled else ''}: {rate.images_per_s:,.0f} img/s"


def teacher_rate(
    train: Beton,
    rows_m: np.ndarray,
    data: DataRecord,
    arch: str,
    width: int,
    recipe: Recipe,
    compute: Compute,
    source: str,
    loss: Loss,
) -> Rate:
    """Of training with labels, on whole batches of rows from all over the data where there are as many."""
    batch = recipe.batch_size
    whole = min(_BATCHES, len(rows_m) // batch) * batch or len(rows_m)
    some_m = rows_m[np.linspace(0, len(rows_m) - 1, whole).astype(np.int64)]
    fed = open_source(train, some_m, data, batch, 0, compute, kind=source)
    model = new_network(arch, width, 0, data, compute)
    return rate_of(Trainer(model, fed, loss, recipe, _STEPS, compute.device, compute.precision))


def foreseen_teacher(
    path: Path,
    model: nn.Module,
    shown: int,
    images: int,
    looks: int,
    recorded: tuple[int, int, int],
    classes: int,
    rate: Rate,
    compiled: bool,
) -> dict[str, Any]:
    """`images` are those trained on, of all seeds, of which `shown` were before; `looks` those shown to snapshots.
    `recorded` are the rows, epochs and snapshots of dynamics.h5, of all seeds: (0, 0, 0) without."""
    images = max(0, images - shown)
    rows, epochs, snapshots = recorded
    an_epoch = sum(dtype.itemsize for dtype in SERIES.values())
    dynamics = rows * (epochs * an_epoch + snapshots * 2 * (classes + features_of(model)) + (16 if epochs else 0))
    seconds = (images + looks / 3) / rate.images_per_s  # a forward pass is a third of a step
    return Foreseen(
        path,
        False,
        weights_bytes(model) + dynamics,
        seconds / 60,
        basis(rate, compiled),
        teacher_passes=images + looks,
        more={"images_per_s": rate.images_per_s},
    ).told()


def features_of(model: nn.Module) -> int:
    """The width of the network's last linear layer, as near as its parameters tell."""
    shapes = [parameter.shape for parameter in model.parameters() if parameter.ndim == 2]
    return int(shapes[-1][1]) if shapes else 0


def student_rate(request: StudentRequest, compute: Compute, source: str) -> Rate:
    """Of the student's own training, its targets and all."""
    bundle, settings, asked = request.bundle, request.settings, request.asked
    targets = request.knowledge.targets if request.knowledge else None
    how = (request.recipe.batch_size, settings["seed"], compute, targets, source, request.weights_m)
    fed = open_source(bundle.images(), bundle.indices_m, bundle.data, *how)
    model = new_network(settings["arch"], settings["width"], settings["seed"], bundle.data, compute)
    alpha = asked.alpha if isinstance(asked.alpha, float) else 1.0
    loss = distillation_loss(alpha, asked.temperature, asked.loss, asked.beta, request.recipe.label_smoothing)
    return rate_of(Trainer(model, fed, loss, request.recipe, _STEPS, compute.device, compute.precision))


def foreseen_student(
    folder: Path, request: StudentRequest, compute: Compute, source: str, shown: int
) -> dict[str, Any]:
    """`shown` are the images that an unfinished run there was shown already."""
    rate = student_rate(request, compute, source)
    searched = search_share(request, compute) if request.asked.alpha == "search" else 0.0
    images = max(0, images_of(request) - shown) + round(searched * images_of(request))
    settings = request.settings
    model = new_network(settings["arch"], settings["width"], settings["seed"], request.bundle.data, compute)
    more = {"images_per_s": rate.images_per_s, **{name: settings[name] for name in ("subset", "teacher")}}
    seconds = images / rate.images_per_s
    said = basis(rate, bool(settings.get("compiled")))
    return Foreseen(folder, False, weights_bytes(model), seconds / 60, said, student_passes=images, more=more).told()
