"""kdtool score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import options as opt
from toolkit.cli.sections import command
from toolkit.core import defaults


@command()
@opt.data_set
@opt.option("--teacher", help="Whose pass and training.  [default: the one that comes with kdtool]")
@opt.option(
    "--score",
    multiple=True,
    help="Such as forgetting, el2n@5, grand@2 or prototype; may be given again.  [default: all there can be]",
)
@opt.option(
    "--import",
    "import_",
    type=click.Path(path_type=Path),
    help="Take scores from this .npy file, in row order, or .csv file with the columns row and score.",
)
@opt.option("--name", help="Of the imported score.")
@opt.option("--low-is-hard", is_flag=True, help="Turn the sign of the imported score: in kdtool, high is hard.")
@opt.option("--device", default=defaults.DEVICE, show_default=True, help="auto, cpu, cuda or cuda:N.")
@opt.memory_limit
@opt.dry_run
@opt.force
@opt.common
@opt.about(
    reads="data/<data set>/, and of teachers/<name>/ cache.h5 and dynamics.h5; or the --import file",
    writes="scores/<data set>/<teacher>.h5, or imported.h5",
    example="kdtool score --score prototype --score knn_distance",
)
def score(as_json: bool, **asked: Any) -> None:
    """Score every training row."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.score import score as run

    result = run(**asked, progress=on_stderr)
    if asked["dry_run"]:
        opt.show_foreseen(result, as_json, *([] if result["there"] else [f"  scores  {', '.join(result['scores'])}"]))
        return
    for line in result["skipped"]:
        opt.note(f"left out: {line}")
    named = bool(asked["score"]) or asked["import_"] is not None
    lines = []
    for path in dict.fromkeys(one["path"] for one in result["scores"]):
        lines.append(f"{path}: {result['rows']:,} rows of {result['dataset']}")
        lines += _told([one for one in result["scores"] if one["path"] == path], named)
    opt.show(result, as_json, *lines)


def _told(scores: list[dict[str, Any]], with_definition: bool) -> list[str]:
    width, lines = max(len(one["name"]) for one in scores), []
    for one in scores:
        there = ", already there" if one["unchanged"] else ""
        numbers = f"mean {one['mean']:.4g}, min {one['min']:.4g}, max {one['max']:.4g}"
        lines.append(f"  {one['name']:<{width}}  {numbers}{there}")
        if with_definition:
            lines.append(f"  {'':<{width}}  {one['definition']}")
    return lines
