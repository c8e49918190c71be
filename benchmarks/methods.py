"""Every method of selection on a tenth of Fashion-MNIST: its cost, its overlap with random, and what students learn.

    python -m benchmarks.methods              # runs what is missing (under two hours on one core), appends to results
    python -m benchmarks.methods --report     # the table of what is there

For each way and seed one `kdtool build-subset` runs in a process of its own (`select_s` is choosing alone, `wall_s` and
`peak_bytes` are the process's, with one thread), then two students learn from its rows, without the teacher (alpha 0)
and from it alone (alpha 1). Seeds are paired: the students of one seed share initialisation and order of views; a
random subset of the same seed is what overlap is counted with. Weighted methods train with their weights.

Scores of the training dynamics are those that come with the packaged teacher. Start it several times to use several
cores: a process takes what is missing and nobody else is at.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.machine import KDTOOL, RESULTS, append, facts, in_words, read_lines
from toolkit.core.errors import FailureError
from toolkit.core.locks import only_writer
from toolkit.formats.bundle import open_bundle
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.student import distill
from toolkit.report.statistics import mean_and_sigma, paired_difference
from toolkit.report.tables import table

FILE, WORKSPACE = RESULTS / "methods.jsonl", Workspace(Path("kdtool-work/methods"))
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


def kdtool(*words: Any) -> tuple[list[dict[str, Any]], float, int]:
    """(results, seconds, peak bytes) of a command in a process of its own, with one thread. Ends where it fails."""
    start_s = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [KDTOOL, *map(str, words), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: ended with {process.returncode}")
    return [json.loads(line) for line in lines], time.perf_counter() - start_s, usage.ru_maxrss * 1024


def built(
    workspace: Workspace, way: str, fraction: float, seed: int, *more: str, dataset: str = DATASET
) -> dict[str, Any]:
    """A way's subset: its name and rows, and what choosing them cost."""
    name = f"{way.replace(', ', '-')}-{fraction:g}-s{seed}"
    words = ["--dataset", dataset, "--frac", fraction, *WAYS[way], "--seed", seed, "--name", name, *more]
    (result, *_), wall_s, peak_bytes = kdtool("build-subset", *words, "-w", workspace.root, "--force")
    return {"subset": name, "select_s": result["select_s"], "wall_s": wall_s, "peak_bytes": peak_bytes}


def rows_of(workspace: Workspace, subset: str) -> np.ndarray:
    return open_bundle(workspace.subset(subset)).rows_m


def overlap(ours_m: np.ndarray, theirs_m: np.ndarray) -> float:
    """The share of our rows that theirs hold too."""
    return len(np.intersect1d(ours_m, theirs_m)) / len(ours_m)


def student(workspace: Workspace, subset: str, seed: int, alpha: float, weights: bool, **more: Any) -> dict[str, float]:
    """Test accuracy of a student, and how often it agrees with the teacher, both in percent."""
    run = distill(workspace, subset, epochs=EPOCHS, seed=seed, alpha=alpha, weights=weights, threads=1, **more)
    return {"alpha": alpha, "top1": run["top1"], "agreement": run["agreement"], "seconds": run["seconds"]}


def prepare(workspace: Workspace) -> None:
    """The teacher's views and every score that is used, unless they are there."""
    with only_writer(workspace.root / "claims" / "prepared"):
        kdtool("cache-teacher", "--dataset", DATASET, "-w", workspace.root)
        kdtool("score", "--dataset", DATASET, "-w", workspace.root)


def run(way: str, seed: int) -> dict[str, Any]:
    subset = built(WORKSPACE, way, FRACTION, seed)
    if way != RANDOM:
        random_m = rows_of(WORKSPACE, built(WORKSPACE, RANDOM, FRACTION, seed, "--index-only")["subset"])
        subset["overlap"] = overlap(rows_of(WORKSPACE, subset["subset"]), random_m)
    weights = way in WEIGHTED
    students = [student(WORKSPACE, subset["subset"], seed, alpha, weights) for alpha in (0.0, 1.0)]
    return {"way": way, "seed": seed, "fraction": FRACTION, "epochs": EPOCHS, **subset, "students": students}


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
    return sorted((line for line in lines if line["way"] == way), key=lambda line: line["seed"])


def row(lines: list[dict[str, Any]], way: str) -> list[str]:
    """A line of the table: gains are over random's students of the same seeds."""
    ours, randoms = by_seed(lines, way), {line["seed"]: line for line in by_seed(lines, RANDOM)}
    cells = [
        way,
        f"{median(line['select_s'] for line in ours):,.2f}",
        f"{median(line['peak_bytes'] for line in ours) / 2**20:,.0f}",
        "" if way == RANDOM else f"{100 * mean(line['overlap'] for line in ours):.0f}",
    ]
    for alpha in (0.0, 1.0):
        found = [accuracy(line, alpha) for line in ours]
        cells.append(mean_and_sigma(found))
        if way == RANDOM or len(ours) < 2 or any(line["seed"] not in randoms for line in ours):
            cells.append("")
        else:
            gain = paired_difference(found, [accuracy(randoms[line["seed"]], alpha) for line in ours])
            cells.append(f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]")
    return [*cells, str(len(ours))]


HEADER = ["method", "s", "peak MiB", "overlap %", "no KD, %", "over random", "KD, %", "over random", "seeds"]


def report(lines: list[dict[str, Any]]) -> str:
    machine = lines[-1]["machine"]
    ways = [way for way in WAYS if by_seed(lines, way)]
    return "\n".join(
        [
            table(HEADER, [row(lines, way) for way in ways]),
            f"a tenth of {DATASET}, {EPOCHS} epochs, one thread each of {in_words(machine)}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="only print the table of what is there")
    parser.add_argument("--backwards", action="store_true", help="last way first, beside a process that goes forwards")
    asked = parser.parse_args()
    if not asked.report:
        prepare(WORKSPACE)
        units = [(way, seed) for seed in SEEDS for way in WAYS]
        claims = WORKSPACE.root / "claims"
        claimed(FILE, claims, units[:: -1 if asked.backwards else 1], lambda line: (line["way"], line["seed"]), run)
    print(report(read_lines(FILE)))


if __name__ == "__main__":
    main()
