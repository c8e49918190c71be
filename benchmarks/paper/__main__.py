"""The paper's claims on real data: teachers, sweeps, and how each claim fell.

    python -m benchmarks.paper                # all that is missing (hours: see the README), then the verdicts
    python -m benchmarks.paper --report       # the verdicts of the runs that are in results/
    python -m benchmarks.paper --full         # the paper's own recipe, for a GPU

Stopped, the same command goes on; a study whose runs are all in results/ is not run again, on whatever machine.
Everything is made by kdtool's own commands, which are shown.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.filling import filled
from benchmarks.keep_study import kept
from benchmarks.machine import KDTOOL, facts, in_words, read_lines
from benchmarks.paper import claims, figures, headline, rule
from benchmarks.paper.design import (
    HARD,
    NOISE,
    SEEN,
    SMALL,
    WHOLE,
    Data,
    Options,
    cells_of,
    early,
    full,
    named,
    seen,
    studies,
    words,
)
from toolkit.report.statistics import mean_and_sigma
from toolkit.report.tables import table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GUIDE = ROOT / "docs" / "guide.md"  # its pictures lie in a folder of that name
IN_README = "fashion-mnist"  # whose table the README shows
WORKSPACES = Path("kdtool-work/paper")
MACHINE = ("cpu", "cores", "threads", "bfloat16", "gpu", "versions", "commit")  # of each line
PAPERS = ("cifar10", "cifar100", "svhn")
PRINTED = (
    "Printed by `python -m benchmarks.paper --report` from the runs beside this page. What the claims are, and what "
    "decides them: [the page above](../README.md)."
)


def kdtool(workspace: Path, command: str, options: Options) -> list[dict[str, Any]]:
    """The results of a command, which is shown as it is typed. Ends the study where it fails."""
    typed = [command, *words(options), "-w", str(workspace)]
    print(f"$ kdtool {shlex.join(typed)}", flush=True)
    whole = [KDTOOL, *typed, "--json"]
    done = subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return [json.loads(line) for line in done.stdout.splitlines()]


def make_teachers(here: Path, data: Data) -> None:
    training = {"recipe": data.recipe, "epochs": data.teacher_epochs}
    for arch in data.teachers:
        _train(
            here,
            data.of,
            named(arch),
            {**training, "arch": arch},
            scored=arch != data.teachers[-1],
            snapshot=early(data),
        )


def make_noisy_teacher(here: Path, data: Data) -> None:
    kdtool(here, "noise", {**data.of, "rate": NOISE})
    training = {"recipe": data.recipe, "epochs": data.teacher_epochs, "arch": data.teachers[1]}
    _train(here, data.noisy, named(data.teachers[1], noisy=True), training, scored=True, snapshot=early(data))


def _train(here: Path, of: Options, name: str, training: Options, scored: bool, snapshot: int) -> None:
    """`scored`: with what the hard rows are chosen by."""
    recorded = {"snapshots": snapshot} if scored else {"no-dynamics": True}
    kdtool(here, "train-teacher", {**of, "name": name, **training, **recorded})
    if scored:
        kdtool(here, "cache-teacher", {**of, "teacher": name, "views": 1})
        kdtool(here, "score", {**of, "teacher": name, "score": [HARD["score"], f"el2n@{snapshot}"]})


def make_seen(here: Path, data: Data, seed: int) -> None:
    """Teachers that saw nested parts of the data, trained from the seed that decides the parts too."""
    part = {**data.of, "nested": True, "seed": seed, "index-only": True}
    of_paper = data.recipe != "fast"
    for fraction, epochs in SEEN.items():
        training = {"recipe": data.recipe, "epochs": data.teacher_epochs if of_paper else epochs}
        shown = {}
        if fraction < WHOLE:
            (made,) = kdtool(here, "build-subset", {**part, "frac": fraction})
            shown = {"subset": made["name"]}
        asked = {**shown, **training, "arch": data.student, "seed": seed, "no-dynamics": True}
        kdtool(here, "train-teacher", {**data.of, "name": seen(fraction, seed), **asked})


def keep(here: Path, key: str, study: str, machine: dict[str, Any], folder: Path) -> None:
    """A sweep's finished runs, with the passes they cost, as lines of results/."""
    lines = []
    for line in read_lines(here / "sweeps" / study / "results.jsonl"):
        if line["status"] == "done":
            record = json.loads((here / "runs" / line["run"] / "run.json").read_text())
            passes = {name: record[name] for name in ("student_images", "teacher_images_behind_targets")}
            lines.append({"study": study, **kept(line, machine), **passes})
    folder.mkdir(parents=True, exist_ok=True)
    _kept_in(folder, key, study).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def keep_teachers(here: Path, key: str, folder: Path) -> None:
    """What each teacher was trained on, for how long, and what it came to; those of studies that were not run again
    stay."""
    path, names = _teachers_in(folder, key), ("top1", "rows", "epochs")
    lines = {line["teacher"]: line for line in read_lines(path)}
    for found in here.glob("teachers/*/train.json"):
        one = json.loads(found.read_text())
        told = {"teacher": one["result"]["name"], **{name: one["result"][name] for name in names}}
        lines[told["teacher"]] = {**told, "command": one["command"]}
    path.write_text("".join(f"{json.dumps(lines[name])}\n" for name in sorted(lines)))


