"""kdtool doctor and ls: the machine, and the workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import options as opt
from toolkit.cli.sections import command

_MOST_RUNS = 20  # of lines; kdtool runs lists them better


@command()
@opt.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of data sets to look in too.")
@opt.common
@opt.about(
    reads="the machine, and the workspace's records",
    writes="nothing",
    example="kdtool doctor",
)
def doctor(as_json: bool, **asked: Any) -> int:
    """Check this machine.

    Looks at libraries, FFCV, CPU, GPU, memory, disk, data sets and the workspace. Exit code 1 where there is a problem;
    each is told with what mends it.
    """
    from toolkit.pipeline.doctor import doctor as run

    result = run(**asked)
    checks = result["checks"]
    width = max(len(check["name"]) for check in checks)
    lines = [
        f"{check['state']:<8} {check['name']:<{width}}  {check['found']}{_mend(check['mend'])}" for check in checks
    ]
    count = result["problems"]
    opt.show(result, as_json, *lines, f"{count} problem{'' if count == 1 else 's'}" if count else "no problems")
    return 1 if count else 0


def _mend(mend: str | None) -> str:
    return f". {mend}" if mend else ""


@command()
@opt.option("--all", "all_runs", is_flag=True, help="A line for each run, however many there are.")
@opt.common
@opt.about(
    reads="every record of the workspace",
    writes="nothing",
    example="kdtool ls",
)
def ls(as_json: bool, all_runs: bool, **asked: Any) -> None:
    """List the workspace.

    Tells what each artifact is, came from and takes on disk, and whether it is stale.
    """
    from toolkit.core.sizes import in_words
    from toolkit.pipeline.listing import ls as run
    from toolkit.report.tables import table

    result = run(**asked)
    found = result["artifacts"]
    runs = [one for one in found if one["kind"] == "run" and not one["stale"]]
    folded = [] if all_runs or len(runs) <= _MOST_RUNS else runs
    rows = [_cells(one, in_words(one["bytes"])) for one in found if one not in folded]
    if folded:
        size = in_words(sum(one["bytes"] for one in folded))
        rows.append([f"run, {len(folded):,} of them", size, "", "kdtool runs lists them, ls --all too"])
    stale = [f"stale: {one['kind']} {one['name']}: {one['stale']}" for one in found if one["stale"]]
    shown = (
        table(["artifact", "size", "from", "is"], rows, ("from", "is"))
        if rows
        else "nothing yet. Run: kdtool cache-teacher"
    )
    total = f"{result['workspace']}: {in_words(result['bytes'])}, {len(stale)} stale"
    opt.show(result, as_json, shown, *stale, total)


def _cells(one: dict[str, Any], size: str) -> list[str]:
    return [f"{one['kind']} {one['name']}", size, " + ".join(one["of"]), "stale" if one["stale"] else one["about"]]
