"""kdtool train-teacher, and loading a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.errors import FailureError
from toolkit.core.files import remove_folder
from toolkit.core.hashing import checked_seed
from toolkit.core.imported import code_settings
from toolkit.core.locks import only_writer
from toolkit.core.memory import within_memory
from toolkit.core.processes import ALONE, Processes, in_processes
from toolkit.core.progress import Progress, silent
from toolkit.core.recipes import Recipe, recipe_settings, resolve_recipe
from toolkit.formats.beton import Beton
from toolkit.formats.dataset import DataRecord
from toolkit.formats.parts import Parts
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.pipeline.data import bundle_and_data
from toolkit.pipeline.foresee.foreseen import already_there, may_be_dry
from toolkit.pipeline.foresee.training import foreseen_teacher, teacher_rate
from toolkit.pipeline.imported_teachers import refuse_cached
from toolkit.pipeline.known_networks import new_network
from toolkit.pipeline.recording import Recording, check_recording
from toolkit.pipeline.run_folder import (
    ALREADY_TRAINED,
    compiled_settings,
    earlier_result,
    forget,
    images_before,
    keep_record,
    keep_weights,
    timing,
    trained_name,
)
from toolkit.pipeline.runtime import Compute, compute_on, processes_settings
from toolkit.pipeline.sources import check_single_rows, check_source, open_source
from toolkit.teacher.train import label_loss
from toolkit.training.evaluate import predict, top1
from toolkit.training.loop import EpochResult, Trainer
from toolkit.training.run import check_minutes, run_to_end


@dataclass(frozen=True)
class _Training:
    """One seed's training as it ended."""

    model: torch.nn.Module
    history: list[dict[str, Any]]
    top1: float
    source: str
    compile_s: float


