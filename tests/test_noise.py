"""Label noise: exactly as many flipped labels as asked for, nothing else changed, and which ones is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import kdtool, made
from tests.test_beton import Images, through_ffcv
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import rng_for
from toolkit.data.noise import check_noise, flipped
from toolkit.formats import beton as beton_module
from toolkit.formats.beton import open_beton, relabelled
from toolkit.formats.beton_writer import write_beton
from toolkit.formats.bundle import open_bundle
from toolkit.formats.dataset import noise_name, noise_named, noise_of, open_packed, pack_command
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import ensure_packed

NOISY = "digits-noise-0.1-s0"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with digits, and with a tenth of their labels flipped. Read it only."""
    workspace = tmp_path_factory.mktemp("noise")
    made("noise", "-w", workspace, "--dataset", "digits", "--rate", 0.1)
    return workspace


@pytest.fixture()
def copied(noisy: Path, tmp_path: Path) -> Path:
    """The same, to write in."""
    return Path(shutil.copytree(noisy, tmp_path / "work"))


@pytest.mark.parametrize(("rate", "count"), [(0.1, 100), (0.0125, 12), (0.9994, 1000 - 1), (0.0006, 1)])
def test_exactly_the_share_asked_for_is_flipped_to_another_class(rate: float, count: int):
    labels_n = rng_for(1).integers(4, size=1000)
    rows_m, labels_m = flipped(labels_n, 4, rate, rng_for(2))
    assert len(np.unique(rows_m)) == len(rows_m) == len(labels_m) == count
    assert np.all(np.diff(rows_m) > 0)
    assert np.all(labels_m != labels_n[rows_m])
    assert set(labels_m) <= set(range(4))


def test_rows_and_new_labels_are_uniform():
    """Chi-squared against the uniform: classes of very different sizes are hit in proportion, and every other class
    takes each other's place equally often. The seed is fixed, so this holds or not for good."""
    from scipy.stats import chisquare

    labels_n = np.repeat(np.arange(5), [20_000, 10_000, 5_000, 3_000, 2_000])
    rows_m, labels_m = flipped(labels_n, 5, 0.5, rng_for(3))
    true_m = labels_n[rows_m]
    assert chisquare(np.histogram(rows_m, bins=40, range=(0, 40_000))[0]).pvalue > 0.01
    table = np.array([[np.sum((true_m == a) & (labels_m == b)) for b in range(5) if b != a] for a in range(5)])
    assert chisquare(table, axis=1).pvalue.min() > 0.01


def test_of_two_classes_each_becomes_the_other():
    labels_n = np.array([0, 1] * 50)
    rows_m, labels_m = flipped(labels_n, 2, 0.3, rng_for(0))
    assert np.array_equal(labels_m, 1 - labels_n[rows_m])


@pytest.mark.parametrize(("classes", "rate", "said"), [(1, 0.5, "no other"), (3, 0.004, "flips none of 100 labels")])
def test_labels_that_cannot_be_flipped_are_refused(classes: int, rate: float, said: str):
    with pytest.raises(ValueError, match=said):
        flipped(np.zeros(100, dtype=np.int64), classes, rate, rng_for(0))


@pytest.mark.parametrize("rate", [0.1, 0.05, 1e-5, 0.999999, 0.25, 0.333333])
def test_a_name_says_its_data_set_rate_and_seed(rate: float):
    assert noise_named(noise_name("glyphs-100", rate, 7)) == ("glyphs-100", rate, 7)


@pytest.mark.parametrize(
    "name",
    ["digits", "digits-noise-0.10-s0", "digits-noise-1-s0", "digits-noise-0-s0", "digits-noise-0.1-s00",
     "digits-noise-0.1.2-s0", "digits-noise-0.1", "digits-noise--s0", "-noise-0.1-s0", "digits-noise-.1-s0"],
)  # fmt: skip
def test_other_names_are_not_taken_for_noise(name: str):
    assert noise_named(name) is None


