"""What a report knows of runs beyond `kdtool runs`: lines of result files as rows, costs, sizes and learning curves."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from functools import cache, partial
from math import isfinite
from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError, UsageError
from toolkit.formats.bundle import subset_record
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.known_teachers import PRETRAINED_FOLDER
from toolkit.pipeline.run_rows import row_of
from toolkit.report.runs import Row
from toolkit.selection.methods import METHODS

_EXPECTED = (
    "a line needs settings, a result with top1, and a cell, as results.jsonl of a sweep has. Name other FILES, or none"
)
_NUMBER, _NONE = (int, float), type(None)
_KINDS: dict[str, Any] = {  # of what pictures reckon with
    "frac": (*_NUMBER, _NONE),
    "alpha": (*_NUMBER, str),
    **dict.fromkeys(("epochs", "iterations", "seed", "views"), (int, _NONE)),
    **dict.fromkeys(("temperature", "seconds", "images_per_s", "student_images", "agreement"), (*_NUMBER, _NONE)),
    **dict.fromkeys(("teacher_images_behind_targets", "center", "drop_hardest"), (*_NUMBER, _NONE)),
    "alpha_asked": (*_NUMBER, str, _NONE),
}
_USUAL = "the usual teacher"
# A subset's name as build-subset makes it: <data set>-<method><ways>-<fraction>-s<seed>
_WAYS = re.compile(
    r"(?:-(?P<score>(?!by-|global|nested|index|min\d|[bc][0-9.])[\w@.]+))?(?:-by-(?P<by>.+?))??(?:-c(?P<center>[0-9.]+))?"
    r"(?:-b(?P<drop_hardest>[0-9.]+))?(?P<flat>-global)?(?P<nested>-nested)?(?:-min(?P<min_per_class>\d+))?(?:-index)?"
    r"-(?P<fraction>[0-9.e-]+)-s(?P<seed>\d+)"
)


def given_rows(paths: Sequence[Path]) -> tuple[list[Row], list[str], list[dict[str, Any]]]:
    """The rows of JSON-lines files, each run once; what is to be said of them; and the machines they name. A line has
    what results.jsonl of a sweep has; or what run.json has. A line's `history`, a record for each epoch, stays in its
    row.

    Raises UsageError for a file that is not there, FailureError for a line that is none of a run.
    """
    rows: dict[str, Row] = {}
    notes: list[str] = []
    machines: list[dict[str, Any]] = []
    for path in paths:
        failed = again = 0
        for number, line in _lines(path):
            if line.get("status") == "failed":
                failed += 1
                continue
            row = _row(line)
            if row is None:
                raise FailureError(f"{path}: line {number}: {_EXPECTED}")
            key = str(line.get("key") or row["name"])
            again += key in rows
            rows.setdefault(key, row)
            machine = line.get("machine")
            if isinstance(machine, dict) and machine not in machines:
                machines.append(machine)
        said = {"of cells that failed": failed, "of runs that another line tells too": again}
        notes += [f"{path}: {count} lines {of} left out" for of, count in said.items() if count]
    return list(rows.values()), notes, machines


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UsageError(f"{path}: not found. Name result files that are there, or none for the workspace") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FailureError(f"{path}: not readable as JSON lines ({error}). {_EXPECTED}") from error
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            raise FailureError(f"{path}: line {number}: not JSON ({error}). {_EXPECTED}") from error
        if not isinstance(content, dict):
            raise FailureError(f"{path}: line {number}: {_EXPECTED}")
        found.append((number, content))
    return found


def _row(line: dict[str, Any]) -> Row | None:
    cell, settings, result = (line.get(part) for part in ("cell", "settings", "result"))
    if not (isinstance(settings, dict) and isinstance(result, dict)):
        return None
    if not (isinstance(cell, dict) or isinstance(line.get("subset"), dict)):
        return None
    asked = cell if isinstance(cell, dict) else {}
    chosen, dataset = _chosen(line, settings, asked)
    machine = line.get("machine")
    known = {**line, "subset": chosen, "alpha_asked": line.get("alpha_asked", asked.get("alpha"))}
    row = row_of(str(result.get("name") or line.get("run") or line.get("key")), known, {})
    if row is None:
        return None
    told = machine if isinstance(machine, dict) else {}
    row["dataset"] = dataset or row["dataset"]
    row["threads"] = line.get("threads", told.get("threads"))
    row["machine"] = told.get("gpu") or told.get("cpu")
    if not _sound(row):
        return None
    history = line.get("history")
    return {**row, "history": history} if _is_history(history) else row


def _sound(row: Row) -> bool:
    """Whether its values are such as a run's record has."""
    plain = [value for column, value in row.items() if column not in ("milestones", "alpha_search")]
    if any(isinstance(value, (list, dict)) or (isinstance(value, float) and not isfinite(value)) for value in plain):
        return False
    return all(isinstance(row.get(column), kinds) for column, kinds in _KINDS.items())