@within_memory
@in_processes
@may_be_dry
def train_teacher(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    dataset: str = defaults.DATASET,
    arch: str = defaults.TEACHER_ARCH,
    width: int = defaults.WIDTH,
    recipe: str = defaults.RECIPE,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    label_smoothing: float | None = None,
    ema: float | None = None,
    seed: int = defaults.SEED,
    seeds: int = defaults.SEEDS,
    dynamics: bool = defaults.DYNAMICS,
    snapshots: str | None = None,
    subset: str | None = None,
    name: str | None = None,
    data_dir: Place | None = None,
    limit: int | None = None,
    device: str = defaults.DEVICE,
    precision: str = defaults.PRECISION,
    threads: int | None = None,
    source: str = defaults.SOURCE,
    compile: bool = False,
    memory_limit: str | int | None = None,
    force: bool = False,
    checkpoint_minutes: float = defaults.CHECKPOINT_MINUTES,
    dry_run: bool = False,
    processes: Processes = ALONE,
    progress: Progress = silent,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    on_note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains a network on the labels of the training split (or of a subset's rows) and keeps it as a teacher.

    With `dynamics`, what its training forward says of every row in every epoch is kept in dynamics.h5, and logits and
    features of all rows after the epochs of `snapshots` ("2,10"). `seeds` trainings, from `seed` on, are recorded; the
    first is the teacher. With `ema` the teacher is an average of the weights, and what is recorded is of the weights
    themselves. A killed run resumes, from its last epoch or `checkpoint_minutes`; on SIGINT and SIGTERM it saves and
    raises Stopped. Started by torchrun, several processes train it together. A finished run with the same settings is
    returned as it is. `top1` is the last epoch's, on the test split. With `dry_run` nothing is written or trained: the
    result is `Foreseen.told`. Raises UsageError or FailureError.
    """
    workspace, data_dir = Workspace.at(workspace), as_path(data_dir)
    compute = compute_on(device, precision, threads, processes)
    check_minutes(checkpoint_minutes)
    progress = progress if processes.first else silent
    settled = resolve_recipe(recipe, epochs, batch_size, lr, label_smoothing, ema)
    checked_seed(seed)
    checked_seed(seed + max(seeds, 1) - 1)
    check_source(source)
    shown_after = check_recording(dynamics, seeds, snapshots, settled.epochs)
    bundle, data = processes.first_before(
        lambda: bundle_and_data(workspace, subset, dataset, data_dir, limit, progress)
    )
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
        **recipe_settings(settled),
        **compiled_settings(compile),
        **processes_settings(compute),
        **code_settings(arch, "--arch"),
        **({"seeds": seeds} if seeds > 1 else {}),
        **({"snapshots": shown_after} if shown_after else {}),
    }
    name = checked_name(_default_name(data.record, settings) if name is None else name)
    folder = workspace.teacher(name)
    refuse_cached(workspace, name)
    train, test = data.split("train"), data.split("test")
    rows_m = np.arange(len(train)) if bundle is None else bundle.rows_of(data.record)
    probe = new_network(arch, width, seed, data.record, compute)  # refused, if it is, before anything is touched
    check_single_rows(probe, len(rows_m), settled.batch_size, data.record, processes.count)
    places = [folder, *(folder / f"seed-{seed + index}" for index in range(1, seeds))]
    if dry_run:
        if earlier_result(folder / "train.json", settings, force) is not None:
            return already_there(folder / "teacher.pt")
        loss = partial(label_loss, label_smoothing=settled.label_smoothing)
        trial = (train, rows_m, data.record, arch, width, settled, compute, source, loss)
        counts = _counts(len(rows_m), settled.epochs, seeds, len(shown_after), dynamics)
        shown = 0 if force else sum(map(images_before, places))
        return foreseen_teacher(
            folder / "teacher.pt", probe, shown, *counts, data.record.classes, teacher_rate(*trial), compile
        )
    unjoined = folder / "dynamics.h5.parts"
    with only_writer(folder / "teacher.pt", processes):
        earlier = processes.first_only(lambda: earlier_result(folder / "train.json", settings, force))
        if earlier is not None:
            if dynamics and not (folder / "dynamics.h5").is_file():
                raise FailureError(
                    f"{folder}: a finished training without its dynamics. Pass --force to train and record it again, "
                    "or --no-dynamics to take it as it is"
                )
            if processes.first:
                on_note(f"{folder}: {ALREADY_TRAINED}")
            return earlier
        if force:
            processes.first_only(lambda: _forget_all(folder, unjoined))
        recording = None
        if dynamics:
            recording = Recording(Parts(unjoined, settings), shown_after, data.record, train, rows_m, compute)
        job = _Job(data.record, train, test, rows_m, settled, settings, compute, source, compile, recording)
        heard = (progress, on_epoch, on_note, checkpoint_minutes)
        trainings = [_trained(job, index, places[index], *heard) for index in range(seeds)]
        return processes.first_only(lambda: _ended(job, folder, trainings, [unjoined, *places[1:]]))


def _counts(
    rows: int, epochs: int, seeds: int, snapshots: int, dynamics: bool
) -> tuple[int, int, tuple[int, int, int]]:
    """(images trained on, images shown to snapshots, what dynamics.h5 holds), of all seeds."""
    recorded = (rows, epochs * seeds, snapshots * seeds) if dynamics else (0, 0, 0)
    return rows * epochs * seeds, rows * snapshots * seeds, recorded


@dataclass(frozen=True)
class _Job:
    """What the trainings of one teacher share, but for their seeds."""

    data: DataRecord
    train: Beton
    test: Beton
    rows_m: np.ndarray
    recipe: Recipe
    settings: dict[str, Any]
    compute: Compute
    source: str
    compiled: bool
    recording: Recording | None


def _trained(
    job: _Job,
    index: int,
    place: Path,
    progress: Progress,
    on_epoch: Callable[[EpochResult], None],
    on_note: Callable[[str], None],
    checkpoint_minutes: float,
) -> _Training:
    """Trains with the `index`-th seed, from its last checkpoint in `place` on."""
    compute, recipe, processes = job.compute, job.recipe, job.compute.processes
    settings = {**job.settings, "seed": job.settings["seed"] + index}
    seed = settings["seed"]
    fed = open_source(job.train, job.rows_m, job.data, recipe.batch_size, seed, compute, kind=job.source)
    model = new_network(settings["arch"], settings["width"], seed, job.data, compute)
    watch = None if job.recording is None else job.recording.recorder(index, model, job.compiled, progress)
    observe = None if watch is None else watch.observe
    run = (recipe, recipe.epochs * len(fed), compute.device, compute.precision, job.compiled)
    loss = partial(label_loss, label_smoothing=recipe.label_smoothing)
    trainer = Trainer(model, fed, loss, *run, observe, seed, processes)
    history = run_to_end(trainer, place, settings, progress, on_epoch, watch, checkpoint_minutes, on_note=on_note)
    scored = processes.first_only(lambda: _top1(model, job.test, job.data, compute))
    return _Training(model, history, scored, fed.name, trainer.compile_s)


def _ended(job: _Job, folder: Path, trainings: list[_Training], leftover: list[Path]) -> dict[str, Any]:
    """Writes all that is kept of the teacher, whose first training it is; gives the result."""
    first, dynamics = trainings[0], folder / "dynamics.h5"
    result = {
        "path": str(folder / "teacher.pt"),
        "name": folder.name,
        "top1": first.top1,
        "rows": len(job.rows_m),
        "epochs": job.recipe.epochs,
        **timing(first.history, first.source, first.compile_s),
    }
    checkpoint = keep_weights(folder / "teacher.pt", first.model, job.data, job.settings, result)
    if job.recording is not None:
        top1s = [training.top1 for training in trainings]
        job.recording.join(dynamics, job.settings, folder.name, checkpoint.fingerprint, top1s)
        result["dynamics"] = str(dynamics)
    else:
        dynamics.unlink(missing_ok=True)  # of a teacher that is no more
    keep_record(folder / "train.json", job.settings, result, threads=job.compute.threads)
    for done in leftover:
        remove_folder(done)
    return result


def _forget_all(folder: Path, unjoined: Path) -> None:
    """What an unfinished training left: its state, those of its other seeds, and what was recorded."""
    forget(folder)
    for old in (unjoined, *folder.glob("seed-*")):
        remove_folder(old)


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
    name = f"{data.key}-{settings['arch']}{wide}{part}{trained}{seeds}{snapshots}-s{settings['seed']}"
    return name.replace(":", "-")
