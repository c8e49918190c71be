"""What the runs of a sweep stand on: data packed, caches made where missing, subsets built. All of it in the main
process, one after another; or, of a dry run, only told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from toolkit.core.errors import FailureError
from toolkit.core.imported import imported, is_reference
from toolkit.core.locks import Locked
from toolkit.core.progress import Progress, silent
from toolkit.formats.dataset import PackedData, data_key, open_packed
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model
from toolkit.pipeline.cache import cache_teacher
from toolkit.pipeline.cache_request import slots_for
from toolkit.pipeline.data import check_dataset, ensure_packed
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.score_sources import open_cache_of, teacher_for, teacher_of
from toolkit.pipeline.subset import build_subsets
from toolkit.pipeline.sweep.request import Cell, Sweep
from toolkit.pipeline.sweep.resolve import Run, resolve

Note = Callable[[str], None]
T = TypeVar("T")

_WAIT_S = 1.0


class Chosen(NamedTuple):
    """What decides a subset: also the teacher's name, where a teacher has a part in its cells."""

    method: str
    frac: float
    teacher: str | None
    seed: int


@dataclass(frozen=True)
class Prepared:
    """The distinct runs in the order of their first cells; the cells that could not be prepared, with the reason; and,
    of a dry run, what there is to make, in words."""

    runs: list[Run]
    unfit: dict[Cell, str]
    to_make: list[str]


@dataclass
class _Ground:
    """What is there already for some cells of a sweep. `named` are teachers with a cache, by what the user calls them;
    `slots` how many views are used, None for all; `failed` why a subset could not be built; `lacks`, of a dry run, the
    teachers whose targets a subset that is there has to get."""

    workspace: Workspace
    sweep: Sweep
    compute: Compute
    data: PackedData
    slots: int | None
    named: dict[str | None, str] = field(default_factory=dict)
    subsets: dict[Chosen, str] = field(default_factory=dict)
    failed: dict[Chosen, str] = field(default_factory=dict)
    lacks: dict[Chosen, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, workspace: Workspace, sweep: Sweep, compute: Compute, data: PackedData) -> _Ground:
        """Raises UsageError for views that these data have not, and for architectures that are none."""
        for arch in sweep.arch:
            build_model(arch, data.record.classes, sweep.width)
        slots = None if sweep.views is None else slots_for(sweep.views, data.record.plan)
        return cls(workspace, sweep, compute, data, slots)

    def cached(self, teacher: str) -> bool:
        """Whether the teacher's cache is there, with as many slots. Raises FailureError for one that is damaged, or of
        other data."""
        if not self.workspace.cache(teacher, self.data.record.limit).is_file():
            return False
        with ExitStack() as stack:
            return open_cache_of(stack, self.workspace, self.data, teacher).slots >= (self.slots or 1)

    def chosen(self, cell: Cell) -> Chosen:
        teacher = self.named.get(cell.teacher) if cell.needs_teacher else None
        return Chosen(cell.method, cell.frac, teacher, self.sweep.seed_of_subset(cell))

    def calls(self, cells: Iterable[Cell]) -> list[list[Chosen]]:
        """The subsets of these cells, in groups that one call of `build_subsets` makes, in its order."""
        fractions: dict[tuple[str | None, int, str], tuple[float, ...]] = {}
        for one in dict.fromkeys(map(self.chosen, cells)):
            key = (one.teacher, one.seed, one.method)
            fractions[key] = (*fractions.get(key, ()), one.frac)
        groups: dict[tuple[Any, ...], list[Chosen]] = {}
        for (teacher, seed, method), of_method in fractions.items():
            group = groups.setdefault((teacher, seed, of_method), [])
            group += [Chosen(method, frac, teacher, seed) for frac in of_method]
        return list(groups.values())

    def built(self, group: list[Chosen], **more: Any) -> list[dict[str, Any]]:
        """The results of `build_subsets` for a group."""
        asked = self.sweep.subsets_of(
            tuple(dict.fromkeys(one.method for one in group)), group[0].teacher, group[0].seed
        )
        fractions, record = list(dict.fromkeys(one.frac for one in group)), self.data.record
        return build_subsets(self.workspace, fractions, record.dataset, **asked, limit=record.limit, **more)

    def build(self, group: list[Chosen], on_note: Note, **more: Any) -> None:
        """Fills in the subsets' names; where a call for many fails, each is asked for alone, and its reason kept."""
        try:
            results = patiently(lambda: self.built(group, **more), on_note)
        except FailureError as error:
            if len(group) == 1:
                self.failed[group[0]] = str(error)
            else:
                for one in group:
                    self.build([one], on_note, **more)
            return
        self.subsets.update({one: result["name"] for one, result in zip(group, results, strict=True)})

    def stands(self, cell: Cell) -> bool:
        """Of a dry run, whether the subset is there, with the targets that the cell learns from."""
        one = self.chosen(cell)
        return one in self.subsets and not (cell.taught and self.named[cell.teacher] in self.lacks[one])

    def resolved(self, cells: Iterable[Cell]) -> tuple[list[Run], dict[Cell, str]]:
        unfit, asked = {}, {}
        for cell in cells:
            one = self.chosen(cell)
            if one in self.failed:
                unfit[cell] = self.failed[one]
            else:
                asked[cell] = self.sweep.trained(cell, self.subsets[one], self.named.get(cell.teacher), self.slots)
        runs, more = resolve(self.workspace, self.sweep, self.compute, asked)
        return runs, unfit | more


