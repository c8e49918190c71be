"""kdtool sweep and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import options as opt
from toolkit.cli.sections import command
from toolkit.core import defaults

# Options that say what a sweep is, and may stand in its file too: only those that were given override it.
_ASKED = opt.together(
    opt.option("--frac", multiple=True, help="Fraction of the training rows to keep; may be given again."),
    opt.option("--method", multiple=True, help="How to choose them; again.  [default: random]"),
    opt.option("--alpha", multiple=True, help="Weight of the teacher, auto or search; again.  [default: 1]"),
    opt.option("--temperature", multiple=True, help="Softens teacher and student; again.  [default: 4]"),
    opt.option("--loss", multiple=True, help="As in distill; again.  [default: kd]"),
    opt.option("--match", multiple=True, help="As in distill; again.  [default: exact]"),
    opt.option("--arch", multiple=True, help="Of the student; again.  [default: resnet8]"),
    opt.option("--teacher", multiple=True, help="A name or a checkpoint; again.  [default: as cache-teacher]"),
    opt.option("--seed", multiple=True, help="Of subset, initialisation and order: 3, or 0..4; again.  [default: 0]"),
    opt.option("--subset-seed", help="One for all subsets.  [default: each cell's seed]"),
    opt.option("--dataset", help="Data set by name.  [default: fashion-mnist]"),
    opt.option("--limit", help="Use only this many rows of each split."),
    opt.option("--score", help="As in build-subset."),
    opt.option("--center", help="As in build-subset."),
    opt.option("--drop-hardest", help="As in build-subset."),
    opt.option("--balance/--no-balance", default=None, help="As in build-subset."),
    opt.option("--nested", is_flag=True, default=None, help="As in build-subset."),
    opt.option("--min-per-class", help="As in build-subset."),
    opt.option("--views", help="To cache and to learn from: a number, all, epochs:E.  [default: 2, or those cached]"),
    opt.option("--weights", is_flag=True, default=None, help="Count rows as their method weighs them, if it does."),
    opt.option("--beta", help="As in distill, of the losses that have one."),
    opt.option("--recipe", help="As in distill.  [default: fast]"),
    opt.option("--epochs", help="Instead of the recipe's."),
    opt.option("--iterations", help="Stop after this many steps instead of whole epochs."),
    opt.option("--batch-size", help="Instead of the recipe's."),
    opt.option("--lr", help="Instead of the recipe's."),
    opt.option("--label-smoothing", help="As in distill; of the cells whose alpha is below 1."),
    opt.option("--ema", help="As in distill."),
    opt.option("--width", help="Channels of the first stage (CIFAR-style ResNets)."),
    opt.option("--compile", is_flag=True, default=None, help="Compile the networks first."),
    opt.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]"),
    opt.option("--precision", help="auto, float32 or bfloat16.  [default: auto]"),
    opt.option("--name", help="Name of the sweep.  [default: the file's, or from its settings]"),
)


@command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@_ASKED
@opt.option("--shard", metavar="I/N", help="Only part I of N, for many machines: see above.")
@opt.option("--jobs", type=int, help="Students at a time.  [default: CPUs over --threads; on a GPU 1]")
@opt.option("--threads", type=int, help="CPU threads of each.  [default: 1; on a GPU torch's choice]")
@opt.option("--source", default=defaults.SOURCE, show_default=True, help="As in distill.")
@opt.memory_limit
@opt.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="As in pack.")
@opt.dry_run
@opt.common
@opt.about(
    reads="FILE, data/<data set>/, and what the cells need of teachers/, subsets/ and runs/",
    writes="caches and subsets that are missing, runs/, and sweeps/<name>/: sweep.yaml, results.jsonl",
    example="kdtool sweep --frac 0.1 --frac 0.3 --alpha 0 --alpha 1 --seed 0..2",
)
def sweep(as_json: bool, **asked: Any) -> None:
    """Train a student for every combination of settings.

    FILE is YAML whose keys are the names of options, but for --shard, --jobs, --threads, --source, --memory-limit,
    --data-dir and those of every command; each a value or a list. What an option says overrides it. Shards of machines
    without a common disk are one study once their runs/ and sweeps/ are copied into one workspace: kdtool runs --sweep
    NAME.
    """
    from toolkit.core.errors import FailureError
    from toolkit.core.progress import line_above, on_stderr
    from toolkit.pipeline.sweep.command import sweep as run

    result = run(**asked, progress=on_stderr, on_note=line_above, on_cell=line_above)
    if asked["dry_run"]:
        _show_plan(result, as_json)
        return
    opt.show(result, as_json, _means(result), result["path"])
    if result["failed"]:
        raise FailureError(
            f"{result['failed']} of {result['cells']} cells failed: 'error' in {result['path']} says why. "
            "The same command tries them again"
        )


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    lines = [f"{state['cell']}: {state['state']}" for state in plan["listing"]]
    told = f"{plan['cells']} cells, {plan['runs']} of them distinct, {plan['done']} done; {plan['jobs']} at a time"
    opt.show_foreseen(plan, as_json, *lines, told, *(f"to make: {one}" for one in plan["to_make"]))


def _means(result: dict[str, Any]) -> str:
    from toolkit.report.runs import sweep_table

    return sweep_table(result["results"], result["varied"])


@command()
@opt.option("--where", multiple=True, help="Only runs of which this holds: alpha=1, alpha>=0.5, arch!=resnet8; again.")
@opt.option("--sweep", help="Only the runs of this sweep.")
@opt.option("--by", help="Average over runs that agree in these columns, such as alpha,method.")
@opt.option("--against", multiple=True, help="Also compare with the matching runs of this setting: alpha=0; again.")
@opt.option("--sort", help="Column to sort by; -top1 sorts downwards.")
@opt.option("--columns", help="Columns to show, such as name,alpha,top1.  [default: those that differ]")
@opt.option("--csv", type=click.Path(path_type=Path, dir_okay=False), help="Write it into this file too.")
@opt.common
@opt.about(
    reads="runs/, and sweeps/<name>/ with --sweep",
    writes="nothing, or the --csv file",
    example="kdtool runs --by frac,alpha --against alpha=0",
)
def runs(as_json: bool, **asked: Any) -> None:
    """List, filter, average and compare runs."""
    from toolkit.pipeline.runs import runs as run
    from toolkit.report.tables import table

    result = run(**asked)
    for line in result["skipped"]:
        opt.note(f"skipped: {line}")
    for line in result["notes"]:
        opt.note(line)
    counted = f"{result['count']} run{'' if result['count'] == 1 else 's'}"
    told = [counted if result["rows"] else "no runs"]
    opt.show(result, as_json, *([table(result["header"], result["cells"])] if result["rows"] else []), *told)
