"""distill --alpha search: successive halving on short runs, judged on rows of the subset that they do not train on.

Shapes: t rows in training, h held out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, write_json
from toolkit.core.interrupts import stop_said
from toolkit.core.progress import Progress, silent
from toolkit.core.records import record_of
from toolkit.distill.alpha import CANDIDATES, alpha_rule, halve, rungs_of, tried_on
from toolkit.distill.losses import distillation_loss
from toolkit.models.zoo import images_seen
from toolkit.pipeline.held_out import held_out_of
from toolkit.pipeline.known_networks import new_network
from toolkit.pipeline.run_folder import SEARCH
from toolkit.pipeline.runtime import Compute
from toolkit.pipeline.sources import check_single_rows, open_source
from toolkit.pipeline.student_request import StudentRequest
from toolkit.training.evaluate import predict, top1
from toolkit.training.loop import Diverged, Source, Trainer
from toolkit.training.run import differing

_FORMAT = "kdtool alpha search 1"
_AGAIN = "the same command again after deleting this file"


@dataclass(frozen=True)
class Trial:
    """A short run: `top1` is its accuracy on the rows held out, in percent; one that diverged has none right."""

    alpha: float
    steps: int
    top1: float
    images: int
    seconds: float
    teacher_forward_passes: int
    diverged: bool


def settled_alpha(
    request: StudentRequest, compute: Compute, source: str, folder: Path, **heard: Any
) -> tuple[float, dict[str, Any] | None]:
    """The alpha asked for, or the one that `search_alpha` finds, and all it tells."""
    if isinstance(request.asked.alpha, float):
        return request.asked.alpha, None
    found = search_alpha(request, compute, source, folder, **heard)
    return found["alpha"], found


def search_alpha(
    request: StudentRequest,
    compute: Compute,
    source: str,
    folder: Path,
    progress: Progress = silent,
    on_trial: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The alpha that distill will use, and what finding it cost: `alpha`, `decided_by` (accuracy, or the rule where two
    were equally good on the last rung), `candidates`, `rungs` (steps), `trials`, `held_out_rows`, `images`, `seconds`,
    `share_of_run` (images trained on, as a share of the run's own) and `teacher_forward_passes`.

    Each trial is a run of its own on all but the rows held out: the run's weights at the start, order, views and
    optimisation, and a whole learning-rate schedule; without torch.compile, and without an average of the weights: it
    would reach back to where so short a run began. One that diverges is the worst. Together they see 1.6 times the
    run's images, or more where a twelfth of it is not a step. Finished trials are kept in `folder`, in alpha.json, so
    that a killed search goes on after the last one. Raises UsageError where no row can be held out, and FailureError
    where alpha.json is of a search with other settings.
    """
    trials, bench = _kept(folder / SEARCH, request.settings), _Bench(request, compute, source)
    rungs, fraction = rungs_of(bench.whole_steps), request.bundle.record.fraction
    on_trial(_expected(bench, rungs, len(trials)))

    def accuracy(alpha: float, steps: int) -> float:
        if (alpha, steps) not in trials:
            trial = trials[alpha, steps] = bench.trial(alpha, steps, progress)
            record = {"format": _FORMAT, "settings": request.settings, "trials": [asdict(t) for t in trials.values()]}
            write_json(folder / SEARCH, record)
            length = _in_steps(steps)
            share = f"{trial.top1:.2f} % of {bench.held_out} held-out rows after {length}"
            on_trial(f"alpha {alpha:g}: {f'diverged within {length}' if trial.diverged else share}")
        return trials[alpha, steps].top1

    def stopped() -> str:
        kept = f"after {len(trials)} trials of its search for an alpha"
        return f"stopped {kept}. Run the same command again: it goes on after the last trial"

    with stop_said(stopped):
        alpha, tied = halve(CANDIDATES, rungs, accuracy, alpha_rule(fraction))
    if tied:
        on_trial(f"alpha {alpha:g}: another was as good on the held-out rows, so the rule (--alpha auto) decided")
    images = sum(trial.images for trial in trials.values())
    return {
        "alpha": alpha,
        "decided_by": "rule" if tied else "accuracy",
        "candidates": list(CANDIDATES),
        "rungs": list(rungs),
        "trials": [asdict(trial) for trial in trials.values()],
        "held_out_rows": bench.held_out,
        "images": images,
        "seconds": sum(trial.seconds for trial in trials.values()),
        "share_of_run": images / images_of(request),
        "teacher_forward_passes": sum(trial.teacher_forward_passes for trial in trials.values()),
    }


def search_share(request: StudentRequest, compute: Compute) -> float:
    """How many images a search trains on, as a share of the run's own."""
    return _times(_Bench(request, compute, "auto"))


def _times(bench: _Bench) -> float:
    steps = tried_on(rungs_of(bench.whole_steps), len(CANDIDATES))
    return sum(map(bench.images_in, steps)) / images_of(bench.request)


