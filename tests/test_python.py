"""`import toolkit`: every command is a function with its options and their defaults, and does what the command does."""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest

import toolkit
from tests.conftest import made
from toolkit.cli import cli
from toolkit.core import defaults
from toolkit.formats.checkpoint import load_checkpoint

PACKAGE = Path(toolkit.__file__).parent
# Options that say how a result is printed, or are of every command and not of this one.
SHOWN = {(None, "json"), ("build-subset", "list_methods"), ("ls", "all")}
# What a function has besides: who is told of what happens, and who else computes.
BESIDES = {"progress", "on_note", "on_start", "on_epoch", "on_cell", "processes"}
# Asked for by the command too, but for its --list-methods.
NEEDED = {("build-subset", "frac")}

STAGES = [name for name in cli.commands if name != "completion"]  # which is of shells alone


def function_of(command: str) -> Any:
    return getattr(toolkit, command.replace("-", "_"))


def named(parameter: click.Parameter) -> str:
    """What an option is called in Python: its long name, and an underscore after what Python keeps for itself."""
    if isinstance(parameter, click.Argument):
        return parameter.name or ""
    long = next(name for name in parameter.opts if name.startswith("--")).removeprefix("--").replace("-", "_")
    return "import_" if long == "import" else long


def options_of(command: str) -> dict[str, tuple[click.Parameter, Any]]:
    """Each option and argument by its name in Python, with what the command takes it for where it is not given."""
    context = cli.commands[command].make_context(command, [], resilient_parsing=True)
    found = {named(one): (one, context.params[one.name]) for one in context.command.params if one.expose_value}
    return {name: told for name, told in found.items() if not {(None, name), (command, name)} & SHOWN}


def plain(default: Any) -> Any:
    """Nothing at all, one value and one in a list are said in several ways."""
    if default is None or default == ():
        return None
    if isinstance(default, (list, tuple)):
        return plain(default[0]) if len(default) == 1 else default
    return str(default.root) if hasattr(default, "root") else default


@pytest.mark.parametrize("command", STAGES)
def test_each_option_is_a_parameter_with_the_same_default(command: str):
    parameters = inspect.signature(function_of(command)).parameters
    options = options_of(command)
    assert options.keys() == parameters.keys() - BESIDES
    for name, (option, default) in options.items():
        if option.required or (command, name) in NEEDED:
            assert parameters[name].default is inspect.Parameter.empty, name
        else:
            assert plain(parameters[name].default) == plain(default), name


@pytest.mark.parametrize("command", STAGES)
def test_each_function_is_documented_and_typed(command: str):
    function = function_of(command)
    assert function.__name__ == command.replace("-", "_")
    assert function.__doc__ and "Raises" in function.__doc__
    signature = inspect.signature(function)
    assert signature.return_annotation == "dict[str, Any]"
    assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values())
    by_position = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert len(by_position) == 1  # the workspace, or what the command takes without an option


