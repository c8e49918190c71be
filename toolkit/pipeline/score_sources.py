"""What kdtool score computes from: a teacher's cache and the dynamics of its training, found and checked."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.formats.cache import CacheReader, open_cache
from toolkit.formats.dataset import DataRecord, PackedData, cache_command
from toolkit.formats.dynamics import DynamicsReader, DynamicsRecord, open_dynamics
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.known_teachers import PRETRAINED, find_teacher, is_file_name, name_of


@dataclass(frozen=True)
class Sources:
    """What a teacher left: its cache and its dynamics, where they are there, of all of these data's rows and of one
    training.

    `missing` says of either that is not, in one line, why and what to run.
    """

    data: PackedData
    teacher: str
    cache: CacheReader | None
    dynamics: DynamicsReader | None
    missing: dict[str, str]

    @property
    def teacher_fingerprint(self) -> str:
        """The one teacher's that both are of."""
        there = self.cache if self.cache is not None else self.dynamics
        assert there is not None
        return there.record.teacher_fingerprint

    def fingerprints(self) -> dict[str, str]:
        """Of what scores are computed from, by the file (cache or dynamics)."""
        found = {}
        if self.cache is not None:
            found["cache"] = features_fingerprint(self.cache)
        if self.dynamics is not None:
            found["dynamics"] = self.dynamics.fingerprint()
        return found


def features_fingerprint(cache: CacheReader) -> str:
    """Of what scores are computed from that the pass did not write itself."""
    return cache.contents_fingerprint(*(["features"] if cache.has_features else []), "labels")


def lacking_features(cache: CacheReader, what: str) -> UsageError:
    """The error for `what` needs features, where logits were imported without any."""
    return UsageError(
        f"{what} needs features, and {cache.path} holds none: its logits were imported alone. "
        f"Run: {cache.made_by} --features FILE"
    )


def open_sources(stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str) -> Sources:
    """Raises FailureError for files that are damaged, a cache of other data, and where there is nothing at all."""
    record, missing = data.record, {}
    cache_path, path = workspace.cache(teacher, record.limit), workspace.teacher(teacher) / "dynamics.h5"
    cache = open_cache_of(stack, workspace, data, teacher) if cache_path.is_file() else None
    if cache is None:
        missing["cache"] = f"{cache_path}: not found. Run: {cache_command(record, teacher).removesuffix(' --force')}"
    dynamics = None
    if not path.is_file():
        missing["dynamics"] = f"{path}: not found. Run: {_train_command(record)}"
    else:
        dynamics = stack.enter_context(open_dynamics(path))
        unfit = _unfit(dynamics, data, cache, teacher)
        if unfit:
            missing["dynamics"] = f"{path}: {unfit}"
            dynamics = None
    if cache is None and dynamics is None:
        raise FailureError(f"scores: nothing to score from. {missing['cache']}. {missing['dynamics']}")
    return Sources(data, teacher, cache, dynamics, missing)


def _unfit(dynamics: DynamicsReader, data: PackedData, cache: CacheReader | None, teacher: str) -> str:
    """Why the dynamics don't tell about every training row and the cache's teacher, and what to run; or nothing."""
    found, wanted, rows = dynamics.record, data.record, f"{len(dynamics.rows_n):,} rows"
    subset, train = found.settings.get("subset"), _train_command(wanted)
    if found.dataset == wanted.dataset and subset is not None:
        of = "" if found.limit == wanted.limit else f" of {_named(found)}"
        return (
            f"recorded on the subset {subset}{of}, {rows} of {wanted.train_rows:,}; scores need every row. Run: {train}"
        )
    if found.dataset == wanted.dataset and found.limit != wanted.limit:
        there = f"kdtool score {options_of(found)} --teacher {teacher}"
        return f"recorded on {_named(found)}, {rows}, but the data are {_named(wanted)}. Run: {there}, or {train}"
    if found.data_fingerprint != wanted.train_fingerprint:
        return (
            f"recorded on {_named(found)} ({found.data_fingerprint}), but the data are {_named(wanted)} "
            f"({wanted.train_fingerprint}). Run: {train}"
        )
    if not np.array_equal(dynamics.rows_n, np.arange(wanted.train_rows)):
        return f"recorded on {rows} of {wanted.train_rows:,}; scores need every row. Run: {train}"
    if cache is not None and cache.record.teacher_fingerprint != found.teacher_fingerprint:
        trained_since = found.created > cache.record.created
        return (
            f"recorded in another training of {teacher} ({found.teacher_fingerprint}) than {cache.path.name} is of "
            f"({cache.record.teacher_fingerprint}). Run: {cache_command(wanted, teacher) if trained_since else train}"
        )
    return ""


def teacher_if_any(workspace: Workspace, teacher: str | None, record: DataRecord) -> str | None:
    """The teacher's name, or None where none was named and no one comes with kdtool."""
    if teacher is None and record.dataset not in PRETRAINED:
        return None
    return teacher_of(workspace, teacher, record)


def teacher_of(workspace: Workspace, teacher: str | None, record: DataRecord) -> str:
    """The teacher's name. What it left behind is enough: its weights may be gone."""
    return teacher_for(workspace, teacher, record.dataset, record.limit)


def teacher_for(workspace: Workspace, teacher: str | None, dataset: str, limit: int | None) -> str:
    """`teacher_of`, where the data are not packed yet."""
    if teacher is not None and not is_file_name(teacher):
        name = name_of(teacher)
        left = (workspace.cache(name, limit), workspace.teacher(name) / "dynamics.h5")
        if any(path.is_file() for path in left):
            return name
    return find_teacher(workspace, teacher, dataset).name


def open_cache_of(stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str) -> CacheReader:
    """The teacher's cache of these data. Raises FailureError when it is missing, damaged or of others."""
    made_by = cache_command(data.record, teacher)
    cache = stack.enter_context(open_cache(workspace.cache(teacher, data.record.limit), made_by))
    if cache.record.data_fingerprint != data.record.train_fingerprint:
        raise FailureError(
            f"{cache.path}: made from {cache.record.dataset} ({cache.record.data_fingerprint}), but the data are "
            f"{data.record.key} ({data.record.train_fingerprint}). Run: {made_by}"
        )
    return cache


def options_of(record: DataRecord | DynamicsRecord) -> str:
    """The options that name these data."""
    return f"--dataset {record.dataset}" + ("" if record.limit is None else f" --limit {record.limit}")


def score_command(record: DataRecord, teacher: str) -> str:
    return f"kdtool score {options_of(record)} --teacher {teacher} --force"


def _named(record: DataRecord | DynamicsRecord) -> str:
    return options_of(record).removeprefix("--dataset ")


def _train_command(record: DataRecord) -> str:
    options = options_of(record)
    return f"kdtool train-teacher {options} --name NAME, then kdtool score {options} --teacher NAME"
