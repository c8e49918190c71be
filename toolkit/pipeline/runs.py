"""kdtool runs: what the runs of a workspace were asked for and came to. Without torch: run.json says it all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import read_json, whole_file
from toolkit.formats.workspace import IMPORTED_SCORES, Workspace
from toolkit.pipeline.sweep.table import read_lines, sweep_folder
from toolkit.report.runs import (
    RESULTS,
    Condition,
    Row,
    average_cells,
    average_header,
    averages,
    check_columns,
    compared,
    differing,
    groups,
    in_order,
    ordered_by,
    shown,
    subset_seeds,
    whole_epochs,
)

# What decides a run, in the order that columns are shown in; the first part is of its subset.
_OF_WAY = ("method", "score", "chosen_by", "center", "drop_hardest", "balance", "nested", "min_per_class")
_OF_SUBSET = ("frac", *_OF_WAY, "subset_seed")
_OF_TEACHER = ("teacher", "loss", "beta", "alpha", "temperature", "match", "views")
_OF_TRAINING = ("arch", "width", "weights", "recipe", "epochs", "batch_size", "lr", "precision", "device", "compiled")
SETTINGS = ("dataset", *_OF_SUBSET, *_OF_TEACHER, "alpha_asked", *_OF_TRAINING, "processes", "seed")
_ALPHAS = ("alpha", "alpha_asked")  # one setting: what was asked for, which may be a word, and the number it came to
_BESIDE = ("threads", "student_images", "teacher_images_behind_targets")  # neither settings nor results
# What a run and its partner must agree in: also what follows from the recipe. How long they train, see `compared`.
_RECIPE = ("schedule", "momentum", "weight_decay", "nesterov", "warmup", "milestones")
_PAIRED = [column for column in (*SETTINGS, "teacher_fingerprint", *_RECIPE) if column not in ("epochs", "alpha_asked")]
_BUT_SEEDS = [column for column in (*_PAIRED, "alpha_asked", "epochs", "iterations") if not column.endswith("seed")]
_SAME = (*_PAIRED, "alpha_asked", "epochs", "iterations", "rows_fingerprint", "targets_fingerprint", "data_fingerprint")


def runs(
    workspace: Workspace,
    where: Sequence[str] = (),
    sweep: str | None = None,
    by: str | None = None,
    against: Sequence[str] = (),
    sort: str | None = None,
    columns: str | None = None,
    csv_file: Path | None = None,
) -> dict[str, Any]:
    """The workspace's runs, or one sweep's, of which all of `where` is so: as `rows` of all that is known, and as
    `header` and `cells` of a table of the `columns` named (default: those that differ).

    `by` names columns, and averages over runs that agree in them; `against` (conditions) also compares each run with
    the matching one of which they are so, in pairs that agree in all other settings; `where` says nothing of the
    partners in a column that `against` names. Both leave unfinished runs out. `sort` names a column, with a `-` before
    it for downwards; averages stand by the columns of `by` without it. `skipped` says which runs have a record that
    cannot be read, and why; `notes` what else is missing. Raises UsageError, and FailureError where there is no such
    sweep.
    """
    conditions = [Condition.parse(text, "--where") for text in where]
    baseline = [Condition.parse(text, "--against") for text in against]
    found, skipped, notes = known_runs(workspace, sweep)
    check_columns([condition.column for condition in conditions], found, "--where")
    check_columns([condition.column for condition in baseline], found, "--against")
    rows = [row for row in found if all(condition.holds(row) for condition in conditions)]
    count = len(rows)
    if by is not None or baseline:
        if columns is not None:
            raise UsageError("--columns has no meaning with --by or --against: these say what is shown")
        named, averaged, more = means(found, conditions, baseline, None if by is None else _named(by, "--by", found))
        rows, header = _sorted(averaged, sort), average_header(named, baseline)
        cells, notes = [average_cells(row, named) for row in rows], [*notes, *more]
    else:
        rows = _sorted(rows, sort or "name")
        header = _columns(rows, columns)
        cells = [[shown(row.get(column), column) for column in header] for row in rows]
    if csv_file is not None:
        write_csv(csv_file, rows)
    return {"count": count, "rows": rows, "header": header, "cells": cells, "skipped": skipped, "notes": notes}


def known_runs(workspace: Workspace, sweep: str | None = None) -> tuple[list[Row], list[str], list[str]]:
    """The rows of all runs, or one sweep's; which runs have a record that cannot be read, and why; and what else is
    missing. Raises UsageError, and FailureError where there is no such sweep."""
    names = None if sweep is None else _names_of(workspace, sweep)
    return *_read(workspace, names), [] if names is None else _not_here(workspace, names)


def means(
    found: list[Row],
    conditions: list[Condition],
    baseline: list[Condition],
    named: list[str] | None = None,
    option: str = "--against ",
) -> tuple[list[str], list[Row], list[str]]:
    """The columns averaged by (default: the settings that differ), the averages over those finished runs of which all
    `conditions` hold, in the columns' order, and what is to be said of them; compared with the runs of which `baseline`
    holds, where that says anything; a note of that begins with `option`. A run that was done twice counts once. Raises
    UsageError."""
    found, notes = once([dict(row) for row in found])
    done = [row for row in found if row["state"] == "done" and all(one.holds(row) for one in conditions)]
    by = list(named or [])
    if named is None:  # of a subset's seed what says more than the run's own
        named = _open(done)
        by = ["_subset_seed" if column == "subset_seed" else column for column in named]
        for row, seed in zip(done, subset_seeds(done, _BUT_SEEDS), strict=True):
            row["_subset_seed"] = seed
    if not baseline:
        return named, _renamed(ordered_by(averages(done, by), by)), notes
    partners, settings = _partners(found, conditions, baseline)
    averaged = _renamed(ordered_by(compared(done, by, baseline, settings, partners), by))
    said = " and ".join(f"{one.column}{one.sign}{shown(one.value) or 'none'}" for one in baseline)
    return named, averaged, [*notes, *_no_pairs(averaged, f"{option}{said}")]


def _renamed(averaged: list[Row]) -> list[Row]:
    return [{column.removeprefix("_"): value for column, value in row.items()} for row in averaged]


def once(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows without runs that are the same as a newer one in all settings and the seed, such as 3 epochs and as many
    steps under another name; and what is to be said of that. They are no two repeats: chance was the same."""
    newest: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: str(row.get("created"))):
        key = repr([row.get(column) for column in _SAME]) if row["state"] == "done" else row["name"]
        newest[key] = row
    kept = {id(row) for row in newest.values()}
    left = [str(row["name"]) for row in rows if id(row) not in kept]
    several = f"{len(left)} runs ({left[0]}, …) are" if left[1:] else f"the run {left[0]} is" if left else ""
    notes = [f"{several} the same as another in all settings and the seed: such count once"] if left else []
    return [row for row in rows if id(row) in kept], notes


