"""kdtool score: scores of every training row, from what a teacher's pass and its training left, or from outside.

Nothing here needs the teacher itself. What is computed, and how: see score_compute. Shapes: n rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path, several
from toolkit.core.device import resolve_device
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.locks import only_writer
from toolkit.core.memory import within_memory
from toolkit.core.progress import Progress, silent
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.dataset import DataRecord, PackedData
from toolkit.formats.scores_file import Scored, ScoresRecord, open_scores, write_scores
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.foresee.foreseen import Foreseen, already_there, may_be_dry
from toolkit.pipeline.foresee.trials import SECONDS, seconds_of
from toolkit.pipeline.found_scores import IMPORTED, import_command, packaged_scores, scores_path
from toolkit.pipeline.score_compute import Wanted, wanted_scores
from toolkit.pipeline.score_import import read_import
from toolkit.pipeline.score_sources import Sources, open_sources, score_command, teacher_of
from toolkit.scores import DYNAMICS, FEATURES, SCORES


@within_memory
@may_be_dry
def score(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    dataset: str = defaults.DATASET,
    data_dir: Place | None = None,
    limit: int | None = None,
    teacher: str | None = None,
    score: str | Sequence[str] = (),
    import_: Place | None = None,
    name: str | None = None,
    low_is_hard: bool = False,
    memory_limit: str | int | None = None,
    force: bool = False,
    device: str = defaults.DEVICE,
    dry_run: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Computes each `score` named, or every one that what is on disk allows, into scores/<data>/<teacher>.h5; or takes
    in the numbers of the file `import_` as the score `name`, their sign turned where `low_is_hard`.

    What is there already, of the same definition, sources and training, is kept unless `force`. `path` is the file that
    was computed into, None where all that was named lies elsewhere. With `dry_run` each is begun, and nothing kept: the
    result is `Foreseen.told`. Raises UsageError or FailureError.
    """
    workspace, data_dir = Workspace.at(workspace), as_path(data_dir)
    scores, imported = several(score), as_path(import_)
    if imported is None and (name is not None or low_is_hard):
        raise UsageError(f"{'--low-is-hard' if name is None else '--name'} is for --import FILE. Name the file, too")
    if imported is not None and (scores or teacher is not None):
        raise UsageError(
            f"--import takes no {'--score' if scores else '--teacher'}: an imported score is of the data. Leave it out"
        )
    if device not in ("auto", "cpu"):
        resolve_device(device)  # imports torch
    data = ensure_packed(workspace, dataset, data_dir, limit, progress=progress)
    if imported is not None:
        return _import(workspace, data, imported, name, low_is_hard, force, dry_run)
    asked, teacher = teacher, teacher_of(workspace, teacher, data.record)
    if teacher == IMPORTED:
        raise UsageError(f"--teacher {IMPORTED}: that name is kept for scores from outside. Copy it to another name")
    with ExitStack() as stack:
        sources = open_sources(stack, workspace, data, teacher)
        fingerprints = sources.fingerprints()
        packaged = packaged_scores(stack, workspace, data, asked) if sources.dynamics is None else None
        comes_along = {} if packaged is None else packaged.scored()
        left = tuple(key for key in scores if key not in comes_along)
        wanted, skipped = ([], []) if scores and not left else wanted_scores(sources, left, fingerprints, device)
        if comes_along:
            skipped = [line for line in skipped if line != sources.missing["dynamics"]]
        path = scores_path(workspace, data.record, teacher)
        if dry_run:
            return _foreseen(path, data, sources, wanted, fingerprints, force)
        told = _computed(path, data, sources, wanted, fingerprints, force, progress)
        if sources.cache is not None:
            of_pass = [key for key in dict.fromkeys(scores) if key in SCORES]
            about, at = sources.cache.scores, sources.cache.path
            told += [_told(key, Scored(sources.cache.score(key), about[key]), True, at) for key in of_pass]
        if packaged is not None:
            there = [key for key in comes_along if not scores or key in scores]
            told += [_told(key, comes_along[key], True, packaged.path) for key in there]
        return {
            "path": str(path) if wanted else None,
            "dataset": data.record.key,
            "teacher": teacher,
            "rows": data.record.train_rows,
            "scores": told,
            "skipped": skipped,
        }