def _expected(bench: _Bench, rungs: tuple[int, ...], kept: int) -> str:
    """What the search will cost, in a line."""
    steps = tried_on(rungs, len(CANDIDATES))
    known = f", {kept} of them kept from before" if kept else ""
    lengths = f"{rungs[0]:,} to {rungs[-1]:,} steps" if rungs[-1] > rungs[0] else _in_steps(rungs[0])
    return (
        f"searching for alpha: {len(steps)} trials of {lengths}{known}, judged by "
        f"{bench.held_out} held-out rows; {_times(bench):.2f} times the run's images"
    )


def _in_steps(steps: int) -> str:
    return f"{steps:,} step{'s' if steps > 1 else ''}"


def images_of(request: StudentRequest) -> int:
    """How many images the run itself trains on."""
    return images_in(request.steps, request.bundle.record.rows, request.recipe.batch_size)


def images_in(steps: int, rows: int, batch_size: int) -> int:
    """How many images so many steps of a run on so many rows are shown."""
    epochs, rest = divmod(steps, -(-rows // batch_size))
    return epochs * rows + min(rest * batch_size, rows)


def _kept(path: Path, settings: dict[str, Any]) -> dict[tuple[float, int], Trial]:
    """The trials of an earlier, stopped search. Raises FailureError where they are of another one's."""
    if not path.is_file():
        return {}
    content = read_json(path, _AGAIN)
    found, trials = content.get("settings"), content.get("trials")
    if content.get("format") != _FORMAT or not isinstance(found, dict) or not isinstance(trials, list):
        raise FailureError(f"{path}: not a search for alpha of this version. Delete it to start again")
    difference = differing(found, settings)
    if difference:
        raise FailureError(
            f"{path}: a search with other settings ({difference}). "
            "Give this run another --name, or pass --force to start it again"
        )
    try:
        known = [record_of(Trial, trial) for trial in trials]
    except ValueError as error:
        raise FailureError(f"{path}: not whole ({error}). Delete it to start again") from error
    return {(trial.alpha, trial.steps): trial for trial in known}


class _Bench:
    """What the trials share: the subset in two parts, and a source of the larger one, opened when first needed."""

    def __init__(self, request: StudentRequest, compute: Compute, source: str) -> None:
        self.request, self._compute, self._kind = request, compute, source
        self._training_t, self._held_h = held_out_of(request.bundle, request.settings["seed"])
        self._source: Source | None = None

    @property
    def held_out(self) -> int:
        return len(self._held_h)

    @property
    def whole_steps(self) -> int:
        """In so many steps its part of the rows is shown as often as the run shows all of them."""
        batch_size, rows = self.request.recipe.batch_size, self.request.bundle.record.rows
        ratio = -(-len(self._training_t) // batch_size) / -(-rows // batch_size)
        return max(1, round(self.request.steps * ratio))

    def images_in(self, steps: int) -> int:
        return images_in(steps, len(self._training_t), self.request.recipe.batch_size)

    def trial(self, alpha: float, steps: int, progress: Progress) -> Trial:
        start_s, seen = time.perf_counter(), images_seen()
        request, compute, settings = self.request, self._compute, self.request.settings
        source = self._source = self._source or self._open()
        recipe, asked = replace(request.recipe, ema=None), request.asked
        loss = distillation_loss(alpha, asked.temperature, asked.loss, asked.beta, recipe.label_smoothing)
        model = new_network(settings["arch"], settings["width"], settings["seed"], request.bundle.data, compute)
        check_single_rows(model, source.rows, recipe.batch_size, request.bundle.data, 1)
        trainer = Trainer(model, source, loss, recipe, steps, compute.device, compute.precision, seed=settings["seed"])
        images, diverged = 0, False
        try:
            while not trainer.finished:
                images += trainer.run_epoch(lambda what, *more: progress(f"alpha {alpha:g}, {what}", *more)).images
        except Diverged:  # a candidate that is no good; the run itself will say why, if none is
            diverged = True
        reached = 0.0 if diverged else self._judged(model)
        passes = images_seen() - seen - images_seen(model)
        return Trial(alpha, steps, reached, images, time.perf_counter() - start_s, passes, diverged)

    def _judged(self, model: nn.Module) -> float:
        beton, data = self.request.bundle.images(), self.request.bundle.data
        held_h = self.request.bundle.indices_m[self._held_h]
        shown = (beton, data.plan, data.mean, data.std, self._compute.device, self._compute.precision)
        return top1(predict(model, *shown, held_h), beton.records_n["label"][held_h])

    def _open(self) -> Source:
        request, at_t = self.request, self._training_t
        weights_t = None if request.weights_m is None else _of_mean_1(request.weights_m[at_t])
        targets = None if request.knowledge is None else request.knowledge.targets.of_rows(at_t)
        how = (request.recipe.batch_size, request.settings["seed"], self._compute, targets, self._kind, weights_t)
        return open_source(request.bundle.images(), request.bundle.indices_m[at_t], request.bundle.data, *how)


def _of_mean_1(weights_t: np.ndarray) -> np.ndarray:
    """As the whole subset's are, so that a step is as long; a part may hold none but zeros."""
    return weights_t / (weights_t.mean() or 1)
