"""A data set as long as ImageNet's through every stage: seconds, and the most memory that its processes held together.

    python -m benchmarks.million --save                # 1,281,167 rows of 1,000 classes; about an hour on 2 cores
    python -m benchmarks.million --rows 160000

Its images are tiny (8 × 8 pixels, made from their row's number), so that what is counted for each row and class is
all there is to see: what holds the pixels of an image is told by other benchmarks. The teacher is a ResNet-8 of four
channels with the weights it begins with. Every stage is a command in a process of its own, beside the same stage at
an eighth of the rows: the difference, by the rows between them, is what a row costs; the rest is torch and FFCV. Memory
is what they hold themselves, looked at every 20 ms: pages of mapped files, which the system takes back when it needs
them, are not counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import KDTOOL, facts, in_words, save, scratch
from toolkit.core.memory import taken_bytes
from toolkit.report.tables import table

ROWS, CLASSES, SIDE, TEST_ROWS = 1_281_167, 1000, 8, 50_000
PART = 8  # how much smaller the data set beside it is
_ROWS_ARE = "KDTOOL_MILLION_ROWS"


class Tiny:
    """Images of `rows` rows, each made when it is asked for; their class shows in the colour of each quarter."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        if not 0 <= row < self.rows:
            raise IndexError(row)
        label = (row * 7919 + self.seed) % CLASSES
        noise = np.random.default_rng((self.seed, row)).integers(0, 64, (SIDE, SIDE, 3), dtype=np.uint8)
        quarters = np.random.default_rng(label).integers(0, 192, (2, 2, 3), dtype=np.uint8)
        return noise + quarters.repeat(SIDE // 2, axis=0).repeat(SIDE // 2, axis=1), label


def tiny(split: str) -> Tiny:
    """The data set, for kdtool: --dataset benchmarks.million:tiny."""
    rows = int(os.environ.get(_ROWS_ARE, ROWS))
    return Tiny(rows, 0) if split == "train" else Tiny(TEST_ROWS, 1)


class Stage(NamedTuple):
    """What a command took: `peak_mib` is of all its processes together."""

    name: str
    seconds: float
    peak_mib: float


def stages(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each stage's name, and how it is typed."""
    data = ["--dataset", "benchmarks.million:tiny"]
    teacher = ["--teacher", str(folder / "tiny.pt"), "--arch", "resnet8", "--width", "4"]
    yield "pack", ["pack", *data]
    yield "cache-teacher, 2 views", ["cache-teacher", *data, *teacher, "--views", "2"]
    yield "build-subset, random half", ["build-subset", *data, "--frac", "0.5", "--name", "half"]
    hard = ["--method", "hardest", "--score", "el2n", "--teacher", "tiny"]
    yield "build-subset, hardest half", ["build-subset", *data, "--frac", "0.5", *hard, "--name", "hard"]
    student = ["distill", "--subset", "half", "--epochs", "1", "--width", "4"]
    yield "distill, streaming, 1 epoch", [*student, "--source", "stream", "--name", "streamed"]
    yield "distill, resident, 1 epoch", [*student, "--source", "resident", "--name", "resident"]


def measured(rows: int, folder: Path) -> list[Stage]:
    folder.mkdir()
    _save_teacher(folder / "tiny.pt")
    found = []
    for name, words in stages(folder):
        start_s = time.perf_counter()
        process = subprocess.Popen(
            [KDTOOL, *words, "-w", str(folder / "work")],
            env={**os.environ, _ROWS_ARE: str(rows)},
            stdout=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        peak_bytes = 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, held_bytes(process.pid))
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit(f"{name}: exit code {process.returncode}")
        found.append(Stage(name, time.perf_counter() - start_s, peak_bytes / 2**20))
        print(f"{rows:,} rows, {name}: {found[-1].seconds:,.0f} s, {found[-1].peak_mib:,.0f} MiB", flush=True)
    return found


def held_bytes(session: int) -> int:
    """What all processes of a session hold now, without the pages of mapped files."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if os.getsid(int(process.name)) == session:
                total += taken_bytes(process / "status")
    return total


def _save_teacher(path: Path) -> None:
    import torch

    from toolkit.models.zoo import build_model

    torch.save(build_model("resnet8", CLASSES, width=4).state_dict(), path)


def bytes_a_row(whole: Stage, part: Stage, rows: int) -> float:
    return (whole.peak_mib - part.peak_mib) * 2**20 / (rows - rows // PART)


def in_a_table(whole: list[Stage], part: list[Stage], rows: int) -> str:
    header = ["stage", "seconds", "rows/s", "peak, MiB", f"peak at 1/{PART}, MiB", "bytes a row"]
    lines = [
        [
            one.name,
            f"{one.seconds:,.0f}",
            f"{rows / one.seconds:,.0f}",
            f"{one.peak_mib:,.0f}",
            f"{less.peak_mib:,.0f}",
            f"{bytes_a_row(one, less, rows):,.0f}",
        ]
        for one, less in zip(whole, part, strict=True)
    ]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--save", action="store_true", help="write results/million-<date>.json")
    said = parser.parse_args()
    machine = facts()
    with scratch() as folder:
        part = measured(said.rows // PART, folder / "part")
        whole = measured(said.rows, folder / "whole")
    print(in_words(machine))
    print(in_a_table(whole, part, said.rows))
    if said.save:
        found: dict[str, Any] = {"rows": said.rows, "classes": CLASSES, "side": SIDE, "part": PART}
        for name, measures in (("whole", whole), ("at_part", part)):
            found[name] = [one._asdict() for one in measures]
        print(save("million", {"machine": machine, **found}))


if __name__ == "__main__":
    main()
