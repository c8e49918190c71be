"""Several processes make what one makes: law 6 of the README, and laws 3, 4 and 5 with two of them. Started by
torchrun, with one thread each.

Every start takes seconds, so a fixture starts several commands at a time, and tests look at what they left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import kdtool, made, refused
from tests.own_things import Normed, NormedAtOnce
from tests.test_laws import everything_in, same
from tests.test_resume import (
    EVERY_STEP,
    before_part,
    cache_in,
    killed_at,
    parts_in,
    temporary_in,
    untimed,
    with_data,
)
from toolkit.cli import cli
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.interrupts import Stopped, stopped_by_sigterm
from toolkit.core.processes import ALONE, Processes, _all_arrived, joined, refuse_in_processes, share_of, told
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import check_single_rows, open_source, resident_bytes
from toolkit.training.run import _Meetings
from toolkit.training.showing import Batch

ROOT = Path(__file__).parent.parent
PATIENCE_S = 240
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# 433 rows in batches of 48: the tenth has one row, and of two processes one has none of it
BATCH, ROWS, STEPS = 48, 433, 30
STUDENT = (
    *("distill", "--subset", "third", "--arch", "tests.own_things:Unused", "--precision", "float64", "--alpha", 0.5),
    *("--epochs", 3, "--batch-size", BATCH, "--threads", 1),
)
AVERAGED = ("--ema", 0.8, "--label-smoothing", 0.1)
SLOW = ("--arch", "tests.own_things:Slow")
TEACHER = (
    *("train-teacher", "--dataset", "digits", "--limit", 200, "--arch", "tests.own_things:Plain", "--epochs", 2),
    *("--precision", "float64", "--snapshots", 1, "--batch-size", 33, "--threads", 1, "--name", "taught"),
)
CACHE = ("cache-teacher", "--dataset", "digits", "--precision", "float32", "--threads", 1, "--views", 4, "--json")


def started(*commands: dict[str, Any], torchrun: Sequence[str] = TORCHRUN) -> subprocess.Popen[str]:
    """The commands in two processes."""
    plan = [{**command, "words": [str(word) for word in command["words"]]} for command in commands]
    return subprocess.Popen(
        [*torchrun, "-m", "tests.in_processes", json.dumps(plan)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )


def torchrun(*commands: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """The same, once they have ended."""
    process = started(*commands)
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.terminate()  # ends its processes too
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def said(stderr: str) -> list[str]:
    """What kdtool said of errors."""
    return [line for line in stderr.splitlines() if line.startswith("kdtool: ")]


def weights(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    return content.get("weights", content)


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# who has which rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 48, 433])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_those_of_array_split(rows: int, count: int):
    parts = [np.arange(rows)[share_of(rows, rank, count)] for rank in range(count)]
    assert all(np.array_equal(*pair) for pair in zip(parts, np.array_split(np.arange(rows), count), strict=True))


@pytest.fixture(scope="module")
def bundle(digits: Path) -> Bundle:
    return open_bundle(digits / "subsets" / "third")


def source_of(kind: str, bundle: Bundle, processes: Processes, batch_size: int = BATCH) -> Any:
    compute = compute_on("cpu", "float32", 1, processes)
    targets = load_knowledge(bundle, views=3).targets
    return open_source(bundle.images(), bundle.indices_m, bundle.data, batch_size, 3, compute, targets, kind)


def columns(batch: Batch) -> list[torch.Tensor]:
    assert isinstance(batch.logits_bc, torch.Tensor)
    return [batch.images_bchw, batch.labels_b, batch.rows_b, batch.logits_bc]


@pytest.mark.parametrize(("kind", "count"), [("resident", 2), ("resident", 5), ("stream", 2), ("stream", 3)])
def test_law_6_the_processes_shares_are_the_batches_of_one(bundle: Bundle, kind: str, count: int):
    """Pixels, labels, rows and targets of each step, bit for bit; from any batch of an epoch on."""
    whole = source_of("resident", bundle, ALONE)
    parts = [source_of(kind, bundle, Processes(rank, count, rank)) for rank in range(count)]
    empty = 0
    for epoch, start in ((0, 0), (1, 7), (2, 9)):
        steps = zip(whole.batches(epoch, start), *(part.batches(epoch, start) for part in parts), strict=True)
        for batch, *shares in steps:
            for expected, *found in zip(columns(batch), *map(columns, shares), strict=True):
                assert torch.equal(torch.cat(found), expected)
            sizes = [len(share.labels_b) for share in shares]
            assert sizes == [len(part) for part in np.array_split(batch.labels_b, count)]
            empty += sizes.count(0)
    assert empty == 3 * (count - 1)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_of_fewer_rows_than_processes_are_refused(bundle: Bundle, batch_size: int):
    with pytest.raises(UsageError, match=f"--batch-size {batch_size}: 3 processes need a row each"):
        source_of("resident", bundle, Processes(1, 3, 1), batch_size)


def test_alone_nothing_is_asked_for_and_nobody_waited_for():
    tensor = torch.ones(3)
    assert ALONE.first and ALONE.sum_(tensor) is tensor and ALONE.agreed(2, 0) == (2, 0) and ALONE.total(5) == 5
    assert ALONE.first_only(lambda: 4) == ALONE.first_before(lambda: 4) == 4
    with joined() as processes:
        assert processes is ALONE


def test_what_torchrun_says_is_checked(monkeypatch: pytest.MonkeyPatch):
    for rank, count in (("2", "2"), ("x", "2"), ("-1", "4")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", count)
        with pytest.raises(UsageError, match="not what torchrun says"):
            told()


class Ended(BaseException):
    """By torchrun's SIGTERM, as the first process has ended."""


