"""make bench: each stage's rate beside its bound, measured in turn in one run on Fashion-MNIST.

    python -m benchmarks.throughput [--save]     # --save writes results/throughput-<date>.json

Stage and bound alternate, and the ratio is taken round by round, so that a drifting machine favours neither.

| stage | bound |
|---|---|
| pack | writing the training split's bytes, fsync; decoding gzip and checking are in the rate, not in the bound |
| cache-teacher | the teacher's forward pass on one resident batch, repeated, same precision |
| build-subset | copying the subset's bytes in this process, fsync on both sides |
| distill | the student's forward, backward and optimizer step on one resident batch, repeated, same precision |

Not counted: starting Python, importing, the final evaluation, and, in cache-teacher, joining the parts and the scores.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.machine import RESULTS, facts, in_words
from toolkit.core.device import autocast
from toolkit.core.recipes import RECIPES
from toolkit.distill.losses import distillation_loss
from toolkit.formats.bundle import open_bundle
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model
from toolkit.pipeline.cache import cache_teacher
from toolkit.pipeline.data import ensure_packed, pack_data
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import open_source
from toolkit.pipeline.subset import build_subset
from toolkit.pipeline.teacher import find_teacher, load_model
from toolkit.report.tables import table
from toolkit.training.loop import Trainer

ROUNDS, BATCH = 5, 128
SECONDS_A_BOUND = 6.0


class Stage(NamedTuple):
    name: str
    unit: str
    rates: list[float]
    bounds: list[float]

    @property
    def ratios(self) -> list[float]:
        return [rate / bound for rate, bound in zip(self.rates, self.bounds, strict=True)]


def alternate(name: str, unit: str, stage: Callable[[], float], bound: Callable[[], float]) -> Stage:
    """Bound and stage in turn; each gives a rate in `unit` per second. One round of warm-up is not kept."""
    rates, bounds = [], []
    for number in range(ROUNDS + 1):
        before = bound()
        rate = stage()
        after = bound()
        if number:
            rates.append(rate)
            bounds.append((before + after) / 2)
    return Stage(name, unit, rates, bounds)


def repeated(step: Callable[[], Any]) -> float:
    """Images a second of a step on one batch of BATCH."""
    steps, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < SECONDS_A_BOUND / 2:
        step()
        steps += 1
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return BATCH * steps / (time.perf_counter() - start_s)


def bench_cache(workspace: Workspace) -> Stage:
    compute = compute_on()
    data = ensure_packed(workspace, "fashion-mnist", limit=10_000)
    _, model = load_model(find_teacher(workspace, None, "fashion-mnist")[1], data, compute)
    x_bchw = torch.randn(BATCH, 3, 28, 28, device=compute.device).to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), autocast(compute.device, compute.precision):
            model(x_bchw)

    def stage() -> float:
        return cache_teacher(workspace, limit=10_000, views="1", force=True, batch_size=BATCH)["images_per_s"]

    return alternate("cache-teacher", "img", stage, lambda: repeated(forward))


def bench_distill(workspace: Workspace) -> Stage:
    compute = compute_on()
    build_subset(workspace, 0.5, limit=10_000, name="half")
    cache_teacher(workspace, subset="half", views="4")
    bundle = open_bundle(workspace.subset("half"))
    targets = load_knowledge(bundle, match="mean").targets
    images, data = bundle.images(), bundle.data
    source = open_source(images, bundle.indices_m, data, BATCH, 0, compute, targets)
    loss = distillation_loss(1.0, 4.0)

    def trainer() -> Trainer:
        model = compute.place(build_model("resnet8", data.classes))
        return Trainer(model, source, loss, RECIPES["fast"], 10**6, compute.device, compute.precision)

    ours, bare = trainer(), trainer()
    batch = next(source.batches(0))
    bare.model.train()

    def step() -> None:
        with autocast(compute.device, compute.precision):
            logits_bc = bare.model(batch.images_bchw)
        bare.optimizer.zero_grad(set_to_none=True)
        loss(logits_bc.float(), batch).backward()
        bare.optimizer.step()

    return alternate("distill", "img", lambda: ours.run_epoch().images_per_s, lambda: repeated(step))


def timed_copy(source: Path, target: Path) -> float:
    """MB/s of reading a file's bytes and writing them durably."""
    start_s = time.perf_counter()
    content = source.read_bytes()
    with target.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    elapsed_s = time.perf_counter() - start_s
    target.unlink()
    return len(content) / 1e6 / elapsed_s


def bench_subset(workspace: Workspace) -> Stage:
    ensure_packed(workspace, "fashion-mnist")

    def stage() -> float:
        start_s = time.perf_counter()
        result = build_subset(workspace, 0.5, name="whole-half", force=True)
        return result["bytes"] / 1e6 / (time.perf_counter() - start_s)

    stage()
    images = workspace.subset("whole-half") / "images.beton"
    kept = shutil.copy(images, workspace.root / "same-bytes")  # the stage replaces its own output
    return alternate("build-subset", "MB", stage, lambda: timed_copy(Path(kept), workspace.root / "copied"))


def bench_pack(workspace: Workspace) -> Stage:
    def stage() -> float:
        start_s = time.perf_counter()
        folder = Path(pack_data(workspace, "fashion-mnist", force=True)["path"])
        size = sum((folder / f"{split}.beton").stat().st_size for split in ("train", "test"))
        return size / 1e6 / (time.perf_counter() - start_s)

    stage()
    train = workspace.data("fashion-mnist") / "train.beton"
    kept = shutil.copy(train, workspace.root / "same-bytes")
    return alternate("pack", "MB", stage, lambda: timed_copy(Path(kept), workspace.root / "copied"))


def main() -> None:
    machine = facts()
    print(in_words(machine), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        stages = [bench(workspace) for bench in (bench_pack, bench_subset, bench_cache, bench_distill)]
    rows = [
        [
            stage.name,
            f"{median(stage.rates):,.0f} {stage.unit}/s",
            f"{median(stage.bounds):,.0f} {stage.unit}/s",
            f"{median(stage.ratios):.2f}",
            f"{min(stage.ratios):.2f} – {max(stage.ratios):.2f}",
        ]
        for stage in stages
    ]
    print(table(["stage", "rate", "bound", "ratio", f"range of {ROUNDS}"], rows))
    print("teacher ResNet-20, student ResNet-8, 28 × 28 pixels, batch 128; medians of alternating rounds")
    if "--save" in sys.argv:
        path = RESULTS / f"throughput-{machine['when'][:10]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"machine": machine, "stages": [stage._asdict() for stage in stages]}, indent=1) + "\n"
        )
        print(path)


if __name__ == "__main__":
    main()