def _partners(found: list[Row], conditions: list[Condition], baseline: list[Condition]) -> tuple[list[Row], list[str]]:
    """The runs among which partners are looked for, and the settings that they must share: neither is bound by what
    `baseline` names. What has no meaning in a partner does not rule it out."""
    freed = {one.column for one in baseline}
    freed |= set(_ALPHAS) if freed & set(_ALPHAS) else set()
    kept = [one for one in conditions if one.column not in freed]
    done = [row for row in found if row["state"] == "done"]
    partners = [row for row in done if all(one.holds(row) or row.get(one.column) is None for one in kept)]
    # one name may have come to stand for other rows; where the subset is what is compared, they must differ
    same_rows = [] if freed & {"dataset", *_OF_SUBSET} else ["rows_fingerprint"]
    return partners, [*(column for column in _PAIRED if column not in freed), *same_rows]


def _no_pairs(averaged: list[Row], said: str) -> list[str]:
    if not averaged or any(row["pairs"] for row in averaged):
        return []
    return [f"{said}: nothing to compare, as no finished run of which that is so agrees with another in the rest"]


def _not_here(workspace: Workspace, names: set[str]) -> list[str]:
    missing = sorted(name for name in names if not (workspace.run(name) / "run.json").is_file())
    return [
        f"{len(missing)} of the sweep's {len(names)} runs are not here ({name}{', …' if missing[1:] else ''}). Copy "
        "them from where they were trained, or run the sweep again"
        for name in missing[:1]
    ]


