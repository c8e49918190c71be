"""Looking scores up: in a teacher's cache, among what kdtool score wrote, took in, or comes with.

Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.formats.cache import CacheReader
from toolkit.formats.dataset import DataRecord, PackedData, cache_command
from toolkit.formats.dynamics import open_dynamics
from toolkit.formats.scores_file import ScoresReader, open_scores
from toolkit.formats.workspace import IMPORTED_SCORES, Workspace, checked_name
from toolkit.pipeline.known_teachers import PRETRAINED, PRETRAINED_FOLDER, find_teacher, name_of
from toolkit.pipeline.score_compute import computable, lacking_views
from toolkit.pipeline.score_sources import (
    features_fingerprint,
    open_cache_of,
    options_of,
    score_command,
    teacher_if_any,
    teacher_of,
)
from toolkit.scores import DYNAMICS, FEATURES, SCORES

IMPORTED = "imported"

Reader = CacheReader | ScoresReader


class _Shelf(NamedTuple):
    """A file of scores, whose they are, and how it is opened: None for other data's. `watched`: whether what they were
    computed from may have changed since."""

    path: Path
    of: str
    open: Callable[[ExitStack], Reader | None]
    watched: bool = False


class KnownScores(NamedTuple):
    """The names that `find_score` finds, each with what it is; and the files that can't be read, each with why."""

    names: dict[str, str]
    unreadable: dict[str, str]


def find_score(workspace: Workspace, data: PackedData, teacher: str | None, name: str) -> tuple[np.ndarray, str]:
    """(the score of every training row: (n,) float64, high = hard; what it is, such as "el2n@5 of <teacher>").

    Looked for in the teacher's cache, in its scores, among the imported ones, and among those that come with kdtool.
    Raises UsageError that says what there is, and FailureError for files that are damaged, of other data, or computed
    from what is no longer there, or of another training than the cache.
    """
    with ExitStack() as stack:
        readers: list[Reader] = []
        for shelf in _shelves(workspace, data, teacher):
            reader = shelf.open(stack)
            if reader is None:
                continue
            if name in reader.scores:
                if shelf.watched and isinstance(reader, ScoresReader):
                    _check_fresh(stack, workspace, data, shelf.of, reader, name)
                return reader.score(name).astype(np.float64), f"{name} of {shelf.of}"
            readers.append(reader)
        raise _not_found(workspace, data, teacher_of(workspace, teacher, data.record), name, readers)


def known_scores(workspace: Workspace, data: PackedData, teacher: str | None) -> KnownScores:
    """Every name that `find_score` knows. Raises FailureError for a teacher that is nowhere."""
    known = KnownScores({}, {})
    for shelf in _shelves(workspace, data, teacher):
        with ExitStack() as stack:
            try:
                reader = shelf.open(stack)
                names = [] if reader is None else list(reader.scores)
            except FailureError as error:
                known.unreadable[str(shelf.path)] = str(error)
                continue
        for name in names:
            known.names.setdefault(name, f"{name} of {shelf.of}")
    return known


def scores_path(workspace: Workspace, record: DataRecord, name: str) -> Path:
    """Where the scores of a teacher lie, or the imported ones."""
    return workspace.root / "scores" / record.key / f"{checked_name(name, '--teacher')}.h5"


def import_command(record: DataRecord, path: Path) -> str:
    """Imported scores can't be computed again: what to do where their file is damaged."""
    return f"rm {path}, then kdtool score {options_of(record)} --import FILE --name NAME for each score that was in it"


def packaged_scores(
    stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str | None
) -> ScoresReader | None:
    """The scores that come with kdtool, where the teacher is its own and these are the very data; or None."""
    path = _packaged_path(workspace, data, teacher)
    return None if path is None else _open_packaged(stack, data, path)


def _packaged_path(workspace: Workspace, data: PackedData, teacher: str | None) -> Path | None:
    """A teacher or a file elsewhere may have the packaged one's name: its checkpoint itself must be meant."""
    name = PRETRAINED.get(data.record.dataset) if teacher is None else name_of(teacher)
    path = PRETRAINED_FOLDER / f"{name}.scores.h5"
    if not path.is_file():
        return None
    try:
        file = find_teacher(workspace, teacher, data.record.dataset).file
    except FailureError:  # its weights are gone, and the packaged ones are not
        return None
    return path if file.resolve() == (PRETRAINED_FOLDER / f"{name}.pt").resolve() else None


