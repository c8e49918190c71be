"""What is bounded by arithmetic: the caching pass, and a student's epochs from either source.

Shapes: b batch, c classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
import torch

from benchmarks.rounds import Block, Work, repeated, settle, stopwatch
from toolkit.core.device import autocast
from toolkit.core.progress import on_stderr
from toolkit.core.recipes import RECIPES
from toolkit.distill.losses import distillation_loss
from toolkit.formats.beton import Beton
from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.parts import Parts
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model
from toolkit.pipeline.cache import cache_teacher
from toolkit.pipeline.cache_request import open_request
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.pipeline.runtime import Compute
from toolkit.pipeline.sources import open_source
from toolkit.pipeline.subset import build_subset
from toolkit.teacher.caching import Part, parts_of, run_parts
from toolkit.training.loop import Trainer
from toolkit.training.showing import Batch

TEMPERATURE, VIEWS = 4.0, "2"
_ENDLESS = 10**9
LOSS = distillation_loss(1.0, TEMPERATURE)


def taught_bundle(workspace: Workspace, dataset: str, fraction: float, compute: Compute) -> Bundle:
    """A random part of the data, with targets of the default views of the teacher that comes with kdtool."""
    name = f"part-{fraction:g}"
    build_subset(workspace, frac=fraction, dataset=dataset, name=name)
    asked: dict[str, Any] = {"device": str(compute.device), "precision": compute.precision}
    cache_teacher(workspace, subset=name, views=VIEWS, **asked)
    return open_bundle(workspace.subset(name))


def caching(workspace: Workspace, dataset: str, compute: Compute, batch_size: int, seconds: float) -> dict[str, Block]:
    """`cache-teacher`: parts of the training split through the very function of the command, drawn, run, encoded and
    saved; beside the teacher's forward pass on one batch."""
    asked: dict[str, Any] = {"device": str(compute.device), "precision": compute.precision}
    request = open_request(workspace, dataset, views=VIEWS, fresh=True, batch_size=batch_size, **asked)
    train, plan = request.data.split("train"), request.data.record.plan
    parts = parts_of("train", len(request.rows_n), range(request.record.slots))
    endless = cycle([part for part in parts if part.stop - part.start == BLOCK_ROWS] or parts)
    saved = Parts(workspace.root / "parts", {})

    def rows_of(part: Part) -> np.ndarray:
        return request.rows_n[part.start : part.stop]

    def stage() -> Work:
        saved.discard()
        images, end_s = 0, time.perf_counter() + seconds
        with stopwatch(compute.device) as elapsed:
            while not images or time.perf_counter() < end_s:
                part = next(endless)
                if part.key in saved:
                    saved.discard()  # it would not be run again
                run_parts(request.teacher, train, rows_of, plan, request.encoding, [part], saved)
                images += part.stop - part.start
        return Work(images, elapsed[0])

    x_bchw = torch.randn(batch_size, 3, plan.height, plan.width).to(compute.device, memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), autocast(compute.device, compute.precision):
            request.model(x_bchw)

    return {"cache-teacher": stage, "forward": repeated(forward, batch_size, seconds, compute.device)}


def trainer_of(
    bundle: Bundle,
    compute: Compute,
    batch_size: int,
    kind: str = "resident",
    arch: str = "resnet8",
    images: Beton | None = None,
    compiled: bool = False,
) -> Trainer:
    """As distill makes it: a student on the bundle's targets and images, or the same rows' images from another file."""
    targets = load_knowledge(bundle).targets
    shown = (bundle.images() if images is None else images, bundle.indices_m, bundle.data)
    source = open_source(*shown, batch_size, 0, compute, targets, kind=kind)
    model = compute.place(build_model(arch, bundle.data.classes))
    return Trainer(model, source, LOSS, RECIPES["fast"], _ENDLESS, compute.device, compute.precision, compiled)


def one_batch(trainer: Trainer) -> Batch:
    batches: Any = trainer.source.batches(0)
    with closing(batches):
        return next(batches)


class Step:
    """A student's whole step on one batch that stays where it is: the bound of distill. `compile` are torch.compile's
    options; `compile_s` is what the first three steps took with them, in which it compiles and records."""

    def __init__(
        self, batch: Batch, classes: int, compute: Compute, arch: str = "resnet8", compile: dict[str, Any] | None = None
    ) -> None:
        self.batch, self.compute = batch, compute
        model = compute.place(build_model(arch, classes)).train()
        self.forward = model if compile is None else torch.compile(model.forward, dynamic=False, **compile)
        recipe, fused = RECIPES["fast"], compute.precision != "float64"
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=1e-3, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True,
            fused=fused,
        )  # fmt: skip
        self.compile_s = 0.0
        if compile is not None:
            with stopwatch(compute.device) as elapsed:
                for _ in range(3):
                    self()
            self.compile_s = elapsed[0]

    def __call__(self) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)  # before the forward pass, which a CUDA graph writes over them
        with autocast(self.compute.device, self.compute.precision):
            logits_bc = self.forward(self.batch.images_bchw)
        LOSS(logits_bc.to(self.batch.images_bchw.dtype), self.batch).backward()
        self.optimizer.step()

    def block(self, seconds: float) -> Block:
        return repeated(self, len(self.batch.labels_b), seconds, self.compute.device)


class _Timed:
    """Stands before an object and adds up the seconds that calls of its methods take, the device's work included."""

    def __init__(self, inner: Any, device: torch.device) -> None:
        self._inner, self._device = inner, device
        self._seconds: dict[str, float] = {}  # by method: two threads call two of them

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def timed(*arguments: Any) -> Any:
            settle(self._device)
            start_s = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                settle(self._device)
                self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start_s

        return timed


@dataclass
class Epochs:
    """Whole epochs of a trainer, as a block: waiting for data, the progress tick and the look at the losses are in.

    `waited` is the share of each block's time in which the loop stood still for a batch. `targets_s` is what gathering
    and decoding targets takes, a second per image, measured in epochs of their own (`with_targets_timed`), so that
    the clock costs the others nothing. The streaming source reads targets in a thread, where time is beside the step's.
    """

    trainer: Trainer
    seconds: float
    waited: list[float] = field(default_factory=list)
    targets_s: list[float] = field(default_factory=list)

    def __call__(self) -> Work:
        images, waited_s = 0, 0.0
        with stopwatch(self.trainer.device) as elapsed:
            end_s = time.perf_counter() + 0.9 * self.seconds  # the last epoch begun ends past it
            while not images or time.perf_counter() < end_s:
                result = self.trainer.run_epoch(on_stderr)
                images += result.images
                waited_s += result.wait_s
        self.waited.append(waited_s / elapsed[0])
        return Work(images, elapsed[0])

    def with_targets_timed(self) -> Work:
        source: Any = getattr(self.trainer.source, "source", self.trainer.source)  # of Slices, what they are of
        plain = source._targets
        source._targets = timed = _Timed(plain, self.trainer.device)
        try:
            with stopwatch(self.trainer.device) as elapsed:
                result = self.trainer.run_epoch(on_stderr)
        finally:
            source._targets = plain
        self.targets_s.append(timed.seconds / result.images)
        return Work(result.images, elapsed[0])


class Slices:
    """A source's endless epochs, cut into epochs of `steps` batches: for blocks shorter than an epoch."""

    def __init__(self, source: Any, steps: int) -> None:
        self.source, self.batch_size, self.rows = source, source.batch_size, steps * source.batch_size
        self._endless = self._all()

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def _all(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from self.source.batches(epoch)
            epoch += 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for _ in range(start, len(self)):
            yield next(self._endless)
