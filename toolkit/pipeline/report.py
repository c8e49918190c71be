"""kdtool report: what runs came to, as tables, pictures and one page. Without torch: records say it all."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path, as_paths, several
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import read_json, whole_folder
from toolkit.core.versions import __version__, now
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.pipeline.report_rows import given_rows, with_costs, with_history
from toolkit.pipeline.run_means import means, once
from toolkit.pipeline.run_rows import known_runs
from toolkit.pipeline.runs import write_csv
from toolkit.report.accuracy import NO_KD, accuracy_plots
from toolkit.report.costs import NOT_COUNTED, cost_plots
from toolkit.report.learning import learning_plots
from toolkit.report.page import Page, Picture, Section, html_page, picture_of
from toolkit.report.panels import HELD, prepared
from toolkit.report.plots import Plot, table_of
from toolkit.report.runs import Condition, Row, average_cells, average_header, check_columns, differing, shown

RECORD = "report.json"
_RAN = {  # what the header of a page tells of all runs
    "data sets": "dataset_is",
    "students": "arch",
    "teachers": "teacher_is",
    "seeds": "seed",
    "devices": "device",
    "precision": "precision",
    "threads": "threads",
}
_SIGNS = {"=": "is", "!=": "not", ">=": "from", "<=": "to", ">": "above", "<": "below"}  # in a folder's name
_ARTIFACTS = ("data", "teachers", "scores", "subsets", "runs", "sweeps")
_READ = (
    "Accuracy on the test split after the last epoch, in percent: mean ± standard deviation over n runs. The "
    "difference is of pairs that agree in seed and all settings but KD, with its 95 % interval by Student's t."
)


Table = tuple[list[str], list[list[str]]]  # a header, and lines of cells


@dataclass(frozen=True)
class _Read:
    """Where the runs are from, in words, and what is known of them."""

    title: str
    folder: str
    rows: list[Row]
    skipped: list[str]
    notes: list[str]
    machines: list[dict[str, Any]]


def report(
    files: Place | Sequence[Place] = (),
    *,
    workspace: Workspace | Place = defaults.WORKSPACE,
    sweep: str | None = None,
    where: str | Sequence[str] = (),
    out: Place | None = None,
) -> dict[str, Any]:
    """Writes the folder `out` (default: reports/<sweep, or files, or runs, and `where`> of the workspace): report.html,
    a PNG file of every picture, a CSV file of every table, and report.json, which names them.

    Of the workspace's runs, or one sweep's, as `kdtool runs` sees them; or of `files` alone, of lines as a sweep's
    results.jsonl has. `where` keeps the runs of which all of it holds. An older report in `out` is replaced as a whole.
    Gives the main table (`header`, `cells`), `drawn`, `not_drawn` (a reason for each), `skipped` and `notes`. Raises
    UsageError or FailureError, also where there is no finished run.
    """
    workspace, out, where = Workspace.at(workspace), as_path(out), several(where)
    files = as_paths(files)
    if files and sweep is not None:
        raise UsageError("--sweep names runs of the workspace, FILES are read alone. Leave one of them out")
    conditions = [Condition.parse(text, "--where") for text in where]
    read = _of_files(files) if files else _of_workspace(workspace, sweep)
    check_columns([condition.column for condition in conditions], read.rows, "--where")
    found, again = once(read.rows)
    rows = [row for row in found if all(condition.holds(row) for condition in conditions)]
    done = [row for row in rows if row["state"] == "done"]
    if not done:
        raise FailureError(_no_runs(read, where))
    folder = workspace.root / "reports" / _folder(read, conditions) if out is None else out
    _check_out(workspace, folder)
    told = with_costs(done, None if files else workspace)
    drawn = _drawn(workspace if not files else None, told)
    named, averaged, notes = _means(found, conditions)
    header = average_header(named, [NO_KD] if averaged and "pairs" in averaged[0] else [])
    cells = [average_cells(row, named) for row in averaged]
    left = len(rows) - len(done)
    unfinished = [f"{left} unfinished run{'s are' if left > 1 else ' is'} left out"] if left else []
    notes = [*read.notes, *again, *notes, *drawn.notes, *unfinished]
    page = Page(
        read.title,
        _facts(read, drawn.rows, where),
        header,
        cells,
        _READ,
        drawn.sections,
        drawn.not_drawn,
        NOT_COUNTED,
        read.skipped,
        notes,
    )
    return _written(folder, page, len(done), averaged, told, drawn.tables)


def _written(
    folder: Path, page: Page, count: int, averaged: list[Row], told: list[Row], tables: dict[str, Table]
) -> dict[str, Any]:
    """Writes the whole folder, or none of it; gives what its report.json tells, and the page's path."""
    pictures = [picture for section in page.sections for picture in section.pictures]
    with whole_folder(folder) as temporary:
        write_csv(temporary / "results.csv", averaged)
        write_csv(temporary / "runs.csv", told)
        for name, table in tables.items():
            _write_table(temporary / name, *table)
        for picture in pictures:
            (temporary / picture.file).write_bytes(picture.png)
        (temporary / "report.html").write_text(html_page(page), encoding="utf-8")
        record = {
            "title": page.title,
            "count": count,
            "header": page.main_header,
            "cells": page.main_cells,
            "drawn": [picture.file for picture in pictures],
            "not_drawn": dict(page.not_drawn),
            "skipped": page.skipped,
            "notes": page.notes,
            "files": sorted([*(path.name for path in temporary.iterdir()), RECORD]),
        }
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return {"path": str(folder / "report.html"), **record}


