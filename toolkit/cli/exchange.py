"""kdtool import-logits and export: what comes from elsewhere, and what goes there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import options as opt
from toolkit.cli.completing import run_or_teacher
from toolkit.cli.sections import command
from toolkit.core import defaults

_FILE = click.Path(path_type=Path)


@command()
@opt.option("--name", required=True, help="What the teacher is called from now on.")
@opt.option(
    "--logits",
    type=_FILE,
    multiple=True,
    required=True,
    help=".npy file (rows, classes), of slot 0; given again, of the next slots. Or one file (slots, rows, classes).",
)
@opt.option("--test-logits", type=_FILE, help=".npy file (rows, classes) of the test split, for agreement in runs.")
@opt.option("--features", type=_FILE, help=".npy file (rows, features) of slot 0: some scores need them.")
@opt.option("--encoding", default=defaults.ENCODING, help="As in cache-teacher.  [default: by the number of classes]")
@opt.option("--subset", help="The logits are of this subset's rows, and become its targets.")
@opt.data_set
@opt.force
@opt.dry_run
@opt.common
@opt.about(
    reads=".npy files, in row order, and data/<data set>/",
    writes="teachers/<name>/cache.h5, or a subset's targets",
    example="kdtool import-logits --name ensemble --logits logits.npy --test-logits test.npy",
)
def import_logits(as_json: bool, **asked: Any) -> None:
    """Take logits made elsewhere as a teacher's.

    What each slot shows, the Python function toolkit.slot_images says.
    """
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.import_logits import import_logits as run

    result = run(**asked, progress=on_stderr)
    if asked["dry_run"]:
        opt.show_foreseen(result, as_json)
        return
    top1 = "unknown" if result["teacher_top1"] is None else f"{result['teacher_top1']:.2f} %"
    there = ", already there" if result["unchanged"] else ""
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['rows']:,} rows × {result['views']} views × {result['classes']} classes of "
        f"{result['teacher']} ({top1} on the test split), {result['bytes_per_view']} bytes a view, "
        f"{'with' if result['features'] else 'without'} features{there}",
    )


@command()
@click.argument("what", metavar="RUN_OR_TEACHER_OR_FILE", shell_complete=run_or_teacher)
@opt.option("--out", type=_FILE, required=True, help="File to write, such as weights.pt.")
@opt.force
@opt.common
@opt.about(
    reads="a checkpoint: runs/<name>/student.pt, teachers/<name>/teacher.pt or a file",
    writes="one file, named by --out",
    example="kdtool export fashion-mnist-resnet20 --out weights.pt",
)
def export(as_json: bool, **asked: Any) -> None:
    """Write a network's weights as a plain state_dict."""
    from toolkit.pipeline.export import export as run

    result = run(**asked)
    mean, std = (", ".join(f"{value:.4f}" for value in result[name]) for name in ("mean", "std"))
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['tensors']} tensors of {result['arch']}, {result['classes']} classes of "
        f"{result['dataset']}{', already there' if result['unchanged'] else ''}",
        f"  network = {result['network']}",
        f'  network.load_state_dict(torch.load("{result["path"]}", weights_only=True))',
        f"  its input: RGB pixels of 0 … 1, (b, 3, h, w), less ({mean}), over ({std})",
    )
