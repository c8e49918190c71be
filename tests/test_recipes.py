"""Recipes for ImageNet's size: presets, weight decay, label smoothing, and an average of the weights."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import kdtool, made, refused
from tests.loss_curves import Case, loss_of, resident_source, trainer_of
from tests.test_resume import EVERY_STEP, STUDENT, TEACHER, Killed, killed_after, same_runs, stop_at, untimed
from tests.test_weights import LABELS, TAU, batch_of, logits
from toolkit.core.errors import UsageError
from toolkit.core.recipes import RECIPES, lr_at, recipe_settings, resolve_recipe
from toolkit.distill.losses import LOSSES, distillation_loss
from toolkit.formats.checkpoint import load_checkpoint
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model
from toolkit.pipeline import alpha_search
from toolkit.pipeline.alpha_search import Trial
from toolkit.pipeline.run_folder import trained_name
from toolkit.pipeline.run_means import means
from toolkit.pipeline.run_rows import row_of
from toolkit.pipeline.student import distill
from toolkit.pipeline.sweep.request import Sweep
from toolkit.pipeline.teacher import train_teacher
from toolkit.report.panels import groups_of, prepared
from toolkit.report.runs import Condition
from toolkit.teacher.train import label_loss
from toolkit.training.optimizer import sgd

EPSILON = 0.1
LATER = {"label_smoothing", "ema", "batchnorm_decay"}
# What their files say: epochs, (batch_size, world_size, lr, weight_decay)
FFCV_EPOCHS = (16, 24, 32, 40, 56, 88)
FFCV = {"rn18": (1024, 1, 0.5, 5e-5), "rn50": (512, 8, 1.7, 1e-4)}


@pytest.fixture
def ours(digits: Path, tmp_path: Path) -> Path:
    """A copy to write in."""
    return Path(shutil.copytree(digits, tmp_path / "ours"))


# presets


@pytest.mark.parametrize("epochs", FFCV_EPOCHS)
@pytest.mark.parametrize("network", FFCV)
def test_ffcv_imagenets_presets_are_ffcv_imagenets(network: str, epochs: int):
    batch_size, gpus, lr, decay = FFCV[network]
    recipe = RECIPES[f"ffcv-imagenet-{network}-{epochs}"]
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (epochs, gpus * batch_size, lr, decay)
    assert (recipe.momentum, recipe.nesterov, recipe.label_smoothing, recipe.ema) == (0.9, False, 0.1, None)
    assert not recipe.batchnorm_decay


@pytest.mark.parametrize("epochs", FFCV_EPOCHS)
def test_their_rate_rises_to_its_peak_in_two_epochs_and_falls_in_a_line(epochs: int):
    """As their script has it, between epochs 0, 2 and the last, but for the ten thousandth that it begins at."""
    recipe, steps = RECIPES[f"ffcv-imagenet-rn18-{epochs}"], 100
    at = np.arange(epochs * steps)
    expected = np.interp(at / steps, [0, 2, epochs], [1e-4 * recipe.lr, recipe.lr, 0])
    found = np.array([lr_at(recipe, step, len(at)) for step in at.tolist()])
    assert np.abs(found - expected).max() < 0.006 * recipe.lr  # one of 200 steps upwards
    np.testing.assert_allclose(found[2 * steps :], expected[2 * steps :], rtol=1e-9)


def test_a_rate_is_the_presets_own_whatever_the_batch():
    assert resolve_recipe("ffcv-imagenet-rn50-16", batch_size=256).lr == 1.7


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_what_is_no_share_is_refused(value: float):
    with pytest.raises(UsageError, match="--label-smoothing must be at least 0 and below 1"):
        resolve_recipe("fast", label_smoothing=value)
    with pytest.raises(UsageError, match="--ema must be above 0 and below 1"):
        resolve_recipe("fast", ema=value)


def test_what_earlier_versions_had_not_is_a_setting_only_where_it_is_on():
    for name in ("fast", "paper-cifar", "paper-imagenet"):
        assert not LATER & recipe_settings(RECIPES[name]).keys()
    found = recipe_settings(replace(RECIPES["ffcv-imagenet-rn18-16"], ema=0.99))
    assert {name: found[name] for name in LATER} == {"label_smoothing": 0.1, "ema": 0.99, "batchnorm_decay": False}
    assert found["milestones"] == []


def test_weight_decay_spares_batch_normalisation_where_the_recipe_says_so():
    """Without gradients a step is weight decay alone; the shortcuts' batch normalisation is spared too."""
    recipe = replace(RECIPES["ffcv-imagenet-rn18-16"], weight_decay=0.5, lr=1.0)
    for spared in (True, False):
        model = build_model("torchvision:resnet18", 4)
        before = copy.deepcopy(model.state_dict())
        optimizer = sgd(model, replace(recipe, batchnorm_decay=not spared), fused=False)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        normed = {name for name, part in model.named_modules() if isinstance(part, torch.nn.BatchNorm2d)}
        assert len(normed) == 20
        for name, parameter in model.named_parameters():
            kept = 1.0 if spared and name.rpartition(".")[0] in normed else 0.5
            assert torch.equal(parameter, kept * before[name]), name


