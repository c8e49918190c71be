"""Options that several commands share, each written once."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial, reduce, wraps
from pathlib import Path
from typing import IO, Any

import click

from toolkit.cli.completing import ALPHAS, KnownOption
from toolkit.core import defaults
from toolkit.core.errors import UsageError
from toolkit.core.processes import silent_here
from toolkit.core.progress import line_above

option = partial(click.option, cls=KnownOption)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*decorators: Decorator) -> Decorator:
    return lambda function: reduce(lambda inner, decorator: decorator(inner), reversed(decorators), function)


def _workspace(ctx: click.Context, parameter: click.Parameter, value: Path) -> Any:
    from toolkit.formats.workspace import Workspace

    return Workspace(value)


_results: list[IO[str]] = []  # the stdout of the command that runs


@contextmanager
def _results_alone_on_stdout() -> Iterator[None]:
    _results.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Whatever else prints while the command runs, a network of one's own too, prints to stderr."""

    @wraps(function)
    def run(*args: Any, **asked: Any) -> Any:
        with _results_alone_on_stdout():
            return function(*args, **asked)

    return run


common = together(
    option(
        "-w",
        "--workspace",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(defaults.WORKSPACE),
        envvar="KDTOOL_WORKSPACE",
        show_default=True,
        show_envvar=True,
        callback=_workspace,
        help="Folder that holds every artifact.",
    ),
    option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON."),
    option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
    _quiet,
)


def data_set_or(default: str | None, said: str | bool = True) -> Decorator:
    """The data; `said` is the default in words, where it is none that can be named before."""
    return together(
        option("--dataset", default=default, show_default=said, help="Data set by name, or your own: module:function."),
        option(
            "--data-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="Where to look for its files first, and to download them to; of image folders, where train/ lies.",
        ),
        option("--limit", type=int, help="Use only this many rows of each split, class-balanced."),
    )


data_set = data_set_or(defaults.DATASET)


image_folder = together(
    option("--max-resolution", type=int, help="Of image folders: the longer side at most.  [default: 500]"),
    option("--write-mode", help="Of image folders: jpg, raw, or smart (raw up to 64 KiB).  [default: jpg]"),
    option("--jpeg-quality", type=int, help="Of image folders, 1 to 100.  [default: 90]"),
    option("--size", type=int, help="Of image folders: side of the network's input.  [default: 224]"),
    option("--family", help="Of image folders: resized-crop does not mirror.  [default: resized-crop-flip]"),
    option("--least-area", type=int, help="Of image folders: of a crop, in percent.  [default: 8]"),
    option("--on-bad", help="Of image folders: fail, or skip what can't be read.  [default: fail]"),
)


def arch(default: str) -> Decorator:
    """The network to train."""
    told = "resnet8 … resnet110, torchvision:<name>, timm:<name>, or your own: module:function."
    return option("--arch", default=default, show_default=True, help=told)


network = together(
    option("--arch", help="Network of a plain state_dict, by name; your own, always: module:function."),
    option("--width", type=int, help="Of a plain state_dict's CIFAR-style ResNet.  [default: 16]"),
)

class_map = option(
    "--class-map",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML or JSON: for each class of the data, name or number of a library's teacher's.  [default: by name]",
)

teacher = together(
    option(
        "--teacher",
        help="A name, torchvision:NETWORK@WEIGHTS or timm:NETWORK.WEIGHTS, or a file: a checkpoint or a plain "
        "state_dict.  [default: the one that comes with kdtool]",
    ),
    network,
    class_map,
)

compute = together(
    option("--device", default=defaults.DEVICE, show_default=True, help="auto, cpu, cuda or cuda:N."),
    option(
        "--precision",
        default=defaults.PRECISION,
        show_default=True,
        help="auto, float32 or bfloat16; auto is bfloat16 where the hardware multiplies it.",
    ),
    option(
        "--threads",
        type=int,
        help="CPU threads of each process.  [default: its share of the cores, or of what a container may use]",
    ),
)

