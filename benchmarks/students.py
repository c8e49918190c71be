"""Five students of 30 epochs on half of Fashion-MNIST: kdtool from packing on, beside live-teacher runs.

    python -m benchmarks.students                     # about an hour; appends to results/students.jsonl
    python -m benchmarks.students --live-whole        # also one live run on the half from end to end (15 minutes)
    python -m benchmarks.students --report            # the table and the sentence of what is there

Every part is a process of its own, timed from outside from its start to its end, so that starting Python, building the
data set and the one look at the test split count for both: `pack`, `cache-teacher` (the default views of all the data),
`build-subset` and five `distill`; and five live runs on the same half, and five on all the data
(benchmarks/live_run.py, at kdtool's precision, with two workers). Of a live run only the first `--live-epochs` of its
30 epochs are run; the others are taken to last as long as those after the first. The result says so. The packing that
live runs read from is counted for kdtool only.

A part is recorded as soon as it is done, and a stopped study goes on where it was; a part that was stopped half way
starts again from nothing. Delete the results to begin again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import KDTOOL, RESULTS, append, facts, in_words, read_lines
from toolkit.core.files import remove_folder
from toolkit.report.statistics import mean_and_sigma, paired_ratio
from toolkit.report.tables import table

FILE, WORKSPACE = RESULTS / "students.jsonl", Path("kdtool-work/students")
SEEDS, EPOCHS, HALF = range(5), 30, "half"
PREPARED = ("pack", "cache-teacher", "build-subset")
LIVE_HALF, LIVE_ALL, LIVE_WHOLE = "live on the half", "live on all the data", "live on the half, whole"


class Part(NamedTuple):
    """A command to time; of a live run, how many epochs of it are run."""

    name: str
    seed: int
    command: list[str]
    measured: int | None = None


def parts(workspace: Path, dataset: str, epochs: int, live_epochs: int, whole: bool) -> Iterator[Part]:
    """In the order they are run: kdtool's and live runs take turns, as the machine's speed drifts."""
    here = ["--workspace", str(workspace)]
    data = ["--dataset", dataset]
    end = [*here, "--force", "--json"]  # force: a part that was killed must not go on where it was
    yield Part("pack", 0, [KDTOOL, "pack", *data, *end])
    yield Part("cache-teacher", 0, [KDTOOL, "cache-teacher", *data, *end])
    yield Part("build-subset", 0, [KDTOOL, "build-subset", *data, "--frac", "0.5", "--name", HALF, *end])

    def live(name: str, seed: int, measured: int) -> Part:
        subset = [] if name == LIVE_ALL else ["--subset", HALF]
        length = ["--seed", str(seed), "--epochs", str(epochs), "--measured", str(measured)]
        program = [sys.executable, "-m", "benchmarks.live_run"]
        return Part(name, seed, [*program, *here, *data, *subset, *length], measured)

    for seed in SEEDS:
        distill = [KDTOOL, "distill", "--subset", HALF, "--epochs", str(epochs), "--seed", str(seed)]
        yield Part("distill", seed, [*distill, *end])
        yield live(LIVE_HALF, seed, live_epochs)
        yield live(LIVE_ALL, seed, live_epochs)
    if whole:
        yield live(LIVE_WHOLE, 0, epochs)


def timed(part: Part, epochs: int) -> dict[str, Any]:
    """Runs a part and returns its record. Ends the study where the part fails."""
    start_s = time.perf_counter()
    done = subprocess.run(part.command, stdout=subprocess.PIPE, text=True, check=False)
    wall_s = time.perf_counter() - start_s
    if done.returncode:
        sys.exit(f"{' '.join(part.command)}: ended with {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    record = {"part": part.name, "seed": part.seed, "wall_s": wall_s, "top1": result.get("top1")}
    if part.measured is not None:
        record |= {name: result[name] for name in ("rows", "precision", "workers", "epochs_s", "evaluation_s")}
        record["measured"] = part.measured
    return {**record, "epochs": epochs, "machine": facts()}


def seconds_of(line: dict[str, Any]) -> float:
    """What a part took, or would have, had all its epochs been run: those left out as the mean of those after the
    first, which also pays for what is done once."""
    epochs_s = line.get("epochs_s", [])
    later_s = epochs_s[1:] or epochs_s
    left_out = line["epochs"] - len(epochs_s) if epochs_s else 0
    return line["wall_s"] + (left_out * sum(later_s) / len(later_s) if left_out else 0.0)


def study(file: Path, workspace: Path, dataset: str, epochs: int, live_epochs: int, whole: bool) -> None:
    """Runs the parts that the file lacks."""
    if not read_lines(file):
        remove_folder(workspace)
    for part in parts(workspace, dataset, epochs, live_epochs, whole):
        if (part.name, part.seed) not in {(line["part"], line["seed"]) for line in read_lines(file)}:
            record = timed(part, epochs)
            append(file, record)
            print(f"{part.name}, seed {part.seed}: {seconds_of(record):,.1f} s", flush=True)


def of_part(
    lines: list[dict[str, Any]], name: str, value: Callable[[dict[str, Any]], float] = seconds_of
) -> list[float]:
    """A value of each of a part's records, by seed."""
    return [value(line) for line in sorted(lines, key=lambda line: line["seed"]) if line["part"] == name]


