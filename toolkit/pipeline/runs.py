"""kdtool runs: what the runs of a workspace were asked for and came to. Without torch: run.json says it all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path, several
from toolkit.core.errors import UsageError
from toolkit.core.files import whole_file
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.run_means import differing_settings, means
from toolkit.pipeline.run_rows import known_runs
from toolkit.report.runs import Condition, Row, average_cells, average_header, check_columns, in_order, shown


def runs(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    where: str | Sequence[str] = (),
    sweep: str | None = None,
    by: str | None = None,
    against: str | Sequence[str] = (),
    sort: str | None = None,
    columns: str | None = None,
    csv: Place | None = None,
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
    conditions = [Condition.parse(text, "--where") for text in several(where)]
    baseline = [Condition.parse(text, "--against") for text in several(against)]
    found, skipped, notes = known_runs(Workspace.at(workspace), sweep)
    check_columns([condition.column for condition in conditions], found, "--where")
    check_columns([condition.column for condition in baseline], found, "--against")
    rows = [row for row in found if all(condition.holds(row) for condition in conditions)]
    count = len(rows)
    if by is not None or baseline:
        if columns is not None:
            raise UsageError("--columns has no meaning with --by or --against: these say what is shown. Leave it out")
        named, averaged, more = means(found, conditions, baseline, None if by is None else _named(by, "--by", found))
        rows, header = _sorted(averaged, sort), average_header(named, baseline)
        cells, notes = [average_cells(row, named) for row in rows], [*notes, *more]
    else:
        rows = _sorted(rows, sort or "name")
        header = _columns(rows, columns)
        cells = [[shown(row.get(column), column) for column in header] for row in rows]
    if csv is not None:
        write_csv(as_path(csv), rows)
    return {"count": count, "rows": rows, "header": header, "cells": cells, "skipped": skipped, "notes": notes}


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
    return list(dict.fromkeys(["name", *state, *differing_settings(done), "top1"]))


def _named(columns: str, option: str, rows: list[Row]) -> list[str]:
    names = [name.strip().replace("-", "_") for name in columns.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{option} '{columns}': expected columns, such as alpha,method")
    check_columns(names, rows, option)
    return list(dict.fromkeys(names))


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