def test_a_network_without_batch_normalisation_has_one_group():
    model = torch.nn.Linear(3, 2)
    assert len(sgd(model, RECIPES["ffcv-imagenet-rn18-16"], fused=False).param_groups) == 1


# label smoothing


def smoothed_by_hand(student_bc: Tensor, labels_b: Tensor, epsilon: float) -> np.ndarray:
    """(b,): −Σ_k q_k log p_k, q the label's share 1 − ε, and ε spread evenly over all classes."""
    shifted_bc = (student_bc - student_bc.max(dim=1, keepdim=True).values).numpy()
    log_p_bc = shifted_bc - np.log(np.exp(shifted_bc).sum(axis=1, keepdims=True))
    classes = log_p_bc.shape[1]
    target_bc = np.full(log_p_bc.shape, epsilon / classes)
    target_bc[np.arange(len(labels_b)), labels_b.numpy()] += 1 - epsilon
    return -(target_bc * log_p_bc).sum(axis=1)


@pytest.mark.parametrize("epsilon", [0.0, EPSILON, 0.7])
def test_smoothed_labels_are_the_formula_and_torchs_own(epsilon: float):
    student_bc, weights_b = logits(0), torch.tensor([0.0, 0.5, 1.0, 2.5, 1.5, 0.5], dtype=torch.float64)
    each_b = smoothed_by_hand(student_bc, LABELS, epsilon)
    labelled = distillation_loss(0.0, None, label_smoothing=epsilon)
    batch = batch_of(LABELS, logits(1), None)
    assert labelled(student_bc, batch).item() == pytest.approx(each_b.mean(), rel=1e-12)
    assert labelled(student_bc, batch).item() == F.cross_entropy(student_bc, LABELS, label_smoothing=epsilon).item()
    weighted = labelled(student_bc, batch_of(LABELS, logits(1), weights_b)).item()
    assert weighted == pytest.approx((weights_b.numpy() * each_b).mean(), rel=1e-12)
    assert label_loss(student_bc, batch, epsilon).item() == pytest.approx(each_b.mean(), rel=1e-12)


def test_labels_that_are_not_smoothed_are_todays_loss_bit_for_bit():
    student_bc, batch = logits(0).float(), batch_of(LABELS, logits(1).float(), None)
    plain = F.cross_entropy(student_bc, LABELS)
    assert torch.equal(label_loss(student_bc, batch, label_smoothing=0.0), plain)
    assert torch.equal(distillation_loss(0.0, None, label_smoothing=0.0)(student_bc, batch), plain)


@pytest.mark.parametrize("name", LOSSES)
def test_the_teachers_term_is_never_smoothed(name: str):
    """dkd looks at labels too, and hard has labels of the teacher's choice."""
    student_bc, batch = logits(0), batch_of(LABELS, logits(1), None)
    taught = distillation_loss(1.0, TAU, name)(student_bc, batch).item()
    assert distillation_loss(1.0, TAU, name, label_smoothing=EPSILON)(student_bc, batch).item() == taught
    found = distillation_loss(0.3, TAU, name, label_smoothing=EPSILON)(student_bc, batch).item()
    labelled = smoothed_by_hand(student_bc, LABELS, EPSILON).mean()
    assert found == pytest.approx(0.7 * labelled + 0.3 * taught, rel=1e-12)


def settings_of(run: dict[str, Any]) -> dict[str, Any]:
    return json.loads((Path(run["path"]) / "run.json").read_text())["settings"]


def weights_of(run: dict[str, Any]) -> dict[str, Tensor]:
    return load_checkpoint(Path(run["path"]) / "student.pt").weights


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


TRAINED = ("distill", "--subset", "third", "--iterations", 6, "--threads", 1)


