"""make bench on a GPU, in one command of under eight minutes that needs no network.

    python -m benchmarks.throughput --gpu --data-dir FOLDER [--out FOLDER]     # FOLDER: Fashion-MNIST's four .gz files
    python -m benchmarks.throughput --gpu --workspace W                        # or a workspace with the data packed
    python -m benchmarks.throughput --gpu --device cpu --quick                 # tiny: only to see that it runs

It has not been run on a GPU yet; tests/test_benchmarks.py runs it on a CPU.

Sections, in the order of what would be missed most: distill from the resident source beside its bound; the paper's run
(ResNet-32, 240 epochs, batch 64, half the data) by the command itself, from its start to its end; the student's step
eager and compiled; the live-teacher loop; cache-teacher; distill from the streaming source. What the disk and the CPU
bound (pack, build-subset) is left to `make bench`. Each section has a time of its own: no round is begun past it, an
alarm ends a section that goes on, and what failed or was cut short says so in the results, which are written again
after every section. A borrowed GPU's minutes should not be lost to one broken section. What is counted is as in
benchmarks/throughput.py and live.py; every block ends with torch.cuda.synchronize.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import live
from benchmarks.machine import KDTOOL, RESULTS, facts, in_words, save, scratch
from benchmarks.rounds import HEADER, in_turn, row, stopwatch
from benchmarks.throughput import Result, epochs_beside_bound, shares
from benchmarks.training import Step, caching, one_batch, taught_bundle, trainer_of
from toolkit.core.recipes import RECIPES
from toolkit.formats.bundle import Bundle
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.report.tables import table


@dataclass(frozen=True)
class Sizes:
    """`compiles` are torch.compile's options by name, None for an eager step; `paper` the command's own settings."""

    dataset: str
    batches: tuple[int, ...]
    archs: tuple[str, ...]
    seconds: float
    rounds: int
    compiles: dict[str, dict[str, Any] | None]
    workers: tuple[int, ...]
    paper: tuple[str, ...]


COMPILES = {"eager": None, "compile": {}, "reduce-overhead": {"mode": "reduce-overhead"}}
PAPER = ("--arch", "resnet32", "--recipe", "paper-cifar", "--compile")
FULL = Sizes("fashion-mnist", (64, 1024), ("resnet8", "resnet32"), 1.0, 9, COMPILES, (4, 8, 16), PAPER)
QUICK = Sizes(
    "digits", (64,), ("resnet8",), 0.02, 2, {"eager": None, "compile": {"backend": "eager"}}, (0,),
    ("--arch", "resnet8", "--recipe", "paper-cifar", "--epochs", "2"),
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What the sections work on."""

    workspace: Workspace
    bundle: Bundle
    compute: Compute
    sizes: Sizes

    @property
    def classes(self) -> int:
        return self.bundle.data.classes


Section = Callable[[Bench, float], Iterator[dict[str, Any]]]


def resident(bench: Bench, until_s: float) -> Iterator[dict[str, Any]]:
    yield from _distill(bench, until_s, "resident")


def stream(bench: Bench, until_s: float) -> Iterator[dict[str, Any]]:
    yield from _distill(bench, until_s, "stream")


def _distill(bench: Bench, until_s: float, kind: str) -> Iterator[dict[str, Any]]:
    for batch_size in bench.sizes.batches:
        asked = (bench.bundle, bench.compute, batch_size, bench.sizes.seconds, bench.sizes.rounds, until_s)
        yield _shown(epochs_beside_bound(f"distill, {kind}, batch {batch_size}", *asked, kind=kind))


def _shown(result: Result) -> dict[str, Any]:
    print(table(HEADER, [row(result.contest, result.stage, result.bound)]))
    if "share_of_targets" in result.more:
        print(shares([result]), flush=True)
    return result.to_record()


def caches(bench: Bench, until_s: float) -> Iterator[dict[str, Any]]:
    for batch_size in bench.sizes.batches:
        blocks = caching(bench.workspace, bench.sizes.dataset, bench.compute, batch_size, bench.sizes.seconds)
        contest = in_turn(f"cache-teacher, batch {batch_size}", "img", blocks, bench.sizes.rounds, until_s)
        yield _shown(Result(contest, "cache-teacher", ["forward"], {"batch_size": batch_size}))


def steps(bench: Bench, until_s: float) -> Iterator[dict[str, Any]]:
    """The step alone, eager and compiled in turn, with what compiling took."""
    for batch_size in bench.sizes.batches:
        for arch in bench.sizes.archs:
            torch.compiler.reset()  # all networks share one forward, of which torch compiles eight and no more
            batch = one_batch(trainer_of(bench.bundle, bench.compute, batch_size))
            variants: dict[str, Step] = {}
            for name, options in bench.sizes.compiles.items():
                if name == "eager" or time.perf_counter() < until_s:
                    variants[name] = Step(batch, bench.classes, bench.compute, arch, options)
            blocks = {name: step.block(bench.sizes.seconds / 2) for name, step in variants.items()}
            contest = in_turn(f"step, {arch}, batch {batch_size}", "img", blocks, bench.sizes.rounds, until_s)
            for name, rates in contest.rates.items():
                ms = 1000 * batch_size / median(rates)
                compile_s = variants[name].compile_s
                print(f"{contest.name}, {name}: {median(rates):,.0f} img/s, {ms:.2f} ms, compiled in {compile_s:.1f} s")
            yield {**contest.to_record(), "compile_s": {name: step.compile_s for name, step in variants.items()}}


