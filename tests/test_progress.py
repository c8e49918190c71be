"""Progress on real terminals (pty), of any width and while they are resized, and where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from toolkit.core import progress

# Does one step of work for each line on its stdin, and says so on stdout once it is drawn.
WORKER = """
import sys
from toolkit.core import progress
progress._SECONDS_BETWEEN_DRAWINGS = 0.0
with progress.on_stderr("cache-teacher, slot 3", 2_000_000, "img") as tick:
    for line in sys.stdin:
        if line == "note\\n":
            progress.line_above("a word")
        else:
            tick(123_456)
        print("done", flush=True)
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("TERM", "NO_COLOR", "COLUMNS")}
    return {**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", **more}


class Terminal:
    """A terminal that a program has as its stderr."""

    def __init__(self, columns: int) -> None:
        self.ours, self.theirs = pty.openpty()
        settings = termios.tcgetattr(self.theirs)
        settings[1] &= ~termios.OPOST  # \n stays \n
        termios.tcsetattr(self.theirs, termios.TCSANOW, settings)
        self.resize(columns)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def text(self) -> str:
        """All that was written to it, once the program is gone."""
        os.close(self.theirs)
        content = b""
        while True:
            try:
                piece = os.read(self.ours, 65536)
            except OSError:  # Linux: nobody holds the other end
                piece = b""
            if not piece:
                os.close(self.ours)
                return content.decode()
            content += piece


def screen(text: str, columns: int) -> list[str]:
    """The lines that a terminal of so many columns shows; past the last one it goes on in the next line. Colours, which
    colorama resets at the end where it is installed, take no place."""
    lines, at = [[" "] * columns], 0
    for sign in re.sub(r"\x1b\[[0-9;]*m", "", text):
        if sign == "\r":
            at = 0
        elif sign == "\n":
            lines.append([" "] * columns)
            at = 0
        else:
            if at == columns:
                lines.append([" "] * columns)
                at = 0
            lines[-1][at] = sign
            at += 1
    return ["".join(line).rstrip() for line in lines]


def worked(columns: int, steps: list[str | int], **more: str) -> str:
    """What the worker wrote to a terminal of so many columns; a number among the steps resizes it."""
    terminal = Terminal(columns)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stderr=terminal.theirs, text=True, env=environment(**more), **pipes
    ) as process:
        assert process.stdin and process.stdout
        for step in steps:
            if isinstance(step, int):
                terminal.resize(step)
                continue
            process.stdin.write(f"{step}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
        process.stdin.close()
    assert process.returncode == 0
    return terminal.text()


def drawn(text: str) -> list[str]:
    """Each drawing of the line."""
    return [piece.rstrip() for piece in text.replace("\n", "\r").split("\r") if piece.strip()]


@pytest.mark.parametrize("columns", [2, 8, 20, 40, 80, 300])
def test_no_line_is_wider_than_the_terminal(columns: int):
    text = worked(columns, ["step"] * 5)
    assert len(drawn(text)) >= 6
    assert len(screen(text, columns)) == 1


def test_a_line_is_gone_once_its_work_is_done():
    assert screen(worked(60, ["step"] * 3), 60) == [""]


@pytest.mark.parametrize("steps", [["step", "step", 40, "step", "step"], ["step", 100, "step", 30, "step", 90, "step"]])
def test_a_resized_terminal_gets_lines_of_its_new_width(steps: list[str | int]):
    text = worked(80, steps)
    last = next(step for step in reversed(steps) if isinstance(step, int))
    assert len(drawn(text)[-1]) <= last
    assert "\n" not in text


def test_words_stand_above_the_line_and_it_goes_on():
    text = worked(60, ["step", "note", "step", "note"])
    assert screen(text, 60) == ["a word", "a word", ""]
    assert "cache-teacher" in drawn(text)[-1]


@pytest.mark.parametrize("more", [{"TERM": "dumb"}, {"TERM": "dumb", "NO_COLOR": "1"}])
def test_a_dumb_terminal_gets_no_line_that_is_drawn_again(more: dict[str, str]):
    assert worked(80, ["step"] * 5 + ["note"], **more) == "a word\n"


def test_a_terminal_that_says_no_size_is_taken_for_a_usual_one():
    assert max(len(piece) for piece in drawn(worked(0, ["step"] * 5))) <= 80


def test_a_pipe_and_a_notebook_get_whole_lines_without_carriage_returns():
    """A notebook's stderr is no terminal either."""
    code = WORKER.replace("_SECONDS_BETWEEN_DRAWINGS", "_SECONDS_BETWEEN_LINES")
    steps = "step\n" * 3
    done = subprocess.run(
        [sys.executable, "-c", code], input=steps, capture_output=True, text=True, env=environment(), check=True
    )
    lines = done.stderr.splitlines()
    assert [line.partition(" of ")[0] for line in lines] == [
        f"cache-teacher, slot 3: {n * 123_456:,}" for n in (1, 2, 3)
    ]
    assert "\r" not in done.stderr and "█" not in done.stderr


def test_plain_lines_of_a_night_fill_a_page():
    at_s, lines = 0.0, 0
    while (at_s := at_s + progress.seconds_to_next_line(at_s)) < 10 * 3600:
        lines += 1
    assert progress.seconds_to_next_line(0) == 15
    assert lines < 160


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations_are_said_in_two_units(seconds: float, words: str):
    assert progress.duration_in_words(seconds) == words


@pytest.mark.parametrize("columns", [20, 80])
def test_a_command_on_a_terminal_never_wraps_its_progress(columns: int, tmp_path: Path):
    terminal = Terminal(columns)
    code = (
        "from toolkit.core import progress as p; p._SECONDS_BETWEEN_DRAWINGS = 0; from toolkit.cli import main; main()"
    )
    words = ["pack", "--dataset", "digits", "--limit", "100", "-w", str(tmp_path / "w")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=terminal.theirs,
        text=True,
        env=environment(),
    )
    text = terminal.text()
    assert done.returncode == 0, text
    assert "pack" in text and "100%" in text
    assert screen(text, columns) == [""]
    assert "100 training" in done.stdout
