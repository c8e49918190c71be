"""Short trainings on real digits, each a fixed seed's: what the guard in test_loss_curve.py compares, step by step.

Nothing here is drawn but what kdtool draws itself (initial weights, order, views): the cached logits are a formula in
integers. In float64 the curves are the same on every CPU, up to the last digit of the float32 initial weights.

    python -m tests.loss_curves            compares with tests/golden/loss_curves.json
    python -m tests.loss_curves --write    makes that file again: only for a change that is meant to change training

Shapes: n rows, b batch, c classes, k cached slots.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.core.recipes import Recipe, resolve_recipe
from toolkit.core.versions import now, versions
from toolkit.data.sources import source_named
from toolkit.distill.losses import distillation_loss
from toolkit.formats.dataset import open_packed
from toolkit.formats.encodings import Encoding
from toolkit.models.zoo import build_model
from toolkit.pipeline.runtime import compute_on
from toolkit.teacher.train import label_loss
from toolkit.training.loop import Loss, Source, Trainer
from toolkit.training.resident import ResidentSource
from toolkit.training.showing import Batch
from toolkit.training.stream import StreamSource
from toolkit.training.targets import Targets
from toolkit.views.plan import Plan

GOLDEN = Path(__file__).parent / "golden" / "loss_curves.json"
WRITE = "python -m tests.loss_curves --write"

CLASSES, BATCH, STEPS = 10, 32, 24
ROWS = np.arange(0, 1442, 7)  # 206: an epoch is 6 whole batches and a ragged one, the run 3 epochs and 3 steps
PLAN = Plan("pad-crop", 8, 8, padding=1)


@dataclass(frozen=True)
class Case:
    """A student's training, or with `slots` 0 a teacher's. `seed` is of the weights, `order_seed` of order and views.

    `changed` are fields of the recipe that a test sets otherwise.
    """

    recipe: str = "fast"
    alpha: float = 1.0
    temperature: float = 4.0
    match: str = "exact"
    encoding: str = "float32"
    slots: int = 3
    plan: Plan = PLAN
    precision: str = "float64"
    seed: int = 3
    order_seed: int = 5
    changed: tuple[tuple[str, Any], ...] = ()

    @property
    def settled(self) -> Recipe:
        return replace(resolve_recipe(self.recipe, batch_size=BATCH), **dict(self.changed))


CASES = {
    "student": Case(),
    "all views and labels, nearest": Case(
        match="nearest", alpha=0.5, plan=Plan("pad-crop-flip", 8, 8, padding=2, seed=1), slots=6
    ),
    "all views, mean": Case(match="mean", temperature=2.0),
    "int8": Case(encoding="int8", alpha=0.9),
    "topk:4": Case(encoding="topk:4", temperature=3.0),
    "labels alone": Case(alpha=0.0),
    "teacher": Case(slots=0),
    "paper-cifar": Case(recipe="paper-cifar", alpha=0.7),
    "paper-imagenet": Case(recipe="paper-imagenet", slots=1),
}


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The training split's images (n, 8, 8, 3) uint8 and labels, as `pack` gets them."""
    return source_named("digits").load("train", None)


def cached_logits(slots: int) -> np.ndarray:
    """What a teacher might say of ROWS, by a formula in eighths: exact in every encoding's arithmetic."""
    labels_n1 = digits()[1][ROWS][:, None]
    row_n1, class_c, slot_k11 = ROWS[:, None], np.arange(CLASSES), np.arange(slots)[:, None, None]
    noise_knc = (17 * row_n1 + 31 * class_c + row_n1 * class_c + 7 * slot_k11 * (class_c + 1)) % 23
    return ((noise_knc + 24 * (labels_n1 == class_c)) / 8).astype(np.float32)


def targets_of(case: Case) -> Targets | None:
    if not case.slots:
        return None
    encoding = Encoding.parse(case.encoding, CLASSES)
    slots = [encoding.encode(logits_nc) for logits_nc in cached_logits(case.slots)]
    return Targets(encoding, {name: np.stack([slot[name] for slot in slots]) for name in slots[0]}, case.match)


def shown(case: Case, device: str = "cpu") -> tuple[Any, ...]:
    """What both sources are told after the images and rows."""
    digits_source, compute = source_named("digits"), compute_on(device, case.precision)
    normal = (list(digits_source.mean), list(digits_source.std))
    return (case.plan, *normal, BATCH, case.order_seed, compute.device, compute.dtype, targets_of(case))


def resident_source(case: Case, device: str = "cpu") -> ResidentSource:
    images_nhwc, labels_n = digits()
    return ResidentSource(images_nhwc[ROWS], labels_n[ROWS], ROWS, *shown(case, device))


def stream_source(case: Case, workspace: Path, device: str = "cpu") -> StreamSource:
    """The same rows from a workspace's packed digits, through FFCV."""
    images = open_packed(workspace / "data" / "digits").split("train")
    if not np.array_equal(images.rows_n[ROWS], ROWS):
        raise ValueError(f"{images.path}: not all of the digits")
    plan, mean, std, *rest, targets = shown(case, device)
    return StreamSource(images, ROWS, plan, mean, std, *rest, targets=targets)


def trainer_of(case: Case, source: Source, loss: Loss, device: str = "cpu") -> Trainer:
    compute = compute_on(device, case.precision)
    model = compute.place(build_model("resnet8", CLASSES, width=4, seed=case.seed))
    return Trainer(model, source, loss, case.settled, STEPS, compute.device, compute.precision)


def loss_of(case: Case) -> Loss:
    smoothing = case.settled.label_smoothing
    if not case.slots:
        return partial(label_loss, label_smoothing=smoothing)
    return distillation_loss(case.alpha, case.temperature, label_smoothing=smoothing)


def curve(case: Case, source: Source | None = None) -> list[float]:
    """The loss of each step and, last, the length of all that the network holds after them: what the last step moved,
    and batch normalisation's running statistics, no loss of the run tells."""
    losses: list[Tensor] = []
    loss = loss_of(case)

    def recorded(logits_bc: Tensor, batch: Batch) -> Tensor:
        losses.append(loss(logits_bc, batch))
        return losses[-1]

    trainer = trainer_of(case, source or resident_source(case), recorded)
    while not trainer.finished:
        trainer.run_epoch()
    state = [tensor.double().flatten() for tensor in trainer.model.state_dict().values() if tensor.is_floating_point()]
    return [*(step.item() for step in losses), torch.cat(state).norm().item()]


def distance(found: list[float], expected: list[float]) -> float:
    """The largest relative difference of any step."""
    pairs = zip(found, expected, strict=True)
    return max(abs(one - other) / abs(other) for one, other in pairs)


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def made_with() -> dict[str, Any]:
    """What else decides the last digits."""
    cpu = {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    return {"command": WRITE, "created": now(), "versions": versions(), "cpu": cpu}


def main(words: list[str]) -> None:
    if words not in ([], ["--write"]):
        sys.exit(f"python -m tests.loss_curves takes --write or nothing, got {' '.join(words)}")
    curves = {name: curve(case) for name, case in CASES.items()}
    if words:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps({**made_with(), "curves": curves}, indent=1) + "\n")
    known = golden()["curves"]
    for name, found in curves.items():
        print(f"{distance(found, known[name]):9.2e}  {name}: {found[0]:.4f} → {found[-2]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