def paper(bench: Bench, until_s: float) -> Iterator[dict[str, Any]]:
    """The command as a user runs it; should it fail, once more as it is without --compile."""
    settings = list(bench.sizes.paper)
    record = _command(bench, settings, until_s)
    yield record
    if "failed" in record and "--compile" in settings:
        settings.remove("--compile")
        yield _command(bench, settings, until_s)


def _command(bench: Bench, settings: list[str], until_s: float) -> dict[str, Any]:
    """Killed at its time, a run tells from its epochs how long it would have taken."""
    metrics, log = bench.workspace.run("paper") / "metrics.jsonl", bench.workspace.root / "paper.log"
    metrics.unlink(missing_ok=True)
    here = ["--workspace", str(bench.workspace.root), "--subset", bench.bundle.record.name, "--name", "paper"]
    words = ["distill", *here, *settings, "--device", str(bench.compute.device), "--force", "--json"]
    found: dict[str, Any] = {"command": " ".join(["kdtool", *words])}
    with stopwatch() as elapsed, log.open("w") as errors:
        try:
            left_s = max(until_s - time.perf_counter(), 1)
            said = subprocess.run(
                [KDTOOL, *words], stdout=subprocess.PIPE, stderr=errors, text=True, timeout=left_s, check=True
            ).stdout
            found["result"] = json.loads(said.splitlines()[-1])
        except subprocess.TimeoutExpired:
            found["stopped"] = f"after {left_s:.0f} s"
        except subprocess.CalledProcessError as error:
            found["failed"] = error.returncode
    wall_s = elapsed[0]
    epochs_s = [json.loads(line)["elapsed_s"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
    found |= {"wall_s": wall_s, "epochs_s": epochs_s}
    if "result" not in found:
        found["log"] = log.read_text()[-2000:]
        if epochs_s:
            found["estimated_wall_s"] = wall_s + (RECIPES["paper-cifar"].epochs - len(epochs_s)) * median(epochs_s)
    short = {name: value for name, value in found.items() if name not in ("result", "log", "epochs_s")}
    print(f"paper: {short}, {len(epochs_s)} epochs", flush=True)
    return found


def live_teacher(bench: Bench, until_s: float) -> Iterator[dict[str, Any]]:
    size, workers = bench.sizes, [count for count in bench.sizes.workers if count <= (os.cpu_count() or 1)] or [0]
    batch_size = bench.sizes.batches[0]
    whole = -(-len(bench.bundle.rows_m) // batch_size)
    how: dict[str, Any] = {"workers": workers[-1], "tried": tuple(workers), "slice_steps": whole, "until_s": until_s}
    asked = (bench.workspace, bench.bundle, bench.compute, batch_size)
    found, settings = live.contest(*asked, 2 * size.seconds, min(size.rounds, 5), **how)
    print(live.report(found, settings), flush=True)
    yield {**found.to_record(), "settings": settings}


TOTAL_S = 465.0  # from the start of the program's own clock; importing torch comes before it
# Seconds of each; packing, cutting and caching before them take about 40.
SECTIONS: dict[str, tuple[Section, float]] = {
    "resident": (resident, 50),
    "paper": (paper, 125),
    "steps": (steps, 90),
    "live": (live_teacher, 60),
    "cache-teacher": (caches, 30),
    "stream": (stream, 50),
}


class OutOfTimeError(Exception):
    """A section went on past its time."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise OutOfTimeError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_sections(bench: Bench, names: list[str], end_s: float, keep: Callable[[dict[str, Any]], Any]) -> None:
    """Every section in its own try, none past `end_s`; `keep` is given all that is known after each."""
    found: dict[str, Any] = {}
    for name in names:
        section, seconds = SECTIONS[name]
        start_s = time.perf_counter()
        left_s = max(end_s - start_s, 1)
        found[name] = {"results": []}
        try:
            with alarm(min(1.25 * seconds, left_s)):
                for record in section(bench, start_s + min(seconds, 0.8 * left_s)):
                    found[name]["results"].append(record)
        except Exception as error:  # whatever it is: the sections after it may still work, and the GPU is only lent
            found[name]["error"] = "".join(traceback.format_exception(error))[-4000:]
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        found[name]["seconds"] = time.perf_counter() - start_s
        keep(found)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.throughput --gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data-dir", type=Path, help="Fashion-MNIST's four idx .gz files")
    parser.add_argument("--workspace", type=Path, help="a workspace with the data packed  [default: a new one]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these sections only")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it runs")
    asked = parser.parse_args(words)
    compute, machine, start_s = compute_on(asked.device), facts(), time.perf_counter()
    sizes = QUICK if asked.quick else FULL
    device = machine["gpu"] if compute.device.type == "cuda" else "cpu"
    name = f"throughput-gpu-{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-').lower()}"
    print(f"{device}; {in_words(machine)}; torch {torch.__version__}", flush=True)
    with scratch() as folder:
        workspace = Workspace(asked.workspace or folder)
        with stopwatch(compute.device) as prepared:
            ensure_packed(workspace, sizes.dataset, asked.data_dir)
            bundle = taught_bundle(workspace, sizes.dataset, 0.5, compute)
        print(f"packed, cut and cached in {prepared[0]:.1f} s", flush=True)

        def keep(found: dict[str, Any]) -> None:
            total_s = time.perf_counter() - start_s
            known = {"machine": machine, "prepared_s": prepared[0], "total_s": total_s, "sections": found}
            print(f"{total_s:.0f} s: {save(name, known, asked.out)}", flush=True)

        run_sections(Bench(workspace, bundle, compute, sizes), asked.only, start_s + TOTAL_S, keep)
