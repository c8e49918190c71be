"""Every example runs as its docstring says, on digits, and what it makes has learned.

The line `Run:` of a docstring is run, then each line `Then:`, in a folder beside kdtool-work and examples.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import made

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {  # instead of its own
    "own_data.py": {"--epochs": "3"},
    "own_loop.py": {"--epochs": "4"},
    "own_network.py": {"--epochs": "4"},
    "own_teacher.py": {"--epochs": "8", "--slots": "2"},
}
LEARNED = 60.0  # percent: ten classes


def commands(path: Path) -> list[list[str]]:
    """The words of the lines Run: and Then: of an example's docstring, cut short by SMALL."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    lines = re.findall(r"^(?:Run|Then): *(.+)$", docstring.replace("\\\n", " "), re.MULTILINE)
    found = []
    for line in lines:
        words = shlex.split(line)
        for option, value in SMALL.get(path.name, {}).items():
            if option in words:
                words[words.index(option) + 1] = value
        found.append(words)
    return found


@pytest.fixture(scope="module")
def folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user's: kdtool-work with digits and a subset of half of them, and the examples."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(digits, folder / "kdtool-work")
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    made("build-subset", "-w", folder / "kdtool-work", "--dataset", "digits", "--frac", "0.5")
    return folder


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_runs_as_it_says_and_learns(name: str, folder: Path):
    asked = commands(EXAMPLES / name)
    assert asked, f"{name}: no line 'Run:' in its docstring"
    programs = {"python": [sys.executable], "kdtool": [sys.executable, "-c", "from toolkit.cli import main; main()"]}
    environment = {
        **os.environ,
        "PYTHONPATH": str(EXAMPLES.parent),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "default",
    }
    environment.pop("KDTOOL_WORKSPACE", None)
    shown = []
    for program, *words in asked:
        command = [*programs[program], *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
    percent = re.findall(r"(\d+\.\d+) %", shown[-1])
    assert percent and float(percent[-1 if asked[-1][0] == "python" else 0]) > LEARNED, shown[-1]