def _open_packaged(stack: ExitStack, data: PackedData, path: Path) -> ScoresReader | None:
    reader = stack.enter_context(open_scores(path, "pip install --force-reinstall kdtool"))
    return reader if reader.record.data_fingerprint == data.record.train_fingerprint else None


def _open_scores(stack: ExitStack, data: PackedData, path: Path, made_by: str) -> ScoresReader:
    reader = stack.enter_context(open_scores(path, made_by))
    reader.check_data(data.record.train_fingerprint, data.record.key)
    return reader


def _shelves(workspace: Workspace, data: PackedData, asked: str | None) -> list[_Shelf]:
    """Where scores lie, in the order they are looked for."""
    record = data.record
    teacher, imported = teacher_if_any(workspace, asked, record), scores_path(workspace, record, IMPORTED)
    shelves = []
    if teacher is not None:
        own, again = scores_path(workspace, record, teacher), score_command(record, teacher)
        shelves += [
            _Shelf(
                workspace.cache(teacher, record.limit),
                teacher,
                lambda stack: open_cache_of(stack, workspace, data, teacher),
            ),
            _Shelf(own, teacher, lambda stack: _open_scores(stack, data, own, again), watched=True),
        ]
    again_imported = import_command(record, imported)
    shelves.append(_Shelf(imported, IMPORTED_SCORES, lambda stack: _open_scores(stack, data, imported, again_imported)))
    packaged = None if teacher is None else _packaged_path(workspace, data, asked)
    if teacher is not None and packaged is not None:
        shelves.append(_Shelf(packaged, teacher, lambda stack: _open_packaged(stack, data, packaged)))
    return [shelf for shelf in shelves if shelf.path.is_file()]


def _check_fresh(
    stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str, reader: ScoresReader, name: str
) -> None:
    """Raises FailureError where the score is of another training than the cache there now, or was computed from another
    cache or other dynamics."""
    about, command = reader.scores[name], score_command(data.record, teacher).removesuffix(" --force")
    cache_path = workspace.cache(teacher, data.record.limit)
    dynamics_path = workspace.teacher(teacher) / "dynamics.h5"
    cache = open_cache_of(stack, workspace, data, teacher) if cache_path.is_file() else None
    if cache is not None and reader.of_teacher(name) != cache.record.teacher_fingerprint:
        raise FailureError(
            f"{reader.path}: {name} is of another training of {teacher} ({reader.of_teacher(name)}) than {cache_path} "
            f"({cache.record.teacher_fingerprint}). Run: {command} --score {name}"
        )
    if about.get("of") == "cache" and cache is not None:
        path, now_there = cache_path, features_fingerprint(cache)
    elif about.get("of") == "dynamics" and dynamics_path.is_file():
        path, now_there = dynamics_path, stack.enter_context(open_dynamics(dynamics_path)).fingerprint()
    else:
        return
    if now_there != about.get("source"):
        raise FailureError(
            f"{reader.path}: {name} was computed from another {path.name} ({about.get('source')}) than the one there "
            f"({now_there}). Run: {command} --score {name}"
        )


def _not_found(workspace: Workspace, data: PackedData, teacher: str, name: str, readers: list[Reader]) -> Exception:
    cache_path = workspace.cache(teacher, data.record.limit)
    if name in SCORES:
        if not cache_path.is_file():
            command = cache_command(data.record, teacher).removesuffix(" --force")
            return FailureError(f"{cache_path}: not found. Run: {command}")
        return lacking_views(next(one for one in readers if isinstance(one, CacheReader)), name, data.record)
    known = list(dict.fromkeys(found for reader in readers for found in reader.scores))
    command = score_command(data.record, teacher).removesuffix(" --force")
    family, _, _ = name.partition("@")
    if name in FEATURES or family in DYNAMICS:
        there = f"there are {', '.join(known)}" if known else "there are none"
        return UsageError(f"score {name} of {teacher} is not there yet ({there}). Run: {command} --score {name}")
    more = ", ".join(one for one in computable() if one not in known)
    error = unknown_name("score", name, known or computable())
    return UsageError(f"{error}. '{command}' computes {more}; with --import it takes any other")
