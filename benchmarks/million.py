"""A data set as long as ImageNet's through every stage: seconds, and the most memory that its processes held together.

    python -m benchmarks.million --save                # 1,281,167 rows of 1,000 classes; 25 minutes on 2 idle cores
    python -m benchmarks.million --rows 160000
    python -m benchmarks.million --table               # the table of what is there

Its images are tiny (8 × 8 pixels, made from their row's number), so that what is counted for each row and class is
all there is to see: what holds the pixels of an image is told by other benchmarks. The same number of JPEG files, in
class folders, is packed once beside it. The teacher is a ResNet-8 of four channels. Every stage is a command in a
process of its own, or in two by torchrun, under the --memory-limit that stands beside it where it takes one; and beside
it the same stage at an eighth of the rows: the difference, by the rows between them that the stage works on, is what a
row costs; the rest is torch and FFCV. Memory is what they hold themselves, looked at every 20 ms: pages of mapped
files, which the system takes back when it needs them, are not counted, and pages that several processes share are
counted in each. A stage that took more than its limit is told last, as an error. --save writes the result, and of all
the rows fills the table into docs/imagenet.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.filling import filled
from benchmarks.machine import KDTOOL, RESULTS, facts, in_words, save, scratch
from toolkit.core.files import remove_folder
from toolkit.core.memory import size_bytes, taken_bytes
from toolkit.report.tables import table

ROWS, CLASSES, SIDE, TEST_ROWS = 1_281_167, 1000, 8, 50_000
PART = 8  # how much smaller the data set beside it is
PAGE = RESULTS.parent.parent / "docs" / "imagenet.md"
_ROWS_ARE = "KDTOOL_MILLION_ROWS"  # of the training split, and of the test split
_EVERY_S = 0.02


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
    train, test = map(int, os.environ.get(_ROWS_ARE, f"{ROWS},{TEST_ROWS}").split(","))
    return Tiny(train, 0) if split == "train" else Tiny(test, 1)


class Command(NamedTuple):
    """A stage: `words` for kdtool, the `limit` it is given, of how many processes, and the share of the training rows
    that it works on."""

    name: str
    words: list[str]
    limit: str | None = None
    processes: int = 1
    share: float = 1.0

    def typed(self, work: Path) -> list[str]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        begin = [KDTOOL] if self.processes == 1 else [*torchrun, str(self.processes), "-m", "toolkit"]
        limit = [] if self.limit is None else ["--memory-limit", self.limit]
        return [*begin, *self.words, *limit, "-w", str(work)]


class Stage(NamedTuple):
    """What a command took: `peak_mib` is of all its `processes` together, as many as there were at one time. torchrun
    itself is one of them."""

    name: str
    share: float
    limit: str | None
    processes: int
    seconds: float
    peak_mib: float


def stages(pictures: Path) -> Iterator[Command]:
    data = ["--dataset", "benchmarks.million:tiny"]
    small = ["--arch", "resnet8", "--width", "4"]
    yield Command("pack, from JPEG files", ["pack", "--dataset", "imagefolder-tiny", "--data-dir", str(pictures)])
    yield Command("pack", ["pack", *data])
    yield Command("train-teacher, 1 epoch", ["train-teacher", *data, *small, "--epochs", "1", "--name", "tiny"], "1G")
    yield Command("cache-teacher, 2 views", ["cache-teacher", *data, "--teacher", "tiny", "--views", "2"], "1G")
    yield Command("score", ["score", *data, "--teacher", "tiny"], "1G")
    half = ["build-subset", *data, "--frac", "0.5"]
    yield Command("build-subset, random half", [*half, "--name", "half"], "1G")
    hard = ["--method", "hardest", "--score", "el2n", "--teacher", "tiny", "--name", "hard"]
    yield Command("build-subset, hardest half", [*half, *hard], "1G")
    student = ["distill", "--subset", "half", "--epochs", "1", *small]
    yield Command("distill, streaming, 1 epoch", [*student, "--source", "stream", "--name", "one"], "1G", share=0.5)
    two = [*student, "--source", "stream", "--name", "two"]
    yield Command("distill, streaming, two processes", two, "2G", processes=2, share=0.5)
    yield Command("distill, resident, 1 epoch", [*student, "--source", "resident", "--name", "held"], "4G", share=0.5)


def measured(rows: int, test_rows: int, folder: Path) -> list[Stage]:
    """Every stage on so many rows, one after the other. Ends with the command's own words where one fails; a command
    under way ends with this process."""
    folder.mkdir()
    _write_pictures(folder / "pictures", {"train": rows, "val": test_rows})
    found = []
    for command in stages(folder / "pictures"):
        start_s = time.perf_counter()
        process = subprocess.Popen(
            command.typed(folder / "work"),
            env={**os.environ, _ROWS_ARE: f"{rows},{test_rows}"},
            stdout=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        peak_bytes, most = 0, 0
        try:
            while process.poll() is None:
                taken = held_bytes(process.pid)
                peak_bytes, most = max(peak_bytes, sum(taken)), max(most, sum(map(bool, taken)))
                time.sleep(_EVERY_S)
        finally:
            if process.poll() is None:  # its session hears no Ctrl-C
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode:
            raise SystemExit(f"{command.name}: exit code {process.returncode}")
        seconds = time.perf_counter() - start_s
        found.append(Stage(command.name, command.share, command.limit, most, seconds, peak_bytes / 2**20))
        print(f"{rows:,} rows, {command.name}: {seconds:,.0f} s, {found[-1].peak_mib:,.0f} MiB", flush=True)
    return found


def beyond(found: Iterable[Stage]) -> list[str]:
    """The stages that took more than their limit."""
    return [one.name for one in found if one.limit is not None and one.peak_mib * 2**20 > size_bytes(one.limit)]


def held_bytes(first: int) -> list[int]:
    """What a process and each of those that come from it hold now, without the pages of mapped files. Not by session:
    torchrun gives each of its processes one of its own."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    found, asked = [first], 0
    while asked < len(found):
        found += [one for one, parent in parents.items() if parent == found[asked]]
        asked += 1
    return [taken_bytes(Path("/proc") / str(one) / "status") for one in found]


