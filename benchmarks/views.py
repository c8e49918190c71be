"""How many views, and which match: accuracy against cached views on pruned data, beside a live teacher and no KD.

    python -m benchmarks.views                  # runs what is missing (hours), appends to results/views.jsonl
    python -m benchmarks.views --crops          # the same on resized crops of kanji
    python -m benchmarks.views_report           # tables of what is there, and the choice of the rule; --plot

Students of one seed share subset, initialisation and order. `holdout` is the accuracy on 5,000 training images that the
subset does not contain: it alone decides; `top1`, on the test split, is what is then shown.

Written down before the first run:

- The rule for the default: the fewest cached views (on a tie the match with the higher mean) whose gain over no KD, as
  a share of the gain with a view for every epoch, has a 95 % lower bound of at least 0.8 on the held-out images, at
  every fraction studied.
- A live teacher (independent random views, logits never stored) and a cached view for every epoch should agree: the
  95 % interval of their paired difference on the test split, over all seeds and fractions, within ±0.3 points.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.machine import RESULTS, append, facts, read_lines
from toolkit.core.device import autocast
from toolkit.core.errors import FailureError
from toolkit.core.hashing import rng_for
from toolkit.core.locks import only_writer
from toolkit.core.progress import on_stderr
from toolkit.core.recipes import resolve_recipe
from toolkit.distill.losses import distillation_loss
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.checkpoint import load_checkpoint
from toolkit.formats.dataset import open_packed
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import FeatureReader, build_model
from toolkit.pipeline.cache import cache_teacher
from toolkit.pipeline.known_networks import network_of
from toolkit.pipeline.known_teachers import find_teacher
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.sources import open_source
from toolkit.pipeline.student import distill
from toolkit.pipeline.subset import build_subset
from toolkit.pipeline.teacher import train_teacher
from toolkit.training.evaluate import predict, top1
from toolkit.training.loop import Trainer
from toolkit.training.showing import Batch, Showing

WORKSPACE = Workspace(Path("kdtool-work/benchmarks"))
FILE = RESULTS / "views.jsonl"
SEEDS, HELD_OUT, TEMPERATURE = range(8), 5000, 4.0
_SALT_HELD_OUT, _SALT_LIVE = 0x401D, 0x11FE


@dataclass(frozen=True)
class Cell:
    """A way of teaching: no KD (`alpha` 0), a live teacher, or `views` cached views used by `match`."""

    name: str
    alpha: float = 1.0
    live: bool = False
    views: int | None = None
    match: str | None = None


NO_KD, LIVE, EVERY = Cell("no KD", alpha=0.0), Cell("live teacher", live=True), Cell("a view per epoch", match="exact")


def cached(views: int, match: str) -> Cell:
    return Cell(f"{views} {match}", views=views, match=match)


def cached_all(views: int) -> list[Cell]:
    return [cached(views, match) for match in ("exact", "nearest", "mean")]


@dataclass(frozen=True)
class Study:
    dataset: str
    fraction: float
    cells: list[Cell]
    teacher: str | None = None
    batch_size: int | None = None
    arch: str = "resnet8"
    width: int = 16
    epochs: int = 30


# In the order they are run: what the rule and the comparison with the live teacher need first.
STUDIES = [
    Study("fashion-mnist", 0.05, [NO_KD, EVERY, LIVE, cached(1, "mean"), cached(2, "mean"), *cached_all(4)]),
    Study("fashion-mnist", 0.05, [cached(2, "exact"), cached(1, "exact")]),
    Study("fashion-mnist", 0.1, [NO_KD, EVERY, cached(1, "exact"), cached(2, "exact")]),
    Study("fashion-mnist", 0.05, [cached(16, "exact"), cached(16, "mean"), cached(8, "exact"), cached(8, "mean")]),
    Study("fashion-mnist", 0.05, [cached(views, "nearest") for views in (16, 8, 2)]),
    Study("fashion-mnist", 0.1, [cached(4, "exact"), LIVE, cached(4, "mean"), cached(2, "mean")]),
]
# Resized crops of 48 × 48 kanji to 24 × 24, on a quarter of the images: eight of each class.
_LARGE = Study("glyphs-100-large", 0.25, [], teacher="glyphs-100-large-resnet20", batch_size=32)
STUDIES_OF_CROPS = [
    replace(_LARGE, cells=[NO_KD, EVERY, cached(2, "exact"), cached(1, "exact")]),
    replace(_LARGE, cells=[cached(4, "exact"), LIVE, cached(4, "mean"), cached(4, "nearest")]),
    replace(_LARGE, cells=[cached(1, "mean"), cached(8, "exact"), *cached_all(16)]),
]


def train_the_teacher(study: Study) -> None:
    """The teacher of the kanji, which does not come with kdtool, unless it is there."""
    if study.teacher is not None:
        settings: dict[str, Any] = {"arch": "resnet20", "epochs": 30, "threads": 1}
        train_teacher(WORKSPACE, dataset=study.dataset, name=study.teacher, **settings)


def held_out(bundle: Bundle, seed: int) -> np.ndarray:
    """HELD_OUT rows of the training split that the subset does not hold (or all of them), increasing."""
    others = np.setdiff1d(np.arange(bundle.data.train_rows), bundle.rows_m)
    return np.sort(rng_for(seed, _SALT_HELD_OUT).choice(others, min(HELD_OUT, len(others)), replace=False))


class LiveSource:
    """Independent random views, and the teacher's answer to exactly these pixels, asked anew at every step."""

    def __init__(self, source: Any, teacher: nn.Module, compute: Compute, seed: int) -> None:
        self.source, self._read, self._compute = source, FeatureReader(teacher), compute
        self.rows = source.rows
        source.showing = IndependentViews(source.showing, seed)

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self.source.batches(epoch, start):
            with torch.no_grad(), autocast(self._compute.device, self._compute.precision):
                _, logits_bc = self._read(batch.images_bchw)
            yield batch._replace(logits_bc=logits_bc)


