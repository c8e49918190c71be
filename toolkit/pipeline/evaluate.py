"""kdtool evaluate: what a checkpoint is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.errors import UsageError
from toolkit.core.progress import Progress, silent
from toolkit.formats.beton import Beton
from toolkit.formats.checkpoint import Checkpoint
from toolkit.formats.dataset import DataRecord
from toolkit.formats.workspace import Workspace
from toolkit.models.pretrained import PretrainedTeacher, pretrained_teacher
from toolkit.models.zoo import check_network
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.foresee.foreseen import Foreseen, on_packed
from toolkit.pipeline.known_networks import named_network
from toolkit.pipeline.known_teachers import is_of_library
from toolkit.pipeline.library_teachers import MIDDLE, LibraryAsked, Note, network_asked_for
from toolkit.pipeline.runtime import compute_on
from toolkit.training.evaluate import EVAL_BATCH, predict, top1
from toolkit.views.plan import Plan

_TIMED_BATCHES, _LEAST_S = 2, 1e-3


def evaluate(
    checkpoint: Place,
    *,
    workspace: Workspace | Place = defaults.WORKSPACE,
    dataset: str | None = None,
    split: str = defaults.SPLIT,
    arch: str | None = None,
    width: int | None = None,
    size: int | None = None,
    crop: float | None = None,
    data_dir: Place | None = None,
    limit: int | None = None,
    class_map: Place | None = None,
    device: str = defaults.DEVICE,
    precision: str = defaults.PRECISION,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
    on_note: Note = lambda line: None,
) -> dict[str, Any]:
    """Accuracy (percent) of a checkpoint on a split, by default the whole test split of the data set it learned; of
    each class too, None where the split shows none of it.

    Data that are shown in resized crops are evaluated on the middle square of `crop` of the shorter side, scaled to
    `size` pixels: seven eighths, and the size trained at, where neither is said. `arch` must be named of networks of
    one's own, and of a plain state_dict; the latter's `dataset` too. A library's teacher is evaluated by name, on a
    `dataset` whose classes are its own by name, or by `class_map`. With `dry_run` a few batches are
    run: the result is `Foreseen.told`. Raises UsageError or FailureError.
    """
    _check_shown(size, crop)
    workspace, data_dir = Workspace.at(workspace), as_path(data_dir)
    compute = compute_on(device, precision, threads)
    file = as_path(checkpoint)
    if file.is_dir():
        names = [file / "student.pt", file / "teacher.pt"]
        file = next((name for name in names if name.is_file()), names[0])
    library = pretrained_teacher(str(file)) if is_of_library(str(file)) else None
    named = dataset or _learned(file, library, arch, width)

    def look(there: Workspace) -> dict[str, Any]:
        data = ensure_packed(there, named, data_dir, limit, progress=progress, from_file=dataset is None)
        plan, share = _shown(data.record, size, crop)
        wanted = LibraryAsked(as_path(class_map), not dry_run, progress, on_note, share)
        # a library's network is asked about the size it will see; that of a file, trained at the data's, below
        shown_as = replace(data.record, height=plan.height, width=plan.width) if library else data.record
        record, model, _ = network_asked_for(library, file, str(file), shown_as, compute, wanted, arch, width)
        if size is not None:
            try:
                check_network(model, record.arch, record.classes, size, size, trains=False)
            except UsageError as error:
                raise UsageError(f"--size {size}: this network takes no such images ({error}). Leave it out") from error
        beton = data.split(split)
        about = {
            "path": str(file) if library is None else library.reference,
            "dataset": data.record.key,
            "split": split,
            "rows": len(beton),
            "size": [plan.height, plan.width],
            "crop": share,
        }
        how = (model, beton, plan, record.mean, record.std, compute.device, compute.precision)
        if dry_run:
            return _foreseen(about, lambda rows_m: predict(*how, positions_n=rows_m, crop=share))
        return {**about, **_accuracies(predict(*how, crop=share, progress=progress), beton, data.record.class_names)}

    if dry_run:
        return on_packed(workspace, look, named, limit, data_dir, progress=progress, from_file=dataset is None)
    return look(workspace)


def _foreseen(about: dict[str, Any], predicted: Callable[[np.ndarray], object]) -> dict[str, Any]:
    """Of few rows by all of them; of many by what some batches take beyond one, which waits for compilers and
    caches."""

    def seconds(rows: int) -> float:
        start_s = time.perf_counter()
        predicted(np.arange(rows))
        return time.perf_counter() - start_s

    rows, tried = about["rows"], (1 + _TIMED_BATCHES) * EVAL_BATCH
    if rows <= tried + EVAL_BATCH:
        taken_s, basis = seconds(rows), "run here"
    else:
        first_s = seconds(EVAL_BATCH)
        rate = (tried - EVAL_BATCH) / max(seconds(tried) - first_s, _LEAST_S)
        taken_s, basis = first_s + (rows - EVAL_BATCH) / rate, f"{tried:,} images run here"
    told = Foreseen(about["path"], False, 0, taken_s / 60, basis, student_passes=rows, makes=False, more=about)
    return told.told()


def _accuracies(predicted_n: Tensor, beton: Beton, names: Sequence[str]) -> dict[str, Any]:
    """In percent: of all, and of each class, None where the split shows none of it."""
    labels_n = beton.labels_n
    per_class: dict[str, float | None] = {}
    for label, name in enumerate(names):
        of_class_n = labels_n == label
        per_class[name] = top1(predicted_n[of_class_n], labels_n[of_class_n]) if of_class_n.any() else None
    return {"top1": top1(predicted_n, labels_n), "per_class": per_class}


def _learned(file: Path, library: PretrainedTeacher | None, arch: str | None, width: int | None) -> str:
    """The data set that a checkpoint says it learned. Raises UsageError for a network that does not say."""
    found = None if library is not None else named_network(file, arch, width, "kdtool distill or kdtool train-teacher")
    if isinstance(found, Checkpoint):
        return found.dataset
    what = "a plain state_dict, which" if library is None else "a library's teacher: its name"
    raise UsageError(f"{file}: {what} does not say what it learned. Add: --dataset NAME")


def _check_shown(size: int | None, crop: float | None) -> None:
    if size is not None and size < 1:
        raise UsageError(f"--size must be at least 1 pixel, got {size}")
    if crop is not None and not (math.isfinite(crop) and 0 < crop <= 1):
        raise UsageError(f"--crop must be above 0 and at most 1, got {crop}")


def _shown(data: DataRecord, size: int | None, crop: float | None) -> tuple[Plan, float | None]:
    """The plan of another size, and the share of the shorter side; None of data that are shown whole. Raises UsageError
    where these can be of no other."""
    plan = data.plan
    if not plan.finite:
        return plan if size is None else replace(plan, height=size, width=size), MIDDLE if crop is None else crop
    said = f"--size {size}" if size is not None else f"--crop {crop:g}" if crop is not None else None
    if said is not None:
        raise UsageError(
            f"{said}: {data.dataset} is shown whole, at its {plan.height} × {plan.width} pixels ({plan.family}). "
            "Leave it out"
        )
    return plan, None
