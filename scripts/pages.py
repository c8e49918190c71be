"""The documentation's pages as programs: their fenced blocks, in order, in one folder.

    python -m scripts.pages docs/tutorial.md             run a page as it stands, and say where its outputs differ
    python -m scripts.pages docs/tutorial.md --write     run it, and put the outputs into it

    ```console              lines that begin with `$ ` are commands; what follows one is what it prints on stdout
    ```sh and ```bash       commands alone
    ```python               run by itself; a ```text block right after it is what it prints
    ``` with title="FILE"   a file of that name, whatever its language

A comment right above a block says how far it is run: `<!-- not run: WHY -->`, its kdtool commands are only parsed;
`<!-- long: WHY -->`, the same in `make test`, and run in `make test-all`. A page whose first line is
`<!-- make test: 500 images of each split, --epochs 1 -->` is run in `make test` on so little of Fashion-MNIST, every
command that knows these options with these, and as it stands in `make test-all`.

In outputs ≈ stands before each number that another machine, or another moment, may give otherwise.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN, LONG, NOT_RUN = "run", "long", "not run"

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mode>not run|long): (?P<why>[^\n]+) -->\n+)?"
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"\n]+)\")?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SMALL = re.compile(r"<!-- make test: (?:(\d+) images of each split)?,? *(.*?) -->\n")
# accuracies, losses, rates, times and sizes (how full FFCV's pages are is decided by which worker comes first):
# decimals that are no part of a name, and what has their units
_DECIMAL = r"[+-]?\d+\.\d\d+"
_VARIES = re.compile(
    rf"(?<![-\w.])(?:{_DECIMAL}(?: ± {_DECIMAL}| \[{_DECIMAL}, {_DECIMAL}\])?"
    r"|\d[\d,]*(?:\.\d+)?(?= (?:img/s|MB/s|KiB|MiB|s|minutes?|hours?)\b)|\d+\.\d+(?= %))"
)
_FOLD = textwrap.TextWrapper(100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
_NUMBER = r"[+-]?[\d,]*\.?\d+(?: ± [\d.]+| \[[+-]?[\d.]+, [+-]?[\d.]+\])?"


@dataclass(frozen=True)
class Step:
    """A command, a Python program or a file of a page. `output` is what the page shows of it, None where nothing."""

    kind: str  # command, python or file
    text: str
    mode: str
    line: int
    output: str | None = None
    name: str = ""  # of a file


@dataclass(frozen=True)
class Page:
    """`small_images` and `small_options` are what `make test` runs it with: see the module."""

    path: Path
    steps: list[Step]
    small_images: int | None
    small_options: list[str]


def read_page(path: Path) -> Page:
    text = path.read_text()
    small = _SMALL.match(text)
    steps: list[Step] = []
    python_ends = -1
    for found in _BLOCK.finditer(text):
        line = text[: found.start("language")].count("\n") + 1
        language, body, mode = found["language"], found["body"], found["mode"] or RUN
        if found["title"]:
            steps.append(Step("file", body, RUN, line, name=found["title"]))
        elif language == "console":
            steps += _console(body, mode, line)
        elif language in ("sh", "bash"):
            joined = body.replace("\\\n", " ").splitlines()
            steps += [Step("command", command, mode, line) for command in joined if command and command[0] != "#"]
        elif language == "python":
            steps.append(Step("python", body, mode, line))
            python_ends = found.end()
        elif language == "text" and text[python_ends : found.start()].strip() == "" and python_ends > 0:
            last = steps.pop()
            steps.append(Step("python", last.text, last.mode, last.line, body))
    images, options = (int(small[1]) if small[1] else None, shlex.split(small[2])) if small else (None, [])
    return Page(path, steps, images, options)


def _console(body: str, mode: str, line: int) -> list[Step]:
    """Its commands, each with the lines under it."""
    parts = re.split(r"^\$ ((?:[^\n]*\\\n)*[^\n]*)\n", body, flags=re.MULTILINE)
    return [
        Step("command", command.replace("\\\n", " "), mode, line, output)
        for command, output in zip(parts[1::2], parts[2::2], strict=True)
    ]


def kdtool_words(command: str) -> list[str] | None:
    """What a command gives kdtool, None where it starts something else."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words and words[0] == "kdtool":
        return words[1:]
    is_module = words and words[0] in ("python", "torchrun") and "toolkit" in words
    return words[words.index("toolkit") + 1 :] if is_module and words[words.index("toolkit") - 1] == "-m" else None


