"""kdtool report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import options as opt
from toolkit.cli.sections import command


@command()
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1)
@opt.option("--sweep", help="Only the runs of this sweep.")
@opt.option("--where", multiple=True, help="Only runs of which this holds: alpha=1, frac<=0.3; may be given again.")
@opt.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder, new, empty or a report's.  [default: in reports/, the sweep's name, or runs, and --where]",
)
@opt.common
@opt.about(
    reads="runs/, or only FILES of JSON lines that have what a sweep's results.jsonl has",
    writes="reports/<name>/: report.html, PNG and CSV files, report.json",
    example="kdtool report --where recipe=fast",
)
def report(as_json: bool, **asked: Any) -> None:
    """Draw what runs came to.

    Prints means, and paired differences from the runs without KD.
    """
    from toolkit.pipeline.report import report as run
    from toolkit.report.tables import table

    result = run(**asked)
    for line in result["skipped"]:
        opt.note(f"skipped: {line}")
    for line in result["notes"]:
        opt.note(line)
    counted = f"{result['count']} run{'' if result['count'] == 1 else 's'}, {len(result['drawn'])} pictures"
    left = len(result["not_drawn"])
    more = [f"{left} more section{' needs' if left == 1 else 's need'} other runs: its end says which"] if left else []
    opt.show(result, as_json, table(result["header"], result["cells"]), f"{counted}: {result['path']}", *more)
