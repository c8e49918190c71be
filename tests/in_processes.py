"""What torchrun starts for test_processes.py: kdtool commands one after the other, of which some are disturbed.

    torchrun … -m tests.in_processes '[{"words": ["distill", …], "disturbed": "kill", "at": 7}, …]'

Of a library's teachers, `"addresses"` says where their weights are: {"torchvision:resnet18@IMAGENET1K_V1": "https://…"}.
They look every third step whether to stop or save, or, where a command is "honest", as they would by themselves. Where
it is "spilled", a training's dynamics lie on disk, gathered eight rows at a time. Every process leaves the weights that
it trained beside the run, as rank-0.pt and rank-1.pt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torchvision.models import get_model_weights

import toolkit.core.processes
import toolkit.pipeline.student
import toolkit.teacher.before
import toolkit.teacher.dynamics
import toolkit.training.run
from toolkit.cli import main
from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.parts import Parts
from toolkit.teacher.before import Spilled
from toolkit.training.loop import Trainer

RANK = int(os.environ.get("RANK", "0"))
STEPS_BETWEEN_AGREEMENTS = 3


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def fail() -> None:
    raise RuntimeError("a thing of this process alone")


# What happens just before a call: to the second process, or the one whose "rank" it is
DISTURBED: dict[str, tuple[Any, str, Callable[[], None]]] = {
    "kill": (Trainer, "take_step", kill),
    "terminate": (Trainer, "take_step", terminate),
    "fail": (Trainer, "take_step", fail),
    "kill at a part": (Parts, "save", kill),
    "kill on the way": (toolkit.core.processes, "_all_arrived", kill),
    "kill before a checkpoint": (toolkit.training.run, "save_torch", kill),
    "kill while gathering": (Spilled, "gather", kill),
    "kill before a new epoch's file": (Spilled, "_open", kill),
    "kill before its room is reserved": (os, "posix_fallocate", kill),
    "kill before it is on the disk": (Spilled, "state", kill),
}


def disturbed(name: str, at: int, rank: int) -> Callable[[], None]:
    """Lets it happen at the `at`-th call; returns how to undo it."""
    owner, method, happen = DISTURBED[name]
    act, calls = getattr(owner, method), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and rank == RANK:
            happen()
        return act(*arguments, **named)

    setattr(owner, method, counted)
    return lambda: setattr(owner, method, act)


def terminated_as_the_first_one_evaluates(predict: Callable[..., Any]) -> Callable[..., Any]:
    """By torchrun, which is told to end; the second one waits for the first meanwhile."""

    def slowly(*arguments: Any) -> Any:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(20)
        return predict(*arguments)

    return slowly


def keeping_weights(run_to_end: Callable[..., Any]) -> Callable[..., Any]:
    def run(trainer: Trainer, folder: Any, *arguments: Any, **named: Any) -> Any:
        history = run_to_end(trainer, folder, *arguments, **named)
        torch.save(trainer.model.state_dict(), folder / f"rank-{RANK}.pt")
        return history

    return run


if __name__ == "__main__":
    honest = toolkit.training.run.STEPS_BETWEEN_AGREEMENTS
    toolkit.pipeline.student.run_to_end = keeping_weights(toolkit.pipeline.student.run_to_end)
    for command in json.loads(sys.argv[1]):
        if command.get("disturbed") == "evaluation":
            student = toolkit.pipeline.student
            student.predict = terminated_as_the_first_one_evaluates(student.predict)
        toolkit.training.run.STEPS_BETWEEN_AGREEMENTS = honest if "honest" in command else STEPS_BETWEEN_AGREEMENTS
        for reference, address in command.get("addresses", {}).items():
            network, _, of_network = reference.removeprefix("torchvision:").partition("@")
            get_model_weights(network)[of_network].value.url = address
        toolkit.teacher.dynamics.HELD_BYTES = 0 if "spilled" in command else toolkit.teacher.before.HELD_BYTES
        toolkit.teacher.dynamics.BLOCK_ROWS = 8 if "spilled" in command else BLOCK_ROWS
        undo = lambda: None  # noqa: E731
        if command.get("disturbed") in DISTURBED:
            undo = disturbed(command["disturbed"], command["at"], command.get("rank", 1))
        sys.argv[1:] = command["words"]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ignored by a process that has said why it ends
        try:
            main()
        except SystemExit as end:
            if end.code and "goes on" not in command:
                raise
        finally:
            undo()