def marked(output: str) -> str:
    """An output with ≈ before each number that varies. A table's columns stay as wide as they were, where they can."""
    return "\n".join(
        "|".join(map(_marked_cell, line.split("|"))) if line.startswith("|") else _marked(line)
        for line in output.split("\n")
    )


def _marked(text: str) -> str:
    return _VARIES.sub(lambda found: f"≈{found[0]}", text)


def _marked_cell(cell: str) -> str:
    shown = _marked(cell)
    room = len(shown) - len(shown.lstrip(" "))
    return shown[min(room, len(shown) - len(cell)) :]


def agrees(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed, but for the numbers marked, and how wide columns and lines are."""
    parts = re.split(rf"≈{_NUMBER}", _squeezed(shown))
    pattern = _NUMBER.join(re.escape(part) for part in parts)
    return re.fullmatch(pattern, _squeezed(printed)) is not None


def _squeezed(output: str) -> str:
    """Without widths, and with durations in one unit: a busy machine needs minutes where a page tells seconds."""
    output = re.sub(r"\d+ (?:d|h|min) (?=\d+ (?:h|min|s)\b)", "", output)
    output = re.sub(r"(\d) (?:h|min|s)\b", r"\1 s", output)
    return re.sub(r"[ -]*\|[ |:-]*", "|", " ".join(output.split()))


def folded(output: str) -> str:
    """An output whose lines are not wider than a page, but for tables."""
    lines = output.replace(" %", "\u2007%").split("\n")  # kept together
    return "\n".join(line if line.startswith("|") else _FOLD.fill(line) for line in lines).replace("\u2007", " ")


def run_as_a_user(step: Step, folder: Path) -> str:
    """What a step prints on stdout, in a shell of its own. Raises CalledProcessError where it fails."""
    if step.kind == "file":
        (folder / step.name).write_text(step.text)
        return ""
    words = ["bash", "-c", step.text] if step.kind == "command" else [sys.executable, "-c", step.text]
    here = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    environment.pop("KDTOOL_WORKSPACE", None)
    done = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def written(text: str, outputs: dict[str, str]) -> str:
    """A page with the outputs, by command or program, in the place of those it had."""
    for ran, output in outputs.items():
        shown = folded(marked(output)).rstrip("\n") + "\n" if output.strip() else ""
        if f"\n$ {ran}\n" in text:
            at = text.index(f"\n$ {ran}\n") + len(f"\n$ {ran}\n")
            end = min(found for found in (text.find("\n$ ", at - 1) + 1 or len(text), text.index("```", at)))
        else:
            at = text.index("```text\n", text.index(ran)) + len("```text\n")
            end = text.index("```", at)
        text = text[:at] + shown + text[end:]
    return text


def run_page(page: Page, folder: Path, told: Callable[[str], None] = print) -> dict[str, str]:
    """What each step that shows an output printed, by its text."""
    outputs = {}
    for step in page.steps:
        if step.mode == NOT_RUN:
            continue
        told(f"{page.path.name}:{step.line}: {step.text.splitlines()[0]}")
        printed = run_as_a_user(step, folder)
        if step.output is not None:
            outputs[step.text] = printed
            if not agrees(step.output, printed):
                told(f"  printed otherwise than shown:\n{printed}")
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a page of the documentation.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--write", action="store_true", help="put what is printed into the page")
    parser.add_argument("--folder", type=Path, help="where to run it, kept (default: a temporary one)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(asked.folder or temporary)
        folder.mkdir(exist_ok=True, parents=True)
        outputs = run_page(read_page(asked.page), folder, lambda line: print(line, file=sys.stderr, flush=True))
    if asked.write:
        asked.page.write_text(written(asked.page.read_text(), outputs))


if __name__ == "__main__":
    main()
