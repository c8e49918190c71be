"""A file's weights and the network they are of: a file never decides what code runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.imported import is_reference
from toolkit.formats.checkpoint import Checkpoint, load_network, without_prefixes
from toolkit.formats.dataset import DataRecord
from toolkit.models.zoo import build_model, check_network, load_weights
from toolkit.pipeline.runtime import Compute

MADE_BY = "kdtool train-teacher"


def named_network(
    path: Path, arch: str | None = None, width: int | None = None, made_by: str = MADE_BY
) -> Checkpoint | dict[str, Tensor]:
    """The checkpoint in a file, or a plain state_dict's weights, where it is clear what network they are of.

    Raises FailureError for a file of a network of one's own whose `arch` was not named with it, and for weights alone
    without any; UsageError for another `arch` or `width` than the file's.
    """
    found = load_network(path, made_by)
    if not isinstance(found, Checkpoint):
        if arch is None:
            raise FailureError(
                f"{path}: a plain state_dict, which does not say of what network. Add: --arch NAME or module:function"
            )
        return found
    if is_reference(found.arch) and arch is None:
        raise FailureError(
            f"{path}: of the network {found.arch}, whose code only you can choose to run. Add: --arch {found.arch}"
        )
    if arch not in (None, found.arch):
        raise UsageError(f"{path}: of the network {found.arch}, not of --arch {arch}. Leave that out")
    if width not in (None, found.width):
        raise UsageError(f"{path}: of --width {found.width}, not {width}. Leave that out")
    return found


def network_of(
    path: Path, data: DataRecord, compute: Compute, arch: str | None = None, width: int | None = None
) -> tuple[Checkpoint, torch.nn.Module]:
    """`named_network`, built and placed, evaluating. Of weights alone, the checkpoint takes the data's normalisation.

    Raises FailureError when the file is broken or not for these data, and UsageError for what was asked amiss.
    """
    found = named_network(path, arch, width)
    if isinstance(found, Checkpoint):
        _check_data(path, found, data)
        named, channels = found.arch, found.width
    else:
        named, channels = str(arch), 16 if width is None else width
    model = built_for(path, named, data.classes, channels, asked_for=arch is not None)
    if not isinstance(found, Checkpoint):
        found = _of_weights(without_prefixes(found, model.state_dict()), named, channels, data)
    load_weights(model, found.weights, str(path))
    broken = [name for name, tensor in found.weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise FailureError(f"{path}: its weights are not all finite ({broken[0]}). Train it again with a smaller --lr")
    placed = compute.place(model).eval()
    check_network(placed, named, data.classes, data.height, data.width, trains=False)
    return found, placed


def built_for(path: Path, arch: str, classes: int, width: int, asked_for: bool) -> torch.nn.Module:
    """The network of a file, without its weights. Raises FailureError for one that can't be built; where the user
    `asked_for` it, UsageError."""
    try:
        return build_model(arch, classes, width)
    except UsageError as error:
        if asked_for:
            raise
        raise FailureError(
            f"{path}: names a network that can't be built ({error}). Use the kdtool that made it, or train it again"
        ) from error


def new_network(arch: str, width: int, seed: int, data: DataRecord, compute: Compute) -> torch.nn.Module:
    """A network to train on these data, built from its seed, placed, and asked whether it can. Raises UsageError."""
    model = compute.place(build_model(arch, data.classes, width, seed))
    check_network(model, arch, data.classes, data.height, data.width)
    return model


def _check_data(path: Path, checkpoint: Checkpoint, data: DataRecord) -> None:
    if checkpoint.classes != data.classes:
        raise FailureError(
            f"{path}: a teacher of {checkpoint.classes} classes, but {data.dataset} has {data.classes}. "
            f"Run: kdtool train-teacher --dataset {data.dataset}"
        )
    if checkpoint.dataset != data.dataset:
        raise FailureError(
            f"{path}: trained on {checkpoint.dataset}, but the data are {data.dataset}. "
            f"Run: kdtool train-teacher --dataset {data.dataset}"
        )


def _of_weights(weights: dict[str, Tensor], arch: str, width: int, data: DataRecord) -> Checkpoint:
    """What is known of weights alone: nothing of how they were trained."""
    return Checkpoint(
        arch=arch,
        width=width,
        classes=data.classes,
        dataset=data.dataset,
        data_fingerprint=data.train_fingerprint,
        mean=data.mean,
        std=data.std,
        seed=0,
        top1=float("nan"),
        settings={},
        versions={},
        weights=weights,
    )