optimisation = together(
    option(
        "--width", default=defaults.WIDTH, show_default=True, help="Channels of the first stage (CIFAR-style ResNets)."
    ),
    option(
        "--recipe",
        default=defaults.RECIPE,
        show_default=True,
        help="fast, paper-cifar, paper-imagenet, or ffcv-imagenet-rn18-E and -rn50-E: E 16, 24, 32, 40, 56 or 88.",
    ),
    option("--epochs", type=int, help="Instead of the recipe's."),
    option("--batch-size", type=int, help="Instead of the recipe's."),
    option("--lr", type=float, help="Learning rate, instead of the recipe's."),
    option(
        "--label-smoothing", type=float, help="Share of each label spread over all classes.  [default: the recipe's]"
    ),
    option(
        "--ema", type=float, metavar="DECAY", help="Keep an average of the weights, so much of it at each step: 0.999."
    ),
    option("--seed", default=defaults.SEED, show_default=True, help="Initialisation, order and views."),
    option(
        "--source",
        default=defaults.SOURCE,
        show_default=True,
        help="resident (all on the device) or stream (from disk, by FFCV); auto goes by memory. Same batches.",
    ),
    option("--compile", is_flag=True, help="Compile the network first: seconds, then faster steps."),
    option(
        "--checkpoint-minutes",
        type=float,
        default=defaults.CHECKPOINT_MINUTES,
        show_default=True,
        help="Save so often within an epoch; 0 is at epochs only. An interrupted run goes on from there.",
    ),
)


class Alpha(click.ParamType):
    """A number from 0 to 1, or a word; the pipeline refuses others too, but only once torch is there."""

    name = "alpha"

    def convert(self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ALPHAS:
            return value
        with suppress(ValueError):
            if 0 <= float(value) <= 1:
                return float(value)
        raise UsageError(f"--alpha must be a number from 0 to 1, auto or search, got {value}")


memory_limit = option(
    "--memory-limit",
    metavar="SIZE",
    help="8G, 512MiB: what all processes of this command on this machine may take together: Python, torch and FFCV "
    "themselves and all that they hold, but not pages of mapped files, nor a GPU's memory. Data are held only where "
    "they fit into half of what is left of it, and what can't be smaller is refused. Of train-teacher, cache-teacher, "
    "score, build-subset, distill and sweep.  [default: what is free]",
)

dry_run = option(
    "--dry-run",
    is_flag=True,
    help="Only tell what would be made or looked at, of how many passes, bytes and minutes; write nothing.",
)

force = option("--force", is_flag=True, help="Make it again even if it is there.")


def about(reads: str, writes: str, example: str) -> Decorator:
    """What stands under every command's help, after its first lines."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        told = [*_wrapped("Reads:", reads), *_wrapped("Writes:", writes), *_wrapped("Example:", example)]
        lines = "\n".join(f"    {line}" for line in told)
        function.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\n    \b\n{lines}\n"
        return function

    return add


def _wrapped(word: str, told: str) -> list[str]:
    """For a terminal of 80 columns, and two of margin."""
    return textwrap.wrap(
        f"{word:<10}{told}", 76, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False
    )


def show(result: dict[str, Any], as_json: bool, *lines: str) -> None:
    """The result on stdout: the lines for people, or one line of JSON for programs. Of several processes the first
    speaks."""
    if silent_here():
        return
    click.echo(json.dumps(result) if as_json else "\n".join(lines), file=_results[-1] if _results else None)


_MADE, _LOOKED_AT = "would be made; nothing was written", "would be looked at, and nothing written"


def show_foreseen(told: dict[str, Any], as_json: bool, *more: str) -> None:
    """What every dry run tells, in the same lines."""
    from toolkit.core.progress import duration_in_words
    from toolkit.core.sizes import in_words

    if told["there"]:
        show(told, as_json, f"{told['path']}: nothing to do: {told['basis']}", *more)
        return
    passed = {"the teacher": told["teacher_passes"], "students": told["student_passes"]}
    packs = told.get("packs")
    if packs:
        took = f"{in_words(packs['bytes'])}, {duration_in_words(60 * packs['minutes'])} when it was tried"
        more = (f"  before  {packs['path']}: the packed data, {took}", *more)
    passes = ", ".join(f"{count:,} images through {which}" for which, count in passed.items() if count) or "none"
    show(
        told,
        as_json,
        f"{told['path']}: {_MADE if told['makes'] else _LOOKED_AT}",
        f"  passes  {passes}",
        f"  disk    {in_words(told['bytes'])}",
        f"  time    about {duration_in_words(60 * told['minutes'])} ({told['basis']})",
        *more,
    )


def note(line: str) -> None:
    """A word on the way, on stderr; where progress is shown there, above it."""
    if not silent_here():
        line_above(line)