def prepare(
    workspace: Workspace,
    sweep: Sweep,
    cells: list[Cell],
    data_dir: Path | None = None,
    progress: Progress = silent,
    on_note: Note = lambda line: None,
) -> Prepared:
    """Makes what these cells lack. A subset that cannot be built leaves its cells unfit, and stops no others; all else
    is refused at once. What another process is just making is waited for. Raises UsageError or FailureError."""
    compute = compute_on(sweep.device, sweep.precision)
    if not packed_in(workspace, sweep):
        check_names(workspace, sweep, cells)
    how: dict[str, Any] = {"data_dir": data_dir, "progress": progress}
    data = patiently(lambda: ensure_packed(workspace, sweep.dataset, limit=sweep.limit, **how), on_note)
    ground = _Ground.of(workspace, sweep, compute, data)
    for teacher in _teachers(cells):
        ground.named[teacher] = teacher_of(workspace, teacher, data.record)
        if not ground.cached(ground.named[teacher]):
            _cache(ground, teacher, how, on_note)
    for group in ground.calls(cells):
        ground.build(group, on_note, **how)
    if compute.device.type == "cuda":
        torch.cuda.empty_cache()  # for the processes that train
    return Prepared(*ground.resolved(cells), [])


def _cache(ground: _Ground, teacher: str | None, how: dict[str, Any], on_note: Note) -> None:
    sweep, views = ground.sweep, {} if ground.sweep.views is None else {"views": ground.sweep.views}
    asked = {"dataset": sweep.dataset, "limit": sweep.limit, "teacher": teacher, "device": sweep.device, **views, **how}
    on_note(f"running the teacher {ground.named[teacher]} once: its cache is to be made, or to grow")
    patiently(lambda: cache_teacher(ground.workspace, **asked, on_note=on_note), on_note)


def survey(workspace: Workspace, sweep: Sweep, cells: list[Cell]) -> Prepared:
    """What `prepare` would make, in words, and the runs of cells that lack nothing. Writes nothing."""
    compute = compute_on(sweep.device, sweep.precision)
    folder = workspace.data(data_key(sweep.dataset, sweep.limit))
    ground = _Ground.of(workspace, sweep, compute, open_packed(folder))
    to_make = _missing_caches(ground, cells)
    ready = [cell for cell in cells if not cell.needs_teacher or cell.teacher in ground.named]
    for group in ground.calls(ready):
        to_make += _missing_subsets(ground, group)
    if len(ready) < len(cells):
        to_make.append("then the subsets and targets that wait for a cache")
    runs, _ = ground.resolved(filter(ground.stands, ready))
    return Prepared(runs, {}, list(dict.fromkeys(to_make)))


def packed_in(workspace: Workspace, sweep: Sweep) -> bool:
    return (workspace.data(data_key(sweep.dataset, sweep.limit)) / "data.json").is_file()


def check_names(workspace: Workspace, sweep: Sweep, cells: list[Cell]) -> None:
    """Raises UsageError or FailureError for data, teachers and architectures that are none: packing takes minutes."""
    if check_dataset(sweep.dataset, sweep.limit) is None and is_reference(sweep.dataset):
        imported(sweep.dataset, "--dataset")
    for teacher in _teachers(cells):
        teacher_for(workspace, teacher, sweep.dataset, sweep.limit)
    for arch in sweep.arch:
        if is_reference(arch):  # how many classes it will be asked for is not known yet
            imported(arch, "--arch")
        else:
            build_model(arch, 2, sweep.width)


def _missing_caches(ground: _Ground, cells: list[Cell]) -> list[str]:
    """In words; the teachers whose caches are there are `named`."""
    missing, record = [], ground.data.record
    for teacher in _teachers(cells):
        name = teacher_of(ground.workspace, teacher, record)
        if ground.cached(name):
            ground.named[teacher] = name
        else:
            path = ground.workspace.cache(name, record.limit)
            missing.append(f"{path}: {ground.slots or 'the usual'} views of {record.train_rows:,} rows, by the teacher")
    return missing


def _missing_subsets(ground: _Ground, group: list[Chosen]) -> list[str]:
    """In words, with the targets that are to be cut; the names of subsets that are there are noted."""
    try:
        results = ground.built(group, dry_run=True, timed=False)
    except FailureError as error:
        if len(group) > 1:
            return [line for one in group for line in _missing_subsets(ground, [one])]
        return [f"subset by {group[0].method} of {group[0].frac:g}: {error}"]
    lines = []
    for one, found in zip(group, results, strict=True):
        folder = ground.workspace.root / "subsets" / found["name"]
        if found["there"] or found["lacks"]:
            ground.subsets[one], ground.lacks[one] = found["name"], found["lacks"]
            lines += [f"{folder}: the targets of {teacher}, to be cut again" for teacher in found["lacks"]]
        else:
            lines.append(f"{folder}: {round(one.frac * ground.data.record.train_rows):,} rows")
    return lines


def patiently(work: Callable[[], T], on_note: Note = lambda line: None) -> T:
    """What `work` returns, tried again as long as another process holds a lock that it needs."""
    told = False
    while True:
        try:
            return work()
        except Locked as error:
            if not told:
                on_note(f"waiting: {str(error).partition('. ')[0]}")
            told = True
            time.sleep(_WAIT_S)


def _teachers(cells: Iterable[Cell]) -> list[str | None]:
    return list(dict.fromkeys(cell.teacher for cell in cells if cell.needs_teacher))