def _write_pictures(folder: Path, rows: dict[str, int]) -> None:
    """Class folders of JPEG files, all of a class the same picture: they are checked and packed one by one."""
    for label in range(CLASSES):
        file = BytesIO()
        Image.fromarray(np.random.default_rng(label).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(
            file, "JPEG"
        )
        for split, count in rows.items():
            place = folder / split / f"class-{label:04d}"
            place.mkdir(parents=True)
            for row in range(label, count, CLASSES):
                (place / f"{row:07d}.jpg").write_bytes(file.getbuffer())


def bytes_a_row(whole: Stage, part: Stage, rows: int) -> float:
    """Of the rows that the stage works on."""
    return (whole.peak_mib - part.peak_mib) * 2**20 / (rows - rows // PART) / whole.share


def latest() -> dict[str, Any]:
    """The last result of all rows."""
    paths = sorted(RESULTS.glob("million-????-??-??.json"))
    if not paths:
        raise SystemExit("there is no result yet. Run: python -m benchmarks.million --save")
    return json.loads(paths[-1].read_text())


def in_a_table(found: dict[str, Any]) -> str:
    """Of a result, with the machine in words."""
    whole, part = ([Stage(**one) for one in found[name]] for name in ("whole", "at_part"))
    rows, machine = found["rows"], in_words(found["machine"])
    header = ["stage", "processes", "limit", "seconds", "rows/s", "peak, MiB", f"peak at 1/{PART}, MiB", "bytes a row"]
    lines = [
        [
            one.name,
            str(one.processes),
            one.limit or "",
            f"{one.seconds:,.0f}",
            f"{one.share * rows / one.seconds:,.0f}",
            f"{one.peak_mib:,.0f}",
            f"{less.peak_mib:,.0f}",
            f"{bytes_a_row(one, less, rows):,.0f}",
        ]
        for one, less in zip(whole, part, strict=True)
    ]
    return f"{table(header, lines)}\n\n{rows:,} rows on {machine}, commit {found['machine']['commit']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="how many; a table is of the default alone")
    parser.add_argument("--save", action="store_true", help="write results/million-<date>.json, and fill in the table")
    parser.add_argument("--table", action="store_true", help="only print the table of the last result")
    said = parser.parse_args()
    if said.table:
        print(in_a_table(latest()))
        return
    if said.rows < 2 * PART * CLASSES:
        raise SystemExit(f"--rows must be {2 * PART * CLASSES:,} or more: an eighth has to keep a row of each class")
    machine = facts()
    with scratch() as folder:
        test_rows = min(TEST_ROWS, said.rows // PART)
        part = measured(said.rows // PART, test_rows, folder / "part")
        remove_folder(folder / "part")
        whole = measured(said.rows, test_rows, folder / "whole")
    found = {"machine": machine, "rows": said.rows, "classes": CLASSES, "side": SIDE, "part": PART}
    found |= {name: [one._asdict() for one in of] for name, of in (("whole", whole), ("at_part", part))}
    print(in_a_table(found))
    if said.save:
        print(save("million" if said.rows == ROWS else f"million-{said.rows}", found))
        if said.rows == ROWS:
            PAGE.write_text(filled(PAGE.read_text(), {"million": in_a_table(found)}))
    if over := beyond([*part, *whole]):
        raise SystemExit(f"more than its --memory-limit took: {', '.join(over)}")


if __name__ == "__main__":
    main()