def test_the_functions_are_those_of_the_commands():
    assert list(toolkit.COMMANDS) == [name.replace("-", "_") for name in STAGES]
    assert len(set(toolkit.__all__)) == len(toolkit.__all__)
    assert all(hasattr(toolkit, name) for name in toolkit.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = toolkit.nothing_of_the_kind


def literals(node: ast.AST) -> bool:
    """Whether a default is a value written here; None, False and () say that nothing was asked for."""
    return isinstance(node, ast.Constant) and node.value not in (None, False)


def test_defaults_are_written_once():
    for name, module in toolkit.COMMANDS.items():
        tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
        (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
        given = [*function.args.defaults, *(node for node in function.args.kw_defaults if node is not None)]
        assert not [ast.unparse(node) for node in given if literals(node)], name
    for path in (PACKAGE / "cli").glob("*.py"):
        options = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        given = [word.value for call in options for word in call.keywords if word.arg == "default"]
        assert not [ast.unparse(node) for node in given if literals(node)], path


@pytest.mark.parametrize("room", ["distill", "report", "views"])
def test_a_function_is_not_hidden_by_the_room_of_its_name(room: str):
    code = f"import toolkit.{room}\nfrom toolkit import {room}\nassert {room} is toolkit.{room} and callable({room})"
    subprocess.run([sys.executable, "-c", code], check=True)


BEFORE_AND_AFTER = """
import logging, os, signal, sys, threading, warnings
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    loggers = (logging.root.level, list(logging.root.handlers), logging.root.manager.disable)
    return dict(os.environ), loggers, handlers, list(warnings.filters), list(sys.path), threading.active_count()
before = state()
import toolkit
assert state() == before
assert not {"torch", "numba", "ffcv", "numpy", "h5py", "click"} & set(sys.modules)
"""


def run(code: str, **env: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_importing_toolkit_changes_nothing_and_imports_nothing_heavy():
    run(BEFORE_AND_AFTER)


def test_importing_a_public_name_changes_nothing_of_torch():
    code = """
import torch
torch.set_num_threads(3)
import os, sys, toolkit
def state():
    flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()
    return torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), flags, dict(os.environ)
before = state()
for name in toolkit.__all__:
    getattr(toolkit, name)
    assert state() == before, name
assert not {"numba", "ffcv", "click", "matplotlib"} & set(sys.modules)
"""
    run(code)


# one small study, by commands and by functions

DATA = {"dataset": "digits"}
COMPUTE = {"threads": 1, "device": "cpu", "precision": "float32"}
TEACHER = {"arch": "resnet8", "epochs": 3, "name": "mine", **COMPUTE}
STUDENT = {"subset": "part", "teacher": "mine", "epochs": 3, "alpha": 0.5, "name": "student", **COMPUTE}
STUDY: list[tuple[str, dict[str, Any]]] = [
    ("pack", DATA),
    ("train-teacher", {**DATA, **TEACHER}),
    ("cache-teacher", {**DATA, "teacher": "mine", "views": 3, **COMPUTE}),
    ("score", {**DATA, "teacher": "mine", "score": ("el2n", "forgetting")}),
    ("build-subset", {**DATA, "teacher": "mine", "frac": 0.3, "method": "hardest", "name": "part"}),
    ("distill", STUDENT),
]
MEASURED = {"path", "seconds", "images_per_s", "compile_s", "wait_share", "select_s"}  # and so never the same twice


def words_of(asked: dict[str, Any]) -> Iterator[Any]:
    for name, value in asked.items():
        for one in value if isinstance(value, tuple) else (value,):
            yield from (f"--{name.replace('_', '-')}", one)


def results(workspace: Path, by_function: bool) -> list[dict[str, Any]]:
    found = []
    for command, asked in STUDY:
        if by_function:
            found.append(function_of(command)(workspace=str(workspace), **asked))
        else:
            found.append(made(command, "-w", workspace, *words_of(asked)))
    checkpoint = workspace / "runs" / "student"
    if by_function:
        return [*found, toolkit.evaluate(str(checkpoint), workspace=workspace, **COMPUTE)]
    return [*found, made("evaluate", "-w", workspace, checkpoint, *words_of(COMPUTE))]


def same(found: Any, expected: Any, root: Path) -> bool:
    """Whether two results agree in all but what was measured, and where they lie."""
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(
            key in MEASURED or same(found[key], expected[key], root) for key in found
        )
    if isinstance(found, (list, tuple)):
        return len(found) == len(expected) and all(same(*pair, root) for pair in zip(found, expected, strict=True))
    return found == expected or str(root) in str(found)


def arrays(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, one: found.update({name: one[()]}) if isinstance(one, h5py.Dataset) else None)
    return found


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tmp_path_factory.mktemp("commands"), tmp_path_factory.mktemp("functions")


def test_a_study_by_functions_is_that_of_the_commands_and_silent(
    studies: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
):
    commands, functions = studies
    expected = results(commands, by_function=False)
    capfd.readouterr()
    found = results(functions, by_function=True)
    assert capfd.readouterr() == ("", "")
    for (name, _), ours, theirs in zip([*STUDY, ("evaluate", {})], found, expected, strict=True):
        assert same(json.loads(json.dumps(ours)), theirs, functions), name
    assert found[-1]["top1"] == expected[-1]["top1"] > 15
    for file in ("teachers/mine/teacher.pt", "runs/student/student.pt"):
        assert load_checkpoint(functions / file).fingerprint == load_checkpoint(commands / file).fingerprint
    for file in (
        "teachers/mine/cache.h5",
        "teachers/mine/dynamics.h5",
        "scores/digits/mine.h5",
        "subsets/part/targets/mine.h5",
    ):
        ours, theirs = arrays(functions / file), arrays(commands / file)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name], equal_nan=ours[name].dtype.kind == "f") for name in ours)
    loaders = [json.loads((work / "subsets/part/loader.json").read_text()) for work in (functions, commands)]
    assert loaders[0] == loaders[1]