def test_the_command_that_makes_noisy_data_again_is_noise():
    assert pack_command(NOISY) == "kdtool noise --dataset digits --rate 0.1 --seed 0 --force"
    assert pack_command(f"{NOISY}-limit-50") == "kdtool noise --dataset digits --rate 0.1 --seed 0 --limit 50 --force"
    assert pack_command("digits-limit-50") == "kdtool pack --dataset digits --limit 50 --force"


def test_relabelled_changes_labels_and_no_other_byte(tmp_path: Path):
    write_beton(Images(40, ragged=True), tmp_path / "a.beton", classes=5, workers=1)
    source = open_beton(tmp_path / "a.beton")
    labels_n = (source.labels_n + np.arange(40) % 2) % 5
    fingerprint = relabelled(source, labels_n, tmp_path / "b.beton")
    changed = open_beton(tmp_path / "b.beton")
    assert np.array_equal(changed.labels_n, labels_n)
    assert fingerprint == changed.content_fingerprint() != source.content_fingerprint()
    at = np.flatnonzero(source.content != changed.content)
    records_at = beton_module._HEADER.itemsize + len(source.field_bytes)
    inside, offset = np.divmod(at - records_at, beton_module._RECORD.itemsize)
    assert set(inside) == set(range(1, 40, 2))
    assert set(offset) == {beton_module._RECORD.fields["label"][1]}  # type: ignore[index]


def test_ffcvs_own_loader_reads_the_new_labels(noisy: Path):
    before, after = (open_packed(noisy / "data" / name).split("train") for name in ("digits", NOISY))
    images, labels, rows = through_ffcv(after.path)
    assert np.array_equal(images, before.frames())
    assert np.array_equal(labels, after.labels_n)
    assert np.array_equal(rows, np.arange(len(before)))


def test_a_refused_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_beton(Images(40), tmp_path / "a.beton", classes=5, workers=1)
    source = open_beton(tmp_path / "a.beton")
    with pytest.raises(ValueError, match="for 40 rows"):
        relabelled(source, np.zeros(39, dtype=np.int64), tmp_path / "b.beton")

    def full(path: Path, size_bytes: int) -> None:
        raise FailureError(f"{size_bytes} bytes are too many")

    monkeypatch.setattr(beton_module, "need_space", full)
    with pytest.raises(FailureError, match=f"^{source.path.stat().st_size} bytes"):
        relabelled(source, source.labels_n, tmp_path / "b.beton")
    assert [path.name for path in tmp_path.iterdir()] == ["a.beton"]


def test_only_the_known_labels_differ_from_the_base(noisy: Path):
    base, data = (open_packed(noisy / "data" / name) for name in ("digits", NOISY))
    noise = noise_of(data.folder)
    assert noise is not None and (noise.of, noise.rate, noise.seed) == ("digits", 0.1, 0)
    assert len(noise.rows_m) == round(0.1 * 1442) == 144
    true_n, labels_n = base.split("train").labels_n, data.split("train").labels_n
    assert np.array_equal(np.flatnonzero(true_n != labels_n), noise.rows_m)
    assert np.array_equal(true_n[noise.rows_m], noise.true_labels_m)
    changed = {name for name, value in data.record.to_record().items() if base.record.to_record()[name] != value}
    assert changed == {"dataset", "train_fingerprint"}
    assert (data.folder / "test.beton").read_bytes() == (base.folder / "test.beton").read_bytes()
    assert data.record.train_fingerprint == data.split("train").content_fingerprint()
    assert noise_of(base.folder) is None


def test_the_same_seed_flips_the_same_labels_and_another_others(noisy: Path, copied: Path):
    first = noise_of(noisy / "data" / NOISY)
    assert first is not None
    shutil.rmtree(copied / "data" / NOISY)
    made("noise", "-w", copied, "--dataset", "digits", "--rate", 0.1)
    made("noise", "-w", copied, "--dataset", "digits", "--rate", 0.1, "--seed", 1)
    again, other = (noise_of(copied / "data" / noise_name("digits", 0.1, seed)) for seed in (0, 1))
    assert again is not None and other is not None
    assert np.array_equal(again.rows_m, first.rows_m)
    assert (copied / "data" / NOISY / "train.beton").read_bytes() == (
        noisy / "data" / NOISY / "train.beton"
    ).read_bytes()
    assert not np.array_equal(other.rows_m, first.rows_m)


