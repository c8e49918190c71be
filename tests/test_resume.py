"""Killed at any moment, a command run again ends as if nothing had happened: laws 3 and 4 of the README. Two at once:
one writes, and who reads sees the old or the new cache.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import kdtool, made, start_kdtool
from tests.test_bad_input import a_teacher, edited, fails, held, refused
from tests.test_laws import digits_of, everything_in, same
from toolkit.core.recipes import RECIPES
from toolkit.formats.beton import open_beton
from toolkit.formats.beton_writer import write_beton
from toolkit.formats.bundle import open_bundle
from toolkit.formats.checkpoint import load_checkpoint
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import open_source
from toolkit.pipeline.student import distill as run_student
from toolkit.pipeline.teacher import train_teacher
from toolkit.teacher.train import label_loss
from toolkit.training.loop import Trainer

PATIENCE_S = 300
# Everything that decides a bit of the logits; in small batches, so that most of a run is work and not Python's start
SETTINGS = ("--precision", "float32", "--threads", "1", "--batch-size", "16")
CACHE = ("cache-teacher", "--dataset", "digits", *SETTINGS, "--views")


def cache_in(workspace: Path) -> Path:
    return workspace / "teachers" / "digits-resnet8" / "cache.h5"


def parts_in(workspace: Path) -> int:
    return len(list(cache_in(workspace).with_name("cache.h5.parts").glob("*.npz")))


def temporary_in(workspace: Path) -> list[Path]:
    return sorted(workspace.rglob(".*.tmp"))


def with_data(digits: Path, workspace: Path) -> Path:
    """A workspace with nothing but the packed digits."""
    shutil.copytree(digits / "data", workspace / "data")
    return workspace


class Alone(dict[str, dict[str, np.ndarray]]):
    """What caches hold that nobody disturbed, each made at once when first asked for: by their --views."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace

    def __missing__(self, views: str) -> dict[str, np.ndarray]:
        self[views] = everything_in(Path(made(*CACHE, views, "-w", self.workspace, "--force")["path"]))
        return self[views]


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(with_data(digits, tmp_path_factory.mktemp("alone")))


class Moment(NamedTuple):
    """Just before the `call`-th call of a function."""

    module: str
    function: str
    call: int


def before_part(number: int) -> Moment:
    return Moment("toolkit.formats.parts", "Parts.save", number)


def before_dataset(number: int) -> Moment:
    return Moment("toolkit.formats.cache_writing", "CacheWriter.write_blocks", number)


BEFORE_THE_SUPERBLOCK = Moment("os", "pwrite", 1)
AFTER_THE_SUPERBLOCK = Moment("toolkit.formats.parts", "Parts.discard", 1)

STOPPING = """
import os, signal
import {module}
from toolkit.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells let their background jobs ignore

calls, act = 0, {module}.{function}

def counted(*arguments, **named):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGSTOP)
    return act(*arguments, **named)

{module}.{function} = counted
main()
"""


@contextmanager
def stopped_at(moment: Moment, *words: object) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own that has stopped at `moment`; SIGKILL when the block ends, if it lives then.

    Stopped by itself, so that the moment is met on any machine; killed from outside.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING.format(**moment._asdict()), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        what = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        while (ended := os.waitid(os.P_PID, process.pid, what)) is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert ended.si_code == os.CLD_STOPPED, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def killed_at(moment: Moment, *words: object) -> None:
    with stopped_at(moment, *words) as process:
        pass
    assert process.returncode == -signal.SIGKILL


def killed_when(condition, *words: object) -> None:
    """Runs the command and sends it SIGKILL once `condition()` holds; fails if it ended by itself before."""
    process = start_kdtool(*words)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


# law 3 ----------------------------------------------------------------------------------------------------------------


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def same_students(ours: dict[str, object], theirs: dict[str, object]) -> bool:
    one, other = (load_checkpoint(Path(str(run["path"])) / "student.pt").weights for run in (ours, theirs))
    return all(torch.equal(one[name], other[name]) for name in other)