def test_what_is_there_is_returned_as_by_the_command(studies: tuple[Path, Path]):
    _, functions = studies
    asked = {"workspace": functions, **STUDENT}
    assert toolkit.distill(**asked)["top1"] == toolkit.evaluate(functions / "runs" / "student", **COMPUTE)["top1"]
    assert toolkit.runs(functions, where="name=student")["count"] == 1
    assert toolkit.inspect(functions / "subsets" / "part")["rows"] == 433
    assert toolkit.ls(functions)["stale"] == 0


def test_a_dry_run_of_the_pass_writes_no_cache(studies: tuple[Path, Path], tmp_path: Path):
    workspace = Path(shutil.copytree(studies[1], tmp_path / "work"))
    cost = toolkit.cache_teacher(workspace, dataset="digits", views="all", dry_run=True)
    assert cost["views"] == 9 and cost["passes"] == 9 * 1442 + 355
    assert not (workspace / "teachers" / "digits-resnet8").exists()


def test_progress_and_epochs_are_told_to_who_asks(studies: tuple[Path, Path], tmp_path: Path):
    workspace, shown, epochs = Path(shutil.copytree(studies[1], tmp_path / "work")), list[str](), list[int]()

    @contextmanager
    def progress(what: str, total: int, unit: str) -> Iterator[Any]:
        shown.append(what)
        yield lambda n: None

    asked = {**STUDENT, "name": "told", "epochs": 2}
    toolkit.distill(workspace, **asked, progress=progress, on_epoch=lambda result: epochs.append(result.epoch))
    assert epochs == [1, 2]
    assert any(what.startswith("epoch") for what in shown)


def test_errors_are_toolkits_own(tmp_path: Path):
    with pytest.raises(toolkit.UsageError, match="--alpha must be"):
        toolkit.distill(tmp_path, alpha=2)
    with pytest.raises(ValueError, match="known are"):  # a UsageError is one
        toolkit.pack(tmp_path, dataset="digitz")
    with pytest.raises(toolkit.FailureError, match="no subset yet"):
        toolkit.distill(tmp_path)
    assert issubclass(toolkit.UsageError, toolkit.KdtoolError) and issubclass(toolkit.Stopped, toolkit.KdtoolError)
    with pytest.raises(TypeError, match="alpah"):
        toolkit.distill(tmp_path, alpah=1)


def test_a_sweep_by_function(digits: Path, tmp_path: Path):
    plan = toolkit.sweep(
        workspace=digits, dataset="digits", frac=[0.1, 0.3], alpha=(0, "auto"), seed=range(2), dry_run=True
    )
    assert plan["cells"] == 8
    with pytest.raises(toolkit.UsageError, match="--shard: expected i/n"):
        toolkit.sweep(workspace=tmp_path, frac=0.1, shard="half")
    with pytest.raises(toolkit.UsageError, match="--frac is missing"):
        toolkit.sweep(workspace=tmp_path)


def test_one_value_stands_where_several_may(digits: Path, tmp_path: Path):
    one = toolkit.views(digits, dataset="digits", montage=str(tmp_path / "one.png"), row=3, views=2)
    assert one["row_numbers"] == [3]
    several = toolkit.views(digits, dataset="digits", montage=tmp_path / "two.png", row=[3, 5], views="2")
    assert several["row_numbers"] == [3, 5]
    assert toolkit.doctor(defaults.WORKSPACE)["checks"]