def _of_workspace(workspace: Workspace, sweep: str | None) -> _Read:
    rows, skipped, notes = known_runs(workspace, sweep)
    title = f"Runs of {workspace.root}" if sweep is None else f"Sweep {sweep}"
    return _Read(
        title, "runs" if sweep is None else "sweep-runs" if sweep == "runs" else sweep, rows, skipped, notes, []
    )


def _of_files(files: Sequence[Path]) -> _Read:
    rows, notes, machines = given_rows(files)
    stems = [path.parent.name if path.stem.startswith("results") and path.parent.name else path.stem for path in files]
    name = "-".join(dict.fromkeys(stems))[:80].strip(" .-") or "files"
    names = [path.name for path in files]
    of = ", ".join(names) if len(names) <= 3 else f"{len(names)} files, {names[0]} to {names[-1]}"
    return _Read(f"Runs of {of}", checked_name(name), rows, [], notes, machines)


def _folder(read: _Read, conditions: Sequence[Condition]) -> str:
    """A report of some runs does not take the place of that of all."""
    said = [f"{one.column}-{_SIGNS[one.sign]}-{shown(one.value) or 'none'}" for one in conditions]
    return checked_name("-".join([read.folder, *(re.sub(r"[^\w.]+", "-", one).strip("-.") for one in said)])[:120])


def _no_runs(read: _Read, where: Sequence[str]) -> str:
    of = f"{read.title}: no finished run" + (f" of which {' and '.join(where)} holds" if where else "")
    more = f" ({len(read.skipped)} records cannot be read: {read.skipped[0]})" if read.skipped else ""
    return f"{of}{more}. Run: kdtool distill or kdtool sweep; kdtool runs lists what there is"


def _check_out(workspace: Workspace, out: Path) -> None:
    """Raises UsageError where a report would replace anything but a report: it takes the place of its folder."""
    for name in _ARTIFACTS:
        if out.resolve().is_relative_to((workspace.root / name).resolve()):
            raise UsageError(f"--out {out}: {workspace.root / name} holds artifacts, not reports. Choose another place")
    file = next((above for above in (out, *out.parents) if above.is_file()), None)
    if file is not None:
        raise UsageError(f"--out {out}: {file} is a file. Name a folder")
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    ours = read_json(out / RECORD, "kdtool report").get("files") if RECORD in there else []
    others = [name for name in there if not isinstance(ours, list) or name not in ours]
    if others:
        raise UsageError(
            f"--out {out}: holds {others[0]}, which is no part of a report, and a report replaces its folder. "
            "Name a new or an empty folder"
        )


@dataclass(frozen=True)
class _Drawn:
    sections: list[Section]
    tables: dict[str, Table]
    not_drawn: list[tuple[str, str]]
    notes: list[str]
    rows: list[Row]