@pytest.fixture()
def second(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """This process is the second of two, and no SIGTERM is heard; the handlers that were asked for."""
    handlers: list[Any] = []
    monkeypatch.setattr("signal.signal", lambda number, handler: handlers.append(handler))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    return handlers


def test_what_goes_wrong_before_they_met_is_said_by_the_first_process(
    second: list[Any], monkeypatch: pytest.MonkeyPatch
):
    def end(seconds: float) -> None:
        assert second[-1] is signal.SIG_DFL
        raise Ended

    with monkeypatch.context() as patched, pytest.raises(Ended):
        patched.setattr("time.sleep", end)
        kdtool("inspect", "nothing")
    monkeypatch.setenv("RANK", "0")
    result = kdtool("inspect", "nothing")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "kdtool: inspect runs in one process" in result.stderr


def test_or_by_another_one_with_its_number_after_waiting_for_the_first(
    second: list[Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("toolkit.core.last_words._PATIENCE_S", 0.0)
    result = kdtool("inspect", "nothing")
    assert result.exit_code == 2 and "kdtool: process 1 of 2: inspect runs in one process" in result.stderr


def test_of_several_processes_the_first_one_alone_prints_help(second: list[Any], monkeypatch: pytest.MonkeyPatch):
    assert (kdtool("--help").exit_code, kdtool("--help").output) == (0, "")
    monkeypatch.setenv("RANK", "0")
    assert kdtool("--help").stdout.startswith("Usage: kdtool ")


def test_started_as_a_module_it_is_kdtool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["toolkit/__main__.py", "distill", "--help"])
    with pytest.raises(SystemExit):
        cli()
    assert capsys.readouterr().out.startswith("Usage: kdtool distill ")


class Store(dict[str, int]):
    """As torch's, of this process alone."""

    def add(self, name: str, more: int) -> int:
        self[name] = self.get(name, 0) + more
        return self[name]


def test_a_process_on_its_way_is_waited_for_as_long_as_nobody_says_stop(monkeypatch: pytest.MonkeyPatch):
    _all_arrived(Store({"kdtool/arrived": 1}), 2)
    soon = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM])
    soon.start()
    with stopped_by_sigterm(), pytest.raises(Stopped):
        _all_arrived(Store(), 2)
    soon.join()
    monkeypatch.setattr("toolkit.core.processes._ARRIVED_WITHIN_S", 0.05)
    with pytest.raises(FailureError, match=r"only 1 of 2 processes arrived within 0\.05 s"):
        _all_arrived(Store(), 2)


def test_who_is_stopped_does_not_wait_for_the_others_to_hear_why(monkeypatch: pytest.MonkeyPatch):
    """They are stopped too, and in their last words take part in nothing."""
    told: list[Any] = []
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda answer, **how: told.extend(answer))
    for error, heard in ((Stopped("", 15), []), (KeyboardInterrupt(), []), (UsageError(""), [{"failed": 2}])):
        with pytest.raises(type(error)):
            Processes(0, 2, 0).first_only(lambda: (_ for _ in ()).throw(error))  # noqa: B023
        assert told == heard


