"""Killed at any moment, a command run again ends as if nothing had happened: laws 3 and 4 of the README. Two at once:
one writes, and who reads sees the old or the new cache.
"""

from __future__ import annotations

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
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import kdtool, made, start_kdtool
from tests.test_bad_input import a_teacher, edited, fails, held, refused
from tests.test_laws import digits_of, everything_in, same
from toolkit.formats.beton import open_beton
from toolkit.formats.beton_writer import write_beton
from toolkit.formats.checkpoint import load_checkpoint

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


@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_law_3_a_killed_run_resumes_to_the_same_weights(digits: Path, tmp_path: Path, alpha: float):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    words = ["distill", "-w", tmp_path, "--subset", "third", "--epochs", "30", "--alpha", alpha, "--threads", "1"]
    whole = made(*words, "--name", "whole")
    for epochs in (2, 17):
        metrics = tmp_path / "runs" / "killed" / "metrics.jsonl"
        killed_when(lambda: lines(metrics) >= epochs, *words, "--name", "killed")  # noqa: B023
        assert not (tmp_path / "runs" / "killed" / "run.json").exists()
    resumed = made(*words, "--name", "killed")
    assert same_students(resumed, whole)
    assert (resumed["top1"], resumed["agreement"]) == (whole["top1"], whole["agreement"])


@pytest.mark.long
def test_law_3_twenty_kills_at_random_moments_leave_the_same_weights(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    train = ["distill", "-w", tmp_path, "--subset", "third", "--epochs", "60", "--threads", "1", "--name"]
    rng = np.random.default_rng(0)
    for _ in range(20):
        process = start_kdtool(*train, "killed")
        time.sleep(float(rng.uniform(1, 8)))
        process.kill()
        process.communicate()
    killed, whole = (made(*train, name) for name in ("killed", "whole"))
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

    other = a_teacher(tmp_path / "digits-resnet8.pt", retrained)
    was, now = (load_checkpoint(path).fingerprint for path in (a_teacher(tmp_path / "packaged.pt"), other))
    words = f"(teacher_fingerprint was {was}, now {now})"
    refused(unfinished, (*CACHE, "3", "--teacher", other), 1, BEGUN, words, NEXT)


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
