"""Running a Trainer to its end, with a checkpoint after every epoch: a killed run resumes to the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from toolkit.core.errors import FailureError
from toolkit.core.files import whole_file
from toolkit.core.progress import Progress, silent
from toolkit.formats.checkpoint import load_torch, save_torch
from toolkit.training.loop import EpochResult, Trainer

CHECKPOINT = "checkpoint.pt"

_FORMAT = "kdtool training state 1"


class Watch(Protocol):
    """Who records a training: told when an epoch ends, before its checkpoint is written, and resumed with it."""

    def end_epoch(self, epoch: int) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any] | None) -> None: ...


def differing(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The settings in which two records differ, as `name found → wanted`; empty when they agree."""
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {found.get(name)} → {wanted.get(name)}" for name in names)


def run_to_end(
    trainer: Trainer,
    folder: Path,
    settings: dict[str, Any],
    progress: Progress = silent,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """Trains until the last step, saving checkpoint.pt and metrics.jsonl in `folder` each epoch; returns the epochs.

    A checkpoint of the same `settings` is resumed from. Raises FailureError when its settings differ, naming how.
    """
    checkpoint = folder / CHECKPOINT
    epochs: list[dict[str, Any]] = []
    if checkpoint.is_file():
        saved = load_torch(checkpoint, made_by="the same command again after deleting this file")
        if saved.get("format") != _FORMAT:
            raise FailureError(f"{checkpoint}: not a training state of this version. Delete it to start again")
        difference = differing(saved.get("settings") or {}, settings)
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
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise FailureError(
                f"{checkpoint}: not a whole training state ({reason}). Delete it to start again"
            ) from error
        _write_metrics(folder, epochs)  # the kill may have come between the two files
    while not trainer.finished:
        result = trainer.run_epoch(progress)
        epochs.append(asdict(result))
        content = {"format": _FORMAT, "settings": settings, "state": trainer.state(), "epochs": epochs}
        if watch is not None:
            watch.end_epoch(result.epoch)
            content["watch"] = watch.state()
        save_torch(checkpoint, content)
        _write_metrics(folder, epochs)
        on_epoch(result)
    return epochs


def _write_metrics(folder: Path, epochs: list[dict[str, Any]]) -> None:
    with whole_file(folder / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
