"""Every method of selection on a tenth of Fashion-MNIST: its cost, its overlap with random, and what students learn.

    python -m benchmarks.methods              # runs what is missing (under two hours on one core), appends to results
    python -m benchmarks.methods --costs      # measures what choosing costs, on an idle machine, in a few minutes
    python -m benchmarks.methods --report     # the table of what is there

For each way and seed `kdtool build-subset` chooses, and two students learn from its rows, without the teacher (alpha 0)
and from it alone (alpha 1). Seeds are paired: the students of one seed share initialisation and order of views; a
random subset of the same seed is what overlap is counted with. Weighted methods train with their weights. Of the costs,
`select_s` is choosing alone, `wall_s` and `peak_bytes` are of the whole process.

Scores of the training dynamics are those that come with the packaged teacher. Start it several times to use several
cores: a process takes what is missing and nobody else is at.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.child import started
from benchmarks.machine import KDTOOL, RESULTS, append, facts, in_words, read_lines
from toolkit.core.errors import FailureError
from toolkit.core.locks import only_writer
from toolkit.formats.bundle import open_bundle
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.student import distill
from toolkit.report.statistics import mean_and_sigma, paired_difference
from toolkit.report.tables import table

FILE, NOISE, WORKSPACE = RESULTS / "methods.jsonl", RESULTS / "noise.jsonl", Workspace(Path("kdtool-work/methods"))
DATASET, FRACTION, SEEDS, EPOCHS = "fashion-mnist", 0.1, range(3), 10
RANDOM = "random"

# A way is a method with its score. The first are those a newcomer would try first.
WAYS: dict[str, list[str]] = {
    RANDOM: ["--method", "random"],
    **{
        f"{method}, {score}": ["--method", method, "--score", score]
        for method, score in [
            ("hardest", "el2n"),
            ("easiest", "el2n"),
            ("hardest", "el2n@2"),
            ("hardest", "forgetting"),
            ("hardest", "aum"),
            ("stratified", "aum"),
            ("window", "el2n@2"),
            ("d2", "el2n@2"),
            ("hardest", "grand@2"),
            ("hardest", "dyn_unc"),
            ("hardest", "tdds"),
            ("hardest", "prototype"),
        ]
    },
    **{
        method: ["--method", method]
        for method in (
            "moderate",
            "herding",
            "k-center",
            "contextual-diversity",
            "facility-location",
            "graph-cut",
            "craig",
            "grad-match",
            "glister",
            "cal",
        )
    },
}
WEIGHTED = ("craig", "grad-match")
LAST = [f"hardest, {score}" for score in ("prototype", "tdds", "dyn_unc", "grand@2")]  # students of these come last


def kdtool(*words: Any, **environment: str) -> tuple[list[dict[str, Any]], int]:
    """(results, peak bytes) of a command in a process of its own, which ends the study where it fails."""
    command = [KDTOOL, *map(str, words), "--json"]
    lines, code, peak_bytes = started(command, **environment)
    if code:
        sys.exit(f"{' '.join(command)}: ended with {code}: {' '.join(lines[-3:])}")
    return [json.loads(line) for line in lines if line.startswith("{")], peak_bytes


def build(workspace: Workspace, way: str, fraction: float, seed: int, *more: Any) -> list[Any]:
    """The words of the command that makes a way's subset, and its name."""
    name = f"{way.replace(', ', '-')}-{fraction:g}-s{seed}"
    words = ["--frac", fraction, *WAYS[way], "--seed", seed, "--name", name, "-w", workspace.root.absolute()]
    return [name, "build-subset", *words, *more, "--force"]


def built(workspace: Workspace, way: str, fraction: float, seed: int, *more: Any) -> str:
    """A way's subset, chosen with one thread; its name."""
    name, *words = build(workspace, way, fraction, seed, *more)
    kdtool(*words, OMP_NUM_THREADS="1")
    return name


def rows_of(workspace: Workspace, subset: str) -> np.ndarray:
    return open_bundle(workspace.subset(subset)).rows_m


def overlap(ours_m: np.ndarray, theirs_m: np.ndarray) -> float:
    """The share of our rows that theirs hold too."""
    return len(np.intersect1d(ours_m, theirs_m)) / len(ours_m)


def student(workspace: Workspace, subset: str, seed: int, alpha: float, weights: bool, **more: Any) -> dict[str, float]:
    """Test accuracy of a student, and how often it agrees with the teacher, both in percent."""
    run = distill(workspace, subset=subset, epochs=EPOCHS, seed=seed, alpha=alpha, weights=weights, threads=1, **more)
    return {"alpha": alpha, "top1": run["top1"], "agreement": run["agreement"], "seconds": run["seconds"]}


def prepare(workspace: Workspace) -> None:
    """The teacher's views and every score that is used, unless they are there."""
    with only_writer(workspace.root / "claims" / "prepared"):
        for command in ("cache-teacher", "score"):
            kdtool(command, "--dataset", DATASET, "-w", workspace.root.absolute())


