"""Running a Trainer to its end, with a checkpoint after every epoch and every few minutes: a run that was killed, or
asked to stop, resumes to the same weights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from toolkit.core import defaults
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import whole_file
from toolkit.core.interrupts import Stopped, stop_asked
from toolkit.core.progress import Progress, silent
from toolkit.formats.checkpoint import load_torch, save_torch
from toolkit.training.loop import EpochResult, Trainer

CHECKPOINT = "checkpoint.pt"

STEPS_BETWEEN_AGREEMENTS = 20  # of several processes, whether to stop or to save; at most
_SECONDS_BETWEEN_AGREEMENTS = 2.0  # torchrun kills 30 s after SIGTERM

_FORMAT = "kdtool training state 2"
_FORMATS = (_FORMAT, "kdtool training state 1")  # 0.4 and earlier saved at epochs alone


class Watch(Protocol):
    """Who records a training: told when an epoch ends, before its checkpoint is written, and resumed with it. Each of
    several processes has its own, and all are called together."""

    def end_epoch(self, epoch: int) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any] | None) -> None: ...


def check_minutes(minutes: float) -> float:
    """Raises UsageError for what is no time between checkpoints."""
    if not 0 <= minutes < float("inf"):
        raise UsageError(f"--checkpoint-minutes must be 0 (at epochs only) or more, got {minutes:g}")
    return minutes


def differing(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The settings in which two records differ, as `name found → wanted`; empty when they agree."""
    if found.get("alpha") == 0:  # up to 0.4.0 a temperature that nothing used was noted
        found = {**found, "temperature": wanted.get("temperature")}
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {found.get(name)} → {wanted.get(name)}" for name in names)


class _Meetings:
    """When several processes look, all at the same step, whether one was told to stop or is due to save: about every
    two seconds, but not more often than they step, nor less than each 20 steps. One process looks at every step."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._step, self._at_s, self._next = trainer.step, time.monotonic(), trainer.step + 1

    @property
    def due(self) -> bool:
        return self._trainer.processes.count == 1 or self._trainer.step >= self._next

    def agreed(self, *flags: int) -> tuple[int, ...]:
        """As Processes.agreed, and by the slowest when to meet again."""
        step, now_s = self._trainer.step, time.monotonic()
        step_s = (now_s - self._at_s) / max(step - self._step, 1)
        steps = max(1, min(STEPS_BETWEEN_AGREEMENTS, int(_SECONDS_BETWEEN_AGREEMENTS / max(step_s, 1e-9))))
        fewest, *largest = self._trainer.processes.agreed(-steps, *flags)
        self._step, self._at_s, self._next = step, now_s, step - fewest
        return tuple(largest)


def run_to_end(
    trainer: Trainer,
    folder: Path,
    settings: dict[str, Any],
    progress: Progress = silent,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    watch: Watch | None = None,
    minutes: float = defaults.CHECKPOINT_MINUTES,
    found: dict[str, Any] | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Trains until the last step, saving checkpoint.pt each epoch and each so many `minutes` (0: only at epochs), and
    metrics.jsonl each epoch, in `folder`; returns the epochs. Where the recipe keeps an average of the weights, that is
    what the network holds in the end; the checkpoint has both.

    A checkpoint of the same `settings` is resumed from, if what was `found` out since they were asked for is the same
    too, and `on_note` told after which step. On SIGINT and SIGTERM it saves and raises Stopped. Raises FailureError
    when the checkpoint's settings differ, naming how. Of several processes the first one writes.
    """
    epochs = _resumed(trainer, folder, settings, found or {}, watch)
    processes, saved_s, meetings = trainer.processes, time.monotonic(), _Meetings(trainer)
    if trainer.step and processes.first:
        on_note(f"{folder}: goes on after step {trainer.step:,} of {trainer.total_steps:,}")

    def save() -> None:
        nonlocal saved_s
        content = {"format": _FORMAT, "settings": settings, "state": trainer.state(), "epochs": epochs}
        if found:
            content["found"] = found
        if watch is not None:
            content["watch"] = watch.state()
        processes.first_only(lambda: save_torch(folder / CHECKPOINT, content))
        saved_s = time.monotonic()

    with stop_asked() as stop:

        def stop_or_save(saved: bool) -> None:
            due = not saved and 0 < 60 * minutes <= time.monotonic() - saved_s
            number, due_anywhere = meetings.agreed(stop.number, int(due))
            if due_anywhere or (number and not saved):
                save()
            if number:
                raise _stopped(trainer, number)

        def after_step() -> None:
            if meetings.due:
                stop_or_save(saved=False)

        while not trainer.finished:
            result = trainer.run_epoch(progress, after_step)
            epochs.append(asdict(result))
            if watch is not None:
                watch.end_epoch(result.epoch)
            save()
            if processes.first:
                _write_metrics(folder, epochs)
                on_epoch(result)
            stop_or_save(saved=True)
    if stop.number:  # told since they last agreed
        raise _stopped(trainer, stop.number)
    trainer.end()
    return epochs


def _stopped(trainer: Trainer, number: int) -> Stopped:
    at = f"stopped at step {trainer.step:,} of {trainer.total_steps:,}; saved"
    return Stopped(f"{at}. Run the same command again to go on", number)


def _resumed(
    trainer: Trainer, folder: Path, settings: dict[str, Any], found: dict[str, Any], watch: Watch | None
) -> list[dict[str, Any]]:
    """The epochs behind the checkpoint in `folder`, if there is one, which is loaded into trainer and watch."""
    checkpoint = folder / CHECKPOINT
    if not checkpoint.is_file():
        return []
    saved = load_torch(checkpoint, made_by="the same command again after deleting this file")
    if saved.get("format") not in _FORMATS:
        raise FailureError(f"{checkpoint}: not a training state of this version. Delete it to start again")
    difference = differing(saved.get("settings") or {}, settings)
    difference = difference or differing(saved.get("found", found), found)  # not told by earlier versions
    if difference:
        raise FailureError(
            f"{checkpoint}: an unfinished run with other settings ({difference}). "
            "Give this run another --name, or pass --force to start it again"
        )
    try:
        trainer.load_state(saved["state"])
        if watch is not None:
            watch.load_state(saved.get("watch"))
        epochs = list(saved["epochs"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FailureError(f"{checkpoint}: not a whole training state ({reason}). Delete it to start again") from error
    if trainer.processes.first:
        _write_metrics(folder, epochs)  # the kill may have come between the two files
    return epochs


def _write_metrics(folder: Path, epochs: list[dict[str, Any]]) -> None:
    with whole_file(folder / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
