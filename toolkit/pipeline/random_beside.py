"""The random subset that any other should be compared with: whether it is there, and the command that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json
from toolkit.formats.bundle import SubsetRecord, subset_record
from toolkit.formats.workspace import Workspace

_USUAL_ROOT = Path("kdtool-work")  # where -w says nothing else


def random_beside(workspace: Workspace, results: Sequence[dict[str, Any]]) -> str | None:
    """One command for all that `random_beside` names in results of one `build_subsets`; None where it names none."""
    missing = [result for result in results if result["random_beside"]]
    if not missing:
        return None
    fractions = list(dict.fromkeys(result["fraction"] for result in missing))
    return random_command(workspace, subset_record(Path(missing[0]["path"])), fractions)


def random_command(workspace: Workspace, record: SubsetRecord, fractions: Sequence[float] = ()) -> str:
    """The command of the random subset to compare with, or of one for each of `fractions`."""
    where = "" if workspace.root == _USUAL_ROOT else f" -w {quote(str(workspace.root))}"
    return record.like("random", fractions=fractions) + where


def random_subsets(workspace: Workspace) -> list[tuple[Any, ...]]:
    """The essence of every random subset that is there."""
    found = []
    for path in workspace.root.glob("subsets/*/subset.json"):
        try:
            found.append(read_json(path, "kdtool build-subset"))
        except FailureError:  # a damaged one is nothing to compare with
            continue
    return [essence(record) for record in found if record.get("method") == "random"]


def essence(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a random subset must share with another, by what subset.json says, to be compared with it."""
    data = record.get("data")
    content = data.get("train_fingerprint") if isinstance(data, dict) else None
    return record.get("fraction"), record.get("seed"), content
