"""What train-teacher and distill share: a run's folder, made once, resumed while unfinished, replaced on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, write_json
from toolkit.core.recipes import RECIPES
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.checkpoint import Checkpoint, save_checkpoint
from toolkit.formats.dataset import DataRecord
from toolkit.training.run import CHECKPOINT, differing

SEARCH = "alpha.json"
ALREADY_TRAINED = "already there; --force trains it again"


def earlier_result(record: Path, settings: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """The result in a finished run's record, if it is there and not to be replaced.

    Raises FailureError when it was made with other settings, naming them.
    """
    if force or not record.is_file():
        return None
    content = read_json(record, "the same command with --force")
    if (
        not all(isinstance(content.get(part), dict) for part in ("settings", "result"))
        or "top1" not in content["result"]
    ):
        raise FailureError(f"{record.parent}: the record of its run is not whole. Pass --force to replace it")
    difference = differing(content["settings"], settings)
    if difference:
        raise FailureError(
            f"{record.parent}: a finished run with other settings ({difference}). "
            "Give this one another --name, or pass --force to replace it"
        )
    return content["result"]


def forget(folder: Path) -> None:
    """Takes away the state of an unfinished run, and of its search for an alpha; a finished one stays until the next is
    finished too."""
    for name in (CHECKPOINT, SEARCH):
        (folder / name).unlink(missing_ok=True)


def images_before(folder: Path) -> int:
    """How many images an unfinished run there was shown in the epochs that it will go on from."""
    if not (folder / CHECKPOINT).is_file() or not (folder / "metrics.jsonl").is_file():
        return 0
    return sum(json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines())


def compiled_settings(compiled: bool) -> dict[str, Any]:
    """Compiled code rounds otherwise, so it is a setting of the run. The source is none: its batches are the same."""
    return {"compiled": True} if compiled else {}


def trained_name(settings: dict[str, Any]) -> str:
    """The part of a default name that says how it was trained: nothing for the fast recipe as it is."""
    preset = RECIPES[settings["recipe"]]
    shown = {"b": "batch_size", "lr": "lr"}
    changed = [f"-{sign}{short(settings[key])}" for sign, key in shown.items() if settings[key] != getattr(preset, key)]
    if settings.get("alpha") != 1 and (smoothing := settings.get("label_smoothing", 0.0)) != preset.label_smoothing:
        changed.append(f"-ls{short(smoothing)}")
    if settings.get("ema") != preset.ema:
        changed.append(f"-ema{short(settings['ema'])}")
    compiled = "-compiled" if settings.get("compiled") else ""
    several = f"-p{settings['processes']}" if "processes" in settings else ""
    return ("" if settings["recipe"] == "fast" else f"-{settings['recipe']}") + "".join(changed) + compiled + several


def short(number: float) -> str:
    """As names say it: in as few digits as tell it from every other number."""
    said = f"{number:g}"
    return said if float(said) == number else repr(number)


def timing(history: list[dict[str, Any]], source: str, compile_s: float) -> dict[str, Any]:
    """What a finished run says of its speed. `compile_s` is of the last process only, where a run was resumed."""
    seconds = sum(epoch["elapsed_s"] for epoch in history)
    return {
        "images_per_s": sum(epoch["images"] for epoch in history) / seconds,
        "seconds": seconds,
        "source": source,
        "wait_share": sum(epoch.get("wait_s", 0.0) for epoch in history) / seconds,  # 0.2.0 did not measure it
        "compile_s": compile_s,
    }


def keep(
    record: Path,
    weights: Path,
    model: nn.Module,
    data: DataRecord,
    settings: dict[str, Any],
    result: dict[str, Any],
    **more: Any,
) -> None:
    """Writes the weights, then the record that says the run is finished."""
    keep_weights(weights, model, data, settings, result)
    keep_record(record, settings, result, **more)


def keep_weights(
    weights: Path, model: nn.Module, data: DataRecord, settings: dict[str, Any], result: dict[str, Any]
) -> Checkpoint:
    """Writes the network of a run that has ended."""
    checkpoint = Checkpoint(
        arch=settings["arch"],
        width=settings["width"],
        classes=data.classes,
        dataset=data.dataset,
        data_fingerprint=data.train_fingerprint,
        mean=data.mean,
        std=data.std,
        seed=settings["seed"],
        top1=result["top1"],
        settings={**settings, "command": command_line()},
        versions=versions(),
        weights={name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
    )
    save_checkpoint(weights, checkpoint)
    return checkpoint


def keep_record(record: Path, settings: dict[str, Any], result: dict[str, Any], **more: Any) -> None:
    """Writes, last of all, the record that says the run is finished; then its training state may go."""
    made = {"command": command_line(), "created": now(), "versions": versions()}
    write_json(record, {"result": result, "settings": settings, **more, **made})
    (record.parent / CHECKPOINT).unlink(missing_ok=True)