def test_a_second_run_makes_nothing_and_force_makes_it_again(copied: Path):
    folder = copied / "data" / NOISY
    common = ("noise", "-w", copied, "--dataset", "digits", "--rate", 0.1)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = made(*common)
    assert (result["dataset"], result["flipped"], result["train_rows"]) == (NOISY, 144, 1442)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "noise.json").unlink()
    assert made(*common, "--force") == result
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} != before


def test_a_noisy_data_set_is_made_when_its_name_is_asked_for(tmp_path: Path):
    limited = ensure_packed(Workspace(tmp_path), "digits-noise-0.2-s3", limit=50)
    assert {path.name for path in (tmp_path / "data").iterdir() if not path.name.startswith(".")} == {
        "digits-limit-50",
        "digits-noise-0.2-s3-limit-50",
    }
    noise = noise_of(limited.folder)
    assert noise is not None and len(noise.rows_m) == 10 and noise.seed == 3
    assert limited.record.key == limited.folder.name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", 0), "--rate must be above 0 and below 1, got 0"),
        (("--rate", 1), "--rate must be above 0 and below 1, got 1"),
        (("--rate", "nan"), "--rate must be above 0 and below 1, got nan"),
        (("--rate", 0.12345678), "at most six digits"),
        (("--rate", 0.0001), "flips none of 1442 labels. Use 0.00069 or more"),
        (("--rate", 0.1, "--seed", -1), "--seed must be from 0"),
        (("--rate", 0.1, "--limit", 5), "--limit must be at least the number of classes (10), got 5"),
        (("--rate", 0.1, "--dataset", NOISY), f"--dataset {NOISY} has label noise already"),
        (("--rate", 0.1, "--dataset", "zzz"), "unknown data set 'zzz'"),
        ((), "Missing option '--rate'"),
    ],
)
def test_noise_that_cannot_be_is_a_usage_error_and_leaves_nothing(copied: Path, words: tuple[Any, ...], said: str):
    before = sorted(copied.rglob("*"))
    result = kdtool("noise", "-w", copied, "--dataset", "digits", *words)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert said in result.stderr
    assert sorted(copied.rglob("*")) == before


def test_a_rate_that_flips_nothing_leaves_the_packed_base_and_no_lock(tmp_path: Path):
    result = kdtool("noise", "-w", tmp_path, "--dataset", "digits", "--rate", "1e-9")
    assert result.exit_code == 2 and "flips none of 1442 labels" in result.stderr
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"digits", ".digits.lock"}


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (f"{NOISY}-noise-0.1-s0", f"--dataset {NOISY} has label noise already"),
        ("zzz-noise-0.1-s0", "unknown data set 'zzz'"),
        ("digits-noise-0.10-s0", "unknown data set 'digits-noise-0.10-s0'"),
        (f"digits-noise-0.1-s{1 << 63}", "--seed must be from 0"),
    ],
)
def test_other_commands_refuse_a_noisy_name_that_cannot_be(copied: Path, dataset: str, said: str):
    result = kdtool("pack", "-w", copied, "--dataset", dataset)
    assert result.exit_code == 2 and said in result.stderr


def test_rates_of_too_many_digits_are_refused_before_anything_is_packed():
    with pytest.raises(UsageError, match="six digits"):
        check_noise("digits", 0.1 + 1e-9, 0)


Content = dict[str, Any]


def _row_twice(content: Content) -> None:
    content["rows"][1] = content["rows"][0]


def _row_beyond(content: Content) -> None:
    content["rows"][-1] = 1442


def _label_beyond(content: Content) -> None:
    content["labels"][0] = 10


