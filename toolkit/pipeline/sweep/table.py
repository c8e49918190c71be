"""A sweep's folder: sweep.yaml, what was asked, and results.jsonl, a line for each cell that has ended.

    sweeps/<name>/sweep.yaml                   can be run again: kdtool sweep sweeps/<name>/sweep.yaml
    sweeps/<name>/results.jsonl                in the order of the cells asked for last, then earlier ones
    sweeps/<name>/results-<i>-of-<n>.jsonl     the same, of one shard

The table is of every cell that was ever asked for under that name: what all cells share must stay as it was
(`file.need_same_study`), and sweep.yaml says what was asked last.

A line holds `cell` (its value on each axis), `key` (of the run's settings; null where it could not be prepared),
`status` (done or failed), and `run` (its folder's name), `settings`, `result` and `seconds`; or `error`, and `trace` of
an error that no user can mend. Cells that are the same run have a line each, with the same key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import FailureError
from toolkit.core.files import whole_file
from toolkit.formats.workspace import Workspace, checked_name

if TYPE_CHECKING:  # these import torch, and who reads a table needs none
    from toolkit.pipeline.sweep.request import Cell, Sweep

Line = dict[str, Any]


def sweep_folder(workspace: Workspace, name: str) -> Path:
    return workspace.root / "sweeps" / checked_name(name)


def results_path(workspace: Workspace, name: str, shard: tuple[int, int] = (1, 1)) -> Path:
    part = "" if shard == (1, 1) else f"-{shard[0]}-of-{shard[1]}"
    return sweep_folder(workspace, name) / f"results{part}.jsonl"


def write_asked(workspace: Workspace, name: str, sweep: Sweep) -> None:
    """Writes sweep.yaml, where it does not say the same already: shards on a shared disk would meet there."""
    import yaml

    path, settings = sweep_folder(workspace, name) / "sweep.yaml", {"name": name, **sweep.to_record()}
    text = "# kdtool sweep on this file goes on with it, and tells what is done\n"
    text += yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    if not path.is_file() or path.read_text() != text:
        with whole_file(path) as temporary:
            temporary.write_text(text)


def read_lines(path: Path) -> list[Line]:
    """The lines of a table, none where there is no file. Raises FailureError for one that is not as it was written."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise _damaged(path, number, str(error)) from error
        if not (isinstance(found, dict) and isinstance(found.get("cell"), dict) and "status" in found):
            raise _damaged(path, number, "no line of a sweep")
        lines.append(found)
    return lines


def _damaged(path: Path, number: int, reason: str) -> FailureError:
    return FailureError(f"{path}: line {number}: {reason}. Delete the file and run the sweep again: its runs stay")


class Table:
    """The lines of the cells asked for, on disk as they come, with those of other cells, `kept` as they are."""

    def __init__(self, path: Path, cells: Iterable[Cell]) -> None:
        """Reads what is there. Raises FailureError for a damaged file."""
        self.path = path
        self._lines: dict[Cell, Line | None] = dict.fromkeys(cells)
        self.kept: list[Line] = []
        asked = {_text(asdict(cell)): cell for cell in self._lines}
        for line in read_lines(path):
            cell = asked.get(_text(line["cell"]))
            if cell is None:
                self.kept.append(line)
            else:
                self._lines[cell] = line

    @property
    def lines(self) -> list[Line]:
        return [line for line in self._lines.values() if line is not None]

    def keep_only(self, keys: Callable[[Cell], str | None]) -> None:
        """Forgets lines of runs that the cells are no longer, as their data, targets or settings have changed."""
        for cell, line in self._lines.items():
            if line is not None and line.get("key") != keys(cell):
                self._lines[cell] = None

    def says(self, cells: Iterable[Cell], name: str, result: dict[str, Any]) -> bool:
        """Whether the cells are the run of that name, with that result."""
        ended = ("done", name, result)
        lines = (self._lines[cell] or {} for cell in cells)
        return all((line.get("status"), line.get("run"), line.get("result")) == ended for line in lines)

    def not_done(self, cells: Iterable[Cell]) -> None:
        """Forgets that the cells have ended well."""
        for cell in cells:
            if (self._lines[cell] or {}).get("status") == "done":
                self._lines[cell] = None

    def put(self, cells: Iterable[Cell], key: str | None, status: str, **more: Any) -> None:
        """Lines for cells that are one run, without writing them."""
        for cell in cells:
            self._lines[cell] = {"cell": asdict(cell), "key": key, "status": status, **more}

    def write(self) -> None:
        """The whole table, or the one before it stays."""
        with whole_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in [*self.lines, *self.kept]))


def _text(cell: dict[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)