def test_label_smoothing_is_a_setting_of_the_run_where_labels_are_looked_at(ours: Path):
    words = (*TRAINED, "-w", ours, "--alpha", 0.5)
    plain, smoothed = made(*words), made(*words, "--label-smoothing", EPSILON)
    assert not LATER & settings_of(plain).keys()
    assert settings_of(smoothed) == {**settings_of(plain), "label_smoothing": EPSILON}
    assert f"-ls{EPSILON}-i6-s0" in smoothed["name"] and "-ls" not in plain["name"]
    assert not same(weights_of(plain), weights_of(smoothed))
    named = ("--name", plain["name"], "--label-smoothing")
    refused(kdtool(*words, *named, EPSILON), 1, "label_smoothing None → 0.1", "another --name")
    assert made(*words, *named, 0) == plain  # off is what a run without it was


def test_at_alpha_1_there_is_nothing_to_smooth_and_no_such_setting(ours: Path):
    words = (*TRAINED, "-w", ours, "--alpha", 1)
    plain = made(*words)
    assert made(*words, "--label-smoothing", EPSILON) == plain
    preset = ("--recipe", "ffcv-imagenet-rn18-16", "--batch-size", 64, "--lr", 0.05)
    taught = made(*words, *preset)
    assert "label_smoothing" not in settings_of(taught) and "-ls" not in taught["name"]
    assert settings_of(taught)["batchnorm_decay"] is False
    half = made(*TRAINED, "-w", ours, "--alpha", 0.5, *preset)
    assert settings_of(half)["label_smoothing"] == 0.1 and "-ls" not in half["name"]
    unsmoothed = made(*TRAINED, "-w", ours, "--alpha", 0.5, *preset, "--label-smoothing", 0)
    assert "label_smoothing" not in settings_of(unsmoothed) and "-ls0-" in unsmoothed["name"]


# an average of the weights

AVERAGED = Case(alpha=0.5, precision="float64", changed=(("ema", 0.8), ("label_smoothing", EPSILON)))


def test_the_average_follows_the_weights_by_its_formula_and_leaves_them_alone():
    decay, plain = 0.8, replace(AVERAGED, changed=(("label_smoothing", EPSILON),))
    trainer, other = (trainer_of(case, resident_source(case), loss_of(case)) for case in (AVERAGED, plain))
    expected: dict[str, Tensor] = {}

    def follow() -> None:
        for name, tensor in trainer.model.state_dict().items():
            known = expected.get(name)
            expected[name] = tensor.clone() if known is None else decay * known + (1 - decay) * tensor

    while not trainer.finished:
        trainer.run_epoch(after_step=follow)
        follow()
        other.run_epoch()
    assert same(trainer.model.state_dict(), other.model.state_dict())
    trained = copy.deepcopy(trainer.model.state_dict())
    trainer.end()
    found = trainer.model.state_dict()
    batches = [name for name in found if name.endswith("num_batches_tracked")]
    assert batches and all(torch.equal(found[name], trained[name]) for name in batches)
    assert any(name.endswith("running_mean") for name in found)
    for name in found.keys() - set(batches):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)
        assert not torch.equal(found[name], trained[name]), name
    other.end()
    assert same(other.model.state_dict(), trained)


def test_what_a_network_remembers_beside_its_weights_is_not_averaged(ours: Path):
    run = made(*TRAINED, "-w", ours, "--alpha", 0.5, "--arch", "tests.own_things:Remembering", "--ema", 0.9)
    remembered = weights_of(run)["_extra_state"]
    settings = settings_of(run)
    batches = remembered.tolist()[-settings["iterations"] :]  # all of them; the first was of the check beforehand
    assert len(batches) == 6 and sum(batches) > 433 and set(batches) == {128.0, 433.0 % 128}


def test_two_decays_never_share_a_runs_name():
    decays = (0.9, 0.999, 0.9999, 0.99995, 0.9999999, 0.99999999, 1 - 2**-53)
    preset = {**recipe_settings(RECIPES["fast"]), "recipe": "fast"}
    names = [trained_name({**preset, "ema": decay}) for decay in decays]
    assert names[:3] == ["-ema0.9", "-ema0.999", "-ema0.9999"] and len(set(names)) == len(decays)
    rates = [trained_name({**preset, "lr": lr}) for lr in (0.05, 0.0500001, 0.05000001)]
    assert rates[0] == "-lr0.05" and len(set(rates)) == 3


