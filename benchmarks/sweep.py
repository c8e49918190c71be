"""Eight students as one sweep beside the same eight one after another, in turn.

    python -m benchmarks.sweep --save                # about half an hour on 2 cores

ResNet-8 students of a random tenth of Fashion-MNIST, two seeds by four alphas, a few epochs each. The sweep trains them
in single-threaded processes, as many as there are CPUs; "one after another" calls distill for each in this one process,
which is warm, with as many threads as there are CPUs. Both train, evaluate and write eight whole runs each round, which
are then deleted. Data, cache and subsets are made before, and looked for by the sweep each time; what its processes
take to start counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.machine import facts, in_words, save, scratch
from benchmarks.rounds import Block, Contest, Work, in_turn, stopwatch
from toolkit.core.device import available_cpus
from toolkit.core.files import remove_folder
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.student import distill
from toolkit.pipeline.sweep.command import sweep
from toolkit.pipeline.sweep.prepare import prepare
from toolkit.pipeline.sweep.request import Sweep
from toolkit.pipeline.sweep.resolve import Run

TOGETHER, APART = "a sweep", "one after another"
PROMISED = 1.15  # on two cores


def students(dataset: str, fraction: float, epochs: int, cells: int = 8) -> Sweep:
    """Two seeds of each alpha."""
    alphas = tuple((number + 1) / (cells // 2) for number in range(cells // 2))
    return Sweep((fraction,), alpha=alphas, seed=(0, 1), dataset=dataset, epochs=epochs, device="cpu")


def together(workspace: Workspace, asked: Sweep) -> Block:
    return _block(workspace, prepare(workspace, asked, asked.cells).runs, lambda: sweep(workspace, asked, "bench"))


def apart(workspace: Workspace, asked: Sweep) -> Block:
    runs = prepare(workspace, asked, asked.cells).runs

    def all_of_them() -> list[float]:
        return [distill(workspace, device="cpu", threads=available_cpus(), **run.asked)["top1"] for run in runs]

    return _block(workspace, runs, all_of_them)


def _block(workspace: Workspace, runs: list[Run], train: Callable[[], object]) -> Block:
    """Trains all students anew. Raises AssertionError where not every one is there in the end."""

    def block() -> Work:
        for made in ("runs", "sweeps"):
            remove_folder(workspace.root / made)
        with stopwatch() as elapsed:
            train()
        there = len(list(workspace.root.glob("runs/*/run.json")))
        assert there == len(runs), f"{there} of {len(runs)} students"
        return Work(sum(run.images for run in runs), elapsed[0])

    return block


def contest(folder: Path, asked: Sweep, rounds: int) -> Contest:
    workspace = Workspace(folder)
    blocks = {TOGETHER: together(workspace, asked), APART: apart(workspace, asked)}
    return in_turn(f"{len(asked.cells)} students", "img", blocks, rounds)


def report(found: Contest) -> str:
    ratio = found.ratio(TOGETHER, APART)
    rates = ", ".join(f"{name} {median(rates):,.0f} img/s" for name, rates in found.rates.items())
    return (
        f"{found.name}: {rates}; the sweep is {ratio.median:.2f} times as fast (quartiles {ratio.low_quartile:.2f} – "
        f"{ratio.high_quartile:.2f}; mean over mean {ratio.mean.ratio:.2f}, 95 % {ratio.interval}; "
        f"{found.rounds} rounds; promised on two cores {PROMISED})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write results/sweep-<date>.json")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it runs")
    said = parser.parse_args()
    machine = facts()
    asked, rounds = students("fashion-mnist", 0.1, said.epochs), said.rounds
    if said.quick:
        asked, rounds = students("digits", 0.1, 2, cells=4), 2
    with scratch() as folder:
        found = contest(folder, asked, rounds)
    ratio = found.ratio(TOGETHER, APART)
    print(in_words(machine))
    print(report(found))
    if said.save:
        how = {"asked": asked.to_record(), "promised": PROMISED, "ratio": ratio.to_record()}
        print(save("sweep", {"machine": machine, **found.to_record(), **how}))


if __name__ == "__main__":
    main()
