"""The rooms: who may import whom. What a command imports: see test_startup.py."""

from __future__ import annotations

import ast
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
    "scores": {"core"},
    "selection": {"core"},
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
