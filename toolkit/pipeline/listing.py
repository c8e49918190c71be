"""kdtool ls: what a workspace holds, what each artifact came from, what it takes on disk, and what is stale.

Records alone are read, without torch: whether the bytes are whole, `kdtool inspect` tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core import defaults
from toolkit.core.asked import Place
from toolkit.core.errors import FailureError
from toolkit.core.files import read_json
from toolkit.core.locks import is_being_written
from toolkit.formats.dataset import data_key
from toolkit.formats.kinds import open_blocks
from toolkit.formats.scores_file import open_scores
from toolkit.formats.workspace import Workspace

_LEFT_OVER = re.compile(r"\.(?P<name>.+?)(?:\.before)?\.(?P<pid>\d+)\.tmp")


@dataclass(frozen=True)
class Artifact:
    """`bytes` on disk; `of`: names of what it was made from; `stale`: why it no longer fits what is there, or None."""

    kind: str
    name: str
    path: str
    bytes: int
    about: str
    of: tuple[str, ...] = ()
    created: str | None = None
    stale: str | None = None


@dataclass
class _Known:
    """What later artifacts are held against: fingerprints of training splits by data, of weights by cache, and of rows
    by subset, with its data's limit."""

    data: dict[str, str] = field(default_factory=dict)
    teachers: dict[tuple[str, Any], str] = field(default_factory=dict)
    subsets: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def other_data(self, fingerprint: Any, key: str | None = None) -> str | None:
        """Why data of this fingerprint are none of those there; None where they are, or none lie there at all."""
        if fingerprint in self.data.values() or not self.data or (key is not None and key not in self.data):
            return None
        return f"made of other data than data/{key or '…'} ({fingerprint})"

    def other_teacher(self, teacher: str, limit: Any, fingerprint: Any) -> str | None:
        there = self.teachers.get((teacher, limit))
        if fingerprint is None or there is None or there == fingerprint:
            return None
        return f"of another training of {teacher} ({fingerprint}) than its cache ({there})"


def artifacts(workspace: Workspace) -> list[Artifact]:
    """Everything kdtool made that lies in the workspace, in the order that data flow. What cannot be read is listed,
    with the reason as `stale`. Raises FailureError where there is no workspace."""
    if not workspace.root.is_dir():
        raise FailureError(f"{workspace.root}: no such workspace yet. Run: kdtool cache-teacher, or name another by -w")
    known = _Known()
    return [artifact for listed in _KINDS for artifact in listed(workspace.root, known)]


def ls(workspace: Workspace | Place = defaults.WORKSPACE) -> dict[str, Any]:
    """What lies in the workspace: its `artifacts` as records, their bytes together and how many are `stale`. Raises
    FailureError where there is no workspace."""
    workspace = Workspace.at(workspace)
    found = artifacts(workspace)
    # a left-over file may lie within an artifact: the workspace's size is not the sum of its lines
    return {
        "workspace": str(workspace.root),
        "bytes": _size(workspace.root),
        "stale": sum(one.stale is not None for one in found),
        "artifacts": [asdict(one) for one in found],
    }


def _data(root: Path, known: _Known) -> Iterator[Artifact]:
    for folder in _folders(root / "data"):
        record = _read(folder / "data.json", "kdtool pack")
        if isinstance(record, str):
            yield _broken("data", folder, record)
            continue
        known.data[folder.name] = str(record.get("train_fingerprint"))
        size = f"{record.get('height')}×{record.get('width')}"
        shown = f"{_count(record.get('train_rows'))} + {_count(record.get('test_rows'))} images"
        about = f"{shown}, {record.get('classes')} classes"
        yield _artifact("data", folder, f"{about}, {size}", [record.get("source")], record)


def _teachers(root: Path, known: _Known) -> Iterator[Artifact]:
    for folder in _folders(root / "teachers"):
        if (folder / "teacher.pt").is_file() and (folder / "train.json").is_file():
            record = _read(folder / "train.json", "kdtool train-teacher")
            if isinstance(record, str):
                yield _broken("teacher", folder / "teacher.pt", record, folder.name)
            else:
                settings, result = record.get("settings", {}), record.get("result", {})
                about = f"{settings.get('arch')}, {_percent(result.get('top1'))}"
                stale = known.other_data(settings.get("data_fingerprint"), settings.get("dataset"))
                of = [settings.get("dataset"), settings.get("subset")]
                yield _artifact("teacher", folder / "teacher.pt", about, of, record, stale, folder.name)
        elif (folder / "metrics.jsonl").is_file():
            yield _artifact("teacher", folder, _unfinished(folder, "teacher.pt"), [], {})
        for path in sorted(folder.glob("cache*.h5")):
            yield _cache(path, known)
        for path in sorted(folder.glob("dynamics.h5")):
            yield _h5("dynamics", path, known, lambda record, _: f"{record.get('epochs')} epochs", folder.name)


def _unfinished(folder: Path, weights: str) -> str:
    epochs = _lines(folder / "metrics.jsonl")
    if is_being_written(folder / weights):
        return f"training, {epochs} epoch{'' if epochs == 1 else 's'} done"
    return f"stopped after epoch {epochs}: the same command goes on"


def _cache(path: Path, known: _Known) -> Artifact:
    def about(record: dict[str, Any], path: Path) -> str:
        where = (record["teacher"], record.get("limit"))
        known.teachers[where] = str(record.get("teacher_fingerprint"))
        return f"{record.get('slots')} views, {record.get('encoding')}"

    named = path.parent.name + path.stem.removeprefix("cache")
    return _h5("cache", path, known, about, named)


def _scores(root: Path, known: _Known) -> Iterator[Artifact]:
    for path in sorted((root / "scores").glob("*/*.h5")):
        yield _h5("scores", path, known, _score_names, f"{path.parent.name}/{path.stem}")


