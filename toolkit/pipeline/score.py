"""kdtool score: scores of every training row, from what a teacher's pass and its training left, or from outside.

Nothing here needs the teacher itself. What is computed, and how: see score_sources. Shapes: n rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.cache import CacheReader
from toolkit.formats.dataset import DataRecord, PackedData, cache_command
from toolkit.formats.dynamics import open_dynamics
from toolkit.formats.scores_file import (
    Scored,
    ScoresReader,
    ScoresRecord,
    contents_fingerprint,
    open_scores,
    write_scores,
)
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.known_teachers import PRETRAINED_FOLDER
from toolkit.pipeline.score_import import read_import
from toolkit.pipeline.score_sources import (
    Sources,
    computable,
    lacking_views,
    open_cache_of,
    open_sources,
    options_of,
    score_command,
    teacher_if_any,
    teacher_of,
    wanted_scores,
)
from toolkit.scores import DYNAMICS, FEATURES, SCORES

_IMPORTED = "imported"


def score(
    workspace: Workspace,
    dataset: str = "fashion-mnist",
    data_dir: Path | None = None,
    limit: int | None = None,
    teacher: str | None = None,
    scores: tuple[str, ...] = (),
    imported: Path | None = None,
    name: str | None = None,
    low_is_hard: bool = False,
    force: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Computes `scores`, or every one that what is on disk allows, into scores/<data>/<teacher>.h5; or takes in the
    numbers of the file `imported` as the score `name`, their sign turned where `low_is_hard`.

    What is there already, of the same definition and sources, is kept unless `force`. Raises UsageError or
    FailureError.
    """
    if imported is None and (name is not None or low_is_hard):
        raise UsageError(f"{'--low-is-hard' if name is None else '--name'} is for --import FILE. Name the file, too")
    if imported is not None and (scores or teacher is not None):
        raise UsageError(f"--import takes no {'--score' if scores else '--teacher'}: an imported score is of the data")
    data = ensure_packed(workspace, dataset, data_dir, limit, progress=progress)
    if imported is not None:
        return _import(workspace, data, imported, name, low_is_hard, force)
    teacher = teacher_of(workspace, teacher, data.record)
    if teacher == _IMPORTED:
        raise UsageError(f"--teacher {_IMPORTED}: that name is kept for scores from outside. Copy it to another name")
    with ExitStack() as stack:
        sources = open_sources(stack, workspace, data, teacher)
        fingerprints = sources.fingerprints()
        packaged = _packaged(stack, data, teacher) if sources.dynamics is None else None
        comes_along = {} if packaged is None else packaged.scored()
        left = tuple(key for key in scores if key not in comes_along)
        wanted, skipped = ([], []) if scores and not left else wanted_scores(sources, left, fingerprints, device)
        if comes_along:
            skipped = [line for line in skipped if line != sources.missing["dynamics"]]
        path = _scores_path(workspace, data.record, teacher)
        with only_writer(path):
            old = _old(path, data, force, score_command(data.record, teacher))
            fresh = {key: scored for key, scored in old.items() if _is_fresh(scored, fingerprints)}
            found, unchanged = dict(fresh), set()
            for one in wanted:
                if not force and one.name in fresh and _same(fresh[one.name], one.attributes):
                    unchanged.add(one.name)
                else:
                    found[one.name] = Scored(one.compute(progress).astype(np.float32), one.attributes)
            if len(unchanged) < len(wanted) or found.keys() != old.keys():
                train = data.split("train")
                rows_n, labels_n = np.arange(len(train)), train.labels_n.astype(np.int64)
                write_scores(path, _record(data.record, sources), rows_n, labels_n, found)
        lines = [_told(one.name, found[one.name], one.name in unchanged) for one in wanted]
        if sources.cache is not None:
            of_pass = [key for key in dict.fromkeys(scores) if key in SCORES]
            about = sources.cache.scores
            lines += [_told(key, Scored(sources.cache.score(key), about[key]), True) for key in of_pass]
        lines += [_told(key, scored, True) for key, scored in comes_along.items() if not scores or key in scores]
        return {
            "path": str(path),
            "dataset": data.record.key,
            "teacher": teacher,
            "rows": data.record.train_rows,
            "scores": lines,
            "skipped": skipped,
        }


