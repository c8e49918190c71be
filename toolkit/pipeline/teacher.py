"""kdtool train-teacher, and loading a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import checked_seed
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.core.recipes import resolve_recipe
from toolkit.formats.checkpoint import Checkpoint, load_checkpoint
from toolkit.formats.dataset import DataRecord, PackedData
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.models.zoo import build_model, load_weights
from toolkit.pipeline.data import bundle_and_data
from toolkit.pipeline.run_folder import compiled_settings, earlier_result, forget, keep, timing, trained_name
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.sources import check_source, open_source
from toolkit.teacher.train import label_loss
from toolkit.training.evaluate import predict, top1
from toolkit.training.loop import EpochResult, Trainer
from toolkit.training.run import run_to_end


def load_model(path: Path, data: PackedData, compute: Compute) -> tuple[Checkpoint, torch.nn.Module]:
    """A checkpoint's record and its network, evaluating. Raises FailureError when broken or not for these data."""
    checkpoint = load_checkpoint(path)
    record = data.record
    if checkpoint.classes != record.classes:
        raise FailureError(
            f"{path}: a teacher of {checkpoint.classes} classes, but {record.dataset} has {record.classes}. "
            f"Run: kdtool train-teacher --dataset {record.dataset}"
        )
    if checkpoint.dataset != record.dataset:
        raise FailureError(
            f"{path}: trained on {checkpoint.dataset}, but the data are {record.dataset}. "
            f"Run: kdtool train-teacher --dataset {record.dataset}"
        )
    try:
        model = build_model(checkpoint.arch, checkpoint.classes, checkpoint.width)
    except UsageError as error:  # here it is not the user who asked for it
        raise FailureError(f"{path}: names a network that can't be built ({error})") from error
    load_weights(model, checkpoint.weights, str(path))
    broken = [name for name, tensor in checkpoint.weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise FailureError(f"{path}: its weights are not all finite ({broken[0]}). Train it again with a smaller --lr")
    return checkpoint, compute.place(model).eval()


def train_teacher(
    workspace: Workspace,
    dataset: str = "fashion-mnist",
    arch: str = "resnet20",
    width: int = 16,
    recipe: str = "fast",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    subset: str | None = None,
    name: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    source: str = "auto",
    compiled: bool = False,
    force: bool = False,
    progress: Progress = silent,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> dict[str, Any]:
    """Trains a network on the labels of the training split (or of a subset's rows) and keeps it as a teacher.

    A killed run resumes; a finished one with the same settings is returned as it is. `top1` is the last epoch's, on the
    test split. Raises UsageError or FailureError.
    """
    compute = compute_on(device, precision, threads)
    settled = resolve_recipe(recipe, epochs, batch_size, lr)
    checked_seed(seed)
    check_source(source)
    bundle, data = bundle_and_data(workspace, subset, dataset, data_dir, limit, progress)
    check_source(source, data.record.plan)
    settings = {
        "dataset": data.record.dataset,
        "data_fingerprint": data.record.train_fingerprint,
        "arch": arch,
        "width": width,
        "seed": seed,
        "subset": None if bundle is None else bundle.record.name,
        "rows_fingerprint": None if bundle is None else bundle.record.rows_fingerprint,
        "precision": compute.precision,
        "device": compute.device.type,
        "recipe": recipe,
        **asdict(settled),
        "milestones": list(settled.milestones),
        **compiled_settings(compiled),
    }
    name = checked_name(_default_name(data.record, settings) if name is None else name)
    folder = workspace.teacher(name)
    model = compute.place(build_model(arch, data.record.classes, width, seed))
    weights, finished = folder / "teacher.pt", folder / "train.json"
    with only_writer(weights):
        earlier = earlier_result(finished, settings, force)
        if earlier is not None:
            return earlier
        train, test = data.split("train"), data.split("test")
        rows_m = np.arange(len(train)) if bundle is None else bundle.rows_of(data.record)
        fed = open_source(train, rows_m, data.record, settled.batch_size, seed, compute, kind=source)
        if force:
            forget(folder)
        steps = settled.epochs * fed.batches_per_epoch
        trainer = Trainer(model, fed, label_loss, settled, steps, compute.device, compute.precision, compiled)
        history = run_to_end(trainer, folder, settings, progress, on_epoch)
        shown = (data.record.plan, data.record.mean, data.record.std)
        predicted_n = predict(model, test, *shown, compute.device, compute.precision)
        result = {
            "path": str(weights),
            "name": name,
            "top1": top1(predicted_n, test.labels_n),
            "rows": len(fed),
            "epochs": settled.epochs,
            **timing(history, fed.name, trainer.compile_s),
        }
        keep(finished, weights, model, data.record, settings, result, threads=compute.threads)
    return result


def _default_name(data: DataRecord, settings: dict[str, Any]) -> str:
    wide = "" if settings["width"] == 16 else f"-w{settings['width']}"
    part = "" if settings["subset"] is None else f"-on-{settings['subset']}"
    trained = trained_name(settings)
    return f"{data.key}-{settings['arch'].replace(':', '-')}{wide}{part}{trained}-s{settings['seed']}"
