"""The laws of the README: exact targets, independence of batches, exact counts. Resumption: see test_resume.py.

Shapes: n rows, v views, b batch, c classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF

import toolkit.formats.blocks
import toolkit.formats.cache_writing
import toolkit.pipeline.cache_content
import toolkit.teacher.caching
from tests.conftest import made
from toolkit.core.recipes import RECIPES, lr_at
from toolkit.distill.losses import distillation_loss
from toolkit.formats.bundle import open_bundle
from toolkit.formats.checkpoint import load_checkpoint
from toolkit.formats.dataset import DataRecord, PackedData, open_packed
from toolkit.models.zoo import FeatureReader, build_model
from toolkit.pipeline.known_networks import network_of
from toolkit.pipeline.known_teachers import PRETRAINED_FOLDER
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import open_source
from toolkit.teacher.caching import TeacherPass
from toolkit.training.loop import Trainer
from toolkit.training.showing import Showing
from toolkit.training.targets import Targets

STEPS, BATCH, SEED, ALPHA, TAU = 50, 64, 5, 0.7, 4.0
ROWS = np.arange(0, 1442, 5)
TEACHER = PRETRAINED_FOLDER / "digits-resnet8.pt"

Draw = Callable[[int, int], torch.Tensor]  # a row and a view of it → (3, h, w) uint8


def digits_of(workspace: Path) -> PackedData:
    return open_packed(workspace / "data" / "digits")


def cached_logits(data: PackedData, precision: str, dtype: str, slots: int, rows: np.ndarray = ROWS) -> np.ndarray:
    """What cache-teacher keeps of the rows: (v, n, c)."""
    compute = compute_on("cpu", precision)
    record, model = network_of(TEACHER, data.record, compute)
    teacher = TeacherPass(FeatureReader(model), record.mean, record.std, compute.device, compute.dtype, precision, 100)
    views = teacher.reader(data.split("train"), data.record.plan)
    return np.stack([teacher.run(views, rows, slot)[0].astype(dtype) for slot in range(slots)])


def student_from_cache(
    data: PackedData, logits_vnc: np.ndarray, precision: str, steps: int = STEPS, rows: np.ndarray = ROWS
) -> torch.nn.Module:
    compute = compute_on("cpu", precision)
    targets = Targets.of_logits(logits_vnc, "exact")
    source = open_source(data.split("train"), rows, data.record, BATCH, SEED, compute, targets)
    model = compute.place(build_model("resnet8", 10, seed=SEED))
    loss = distillation_loss(ALPHA, TAU)
    trainer = Trainer(model, source, loss, RECIPES["fast"], steps, compute.device, precision)
    while not trainer.finished:
        trainer.run_epoch()
    return model


def live_teacher() -> torch.nn.Module:
    checkpoint = load_checkpoint(TEACHER)
    teacher = build_model(checkpoint.arch, 10, checkpoint.width)
    teacher.load_state_dict(checkpoint.weights)
    return teacher.to(torch.float64).eval()


def drawn_by_torchvision(data: PackedData) -> Draw:
    train, record = data.split("train"), data.record
    frames, pad = train.frames(), record.padding

    def draw(row: int, view: int) -> torch.Tensor:
        dy, dx, mirrored = record.plan.geometry(np.array([row]), np.array([view]), train.sizes_n2[[row]])[0].tolist()
        bordered = TF.pad(torch.from_numpy(frames[row]).permute(2, 0, 1), pad)
        image = TF.crop(bordered, pad + dy, pad + dx, record.height, record.width)
        return TF.hflip(image) if mirrored else image

    return draw


def network_input(draw: Draw, rows: np.ndarray, views: np.ndarray, record: DataRecord) -> torch.Tensor:
    """(b, 3, h, w) float64."""
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (record.mean, record.std))
    images = [draw(row, view).to(torch.float64) for row, view in zip(rows.tolist(), views.tolist(), strict=True)]
    return torch.stack([(image / 255 - mean) / std for image in images])


def student_of_a_live_teacher(
    data: PackedData, draw: Draw, slots: int, steps: int = STEPS, spoken: str = "float64", rows: np.ndarray = ROWS
) -> torch.nn.Module:
    """The loop others write, in float64: each image is drawn by itself, and the teacher runs at every step.

    The teacher's logits are rounded to `spoken`.
    """
    record, labels_n = data.record, torch.from_numpy(data.split("train").labels_n.copy())
    teacher, student = live_teacher(), build_model("resnet8", 10, seed=SEED).to(torch.float64)
    recipe = RECIPES["fast"]
    sgd = torch.optim.SGD(student.parameters(), lr=1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=False)
    nothing_but_the_number_of_slots = Targets.of_logits(np.zeros((slots, len(rows), 1), np.float32), "exact")
    showing = Showing(rows, record.plan, SEED, nothing_but_the_number_of_slots)
    step, epoch = 0, 0
    student.train()
    while step < steps:
        view_n, _ = showing.views(epoch)
        order = showing.order(epoch)
        for start in range(0, len(order), BATCH):
            if step == steps:
                break
            at_b = order[start : start + BATCH]
            x_bchw = network_input(draw, rows[at_b], view_n[at_b], record)
            with torch.no_grad():
                teacher_bc = torch.from_numpy(teacher(x_bchw).numpy().astype(spoken)).to(torch.float64)
            student_bc = student(x_bchw)
            p_bc = F.softmax(teacher_bc / TAU, dim=1)
            kl = (p_bc * (p_bc.log() - F.log_softmax(student_bc / TAU, dim=1))).sum(dim=1).mean()
            loss = (1 - ALPHA) * F.cross_entropy(student_bc, labels_n[rows[at_b]]) + ALPHA * TAU**2 * kl
            sgd.param_groups[0]["lr"] = lr_at(recipe, step, steps)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            step += 1
        epoch += 1
    return student


def largest_difference(ours: torch.nn.Module, theirs: torch.nn.Module) -> float:
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("slots", [9, 6], ids=["all", "epochs:6"])
def test_law_1_a_student_of_the_cache_is_the_student_of_a_live_teacher(digits: Path, slots: int):
    data = digits_of(digits)
    ours = student_from_cache(data, cached_logits(data, "float64", "float64", slots), "float64")
    assert largest_difference(ours, student_of_a_live_teacher(data, drawn_by_torchvision(data), slots)) < 1e-9


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_law_1_stored_targets_are_those_of_a_live_teacher_that_rounds_its_logits(digits: Path, stored: str):
    data = digits_of(digits)
    ours = student_from_cache(data, cached_logits(data, "float64", stored, 9), "float64")
    live = student_of_a_live_teacher(data, drawn_by_torchvision(data), 9, spoken=stored)
    assert largest_difference(ours, live) < 1e-9


# ReLUs turn a rounded logit into another branch sooner or later, so against an unrounded teacher we bound one step.
@pytest.mark.parametrize(("stored", "bound"), [("float32", 1e-8), ("float16", 1e-4)])
def test_law_1_rounding_the_targets_moves_one_step_by_less_than_its_bound(digits: Path, stored: str, bound: float):
    data = digits_of(digits)
    ours = student_from_cache(data, cached_logits(data, "float64", stored, 9), "float64", steps=1)
    live = student_of_a_live_teacher(data, drawn_by_torchvision(data), 9, steps=1)
    assert 0 < largest_difference(ours, live) < bound


def test_law_1_would_notice_a_teacher_shown_other_pixels(digits: Path):
    data = digits_of(digits)
    logits_vnc = cached_logits(data, "float64", "float64", 9)
    ours = student_from_cache(data, np.roll(logits_vnc, 1, axis=0), "float64")
    assert largest_difference(ours, student_of_a_live_teacher(data, drawn_by_torchvision(data), 9)) > 1e-3


def everything_in(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Whether two files hold the same datasets, bit for bit."""
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_adding_views_keeps_the_old_ones_and_equals_caching_them_at_once(digits: Path, tmp_path: Path):
    shutil.copytree(digits / "data", tmp_path / "data")
    words = ["cache-teacher", "-w", tmp_path, "--dataset", "digits"]
    first = made(*words, "--views", "2")
    more = made(*words, "--views", "5")
    assert (first["teacher_images"], more["teacher_images"]) == (2 * 1442 + 355, 3 * 1442)
    grown = everything_in(Path(more["path"]))
    made(*words, "--views", "5", "--force")
    at_once = everything_in(Path(more["path"]))
    assert same(grown, at_once)


