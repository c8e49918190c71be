"""kdtool sweep: many students over every combination of settings, several at a time, in a table that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.device import available_cpus
from toolkit.core.errors import UsageError
from toolkit.core.interrupts import Stopped
from toolkit.core.locks import only_writer
from toolkit.core.memory import left_bytes, limit, taken_bytes, within_memory
from toolkit.core.progress import Progress, Tick, silent
from toolkit.core.sizes import in_words
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.run_folder import images_before
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import check_source
from toolkit.pipeline.sweep.file import need_same_study, read_sweep
from toolkit.pipeline.sweep.foreseen import foreseen_sweep
from toolkit.pipeline.sweep.pool import refuse_unguarded, train_all
from toolkit.pipeline.sweep.prepare import Prepared, prepare
from toolkit.pipeline.sweep.request import Cell, Sweep, label_of
from toolkit.pipeline.sweep.resolve import Run, finished
from toolkit.pipeline.sweep.table import Table, results_path, write_asked
from toolkit.pipeline.sweep.worker import Done, Failed, How

T = TypeVar("T")
_Some: TypeAlias = T | Sequence[T] | None  # of an axis: one value, or several

_PROCESS_BYTES = 1 << 28  # Python and torch: 290 MiB on the CPU, FFCV comes to it


@within_memory
def sweep(
    file: Place | None = None,
    *,
    workspace: Workspace | Place = defaults.WORKSPACE,
    frac: _Some[float] = None,
    method: _Some[str] = None,
    alpha: _Some[float | str] = None,
    temperature: _Some[float] = None,
    loss: _Some[str] = None,
    match: _Some[str] = None,
    arch: _Some[str] = None,
    teacher: _Some[str | None] = None,
    seed: _Some[int | str] = None,
    subset_seed: int | None = None,
    dataset: str | None = None,
    limit: int | None = None,
    score: str | None = None,
    center: float | None = None,
    drop_hardest: float | None = None,
    balance: bool | None = None,
    nested: bool | None = None,
    min_per_class: int | None = None,
    views: str | int | None = None,
    weights: bool | None = None,
    beta: float | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    iterations: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    label_smoothing: float | None = None,
    ema: float | None = None,
    width: int | None = None,
    compile: bool | None = None,
    device: str | None = None,
    precision: str | None = None,
    name: str | None = None,
    shard: str | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    source: str = defaults.SOURCE,
    memory_limit: str | int | None = None,
    data_dir: Place | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
    on_note: Callable[[str], None] = lambda line: None,
    on_cell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains a student for every combination of settings: `run_sweep`, of the YAML `file` and what is said besides.

    From `frac` to `name` they are the keys of the file too, each a value or several; None leaves it to the file, and
    then to the default of `Sweep`. `shard` "i/n" takes the i-th of n parts. Raises UsageError or FailureError.
    """
    said = {
        "frac": frac,
        "method": method,
        "alpha": alpha,
        "temperature": temperature,
        "loss": loss,
        "match": match,
        "arch": arch,
        "teacher": teacher,
        "seed": seed,
        "subset_seed": subset_seed,
        "dataset": dataset,
        "limit": limit,
        "score": score,
        "center": center,
        "drop_hardest": drop_hardest,
        "balance": balance,
        "nested": nested,
        "min_per_class": min_per_class,
        "views": views,
        "weights": weights,
        "beta": beta,
        "recipe": recipe,
        "epochs": epochs,
        "iterations": iterations,
        "batch_size": batch_size,
        "lr": lr,
        "label_smoothing": label_smoothing,
        "ema": ema,
        "width": width,
        "compile": compile,
        "device": device,
        "precision": precision,
        "name": name,
    }
    part = _shard(shard)
    asked, called = read_sweep(as_path(file), {key: value for key, value in said.items() if value not in (None, ())})
    how = (part, jobs, threads, source, as_path(data_dir), dry_run, progress, on_note, on_cell)
    return run_sweep(Workspace.at(workspace), asked, called, *how)


def _shard(said: str | None) -> tuple[int, int]:
    number, slash, count = (said or "1/1").partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise UsageError(f"--shard: expected i/n, such as 1/4, got '{said}'")
    return int(number), int(count)