def test_law_3_a_trainer_resumed_at_any_step_ends_in_the_same_average():
    case = AVERAGED
    whole = trainer_of(case, resident_source(case), loss_of(case))
    while not whole.finished:
        whole.run_epoch()
    whole.end()
    for step in (1, 6, 9, 22):
        states: list[dict[str, Any]] = []
        first = trainer_of(case, resident_source(case), loss_of(case))
        with pytest.raises(Killed):
            while True:
                first.run_epoch(after_step=lambda: states.append(copy.deepcopy(first.state())) or stop_at(first, step))  # noqa: B023
        second = trainer_of(case, resident_source(case), loss_of(case))
        second.load_state(states[-1])
        assert second.step == step
        while not second.finished:
            second.run_epoch()
        second.end()
        assert same(whole.model.state_dict(), second.model.state_dict())


def test_law_3_a_killed_run_with_an_average_ends_in_the_same_one(ours: Path, monkeypatch: pytest.MonkeyPatch):
    """After the fourth, eighth and twelfth of its 15 steps."""
    workspace, more = Workspace(ours), {"alpha": 0.5, "ema": 0.9, "label_smoothing": EPSILON}
    asked = {**STUDENT, **more, "checkpoint_minutes": EVERY_STEP}
    whole = Path(distill(workspace, name="whole", **asked)["path"])
    for _ in range(3):
        with killed_after(4, monkeypatch):
            distill(workspace, name="killed", **asked)
    resumed = Path(distill(workspace, name="killed", **asked)["path"])
    assert same_runs(resumed, whole)


