"""Told to stop, training saves and a command ends with one line: SIGINT and SIGTERM."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import kdtool, made
from tests.test_laws import everything_in
from tests.test_resume import (
    CACHE,
    EVERY_STEP,
    STUDENT,
    TRAINING,
    Moment,
    before_part,
    cache_in,
    parts_in,
    same_runs,
    stopped_at,
    temporary_in,
    with_data,
)
from toolkit.core.interrupts import Stopped, stop_asked, stopped_by_sigterm
from toolkit.core.processes import Processes
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.student import distill
from toolkit.training.loop import Trainer

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Shells let their background jobs ignore SIGINT, and such a job these tests may be."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture()
def workspace(digits: Path, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(digits, tmp_path / "work")))


@contextmanager
def told_at(step: int, monkeypatch: pytest.MonkeyPatch, *numbers: signal.Signals) -> Iterator[None]:
    """A training inside is sent the signals while it makes this step, from 1."""
    act = Trainer.take_step

    def interrupted(trainer: Trainer, batch: Any) -> Any:
        if trainer.step == step - 1:
            for number in numbers:
                signal.raise_signal(number)
        return act(trainer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "take_step", interrupted)
        yield


def step_in(workspace: Workspace, name: str) -> int:
    return torch.load(workspace.run(name) / "checkpoint.pt", weights_only=True)["state"]["step"]


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("step", [1, 7, 10, 15])
def test_a_training_told_to_stop_saves_and_goes_on_to_the_same_weights(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int
):
    """Within an epoch, at its end and at the run's."""
    asked = (*TRAINING, "-w", workspace.root, "--name")
    with told_at(step, monkeypatch, number):
        result = kdtool(*asked, "told")
    assert result.exit_code == 128 + number and result.stdout == ""
    line = f"kdtool: stopped at step {step} of 15; saved. Run the same command again to go on"
    assert result.stderr.splitlines()[-1] == line and "Traceback" not in result.stderr
    assert step_in(workspace, "told") == step and not temporary_in(workspace.root)
    assert f"runs/told: goes on after step {step} of 15" in kdtool(*asked, "told").stderr
    assert "runs/told: already there; --force trains it again" in kdtool(*asked, "told").stderr
    told, whole = (Path(made(*asked, name)["path"]) for name in ("told", "whole"))
    assert same_runs(told, whole)


def test_a_stop_after_the_last_look_is_not_forgotten(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    """All is saved; what would follow is the evaluation."""
    agree, calls = Processes.agreed, 0

    def agreed(processes: Processes, *numbers: int) -> tuple[int, ...]:
        nonlocal calls
        answer, calls = agree(processes, *numbers), calls + 1
        if calls == 15:
            signal.raise_signal(signal.SIGTERM)
        return answer

    monkeypatch.setattr(Processes, "agreed", agreed)
    with pytest.raises(Stopped, match="stopped at step 15 of 15; saved"):
        distill(workspace, name="told", **STUDENT)
    assert step_in(workspace, "told") == 15


def test_who_calls_the_pipeline_from_python_is_told_by_an_exception(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    handlers = [signal.getsignal(number) for number in BOTH]
    with (
        told_at(3, monkeypatch, signal.SIGTERM),
        pytest.raises(Stopped, match="stopped at step 3 of 15; saved") as told,
    ):
        distill(workspace, name="told", **STUDENT)
    assert told.value.exit_code == 143
    assert [signal.getsignal(number) for number in BOTH] == handlers


def test_a_second_signal_ends_at_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    asked = (*TRAINING, "-w", workspace.root, "--checkpoint-minutes", EVERY_STEP, "--name")
    with told_at(8, monkeypatch, signal.SIGINT, signal.SIGTERM):
        result = kdtool(*asked, "told")
    assert result.exit_code == 143 and result.stderr.splitlines()[-1].startswith(
        "kdtool: stopped at once. Run it again"
    )
    assert step_in(workspace, "told") == 7 and not temporary_in(workspace.root)
    told, whole = (Path(made(*asked, name)["path"]) for name in ("told", "whole"))
    assert same_runs(told, whole)


@pytest.mark.parametrize("number", BOTH)
def test_a_training_in_a_process_of_its_own_ends_with_the_shells_exit_code(
    workspace: Workspace, number: signal.Signals
):
    words = [*TRAINING, "-w", workspace.root, "--name", "told"]
    with stopped_at(Moment("toolkit.training.loop", "Trainer.take_step", 7), *words) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    assert err.splitlines()[-1] == "kdtool: stopped at step 7 of 15; saved. Run the same command again to go on"


def test_a_caching_pass_told_to_stop_keeps_its_finished_parts(digits: Path, tmp_path: Path):
    workspace = with_data(digits, tmp_path)
    words = [*CACHE, "3", "-w", workspace]
    for moment, parts in ((before_part(3), 2), (Moment("toolkit.core.files", "DeferringFile.write", 5), 4)):
        with stopped_at(moment, *words) as process:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, parts_in(workspace)) == (143, "", parts)
        assert err.splitlines()[-1].startswith("kdtool: stopped. Run it again: cache-teacher and training go on from")
        assert "Traceback" not in err and not temporary_in(workspace) and not cache_in(workspace).exists()
    resumed = everything_in(Path(made(*words)["path"]))
    alone = everything_in(Path(made(*words, "--force")["path"]))
    assert resumed.keys() == alone.keys() and all(resumed[name].tobytes() == alone[name].tobytes() for name in alone)


# the handlers ---------------------------------------------------------------------------------------------------------


def test_handlers_are_there_for_the_block_alone_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_asked() as stop:
            assert signal.getsignal(signal.SIGTERM) != before
            signal.raise_signal(signal.SIGINT)
            assert stop.number == 0
            signal.raise_signal(signal.SIGTERM)
            assert stop.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_than_the_main_one_is_never_asked_to_stop():
    found = []

    def listen() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with stop_asked() as stop:
            found.append((stop.number, signal.getsignal(signal.SIGTERM) == before))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [(0, True)]


def test_a_forked_child_dies_of_sigterm_as_if_nothing_listened():
    """FFCV's writing processes are ended so."""
    with stopped_by_sigterm():
        child = os.fork()
        if not child:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_under_torchrun_sigterm_may_tell_of_another_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with stopped_by_sigterm(), pytest.raises(Stopped, match=r"stopped by torchrun: it was told to, or another process"):
        signal.raise_signal(signal.SIGTERM)


def test_sigterm_is_an_error_like_any_other():
    with stopped_by_sigterm(), pytest.raises(Stopped) as told:
        signal.raise_signal(signal.SIGTERM)
    assert told.value.exit_code == 143
