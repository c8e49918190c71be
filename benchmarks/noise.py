"""A tenth of Fashion-MNIST's training labels flipped: which methods keep them, and what KD's alpha does about it.

    python -m benchmarks.noise              # runs what is missing (under an hour on one core), appends to results
    python -m benchmarks.noise --report     # the tables of what is there

The teacher, a ResNet-20 of 10 epochs, is trained on the noisy labels too, and every score is of its training or its
pass. `kept` is the share of flipped labels among the rows a method keeps (one seed; a random subset keeps a tenth).
Students learn from a tenth of the data at three alphas and seeds; the test labels are clean.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, in_words, read_lines
from benchmarks.methods import RANDOM, WAYS, built, by_seed, claimed, kdtool, rows_of, student
from toolkit.core.locks import only_writer
from toolkit.formats.dataset import noise_of
from toolkit.formats.workspace import Workspace
from toolkit.report.statistics import mean_and_sigma
from toolkit.report.tables import table

FILE, WORKSPACE = RESULTS / "noise.jsonl", Workspace(Path("kdtool-work/noise"))
RATE, SEEDS, FRACTIONS = 0.1, range(3), (0.1, 0.3, 0.5)
DATASET, TEACHER = f"fashion-mnist-noise-{RATE:g}-s0", "noisy"
ALPHAS, TAUGHT = (0.0, 0.5, 1.0), (RANDOM, "easiest, el2n", "hardest, el2n")


def prepare() -> None:
    """Noisy labels, a teacher that believed them, its views and its scores, unless they are there."""
    with only_writer(WORKSPACE.root / "claims" / "prepared"):
        here = ["-w", WORKSPACE.root.absolute()]
        data = ["--dataset", DATASET, *here]
        kdtool("noise", "--dataset", "fashion-mnist", "--rate", RATE, *here)
        kdtool("train-teacher", *data, "--name", TEACHER, "--epochs", 10, "--snapshots", 2)
        kdtool("cache-teacher", *data, "--teacher", TEACHER)
        kdtool("score", *data, "--teacher", TEACHER, *(word for score in SCORES for word in ("--score", score)))


SCORES = sorted({words[3] for words in WAYS.values() if len(words) > 2} - {"el2n", "disagreement"})


def kept(way: str, seed: int) -> dict[str, Any]:
    """The share of flipped labels that a way keeps at each fraction."""
    noise = noise_of(WORKSPACE.data(DATASET))
    assert noise is not None
    words = ["--dataset", DATASET, *WAYS[way], "--teacher", TEACHER, "--seed", seed, "--index-only", "--force"]
    fractions = [word for fraction in FRACTIONS for word in ("--frac", fraction)]
    made, _ = kdtool("build-subset", *words, *fractions, "-w", WORKSPACE.root.absolute())
    shares = {
        f"{one['fraction']:g}": float(np.isin(rows_of(WORKSPACE, one["name"]), noise.rows_m).mean()) for one in made
    }
    return {"what": "kept", "way": way, "seed": seed, "kept": shares}


def taught(way: str, seed: int) -> dict[str, Any]:
    """Students of a way's tenth, at every alpha."""
    name = built(WORKSPACE, way, 0.1, seed, "--teacher", TEACHER, "--dataset", DATASET)
    students = [student(WORKSPACE, name, seed, alpha, False, teacher=TEACHER if alpha else None) for alpha in ALPHAS]
    return {"what": "taught", "way": way, "seed": seed, "students": students}


WORK = {"kept": kept, "taught": taught}


def shares_table(lines: list[dict[str, Any]]) -> str:
    ways = [way for way in WAYS if by_seed(lines, way)]
    rows = [
        [way, *(f"{100 * mean(line['kept'][f'{f:g}'] for line in by_seed(lines, way)):.1f}" for f in FRACTIONS)]
        for way in ways
    ]
    return table(["method", *(f"noise kept at {fraction:g}, %" for fraction in FRACTIONS)], rows)


def alphas_table(lines: list[dict[str, Any]]) -> str:
    ways = [way for way in TAUGHT if by_seed(lines, way)]
    found = {way: [line["students"] for line in by_seed(lines, way)] for way in ways}
    rows = [
        [way, *(mean_and_sigma([students[at]["top1"] for students in found[way]]) for at in range(len(ALPHAS)))]
        for way in ways
    ]
    return table(["a tenth by", *(f"alpha {alpha:g}" for alpha in ALPHAS)], rows)


def report(lines: list[dict[str, Any]]) -> str:
    of = {what: [line for line in lines if line["what"] == what] for what in WORK}
    return "\n\n".join([shares_table(of["kept"]), alphas_table(of["taught"]), in_words(lines[-1]["machine"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="only print the tables of what is there")
    if not parser.parse_args().report:
        prepare()
        units = [("kept", way, 0) for way in WAYS]
        units += [("taught", way, seed) for seed in SEEDS for way in TAUGHT]
        done = lambda line: (line["what"], line["way"], line["seed"])  # noqa: E731
        claimed(FILE, WORKSPACE.root / "claims", units, done, lambda what, *unit: WORK[what](*unit))
    print(report(read_lines(FILE)))


if __name__ == "__main__":
    main()