def _open(done: list[Row]) -> list[str]:
    """The settings that are not the same in all runs, but for the seed. What alpha was asked for counts where it was
    by a word: then several numbers are one setting. Of a run that ended within an epoch the iterations count too."""
    named = [column for column in _differing(done) if column not in ("seed", *RESULTS)]
    by_steps = _other_steps(done, named) or not all(map(whole_epochs, done))
    return [*named, *(["iterations"] if by_steps else [])]


def _other_steps(done: list[Row], named: list[str]) -> bool:
    """Whether runs that agree in the columns `named` were trained for different numbers of steps: some were stopped
    within an epoch."""
    return any(differing(members, ["iterations"]) for members in groups(done, named).values())


def _differing(done: list[Row]) -> list[str]:
    """The settings and results that are not the same in all runs; of the subset's seed only where it says more."""
    of_its_own = any(row["subset_seed"] not in (None, row["seed"]) for row in done)
    by_word = any(isinstance(row["alpha_asked"], str) for row in done)
    left_out = {"subset_seed": not of_its_own, "alpha_asked": not by_word}
    return [column for column in differing(done, [*SETTINGS, *RESULTS]) if not left_out.get(column)]


def _sorted(rows: list[Row], sort: str | None) -> list[Row]:
    if sort is None:
        return rows
    column = sort.removeprefix("-")
    check_columns([column], rows, "--sort")
    return in_order(rows, column, downwards=sort.startswith("-"))


def _columns(rows: list[Row], columns: str | None) -> list[str]:
    if columns is not None:
        return _named(columns, "--columns", rows)
    done = [row for row in rows if row["state"] == "done"]  # of others no settings are known
    state = [] if len(done) == len(rows) else ["state"]
    return list(dict.fromkeys(["name", *state, *_differing(done), "top1"]))


def _named(columns: str, option: str, rows: list[Row]) -> list[str]:
    names = [name.strip().replace("-", "_") for name in columns.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{option} '{columns}': expected columns, such as alpha,method")
    check_columns(names, rows, option)
    return list(dict.fromkeys(names))


def _names_of(workspace: Workspace, sweep: str) -> set[str]:
    """The folders of a sweep's runs, of all its shards."""
    tables = sorted(sweep_folder(workspace, sweep).glob("results*.jsonl"))
    if not tables:
        known = sorted(path.parent.name for path in workspace.root.glob("sweeps/*/sweep.yaml"))
        raise FailureError(
            f"{sweep_folder(workspace, sweep)}: no results of a sweep; there are "
            f"{', '.join(known) or 'none yet'}. Run: kdtool sweep --name {sweep}"
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
        return {"name": folder.name, "state": f"epoch {epochs}", "top1": None} if begun else None
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
    found = {column: chosen.get(renamed.get(column, column)) for column in _OF_SUBSET}
    score, _, of = str(chosen.get("scored_by") or "").partition(" of ")
    teacher = chosen.get("features_of") or (of if of != IMPORTED_SCORES else None)
    return {**found, "score": score or None, "chosen_by": teacher or None}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every column that a row has, a line for each row."""
    text = io.StringIO()
    header = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({column: _plain(value) for column, value in row.items()})
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue())


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value
