"""What recording the dynamics costs: epochs of train-teacher's ResNet-20, recorded and not, in turn.

    python -m benchmarks.dynamics --save

Whole epochs over 6,000 rows of Fashion-MNIST: what is observed in every step, and the part written when the epoch ends.
Both train the same network on the same batches; the share is 1 − recorded rate / plain rate.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import facts, in_words, save, scratch
from benchmarks.rounds import Block, Contest, Work, in_turn, stopwatch
from toolkit.core.progress import silent
from toolkit.core.recipes import RECIPES
from toolkit.formats.parts import Parts
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.recording import Recording
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.sources import open_source
from toolkit.teacher.train import label_loss
from toolkit.training.loop import Trainer

_ENDLESS = 10**9


def training(
    workspace: Workspace, dataset: str, limit: int | None, arch: str, compute: Compute, parts: Parts | None
) -> Block:
    """An epoch at a time; recorded where there are `parts` to write to."""
    data = ensure_packed(workspace, dataset, limit=limit)
    train, classes = data.split("train"), data.record.classes
    rows_m = np.arange(len(train))
    model = compute.place(build_model(arch, classes))
    source = open_source(train, rows_m, data.record, RECIPES["fast"].batch_size, 0, compute)
    watch = None
    if parts is not None:
        watch = Recording(parts, [], data.record, train, rows_m, compute).recorder(0, model, False, silent)
    on: tuple[Any, ...] = (compute.device, compute.precision)
    observe = None if watch is None else watch.observe
    trainer = Trainer(model, source, label_loss, RECIPES["fast"], _ENDLESS, *on, observe=observe)

    def epoch() -> Work:
        with stopwatch(compute.device) as elapsed:
            result = trainer.run_epoch()
            if watch is not None:
                watch.end_epoch(result.epoch)
        return Work(result.images, elapsed[0])

    return epoch


def contest(
    folder: Path, dataset: str = "fashion-mnist", limit: int | None = 6000, arch: str = "resnet20", rounds: int = 9
) -> Contest:
    compute, workspace = compute_on(), Workspace(folder)
    parts = {"plain": None, "recorded": Parts(folder / "parts", {})}
    blocks = {name: training(workspace, dataset, limit, arch, compute, place) for name, place in parts.items()}
    return in_turn("train-teacher", "img", blocks, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/dynamics-<date>.json")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it runs")
    asked = parser.parse_args()
    machine = facts()
    with scratch() as folder:
        found = contest(folder, "digits", None, "resnet8", 2) if asked.quick else contest(folder)
    ratio = found.ratio("recorded", "plain")
    print(in_words(machine))
    print(
        f"recording takes {1 - ratio.median:.1%} of the training time (quartiles {1 - ratio.high_quartile:.1%} – "
        f"{1 - ratio.low_quartile:.1%}, {found.rounds} rounds)"
    )
    if asked.save:
        print(save("dynamics", {"machine": machine, **found.to_record(), "ratio": ratio.to_record()}))


if __name__ == "__main__":
    main()
