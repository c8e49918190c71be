"""What distill and sweep are asked for: a bundle, its targets, and every setting resolved. Shapes: m rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import defaults
from toolkit.core.errors import UsageError
from toolkit.core.hashing import checked_seed
from toolkit.core.imported import code_settings
from toolkit.core.recipes import Recipe, check_one_length, recipe_settings, resolve_recipe
from toolkit.distill.losses import LOSSES
from toolkit.distill.settings import DistillSettings
from toolkit.distill.terms import needs_every_logit
from toolkit.distill.top_k import tail_weights
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.encodings import TopLogits
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.held_out import held_out_of
from toolkit.pipeline.knowledge import Knowledge, load_knowledge
from toolkit.pipeline.run_folder import compiled_settings, short, trained_name
from toolkit.pipeline.runtime import Compute, processes_settings
from toolkit.selection.methods import METHODS


@dataclass(frozen=True)
class StudentRequest:
    """One student: `settings` are everything that decides its weights, resolved, which run.json records and a resumed
    run must share; `name` is the run's default name."""

    bundle: Bundle
    knowledge: Knowledge | None
    weights_m: np.ndarray | None
    asked: DistillSettings
    recipe: Recipe
    steps: int
    settings: dict[str, Any]
    name: str


def open_student_request(
    workspace: Workspace,
    compute: Compute,
    subset: str | None = None,
    teacher: str | None = None,
    arch: str = defaults.STUDENT_ARCH,
    width: int = defaults.WIDTH,
    recipe: str = defaults.RECIPE,
    epochs: int | None = None,
    iterations: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    label_smoothing: float | None = None,
    ema: float | None = None,
    loss: str = defaults.LOSS,
    beta: float | None = None,
    alpha: float | str = defaults.ALPHA,
    temperature: float | None = defaults.TEMPERATURE,
    match: str = defaults.MATCH,
    views: int | None = None,
    weights: bool = False,
    seed: int = defaults.SEED,
    compiled: bool = False,
    open_bundle: Callable[[Path], Bundle] = open_bundle,
    load_knowledge: Callable[[Bundle, str | None, str, int | None], Knowledge] = load_knowledge,
) -> StudentRequest:
    """Checks all that was asked, then finds the bundle (default: the newest) and its targets. Writes nothing.

    `iterations`, instead of `epochs`, ends the run after that many steps; `views` uses only the first few slots;
    `weights` counts each row as the method of selection says; `loss`, `beta` and `alpha` are as in DistillSettings,
    `label_smoothing` and `ema` as in Recipe: of the former nothing is left at alpha 1, which never looks at labels.
    Who resolves many students passes an `open_bundle` and a `load_knowledge` that remember. Raises UsageError or
    FailureError.
    """
    asked = DistillSettings(alpha, temperature, match, iterations, loss, beta)
    settled = resolve_recipe(recipe, epochs, batch_size, lr, label_smoothing, ema)
    checked_seed(seed)
    check_one_length(epochs, iterations)
    bundle = open_bundle(workspace.subset(subset) if subset is not None else workspace.newest_subset())
    asked = asked.resolved(bundle.record.fraction)
    if weights:
        asked.refuse_weights()
    weights_m = _weights(bundle, teacher) if weights else None
    if asked.alpha == "search":
        held_out_of(bundle, seed)  # refuses a subset too small for it
    batches_per_epoch = -(-bundle.record.rows // settled.batch_size)
    steps = iterations or settled.epochs * batches_per_epoch
    smoothing = 0.0 if asked.alpha == 1 else settled.label_smoothing  # what nothing uses is dropped
    settled = replace(settled, epochs=-(-steps // batches_per_epoch), label_smoothing=smoothing)
    knowledge = None if asked.alpha == 0 else load_knowledge(bundle, teacher, match, views)
    if knowledge and isinstance(knowledge.targets.encoding, TopLogits):
        _check_top_k(asked, bundle, knowledge)
    settings = {
        "subset": bundle.record.name,
        "rows_fingerprint": bundle.record.rows_fingerprint,
        "data_fingerprint": bundle.data.train_fingerprint,
        "teacher": knowledge.record.teacher if knowledge else None,
        "teacher_fingerprint": knowledge.record.teacher_fingerprint if knowledge else None,
        "targets_fingerprint": knowledge.fingerprint if knowledge else None,
        "arch": arch,
        "width": width,
        "alpha": asked.alpha,
        "temperature": asked.temperature,  # None where nothing uses it
        "match": knowledge.targets.match if knowledge else None,
        "views": knowledge.targets.slots if knowledge else None,
        "iterations": steps,
        "seed": seed,
        "precision": compute.precision,
        "device": compute.device.type,
        "recipe": recipe,
        **recipe_settings(settled),
        **compiled_settings(compiled),
        **processes_settings(compute),
        # only where asked for: the runs of earlier versions have no such settings
        **code_settings(arch, "--arch"),
        **({} if asked.loss == "kd" else {"loss": asked.loss, "beta": asked.beta}),
        **({"weights": bundle.record.weights_fingerprint} if weights else {}),
    }
    name = _default_name(settings, iterations)
    return StudentRequest(bundle, knowledge, weights_m, asked, settled, steps, settings, name)


def _default_name(settings: dict[str, Any], iterations: int | None) -> str:
    wide = "" if settings["width"] == 16 else f"-w{settings['width']}"
    length = f"i{iterations}" if iterations else f"e{settings['epochs']}"
    taught = "no-kd"
    if settings["teacher"] is not None:
        alpha, temperature = settings["alpha"], settings["temperature"]
        weighed = f"-a{alpha}" if isinstance(alpha, str) else f"-a{short(alpha)}"
        softened = "" if temperature is None else f"-t{short(temperature)}"
        shown = f"-{settings['match']}{settings['views']}"
        taught = f"{settings['teacher']}{_loss_name(settings)}{weighed}{softened}{shown}"
    arch, trained = settings["arch"].replace(":", "-"), trained_name(settings)
    weighted = "-weighted" if "weights" in settings else ""
    return f"{settings['subset']}-{arch}{wide}-{taught}{trained}{weighted}-{length}-s{settings['seed']}"


def _loss_name(settings: dict[str, Any]) -> str:
    """Nothing for kd; a beta only where it is not the loss's own."""
    if "loss" not in settings:
        return ""
    loss, beta = settings["loss"], settings["beta"]
    return f"-{loss}" + ("" if beta == LOSSES[loss].beta else f"-b{short(beta)}")


def _check_top_k(asked: DistillSettings, bundle: Bundle, knowledge: Knowledge) -> None:
    """Raises UsageError where the K largest logits are too few for this loss, or do not reach its temperature."""
    if not asked.kind.top_k:
        again = bundle.targets_command(knowledge.record.teacher)
        raise needs_every_logit(asked.loss, knowledge.targets.encoding.name, again)
    if asked.temperature is not None:
        tail_weights(asked.temperature)


def _weights(bundle: Bundle, teacher: str | None) -> np.ndarray:
    """The subset's weights. Raises UsageError where it has none, naming the methods that give them."""
    if bundle.weights_m is None:
        weighing = [name for name, method in METHODS.items() if method.weighted]
        known = [bundle.record.chosen_by, teacher, *bundle.teachers()]  # whose features and logits may be had
        command = bundle.record.like(weighing[0], next(filter(None, known), None))
        raise UsageError(
            f"--weights: subset {bundle.record.name} (by {bundle.record.method}) holds none. Leave it out, or use a "
            f"subset of a method that gives them ({', '.join(weighing)}). Run: {command}"
        )
    return bundle.weights_m