DAMAGE = {
    "lacks labels": lambda content: content.pop("labels"),
    "expected 144 of 1442": lambda content: content["rows"].pop(),
    "its rows don't increase from 0 to 1441": _row_beyond,
    "its rows don't increase": _row_twice,
    "its labels are not all from 0 to 9": _label_beyond,
    "it is of digits-noise-0.2-s0": lambda content: content.update(rate=0.2),
    "rows is ": lambda content: content.update(rows="all"),
    "int": lambda content: content["rows"].__setitem__(0, -(1 << 70)),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_a_damaged_record_of_the_noise_is_refused_in_one_line(copied: Path, said: str):
    path = copied / "data" / NOISY / "noise.json"
    content = json.loads(path.read_text())
    DAMAGE[said](content)
    path.write_text(json.dumps(content))
    with pytest.raises(FailureError, match=said) as refused:
        noise_of(path.parent)
    assert str(refused.value).endswith(f"Run: {pack_command(NOISY)}")
    assert kdtool("noise", "-w", copied, "--dataset", "digits", "--rate", 0.1).exit_code == 1
    made("noise", "-w", copied, "--dataset", "digits", "--rate", 0.1, "--force")


def test_a_true_label_that_was_not_flipped_is_refused(copied: Path):
    path = copied / "data" / NOISY / "noise.json"
    content = json.loads(path.read_text())
    content["labels"][0] = int(open_packed(path.parent).split("train").labels_n[content["rows"][0]])
    path.write_text(json.dumps(content))
    with pytest.raises(FailureError, match=f"row {content['rows'][0]} has its true label in train.beton"):
        noise_of(path.parent)


def test_a_missing_record_of_the_noise_is_refused(copied: Path):
    (copied / "data" / NOISY / "noise.json").unlink()
    with pytest.raises(FailureError, match=r"noise\.json: not found. Run: kdtool noise --dataset digits"):
        noise_of(copied / "data" / NOISY)


def test_no_teacher_comes_with_noisy_data_and_the_command_to_train_one_is_named(copied: Path):
    result = kdtool("cache-teacher", "-w", copied, "--dataset", NOISY)
    assert result.exit_code == 1
    assert f"Run: kdtool train-teacher --dataset {NOISY}" in result.stderr


def test_every_command_takes_a_noisy_data_set(copied: Path):
    common = ("-w", copied, "--dataset", NOISY)
    teacher = made("train-teacher", *common, "--arch", "resnet8", "--epochs", 1)["name"]
    assert teacher.startswith(f"{NOISY}-resnet8")
    assert made("cache-teacher", *common, "--teacher", teacher)["rows"] == 1442
    made("build-subset", *common, "--teacher", teacher, "--frac", 0.2, "--name", "part")
    subset = json.loads((copied / "subsets" / "part" / "subset.json").read_text())
    assert subset["data"]["dataset"] == NOISY
    labels_m = open_beton(copied / "subsets" / "part" / "images.beton").labels_n
    rows_m = open_beton(copied / "subsets" / "part" / "images.beton").rows_n
    assert np.array_equal(labels_m, open_packed(copied / "data" / NOISY).split("train").labels_n[rows_m])
    assert made("distill", "-w", copied, "--subset", "part", "--epochs", 1)["teacher_forward_passes"] == 0
    assert made("inspect", copied / "data" / NOISY)["dataset"] == NOISY


def test_inspect_counts_the_flipped_labels_of_data_and_of_a_subset(copied: Path):
    subset = made("build-subset", "--dataset", NOISY, "--frac", "0.5", "-w", copied)
    folder = copied / "data" / NOISY
    noise = noise_of(folder)
    assert noise is not None
    kept = np.isin(open_bundle(Path(subset["path"])).rows_m, noise.rows_m).sum()
    assert made("inspect", folder)["flipped_labels"] == len(noise.rows_m)
    assert made("inspect", subset["path"])["flipped_labels"] == kept > 0
    assert "flipped_labels" not in made("inspect", copied / "data" / "digits")
