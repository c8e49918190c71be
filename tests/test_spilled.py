"""Dynamics that lie on disk while they are recorded: a training killed at any moment, of one process or two, goes on to
what one left alone records, bit for bit. Kills are SIGKILLs, on top of each other."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import made
from tests.test_laws import everything_in
from tests.test_processes import PATIENCE_S, TORCHRUN, farthest, said, started, weights
from tests.test_resume import EVERY_STEP, untimed
from toolkit.core.processes import Processes
from toolkit.formats.dynamics import SERIES
from toolkit.formats.parts import Parts
from toolkit.teacher.before import Held, Spilled
from toolkit.teacher.dynamics import Recorder
from toolkit.training.showing import Batch

EPOCHS, STEPS_AN_EPOCH = 6, 7
TRAIN = (
    *("train-teacher", "--dataset", "digits", "--limit", 200, "--arch", "tests.own_things:Plain", "--epochs", EPOCHS),
    *("--batch-size", 33, "--threads", 1),
)
AT_EPOCHS = ("--checkpoint-minutes", 0)
WITHIN = ("--checkpoint-minutes", EVERY_STEP)
Kill = tuple[str, int, int, tuple[Any, ...]]  # before which call, of which number, of which process; how it is run

# An epoch's file is opened after those of the checkpoint, and a table of each process's (of two, two) reserved before
KILLS: dict[int, list[Kill]] = {
    1: [
        ("kill before a checkpoint", 2, 0, AT_EPOCHS),
        ("kill before it is on the disk", 3, 0, WITHIN),
        ("kill before a new epoch's file", 3, 0, WITHIN),
        ("kill before its room is reserved", 2, 0, AT_EPOCHS),
    ],
    2: [
        ("kill before a checkpoint", 2, 0, AT_EPOCHS),
        ("kill while gathering", 40, 1, WITHIN),
        ("kill while gathering", 3, 0, WITHIN),
        ("kill before it is on the disk", 2, 1, WITHIN),
        ("kill before a new epoch's file", 3, 0, WITHIN),
        ("kill before its room is reserved", 3, 1, AT_EPOCHS),
    ],
}


def run(processes: int, *commands: dict[str, Any]) -> tuple[int, str]:
    """(exit code, stderr)."""
    process = started(*commands, torchrun=(sys.executable,) if processes == 1 else TORCHRUN)
    try:
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.terminate()
        process.wait()
    return process.returncode, err


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("spilled")
    made("pack", "--dataset", "digits", "--limit", 200, "-w", workspace)
    return workspace


def same_teachers(one: Path, other: Path) -> bool:
    found, expected = (everything_in(folder / "dynamics.h5") for folder in (one, other))
    return (
        farthest(weights(one / "teacher.pt"), weights(other / "teacher.pt")) == 0
        and untimed(one / "metrics.jsonl") == untimed(other / "metrics.jsonl")
        and found.keys() == expected.keys()
        and all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    )


def killed_again_and_again(workspace: Path, processes: int, kills: list[Kill], name: str) -> None:
    words = [*TRAIN, "-w", workspace, "--name"]
    for moment, at, rank, how in kills:
        disturbed = {"disturbed": moment, "at": at, "rank": rank, "spilled": True}
        code, err = run(processes, {"words": [*words, name, *how], **disturbed})
        assert code == -signal.SIGKILL if processes == 1 else code != 0, err
        assert not any("dynamics" in line for line in said(err)), err
        assert not (workspace / "teachers" / name / "teacher.pt").exists(), moment
    alone = {"words": [*words, f"{name}-alone"], "spilled": True}
    code, err = run(processes, {"words": [*words, name], "spilled": True}, alone)
    assert code == 0, err
    teachers = workspace / "teachers"
    assert same_teachers(teachers / name, teachers / f"{name}-alone")
    assert not list(workspace.rglob("*.log-probabilities")) and not list(workspace.rglob("*-scratch"))


def test_a_training_killed_as_it_saves_an_epoch_finds_the_one_before_on_disk(workspace: Path):
    """Two processes: the checkpoint that is there is of the epoch before, and so must their files be."""
    killed_again_and_again(workspace, 2, KILLS[2][:1], "saving")


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_law_3_dynamics_on_disk_of_a_training_killed_at_every_kind_of_moment_are_those_of_one_left_alone(
    workspace: Path, processes: int
):
    killed_again_and_again(workspace, processes, KILLS[processes], f"killed-{processes}")


@pytest.mark.long
def test_two_processes_record_on_disk_what_they_record_in_memory(workspace: Path):
    words = [*TRAIN, "-w", workspace, "--name"]
    code, err = run(2, {"words": [*words, "disk"], "spilled": True}, {"words": [*words, "memory"]})
    assert code == 0, err
    assert same_teachers(workspace / "teachers" / "disk", workspace / "teachers" / "memory")


class Two(Processes):
    """Two processes, of which the other one has seen nothing."""

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def barrier(self) -> None:
        pass

    def first_only(self, function: Any) -> Any:
        return function()


ROWS, CLASSES, BATCH = 30_000, 20, 500


def recorder(folder: Path, rows: int = ROWS, processes: Processes = Two(0, 2, 0)) -> Recorder:  # noqa: B008
    model, device = torch.nn.Linear(2, CLASSES), torch.device("cpu")
    parts = Parts(folder / "parts", {})
    rows_n = torch.arange(rows).numpy()
    return Recorder(model, rows_n, CLASSES, device, parts, 0, [], lambda at: (at, at), processes=processes)


def batches(rows: int) -> Iterator[tuple[torch.Tensor, Batch]]:
    for rows_b in torch.arange(rows).split(BATCH):
        labels_b = rows_b % CLASSES
        logits_bc = torch.sin(rows_b[:, None] * torch.arange(1.0, CLASSES + 1))
        yield logits_bc, Batch(torch.empty(0), labels_b, rows_b, None)


def epoch_of(recorded: Recorder, rows: int = ROWS) -> None:
    for logits_bc, batch in batches(rows):
        recorded.observe(logits_bc, batch)


class Largest(TorchDispatchMode):
    """The most memory that one operation took, of those that took any."""

    size_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
            self.size_bytes = max(self.size_bytes, out.untyped_storage().nbytes())
        return out


def test_what_is_recorded_on_disk_is_put_together_a_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing with numbers for every row is held, but a bit."""
    monkeypatch.setattr("toolkit.teacher.dynamics.HELD_BYTES", 4 * ROWS * CLASSES)  # and the columns are beyond
    recorded = recorder(tmp_path)
    assert isinstance(recorded._log_p, Spilled)
    epoch_of(recorded)
    with Largest() as largest:
        recorded.state()
        recorded.end_epoch(1)
    assert largest.size_bytes <= 4 * 8192 * CLASSES < 4 * ROWS * len(SERIES)


def test_what_is_held_is_bounded_with_all_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.teacher.dynamics.HELD_BYTES", 4 * ROWS * (CLASSES + len(SERIES)))
    assert isinstance(recorder(tmp_path)._log_p, Held) and isinstance(recorder(tmp_path, ROWS + 1)._log_p, Spilled)


def test_a_checkpoint_names_no_file_that_is_not_on_the_disk_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The epoch that is done, or the one under way, and its name in the folder; then all wait for each other."""
    monkeypatch.setattr("toolkit.teacher.dynamics.HELD_BYTES", 0)
    recorded, done = recorder(tmp_path), list[str]()
    monkeypatch.setattr("toolkit.teacher.before.on_disk", lambda path: done.append(path.name))
    monkeypatch.setattr(Two, "barrier", lambda self: done.append("all"))
    name = "seed-0-process-0-epoch-{:05d}.log-probabilities"
    for epoch in (1, 2):
        epoch_of(recorded)
        recorded.state()
        recorded.end_epoch(epoch)
        recorded.state()
    assert done == [word for epoch in (1, 1, 2, 2) for word in (name.format(epoch), "parts", "all")]
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.log-*")) == [name.format(1), name.format(2)]