def test_a_run_killed_after_its_last_step_goes_on_from_the_weights_and_keeps_the_average(
    ours: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is saved for resuming is the weights and the average; what is evaluated and kept is the average."""
    asked = {**STUDENT, "ema": 0.9}
    whole = distill(Workspace(ours), name="whole", **asked)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("toolkit.pipeline.student.predict", lambda *arguments: stop_at(_At(), 1))
        distill(Workspace(ours), name="killed", **asked)
    state = torch.load(ours / "runs" / "killed" / "checkpoint.pt", weights_only=True)["state"]
    kept = weights_of(whole)
    assert same(state["average"], kept) and not same(state["model"], kept)
    assert same(state["model"], weights_of(distill(Workspace(ours), name="plain", **STUDENT)))
    resumed = distill(Workspace(ours), name="killed", **asked)
    assert same(weights_of(resumed), kept) and resumed["top1"] == whole["top1"]
    assert made("evaluate", whole["path"], "-w", ours)["top1"] == whole["top1"]
    assert settings_of(whole)["ema"] == whole["ema"] == 0.9


class _At:
    step = 1


def test_a_teacher_keeps_the_average_and_records_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed too: the teacher is the same average; what was seen in training is that of one without it."""
    workspace, more = Workspace(tmp_path), {"ema": 0.9, "label_smoothing": EPSILON}
    smoothed = Path(train_teacher(workspace, name="smoothed", label_smoothing=EPSILON, **TEACHER)["path"])
    whole = Path(train_teacher(workspace, name="whole", **more, **TEACHER)["path"])
    for _ in range(3):
        with killed_after(3, monkeypatch):
            train_teacher(workspace, name="killed", checkpoint_minutes=EVERY_STEP, **more, **TEACHER)
    killed = Path(train_teacher(workspace, name="killed", **more, **TEACHER)["path"])
    kept = [load_checkpoint(path).weights for path in (smoothed, whole, killed)]
    assert same(kept[1], kept[2]) and not same(kept[0], kept[1])
    lines = [untimed(path.parent / "metrics.jsonl") for path in (smoothed, whole, killed)]
    assert lines[0] == lines[1] == lines[2]
    named = json.loads((whole.parent / "train.json").read_text())["settings"]
    assert (named["ema"], named["label_smoothing"]) == (0.9, EPSILON)


def test_trials_of_a_search_are_judged_by_their_weights(ours: Path):
    """An average would hardly have left the first weights after a few steps."""
    words = ("distill", "-w", ours, "--subset", "third", "--alpha", "search", "--iterations", 12, "--threads", 1)
    found = []
    for name, more in (("plain", ()), ("averaged", ("--ema", 0.999))):
        run = made(*words, *more, "--name", name)
        trials = json.loads((Path(run["path"]) / "run.json").read_text())["alpha_search"]["trials"]
        found.append([Trial(**{**trial, "seconds": 0.0}) for trial in trials])
        assert settings_of(run).get("ema") == (0.999 if more else None)
    assert found[0] == found[1]


# studies


def test_a_search_smooths_labels_in_its_trials_and_keeps_it_a_setting(ours: Path, monkeypatch: pytest.MonkeyPatch):
    honest, asked = alpha_search.distillation_loss, []

    def watched(*words: Any) -> Any:
        asked.append(words[4])
        return honest(*words)

    monkeypatch.setattr(alpha_search, "distillation_loss", watched)
    words = ("distill", "-w", ours, "--subset", "third", "--alpha", "search", "--epochs", 1)
    run = made(*words, "--label-smoothing", "0.2")
    assert len(asked) == 8 and set(asked) == {0.2}
    assert json.loads((Path(run["path"]) / "run.json").read_text())["settings"]["label_smoothing"] == 0.2


def test_a_sweep_says_them_to_every_student():
    asked = Sweep((0.1,), alpha=(0.0, 1.0), label_smoothing=EPSILON, ema=0.9)
    assert all(
        (said["label_smoothing"], said["ema"]) == (EPSILON, 0.9)
        for said in (asked.trained(cell, "subset", None, None) for cell in asked.cells)
    )
    assert asked.to_record()["label-smoothing"] == EPSILON
    with pytest.raises(UsageError, match=r"--label-smoothing 0\.1 has no meaning for --alpha 1"):
        Sweep((0.1,), label_smoothing=EPSILON)
    with pytest.raises(UsageError, match="--ema must be above 0"):
        Sweep((0.1,), ema=1.0)


def test_runs_tells_them_apart_and_old_runs_have_them_off(ours: Path):
    words = (*TRAINED, "-w", ours, "--alpha", 0.5)
    made(*words)
    made(*words, "--label-smoothing", EPSILON, "--ema", 0.9)
    made(*TRAINED, "-w", ours, "--alpha", 1, "--ema", 0.9)
    found = made("runs", "-w", ours)
    assert {"label_smoothing", "ema"} <= set(found["header"])
    known = {(row["alpha"], row["label_smoothing"], row["ema"]) for row in found["rows"]}
    assert known == {(0.5, 0.0, 0.0), (0.5, EPSILON, 0.9), (1.0, None, 0.9)}
    assert len(made("runs", "-w", ours, "--where", "ema=0")["rows"]) == 1
    means = made("runs", "-w", ours, "--by", "alpha,ema", "--against", "ema=0")
    paired = {(row["alpha"], row["ema"]): row["pairs"] for row in means["rows"]}
    assert paired[0.5, 0.9] == 0  # their smoothing differs too


def a_row(alpha: float, smoothing: float, ema: float | None = None, **more: Any) -> dict[str, Any]:
    """As of a run.json: off is absent."""
    on = {"label_smoothing": smoothing} if smoothing and alpha != 1 else {}
    on |= {} if ema is None else {"ema": ema}
    taught = {"teacher": "t", "temperature": 4.0, "match": "exact", "views": 2} if alpha else {}
    settings = {"alpha": alpha, "epochs": 3, "iterations": 30, "recipe": "fast", **taught, **on, **more}
    found = row_of("one", {"settings": settings, "result": {"top1": 90.0}}, {})
    assert found is not None
    return found


def test_a_picture_holds_them_fixed_and_alpha_1_stands_beside_every_smoothing():
    alphas = (0.0, 0.5, 1.0)
    rows = [a_row(alpha, smoothing) for smoothing in (0.0, EPSILON) for alpha in alphas]
    held = groups_of(prepared(rows), ("asked", "alpha"))
    found = [sorted((row["alpha"], row["label_smoothing"]) for row in group.rows if row["alpha"] < 1) for group in held]
    assert found == [[(0.0, 0.0), (0.5, 0.0)], [(0.0, EPSILON), (0.5, EPSILON)]]
    assert all(any(row["alpha"] == 1 for row in group.rows) for group in held)
    assert [group.in_words(["label_smoothing"]) for group in held] == [
        [*words[:-1], f"label smoothing {value}", words[-1]]
        for words, value in zip([group.in_words([]) for group in held], ("0", "0.1"), strict=True)
    ]
    averaged = groups_of(prepared([a_row(0.5, 0.0), a_row(0.5, 0.0, 0.9)]), ("asked",))
    assert len(averaged) == 2


def test_a_decay_of_batch_normalisation_is_no_other_runs():
    """Of an edited recipe: neither in one picture, nor paired."""
    spared = {"batchnorm_decay": False}
    rows = [a_row(0.5, 0.0), a_row(0.5, 0.0, **spared), a_row(1.0, 0.0, **spared)]
    assert [len(group.rows) for group in groups_of(prepared(rows), ("asked", "alpha"))] == [2, 1]
    _, averaged, _ = means(rows, [], [Condition.parse("alpha=1", "--against")], ["alpha"])
    assert {row["alpha"]: row["pairs"] for row in averaged if row["alpha"] < 1} == {0.5: 1}