@pytest.mark.parametrize(
    ("seconds", "meetings"),
    [
        ([0.001] * 50, [1, 21, 41]),
        ([0.3] * 20, [1, 7, 13, 19]),
        ([1.0] * 6, [1, 3, 5]),
        ([9.0] * 3, [1, 2, 3]),
        ([30.0, *([0.01] * 40)], [1, 2, 22]),
    ],
)
def test_several_processes_meet_about_every_two_seconds_but_at_least_each_twenty_steps(
    seconds: list[float], meetings: list[int], monkeypatch: pytest.MonkeyPatch
):
    """By what the steps before took; the longest of any process, which is this one."""
    now_s, met = 0.0, []
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    several = SimpleNamespace(count=2, agreed=lambda *numbers: numbers)
    trainer: Any = SimpleNamespace(step=0, processes=several)
    found = _Meetings(trainer)
    for step_s in seconds:
        now_s, trainer.step = now_s + step_s, trainer.step + 1
        if found.due:
            met.append(trainer.step)
            assert found.agreed(15, 0) == (15, 0)
    assert met == meetings


def test_by_the_slowest_of_them():
    trainer: Any = SimpleNamespace(step=0, processes=SimpleNamespace(count=2, agreed=lambda *numbers: (-2, 0)))
    found = _Meetings(trainer)
    trainer.step = 7
    assert found.agreed(0) == (0,)
    dues = []
    for trainer.step in (8, 9):
        dues.append(found.due)
    assert dues == [False, True]


def test_processes_of_one_machine_share_its_memory_when_auto_chooses_a_source(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
):
    targets = load_knowledge(bundle, views=3).targets
    needed = resident_bytes(ROWS, bundle.data, targets)
    monkeypatch.setattr("toolkit.pipeline.sources.free_bytes", lambda device: 5 * needed)
    for here, name in ((1, "resident"), (2, "resident"), (3, "stream")):
        assert source_of("auto", bundle, Processes(0, 3, 0, here)).name == name


NORMED = ("--arch", "tests.own_things:NormedAtOnce", "--epochs", 1, "--threads", 1)


def test_a_batch_of_one_row_is_refused_where_batch_normalisation_can_not_take_it(digits: Path):
    """433 are 9 × 48 + 1; of those that a search trains on, 346, 3 × 115 + 1."""
    words = ("distill", "-w", digits, "--subset", "third", *NORMED, "--batch-size")
    fix = "of 433 rows it makes a batch of one row, which this network's batch normalisation can't take. "
    refused(kdtool(*words, 48), 2, "--batch-size 48: " + fix + "Use --batch-size 49")
    searching = kdtool(*words, 115, "--alpha", "search", "--name", "searching")
    assert searching.exit_code == 2 and "--batch-size 115: of 346 rows it makes a batch of one row" in searching.stderr
    taught = ("train-teacher", "-w", digits, "--dataset", "digits", *NORMED, "--batch-size", 131)  # 1442 = 11 × 131 + 1
    refused(kdtool(*taught), 2, "--batch-size 131: of 1,442 rows")


@pytest.mark.parametrize(
    ("batch_size", "count", "fits"), [(48, 2, False), (86, 2, False), (86, 1, True), (49, 2, True)]
)
def test_and_a_share_of_one_row_too(bundle: Bundle, batch_size: int, count: int, fits: bool):
    """433 are 5 × 86 + 3: two rows and one."""
    with nullcontext() if fits else pytest.raises(UsageError, match=f"--batch-size {batch_size}: .*Use --batch-size"):
        check_single_rows(NormedAtOnce(10), ROWS, batch_size, bundle.data, count)
    check_single_rows(Normed(10), ROWS, batch_size, bundle.data, count)  # many numbers of each row


@pytest.mark.parametrize(
    ("device", "local_rank", "words"),
    [("cuda", 1, "torch finds 1 GPUs here, too few for a process each"), ("cuda:0", 0, "can't share a GPU")],
)
def test_every_process_has_a_gpu_of_its_own_or_is_told(
    monkeypatch: pytest.MonkeyPatch, device: str, local_rank: int, words: str
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=words):
        compute_on(device, "float32", 1, Processes(local_rank, 2, local_rank))


