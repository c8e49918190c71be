"""A teacher of torchvision's or timm's, ready to run on some data: its file, its classes, and what its record says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.progress import Progress, silent
from toolkit.core.versions import versions
from toolkit.formats.checkpoint import Checkpoint, load_torch, plain_weights
from toolkit.formats.dataset import DataRecord
from toolkit.models.class_maps import ClassMap, mapped, matched, only_classes
from toolkit.models.pretrained import PretrainedTeacher, build_network, timms_network, without_dots
from toolkit.models.weight_files import checked_sha256, weights_file
from toolkit.models.zoo import check_network, load_weights
from toolkit.pipeline.known_networks import network_of
from toolkit.pipeline.runtime import Compute

Note = Callable[[str], None]
MIDDLE = 0.875  # of the shorter side, that view 0 of resized crops shows
_ALIKE = 0.005  # shares: records give whole pixels


class LibraryAsked(NamedTuple):
    """How a library's teacher is wanted: which of its classes are the data's, whether its weights may be downloaded,
    and who is told what. Of resized crops the test split is looked at by `share` of the shorter side."""

    class_map: Path | None = None
    download: bool = True
    progress: Progress = silent
    on_note: Note = lambda line: None
    share: float | None = MIDDLE


def network_asked_for(
    library: PretrainedTeacher | None,
    file: Path,
    called: str,
    data: DataRecord,
    compute: Compute,
    asked: LibraryAsked,
    arch: str | None,
    width: int | None,
) -> tuple[Checkpoint, torch.nn.Module, dict[str, Any] | None]:
    """`library_network` of a library's teacher; else the network in a file, `called` so, of whose weights there is
    nothing to say (None). Raises UsageError also for options that belong to the other kind."""
    if library is None:
        refuse_class_map(asked.class_map, called)
        return *network_of(file, data, compute, arch, width), None
    refuse_options(library.reference, arch=arch, width=width)
    return library_network(library, data, compute, asked)


def library_network(
    teacher: PretrainedTeacher, data: DataRecord, compute: Compute, asked: LibraryAsked
) -> tuple[Checkpoint, torch.nn.Module, dict[str, Any]]:
    """(its record, normalised as its weights were trained; the network, placed and evaluating, that gives the data's
    classes in their order; what a cache says of its weights).

    Raises UsageError where classes don't match, or the network refuses images of this size, and FailureError where the
    weights can't be had or don't fit.
    """
    classes = (
        matched(data.class_names, teacher)
        if asked.class_map is None
        else mapped(data.class_names, teacher, asked.class_map)
    )
    file = compute.processes.first_before(lambda: weights_file(teacher, asked.download, asked.progress))
    sha256 = checked_sha256(file, teacher.url)
    network = _network(teacher, file)
    _need_finite(network, file)
    network.eval()
    check_network(
        network, teacher.reference, teacher.classes, data.height, data.width, trains=False, option="--teacher"
    )
    if classes.columns_c is not None:
        network = only_classes(network, classes.columns_c)
    _tell(teacher, data, classes, asked)
    checkpoint = Checkpoint(
        arch=teacher.arch,
        width=16,
        classes=data.classes,
        dataset=data.dataset,
        data_fingerprint=data.train_fingerprint,
        mean=list(teacher.mean),
        std=list(teacher.std),
        seed=0,
        top1=float("nan"),
        settings={},
        versions=versions(),
        weights=network.state_dict(),
    )
    about = {
        "name": teacher.reference,
        "url": teacher.url,
        "sha256": sha256,
        "resize": teacher.resize,
        "crop": list(teacher.crop),
        "top1_of_its_record": teacher.top1,
        "classes": classes.said,
    }
    return checkpoint, compute.place(network).eval(), about


def _network(teacher: PretrainedTeacher, file: Path) -> torch.nn.Module:
    """As its library builds it around these weights. Raises FailureError where the file holds others."""
    with torch.random.fork_rng(devices=[]):
        if teacher.arch.startswith("timm:"):
            return timms_network(teacher, _weights(file, file.suffix == ".safetensors"), str(file))
        network = build_network(teacher.arch, teacher.classes, **teacher.settings)
    load_weights(network, without_dots(_weights(file)), str(file))
    return network


def _weights(file: Path, safetensors: bool = False) -> dict[str, Tensor]:
    """As torch or safetensors keep them. Raises FailureError for anything else."""
    again = f"Delete {file.resolve()}, then run the same command again"  # the hub's cache holds links
    if safetensors:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content = load_file(file)
        except (SafetensorError, OSError) as error:
            raise FailureError(f"{file}: not readable ({error}). {again}") from error
    else:
        content = load_torch(file, f"rm {file.resolve()}, then the same command again")
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return content  # with the versions of its layers, that torch keeps beside the tensors
    weights = plain_weights(content)
    if weights is None:
        raise FailureError(f"{file}: holds no weights. {again}")
    return weights


def _need_finite(network: torch.nn.Module, file: Path) -> None:
    broken = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise FailureError(f"{file}: its weights are not all finite ({broken[0]}). Delete it, and name other weights")


def _tell(teacher: PretrainedTeacher, data: DataRecord, classes: ClassMap, asked: LibraryAsked) -> None:
    if classes.columns_c is not None:
        asked.on_note(f"{teacher.reference}: {classes.said}")
    elif not classes.by_name:
        said = f"{classes.said}: the data's folders are ImageNet's, in the order of its classes"
        asked.on_note(f"{teacher.reference}: {said}")
    if teacher.crop != (data.height, data.width):
        asked.on_note(
            f"{teacher.reference}: made for {teacher.crop[0]} × {teacher.crop[1]} pixels; teacher and student are "
            f"shown the data's {data.height} × {data.width}, where it may be worse than its record says"
        )
    elif teacher.resize is not None and not data.plan.finite and asked.share is not None:
        recorded = min(teacher.crop) / teacher.resize
        if abs(recorded - asked.share) > _ALIKE:
            asked.on_note(
                f"{teacher.reference}: its record's accuracy is of the middle {recorded:.1%} of the shorter side, and "
                f"the test split is judged by {asked.share:.1%}: it may come to another here"
            )


def refuse_options(reference: str, **given: object) -> None:
    """Raises UsageError for options of files, given with a library's teacher."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"--{option.replace('_', '-')} belongs to weights in a file, not to {reference}")


def refuse_class_map(class_map: Path | None, teacher: str) -> None:
    """Raises UsageError for a class map with a teacher that was trained on the data's own classes."""
    if class_map is not None:
        raise UsageError(f"--class-map belongs to teachers of torchvision and timm, not to {teacher}")
