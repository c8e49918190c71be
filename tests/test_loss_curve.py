"""The guard: training gives the losses it gave, step by step, and would be caught if it did not.

A difference means that training has changed. If that was meant, `python -m tests.loss_curves --write` makes the golden
file again, and the changelog says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tests.loss_curves as guard
import toolkit.training.resident
from tests.loss_curves import CASES, WRITE, Case, curve, distance, golden, resident_source, stream_source
from toolkit.core.versions import versions
from toolkit.training.loop import Trainer

# Relative, of each step. Measured across torch's kernels (scalar, AVX2, AVX-512), MKL's (SSE4.2 to AVX-512) and 1 and 2
# threads: 6e-16 where initial weights agree, and 8e-8 where torch draws these with scalar kernels, in float32.
TOLERANCE = 1e-6
# The smallest change of a setting moves a curve by so many tolerances.
MARGIN = 100
# How far from the float64 curve a lower precision must be, and may be. Measured: 1.8e-7, and 7e-3 to 1.6e-2 with
# AVX512-BF16, AVX-512 or AVX2. These agree no better with each other, so bfloat16 has no golden curve of its own.
NEAR = {"float32": (0.0, 5e-6), "bfloat16": (1e-4, 6e-2)}


@pytest.mark.parametrize("name", list(CASES))
def test_losses_are_what_they_were(name: str):
    known = golden()
    difference = distance(curve(CASES[name]), known["curves"][name])
    assert difference < TOLERANCE, (
        f"{name}: training has changed by {difference:.1e}. It was recorded with {known['versions']}, "
        f"this is {versions()}. If the change is meant: {WRITE}"
    )


def test_every_case_has_a_curve_and_every_curve_says_how_it_was_made():
    known = golden()
    assert list(known["curves"]) == list(CASES)
    assert {len(losses) for losses in known["curves"].values()} == {guard.STEPS + 1}
    assert known["command"] == WRITE and {"torch", "numpy", "kdtool", "python"} <= set(known["versions"])


@pytest.mark.parametrize("precision", list(NEAR))
def test_a_lower_precision_stays_near_the_float64_curve(precision: str):
    """And not on it: bfloat16 that were as exact as float32 would not be bfloat16."""
    least, most = NEAR[precision]
    assert least < distance(curve(replace(CASES["student"], precision=precision)), golden()["curves"]["student"]) < most


@pytest.mark.parametrize("name", ["topk:4", "all views and labels, nearest", "all views, mean"])
def test_the_streaming_source_gives_the_same_losses_bit_for_bit(name: str, digits: Path):
    assert curve(CASES[name], stream_source(CASES[name], digits)) == curve(CASES[name])


def with_recipe(**changed: object) -> Callable[[Case], Case]:
    return lambda case: replace(case, changed=tuple(changed.items()))


# (case, what a careless refactor might do to it)
MUTATIONS: dict[str, tuple[str, Callable[[Case], Case]]] = {
    "other weights": ("student", lambda case: replace(case, seed=4)),
    "another order": ("student", lambda case: replace(case, order_seed=6)),
    "momentum 0.91": ("student", with_recipe(momentum=0.91)),
    "no weight decay": ("student", with_recipe(weight_decay=0.0)),
    "a tenth more weight decay": ("student", with_recipe(weight_decay=5.5e-4)),
    "no Nesterov": ("student", with_recipe(nesterov=False)),
    "a hundredth more lr": ("student", with_recipe(lr=0.101)),
    "a shorter warm-up": ("student", with_recipe(warmup=0.1)),
    "a milestone a step late": ("paper-cifar", with_recipe(milestones=(16 / 24, 18 / 24, 21 / 24))),
    "temperature 4.1": ("student", lambda case: replace(case, temperature=4.1)),
    "temperature 3.1 of the top 4": ("topk:4", lambda case: replace(case, temperature=3.1)),
    "alpha 0.51": ("all views and labels, nearest", lambda case: replace(case, alpha=0.51)),
    "another match": ("all views and labels, nearest", lambda case: replace(case, match="mean")),
    "a slot fewer": ("all views, mean", lambda case: replace(case, slots=2)),
    "another plan": ("student", lambda case: replace(case, plan=replace(case.plan, seed=1))),
    "int8 for float32": ("student", lambda case: replace(case, encoding="int8")),
    "the top 5 for the top 4": ("topk:4", lambda case: replace(case, encoding="topk:5")),
}


@pytest.mark.parametrize("mutation", list(MUTATIONS))
def test_the_guard_sees_another_setting(mutation: str):
    name, change = MUTATIONS[mutation]
    assert distance(curve(change(CASES[name])), golden()["curves"][name]) > MARGIN * TOLERANCE


@pytest.mark.parametrize("what", ["views", "order"])
def test_the_guard_sees_a_schedule_that_is_one_epoch_off(what: str):
    source = resident_source(CASES["student"])
    of_epoch = getattr(source.showing, what)
    setattr(source.showing, what, lambda epoch: of_epoch(epoch + 1))
    assert distance(curve(CASES["student"], source), golden()["curves"]["student"]) > MARGIN * TOLERANCE


def test_the_guard_sees_targets_of_a_neighbouring_slot():
    source = resident_source(CASES["student"])
    of_epoch = source.showing.views

    def neighbouring(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        view_n, slot_n = of_epoch(epoch)
        return view_n, (slot_n + 1) % 3

    source.showing.views = neighbouring  # type: ignore[method-assign]
    assert distance(curve(CASES["student"], source), golden()["curves"]["student"]) > MARGIN * TOLERANCE


def test_the_guard_sees_pixels_that_are_normalised_otherwise(monkeypatch: pytest.MonkeyPatch):
    normalise = toolkit.training.resident.normalise
    monkeypatch.setattr(
        toolkit.training.resident, "normalise", lambda images, mean, std: normalise(images, mean, 1.01 * std)
    )
    assert distance(curve(CASES["student"]), golden()["curves"]["student"]) > MARGIN * TOLERANCE


def test_the_guard_sees_other_running_statistics(monkeypatch: pytest.MonkeyPatch):
    """No loss of the run tells of them, only of the network that is kept."""

    def trainer_of(case: Case, *rest: object) -> Trainer:
        trainer = made(case, *rest)  # type: ignore[arg-type]
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.11
        return trainer

    made = guard.trainer_of
    monkeypatch.setattr(guard, "trainer_of", trainer_of)
    known = golden()["curves"]["student"]
    found = curve(CASES["student"])
    assert distance(found[:-1], known[:-1]) < TOLERANCE
    assert distance(found, known) > MARGIN * TOLERANCE
