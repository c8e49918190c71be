"""The command line: parse, call the pipeline, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any, NoReturn

import click

from toolkit.cli.commands import COMMANDS
from toolkit.core.errors import KdtoolError, UsageError
from toolkit.core.interrupts import AGAIN, stopped_by_sigterm
from toolkit.core.last_words import say_once
from toolkit.core.processes import silent_here, told
from toolkit.core.versions import __version__

IN_PROCESSES = ("train-teacher", "cache-teacher", "distill")  # that torchrun may start several of


class Pipeline(click.Group):
    """Commands in the order data flows; every error is one line, with exit code 2 for usage and 1 for failure."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        debug = "--debug" in words
        extra.pop("standalone_mode", None)
        extra.setdefault("prog_name", "kdtool")  # under torchrun it would be `python -m toolkit`
        try:
            with stopped_by_sigterm(), _one_stdout():
                result = super().main(args=words, standalone_mode=False, **extra)
            sys.exit(result if isinstance(result, int) else 0)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "kdtool"
            said = error.format_message()
            stop = "" if said.endswith((".", "?", ")")) else "."
            _stop(2, f"{where}: {said}{stop} See: {where} --help")
        except KdtoolError as error:
            _stop(error.exit_code, f"kdtool: {error}", debug, error)
        except (click.Abort, KeyboardInterrupt):
            _stop(130, f"kdtool: stopped. {AGAIN}")
        except click.ClickException as error:
            _stop(error.exit_code, f"kdtool: {error.format_message()}")
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            _stop(1, f"kdtool: {named}{error.strerror or error}. Mend that, or choose another --workspace", debug)
        except Exception as error:
            found = " ".join(str(error).split())[:300]
            if _is_lack_of_memory(error):
                _stop(1, f"kdtool: not enough memory ({found}). Use a smaller --batch-size, --width or --limit", debug)
            _stop(
                1, f"kdtool: an error of kdtool itself: {type(error).__name__}: {found}. Run again with --debug", debug
            )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if told()[1] > 1 and name not in IN_PROCESSES:
            able = ", ".join(IN_PROCESSES)
            raise UsageError(f"{name} runs in one process: leave torchrun out (several can do {able})")
        return name, command, rest


def _one_stdout() -> AbstractContextManager[Any]:
    """Of several processes the first one alone has an output: help too is printed once."""
    return redirect_stdout(io.StringIO()) if silent_here() else nullcontext()


def _is_lack_of_memory(error: Exception) -> bool:
    """Python has a type for it, torch on the GPU another, and torch on the CPU only words."""
    words = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(sign in words for sign in ("outofmemory", "can't allocate memory"))


def _stop(code: int, line: str, debug: bool = False, error: KdtoolError | None = None) -> NoReturn:
    """Ends with `line` on stderr; with `debug` the traceback of the error at hand stands above it."""
    if debug:
        click.echo(traceback.format_exc(), err=True, nl=False)
    say_once(" ".join(line.split()), lambda said: click.echo(said, err=True), error)
    sys.exit(code)


@click.group(
    "kdtool",
    cls=Pipeline,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command reads what the one before it wrote; data is packed when needed. Start: kdtool cache-teacher",
)
@click.version_option(__version__, prog_name="kdtool")
def cli() -> None:
    """Knowledge distillation on pruned data: run the teacher once, train every student from disk.

    \b
    data ── pack ─► train.beton ── cache-teacher ─► cache.h5 ── build-subset ─► subset ── distill ─► student
    """


for _command in COMMANDS:
    cli.add_command(_command)

main: Callable[[], Any] = cli