class IndependentViews(Showing):
    """Any view of the family at each showing, with no memory: as augmentation usually is."""

    def __init__(self, showing: Showing, seed: int) -> None:
        super().__init__(showing.rows_n, showing.plan, seed, None, showing.sizes_n2)

    def views(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        view_n = rng_for(self.seed, _SALT_LIVE, epoch).integers(self.plan.size, size=len(self))
        return view_n, np.zeros(len(self), dtype=np.int64)


def live_student(study: Study, bundle: Bundle, seed: int, compute: Compute) -> nn.Module:
    data = open_packed(WORKSPACE.data(study.dataset))
    _, file = find_teacher(WORKSPACE, study.teacher, study.dataset)
    _, teacher = network_of(file, data.record, compute)
    recipe = resolve_recipe("fast", study.epochs, study.batch_size)
    record = bundle.data
    resident = open_source(bundle.images(), bundle.indices_m, record, recipe.batch_size, seed, compute)
    source = LiveSource(resident, teacher, compute, seed)
    model = compute.place(build_model(study.arch, record.classes, study.width, seed))
    steps = study.epochs * len(source)
    loss = distillation_loss(1.0, TEMPERATURE)
    trainer = Trainer(model, source, loss, recipe, steps, compute.device, compute.precision)
    while not trainer.finished:
        trainer.run_epoch()
    return model


def accuracies(study: Study, bundle: Bundle, model: nn.Module, seed: int, compute: Compute) -> dict[str, float]:
    data = open_packed(WORKSPACE.data(study.dataset))
    shown = (data.record.plan, data.record.mean, data.record.std, compute.device, compute.precision)
    found = {}
    for name, split, rows in [("holdout", "train", held_out(bundle, seed)), ("top1", "test", None)]:
        images = data.split(split)
        labels_n = images.labels_n if rows is None else images.labels_n[rows]
        found[name] = top1(predict(model, images, *shown, rows), labels_n)
    return found


def run(study: Study, cell: Cell, seed: int) -> dict[str, Any]:
    """One student, from a bundle that is made if it is not there."""
    compute = compute_on(threads=1)
    train_the_teacher(study)
    name = f"{study.dataset}-random-{study.fraction:g}-s{seed}"
    build_subset(WORKSPACE, frac=study.fraction, dataset=study.dataset, seed=seed, name=name)
    bundle = open_bundle(WORKSPACE.subset(name))
    if cell.live:
        model = live_student(study, bundle, seed, compute)
    else:
        if cell.alpha:
            views = f"epochs:{study.epochs}"
            cache_teacher(WORKSPACE, subset=name, teacher=study.teacher, views=views, threads=1, progress=on_stderr)
        student = distill(
            WORKSPACE, subset=name, arch=study.arch, width=study.width, epochs=study.epochs, alpha=cell.alpha,
            batch_size=study.batch_size, temperature=TEMPERATURE, match=cell.match, views=cell.views, seed=seed,
            threads=1,
        )  # fmt: skip
        checkpoint = load_checkpoint(Path(student["path"]) / "student.pt")
        model = compute.place(build_model(study.arch, bundle.data.classes, study.width))
        model.load_state_dict(checkpoint.weights)
    made = {"dataset": study.dataset, "fraction": study.fraction, "cell": cell.name, "seed": seed}
    trained = {"arch": study.arch, "width": study.width, "epochs": study.epochs}
    return {**made, **trained, **accuracies(study, bundle, model, seed, compute), "machine": facts()}


def missing(study: Study, seed: int) -> list[Cell]:
    key = (study.dataset, study.fraction, seed)
    done = {line["cell"] for line in read_lines(FILE) if (line["dataset"], line["fraction"], line["seed"]) == key}
    return [cell for cell in study.cells if cell.name not in done]


def run_all() -> None:
    """Whatever is missing and no other process is running: start this several times to use several cores."""
    for study in STUDIES_OF_CROPS if "--crops" in sys.argv else STUDIES:
        for seed in SEEDS:
            try:
                with only_writer(WORKSPACE.root / "claims" / f"{study.dataset}-{study.fraction:g}-s{seed}"):
                    for cell in missing(study, seed):
                        line = run(study, cell, seed)
                        append(FILE, line)
                        found = f"{line['holdout']:.2f} held out, {line['top1']:.2f} test"
                        print(f"{study.dataset} {study.fraction:g} seed {seed} {cell.name}: {found}", flush=True)
            except FailureError as error:
                if "is being written by" not in str(error):
                    raise


if __name__ == "__main__":
    run_all()