def run_sweep(
    workspace: Workspace,
    asked: Sweep,
    name: str,
    shard: tuple[int, int] = (1, 1),
    jobs: int | None = None,
    threads: int | None = None,
    source: str = defaults.SOURCE,
    data_dir: Path | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
    on_note: Callable[[str], None] = lambda line: None,
    on_cell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains a student for every cell of `asked`, those that are the same run once, and keeps the table sweeps/`name`.

    What is missing is made first, by this process: packed data, caches, subsets. Then `jobs` processes (default: on
    CPUs as many as fit with `threads` each, 1 by default; one on a GPU) train cell after cell. A cell that fails is
    kept in the table and stops no other. Run again, finished cells are not trained again, half-trained ones go on, and
    failed ones are tried again; cells of the same study that are not asked for now stay in the table. `shard` (i, n)
    takes the i-th of n parts, a fixed choice of the distinct cells.

    `memory_limit` is of this process and all jobs together. With `dry_run` nothing is written: the result tells what
    there is to do, and is `Foreseen.told`. Raises UsageError or FailureError, and Stopped on SIGINT or SIGTERM.
    """
    refuse_unguarded()
    jobs, threads = _shared_out(asked, jobs, threads)
    check_source(source)
    cells = part_of(asked, shard)
    path = results_path(workspace, name, shard)
    need_same_study(workspace, name, asked)
    if not cells:
        distinct = len(set(map(asked.essence, asked.cells)))
        on_note(f"--shard {shard[0]}/{shard[1]} has no cells: there are {distinct} distinct ones")
    if dry_run:
        Table(path, cells)  # a damaged one is told
        return foreseen_sweep(workspace, asked, path, cells, jobs, source, data_dir, progress)
    how = How(workspace, asked.device, asked.precision, asked.compile, threads, source, data_dir, share_of_memory(jobs))
    with only_writer(path):
        course = _Course(asked, Table(path, cells), on_cell)
        prepared = prepare(workspace, asked, cells, data_dir, progress, on_note)
        write_asked(workspace, name, asked)
        if course.table.kept:
            on_note(f"{path}: cells asked for earlier that stay in it: {len(course.table.kept)}")
        remaining = course.begin(workspace, prepared)
        need_room(remaining, how, jobs)
        with progress("sweep", sum(map(course.to_show, remaining)), "img") as tick:
            course.tick = tick
            stopped = train_all(remaining, how, jobs, course.images, course.end) if remaining else 0
    if stopped:
        raise Stopped(
            f"stopped: {course.ended} of {course.runs} runs have ended, and those under way are saved. "
            f"The same command goes on; what is there so far: {path}",
            stopped,
        )
    lines = course.table.lines
    return {
        "path": str(path),
        "name": name,
        "cells": len(cells),
        "runs": course.runs,
        "failed": sum(line["status"] == "failed" for line in lines),
        "varied": asked.varied,
        "results": lines,
    }


def part_of(asked: Sweep, shard: tuple[int, int]) -> list[Cell]:
    """The cells of the i-th of n shards. Those that are the same run, as far as can be told before anything is made,
    stay together; the same on every machine. Raises UsageError for a shard that there is not."""
    number, count = shard
    if not 1 <= number <= count:
        raise UsageError(f"--shard must be i/n with i from 1 to n, got {number}/{count}")
    essences = {cell: asked.essence(cell) for cell in asked.cells}
    mine = set(list(dict.fromkeys(essences.values()))[number - 1 :: count])
    return [cell for cell, essence in essences.items() if essence in mine]


def _shared_out(asked: Sweep, jobs: int | None, threads: int | None) -> tuple[int, int | None]:
    """How many processes, and threads in each: None, on a GPU, leaves them to torch."""
    for option, value in (("jobs", jobs), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"--{option} must be at least 1, got {value}")
    if compute_on(asked.device, asked.precision).device.type == "cuda":
        return jobs or 1, threads
    threads = threads or 1
    return jobs or max(1, available_cpus() // threads), threads


def share_of_memory(jobs: int) -> int | None:
    """What --memory-limit leaves each of so many processes, after this one has had its own. Raises UsageError where
    none could begin with that."""
    if limit() is None:
        return None
    share, taken = left_bytes() // jobs, _taken_before()
    if share <= taken:
        raise _too_small(share, jobs, f"a process takes {in_words(taken)} before it begins")
    return share


def need_room(runs: list[Run], how: How, jobs: int) -> None:
    """Raises UsageError where what --memory-limit leaves each process is too little for what a run holds at least."""
    if how.memory_limit is None:
        return
    for run in runs:
        held, taken = run.least_bytes[how.source], _taken_before()
        if taken + held > how.memory_limit:
            what = f"{run.name} holds {in_words(held)} beside the {in_words(taken)} of a process"
            raise _too_small(how.memory_limit, jobs, what)


def _taken_before() -> int:
    """What a process of the sweep takes before it trains: as this one, which may hold more by now."""
    return min(taken_bytes(), _PROCESS_BYTES)


def _too_small(share: int, jobs: int, what: str) -> UsageError:
    fewer = ", or fewer --jobs" if jobs > 1 else ""
    return UsageError(
        f"--memory-limit: {in_words(limit() or 0)} leave {in_words(share)} to each of {jobs} at a time, and {what}. "
        f"Give it more{fewer}"
    )


@dataclass
class _Course:
    """A sweep as it runs: what has ended goes to the table, and is told."""

    asked: Sweep
    table: Table
    on_cell: Callable[[str], None]
    tick: Tick = lambda n: None
    runs: int = 0
    ended: int = 0
    shown: dict[str, int] = field(default_factory=dict)
    reasons: set[str] = field(default_factory=set)

    def begin(self, workspace: Workspace, prepared: Prepared) -> list[Run]:
        """The runs that are still to be trained; the table then holds those that are there, and the cells unfit."""
        keys = {cell: run.key for run in prepared.runs for cell in run.cells}
        self.table.keep_only(keys.get)
        remaining = []
        for run in prepared.runs:
            name, result = finished(workspace, run)
            if result is None:
                remaining.append(run)
                self.table.not_done(run.cells)
                self.shown[run.key] = min(images_before(workspace.run(name)), run.images)
            elif not self.table.says(run.cells, name, result):
                self._done(run, Done(name, result, 0.0))
        self.runs = len(prepared.runs) + len(prepared.unfit)
        self.ended = len(prepared.runs) - len(remaining)
        for cell, reason in prepared.unfit.items():
            self.table.put([cell], None, "failed", error=reason)
            self._tell(label_of(cell, self.asked.varied), self._failed(reason))
        self.table.write()
        return remaining

    def to_show(self, run: Run) -> int:
        """How many images the run has still to be shown."""
        return run.images - self.shown[run.key]

    def images(self, run: Run, count: int) -> None:
        """Counts no more than the run has: one that repeats an epoch is shown more."""
        count = min(count, self.to_show(run))
        self.shown[run.key] += count
        self.tick(count)

    def end(self, run: Run, outcome: Done | Failed) -> None:
        self.tick(-self.to_show(run))  # what another process showed it, or nobody will
        if isinstance(outcome, Done):
            self._done(run, outcome)
            agreement = outcome.result.get("agreement")
            agrees = "" if agreement is None else f", agrees with the teacher on {agreement:.2f} %"
            said = f"{outcome.result['top1']:.2f} %{agrees}, {outcome.seconds:,.0f} s"
        else:
            trace = {} if outcome.trace is None else {"trace": outcome.trace}
            self.table.put(run.cells, run.key, "failed", error=outcome.error, settings=run.settings, **trace)
            said = self._failed(outcome.error)
        self.table.write()
        self._tell(label_of(run.cells[0], self.asked.varied), said)

    def _done(self, run: Run, outcome: Done) -> None:
        ended = {"run": outcome.name, "settings": run.settings, "result": outcome.result, "seconds": outcome.seconds}
        self.table.put(run.cells, run.key, "done", **ended)

    def _failed(self, error: str) -> str:
        """What is the matter, in full the first time: a full disk stops every run, each with a path of its own."""
        where, _, reason = error.partition(": ")
        known = (reason or where) in self.reasons
        self.reasons.add(reason or where)
        return f"failed: {error}" if not known else "failed: " + (f"{where}: as above" if reason else "as above")

    def _tell(self, label: str, said: str) -> None:
        self.ended += 1
        self.on_cell(f"[{self.ended}/{self.runs}] {label}: {said}")
