"""kdtool train-teacher, and finding a teacher by name or file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, write_json
from toolkit.core.hashing import checked_seed
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.core.recipes import resolve_recipe
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.bundle import open_bundle
from toolkit.formats.checkpoint import Checkpoint, save_checkpoint
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.models.zoo import build_model
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.runtime import compute_on
from toolkit.teacher.train import label_loss
from toolkit.training.evaluate import predict, top1
from toolkit.training.loop import EpochResult, Trainer
from toolkit.training.resident import ResidentSource
from toolkit.training.run import differing, run_to_end

PRETRAINED_FOLDER = Path(__file__).parent.parent / "pretrained"
PRETRAINED = {"fashion-mnist": "fashion-mnist-resnet20", "digits": "digits-resnet8"}


def find_teacher(workspace: Workspace, teacher: str | None, dataset: str) -> tuple[str, Path]:
    """(name, checkpoint) of a teacher: a file, one trained in the workspace, a packaged one, or the data set's default.

    Raises FailureError that says what to run when there is none.
    """
    if teacher is None:
        if dataset not in PRETRAINED:
            raise FailureError(
                f"no teacher for {dataset} comes with kdtool. Run: kdtool train-teacher --dataset {dataset}, "
                "then pass its name as --teacher"
            )
        teacher = PRETRAINED[dataset]
    if Path(teacher).is_file():
        file = Path(teacher)
        return (file.parent.name if file.stem in ("teacher", "student") else file.stem), file
    for path in (workspace.teacher(teacher) / "teacher.pt", PRETRAINED_FOLDER / f"{teacher}.pt"):
        if path.is_file():
            return teacher, path
    trained = sorted(path.parent.name for path in workspace.root.glob("teachers/*/teacher.pt"))
    known = ", ".join([*trained, *PRETRAINED.values()])
    raise FailureError(
        f"--teacher {teacher}: neither a file nor a teacher known here ({known}). "
        f"Run: kdtool train-teacher --dataset {dataset} --name {teacher}"
    )


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
    data = ensure_packed(workspace, dataset, data_dir, limit, progress=progress)
    record = data.record
    wide = "" if width == 16 else f"-w{width}"
    part = "" if subset is None else f"-on-{workspace.subset(subset).name}"
    default = f"{record.key}-{arch.replace(':', '-')}{wide}{part}-s{seed}"
    name = checked_name(default if name is None else name)
    folder = workspace.teacher(name)
    settings = {
        "dataset": dataset,
        "data_fingerprint": record.train_fingerprint,
        "arch": arch,
        "width": width,
        "seed": seed,
        "subset": subset,
        "precision": compute.precision,
        "device": compute.device.type,
        **asdict(settled),
        "milestones": list(settled.milestones),
    }
    finished = folder / "train.json"
    with only_writer(folder / "teacher.pt"):
        if finished.is_file() and not force:
            return unchanged(read_json(finished, "the same command with --force"), settings, folder)
        train, test = data.split("train"), data.split("test")
        rows = None if subset is None else open_bundle(workspace.subset(subset)).rows_of(record)
        source = ResidentSource(
            train.frames(rows),
            train.labels_n if rows is None else train.labels_n[rows],
            train.rows_n if rows is None else train.rows_n[rows],
            record.plan,
            record.mean,
            record.std,
            settled.batch_size,
            seed,
            compute.device,
            compute.dtype,
        )
        model = compute.place(build_model(arch, record.classes, width, seed))
        if force:  # only now that nothing is wrong with what was asked for
            for file in (finished, folder / "teacher.pt", folder / "checkpoint.pt"):
                file.unlink(missing_ok=True)
        steps = settled.epochs * source.batches_per_epoch
        trainer = Trainer(model, source, label_loss, settled, steps, compute.device, compute.precision)
        history = run_to_end(trainer, folder, settings, progress, on_epoch)
        accuracy = top1(
            predict(model, test.frames(), record.mean, record.std, compute.device, compute.precision), test.labels_n
        )
        save_checkpoint(
            folder / "teacher.pt",
            Checkpoint(
                arch=arch,
                width=width,
                classes=record.classes,
                dataset=dataset,
                data_fingerprint=record.train_fingerprint,
                mean=record.mean,
                std=record.std,
                seed=seed,
                top1=accuracy,
                settings={**settings, "command": command_line()},
                versions=versions(),
                weights=model.state_dict(),
            ),
        )
        result = {
            "path": str(folder / "teacher.pt"),
            "name": name,
            "top1": accuracy,
            "rows": len(source),
            "epochs": settled.epochs,
            "seconds": sum(epoch["elapsed_s"] for epoch in history),
        }
        write_json(finished, {"result": result, "settings": settings, "created": now(), "versions": versions()})
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    return result


def unchanged(record: dict[str, Any], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The result of a finished run. Raises FailureError when its settings were others, naming them."""
    if not all(isinstance(record.get(part), dict) for part in ("settings", "result")) or "top1" not in record["result"]:
        raise FailureError(f"{folder}: the record of its run is not whole. Pass --force to replace it")
    difference = differing(record["settings"], settings)
    if difference:
        raise FailureError(
            f"{folder}: a finished run with other settings ({difference}). "
            "Give this one another --name, or pass --force to replace it"
        )
    return record["result"]