def _drawn(workspace: Workspace | None, told: list[Row]) -> _Drawn:
    """Every picture; contact sheets and learning curves from a workspace's folders."""
    from toolkit.report.drawing import palette, picture

    rows = prepared([row if workspace is None else with_history(row, workspace) for row in told])
    other = differing(rows, HELD)
    made = [*accuracy_plots(rows, other), *cost_plots(rows), *learning_plots(rows, other)]
    # of all runs, whatever is drawn of them: a colour means the same in every report of the same runs
    ways = [("way", row["way"]) for row in rows]
    shown = [line.hue for one in made for panel in one.panels for line in panel.lines]
    colours = palette([*ways, *shown])
    sections, tables = [], {}
    for one in made:
        if not one.panels:
            continue
        pictures = [
            picture_of(panel, f"{one.name}-{number}.png", picture(panel, colours))
            for number, panel in enumerate(one.panels, start=1)
        ]
        tables[f"{one.name}.csv"] = table_of([*one.panels, *one.left])
        sections.append(Section(one.title, one.read, tuple(pictures), f"{one.name}.csv", _left(one)))
    not_drawn = [(one.title, one.why_not) for one in made if not one.panels]
    sheets, notes = _sheets(workspace, rows)
    if sheets:
        read = "A few images of each class, drawn at random from what each way of choosing kept."
        sections.append(Section("What was kept", read, tuple(sheets)))
    else:
        not_drawn.append(("What was kept", notes[0]))
    return _Drawn(sections, tables, not_drawn, notes if sheets else notes[1:], rows)


def _left(one: Plot) -> str:
    count = len(one.left)
    return f"{count} more panels, of fewer runs, are in the CSV file alone; --where draws them." if count else ""


def _sheets(workspace: Workspace | None, rows: list[Row]) -> tuple[list[Picture], list[str]]:
    """Contact sheets, or why there are none."""
    if workspace is None:
        return [], ["needs the workspace, where the packed data and the subsets are: result files hold no images"]
    if not any(row["frac"] is not None and row["frac"] < 1 for row in rows):
        return [], ["needs a run on a part of the data"]
    from toolkit.pipeline.report_sheets import kept_sheets

    sheets, missing = kept_sheets(workspace, rows)
    return sheets, missing if sheets or missing else ["no subset of these runs is here"]


def _means(rows: list[Row], conditions: list[Condition]) -> tuple[list[str], list[Row], list[str]]:
    """As `kdtool runs --against alpha=0`; without differences, and why, where there is no one run to pair with."""
    try:
        return means(rows, conditions, [NO_KD], option="")
    except UsageError as error:
        return *means(rows, conditions, [])[:2], [f"no paired differences, as kdtool runs says: {error}"]


def _facts(read: _Read, rows: list[Row], where: Sequence[str]) -> list[tuple[str, str]]:
    facts = [("made", f"{now()}, by kdtool {__version__}"), ("runs", f"{len(rows):,} finished")]
    facts += [("of which", " and ".join(where))] if where else []
    for name, column in _RAN.items():
        values = sorted({str(row[column]) for row in rows if row.get(column) is not None}, key=_by_number)
        facts += [(name, _listed(values))] if values else []
    other = differing(rows, HELD)
    same = [
        f"{column.replace('_', ' ')} {rows[0][column]}"
        for column in HELD
        if column not in other and rows[0].get(column) not in (None, []) and column not in _RAN.values()
    ]
    facts += [("the same in all", ", ".join(same))] if same else []
    machines = "; ".join(dict.fromkeys(map(_machine, read.machines)))
    return [*facts, *([("machines", machines)] if machines else [])]


def _by_number(text: str) -> tuple[float, str]:
    return (float(text), "") if text.isdecimal() else (float("inf"), text)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= 12 else f"{len(values)}: {', '.join(values[:6])}, …, {values[-1]}"


def _machine(machine: dict[str, Any]) -> str:
    versions = machine["versions"] if isinstance(machine.get("versions"), dict) else {}
    libraries = [f"{name} {versions[name]}" for name in ("kdtool", "torch") if name in versions]
    cores = machine.get("cores", "?")
    said = [machine.get("gpu"), f"{cores} core{'' if cores == 1 else 's'} of {machine.get('cpu', 'an unknown CPU')}"]
    return ", ".join(str(one) for one in [*said, *libraries] if one)


def _write_table(path: Path, header: Iterable[str], cells: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([list(header), *cells])