def shares(lines: list[dict[str, Any]]) -> list[float]:
    """Seconds of each kdtool student, with its share of what all of them stand on."""
    students = of_part(lines, "distill")
    prepared_s = sum(sum(of_part(lines, name)) for name in PREPARED)
    return [prepared_s / len(students) + student_s for student_s in students]


def report(lines: list[dict[str, Any]]) -> str:
    """The table and the sentence; parts that are not there yet are left out."""
    kdtool = shares(lines)
    rows = [[name, "1", f"{sum(of_part(lines, name)):,.0f} s", "", ""] for name in PREPARED]
    distilled = of_part(lines, "distill")
    rows.append(["distill", str(len(distilled)), f"{sum(distilled):,.0f} s", "", _accuracy(lines, "distill")])
    rows.append(["kdtool, everything", str(len(kdtool)), f"{sum(kdtool):,.0f} s", "", ""])
    said = []
    for name in (LIVE_HALF, LIVE_ALL):
        live = of_part(lines, name)
        if len(live) != len(kdtool):
            continue
        ratio = paired_ratio(live, kdtool)
        times = f"{ratio.ratio:.2f} ({ratio.low:.2f} – {ratio.high:.2f})"
        rows.append([name, str(len(live)), f"{sum(live):,.0f} s", times, ""])
        said.append(f"{ratio.ratio:.2f} times as fast as {name.replace('live', 'live-teacher runs')}")
    for whole_s in of_part(lines, LIVE_WHOLE):
        rows.append([LIVE_WHOLE, "1", f"{whole_s:,.0f} s", "", _accuracy(lines, LIVE_WHOLE)])
    epochs = lines[0]["epochs"]
    measured = sorted({line["measured"] for line in lines if line["part"] in (LIVE_HALF, LIVE_ALL)})
    told = f"measured {' or '.join(map(str, measured))} of {epochs} epochs of each of the live runs" if measured else ""
    for whole_s in of_part(lines, LIVE_WHOLE):
        told += f"; a whole one on the half took {whole_s / of_part(lines, LIVE_HALF)[0]:.2f} of its estimate"
    sentence = f"{len(kdtool)} students of {epochs} epochs, everything counted from packing on: kdtool is "
    header = ["part", "runs", "seconds", "times kdtool's (95 %)", "test accuracy"]
    return f"{table(header, rows)}\n{sentence}{' and '.join(said)} ({told}).\n{in_words(lines[-1]['machine'])}"


def _accuracy(lines: list[dict[str, Any]], name: str) -> str:
    return f"{mean_and_sigma(of_part(lines, name, lambda line: line['top1']))} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--live-epochs", type=int, default=2, help="how many epochs of each live run are run")
    parser.add_argument("--live-whole", action="store_true", help="also one whole live run on the half")
    parser.add_argument("--report", action="store_true", help="only print what is there")
    parser.add_argument("--quick", action="store_true", help="tiny, elsewhere: only to see that it runs")
    asked = parser.parse_args()
    file, workspace, dataset, epochs = FILE, WORKSPACE, "fashion-mnist", EPOCHS
    if asked.quick:
        workspace, dataset, epochs = Path("kdtool-work/students-quick"), "digits", 3
        file = workspace.with_suffix(".jsonl")
    if not asked.report:
        study(file, workspace, dataset, epochs, asked.live_epochs, asked.live_whole)
    print(report(read_lines(file)))


if __name__ == "__main__":
    main()