def run(way: str, seed: int) -> dict[str, Any]:
    subset = built(WORKSPACE, way, FRACTION, seed)
    found: dict[str, Any] = {"way": way, "seed": seed, "fraction": FRACTION, "epochs": EPOCHS}
    if way != RANDOM:
        random_m = rows_of(WORKSPACE, built(WORKSPACE, RANDOM, FRACTION, seed, "--index-only"))
        found["overlap"] = overlap(rows_of(WORKSPACE, subset), random_m)
    weights = way in WEIGHTED
    return {**found, "students": [student(WORKSPACE, subset, seed, alpha, weights) for alpha in (0.0, 1.0)]}


def cost(way: str) -> dict[str, Any]:
    """Seconds and memory of the command, which also cuts the images and the targets."""
    start_s = time.perf_counter()
    (result, *_), peak_bytes = kdtool(*build(WORKSPACE, way, FRACTION, 0)[1:])
    wall_s = time.perf_counter() - start_s
    return {"way": way, "select_s": result["select_s"], "wall_s": wall_s, "peak_bytes": peak_bytes}


def claimed(
    file: Path,
    claims: Path,
    units: Iterable[tuple[Any, ...]],
    done: Callable[[dict[str, Any]], tuple[Any, ...]],
    work: Callable[..., dict[str, Any]],
) -> None:
    """Runs the units that the file lacks and no other process is at, and appends what they give."""
    for unit in units:
        try:
            with only_writer(claims / "-".join(map(str, unit)).replace(", ", "-")):
                if unit not in {done(line) for line in read_lines(file)}:
                    append(file, {**work(*unit), "machine": facts()})
                    print(*unit, flush=True)
        except FailureError as error:
            if "is being written by" not in str(error):
                raise


def accuracy(line: dict[str, Any], alpha: float) -> float:
    return next(student["top1"] for student in line["students"] if student["alpha"] == alpha)


def by_seed(lines: list[dict[str, Any]], way: str) -> list[dict[str, Any]]:
    return sorted((line for line in lines if line["way"] == way and "seed" in line), key=lambda line: line["seed"])


def row(lines: list[dict[str, Any]], way: str) -> list[str]:
    """A line of the table: gains are over random's students of the same seeds."""
    ours, randoms = by_seed(lines, way), {line["seed"]: line for line in by_seed(lines, RANDOM)}
    costs = [line for line in lines if line["way"] == way and "select_s" in line]
    cells = [
        way,
        *(f"{line['select_s']:,.2f}" for line in costs[-1:]),
        *(f"{line['peak_bytes'] / 2**20:,.0f}" for line in costs[-1:]),
        *([] if costs else ["", ""]),
        "" if way == RANDOM else f"{100 * mean(line['overlap'] for line in ours):.0f}",
    ]
    for alpha in (0.0, 1.0):
        found = [accuracy(line, alpha) for line in ours]
        cells.append(mean_and_sigma(found))
        if way == RANDOM or len(ours) < 2 or any(line["seed"] not in randoms for line in ours):
            cells.append("")
        else:
            gain = paired_difference(found, [accuracy(randoms[line["seed"]], alpha) for line in ours])
            cells.append(gain.in_words)
    return [*cells, str(len(ours))]


def noise_kept(way: str) -> str:
    """The share of flipped labels that the way keeps, by benchmarks/noise.py, in percent, or nothing."""
    lines = [line for line in read_lines(NOISE) if line["what"] == "kept" and line["way"] == way]
    return f"{100 * mean(line['kept'][f'{FRACTION:g}'] for line in lines):.1f}" if lines else ""


HEADER = [
    "method",
    "s",
    "peak MiB",
    "overlap %",
    "no KD, %",
    "over random",
    "KD, %",
    "over random",
    "seeds",
    "noise kept, %",
]


def report(lines: list[dict[str, Any]]) -> str:
    trained_on, measured_on = (
        in_words(next((line["machine"] for line in lines if key in line), lines[-1]["machine"]))
        for key in ("students", "select_s")
    )
    ways = [way for way in WAYS if by_seed(lines, way)]
    return "\n".join(
        [
            table(HEADER, [[*row(lines, way), noise_kept(way)] for way in ways]),
            f"a tenth of {DATASET}; students of {EPOCHS} epochs on {trained_on}; costs on {measured_on}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="only print the table of what is there")
    parser.add_argument("--costs", action="store_true", help="measure what choosing costs instead, every way once")
    asked = parser.parse_args()
    if asked.costs:
        prepare(WORKSPACE)
        for way in WAYS:
            append(FILE, {**cost(way), "machine": facts()})
    elif not asked.report:
        prepare(WORKSPACE)
        units = [(way, seed) for last in (False, True) for seed in SEEDS for way in WAYS if (way in LAST) == last]
        claims = WORKSPACE.root / "claims"
        claimed(FILE, claims, units, lambda line: (line["way"], line.get("seed")), run)
    print(report(read_lines(FILE)))


if __name__ == "__main__":
    main()
