"""Eight students as one sweep beside the same eight one after another, in turn.

    python -m benchmarks.sweep --save                # about an hour on 2 cores

ResNet-8 students of a random twentieth of Fashion-MNIST, two seeds by four alphas, as long as a run is if nothing else
is asked. The sweep is the command, which trains them in single-threaded processes, as many as there are CPUs; its start
and theirs count. One after another they are trained in this process, which is warm, and by eight `kdtool distill`, as
one would without a sweep; both with as many threads as there are CPUs. Each trains, evaluates and writes eight whole
runs each round, which are then deleted. Data, cache and subsets are made before; there is no round to warm up, as a
block takes minutes.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import KDTOOL, facts, in_words, save, scratch
from benchmarks.rounds import Block, Contest, Work, in_turn, stopwatch
from toolkit.core.device import available_cpus
from toolkit.core.files import remove_folder
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.student import distill
from toolkit.pipeline.sweep.prepare import prepare
from toolkit.pipeline.sweep.request import Sweep
from toolkit.pipeline.sweep.resolve import Run

TOGETHER, APART, COMMANDS = "a sweep", "one after another", "one command after another"
PROMISED = 1.15  # on two cores


def students(dataset: str, fraction: float, epochs: int | None, cells: int = 8) -> Sweep:
    """Two seeds of each alpha."""
    alphas = tuple((number + 1) / (cells // 2) for number in range(cells // 2))
    return Sweep((fraction,), alpha=alphas, seed=(0, 1), dataset=dataset, epochs=epochs, device="cpu")


def together(workspace: Workspace, asked: Sweep, runs: list[Run]) -> Block:
    words = _options(frac=asked.frac[0], dataset=asked.dataset, device="cpu", epochs=asked.epochs)
    for option in ("alpha", "seed"):
        words += [word for value in getattr(asked, option) for word in _options(**{option: value})]
    return _block(workspace, runs, lambda: _kdtool(workspace, "sweep", *words))


def apart(workspace: Workspace, runs: list[Run]) -> Block:
    def train() -> None:
        for run in runs:
            distill(workspace, device="cpu", threads=available_cpus(), **run.asked)

    return _block(workspace, runs, train)


def as_commands(workspace: Workspace, runs: list[Run]) -> Block:
    def train() -> None:
        for run in runs:
            said = {name: run.asked.get(name) for name in ("subset", "alpha", "seed", "epochs")}
            _kdtool(workspace, "distill", *_options(**said, device="cpu", threads=available_cpus()))

    return _block(workspace, runs, train)


def _options(**said: Any) -> list[str]:
    return [word for name, value in said.items() if value is not None for word in (f"--{name}", str(value))]


def _kdtool(workspace: Workspace, *words: str) -> None:
    subprocess.run([KDTOOL, *words, "-w", str(workspace.root)], check=True, capture_output=True)


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


def contest(folder: Path, asked: Sweep, rounds: int, beside: list[str]) -> Contest:
    workspace = Workspace(folder)
    runs = prepare(workspace, asked, asked.cells).runs
    blocks = {
        TOGETHER: together(workspace, asked, runs),
        APART: apart(workspace, runs),
        COMMANDS: as_commands(workspace, runs),
    }
    chosen = {name: block for name, block in blocks.items() if name in (TOGETHER, *beside)}
    return in_turn(f"{len(asked.cells)} students", "img", chosen, rounds, warm_up=0)


def report(found: Contest, beside: list[str]) -> str:
    lines = [f"{found.name}, {found.rounds} rounds; promised on two cores: {PROMISED} times as fast as {APART}"]
    for name in beside:
        ratio, rate = found.ratio(TOGETHER, name), median(found.rates[name])
        lines.append(
            f"a sweep, {median(found.rates[TOGETHER]):,.0f} img/s, is {ratio.median:.2f} times as fast as {name}, "
            f"{rate:,.0f} img/s (quartiles {ratio.low_quartile:.2f} – {ratio.high_quartile:.2f}; mean over mean "
            f"{ratio.mean.ratio:.2f}, 95 % {ratio.interval}): {'met' if ratio.median >= PROMISED else 'missed'}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--beside", action="append", choices=[APART, COMMANDS], help="this only; again")
    parser.add_argument("--save", action="store_true", help="write results/sweep-<date>.json")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it runs")
    said = parser.parse_args()
    machine = facts()
    asked, rounds = students("fashion-mnist", said.fraction, said.epochs), said.rounds
    beside = said.beside or [APART, COMMANDS]
    if said.quick:
        asked, rounds = students("digits", 0.1, 2, cells=4), 2
    with scratch() as folder:
        found = contest(folder, asked, rounds, beside)
    print(in_words(machine))
    print(report(found, beside))
    if said.save:
        ratios = {name: found.ratio(TOGETHER, name).to_record() for name in beside}
        how = {"asked": asked.to_record(), "promised": PROMISED, "ratios": ratios}
        print(save("sweep", {"machine": machine, **found.to_record(), **how}))


if __name__ == "__main__":
    main()
