"""kdtool score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import options as opt
from toolkit.core import defaults


@click.command()
@opt.data_set
@click.option("--teacher", help="Whose pass and training.  [default: the one that comes with kdtool]")
@click.option(
    "--score",
    multiple=True,
    help="Such as forgetting, el2n@5, grand@2 or prototype; may be given again.  [default: all there can be]",
)
@click.option(
    "--import",
    "import_",
    type=click.Path(path_type=Path),
    help="Take scores from this .npy file, in row order, or .csv file with the columns row and score.",
)
@click.option("--name", help="Of the imported score.")
@click.option("--low-is-hard", is_flag=True, help="Turn the sign of the imported score: in kdtool, high is hard.")
@click.option("--device", default=defaults.DEVICE, show_default=True, help="auto, cpu, cuda or cuda:N.")
@opt.memory_limit
@opt.force
@opt.common
@opt.example("kdtool score --score prototype --score knn_distance")
def score(as_json: bool, **asked: Any) -> None:
    """Score every training row.  Reads data/, teachers/<name>/cache.h5 and dynamics.h5; writes scores/<data set>/."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.score import score as run

    result = run(**asked, progress=on_stderr)
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
