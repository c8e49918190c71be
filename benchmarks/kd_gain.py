"""What KD from the cache is worth on a random tenth of Fashion-MNIST: a ResNet-8 student, 30 epochs, paired seeds.

    python -m benchmarks.kd_gain                 # runs what is missing, appends to results/kd_gain.jsonl, prints
    python -m benchmarks.kd_gain --table         # prints the table of what is there

A seed decides subset, initialisation and order, which the three students of a seed share. Each row shows views in its
own order: the student with a cached view for each epoch those 30, the two others all 50 of the family in turn. Written
down before running: KD with a view for every epoch should beat no KD by at least one point on average.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.machine import RESULTS, append, facts, in_words, read_lines
from toolkit.core.progress import on_stderr
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.cache import cache_teacher
from toolkit.pipeline.student import distill
from toolkit.pipeline.subset import build_subset
from toolkit.report.statistics import mean_and_sigma, paired_difference
from toolkit.report.tables import table

WORKSPACE = Workspace(Path("kdtool-work/benchmarks"))
FILE = RESULTS / "kd_gain.jsonl"
SEEDS, FRACTION, EPOCHS = range(5), 0.1, 30
STUDENTS: dict[str, dict[str, Any]] = {
    "no KD": {"alpha": 0.0},
    "KD, 4 cached views, mean": {"alpha": 1.0, "views": 4, "match": "mean"},
    f"KD, a cached view for each of {EPOCHS} epochs": {"alpha": 1.0, "match": "exact"},
}


def run_seed(seed: int, missing: list[str]) -> None:
    name = f"random-{FRACTION:g}-s{seed}"
    build_subset(WORKSPACE, FRACTION, seed=seed, name=name)
    cache_teacher(WORKSPACE, subset=name, views=f"epochs:{EPOCHS}", progress=on_stderr)
    for student in missing:
        settings = STUDENTS[student]
        run = distill(WORKSPACE, subset=name, arch="resnet8", epochs=EPOCHS, seed=seed, progress=on_stderr, **settings)
        append(FILE, {"student": student, "seed": seed, **run, "machine": facts()})


def show(lines: list[dict[str, Any]]) -> None:
    lines = sorted(lines, key=lambda line: line["seed"])  # so that lists pair by seed
    accuracy = {name: [line["top1"] for line in lines if line["student"] == name] for name in STUDENTS}
    base = accuracy["no KD"]
    rows = []
    for name, values in accuracy.items():
        gain = ""
        if name != "no KD" and len(values) == len(base) > 1:
            found = paired_difference(values, base)
            gain = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        agreement = [line["agreement"] for line in lines if line["student"] == name and line["agreement"] is not None]
        rows.append(
            [name, mean_and_sigma(values), gain, f"{mean(agreement):.2f}" if agreement else "", str(len(values))]
        )
    print(table(["student", "test accuracy, %", "gain [95 % interval]", "agreement, %", "seeds"], rows))
    print(
        f"\nFashion-MNIST, random {FRACTION:g} ({lines[0]['subset']} …), ResNet-8, {EPOCHS} epochs of the fast recipe, "
        f"teacher {next(line['teacher'] for line in lines if line['teacher'])}, tau 4, last epoch; "
        f"{in_words(lines[0]['machine'])}."
    )


def main() -> None:
    if "--table" not in sys.argv:
        for seed in SEEDS:
            done = {line["student"] for line in read_lines(FILE) if line["seed"] == seed}
            missing = [name for name in STUDENTS if name not in done]
            if missing:
                run_seed(seed, missing)
    lines = read_lines(FILE)
    if not lines:
        sys.exit(f"{FILE}: no results yet. Run: python -m benchmarks.kd_gain")
    show(lines)


if __name__ == "__main__":
    main()