# Bounds on logits of size up to about 20: rounding of the precision the teacher ran in, as stated in the README.
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-4), ("bfloat16", 0.5)])
def test_law_5_logits_do_not_depend_on_the_batch_size(digits: Path, tmp_path: Path, precision: str, bound: float):
    shutil.copytree(digits / "data", tmp_path / "data")
    words = ["cache-teacher", "-w", tmp_path, "--dataset", "digits", "--views", "2", "--precision", precision]
    words += ["--dtype", "float32"]
    caches = []
    for batch_size in (128, 37):
        path = made(*words, "--batch-size", batch_size, "--force")["path"]
        caches.append(everything_in(Path(path)))
    one, other = caches
    for slot in range(2):
        name = f"slots/{slot}/logits"
        assert np.abs(one[name] - other[name]).max() < bound


def test_law_5_targets_of_a_subset_are_the_caches(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    words = ["cache-teacher", "-w", tmp_path, "--subset", "third", "--views", "3", "--precision", "float32"]
    alone = everything_in(Path(made(*words, "--force")["path"]))
    whole_words = ["cache-teacher", "-w", tmp_path, "--dataset", "digits", "--views", "3", "--precision", "float32"]
    whole = everything_in(Path(made(*whole_words, "--force")["path"]))
    for slot in range(3):
        ours, theirs = alone[f"slots/{slot}/logits"], whole[f"slots/{slot}/logits"][alone["rows"]]
        assert np.abs(ours.astype(np.float32) - theirs).max() < 0.02  # one float16 step at 16 is 0.016


@pytest.mark.parametrize("frac", [0.0071, 0.1, 1 / 3, 0.5, 0.9999, 1])
@pytest.mark.parametrize(("method", "balance"), [("random", True), ("hardest", True), ("easiest", False)])
def test_law_7_subsets_have_exactly_the_rows_asked_for_and_every_class(
    digits: Path, tmp_path: Path, frac: float, method: str, balance: bool
):
    shutil.copytree(digits / "data", tmp_path / "data")
    shutil.copytree(digits / "teachers", tmp_path / "teachers")
    flag = "--balance" if balance else "--no-balance"
    words = ["build-subset", "-w", tmp_path, "--dataset", "digits", "--method", method, flag]
    result = made(*words, "--frac", frac)
    bundle = open_bundle(Path(result["path"]))
    assert result["rows"] == len(bundle.rows_m) == len(set(bundle.rows_m)) == round(frac * 1442)
    assert np.array_equal(np.unique(bundle.images().labels_n), np.arange(10))


def test_laws_hold_across_many_parts_and_blocks(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Digits fit one part of 8,192 rows; with parts of 100 the cache, its scores and its targets must be the same."""
    formats = (toolkit.formats.blocks, toolkit.formats.cache_writing)
    for module in (*formats, toolkit.teacher.caching, toolkit.pipeline.cache_content):
        monkeypatch.setattr(module, "BLOCK_ROWS", 100)
    shutil.copytree(digits / "data", tmp_path / "data")
    common = ["-w", tmp_path, "--dataset", "digits"]
    # batches of 20 divide both part sizes, so that the same rows go through the teacher together
    words = ["cache-teacher", *common, "--views", "3", "--precision", "float32", "--batch-size", "20"]
    small = everything_in(Path(made(*words)["path"]))
    made("build-subset", *common, "--frac", "0.3", "--name", "third")
    targets = everything_in(tmp_path / "subsets" / "third" / "targets" / "digits-resnet8.h5")
    assert len(small["checksums/slots/0/logits"]) == 15
    monkeypatch.undo()
    large = everything_in(Path(made(*words, "--force")["path"]))
    names = [name for name in large if not name.startswith("checksums/")]
    assert {name for name in small if not name.startswith("checksums/")} == set(names)
    for name in names:
        assert np.allclose(small[name].astype(float), large[name].astype(float), rtol=1e-3, atol=2e-2), name
    for slot in range(3):
        name = f"slots/{slot}/logits"
        assert np.array_equal(targets[name], small[name][targets["rows"]])
