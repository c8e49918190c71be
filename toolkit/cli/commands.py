"""The commands, in the order data flows."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options as opt


@click.command()
@opt.data_set
@click.option("--workers", default=2, show_default=True, help="Writing processes.")
@opt.force
@opt.common
@opt.example("kdtool pack --dataset fashion-mnist")
def pack(as_json: bool, **asked: Any) -> None:
    """Decode a data set once, into FFCV files.  Reads the source; writes data/<data set>/."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.data import pack_data

    result = pack_data(**asked, progress=on_stderr)
    opt.show(
        result,
        as_json,
        f"{result['path']}: {result['train_rows']:,} training and {result['test_rows']:,} test images, "
        f"{result['classes']} classes, content {result['fingerprint']}",
    )


@click.command()
@opt.data_set
@click.option("--arch", default="resnet20", show_default=True, help="resnet8 … resnet110, or torchvision:<name>.")
@opt.optimisation
@click.option("--subset", help="Train on this subset's rows only.")
@click.option("--name", help="Name of the teacher.  [default: from its settings]")
@opt.compute
@opt.force
@opt.common
@opt.example("kdtool train-teacher --arch resnet20 --epochs 20")
def train_teacher(as_json: bool, **asked: Any) -> None:
    """Train a teacher on labels.  Reads data/; writes teachers/<name>/teacher.pt."""
    from toolkit.core.progress import on_stderr
    from toolkit.pipeline.teacher import train_teacher as run

    result = run(**asked, progress=on_stderr, on_epoch=_epoch_line)
    opt.show(result, as_json, f"{result['path']}: {result['top1']:.2f} % on the test split, last epoch")


def _epoch_line(result: Any) -> None:
    opt.note(
        f"epoch {result.epoch}: loss {result.loss:.4f}, train {100 * result.train_top1:.2f} %, "
        f"lr {result.lr:.4f}, {result.images_per_s:,.0f} img/s"
    )


COMMANDS = [pack, train_teacher]