def _teachers_in(folder: Path, key: str) -> Path:
    return folder / f"teachers-{key}.jsonl"


def _kept_in(folder: Path, key: str, study: str) -> Path:
    return folder / f"{key}-{study}.jsonl"


def missing(key: str, data: Data, folder: Path, only: str | None) -> dict[str, Options]:
    """The studies, of those whose names begin with `only`, that `folder` has not all runs of."""
    return {
        study: asked
        for study, asked in studies(data).items()
        if study.startswith(only or "") and len(read_lines(_kept_in(folder, key, study))) < cells_of(data, asked)
    }


def run(key: str, data: Data, folder: Path, only: str | None) -> None:
    here, machine = WORKSPACES / key, {name: value for name, value in facts().items() if name in MACHINE}
    left = missing(key, data, folder, only)
    if not left:
        print(f"{key}: every study is in {folder}", flush=True)
        return
    make_teachers(here, data)
    for study, asked in left.items():
        if study.startswith("seen-s"):
            make_seen(here, data, int(study.removeprefix("seen-s")))
        if study == "noise":
            make_noisy_teacher(here, data)
        kdtool(here, "sweep", {**asked, "name": study})
        keep(here, key, study, machine, folder)
    keep_teachers(here, key, folder)
    (drawn,) = kdtool(here, "report", {})
    print(drawn["path"])


def results(sets: dict[str, Data], folder: Path) -> dict[str, tuple[Data, list[dict[str, Any]]]]:
    """The kept runs of each data set."""
    return {
        key: (data, [line for path in sorted(folder.glob(f"{key}-*.jsonl")) for line in read_lines(path)])
        for key, data in sets.items()
    }


def report(found: dict[str, tuple[Data, list[dict[str, Any]]]], folder: Path) -> str:
    """How each claim fell on each data set, and what rules for alpha lose, as far as there are runs."""
    parts = [_verdicts(key, data, lines, folder) for key, (data, lines) in found.items() if lines]
    return "\n\n".join(["# How the claims fell", PRINTED, *parts, "## Rules for alpha", rule.in_words(found)]) + "\n"


