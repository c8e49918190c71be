"""Weights: how much each row of a subset counts, from its bundle to the loss of a student.

Shapes: m rows of the subset, b batch, c classes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from torch import Tensor

import toolkit
from tests.conftest import made, start_kdtool
from tests.loss_curves import CASES, ROWS, shown, trainer_of
from tests.loss_curves import digits as digits_arrays
from tests.test_bad_input import edited, flipped, refused
from tests.test_sources import same_batches, source_of
from tests.test_step import never_waits
from toolkit.core.errors import FailureError
from toolkit.distill.losses import distillation_loss, soft_target_loss, weighted_cross_entropy
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.encodings import Encoding
from toolkit.formats.weights import WEIGHTS, read_weights, weights_fingerprint, write_weights
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import open_source
from toolkit.selection.methods import METHODS
from toolkit.training.resident import ResidentSource
from toolkit.training.showing import Batch
from toolkit.training.targets import TopK

TAU = 3.0
WEIGHTED = [name for name, method in METHODS.items() if method.weighted]


@pytest.fixture(scope="module")
def craig(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a weighted subset, `craig`, and a random one, `third`. Read it only."""
    workspace = Path(shutil.copytree(digits, tmp_path_factory.mktemp("weights") / "work"))
    made(
        "build-subset", "-w", workspace, "--dataset", "digits", "--frac", "0.2", "--method", "craig", "--name", "craig"
    )
    return workspace


@pytest.fixture
def ours(craig: Path, tmp_path: Path) -> Path:
    """A copy to write in."""
    return Path(shutil.copytree(craig, tmp_path / "ours"))


def bundle_of(workspace: Path) -> Bundle:
    return open_bundle(workspace / "subsets" / "craig")


def logits(seed: int, rows: int = 6, classes: int = 10) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def top(logits_bc: Tensor, kept: int) -> TopK:
    arrays = Encoding.parse(f"topk:{kept}", logits_bc.shape[1]).encode(logits_bc.numpy())
    values, indices, tail = (arrays[f"topk/{name}"] for name in ("values", "indices", "tail"))
    return TopK(torch.from_numpy(values), torch.from_numpy(indices.astype(np.int64)), torch.from_numpy(tail))


def batch_of(labels_b: Tensor, teacher: Tensor | TopK, weights_b: Tensor | None) -> Batch:
    nothing = torch.empty(0)
    return Batch(nothing, labels_b, nothing, teacher, weights_b)


LABELS = torch.tensor([0, 3, 1, 9, 9, 4])
TEACHERS: dict[str, Callable[[], Tensor | TopK]] = {"all": lambda: logits(1), "topk:3": lambda: top(logits(1), 3)}


def rows_of(teacher: Tensor | TopK, at_b: Tensor) -> Tensor | TopK:
    return TopK(*(column[at_b] for column in teacher)) if isinstance(teacher, TopK) else teacher[at_b]


