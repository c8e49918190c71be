"""docs/python.md: its code runs, in order, and its tables name every function that there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit
from toolkit.cli import cli
from toolkit.distill.losses import LOSSES

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
TOLD = """
import json, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(json.dumps({"alpha": student["alpha"], "accuracy": accuracy, "shown": len(shown)}))
"""


def cells(column: int) -> list[str]:
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [row[column].strip().strip("`") for row in rows]


def test_its_code_runs_on_digits_in_one_go(tmp_path: Path):
    command = [sys.executable, "-c", "\n".join([*BLOCKS, TOLD]), "told.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    alphas = [line for line in printed if line.startswith("alpha ")]
    assert len(alphas) == 2 and all(float(line.split()[2]) > 90 for line in alphas)
    assert "--alpha must be a number from 0 to 1, auto or search, got 1.5" in printed
    assert float(printed[-1].split()[0]) > 80
    assert '"shown": 0' not in (tmp_path / "told.json").read_text()


def test_its_tables_name_every_public_function():
    named = {found for text in cells(0) for found in re.findall(r"toolkit\.(\w+)", text)}
    told = {"FailureError", "UsageError", "KdtoolError", "Stopped", "EpochResult", "on_stderr"}
    told |= {"list_methods", "load_network", "distillation_loss"}
    assert named == {*toolkit.__all__} - told - {"Progress", "__version__"}
    for name in told:
        assert f"toolkit.{name}" in PAGE.read_text()


def test_it_pairs_functions_with_commands_and_losses():
    of_commands = [text for text, command in zip(cells(0), cells(1), strict=True) if command in cli.commands]
    assert [re.findall(r"toolkit\.(\w+)", text)[0] for text in of_commands] == list(toolkit.COMMANDS)
    losses = {command: text for text, command in zip(cells(0), cells(1), strict=True) if command in LOSSES}
    assert losses == {name: f"toolkit.{kind.function.__name__}" for name, kind in LOSSES.items()}


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_its_code_fits_the_page_and_says_what_it_imports(block: int):
    assert max(map(len, BLOCKS[block].splitlines())) <= 130
    compile(BLOCKS[block], PAGE.name, "exec")
