"""kdtool sweep --dry-run: the state of every cell, what there is to make, and what all of it takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, KdtoolError
from toolkit.core.files import read_json
from toolkit.core.progress import Progress
from toolkit.core.recipes import Recipe, resolve_recipe
from toolkit.formats.dataset import PackedData, data_key, open_packed
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.alpha_search import images_in
from toolkit.pipeline.cache_cost import cache_cost
from toolkit.pipeline.foresee.foreseen import Foreseen, on_packed
from toolkit.pipeline.foresee.training import basis, teacher_rate, weights_bytes
from toolkit.pipeline.known_networks import new_network
from toolkit.pipeline.run_folder import images_before
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.sweep.prepare import check_names, packed_in, survey
from toolkit.pipeline.sweep.request import Cell, Sweep, label_of
from toolkit.pipeline.sweep.resolve import Run, finished
from toolkit.teacher.train import label_loss

_SEARCH = 1.6  # times a run's images, of --alpha search: see alpha_search
_SAME = ("arch", "width", "device", "precision", "batch_size")  # of runs that are as fast


def foreseen_sweep(
    workspace: Workspace,
    sweep: Sweep,
    path: Path,
    cells: list[Cell],
    jobs: int,
    source: str,
    data_dir: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """What a dry run tells: of each distinct cell its state, what there is to make, and `Foreseen.told`."""
    unpacked = not packed_in(workspace, sweep)
    if unpacked:
        check_names(workspace, sweep, cells)
    folder = workspace.data(data_key(sweep.dataset, sweep.limit))
    first = [f"{folder}: the packed data"] if unpacked else []

    def look(there: Workspace) -> dict[str, Any]:
        return _looked_at(there, sweep, path, cells, jobs, source, first)

    return on_packed(workspace, look, sweep.dataset, sweep.limit, data_dir, progress=progress)


def _looked_at(
    workspace: Workspace, sweep: Sweep, path: Path, cells: list[Cell], jobs: int, source: str, first: list[str]
) -> dict[str, Any]:
    found = survey(workspace, sweep, cells)
    data = open_packed(workspace.data(data_key(sweep.dataset, sweep.limit)))
    runs = {cell: run for run in found.runs for cell in run.cells}
    states: dict[Any, dict[str, Any]] = {}
    to_train: list[tuple[Cell, int]] = []
    recipe = resolve_recipe(sweep.recipe, sweep.epochs, sweep.batch_size, sweep.lr, sweep.label_smoothing, sweep.ema)
    for cell in cells:
        run = runs.get(cell)
        same = sweep.essence(cell) if run is None else run.key
        if same in states:
            continue
        name, result = (None, None) if run is None else finished(workspace, run)
        states[same] = {"cell": label_of(cell, sweep.varied), "state": "to do" if result is None else "done"}
        if result is None:
            begun = 0 if name is None else images_before(workspace.run(name))
            to_train.append((cell, max(0, _images(sweep, recipe, cell, run, data.record.train_rows) - begun)))
    caches = _caches(workspace, sweep, cells) if found.to_make else []
    trained = _Trained(workspace, sweep, recipe, data, source)
    seconds = sum(images / trained.rate(cell.arch) for cell, images in to_train)
    minutes = seconds / 60 / min(jobs, max(1, len(to_train))) + sum(cost["minutes"] for cost in caches)
    size = sum(trained.size(cell.arch) for cell, _ in to_train) + sum(cost["bytes"] for cost in caches)
    at_once = f"; {jobs} at a time, each as fast as one alone" if jobs > 1 else ""
    said = "; ".join(dict.fromkeys([*(f"the teacher: {cost['basis']}" for cost in caches), *trained.said.values()]))
    more = {
        "cells": len(cells),
        "runs": len(states),
        "done": sum(state["state"] == "done" for state in states.values()),
        "jobs": jobs,
        "to_make": [*first, *found.to_make],
        "listing": list(states.values()),
    }
    return Foreseen(
        path,
        not to_train,
        size,
        minutes,
        f"{said}{at_once}" if said else "nothing is left to train",
        teacher_passes=sum(cost["teacher_passes"] for cost in caches),
        student_passes=sum(images for _, images in to_train),
        more=more,
    ).told()


def _images(sweep: Sweep, recipe: Recipe, cell: Cell, run: Run | None, rows: int) -> int:
    """How many images the cell's student is shown, its subset there or not, and its search for an alpha too."""
    kept = max(1, round(cell.frac * rows))
    steps = sweep.iterations or recipe.epochs * -(-kept // recipe.batch_size)
    images = images_in(steps, kept, recipe.batch_size) if run is None else run.images
    return round((1 + _SEARCH) * images) if cell.alpha == "search" else images


def _caches(workspace: Workspace, sweep: Sweep, cells: list[Cell]) -> list[dict[str, Any]]:
    """Of each teacher what its cache still costs."""
    views = {} if sweep.views is None else {"views": sweep.views}
    asked = {"dataset": sweep.dataset, "limit": sweep.limit, "device": sweep.device, **views}
    teachers = dict.fromkeys(cell.teacher for cell in cells if cell.needs_teacher)
    costs = [_cost(workspace, teacher, asked) for teacher in teachers]
    return [cost for cost in costs if cost is not None and not cost["there"]]


def _cost(workspace: Workspace, teacher: str | None, asked: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return cache_cost(workspace, fresh=False, teacher=teacher, **asked)
    except FailureError:  # imported logits, which no network makes: there is nothing to run
        return None


class _Trained:
    """How fast students of an architecture train, from a run that is there, or by a trial; `said` is the basis."""

    def __init__(self, workspace: Workspace, sweep: Sweep, recipe: Recipe, data: PackedData, source: str) -> None:
        self._workspace, self._sweep, self._recipe = workspace, sweep, recipe
        self._data, self._source, self.said = data, source, dict[str, str]()
        self._rates: dict[str, float] = {}
        self._compute: Compute = compute_on(sweep.device, sweep.precision)

    def rate(self, arch: str) -> float:
        if arch not in self._rates:
            earlier = self._earlier(arch)
            self._rates[arch] = self._tried(arch) if earlier is None else earlier
        return self._rates[arch]

    def size(self, arch: str) -> int:
        return 0 if math.isinf(self.rate(arch)) else self.bytes(arch)

    def bytes(self, arch: str) -> int:
        return weights_bytes(new_network(arch, self._sweep.width, 0, self._data.record, self._compute))

    def _earlier(self, arch: str) -> float | None:
        wanted = (arch, self._sweep.width, self._compute.device.type, self._compute.precision, self._recipe.batch_size)
        rates = []
        for path in sorted(self._workspace.root.glob("runs/*/run.json")):
            try:
                record = read_json(path, "kdtool distill")
            except FailureError:  # told where it matters
                continue
            settings, result = record.get("settings", {}), record.get("result", {})
            same_data = settings.get("data_fingerprint") == self._data.record.train_fingerprint
            if same_data and tuple(map(settings.get, _SAME)) == wanted and result.get("images_per_s"):
                rates.append(float(result["images_per_s"]))
        if not rates:
            return None
        rate = float(np.median(rates))
        self.said[arch] = f"{arch}: {rate:,.0f} img/s, by {len(rates)} earlier run{'' if len(rates) == 1 else 's'} here"
        return rate

    def _tried(self, arch: str) -> float:
        train = self._data.split("train")
        how = (arch, self._sweep.width, self._recipe, self._compute, self._source, label_loss)
        try:
            rate = teacher_rate(train, np.arange(len(train)), self._data.record, *how)
        except KdtoolError as error:  # its cells will fail, and stop no others
            self.said[arch] = f"{arch} will fail: {error}"
            return math.inf
        self.said[arch] = f"{arch}: {basis(rate, self._sweep.compile)}"
        return rate.images_per_s
