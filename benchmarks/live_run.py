"""One whole live-teacher run as a process of its own: what benchmarks/students.py starts, and times from outside.

    python -m benchmarks.live_run --workspace W --subset half --seed 0 --measured 30      # a line of JSON

Trains, on the subset's images or without --subset on all of them, the first `--measured` of 30 epochs with kdtool's own
learning rates, as benchmarks/live.py writes the loop; then looks at the test split once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.live import LiveLoop, Photos, as_usual, live_loop
from benchmarks.rounds import stopwatch
from toolkit.core.device import autocast
from toolkit.core.recipes import lr_at, resolve_recipe
from toolkit.formats.bundle import open_bundle
from toolkit.formats.dataset import PackedData, open_packed
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.runtime import compute_on


def test_top1(loop: LiveLoop, data: PackedData) -> float:
    """The student's accuracy on the test split, in percent."""
    record, test = data.record, data.split("test")
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(record.mean, record.std)])
    photos = Photos(test.frames(), test.labels_n, usual)
    hits = 0
    loop.student.eval()
    with torch.no_grad(), autocast(loop.compute.device, loop.compute.precision):
        for images_bchw, labels_b in DataLoader(photos, 256, num_workers=loop.workers):
            classes_b = loop.student(images_bchw.to(loop.compute.device)).argmax(dim=1)
            hits += (classes_b.cpu() == labels_b).sum().item()
    return 100 * hits / len(photos)


def run(
    workspace: Workspace, dataset: str, subset: str | None, seed: int, epochs: int, measured: int, workers: int
) -> dict[str, Any]:
    compute = compute_on()
    data, recipe = open_packed(workspace.data(dataset)), resolve_recipe("fast", epochs)
    if subset is None:
        images = data.split("train")
        rows_m = np.arange(len(images))
    else:
        bundle = open_bundle(workspace.subset(subset))
        images, rows_m = bundle.images(), bundle.indices_m
    torch.manual_seed(seed)
    how = {"batch_size": recipe.batch_size, "workers": workers, "lr": recipe.lr}
    loop = live_loop(data, images, rows_m, as_usual(compute.device, compute.precision), seed, **how)
    steps = epochs * len(loop.loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        loop.optimizer, lambda step: lr_at(recipe, min(step, steps - 1), steps) / recipe.lr
    )
    epochs_s: list[float] = []
    for _ in range(measured):
        with stopwatch(compute.device) as elapsed:
            loop.train(loop.loader, scheduler)
        epochs_s.append(elapsed[0])
    with stopwatch(compute.device) as elapsed:
        top1 = test_top1(loop, data)
    return {
        "rows": len(rows_m),
        "precision": compute.precision,
        "workers": workers,
        "epochs_s": epochs_s,
        "evaluation_s": elapsed[0],
        "top1": top1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--subset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--measured", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    asked = vars(parser.parse_args())
    print(json.dumps(run(Workspace(asked.pop("workspace")), **asked)))


if __name__ == "__main__":
    main()