def _chosen(line: dict[str, Any], settings: Row, cell: Row) -> tuple[Row, str | None]:
    """The subset's record, or what its name tells, and the data set's name; a name of one's own tells neither."""
    said = line.get("subset")
    method = said.get("method") if isinstance(said, dict) else cell.get("method")
    name = str(settings.get("subset"))
    dataset, found_method, rest = name.rpartition(f"-{method}")
    found = _WAYS.fullmatch(rest) if found_method else None
    if isinstance(said, dict):
        return said, dataset if found else None
    chosen: Row = {"fraction": cell.get("frac"), "method": method, "seed": settings.get("seed")}
    if found is None:
        return chosen, None
    numbers = {part: float(found[part]) for part in ("center", "drop_hardest") if found[part]}
    # the name tells a teacher only where it is not the data set's own
    aided = found["by"] or (_USUAL if _needs_teacher(method) else None)
    ways = {
        "scored_by": found["score"],
        "features_of": aided,
        "balance": not found["flat"],
        "nested": bool(found["nested"]),
    }
    more = {"min_per_class": int(found["min_per_class"] or 1), "seed": int(found["seed"])}
    return {**chosen, **ways, **numbers, **more}, dataset


def _needs_teacher(method: Any) -> bool:
    known = METHODS.get(str(method))
    return known is not None and bool(known.needs)


def _is_history(history: Any) -> bool:
    return isinstance(history, list) and all(isinstance(epoch, dict) for epoch in history)


def with_costs(rows: Sequence[Row], workspace: Workspace | None) -> list[Row]:
    """The rows and what each cost, as far as that is known: `student_passes` and `teacher_passes` (images), `bytes`;
    and `teacher_size`, in numbers stored. Without a workspace nothing is looked up."""
    bytes_of, size_of = cache(partial(_bytes, workspace)), cache(partial(stored_numbers, workspace))
    found = []
    for row in rows:
        taught, method = row.get("alpha") != 0, METHODS.get(str(row.get("method")))
        unaided = 0 if method is not None and not method.needs else None  # a teacher may have chosen the rows
        teacher = str(row["teacher"]) if taught and row.get("teacher") else None
        costs = {
            "student_passes": _student_passes(row),
            "teacher_passes": row.get("teacher_images_behind_targets") if taught else unaided,
            "bytes": bytes_of(str(row.get("subset")), teacher),
            "teacher_size": None if teacher is None else size_of(teacher) or row.get("teacher_size"),
        }
        found.append({**row, **costs} if row["state"] == "done" else row)
    return found


def _student_passes(row: Row) -> int | None:
    images = row.get("student_images")
    if images is None and row.get("images_per_s") and row.get("seconds"):
        images = row["images_per_s"] * row["seconds"]  # how the speed was computed
    search = row.get("alpha_search")
    more = search.get("images", 0) if isinstance(search, dict) else 0
    return None if images is None else round(images + more)


def _bytes(workspace: Workspace | None, subset: str, teacher: str | None) -> int | None:
    """Images, targets and cache, as they lie on disk; None where the subset is not here."""
    if workspace is None:
        return None
    try:
        folder = workspace.subset(subset)
        record = subset_record(folder)
    except (FailureError, UsageError):
        return None
    data, limit = record.data, record.data.get("limit")
    images = record.bytes
    if record.index_only:
        name = f"{data.get('dataset')}" + ("" if limit is None else f"-limit-{limit}")
        packed = _size(workspace.data(name) / "train.beton")
        if not packed:
            return None
        images = round(packed * record.rows / data["train_rows"])
    targets = 0 if teacher is None else _size(folder / "targets" / f"{teacher}.h5")
    whose = teacher or record.chosen_by
    return images + targets + (0 if whose is None else _size(workspace.cache(whose, limit)))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def stored_numbers(workspace: Workspace | None, teacher: str) -> int | None:
    """How many float32 numbers a teacher's checkpoint stores, weights and batch statistics; None where it is not here.

    Torch's files are zip archives with a member for each tensor: their sizes say it without torch."""
    places = [PRETRAINED_FOLDER / f"{teacher}.pt"]
    try:
        places = [*([] if workspace is None else [workspace.teacher(teacher) / "teacher.pt"]), *places]
    except UsageError:  # such a name is no folder's
        return None
    for path in places:
        if path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                sizes = [one.file_size for one in archive.infolist() if re.search(r"/data/\d+$", one.filename)]
            return sum(size for size in sizes if size != 8) // 4  # 8 bytes: a counter of batches
    return None


def with_history(row: Row, workspace: Workspace) -> Row:
    """The row with its `history`, where its metrics.jsonl is whole."""
    try:
        lines = (workspace.run(str(row["name"])) / "metrics.jsonl").read_text().splitlines()
        history = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return row  # a curve less
    return {**row, "history": history} if _is_history(history) else row
