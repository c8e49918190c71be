"""The rooms: who may import whom, and what importing costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit

ROOT = Path(toolkit.__file__).parent

# A room may import itself, and these.
MAY_IMPORT = {
    "core": set(),
    "formats": {"core", "views"},
    "views": {"core"},
    "models": {"core"},
    "data": {"core", "formats"},
    "training": {"core", "formats", "views", "models"},
    "teacher": {"core", "formats", "views", "models", "training"},
    "scores": set(),
    "selection": set(),
    "subset": {"core", "formats"},
    "distill": {"core", "formats", "views", "models", "training"},
    "report": {"core", "formats"},
}
# Libraries known to one room only.
KEPT_IN = {"h5py": {"formats"}, "ffcv": {"formats"}, "click": {"cli"}}


def imports(path: Path) -> set[str]:
    """Every module a file imports, at its top or within a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is meant"
            names.add(node.module or "")
    return names


def files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def test_every_room_is_in_the_table():
    assert {room(path) for path in files()} == {*MAY_IMPORT, "pipeline", "cli"}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_the_table_allows(path: Path):
    if room(path) in MAY_IMPORT:
        visited = {name.split(".")[1] for name in imports(path) if name.startswith("toolkit.")}
        assert visited <= MAY_IMPORT[room(path)] | {room(path)}
    if room(path) == "pipeline":
        assert not any(name.startswith("toolkit.cli") for name in imports(path))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_in_their_rooms(path: Path):
    for name in imports(path):
        library = name.split(".")[0]
        assert room(path) in KEPT_IN.get(library, {room(path)}), f"{library} is imported in {path}"


def loaded_by(code: str) -> set[str]:
    """The top-level modules a fresh interpreter holds after running `code`."""
    listing = "; import sys; print(' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + listing], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy():
    heavy = {"torch", "torchvision", "numpy", "h5py", "ffcv", "numba", "sklearn", "tqdm"}
    asked = "from click.testing import CliRunner; from toolkit.cli import cli; CliRunner().invoke(cli, ['--help'])"
    assert not loaded_by(asked) & heavy


def test_importing_the_package_imports_nothing_heavy():
    assert not loaded_by("import toolkit") & {"torch", "numpy", "h5py", "ffcv", "click"}


def test_distilling_never_imports_ffcv(digits: Path):
    command = ["distill", "-w", str(digits), "--subset", "third", "--epochs", "1", "--name", "no-ffcv"]
    loaded = loaded_by(
        f"from click.testing import CliRunner; from toolkit.cli import cli; "
        f"assert CliRunner().invoke(cli, {command!r}).exit_code == 0"
    )
    assert "torch" in loaded
    assert not loaded & {"ffcv", "numba", "sklearn", "torchvision"}