def _score_names(record: dict[str, Any], path: Path) -> str:
    with open_scores(path) as reader:
        return ", ".join(reader.scores)


def _h5(kind: str, path: Path, known: _Known, about: Callable[[dict[str, Any], Path], str], name: str) -> Artifact:
    try:
        with open_blocks(path, f"kdtool inspect {path}") as (record, _):
            said = about(record, path)
    except (FailureError, KeyError) as error:
        return _broken(kind, path, str(error), name)
    teacher, limit = record.get("teacher"), record.get("limit")
    key = data_key(str(record.get("dataset")), limit)
    stale = known.other_data(record.get("data_fingerprint"), key)
    stale = stale or known.other_teacher(str(teacher), limit, record.get("teacher_fingerprint"))
    return _artifact(kind, path, said, [key, teacher], record, stale, name)


def _subsets(root: Path, known: _Known) -> Iterator[Artifact]:
    for folder in _folders(root / "subsets"):
        record = _read(folder / "subset.json", "kdtool build-subset")
        if isinstance(record, str):
            yield _broken("subset", folder, record)
            continue
        data = record.get("data") or {}
        key = data_key(str(data.get("dataset")), data.get("limit"))
        known.subsets[folder.name] = (str(record.get("rows_fingerprint")), data.get("limit"))
        targets = sorted(path.stem for path in (folder / "targets").glob("*.h5"))
        taught = ", ".join(targets) if len(targets) <= 3 else f"{len(targets)} teachers"
        about = f"{_count(record.get('rows'))} images{f', targets of {taught}' if targets else ''}"
        _, _, scorer = str(record.get("scored_by") or "").partition(" of ")
        of = [key, scorer or record.get("features_of")]
        yield _artifact("subset", folder, about, of, record, known.other_data(data.get("train_fingerprint"), key))


def _runs(root: Path, known: _Known) -> Iterator[Artifact]:
    for folder in _folders(root / "runs"):
        if not (folder / "run.json").is_file():
            if (folder / "metrics.jsonl").is_file() or (folder / "checkpoint.pt").is_file():
                yield _artifact("run", folder, _unfinished(folder, "student.pt"), [], {})
            continue
        record = _read(folder / "run.json", "kdtool distill")
        if isinstance(record, str):
            yield _broken("run", folder, record)
            continue
        settings = record.get("settings") or {}
        subset, teacher = str(settings.get("subset")), settings.get("teacher")
        stale = known.other_data(settings.get("data_fingerprint"))
        if stale is None and subset in known.subsets:
            rows, limit = known.subsets[subset]
            if rows != settings.get("rows_fingerprint"):
                stale = f"of other rows than subsets/{subset} has now"
            elif teacher is not None:
                stale = known.other_teacher(str(teacher), limit, settings.get("teacher_fingerprint"))
        about = f"{settings.get('arch')}, {_percent((record.get('result') or {}).get('top1'))}"
        yield _artifact("run", folder, about, [subset, teacher], record, stale)


def _sweeps(root: Path, known: _Known) -> Iterator[Artifact]:
    for folder in _folders(root / "sweeps"):
        tables = list(folder.glob("results*.jsonl"))
        yield _artifact("sweep", folder, f"{sum(map(_lines, tables)):,} lines of results", [], {})


def _reports(root: Path, known: _Known) -> Iterator[Artifact]:
    for kind in ("reports", "pictures"):
        for path in sorted((root / kind).glob("*")):
            if not path.name.startswith("."):
                yield _artifact(kind.removesuffix("s"), path, "", [], {})


def _left_over(root: Path, known: _Known) -> Iterator[Artifact]:
    """Temporary files and folders of commands that were killed; those of commands that still run are none."""
    for path in sorted(root.rglob(".*.tmp")):
        found = _LEFT_OVER.fullmatch(path.name)
        inside = any(_LEFT_OVER.fullmatch(above.name) for above in path.relative_to(root).parents)
        if found and not inside and not Path(f"/proc/{found['pid']}").exists():
            why = "left by a killed command: the same command clears it away, or delete it"
            yield _artifact("left over", path, "", [], {}, why, str(path.relative_to(root)))


_KINDS: tuple[Callable[[Path, _Known], Iterator[Artifact]], ...] = (
    _data,
    _teachers,
    _scores,
    _subsets,
    _runs,
    _sweeps,
    _reports,
    _left_over,
)


def _artifact(
    kind: str,
    path: Path,
    about: str,
    of: list[Any],
    record: dict[str, Any],
    stale: str | None = None,
    name: str | None = None,
) -> Artifact:
    made_from = tuple(str(one) for one in of if one)
    return Artifact(kind, name or path.name, str(path), _size(path), about, made_from, record.get("created"), stale)


def _broken(kind: str, path: Path, why: str, name: str | None = None) -> Artifact:
    return _artifact(kind, path, "", [], {}, why, name)


def _read(path: Path, made_by: str) -> dict[str, Any] | str:
    """The record, or why there is none."""
    try:
        return read_json(path, made_by)
    except FailureError as error:
        return str(error)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("*/") if not path.name.startswith("."))


def _count(rows: Any) -> str:
    return f"{rows:,}" if isinstance(rows, int) else "?"


def _percent(top1: Any) -> str:
    return f"{top1:.2f} %" if isinstance(top1, (int, float)) else "accuracy unknown"


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count nothing, nor does what vanishes meanwhile."""
    total = 0
    for file in (file for file in path.rglob("*") if not file.is_dir()) if path.is_dir() else [path]:
        with suppress(FileNotFoundError):
            total += file.lstat().st_size
    return total