def _foreseen(
    path: Path,
    data: PackedData,
    sources: Sources,
    wanted: list[Wanted],
    fingerprints: dict[str, str],
    force: bool,
) -> dict[str, Any]:
    old = _old(path, data, force, score_command(data.record, sources.teacher))
    found = {key: one for key, one in old.items() if _is_fresh(one, sources, fingerprints)}
    left = [one for one in wanted if force or not _same(found.get(one.name), one.attributes)]
    if not left:
        return already_there(path, scores=[])
    seconds = sum(seconds_of(one.compute) for one in left)
    size = data.record.train_rows * np.dtype(np.float32).itemsize * len(left)
    basis = f"each of {len(left)} scores begun here, for {SECONDS:g} s at most"
    return Foreseen(path, False, size, seconds / 60, basis, more={"scores": [one.name for one in left]}).told()


def _computed(
    path: Path,
    data: PackedData,
    sources: Sources,
    wanted: list[Wanted],
    fingerprints: dict[str, str],
    force: bool,
    progress: Progress,
) -> list[dict[str, Any]]:
    """What there is to tell of all that is `wanted`, now in the file `path`, beside what was in it and is still so."""
    with only_writer(path):
        old = _old(path, data, force, score_command(data.record, sources.teacher))
        found = {key: one for key, one in old.items() if _is_fresh(one, sources, fingerprints)}
        unchanged = {one.name for one in wanted if not force and _same(found.get(one.name), one.attributes)}
        for one in wanted:
            if one.name not in unchanged:
                found[one.name] = Scored(one.compute(progress).astype(np.float32), one.attributes)
        if len(unchanged) < len(wanted) or found.keys() != old.keys():
            train = data.split("train")
            rows_n, labels_n = np.arange(len(train)), train.labels_n.astype(np.int64)
            write_scores(path, _record(data.record, sources), rows_n, labels_n, found)
    return [_told(one.name, found[one.name], one.name in unchanged, path) for one in wanted]


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


def _is_fresh(scored: Scored, sources: Sources, fingerprints: dict[str, str]) -> bool:
    """Whether it is of the teacher's present training, and what it was computed from is as it was, or gone."""
    about = scored.attributes
    same_source = fingerprints.get(str(about.get("of")), about.get("source")) == about.get("source")
    return same_source and about.get("teacher_fingerprint") == sources.teacher_fingerprint


def _same(scored: Scored | None, attributes: dict[str, Any]) -> bool:
    return (
        scored is not None and {key: value for key, value in scored.attributes.items() if key != "high"} == attributes
    )


def _told(name: str, scored: Scored, unchanged: bool, path: Path) -> dict[str, Any]:
    values_n = np.asarray(scored.values_n, dtype=np.float64)
    return {
        "name": name,
        "mean": float(values_n.mean()),
        "min": float(values_n.min()),
        "max": float(values_n.max()),
        "definition": str(scored.attributes.get("definition", "")),
        "unchanged": unchanged,
        "path": str(path),
    }


def _record(data: DataRecord, sources: Sources | None) -> ScoresRecord:
    return ScoresRecord(
        dataset=data.dataset,
        data_fingerprint=data.train_fingerprint,
        limit=data.limit,
        teacher=None if sources is None else sources.teacher,
        teacher_fingerprint=None if sources is None else sources.teacher_fingerprint,
        command=command_line(),
        created=now(),
        versions=versions(),
    )


def _import(
    workspace: Workspace,
    data: PackedData,
    file: Path,
    name: str | None,
    low_is_hard: bool,
    force: bool,
    dry_run: bool,
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
    path = scores_path(workspace, record, IMPORTED)
    if dry_run:
        size = values_n.size * np.dtype(np.float32).itemsize
        return Foreseen(path, False, size, 0.0, "the file was read, and is whole", more={"scores": [name]}).told()
    with only_writer(path):
        old = _old(path, data, False, import_command(record, path))
        # + 0.0, for a zero turned is -0.0
        scored = Scored((-values_n if low_is_hard else values_n).astype(np.float32) + np.float32(0), about)
        unchanged = not force and name in old and np.array_equal(old[name].values_n, scored.values_n)
        if name in old and not unchanged and not force:
            raise FailureError(
                f"{path}: holds another score {name} ({old[name].attributes.get('definition')}). "
                "Give this one another --name, or pass --force to replace it"
            )
        if not unchanged:
            write_scores(path, _record(record, None), np.arange(len(train)), labels_n, {**old, name: scored})
        told = _told(name, old[name] if unchanged else scored, unchanged, path)
    return {
        "path": str(path),
        "dataset": record.key,
        "teacher": None,
        "rows": record.train_rows,
        "scores": [told],
        "skipped": [],
    }
