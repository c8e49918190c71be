"""The pictures of docs/guide.md: those that `kdtool report` draws of some sweeps, and one that it cannot draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.paper.claims import Runs
from benchmarks.paper.design import SEEN, SEEN_BY_STUDENT, Data, seen
from toolkit.pipeline.report import report
from toolkit.report.drawing import palette, picture
from toolkit.report.panels import percent
from toolkit.report.plots import SIGMA, TOP1, Line, Panel, means, ratio_axis

WITH_OR_WITHOUT = ("alpha!=0.25", "alpha!=0.5", "alpha!=0.75")
CHOSEN = ("alpha", "forgetting", "methods")
DRAWN = {  # the plot, the sweeps it is of, and --where
    "fraction": ("accuracy-fraction", CHOSEN, WITH_OR_WITHOUT),
    "gain": ("gain-fraction", CHOSEN, WITH_OR_WITHOUT),
    "alpha": ("accuracy-alpha", ("alpha",), ()),
    "best-alpha": ("best-alpha", ("alpha",), ()),
    "teacher": ("accuracy-teacher", ("sizes",), ()),
}


def of_reports(key: str, folder: Path) -> dict[str, bytes]:
    """The PNG file of each picture in `DRAWN`, where `folder` has its runs. Raises ValueError if there are several."""
    found = {}
    for name, (plot, sweeps, where) in DRAWN.items():
        files = [folder / f"{key}-{sweep}.jsonl" for sweep in sweeps]
        if all(file.is_file() for file in files):
            with TemporaryDirectory() as out:
                made = report(files, workspace=out, where=where, out=Path(out) / "report")
                (one,) = [file for file in made["drawn"] if file.startswith(f"{plot}-")]
                found[name] = (Path(out) / "report" / one).read_bytes()
    return found


def teachers_seen(key: str, data: Data, lines: Iterable[Mapping[str, Any]]) -> bytes | None:
    """A PNG file of students' accuracy against what their teachers saw; None without runs. Each seed has teachers of
    its own, as it has parts of the data: a report would draw each by itself."""
    runs = Runs(lines)
    rows = [
        {"f_t": frac, "top1": top1}
        for frac in SEEN
        for seed in range(data.seeds)
        for top1 in runs.of("seen", "random", SEEN_BY_STUDENT, 1.0, seen(frac, seed)).values()
    ]
    if not rows:
        return None
    taught = Line("self-distillation", ("way", "random"), means(rows, "f_t"))
    held = (key, f"random {percent(SEEN_BY_STUDENT)} kept for the student", data.student, "α 1")
    x = ratio_axis("training rows the teacher saw, f_t", list(SEEN), percent)
    panel = Panel("Accuracy against what the teacher saw", held, x, TOP1, (taught,), SIGMA)
    return picture(panel, palette([taught.hue]))
