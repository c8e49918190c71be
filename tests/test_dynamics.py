"""Training dynamics: what is recorded is what the training forward said, and recording changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.special
import torch

from tests.conftest import kdtool, made
from tests.test_bad_input import fails, truncated
from tests.test_resume import Moment, stopped_at
from toolkit.core.errors import FailureError
from toolkit.formats.beton import open_beton
from toolkit.formats.cache import open_cache
from toolkit.formats.checkpoint import load_checkpoint
from toolkit.formats.dynamics import SERIES, open_dynamics
from toolkit.teacher.dynamics import observed
from toolkit.training.loop import Trainer

# 200 rows of each split: an epoch takes a tenth of a second
TRAIN = (
    *("train-teacher", "--dataset", "digits", "--limit", 200, "--arch", "resnet8", "--width", 4),
    *("--threads", 1, "--batch-size", 64, "--precision", "float32"),
)


def trained(workspace: Path, name: str, *words: Any) -> Path:
    """The folder of a teacher trained now."""
    return Path(made(*TRAIN, "--name", name, *words, "-w", workspace)["path"]).parent


def all_of(folder: Path) -> dict[str, np.ndarray]:
    with open_dynamics(folder / "dynamics.h5") as dynamics:
        return {name: dynamics.read(name) for name in dynamics.dataset_names()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name], equal_nan=found[name].dtype.kind == "f") for name in found
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("dynamics")
    made("pack", "--dataset", "digits", "--limit", 200, "-w", workspace)
    return workspace


@pytest.fixture(scope="module")
def one(workspace: Path) -> Path:
    return trained(workspace, "one", "--epochs", 4, "--snapshots", "2,4")


def reference(logits_bc: np.ndarray, labels_b: np.ndarray, before_bc: np.ndarray) -> dict[str, np.ndarray]:
    """Row by row, in float64, by scipy."""
    p_bc, q_bc = (scipy.special.softmax(logits.astype(np.float64), axis=1) for logits in (logits_bc, before_bc))
    rows = range(len(labels_b))
    others = [np.delete(logits_bc[row], labels_b[row]).max() for row in rows]
    return {
        "correct": np.array([logits_bc[row].argmax() == labels_b[row] for row in rows]),
        "loss": -np.log([p_bc[row, labels_b[row]] for row in rows]),
        "el2n": np.array([np.linalg.norm(p_bc[row] - np.eye(p_bc.shape[1])[labels_b[row]]) for row in rows]),
        "logit_true": np.array([logits_bc[row, labels_b[row]] for row in rows]),
        "logit_other": np.array(others),
        "kl": scipy.special.rel_entr(p_bc, q_bc).sum(axis=1),
    }


def test_each_quantity_is_what_its_definition_says():
    rng = np.random.default_rng(0)
    logits_bc, before_bc = rng.normal(scale=3, size=(2, 50, 7)).astype(np.float32)
    labels_b = rng.integers(0, 7, 50)
    log_before_bc = torch.from_numpy(before_bc).log_softmax(dim=1)
    seen_b6, _ = observed(torch.from_numpy(logits_bc), torch.from_numpy(labels_b), log_before_bc)
    expected = reference(logits_bc, labels_b, before_bc)
    for at, name in enumerate(SERIES):
        np.testing.assert_allclose(seen_b6[:, at].numpy(), expected[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_a_row_learned_to_the_last_digit_keeps_its_error():
    """p_y rounds to 1 in float32, and 1 − p_y to 0; the error is e^−30 · √2 for two classes."""
    seen_b6, _ = observed(torch.tensor([[30.0, 0.0]]), torch.tensor([0]), torch.zeros(1, 2))
    assert seen_b6[0, list(SERIES).index("el2n")].item() == pytest.approx(np.sqrt(2) * np.exp(-30), rel=1e-4)


def test_what_is_recorded_is_what_the_training_forward_said(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    """The loop's own logits, listened to by a second ear."""
    heard: list[tuple[np.ndarray, ...]] = []
    step = Trainer.take_step

    def listening(trainer: Trainer, batch: Any) -> Any:
        forward = trainer._forward_for(batch)

        def heard_forward(images: torch.Tensor) -> torch.Tensor:
            logits = forward(images)
            heard.append((batch.rows_b.numpy(), batch.labels_b.numpy(), logits.detach().numpy().copy()))
            return logits

        monkeypatch.setattr(trainer, "_forward_for", lambda batch: heard_forward)
        done = step(trainer, batch)
        monkeypatch.delattr(trainer, "_forward_for")
        return done

    monkeypatch.setattr(Trainer, "take_step", listening)
    folder = trained(workspace, "heard", "--epochs", 3)
    steps = len(heard) // 3
    logits_enc = np.zeros((3, 200, 10), dtype=np.float32)
    labels_n = np.zeros(200, dtype=np.int64)
    for number, (rows_b, labels_b, logits_bc) in enumerate(heard):
        logits_enc[number // steps, rows_b], labels_n[rows_b] = logits_bc, labels_b
    with open_dynamics(folder / "dynamics.h5") as dynamics:
        assert np.array_equal(dynamics.rows_n, np.arange(200))
        assert np.array_equal(dynamics.labels_n, labels_n)
        for epoch in (1, 2, 3):
            expected = reference(logits_enc[epoch - 1], labels_n, logits_enc[epoch - 2])
            for name in SERIES:
                found_n = dynamics.epoch(name, 0, epoch)
                if name == "kl" and epoch == 1:
                    assert np.isnan(found_n).all()
                else:
                    np.testing.assert_allclose(found_n, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_recording_changes_nothing(one: Path, workspace: Path):
    """Weights bit for bit: with snapshots or without, watched or not."""
    weights = load_checkpoint(one / "teacher.pt").weights
    for name, words in {"unwatched": ("--no-dynamics",), "no snapshots": ()}.items():
        folder = trained(workspace, name, "--epochs", 4, *words)
        others = load_checkpoint(folder / "teacher.pt").weights
        assert all(torch.equal(weights[key], others[key]) for key in weights)
        assert (folder / "dynamics.h5").exists() == (name != "unwatched")


def test_under_bfloat16_more_than_its_three_digits_are_recorded(workspace: Path):
    """The last layer is computed again in float32: its logits are not all numbers that bfloat16 has."""
    folder = trained(workspace, "half", "--epochs", 1, "--precision", "bfloat16")
    logit_n = all_of(folder)["seeds/0/epochs/1/logit_true"]
    rounded_n = torch.from_numpy(logit_n).bfloat16().float().numpy()
    assert (logit_n != rounded_n).mean() > 0.9
    np.testing.assert_allclose(logit_n, rounded_n, rtol=2**-8)


def test_a_snapshot_is_what_a_cache_of_that_teacher_holds(one: Path, workspace: Path):
    cached = made(
        *("cache-teacher", "--dataset", "digits", "--limit", 200, "--teacher", "one", "--views", 1),
        *("--precision", "float32", "--threads", 1, "-w", workspace),
    )
    with open_cache(Path(cached["path"])) as cache, open_dynamics(one / "dynamics.h5") as dynamics:
        assert dynamics.record.snapshots == [2, 4]
        assert dynamics.record.teacher_fingerprint == cache.record.teacher_fingerprint
        # other batch sizes round otherwise
        for name, stored in {"logits": "slots/0/logits", "features": "features"}.items():
            last, expected = dynamics.snapshot(name, 0, 4), cache.read(stored)
            np.testing.assert_allclose(last.astype(np.float32), expected.astype(np.float32), rtol=2e-3, atol=2e-3)
            assert not np.allclose(dynamics.snapshot(name, 0, 2), expected, rtol=1e-2, atol=1e-2)


def test_every_seed_is_a_training_of_its_own(workspace: Path):
    """The second of two is the one that --seed names; the first is the teacher."""
    both = trained(workspace, "both", "--epochs", 2, "--seed", 5, "--seeds", 2, "--snapshots", 1)
    alone = [trained(workspace, f"s{seed}", "--epochs", 2, "--seed", seed, "--snapshots", 1) for seed in (5, 6)]
    found = all_of(both)
    for index, folder in enumerate(alone):
        of_seed = {name: array for name, array in found.items() if name.startswith(f"seeds/{index}/")}
        expected = {name.replace("seeds/0/", f"seeds/{index}/"): array for name, array in all_of(folder).items()}
        assert same(of_seed, {name: array for name, array in expected.items() if name.startswith("seeds/")})
    first, teacher = (load_checkpoint(folder / "teacher.pt").weights for folder in (alone[0], both))
    assert all(torch.equal(first[key], teacher[key]) for key in first)
    with open_dynamics(both / "dynamics.h5") as dynamics:
        assert dynamics.record.seeds == [5, 6]
        assert dynamics.record.top1s == [load_checkpoint(folder / "teacher.pt").top1 for folder in alone]
    assert sorted(path.name for path in both.iterdir() if not path.name.startswith(".")) == [
        *("dynamics.h5", "metrics.jsonl", "teacher.pt", "train.json")
    ]


@pytest.mark.parametrize("call", [1, 4, 8, 11])
def test_a_killed_recording_resumed_equals_one_left_alone(call: int, workspace: Path, tmp_path: Path):
    """Before a part of either training is written, or a snapshot: then run again."""
    words = ("--epochs", 4, "--seeds", 2, "--snapshots", "1,3")
    ours = tmp_path / "ours"
    shutil.copytree(workspace / "data", ours / "data")
    moment = Moment("toolkit.formats.parts", "Parts.save", call)
    with stopped_at(moment, *TRAIN, "--name", "killed", *words, "-w", ours):
        pass
    assert not (ours / "teachers" / "killed" / "dynamics.h5").exists()
    name = "left-alone"
    expected = workspace / "teachers" / name
    if not expected.exists():
        trained(workspace, name, *words)
    assert same(all_of(trained(ours, "killed", *words)), all_of(expected))


def test_dynamics_of_a_subset_are_of_its_rows(workspace: Path):
    rows = made(
        *("build-subset", "--dataset", "digits", "--limit", 200, "--frac", 0.3, "--name", "some", "-w", workspace)
    )["rows"]
    folder = trained(workspace, "part", "--epochs", 1, "--subset", "some")
    with open_dynamics(folder / "dynamics.h5") as dynamics:
        labels_n = open_beton(workspace / "data" / "digits-limit-200" / "train.beton").labels_n
        assert len(dynamics.rows_n) == rows == 60
        assert np.array_equal(dynamics.labels_n, labels_n[dynamics.rows_n])
        assert dynamics.record.rows_fingerprint != ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--snapshots", "0"), "2303.14753"),
        (("--snapshots", "1,5"), "4 epochs"),
        (("--snapshots", "early"), "like 2,10"),
        (("--snapshots", ""), "like 2,10"),
        (("--snapshots", "-1"), "like 2,10"),
        (("--snapshots", "1", "--no-dynamics"), "--no-dynamics"),
        (("--seeds", "0"), "--seeds"),
        (("--seeds", "2", "--no-dynamics"), "--no-dynamics"),
        (("--seeds", "2", "--seed", str((1 << 63) - 1)), "--seed"),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_line(workspace: Path, words: tuple[str, ...], said: str):
    fails(kdtool(*TRAIN, "--epochs", 4, "--name", "new", *words, "-w", workspace), 2, said)
    assert not (workspace / "teachers" / "new").exists()


def test_a_training_begun_without_dynamics_is_not_finished_with_them(workspace: Path, tmp_path: Path):
    ours = tmp_path / "ours"
    shutil.copytree(workspace / "data", ours / "data")
    command = (*TRAIN, "--epochs", 4, "--name", "t", "-w", ours)
    moment = Moment("toolkit.training.run", "_write_metrics", 2)  # a checkpoint of two epochs is there
    with stopped_at(moment, *command, "--no-dynamics"):
        pass
    fails(kdtool(*command), 1, "--no-dynamics", "--force")
    assert kdtool(*command, "--no-dynamics").exit_code == 0


@pytest.mark.parametrize("size", [0, 100, -100])
def test_truncated_dynamics_are_refused_with_the_command_that_records_them(one: Path, tmp_path: Path, size: int):
    path = shutil.copy(one / "dynamics.h5", tmp_path / "dynamics.h5")
    truncated(Path(path), size)
    with pytest.raises(FailureError, match="kdtool train-teacher"), open_dynamics(Path(path)):
        pass


def test_a_changed_bit_is_found(one: Path, tmp_path: Path):
    path = Path(shutil.copy(one / "dynamics.h5", tmp_path / "dynamics.h5"))
    with h5py.File(path, "r+") as file:
        file["seeds/0/epochs/2/loss"][7] += 1
    with open_dynamics(path) as dynamics:
        assert dynamics.epoch("loss", 0, 1).shape == (200,)
        with pytest.raises(FailureError, match=r"seeds/0/epochs/2/loss.*--limit 200"):
            dynamics.epoch("loss", 0, 2)


def test_another_kind_of_file_is_no_dynamics(digits: Path):
    cache = digits / "teachers" / "digits-resnet8" / "cache.h5"
    with pytest.raises(FailureError, match="not dynamics"), open_dynamics(cache):
        pass
    with pytest.raises(FailureError, match="not found"), open_dynamics(digits / "no.h5"):
        pass


def test_a_teacher_made_again_leaves_no_dynamics_of_the_one_before(workspace: Path):
    folder = trained(workspace, "again", "--epochs", 1)
    assert (folder / "dynamics.h5").exists()
    trained(workspace, "again", "--epochs", 1, "--seed", 7, "--no-dynamics", "--force")
    assert not (folder / "dynamics.h5").exists()


def test_a_finished_training_that_recorded_nothing_says_so(workspace: Path):
    trained(workspace, "silent", "--epochs", 1, "--no-dynamics")
    fails(kdtool(*TRAIN, "--name", "silent", "--epochs", 1, "-w", workspace), 1, "--force", "--no-dynamics")
    trained(workspace, "silent", "--epochs", 1, "--no-dynamics")


def test_default_names_tell_trainings_apart_that_were_recorded_otherwise(workspace: Path):
    names = [made(*TRAIN, "--epochs", 1, *words, "-w", workspace)["name"] for words in ((), ("--snapshots", "1"))]
    assert names == ["digits-limit-200-resnet8-w4-b64-s0", "digits-limit-200-resnet8-w4-b64-snap1-s0"]