def find_score(workspace: Workspace, data: PackedData, teacher: str | None, name: str) -> tuple[np.ndarray, str]:
    """(the score of every training row: (n,) float64, high = hard; what it is, such as "el2n@5 of <teacher>").

    Looked for in the teacher's cache, in its scores, among the imported ones, and among those that come with kdtool.
    Raises UsageError that says what there is, and FailureError for files that are damaged, of other data, or computed
    from what is no longer there.
    """
    with ExitStack() as stack:
        whose = teacher_if_any(workspace, teacher, data.record)
        shelves = list(_shelves(stack, workspace, data, whose))
        for reader, of in shelves:
            if name in reader.scores:
                if isinstance(reader, ScoresReader):
                    _check_fresh(stack, workspace, data, reader, name)
                return reader.score(name).astype(np.float64), f"{name} of {of}"
        raise _not_found(workspace, data, whose or teacher_of(workspace, teacher, data.record), name, shelves)


def known_scores(workspace: Workspace, data: PackedData, teacher: str | None) -> dict[str, str]:
    """Every name that `find_score` finds, with what it is. Raises FailureError for damaged files, or of other data."""
    with ExitStack() as stack:
        known: dict[str, str] = {}
        for reader, of in _shelves(stack, workspace, data, teacher_if_any(workspace, teacher, data.record)):
            known |= {name: f"{name} of {of}" for name in reader.scores if name not in known}
        return known


def _scores_path(workspace: Workspace, record: DataRecord, name: str) -> Path:
    return workspace.root / "scores" / record.key / f"{checked_name(name, '--teacher')}.h5"


def _old(path: Path, data: PackedData, force: bool, made_by: str) -> dict[str, Scored]:
    """The scores that are there. Raises FailureError for a file that is damaged or of other data, unless `force`."""
    if not path.is_file():
        return {}
    try:
        with open_scores(path, made_by) as reader:
            reader.check_data(data.record.train_fingerprint, data.record.key)
            return reader.scored()
    except FailureError:
        if force:
            return {}
        raise


def _is_fresh(scored: Scored, fingerprints: dict[str, str]) -> bool:
    """Whether what it was computed from is as it was, or gone."""
    of = str(scored.attributes.get("of"))
    return fingerprints.get(of, scored.attributes.get("source")) == scored.attributes.get("source")


def _same(scored: Scored, attributes: dict[str, Any]) -> bool:
    return {key: value for key, value in scored.attributes.items() if key != "high"} == attributes


def _told(name: str, scored: Scored, unchanged: bool) -> dict[str, Any]:
    values_n = np.asarray(scored.values_n, dtype=np.float64)
    return {
        "name": name,
        "mean": float(values_n.mean()),
        "min": float(values_n.min()),
        "max": float(values_n.max()),
        "definition": str(scored.attributes.get("definition", "")),
        "unchanged": unchanged,
    }


def _record(data: DataRecord, sources: Sources | None) -> ScoresRecord:
    teacher = made = None
    if sources is not None:
        teacher = sources.teacher
        made = (sources.cache or sources.dynamics).record.teacher_fingerprint  # type: ignore[union-attr]
    return ScoresRecord(
        dataset=data.dataset,
        data_fingerprint=data.train_fingerprint,
        limit=data.limit,
        teacher=teacher,
        teacher_fingerprint=made,
        command=command_line(),
        created=now(),
        versions=versions(),
    )


def _import(
    workspace: Workspace, data: PackedData, file: Path, name: str | None, low_is_hard: bool, force: bool
) -> dict[str, Any]:
    if name is None:
        raise UsageError(f"--import {file}: say what the score is called, with --name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", name):
        raise UsageError(f"--name {name}: must be up to 64 letters, digits, and _ . + -, as it becomes part of others")
    if name in (*SCORES, *DYNAMICS, *FEATURES):
        raise UsageError(f"--name {name} is a score of kdtool's own. Choose another, such as my-{name}")
    train, record = data.split("train"), data.record
    labels_n = train.labels_n.astype(np.int64)
    values_n, source = read_import(file, labels_n, record.train_fingerprint)
    about = {
        "definition": f"imported from {file.name}" + (", its sign turned: low was hard" if low_is_hard else ""),
        "paper": "not said",
        "of": "import",
        "source": source,
    }
    path = _scores_path(workspace, record, _IMPORTED)
    made_by = f"kdtool score {options_of(record)} --import FILE --name NAME --force"
    with only_writer(path):
        old = _old(path, data, force, made_by)
        scored = Scored((-values_n if low_is_hard else values_n).astype(np.float32), about)
        unchanged = not force and name in old and np.array_equal(old[name].values_n, scored.values_n)
        if name in old and not unchanged and not force:
            raise FailureError(
                f"{path}: holds another score {name} ({old[name].attributes.get('definition')}). "
                "Give this one another --name, or pass --force to replace it"
            )
        if not unchanged:
            write_scores(path, _record(record, None), np.arange(len(train)), labels_n, {**old, name: scored})
        told = _told(name, old[name] if unchanged else scored, unchanged)
    return {
        "path": str(path),
        "dataset": record.key,
        "teacher": None,
        "rows": record.train_rows,
        "scores": [told],
        "skipped": [],
    }


