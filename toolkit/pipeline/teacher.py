"""kdtool train-teacher, and loading a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import remove_folder
from toolkit.core.hashing import checked_seed
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.core.recipes import resolve_recipe
from toolkit.formats.beton import Beton
from toolkit.formats.checkpoint import Checkpoint, load_checkpoint
from toolkit.formats.dataset import DataRecord, PackedData
from toolkit.formats.parts import Parts
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.models.zoo import build_model, load_weights
from toolkit.pipeline.data import bundle_and_data
from toolkit.pipeline.recording import Recording, check_recording
from toolkit.pipeline.run_folder import (
    compiled_settings,
    earlier_result,
    forget,
    keep_record,
    keep_weights,
    timing,
    trained_name,
)
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


@dataclass(frozen=True)
class _Training:
    """One seed's training as it ended."""

    model: torch.nn.Module
    history: list[dict[str, Any]]
    top1: float
    source: str
    compile_s: float


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
    seeds: int = 1,
    dynamics: bool = True,
    snapshots: str | None = None,
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

    With `dynamics`, what its training forward says of every row in every epoch is kept in dynamics.h5, and logits and
    features of all rows after the epochs of `snapshots` ("2,10"). `seeds` trainings, from `seed` on, are recorded; the
    first is the teacher. A killed run resumes; a finished one with the same settings is returned as it is. `top1` is
    the last epoch's, on the test split. Raises UsageError or FailureError.
    """
    compute = compute_on(device, precision, threads)
    settled = resolve_recipe(recipe, epochs, batch_size, lr)
    checked_seed(seed)
    checked_seed(seed + max(seeds, 1) - 1)
    check_source(source)
    shown_after = check_recording(dynamics, seeds, snapshots, settled.epochs)
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
        **({"seeds": seeds} if seeds > 1 else {}),
        **({"snapshots": shown_after} if shown_after else {}),
    }
    name = checked_name(_default_name(data.record, settings) if name is None else name)
    folder = workspace.teacher(name)
    build_model(arch, data.record.classes, width, seed)  # what can't be built is refused before anything is touched
    weights, finished = folder / "teacher.pt", folder / "train.json"
    places = [folder, *(folder / f"seed-{seed + index}" for index in range(1, seeds))]
    unjoined = folder / "dynamics.h5.parts"
    with only_writer(weights):
        earlier = earlier_result(finished, settings, force)
        if earlier is not None:
            if dynamics and not (folder / "dynamics.h5").is_file():
                raise FailureError(
                    f"{folder}: a finished training without its dynamics. Pass --force to train and record it again, "
                    "or --no-dynamics to take it as it is"
                )
            return earlier
        if force:
            forget(folder)
            for old in (unjoined, *folder.glob("seed-*")):
                remove_folder(old)
        train, test = data.split("train"), data.split("test")
        rows_m = np.arange(len(train)) if bundle is None else bundle.rows_of(data.record)
        recording = None
        if dynamics:
            recording = Recording(Parts(unjoined, settings), shown_after, data.record, train, rows_m, compute)

        def trained(index: int) -> _Training:
            own = {**settings, "seed": seed + index}
            fed = open_source(train, rows_m, data.record, settled.batch_size, own["seed"], compute, kind=source)
            model = compute.place(build_model(arch, data.record.classes, width, own["seed"]))
            watch = None if recording is None else recording.recorder(index, model, compiled, progress)
            observe = None if watch is None else watch.observe
            steps, on = settled.epochs * fed.batches_per_epoch, (compute.device, compute.precision)
            trainer = Trainer(model, fed, label_loss, settled, steps, *on, compiled, observe)
            history = run_to_end(trainer, places[index], own, progress, on_epoch, watch)
            return _Training(model, history, _top1(model, test, data.record, compute), fed.name, trainer.compile_s)

        trainings = [trained(index) for index in range(seeds)]
        first = trainings[0]
        result = {
            "path": str(weights),
            "name": name,
            "top1": first.top1,
            "rows": len(rows_m),
            "epochs": settled.epochs,
            **timing(first.history, first.source, first.compile_s),
        }
        checkpoint = keep_weights(weights, first.model, data.record, settings, result)
        if recording is not None:
            top1s = [training.top1 for training in trainings]
            recording.join(folder / "dynamics.h5", settings, name, checkpoint.fingerprint, top1s)
            result["dynamics"] = str(folder / "dynamics.h5")
        else:
            (folder / "dynamics.h5").unlink(missing_ok=True)  # of a teacher that is no more
        keep_record(finished, settings, result, threads=compute.threads)
        for done in (unjoined, *places[1:]):
            remove_folder(done)
    return result


def _top1(model: torch.nn.Module, test: Beton, record: DataRecord, compute: Compute) -> float:
    """On the test split, in percent."""
    predicted_n = predict(model, test, record.plan, record.mean, record.std, compute.device, compute.precision)
    return top1(predicted_n, test.labels_n)


def _default_name(data: DataRecord, settings: dict[str, Any]) -> str:
    wide = "" if settings["width"] == 16 else f"-w{settings['width']}"
    part = "" if settings["subset"] is None else f"-on-{settings['subset']}"
    trained = trained_name(settings)
    seeds = f"-seeds{settings['seeds']}" if "seeds" in settings else ""
    snapshots = f"-snap{'-'.join(map(str, settings['snapshots']))}" if "snapshots" in settings else ""
    arch = settings["arch"].replace(":", "-")
    return f"{data.key}-{arch}{wide}{part}{trained}{seeds}{snapshots}-s{settings['seed']}"