def _verdicts(key: str, data: Data, lines: list[dict[str, Any]], folder: Path) -> str:
    machines = sorted({in_words(line["machine"]) for line in lines})
    hours = sum(line["seconds"] for line in lines) / 3600
    runs = len({line["key"] for line in lines})
    what = f"{len(lines):,} cells, {runs:,} runs, {hours:.1f} hours together, by {'; '.join(machines)}."
    counted = "*For* and *against* count cells whose own interval lies where the claim says, and on the other side."
    judged = claims.verdicts(data, lines)
    parts = [
        f"## {key}",
        headline.in_words(data, lines),
        claims.in_words(judged),
        f"{counted} {what}",
        "Accuracies with wrong labels, and claim d by how ties are resolved:",
        headline.noise_in_words(data, lines),
        claims.ties_in_words(data, lines),
        *_teachers(_teachers_in(folder, key)),
        "Every cell:",
        claims.cells_in_words(judged),
    ]
    return "\n\n".join(parts)


def _teachers(path: Path) -> list[str]:
    """The accuracies of the teachers that were kept, of those that saw a part as a mean over seeds."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for line in read_lines(path):
        name = re.sub(r"-s\d+$", "", line["teacher"])
        found.setdefault((name, line["rows"], line["epochs"]), []).append(line["top1"])
    rows = [[*map(str, of), mean_and_sigma(top1)] for of, top1 in found.items()]
    return ["Teachers:", table(["teacher", "rows", "epochs", "test accuracy"], rows)] if rows else []


def pages(found: dict[str, tuple[Data, list[dict[str, Any]]]]) -> dict[Path, str]:
    """The README and the guide, with their tables of these runs made anew."""
    judged = {key: claims.verdicts(data, lines) for key, (data, lines) in found.items()}
    made = {
        "claims": claims.side_by_side(judged),
        "alpha-rules": rule.in_words(found),
        "lengths": headline.lengths_in_words(found),
    }
    tables = {ROOT / "README.md": {"headline": headline.in_words(*found[IN_README])}, GUIDE: made}
    return {page: filled(page.read_text(), of_page) for page, of_page in tables.items()}


def full_sets(asked: list[str] | None, data_dir: str | None) -> dict[str, Data]:
    """The data sets asked for, else those of the paper that are here or can be downloaded, else Fashion-MNIST."""
    there = asked or [name for name in PAPERS if _packed(name, data_dir)] or ["fashion-mnist"]
    for name in asked or []:
        kdtool(WORKSPACES / f"{name}-full", "pack", {"dataset": name, "data-dir": data_dir})
    return {f"{name}-full": full(name) for name in there}


def _packed(name: str, data_dir: str | None) -> bool:
    where = [] if data_dir is None else ["--data-dir", data_dir]
    done = subprocess.run(
        [KDTOOL, "pack", "--dataset", name, *where, "-w", str(WORKSPACES / f"{name}-full")], check=False
    )
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--full", action="store_true", help="the paper's own recipe, for a GPU")
    parser.add_argument("--data", action="append", choices=[*SMALL, *PAPERS], help="one data set; again")
    parser.add_argument("--data-dir", help="with --full: where the files of CIFAR and SVHN lie, if not downloaded")
    parser.add_argument("--only", help="studies whose names begin so")
    asked = parser.parse_args()
    folder = HERE / ("results-full" if asked.full else "results")
    sets = full_sets(asked.data, asked.data_dir) if asked.full else SMALL
    for key, data in sets.items():
        if not asked.report and (asked.full or not asked.data or key in asked.data):
            run(key, data, folder, asked.only)
    found = results(sets, folder)
    text = report(found, folder)
    print(text)
    (folder / "verdicts.md").write_text(text)
    drawn = folder if asked.full else GUIDE.with_suffix("")
    drawn.mkdir(exist_ok=True)
    for key, (data, lines) in found.items():
        seen_by_teachers = figures.teachers_seen(key, data, lines)
        more = {} if seen_by_teachers is None else {"teachers-seen": seen_by_teachers}
        for name, png in {**figures.of_reports(key, folder), **more}.items():
            (drawn / f"{key}-{name}.png").write_bytes(png)
    if not asked.full:
        for page, new in pages(found).items():
            page.write_text(new)


if __name__ == "__main__":
    main()
