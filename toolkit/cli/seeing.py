"""kdtool show, compare and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import options as opt
from toolkit.cli.sections import command
from toolkit.core import defaults

_MOST_NAMED, _MOST_COLUMNS, _MOST_PAIRS = 8, 24, 40  # in tables


@command()
@opt.data_set_or(None, "the subset's, or " + defaults.DATASET)
@opt.option("--score", default=defaults.SCORE, show_default=True, help="What says which samples are hard.")
@opt.option("--teacher", help="Whose scores and guesses: a name or a checkpoint file.  [default: as cache-teacher]")
@opt.option("--subset", help="Set the rows this subset kept against those dropped, in the histogram.")
@opt.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder, or one .png file for all sheets.  [default: named after what is shown, in pictures/]",
)
@opt.option("--count", default=defaults.SHOWN_SAMPLES, show_default=True, help="Samples of each group.")
@opt.option("--per-class", is_flag=True, help="That many of each class, a line for each.")
@opt.option("--seed", default=defaults.SEED, show_default=True, help="Of the random samples, and among equal scores.")
@opt.common
@opt.about(
    reads="data/<data set>/, scores, and a subset",
    writes="PNG files: in pictures/, or at --out",
    example="kdtool show --score el2n --out hard.png",
)
def show(as_json: bool, **asked: Any) -> None:
    """Draw the hardest, easiest and random samples.

    And a histogram of the score that says so.
    """
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.show import show as run

    result = run(**asked, progress=on_stderr)
    kept = "" if result["kept"] is None else f", {result['kept']:,} of them kept"
    guesses = "" if result["teacher_guesses"] else ", without the teacher's guesses: see cache-teacher"
    opt.show(result, as_json, *result["files"], f"{result['score']}, {result['rows']:,} rows{kept}{guesses}")


@command()
@opt.data_set
@opt.option("--score", multiple=True, help="Compare this score; may be given again.")
@opt.option("--subset", multiple=True, help="Compare this subset; may be given again.")
@opt.option("--teacher", multiple=True, help="Whose scores; may be given again.")
@opt.option(
    "--out",
    type=click.Path(path_type=Path),
    help="PNG file of the heat maps.  [default: named after what is compared, in pictures/]",
)
@opt.common
@opt.about(
    reads="teachers/<name>/cache.h5, scores/ and subsets/",
    writes="one PNG file: in pictures/, or at --out",
    example="kdtool compare --score el2n --score loss --out compare.png",
)
def compare(as_json: bool, **asked: Any) -> None:
    """Tell how alike scores are, and subsets.

    All of them, or those named.
    """
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.compare import compare as run

    result = run(**asked, progress=on_stderr)
    opt.show(result, as_json, *_tables(result))


def _tables(result: dict[str, Any]) -> list[str]:
    lines = []
    if result["spearman"] is not None:
        cells = [[_number(rho) for rho in row] for row in result["spearman"]]
        lines += ["Spearman's rank correlation of scores", "", _square(result["scores"], cells), ""]
    if result["overlap"] is not None:
        title = "Rows that two subsets share, and what random ones of these sizes would"
        lines += [title, "", *_pairs(result), ""]
    lines += [f"skipped: {name}, {why}" for name, why in result["skipped"].items()]
    return [*lines, result["path"]]


def _pairs(result: dict[str, Any]) -> list[str]:
    """Every two subsets, those that share most first."""
    from toolkit.report.tables import table

    names, sizes = list(result["subsets"]), list(result["subsets"].values())
    pairs = [(a, b) for a in range(len(names)) for b in range(a)]
    pairs.sort(key=lambda pair: -result["overlap"][pair[0]][pair[1]])
    rows = [
        [
            f"{names[a]}, {names[b]}",
            f"{sizes[a]:,}",
            f"{sizes[b]:,}",
            f"{result['common_rows'][a][b]:,}",
            *(_number(result[kind][a][b]) for kind in ("overlap", "overlap_by_chance")),
            *(_number(result[kind][a][b]) for kind in ("jaccard", "jaccard_by_chance")),
        ]
        for a, b in pairs[:_MOST_PAIRS]
    ]
    header = ["subsets A, B", "rows of A", "of B", "in both", "of the smaller", "chance", "Jaccard", "chance"]
    left = len(pairs) - len(rows)
    return [table(header, rows), *([f"and {left} pairs that share less: see the picture, or --json"] if left else [])]


def _square(names: list[str], cells: list[list[str]]) -> str:
    """Columns are numbered where their names would make the table too wide, and left to the picture past that."""
    from toolkit.report.tables import table

    if len(names) > _MOST_COLUMNS:
        return f"of {len(names)} scores: see the picture, or --json"
    if len(names) <= _MOST_NAMED:
        return table(["", *names], [[name, *row] for name, row in zip(names, cells, strict=True)])
    numbers = [str(number) for number in range(1, len(names) + 1)]
    rows = [[f"{number} {name}", *row] for number, name, row in zip(numbers, names, cells, strict=True)]
    return table(["", *numbers], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@command()
@click.argument("path", type=click.Path(path_type=Path))
@opt.common
@opt.about(
    reads="the artifact",
    writes="nothing",
    example="kdtool inspect kdtool-work/subsets/fashion-mnist-random-0.5-s0",
)
def inspect(as_json: bool, workspace: Any, path: Path) -> None:
    """Describe an artifact and check all of it.

    PATH is a data, subset or run folder, its name in the workspace, or a .beton, .h5 or .pt file.
    """
    from toolkit.pipeline.inspect import inspect as run

    result = run(path, workspace=workspace)
    balance = result.get("class_balance", {})
    in_bars = ("class_balance", "class_counts") if balance else ()
    told = {key: value for key, value in result.items() if key not in in_bars}
    width = max(len(key) for key in told)
    if result.get("teacher_top1", "") is None:
        told["teacher_top1"] = "unknown"
    lines = [f"{key:<{width}}  {_in_words(value)}" for key, value in told.items()]
    opt.show(result, as_json, *lines, *_balance(balance), "whole and sound")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(one)}" for name, one in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(_in_words, value)) or "–"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return str(value)


def _balance(balance: dict[str, Any]) -> list[str]:
    from toolkit.report.balance import balance_lines

    lines = []
    for name, one in balance.items():
        summary, *bars = balance_lines(one)
        lines += [f"{name}: {summary}", *bars]
    return lines