def _shelves(
    stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str | None
) -> Iterator[tuple[CacheReader | ScoresReader, str]]:
    """Where scores may lie, in the order they are looked for, each with what its scores are of."""
    record = data.record
    if teacher is not None:
        if workspace.cache(teacher, record.limit).is_file():
            yield open_cache_of(stack, workspace, data, teacher), teacher
        yield from _opened(stack, data, _scores_path(workspace, record, teacher), teacher)
    yield from _opened(stack, data, _scores_path(workspace, record, _IMPORTED), "the imported scores")
    packaged = None if teacher is None else _packaged(stack, data, teacher)
    if teacher is not None and packaged is not None:
        yield packaged, teacher


def _packaged(stack: ExitStack, data: PackedData, teacher: str) -> ScoresReader | None:
    """The scores that come with kdtool's own teacher of these very data, or None."""
    path = PRETRAINED_FOLDER / f"{teacher}.scores.h5"
    if not path.is_file():
        return None
    reader = stack.enter_context(open_scores(path, "pip install --force-reinstall kdtool"))
    return reader if reader.record.data_fingerprint == data.record.train_fingerprint else None


def _opened(stack: ExitStack, data: PackedData, path: Path, of: str) -> Iterator[tuple[ScoresReader, str]]:
    if path.is_file():
        imported = path.stem == _IMPORTED
        again = f"kdtool score {options_of(data.record)} --import FILE --name NAME --force"
        reader = stack.enter_context(open_scores(path, again if imported else score_command(data.record, path.stem)))
        reader.check_data(data.record.train_fingerprint, data.record.key)
        yield reader, of


def _check_fresh(stack: ExitStack, workspace: Workspace, data: PackedData, reader: ScoresReader, name: str) -> None:
    """Raises FailureError where the score was computed from another cache or other dynamics than those there now."""
    teacher, about = reader.record.teacher, reader.scores[name]
    if teacher is None or reader.path.parent == PRETRAINED_FOLDER:
        return
    if about.get("of") == "cache" and workspace.cache(teacher, data.record.limit).is_file():
        path = workspace.cache(teacher, data.record.limit)
        now_there = contents_fingerprint(open_cache_of(stack, workspace, data, teacher), "features", "labels")
    elif about.get("of") == "dynamics" and (workspace.teacher(teacher) / "dynamics.h5").is_file():
        path = workspace.teacher(teacher) / "dynamics.h5"
        now_there = stack.enter_context(open_dynamics(path)).fingerprint()
    else:
        return
    if now_there != about.get("source"):
        command = score_command(data.record, teacher).removesuffix(" --force")
        raise FailureError(
            f"{reader.path}: {name} was computed from another {path.name} ({about.get('source')}) than the one there "
            f"({now_there}). Run: {command}"
        )


def _not_found(
    workspace: Workspace,
    data: PackedData,
    teacher: str,
    name: str,
    shelves: list[tuple[CacheReader | ScoresReader, str]],
) -> Exception:
    cache_path = workspace.cache(teacher, data.record.limit)
    if name in SCORES:
        if not cache_path.is_file():
            command = cache_command(data.record, teacher).removesuffix(" --force")
            return FailureError(f"{cache_path}: not found. Run: {command}")
        return lacking_views(next(shelf for shelf, _ in shelves if isinstance(shelf, CacheReader)), name, data.record)
    known = list(dict.fromkeys(found for reader, _ in shelves for found in reader.scores))
    command = score_command(data.record, teacher).removesuffix(" --force")
    family, _, _ = name.partition("@")
    if name in FEATURES or family in DYNAMICS:
        there = f"there are {', '.join(known)}" if known else "there are none"
        return UsageError(f"score {name} of {teacher} is not there yet ({there}). Run: {command} --score {name}")
    more = ", ".join(one for one in computable() if one not in known)
    error = unknown_name("score", name, known or computable())
    return UsageError(f"{error}. '{command}' computes {more}; with --import it takes any other")
