"""What the tests share: kdtool run as a user runs it, and one workspace of real digits that they only read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from toolkit.cli import cli

# A shell's background jobs ignore SIGINT, and so would all they start: tests of Ctrl-C would wait for ever
signal.signal(signal.SIGINT, signal.default_int_handler)


def kdtool(*words: Any) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(cli, [str(word) for word in words])


def made(*words: Any) -> dict[str, Any]:
    """A command's result, the last line of its stdout with --json; the test fails where the command does."""
    result = kdtool(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def refused(result: Result, code: int, *words: str) -> None:
    """The command ended with this code, and one line on stderr that holds these words."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr


def start_kdtool(*words: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own, for tests that kill it."""
    code = "from toolkit.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with digits packed, every view cached, and two subsets of a tenth and a third. Read it only."""
    workspace = tmp_path_factory.mktemp("digits")
    common = ("-w", workspace, "--dataset", "digits")
    made("pack", *common)
    made("cache-teacher", *common, "--views", "all")
    made("build-subset", *common, "--frac", "0.3", "--name", "third")
    made("build-subset", *common, "--frac", "0.1", "--method", "hardest", "--name", "hard")
    return workspace