# the loss


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_the_mean_of_each_rows_own_times_its_weight(alpha: float):
    """Against the formulas in numpy, row by row."""
    student_bc, teacher_bc, weights_b = logits(0), logits(1), np.array([0.0, 0.5, 1.0, 2.5, 1.5, 0.25])
    expected = 0.0
    for row, (student_c, teacher_c) in enumerate(zip(student_bc.numpy(), teacher_bc.numpy(), strict=True)):
        p_c, q_c = scipy.special.softmax(teacher_c / TAU), scipy.special.softmax(student_c / TAU)
        hard = -np.log(scipy.special.softmax(student_c)[LABELS[row]])
        soft = TAU**2 * float((p_c * (np.log(p_c) - np.log(q_c))).sum())
        expected += weights_b[row] * ((1 - alpha) * hard + alpha * soft) / 6
    batch = batch_of(LABELS, teacher_bc, torch.from_numpy(weights_b))
    assert distillation_loss(alpha, TAU)(student_bc, batch).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("teacher", list(TEACHERS))
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_whole_weights_are_rows_that_come_as_often(alpha: float, teacher: str):
    """Loss and gradient; the batch is divided by as many rows as the weights add up to."""
    times = torch.tensor([1, 0, 2, 3, 0, 0])  # mean 1
    often_b = torch.repeat_interleave(torch.arange(6), times)
    loss = distillation_loss(alpha, TAU)
    weighted_bc, repeated_bc = logits(0).requires_grad_(), logits(0).requires_grad_()
    one = loss(weighted_bc, batch_of(LABELS, TEACHERS[teacher](), times.double()))
    targets = rows_of(TEACHERS[teacher](), often_b)
    other = loss(repeated_bc[often_b], batch_of(LABELS[often_b], targets, None))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    one.backward()
    other.backward()
    torch.testing.assert_close(weighted_bc.grad, repeated_bc.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("teacher", list(TEACHERS))
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_equal_weights_are_no_weights(alpha: float, teacher: str):
    loss = distillation_loss(alpha, TAU)
    plain = loss(logits(0), batch_of(LABELS, TEACHERS[teacher](), None))
    equal = loss(logits(0), batch_of(LABELS, TEACHERS[teacher](), torch.ones(6, dtype=torch.float64)))
    torch.testing.assert_close(equal, plain, rtol=1e-14, atol=0)


def test_without_weights_the_loss_is_torchs_own_bit_for_bit():
    assert torch.equal(weighted_cross_entropy(logits(0), LABELS), F.cross_entropy(logits(0), LABELS))
    assert torch.equal(soft_target_loss(logits(0), logits(1), TAU), soft_target_loss(logits(0), logits(1), TAU, None))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_batches_estimate_the_weighted_mean_of_the_subset_without_bias(alpha: float):
    """The mean over all batches of two of six rows is the loss of the six."""
    weights_b = torch.tensor([0.0, 0.5, 1.0, 2.5, 1.5, 0.5], dtype=torch.float64)
    loss, teacher_bc = distillation_loss(alpha, TAU), logits(1)
    pairs = torch.combinations(torch.arange(6), 2)
    each = [loss(logits(0)[at], batch_of(LABELS[at], teacher_bc[at], weights_b[at])) for at in pairs]
    whole = loss(logits(0), batch_of(LABELS, teacher_bc, weights_b))
    torch.testing.assert_close(torch.stack(each).mean(), whole, rtol=1e-12, atol=0)


def test_a_weighted_step_and_its_batch_never_wait():
    case = replace(CASES["all views and labels, nearest"], precision="float32")
    images_nhwc, labels_n = digits_arrays()
    weights_n = (np.arange(len(ROWS)) % 3).astype(np.float32)
    source = ResidentSource(images_nhwc[ROWS], labels_n[ROWS], ROWS, *shown(case), weights_n=weights_n)
    trainer = trainer_of(case, source, distillation_loss(case.alpha, case.temperature))
    batches = source.batches(0)
    trainer.take_step(next(batches))
    with never_waits():
        batch = next(batches)
        trainer.take_step(batch)
    assert batch.weights_b is not None


# the batches


@pytest.mark.parametrize("match", ["exact", "mean"])
def test_both_sources_give_the_same_weighted_batches_and_each_row_its_own(craig: Path, match: str):
    bundle = bundle_of(craig)
    targets, compute = load_knowledge(bundle, match=match, views=3).targets, compute_on("cpu", "float32", 1)
    shown = (bundle.images(), bundle.indices_m, bundle.data, 50, 3, compute, targets)
    assert bundle.weights_m is not None
    resident, stream = (open_source(*shown, kind, bundle.weights_m) for kind in ("resident", "stream"))
    assert same_batches(resident, stream)
    weight_of = dict(zip(bundle.rows_m.tolist(), bundle.weights_m.tolist(), strict=True))
    for batch in resident.batches(1):
        assert batch.weights_b is not None and batch.weights_b.dtype == batch.images_bchw.dtype
        assert batch.weights_b.tolist() == [weight_of[row] for row in batch.rows_b.tolist()]
    other = open_source(*shown, "stream", bundle.weights_m[::-1].copy())
    assert not same_batches(resident, other)


@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_weights_of_other_rows_are_refused(craig: Path, kind: str):
    bundle = bundle_of(craig)
    compute = compute_on("cpu", "float32", 1)
    with pytest.raises(ValueError, match="287 weights for 288 rows"):
        open_source(
            bundle.images(), bundle.indices_m, bundle.data, 50, 3, compute, None, kind, np.ones(287, np.float32)
        )


def test_subset_loader_gives_weights_where_the_bundle_has_them(craig: Path):
    bundle = bundle_of(craig)
    given: dict[int, float] = {}
    for batch in toolkit.subset_loader(bundle.folder, batch_size=100):
        given |= dict(zip(batch.rows_b.tolist(), batch.weights_b.tolist(), strict=True))
    assert bundle.weights_m is not None
    assert [given[row] for row in bundle.rows_m.tolist()] == bundle.weights_m.tolist()
    random = toolkit.subset_loader(craig / "subsets" / "third", batch_size=100)
    assert all(batch.weights_b is None for batch in random)


def test_without_weights_batches_say_so(craig: Path):
    for kind in ("resident", "stream"):
        assert next(source_of(kind, bundle_of(craig), None).batches(0)).weights_b is None


# the bundle


def test_weights_stand_in_the_order_of_the_images(craig: Path):
    bundle = bundle_of(craig)
    with h5py.File(bundle.folder / WEIGHTS) as file:
        assert file["weights"].dtype == np.float32 and file["weights"].chunks is None
        assert np.array_equal(file["rows"], bundle.images().rows_n)
        assert np.array_equal(file["weights"], bundle.weights_m)
        assert "checksums/weights" in file and "checksums/rows" in file
    weights_m = bundle.weights_m
    assert weights_m is not None and weights_m.min() >= 0 and weights_m.mean() == pytest.approx(1, abs=1e-5)
    assert bundle.record.weights_fingerprint == weights_fingerprint(weights_m)
    assert open_bundle(craig / "subsets" / "third").weights_m is None
    assert not (craig / "subsets" / "third" / WEIGHTS).exists()


def test_an_indexed_subset_has_the_same_weights(ours: Path):
    words = ("build-subset", "-w", ours, "--dataset", "digits", "--frac", "0.2", "--method", "craig", "--index-only")
    indexed = open_bundle(Path(made(*words)["path"]))
    assert np.array_equal(indexed.weights_m, bundle_of(ours).weights_m)


DISTILL = ("distill", "--subset", "craig", "--weights", "--epochs", "1", "--name", "new")
AGAIN = ("build-subset", "--dataset", "digits", "--frac", "0.2", "--method", "craig", "--name", "craig")


def test_damaged_weights_are_refused_by_all_who_need_them(ours: Path):
    path = bundle_of(ours).folder / WEIGHTS
    content = path.read_bytes()

    def all_refuse(*words: str) -> None:
        for command in (DISTILL, AGAIN):
            refused(ours, command, 1, WEIGHTS, *words, "Run: kdtool build-subset --dataset digits --frac 0.2")
        with pytest.raises(FailureError, match=WEIGHTS):
            toolkit.subset_loader(path.parent)

    flipped(path, bundle_of(ours).weights_m)
    all_refuse("/weights", "fails its checksum")
    path.write_bytes(content[: len(content) // 2])
    all_refuse("not a readable HDF5 file")
    path.unlink()
    all_refuse("not found")
    rows_m, weights_m = bundle_of(ours).rows_m, np.ones(288, np.float32)
    write_weights(path, rows_m, weights_m, "craig")
    all_refuse("its weights are not those of subset.json")
    write_weights(path, rows_m + 1, weights_m, "craig")
    all_refuse("weighs other rows")
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    all_refuse("expected schema")


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_weights_that_cannot_be_are_neither_written_nor_read(tmp_path: Path, bad: float):
    path, rows_m, weights_m = tmp_path / WEIGHTS, np.arange(5), np.ones(5, np.float32)
    weights_m[3] = bad
    with pytest.raises(ValueError, match=r"weight 3 is"):
        write_weights(path, rows_m, weights_m, "mine")
    with pytest.raises(ValueError, match="for 5 rows"):
        write_weights(path, rows_m, np.ones(4), "mine")
    assert not path.exists()
    write_weights(path, rows_m, np.ones(5), "mine")
    with pytest.raises(FailureError, match="other rows"):
        read_weights(path, np.arange(6), "kdtool")


# distill --weights


def weights_after(run: dict[str, Any]) -> dict[str, Tensor]:
    return torch.load(Path(run["path"]) / "student.pt", weights_only=True)["weights"]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_weights_are_a_setting_of_the_run_only_where_they_are_asked_for(ours: Path):
    words = ("distill", "-w", ours, "--subset", "craig", "--epochs", "1", "--threads", "1", "--alpha", "0.5")
    plain, weighted = made(*words), made(*words, "--weights")
    assert "-weighted-e1-s0" in weighted["name"] and "weighted" not in plain["name"]
    settings = [json.loads((Path(run["path"]) / "run.json").read_text())["settings"] for run in (plain, weighted)]
    assert "weights" not in settings[0]
    assert settings[1]["weights"] == bundle_of(ours).record.weights_fingerprint
    assert {**settings[0], "weights": settings[1]["weights"]} == settings[1]
    assert not same(weights_after(plain), weights_after(weighted))
    assert made(*words, "--weights") == weighted  # it is there
    line = refused(ours, (*words[:1], *words[3:], "--weights", "--name", plain["name"]), 1, "weights None →")
    assert "another --name" in line


def test_equal_weights_train_the_student_that_none_do(ours: Path):
    bundle = bundle_of(ours)
    ones_m = np.ones(len(bundle.rows_m), np.float32)
    write_weights(bundle.folder / WEIGHTS, bundle.rows_m, ones_m, "craig")
    edited(bundle.folder / "subset.json", weights_fingerprint=weights_fingerprint(ones_m))
    words = ("distill", "-w", ours, "--subset", "craig", "--epochs", "1", "--threads", "1", "--precision", "float64")
    plain, weighted = weights_after(made(*words)), weights_after(made(*words, "--weights"))
    for name, tensor in plain.items():
        torch.testing.assert_close(weighted[name], tensor, rtol=1e-9, atol=1e-9)


def test_a_killed_weighted_run_resumes_to_the_same_weights(ours: Path):
    words = ("distill", "-w", ours, "--subset", "craig", "--weights", "--epochs", "4", "--threads", "1")
    alone = weights_after(made(*words, "--name", "alone"))
    process = start_kdtool(*words, "--name", "killed")
    checkpoint = ours / "runs" / "killed" / "checkpoint.pt"
    for _ in range(3000):
        if checkpoint.is_file() or process.poll() is not None:
            break
        time.sleep(0.01)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert same(weights_after(made(*words, "--name", "killed", "--source", "stream")), alone)


def test_a_run_begun_without_weights_is_not_gone_on_with(ours: Path):
    words = ("distill", "--subset", "craig", "--epochs", "2", "--name", "one")
    made(*words, "-w", ours)
    refused(ours, (*words, "--weights"), 1, "other settings", "weights None →")


def test_a_subset_without_weights_says_which_methods_give_them(ours: Path):
    line = refused(ours, ("distill", "--subset", "third", "--weights"), 2, "--weights", "third (by random) holds none")
    assert all(name in line for name in WEIGHTED)
    assert "kdtool build-subset --dataset digits --frac 0.3 --method craig" in line


def test_the_subset_to_take_instead_is_like_the_one_there(ours: Path):
    common = ("-w", ours, "--dataset", "digits", "--limit", "200")
    made("cache-teacher", *common, "--views", "1")
    built = ("--frac", "0.25", "--method", "hardest", "--seed", "3", "--no-balance", "--name", "part")
    made("build-subset", *common, *built)
    line = refused(ours, ("distill", "--subset", "part", "--weights"), 2, "part (by hardest) holds none")
    command = line.split("Run: ")[1]
    assert command == (
        "kdtool build-subset --dataset digits --limit 200 --frac 0.25 --method craig --teacher digits-resnet8 --seed 3 "
        "--no-balance"
    )
    made(*command.split()[1:], "-w", ours)
