"""The runs of a workspace as rows: of each what it was asked for and what it came to, as run.json says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError, did_you_mean
from toolkit.core.files import read_json
from toolkit.core.locks import is_being_written
from toolkit.formats.workspace import IMPORTED_SCORES, Workspace
from toolkit.pipeline.sweep.table import read_lines, sweep_folder
from toolkit.report.runs import Row

# What decides a run, in the order that columns are shown in; the first part is of its subset.
_OF_WAY = ("method", "score", "chosen_by", "center", "drop_hardest", "balance", "nested", "min_per_class")
OF_SUBSET = ("frac", *_OF_WAY, "subset_seed")
_OF_TEACHER = ("teacher", "loss", "beta", "alpha", "temperature", "match", "views")
_OF_TRAINING = (
    *("arch", "width", "weights", "recipe", "epochs", "batch_size", "lr", "label_smoothing", "ema"),
    *("precision", "device", "compiled"),
)
SETTINGS = ("dataset", *OF_SUBSET, *_OF_TEACHER, "alpha_asked", *_OF_TRAINING, "processes", "seed")
_BESIDE = ("threads", "student_images", "teacher_images_behind_targets")  # neither settings nor results


def known_runs(workspace: Workspace, sweep: str | None = None) -> tuple[list[Row], list[str], list[str]]:
    """The rows of all runs, or one sweep's; which runs have a record that cannot be read, and why; and what else is
    missing. Raises UsageError, and FailureError where there is no such sweep."""
    names = None if sweep is None else _names_of(workspace, sweep)
    return *_read(workspace, names), [] if names is None else _not_here(workspace, names)


def _names_of(workspace: Workspace, sweep: str) -> set[str]:
    """The folders of a sweep's runs, of all its shards."""
    tables = sorted(sweep_folder(workspace, sweep).glob("results*.jsonl"))
    if not tables:
        known = sorted(path.parent.name for path in workspace.root.glob("sweeps/*/sweep.yaml"))
        raise FailureError(
            f"{sweep_folder(workspace, sweep)}: no results of a sweep; there are "
            f"{', '.join(known) or 'none yet'}. {did_you_mean(sweep, known)}Run: kdtool sweep --name {sweep}"
        )
    return {line["run"] for path in tables for line in read_lines(path) if "run" in line}


def _read(workspace: Workspace, names: set[str] | None) -> tuple[list[Row], list[str]]:
    rows, skipped = [], []
    datasets = _data_sets(workspace)
    for folder in sorted(workspace.root.glob("runs/*/")):
        if names is not None and folder.name not in names:
            continue
        try:
            row = _row(folder, datasets)
        except FailureError as error:
            skipped.append(str(error))
            continue
        if row is not None:
            rows.append(row)
    return rows, skipped


def _data_sets(workspace: Workspace) -> dict[str, str]:
    """The keys of the packed data, by their fingerprint: a run records the fingerprint alone."""
    found = {}
    for path in workspace.root.glob("data/*/data.json"):
        try:
            record = read_json(path, "kdtool pack")
        except FailureError:  # what it is called is told by nothing else
            continue
        found[str(record.get("train_fingerprint"))] = path.parent.name
    return found


def _row(folder: Path, datasets: dict[str, str]) -> Row | None:
    """A run's row; None for a folder that holds none. Raises FailureError for a record that is not whole."""
    path = folder / "run.json"
    if not path.is_file():
        metrics = folder / "metrics.jsonl"
        epochs = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
        begun = epochs or (folder / "checkpoint.pt").is_file()
        running = is_being_written(folder / "student.pt")
        state = f"running, epoch {epochs + 1}" if running else f"stopped after epoch {epochs}"
        return {"name": folder.name, "state": state, "top1": None} if begun else None
    record = read_json(path, "kdtool distill --force, with its settings")
    row = row_of(folder.name, record, datasets)
    if row is None:
        raise FailureError(f"{path}: not the record of a run. Train it again: kdtool distill --force")
    return row


def row_of(name: str, record: Row, datasets: dict[str, str]) -> Row | None:
    """The row of a finished run, of what run.json says; None where that is no record of a run. `datasets` names data
    by their fingerprint."""
    settings, result, subset = record.get("settings"), record.get("result"), record.get("subset")
    if not (isinstance(settings, dict) and isinstance(result, dict) and isinstance(result.get("top1"), (int, float))):
        return None
    chosen = subset if isinstance(subset, dict) else {}
    row = {
        "name": name,
        "state": "done",
        "dataset": datasets.get(str(settings.get("data_fingerprint")), settings.get("data_fingerprint")),
        **_of_subset(chosen),
        **{column: settings.get(column) for column in (*_OF_TEACHER, *_OF_TRAINING, "seed")},
        "loss": settings.get("loss", "kd") if settings.get("teacher") is not None else None,
        # what a run without them has none of: 0 is off, and where the labels are not looked at there is none
        "label_smoothing": None if settings.get("alpha") == 1 else settings.get("label_smoothing", 0.0),
        "ema": settings.get("ema", 0.0),
        "batchnorm_decay": settings.get("batchnorm_decay", True),
        "weights": "weights" in settings,
        "compiled": bool(settings.get("compiled")),
        "processes": settings.get("processes", 1),
        "alpha_asked": record.get("alpha_asked"),  # 0.5 and later
        "alpha_found": result.get("alpha") if settings.get("alpha") == "search" else None,
        "created": record.get("created"),
        "rows": chosen.get("rows"),
        **{column: record.get(column) for column in _BESIDE},
    }
    return {**row, **{name: value for name, value in {**settings, **result}.items() if name not in row}}


def _of_subset(chosen: dict[str, Any]) -> Row:
    renamed = {"frac": "fraction", "subset_seed": "seed"}
    found = {column: chosen.get(renamed.get(column, column)) for column in OF_SUBSET}
    score, _, of = str(chosen.get("scored_by") or "").partition(" of ")
    teacher = chosen.get("features_of") or (of if of != IMPORTED_SCORES else None)
    return {**found, "score": score or None, "chosen_by": teacher or None}


def _not_here(workspace: Workspace, names: set[str]) -> list[str]:
    missing = sorted(name for name in names if not (workspace.run(name) / "run.json").is_file())
    return [
        f"{len(missing)} of the sweep's {len(names)} runs are not here ({name}{', …' if missing[1:] else ''}). Copy "
        "them from where they were trained, or run the sweep again"
        for name in missing[:1]
    ]