def test_what_one_process_alone_can_do_is_refused_by_name():
    with pytest.raises(UsageError, match=r"--alpha search works in one process, not in 2\. Search first"):
        refuse_in_processes(2, "--alpha search", "Search first")
    refuse_in_processes(1, "--alpha search", "Search first")


# two processes, left alone --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A workspace where two processes made a student, a cache and a recorded teacher, and what they said."""
    workspace = Path(shutil.copytree(digits, tmp_path_factory.mktemp("two") / "work"))
    shutil.rmtree(workspace / "teachers")
    more = ("-w", workspace)
    return workspace, torchrun(
        {"words": [*STUDENT, *more, "--name", "student", "--json"]},
        {"words": [*STUDENT, *AVERAGED, *more, "--name", "averaged", "--json"]},
        {"words": [*CACHE, *more]},
        {"words": [*TEACHER, *more]},
    )


@pytest.fixture(scope="module")
def one(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by one process."""
    workspace = Path(shutil.copytree(digits, tmp_path_factory.mktemp("one") / "work"))
    shutil.rmtree(workspace / "teachers")
    averaged = [*STUDENT, *AVERAGED, "--name", "averaged"]
    for words in ([*STUDENT, "--name", "student"], averaged, CACHE[:-1], TEACHER):
        made(*words, "-w", workspace)
    return workspace


def test_only_the_first_process_speaks_and_all_end_in_peace(two: tuple[Path, subprocess.CompletedProcess[str]]):
    workspace, ended = two
    assert ended.returncode == 0, ended.stderr
    student, _, cache, teacher = ended.stdout.splitlines()
    assert json.loads(student)["teacher_forward_passes"] == 0
    assert json.loads(cache)["teacher_images"] == 4 * 1442 + 355
    assert teacher.startswith(str(workspace / "teachers" / "taught" / "teacher.pt"))
    shown = [line for line in ended.stderr.splitlines() if "OMP_NUM_THREADS" not in line and not set(line) <= {"*"}]
    assert [line.split(":")[0] for line in shown if line.startswith("epoch")] == [
        *("epoch 1", "epoch 2", "epoch 3", "epoch 1", "epoch 2", "epoch 3", "epoch 1", "epoch 2")
    ]
    assert "Warning" not in ended.stderr and "Traceback" not in ended.stderr and not said(ended.stderr)
    assert not temporary_in(workspace)


@pytest.mark.parametrize("name", ["student", "averaged"])
def test_law_6_two_processes_make_the_weights_of_one(
    two: tuple[Path, subprocess.CompletedProcess[str]], one: Path, name: str
):
    """A network without batch normalisation, with a layer that is not used, to rounding in float64; and both hold the
    same, bit for bit. Or an average of its weights."""
    workspace, _ = two
    ours, theirs = (folder / "runs" / name for folder in (workspace, one))
    assert farthest(weights(ours / "student.pt"), weights(theirs / "student.pt")) < 1e-9
    assert farthest(weights(ours / "rank-0.pt"), weights(ours / "rank-1.pt")) == 0
    for found, expected in zip(untimed(ours / "metrics.jsonl"), untimed(theirs / "metrics.jsonl"), strict=True):
        assert found == pytest.approx(expected, rel=1e-9)
    records = [json.loads((folder / "run.json").read_text()) for folder in (ours, theirs)]
    assert records[0]["settings"] == {**records[1]["settings"], "processes": 2}
    assert records[0]["student_images"] == records[1]["student_images"] == 3 * ROWS
    assert records[0]["result"]["top1"] == records[1]["result"]["top1"]


def test_a_training_is_of_a_number_of_processes(two: tuple[Path, subprocess.CompletedProcess[str]]):
    result = kdtool(*STUDENT, "-w", two[0], "--name", "student")
    assert result.exit_code == 1 and "a finished run with other settings (processes 2 → None)" in result.stderr


def test_law_5_a_cache_by_two_processes_is_that_of_one(two: tuple[Path, subprocess.CompletedProcess[str]], one: Path):
    workspace, _ = two
    assert same(everything_in(cache_in(workspace)), everything_in(cache_in(one)))
    assert not cache_in(workspace).with_name("cache.h5.parts").exists()


def test_what_two_processes_record_of_a_training_is_what_one_records(
    two: tuple[Path, subprocess.CompletedProcess[str]], one: Path
):
    workspace, _ = two
    found, expected = (everything_in(folder / "teachers" / "taught" / "dynamics.h5") for folder in (workspace, one))
    assert found.keys() == expected.keys() and any("snapshots" in name for name in found)
    for name in (name for name in found if not name.startswith("checksums/")):
        if found[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
        else:
            assert np.array_equal(found[name], expected[name]), name
    assert farthest(*(weights(folder / "teachers" / "taught" / "teacher.pt") for folder in (workspace, one))) < 1e-9


# two processes, disturbed ---------------------------------------------------------------------------------------------


class Disturbed:
    """Two workspaces, and what two processes said in the first as they were disturbed, one start after the other.

    In the second workspace the second process is killed while it caches, after a part of its own.
    """

    def __init__(self, digits: Path, folder: Path) -> None:
        self.workspace, self.caching = Path(shutil.copytree(digits, folder / "work")), folder / "caching"
        shutil.rmtree(self.workspace / "teachers")
        with_data(digits, self.caching)
        student = [*STUDENT, "-w", self.workspace, "--checkpoint-minutes", EVERY_STEP, "--name"]
        self.first = torchrun(
            {"words": [*student, "wrong", "--loss", "dist"], "goes on": True},
            {"words": [*student, "slow", *SLOW], "disturbed": "terminate", "at": 2, "honest": True, "goes on": True},
            {"words": [*student, "told"], "disturbed": "terminate", "at": 12, "goes on": True},
            {"words": [*student, "told"]},
            {"words": [*student, "killed", *AVERAGED], "disturbed": "kill", "at": 15},
        )
        self.left = torch.load(self.workspace / "runs" / "killed" / "checkpoint.pt", weights_only=True)["state"]
        self.temporary = temporary_in(self.workspace)
        killed_at(before_part(3), *CACHE, "-w", self.workspace)
        self.parts = parts_in(self.workspace)
        self.second = torchrun(
            {"words": [*student, "killed", *AVERAGED]},
            {"words": [*CACHE, "-w", self.workspace]},
            {"words": [*CACHE, "-w", self.caching], "disturbed": "kill at a part", "at": 2},
        )


@pytest.fixture(scope="module")
def disturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    return Disturbed(digits, tmp_path_factory.mktemp("disturbed"))


def test_what_all_processes_have_to_say_is_said_once(disturbed: Disturbed):
    wrong, slow, stopped, died = said(disturbed.first.stderr)
    assert wrong.startswith("kdtool: --loss dist ") and "works in one process, not in 2" in wrong
    # the second process was told in its twelfth step; both look after the tenth, an epoch's last, and every third
    assert stopped == "kdtool: stopped at step 13 of 30; saved. Run the same command again to go on"
    # steps of 0.8 s: long before each 20 of them, or the epoch's end, torchrun would have killed both
    assert slow in (f"kdtool: stopped at step {at} of 30; saved. Run the same command again to go on" for at in (2, 3))
    assert died.startswith("kdtool: another of the 2 processes ended (see above") and "run the same command" in died
    assert disturbed.first.returncode != 0 and len(disturbed.first.stdout.splitlines()) == 1
    assert not disturbed.temporary and not (disturbed.workspace / "runs" / "wrong" / "student.pt").exists()


@pytest.mark.parametrize(("name", "alone"), [("told", "student"), ("killed", "averaged")])
def test_law_3_two_processes_disturbed_end_in_the_weights_of_two_left_alone(
    disturbed: Disturbed, two: tuple[Path, subprocess.CompletedProcess[str]], name: str, alone: str
):
    """Told to stop within an epoch, or killed there: bit for bit, in both."""
    assert disturbed.left["step"] == 13 and len(disturbed.left["under"]["losses"]) == 3
    ours, theirs = disturbed.workspace / "runs" / name, two[0] / "runs" / alone
    for file in ("student.pt", "rank-0.pt", "rank-1.pt"):
        assert farthest(weights(ours / file), weights(theirs / file)) == 0
    assert untimed(ours / "metrics.jsonl") == untimed(theirs / "metrics.jsonl")


def test_law_4_a_cache_goes_on_with_another_number_of_processes(disturbed: Disturbed, one: Path):
    """Killed in one and gone on with by two; and the other way round."""
    alone = everything_in(cache_in(one))
    _, cache = disturbed.second.stdout.splitlines()
    assert disturbed.parts == 2 and json.loads(cache)["teacher_images"] == 2 * 1442 + 355
    assert same(everything_in(cache_in(disturbed.workspace)), alone)
    (ended,) = said(disturbed.second.stderr)
    assert "another of the 2 processes ended" in ended or "stopped by torchrun" in ended
    saved = parts_in(disturbed.caching)
    assert 1 <= saved <= 4 and not cache_in(disturbed.caching).exists()
    resumed = made(*CACHE[:-1], "-w", disturbed.caching)
    assert same(everything_in(cache_in(disturbed.caching)), alone)
    assert resumed["teacher_images"] < 4 * 1442 + 355


@pytest.mark.long
def test_two_machines_that_share_a_folder_make_what_one_makes(digits: Path, one: Path, tmp_path: Path):
    """As docs/imagenet.md starts them; here both are this one. Each has one process, the first of its machine."""
    workspace = Path(shutil.copytree(digits, tmp_path / "work"))
    shutil.rmtree(workspace / "teachers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = (
        *(*TORCHRUN[:3], "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "kdtool", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"),
    )
    commands = (
        {"words": [*CACHE, "-w", workspace]},
        {"words": [*STUDENT, "-w", workspace, "--source", "stream", "--name", "student", "--json"]},
    )
    machines = [started(*commands, torchrun=node) for _ in range(2)]
    try:
        said_by = [machine.communicate(timeout=PATIENCE_S) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()
            machine.wait()
    assert [machine.returncode for machine in machines] == [0, 0], said_by
    out, silence = sorted((out for out, _ in said_by), key=len, reverse=True)
    assert len(out.splitlines()) == 2 and not silence
    assert json.loads(out.splitlines()[0])["teacher_images"] == 4 * 1442 + 355
    assert same(everything_in(cache_in(workspace)), everything_in(cache_in(one)))
    assert not cache_in(workspace).with_name("cache.h5.parts").exists() and not temporary_in(workspace)
    ours, theirs = (folder / "runs" / "student" / "student.pt" for folder in (workspace, one))
    assert farthest(weights(ours), weights(theirs)) < 1e-9


@pytest.mark.long
def test_an_error_of_one_process_alone_is_said_with_its_number(digits: Path, tmp_path: Path):
    workspace = Path(shutil.copytree(digits, tmp_path / "work"))
    ended = torchrun({"words": [*STUDENT, "-w", workspace], "disturbed": "fail", "at": 4})
    alone, other = said(ended.stderr)
    assert alone.startswith("kdtool: process 1 of 2: an error of kdtool itself: RuntimeError: a thing of this process")
    assert other.startswith("kdtool: another of the 2 processes ended (see above")


@pytest.mark.long
@pytest.mark.parametrize("disturbed", ["kill on the way", "evaluation"])
def test_who_ends_where_the_others_can_not_notice_ends_them_soon_with_one_line(
    digits: Path, tmp_path: Path, disturbed: str
):
    """torchrun tells the others; deaf to it they would be killed after 30 s."""
    workspace, start_s = Path(shutil.copytree(digits, tmp_path / "work")), time.monotonic()
    ended = torchrun({"words": [*STUDENT, "-w", workspace], "disturbed": disturbed, "at": 1})
    (line,) = said(ended.stderr)
    assert line.startswith("kdtool: stopped by torchrun: it was told to, or another process ended (its summary says")
    assert ended.returncode != 0 and time.monotonic() - start_s < 25


@pytest.mark.long
@pytest.mark.parametrize("signal_to", ["TERM", "INT"])
def test_torchrun_told_to_stop_ends_all_after_they_saved(digits: Path, tmp_path: Path, signal_to: str):
    workspace = Path(shutil.copytree(digits, tmp_path / "work"))
    words = [*STUDENT, "-w", workspace, "--epochs", 4000, "--name", "told"]
    process = started({"words": words})
    metrics = workspace / "runs" / "told" / "metrics.jsonl"
    deadline_s = time.monotonic() + PATIENCE_S
    while not metrics.exists():
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(getattr(signal, f"SIG{signal_to}"))
    _, err = process.communicate(timeout=PATIENCE_S)
    (line,) = said(err)
    assert "; saved. Run the same command again to go on" in line and not temporary_in(workspace)