def test_law_3_a_killed_run_resumes_to_the_same_weights(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    words = ["distill", "-w", tmp_path, "--subset", "third", "--epochs", "30", "--threads", "1"]
    whole = made(*words, "--name", "whole")
    for epochs in (2, 17):
        metrics = tmp_path / "runs" / "killed" / "metrics.jsonl"
        killed_when(lambda: lines(metrics) >= epochs, *words, "--name", "killed")  # noqa: B023
        assert not (tmp_path / "runs" / "killed" / "run.json").exists()
    resumed = made(*words, "--name", "killed")
    assert same_students(resumed, whole)
    assert (resumed["top1"], resumed["agreement"]) == (whole["top1"], whole["agreement"])


# Killed within an epoch: 432 rows are 5 batches of 100, so 3 epochs are 15 steps; saved after each of them, or nearly
EVERY_STEP = 1e-9
STUDENT: dict[str, Any] = {"subset": "third", "epochs": 3, "batch_size": 100, "threads": 1}
STEPS_OF_A_STUDENT = 15
TRAINING = ("distill", "--subset", "third", "--epochs", 3, "--batch-size", 100, "--threads", 1)


class Killed(BaseException):
    """As a SIGKILL leaves it: what is on the disk is whole files."""


@contextmanager
def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training inside makes so many steps, and dies before the next one."""
    step, made_so_far = Trainer.take_step, 0

    def counted(trainer: Trainer, batch: Any) -> Any:
        nonlocal made_so_far
        made_so_far += 1
        if made_so_far > steps:
            raise Killed
        return step(trainer, batch)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Trainer, "take_step", counted)
        yield


def untimed(path: Path) -> list[dict[str, object]]:
    """The epochs in a metrics.jsonl, but for how long they took."""
    epochs = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in epoch.items() if not key.endswith("_s")} for epoch in epochs]


def same_runs(one: Path, other: Path) -> bool:
    metrics = [untimed(folder / "metrics.jsonl") for folder in (one, other)]
    return same_students({"path": one}, {"path": other}) and metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("source", "steps", "alpha"), [("resident", 1, 0.5), ("resident", 4, 0.0), ("stream", 2, 1.0), ("stream", 7, 0.5)]
)
def test_law_3_a_run_killed_within_its_epochs_ends_in_the_same_weights(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, steps: int, alpha: float
):
    """Again and again after so many steps: each of the run's steps is once the first of a process, or every so many."""
    workspace = Workspace(Path(shutil.copytree(digits, tmp_path / "work")))
    asked = {**STUDENT, "source": source, "checkpoint_minutes": EVERY_STEP, "alpha": alpha}
    whole = Path(run_student(workspace, name="whole", **asked)["path"])
    for _ in range((STEPS_OF_A_STUDENT - 1) // steps):
        with killed_after(steps, monkeypatch):
            run_student(workspace, name="killed", **asked)
    resumed = Path(run_student(workspace, name="killed", **asked)["path"])
    assert same_runs(resumed, whole) and len(untimed(resumed / "metrics.jsonl")) == 3


TEACHER: dict[str, Any] = {
    **{"dataset": "digits", "limit": 200, "arch": "resnet8", "width": 4, "batch_size": 64, "threads": 1},
    **{"epochs": 3, "snapshots": "1,3", "precision": "float32"},
}


@pytest.mark.parametrize("steps", [1, 3])
def test_law_3_a_teacher_killed_within_its_epochs_is_the_same_and_so_is_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
):
    """An epoch is 4 steps; what was seen of half of one is kept with the state."""
    workspace = Workspace(tmp_path)
    whole = Path(train_teacher(workspace, name="whole", **TEACHER)["path"]).parent
    for _ in range(11 // steps):
        with killed_after(steps, monkeypatch):
            train_teacher(workspace, name="killed", checkpoint_minutes=EVERY_STEP, **TEACHER)
    killed = Path(train_teacher(workspace, name="killed", **TEACHER)["path"]).parent
    assert untimed(killed / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
    one, other = (load_checkpoint(folder / "teacher.pt").weights for folder in (killed, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
    found, expected = (everything_in(folder / "dynamics.h5") for folder in (killed, whole))
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.long
def test_law_3_holds_within_the_epochs_of_a_compiled_student(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workspace = Workspace(Path(shutil.copytree(digits, tmp_path / "work")))
    asked = {**STUDENT, "compile": True, "checkpoint_minutes": EVERY_STEP}
    whole = Path(run_student(workspace, name="whole", **asked)["path"])
    for steps in (3, 8):
        with killed_after(steps, monkeypatch):
            run_student(workspace, name="killed", **asked)
    assert same_runs(Path(run_student(workspace, name="killed", **asked)["path"]), whole)


@pytest.mark.long
def test_law_3_sigkills_at_random_steps_of_a_teacher_leave_the_same_dynamics(tmp_path: Path):
    """Ten kills on top of each other in 12 epochs of 4 steps."""
    words = ["train-teacher", "--dataset", "digits", "--limit", 200, "--arch", "resnet8", "--width", 4, "--threads", 1]
    words += ["--batch-size", 64, "--epochs", 12, "--snapshots", "2,5", "--checkpoint-minutes", EVERY_STEP]
    words += ["-w", tmp_path, "--name"]
    rng = np.random.default_rng(1)
    for _ in range(10):
        steps = int(rng.integers(1, 5))
        killed_at(Moment("toolkit.training.loop", "Trainer.take_step", steps + 1), *words, "killed")
    killed, whole = (Path(str(made(*words, name)["path"])).parent for name in ("killed", "whole"))
    assert untimed(killed / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
    found, expected = (everything_in(folder / "dynamics.h5") for folder in (killed, whole))
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_law_3_the_same_seed_gives_the_same_weights_and_another_does_not(digits: Path, tmp_path: Path):
    workspace = Workspace(Path(shutil.copytree(digits, tmp_path / "work")))
    one, again, other = (
        Path(run_student(workspace, name=name, seed=seed, **STUDENT)["path"])
        for name, seed in {"one": 3, "again": 3, "other": 4}.items()
    )
    assert same_runs(one, again) and not same_runs(one, other)


def dropping(source: Any, elsewhere: int) -> Trainer:
    """A network that draws by chance at each step; `elsewhere` is how torch's generator was left."""
    torch.manual_seed(1)
    dropout = torch.nn.Dropout(0.5)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), dropout, torch.nn.Linear(32, 10))
    torch.manual_seed(elsewhere)
    return Trainer(model, source, label_loss, RECIPES["fast"], 10, torch.device("cpu"), "float32", seed=2)


def test_law_3_holds_for_a_network_that_draws_by_chance_and_torchs_generator_is_left_as_it_was(digits: Path):
    bundle = open_bundle(digits / "subsets" / "third")
    fed = open_source(bundle.images(), bundle.indices_m, bundle.data, 100, 0, compute_on("cpu", "float32", 1))
    whole = dropping(fed, 3)
    while not whole.finished:
        before = torch.get_rng_state()
        whole.run_epoch()
        assert torch.equal(torch.get_rng_state(), before)
    states: list[dict[str, Any]] = []
    first = dropping(fed, 4)
    with pytest.raises(Killed):
        first.run_epoch(after_step=lambda: states.append(copy.deepcopy(first.state())) or stop_at(first, 3))
    second = dropping(fed, 5)
    second.load_state(states[-1])
    assert second.step == 3
    while not second.finished:
        second.run_epoch()
    weights = whole.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in second.model.state_dict().items())


def stop_at(trainer: Trainer, step: int) -> None:
    if trainer.step == step:
        raise Killed


def test_a_run_is_saved_within_an_epoch_only_as_often_as_asked(digits: Path, tmp_path: Path, monkeypatch):
    workspace = Workspace(Path(shutil.copytree(digits, tmp_path / "work")))
    saved = []
    monkeypatch.setattr("toolkit.training.run.save_torch", lambda path, content: saved.append(content["state"]["step"]))
    for minutes, steps in {10.0: [5, 10, 15], 0.0: [5, 10, 15], EVERY_STEP: [*range(1, 16)]}.items():
        saved.clear()
        run_student(workspace, name=f"run-{minutes}", checkpoint_minutes=minutes, **STUDENT)
        assert saved == steps


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf"])
def test_minutes_that_are_none_are_refused_by_name(digits: Path, minutes: str):
    result = kdtool(*TRAINING, "-w", digits, "--checkpoint-minutes", minutes)
    assert result.exit_code == 2 and "--checkpoint-minutes" in result.stderr


def test_a_training_state_of_0_4_is_gone_on_with(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is of a whole epoch."""
    workspace = Workspace(Path(shutil.copytree(digits, tmp_path / "work")))
    whole = Path(run_student(workspace, name="whole", **STUDENT)["path"])
    with killed_after(7, monkeypatch):
        run_student(workspace, name="old", **STUDENT)
    path = workspace.run("old") / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    assert saved["format"] == "kdtool training state 2" and saved["state"].keys() == {
        *("epoch", "step", "model", "optimizer")
    }
    torch.save({**saved, "format": "kdtool training state 1"}, path)
    assert same_runs(Path(run_student(workspace, name="old", **STUDENT)["path"]), whole)


def test_a_training_state_of_0_4_without_a_teacher_is_gone_on_with(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It notes a temperature that nothing used."""
    workspace = Workspace(Path(shutil.copytree(digits, tmp_path / "work")))
    with killed_after(7, monkeypatch):
        run_student(workspace, name="old", alpha=0, **STUDENT)
    path = workspace.run("old") / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    settings = {**saved["settings"], "temperature": 4.0}
    torch.save({**saved, "format": "kdtool training state 1", "settings": settings}, path)
    whole = Path(run_student(workspace, name="whole", alpha=0, **STUDENT)["path"])
    assert same_runs(Path(run_student(workspace, name="old", alpha=0, **STUDENT)["path"]), whole)


def test_law_3_a_sigkill_within_an_epoch(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    words = [*TRAINING, "-w", tmp_path, "--checkpoint-minutes", EVERY_STEP, "--name"]
    killed_at(Moment("toolkit.training.loop", "Trainer.take_step", 9), *words, "killed")
    saved = torch.load(tmp_path / "runs" / "killed" / "checkpoint.pt", weights_only=True)["state"]
    assert (saved["step"], saved["epoch"], len(saved["under"]["losses"])) == (8, 1, 3)
    assert len(untimed(tmp_path / "runs" / "killed" / "metrics.jsonl")) == 1
    killed, whole = (Path(str(made(*words, name)["path"])) for name in ("killed", "whole"))
    assert same_runs(killed, whole)


@pytest.mark.long
@pytest.mark.parametrize(("source", "kills"), [("resident", 20), ("stream", 6)])
def test_law_3_sigkills_at_random_steps_leave_the_same_weights(digits: Path, tmp_path: Path, source: str, kills: int):
    """Kills come on top of kills: after so many steps of a process, 13 epochs of 5 steps in all."""
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    train = ["distill", "-w", tmp_path, "--subset", "third", "--epochs", 13, "--batch-size", 100, "--threads", 1]
    words = [*train, "--checkpoint-minutes", EVERY_STEP, "--source", source, "--name"]
    rng, done = np.random.default_rng(0), 0
    for _ in range(kills):
        steps = int(rng.integers(1, 60 // kills + 1))
        killed_at(Moment("toolkit.training.loop", "Trainer.take_step", steps + 1), *words, "killed")
        done += steps
        saved = torch.load(tmp_path / "runs" / "killed" / "checkpoint.pt", weights_only=True)
        assert saved["state"]["step"] == done
    killed, whole = (Path(str(made(*words, name)["path"])) for name in ("killed", "whole"))
    assert same_runs(killed, whole)


@pytest.mark.long
def test_law_3_twenty_kills_at_random_moments_leave_the_same_weights(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    train = ["distill", "-w", tmp_path, "--subset", "third", "--epochs", "60", "--threads", "1"]
    words = [*train, "--checkpoint-minutes", 1e-4, "--name"]
    rng = np.random.default_rng(0)
    for _ in range(20):
        process = start_kdtool(*words, "killed")
        time.sleep(float(rng.uniform(1, 8)))
        process.kill()
        process.communicate()
    killed, whole = (made(*words, name) for name in ("killed", "whole"))
    assert same_students(killed, whole)


# law 4 ----------------------------------------------------------------------------------------------------------------


def views_recorded(path: Path) -> int:
    """By plain h5py; none where there is no file."""
    if not path.is_file():
        return 0
    with h5py.File(path) as file:
        return json.loads(file.attrs["record"])["slots"]


def test_law_4_a_cache_killed_at_six_moments_ends_as_one_left_alone(digits: Path, tmp_path: Path, alone: Alone):
    workspace = with_data(digits, tmp_path)
    path = cache_in(workspace)
    every_view = [*CACHE, "all", "-w", workspace]
    # ten parts: nine views and the test split; rows, labels, nine views and then the test split's logits
    for moment, parts in [(before_part(2), 1), (before_part(4), 4), (before_part(5), 8), (before_dataset(12), 10)]:
        killed_at(moment, *every_view)
        assert (parts_in(workspace), path.exists()) == (parts, False)
    assert [left.name.split(".")[1:3] for left in temporary_in(workspace)] == [["cache", "h5"]]
    made(*every_view)
    assert same(everything_in(path), alone["all"])
    path.unlink()
    made(*CACHE, "3", "-w", workspace)
    size_bytes = path.stat().st_size
    for moment, parts, grown in [(before_part(3), 2, False), (before_dataset(5), 6, True)]:
        killed_at(moment, *every_view)
        assert (parts_in(workspace), path.stat().st_size > size_bytes) == (parts, grown)
        assert same(everything_in(path), alone["3"]) and views_recorded(path) == 3
    made(*every_view)
    assert same(everything_in(path), alone["all"]) and views_recorded(path) == 9
    assert not temporary_in(workspace) and not path.with_name("cache.h5.parts").exists()


@pytest.mark.parametrize(("moment", "views"), [(BEFORE_THE_SUPERBLOCK, "3"), (AFTER_THE_SUPERBLOCK, "all")])
def test_a_reader_sees_the_old_or_the_new_cache_and_a_second_writer_is_told(
    digits: Path, tmp_path: Path, alone: Alone, moment: Moment, views: str
):
    """While views are added, and when the writer is killed there."""
    workspace = with_data(digits, tmp_path)
    path = Path(made(*CACHE, "3", "-w", workspace)["path"])
    with stopped_at(moment, *CACHE, "all", "-w", workspace) as writer:
        line = fails(kdtool(*CACHE, "5", "-w", workspace), 1, str(path), "Wait for it to end")
        assert f"is being written by process {writer.pid} on " in line
        assert made("inspect", path)["views"] == {"3": 3, "all": 9}[views]
        assert same(everything_in(path), alone[views])
    assert same(everything_in(path), alone[views])
    made(*CACHE, "all", "-w", workspace)
    assert same(everything_in(path), alone["all"])


KILLS = 60
STEPS, VIEWS = ("2", "5", "all"), (2, 5, 9)


def recovered(workspace: Path, step: int, alone: Alone, copy: Path) -> bool:
    """Whether a copy of what a killed step left is what was there before or the step's own cache, and the step run
    again makes it the latter."""
    shutil.copytree(workspace, copy)
    path, allowed = cache_in(copy), STEPS[max(step - 1, 0) : step + 1]
    before = any(same(everything_in(path), alone[views]) for views in allowed) if path.exists() else step == 0
    made(*CACHE, STEPS[step], "-w", copy)
    after = same(everything_in(path), alone[STEPS[step]])
    shutil.rmtree(copy)
    return before and after


def writes(process: subprocess.Popen[str], workspace: Path) -> bool:
    """Whether the command holds its lock: Python's start and end, most of a run here, change nothing."""
    path = cache_in(workspace)
    lock = path.with_name(f".{path.name}.lock")
    return lock.is_file() and lock.read_text().startswith(f"process {process.pid} ")


def until_it_writes(process: subprocess.Popen[str], workspace: Path) -> None:
    """Or until it has ended."""
    deadline_s = time.monotonic() + PATIENCE_S
    while process.poll() is None and not writes(process, workspace):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def writing_time_s(views: str, workspace: Path) -> float:
    process = start_kdtool(*CACHE, views, "-w", workspace)
    until_it_writes(process, workspace)
    start_s = time.monotonic()
    while process.poll() is None and writes(process, workspace):
        time.sleep(0.001)
    elapsed_s = time.monotonic() - start_s
    assert process.communicate() and process.returncode == 0
    return elapsed_s


def left_behind(workspace: Path) -> str:
    """What a kill hit, in words."""
    joining = any(left.match(".cache.h5.[0-9]*.tmp") for left in temporary_in(workspace))
    views = views_recorded(cache_in(workspace))
    return f"{views} views, {parts_in(workspace)} parts{', a file half written' if joining else ''}"


@pytest.mark.long
def test_law_4_sixty_kills_at_random_moments_of_a_growing_cache_are_recovered_from(
    digits: Path, tmp_path: Path, alone: Alone
):
    """Kills come on top of kills: a killed step goes on where it was, until its cache is there."""
    workspace = with_data(digits, tmp_path / "killed")
    writing_s = [writing_time_s(views, workspace) for views in STEPS]
    shutil.rmtree(workspace / "teachers")
    rng, step, saved, hit = np.random.default_rng(0), 0, 0, Counter[str]()
    while hit.total() < KILLS:
        process = start_kdtool(*CACHE, STEPS[step], "-w", workspace)
        until_it_writes(process, workspace)
        try:
            process.communicate(timeout=float(rng.uniform(0, writing_s[step])))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode != 0:
            assert process.returncode == -signal.SIGKILL
            hit[left_behind(workspace)] += 1
            saved += recovered(workspace, step, alone, tmp_path / "copy")
        if views_recorded(cache_in(workspace)) == VIEWS[step]:
            step = (step + 1) % len(STEPS)
            if step == 0:
                shutil.rmtree(workspace / "teachers")
    assert saved == KILLS, f"{saved} of {hit}"
    assert len(hit) >= 6, f"kills of too few kinds to prove anything: {hit}"


# what was begun with other settings -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfinished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose first cache was killed after two parts. Commands that are refused may run in it."""
    workspace = with_data(digits, tmp_path_factory.mktemp("unfinished"))
    killed_at(before_part(3), *CACHE, "3", "-w", workspace)
    assert parts_in(workspace) == 2
    return workspace


BEGUN = "unfinished work of another kind"
NEXT = "Repeat the command that began it, or pass --force to throw it away"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--encoding", "topk:3", "encoding was float16, now topk:3"),
        ("--precision", "bfloat16", "precision was float32, now bfloat16"),
    ],
)
def test_an_unfinished_cache_is_not_gone_on_with_under_another_setting(
    unfinished: Path, option: str, value: str, words: str
):
    refused(unfinished, (*CACHE, "3", option, value), 1, "cache.h5.parts", BEGUN, f"({words})", NEXT)


def test_an_unfinished_cache_is_not_gone_on_with_by_another_teacher_of_its_name(unfinished: Path, tmp_path: Path):
    def retrained(weights: dict[str, torch.Tensor]) -> None:
        next(iter(weights.values())).mul_(1.5)

    workspace = Path(shutil.copytree(unfinished, tmp_path / "copy"))
    other = a_teacher(workspace / "teachers" / "digits-resnet8" / "teacher.pt", retrained)
    was, now = (load_checkpoint(path).fingerprint for path in (a_teacher(tmp_path / "packaged.pt"), other))
    words = f"(teacher_fingerprint was {was}, now {now})"
    refused(workspace, (*CACHE, "3"), 1, BEGUN, words, NEXT)


def test_an_unfinished_cache_is_not_gone_on_with_on_other_views(unfinished: Path, tmp_path: Path):
    workspace = Path(shutil.copytree(unfinished, tmp_path / "copy"))
    edited(workspace / "data" / "digits" / "data.json", padding=2)
    line = refused(workspace, (*CACHE, "3"), 1, BEGUN, "(plan was {", "now {", NEXT)
    assert "'padding': 1" in line and "'padding': 2" in line and " was " not in line.partition(" was ")[2]


class Negatives:
    def __init__(self, frames: np.ndarray, labels_n: np.ndarray) -> None:
        self.frames, self.labels_n = frames, labels_n

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return 255 - self.frames[row], int(self.labels_n[row])


def test_an_unfinished_cache_is_not_gone_on_with_on_other_images(unfinished: Path, tmp_path: Path):
    workspace = Path(shutil.copytree(unfinished, tmp_path / "copy"))
    data = digits_of(workspace)
    train = data.split("train")
    negatives = Negatives(train.frames(), train.labels_n)
    write_beton(negatives, train.path, classes=10)
    now = open_beton(train.path).content_fingerprint()
    edited(data.folder / "data.json", train_fingerprint=now)
    words = f"(data_fingerprint was {data.record.train_fingerprint}, now {now})"
    refused(workspace, (*CACHE, "3"), 1, BEGUN, words, NEXT)


def test_another_limit_has_a_cache_of_its_own_and_the_unfinished_one_is_finished_later(
    unfinished: Path, tmp_path: Path, alone: Alone
):
    workspace = Path(shutil.copytree(unfinished, tmp_path / "copy"))
    before = {name: content for name, content in held(workspace).items() if ".parts" in name}
    made(*CACHE, "2", "--limit", "100", "-w", workspace)
    assert {name: content for name, content in held(workspace).items() if ".parts" in name} == before
    finished = made(*CACHE, "3", "-w", workspace)
    assert same(everything_in(Path(finished["path"])), alone["3"])


def test_force_throws_the_unfinished_away(unfinished: Path, tmp_path: Path):
    workspace = Path(shutil.copytree(unfinished, tmp_path / "copy"))
    forced = made(*CACHE, "3", "--encoding", "int8", "--force", "-w", workspace)
    assert forced["teacher_images"] == 3 * 1442 + 355 and not parts_in(workspace)
