"""kdtool import-logits: targets made elsewhere are a teacher's like any other, and nothing else is taken for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import toolkit
from tests.conftest import kdtool, made, refused
from toolkit.core.errors import FailureError, UsageError
from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.bundle import open_bundle
from toolkit.formats.cache import open_cache
from toolkit.formats.encodings import Encoding
from toolkit.models.zoo import FeatureReader
from toolkit.pipeline.given_arrays import GivenTable, check_logits
from toolkit.views.render import normalise

PACKAGED = Path(toolkit.__file__).parent / "pretrained" / "digits-resnet8.pt"
ROWS, TEST_ROWS, CLASSES = 1442, 355, 10


@pytest.fixture()
def work(digits: Path, tmp_path: Path) -> Path:
    """The digits workspace, to write in."""
    return Path(shutil.copytree(digits, tmp_path / "work"))


@pytest.fixture(scope="module")
def logits_knc(digits: Path) -> np.ndarray:
    """Three slots of logits that say more than chance: noise, and something for the label."""
    labels_n = toolkit.row_labels(digits / "data" / "digits")
    noise_knc = np.random.default_rng(0).normal(size=(3, ROWS, CLASSES))
    return (noise_knc + 6 * np.eye(CLASSES)[labels_n]).astype(np.float32)


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def words(work: Path, *more: object, name: str = "ours") -> list[object]:
    return ["import-logits", "-w", work, "--dataset", "digits", "--name", name, *more]


def cache_of(work: Path, name: str = "ours") -> Path:
    return work / "teachers" / name / "cache.h5"


def seen_by_packaged(folder: Path, slot: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """(logits, features) of the packaged teacher over what `slot_images` shows, by torch alone."""
    network = toolkit.load_network(PACKAGED)
    read, found = FeatureReader(network), []
    with torch.inference_mode():
        for images_bhwc, _ in toolkit.slot_images(folder, slot, split, batch_size=100):
            x_bchw = normalise(torch.from_numpy(images_bhwc), network.input_mean, network.input_std)
            found.append([part.numpy() for part in read(x_bchw)])
    features, logits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return logits, features


def test_the_packaged_teacher_over_slot_images_imports_to_the_cache_of_cache_teacher(digits: Path, tmp_path: Path):
    work, data = tmp_path / "work", digits / "data" / "digits"
    shutil.copytree(data, work / "data" / "digits")
    made("cache-teacher", "-w", work, "--dataset", "digits", "--views", "3", "--precision", "float32")
    shown = [seen_by_packaged(data, slot) for slot in range(3)]
    files = [saved(tmp_path / f"{slot}.npy", logits) for slot, (logits, _) in enumerate(shown)]
    slots = [word for file in files for word in ("--logits", file)]
    test = saved(tmp_path / "test.npy", seen_by_packaged(data, 0, "test")[0])
    features = saved(tmp_path / "features.npy", shown[0][1])
    result = made(*words(work, *slots, "--test-logits", test, "--features", features))
    assert (result["rows"], result["views"], result["classes"], result["features"]) == (ROWS, 3, CLASSES, True)
    with open_cache(cache_of(work)) as ours, open_cache(cache_of(work, "digits-resnet8")) as theirs:
        assert ours.dataset_names() == theirs.dataset_names()
        assert ours.record.views == theirs.record.views
        assert ours.record.teacher_top1 == pytest.approx(theirs.record.teacher_top1, abs=0.6)
        for name in ours.dataset_names():
            found, expected = ours.read(name), theirs.read(name)
            assert found.dtype == expected.dtype
            assert np.allclose(found.astype(float), expected.astype(float), atol=0.02), name


def test_slot_images_of_a_subset_are_its_rows_of_the_data(digits: Path):
    bundle = open_bundle(digits / "subsets" / "third")
    whole = np.concatenate([images for images, _ in toolkit.slot_images(digits / "data" / "digits", 4)])
    shown = list(toolkit.slot_images(bundle.folder, 4, batch_size=100))
    assert [len(images) for images, _ in shown] == [100, 100, 100, 100, 33]
    rows = np.concatenate([rows for _, rows in shown])
    assert np.array_equal(rows, bundle.rows_m)
    assert np.array_equal(np.concatenate([images for images, _ in shown]), whole[bundle.rows_m])
    assert whole.dtype == np.uint8 and rows.dtype == np.int64


@pytest.mark.parametrize(
    ("slot", "split", "batch_size", "word"),
    [(18, "train", 256, "slot"), (-1, "train", 256, "slot"), (1, "test", 256, "slot"), (0, "all", 256, "split"),
     (0, "train", 0, "batch_size")],
)  # fmt: skip
def test_slot_images_refuse_what_is_not_shown(digits: Path, slot: int, split: str, batch_size: int, word: str):
    with pytest.raises(ValueError, match=word):
        next(toolkit.slot_images(digits / "data" / "digits", slot, split, batch_size))


def test_an_imported_teacher_is_used_by_its_name(work: Path, tmp_path: Path, logits_knc: np.ndarray):
    """By methods, scores, pictures, tables and every match; without test logits agreement is unknown."""
    shown = kdtool(*words(work, "--logits", saved(tmp_path / "l.npy", logits_knc)))
    assert shown.exit_code == 0 and "(unknown on the test split)" in shown.stdout and "without features" in shown.stdout
    named = ["-w", work, "--dataset", "digits", "--teacher", "ours"]
    made("build-subset", *named, "--frac", "0.2", "--method", "hardest", "--score", "el2n", "--name", "own")
    made("build-subset", *named, "--frac", "0.2", "--method", "contextual-diversity", "--name", "by-logits")
    made("show", *named, "--out", tmp_path / "show.png")
    compared = made("compare", *named, "--out", tmp_path / "compare.png")
    assert any(name.startswith("el2n") for name in compared["scores"])
    for match in ("exact", "nearest", "mean"):
        how = ["--teacher", "ours", "--match", match, "--epochs", "1", "--name", match]
        run = made("distill", "-w", work, "--subset", "own", *how)
        assert (run["teacher"], run["agreement"], run["views"], run["match"]) == ("ours", None, 3, match)
    assert json.loads((work / "runs" / "exact" / "run.json").read_text())["teacher_images_behind_targets"] == 3 * ROWS
    told = made("inspect", cache_of(work))
    assert (told["teacher_arch"], told["teacher_top1"], told["slots"]) == ("imported", None, 3)
    assert "teacher_top1         unknown" in kdtool("inspect", cache_of(work)).stdout
    made("inspect", work / "subsets" / "own")


def test_scores_are_those_that_logits_allow(work: Path, tmp_path: Path, logits_knc: np.ndarray):
    one = made(*words(work, "--logits", saved(tmp_path / "one.npy", logits_knc[0])))
    more = made(*words(work, "--logits", saved(tmp_path / "more.npy", logits_knc), name="more"))
    assert sorted(one["scores"]) == ["el2n", "entropy", "least_confidence", "loss", "margin"]
    assert sorted(more["scores"]) == sorted([*one["scores"], "disagreement"])
    features = saved(tmp_path / "f.npy", np.ones((ROWS, 5), dtype=np.float16))
    logits = saved(tmp_path / "l.npy", logits_knc)
    both = made(*words(work, "--logits", logits, "--features", features, name="both"))
    assert sorted(both["scores"]) == sorted([*more["scores"], "grand"])
    assert len(made("score", "-w", work, "--dataset", "digits", "--teacher", "both")["scores"]) == 3
    common = ["-w", work, "--dataset", "digits", "--teacher", "ours"]
    subset = ["build-subset", *common, "--frac", "0.1"]
    for words_, lacks in [
        (["score", *common], "features"),
        (["score", *common, "--score", "centroid"], "features"),
        (["score", *common, "--score", "grand"], "features"),
        ([*subset, "--method", "herding"], "features"),
        ([*subset, "--method", "hardest", "--score", "grand"], "features"),
        ([*subset, "--method", "hardest", "--score", "disagreement"], "--logits for each of 2 slots"),
    ]:
        result = kdtool(*words_)
        refused(result, result.exit_code, lacks, "import-logits --dataset digits --name ours")
        assert result.exit_code in (1, 2)


def test_the_same_arrays_again_change_nothing_and_others_are_refused(
    work: Path, tmp_path: Path, logits_knc: np.ndarray
):
    """However they are split into files; --force replaces them."""
    together = saved(tmp_path / "all.npy", logits_knc)
    first = made(*words(work, "--logits", together, "--encoding", "int8"))
    before = cache_of(work).read_bytes()
    each = [word for slot in range(3) for word in ("--logits", saved(tmp_path / f"{slot}.npy", logits_knc[slot]))]
    again = made(*words(work, *each))  # the encoding that is there
    assert (first["unchanged"], again["unchanged"], again["encoding"]) == (False, True, "int8")
    assert cache_of(work).read_bytes() == before
    other = saved(tmp_path / "other.npy", logits_knc + 1)
    refused(kdtool(*words(work, "--logits", other)), 1, "teacher_fingerprint", "--force")
    assert cache_of(work).read_bytes() == before
    replaced = made(*words(work, "--logits", other, "--force"))
    assert (replaced["unchanged"], replaced["encoding"]) == (False, "float16")


def test_targets_of_a_subset_need_nothing_but_its_folder(digits: Path, tmp_path: Path, logits_knc: np.ndarray):
    work = tmp_path / "elsewhere"
    folder = Path(shutil.copytree(digits / "subsets" / "third", work / "subsets" / "third"))
    rows_m = open_bundle(folder).rows_m
    file = saved(tmp_path / "l.npy", logits_knc[:, rows_m].astype(np.float64))
    result = made("import-logits", "-w", work, "--subset", "third", "--name", "ours", "--logits", file)
    assert result["path"] == str(folder / "targets" / "ours.h5") and not (work / "data").exists()
    with open_cache(folder / "targets" / "ours.h5") as targets:
        assert np.array_equal(targets.read("rows"), rows_m)
        assert np.array_equal(targets.read("slots/2/logits"), logits_knc[2, rows_m].astype(np.float16))
        assert targets.scores == {} and not targets.has_features
    shutil.copytree(digits / "data" / "digits", work / "data" / "digits")
    run = made("distill", "-w", work, "--subset", "third", "--teacher", "ours", "--epochs", "1")
    assert (run["teacher"], run["agreement"]) == ("ours", None)
    test = saved(tmp_path / "t.npy", logits_knc[0, :TEST_ROWS])
    words_ = ["import-logits", "-w", work, "--subset", "third", "--name", "with-test", "--logits", file]
    assert 0 <= made(*words_, "--test-logits", test)["teacher_top1"] <= 100
    run = made("distill", "-w", work, "--subset", "third", "--teacher", "with-test", "--epochs", "1")
    assert 0 <= run["agreement"] <= 100
    refused(kdtool("cache-teacher", "-w", work, "--subset", "third", "--teacher", "ours"), 1, "were imported")


@pytest.mark.parametrize("encoding", ["float32", "int8", "topk:3"])
def test_logits_are_stored_as_the_encoding_stores_them(work: Path, tmp_path: Path, logits_knc, encoding: str):
    made(*words(work, "--logits", saved(tmp_path / "l.npy", logits_knc), "--encoding", encoding))
    expected = Encoding.parse(encoding, CLASSES).encode(logits_knc[1])
    with open_cache(cache_of(work)) as cache:
        for name, array in expected.items():
            assert np.array_equal(cache.read(f"slots/1/{name}"), array)


def test_what_is_read_in_blocks_is_what_is_read_at_once(work: Path, tmp_path: Path, logits_knc, monkeypatch):
    file = saved(tmp_path / "l.npy", np.asfortranarray(logits_knc))
    features = saved(tmp_path / "f.npy", logits_knc[0])
    asked = ["--logits", file, "--features", features]
    made(*words(work, *asked))
    with open_cache(cache_of(work)) as cache:
        whole = {name: cache.read(name) for name in cache.dataset_names()}
        fingerprint = cache.record.teacher_fingerprint
    for module in ("formats.blocks", "formats.cache_writing", "pipeline.cache_content", "pipeline.given_arrays"):
        monkeypatch.setattr(f"toolkit.{module}.BLOCK_ROWS", 500)
    made(*words(work, *asked, name="blocks"))
    with open_cache(cache_of(work, "blocks")) as cache:
        assert cache.dataset_names() == list(whole)
        assert all(np.array_equal(cache.read(name), array) for name, array in whole.items())
        assert cache.record.teacher_fingerprint == fingerprint


def test_a_wrong_number_is_named_by_its_row_past_the_first_block():
    logits_nc = np.zeros((BLOCK_ROWS + 9, 3), dtype=np.float16)
    logits_nc[BLOCK_ROWS + 7, 2] = np.nan
    with pytest.raises(Exception, match=f"a file: its numbers for row {BLOCK_ROWS + 7} are not all finite"):
        check_logits(GivenTable("a file", logits_nc))


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits)
    return odds / odds.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (lambda z: z[0, :-1], 1, ["float32 of shape (1441, 10)", "(1442, 10) or (slots, 1442, 10)"]),
        (lambda z: z[0].T, 1, ["of shape (10, 1442)"]),
        (lambda z: z[:, :, :9], 1, ["of shape (3, 1442, 9)"]),
        (lambda z: z[:0], 1, ["of shape (0, 1442, 10)"]),
        (lambda z: z[0, :, 0], 1, ["of shape (1442,)"]),
        (lambda z: z[0].astype(int), 1, ["int64"]),
        (lambda z: z[0].astype(object), 1, ["not a .npy file of floats"]),
        (lambda z: np.where(z > 8, np.inf, z), 1, ["slot", "not all finite"]),
        (lambda z: z[0].astype(np.float64) * 1e38, 1, ["float32 can't hold"]),
        (lambda z: z[0] * 1e5, 1, ["do not fit float16", "--encoding float32"]),
        (lambda z: _softmax(z), 2, ["slot 0", "probabilities", "numpy.log"]),
        (lambda z: _softmax(z).astype(np.float16), 2, ["probabilities"]),
        (lambda z: np.tile(z[0], (19, 1, 1)), 2, ["19 slots", "9 views"]),
    ],
)
def test_what_is_no_logits_of_these_rows_is_refused(work: Path, tmp_path: Path, logits_knc, change, code, told):
    with np.errstate(over="ignore"):
        file = saved(tmp_path / "l.npy", change(logits_knc))
    refused(kdtool(*words(work, "--logits", file)), code, *told)
    assert not cache_of(work).exists()


def test_files_of_other_kinds_are_refused(work: Path, tmp_path: Path, logits_knc: np.ndarray):
    good = saved(tmp_path / "good.npy", logits_knc[0])
    text, archive, cut = tmp_path / "text.npy", tmp_path / "archive.npz", tmp_path / "cut.npy"
    text.write_text("row,logit\n")
    np.savez(archive, logits=logits_knc[0])
    cut.write_bytes(good.read_bytes()[:-40])
    for file, told in [
        (text, "not a .npy file"),
        (archive, "several arrays"),
        (cut, "not a .npy file"),
        (tmp_path / "none.npy", "not found"),
        (tmp_path, "not found"),
    ]:
        refused(kdtool(*words(work, "--logits", file)), 1, str(file), told)
    together = saved(tmp_path / "all.npy", logits_knc)
    refused(kdtool(*words(work, "--logits", good, "--logits", together)), 1, "(3, 1442, 10)", "(1442, 10)")
    refused(kdtool(*words(work, "--logits", good, "--test-logits", good)), 1, "(355, 10)", "each test image")
    huge = saved(tmp_path / "huge.npy", np.full((ROWS, 2), 1e6))
    refused(kdtool(*words(work, "--logits", good, "--features", huge)), 1, "float16 can't hold")
    refused(kdtool(*words(work, "--logits", good, "--features", good, "--subset", "third")), 2, "--features")
    refused(kdtool(*words(work, "--logits", good, "--encoding", "bytes")), 2, "--encoding bytes")
    assert not cache_of(work).exists()


def test_a_networks_name_is_never_taken(work: Path, tmp_path: Path, logits_knc: np.ndarray):
    file = saved(tmp_path / "l.npy", logits_knc)
    (work / "teachers" / "broken").mkdir()
    (work / "teachers" / "broken" / "cache.h5").write_bytes(b"nothing")
    shutil.copytree(work / "teachers" / "digits-resnet8", work / "teachers" / "weightless")
    for name in ("digits-resnet8", "fashion-mnist-resnet20", "weightless", "broken", "imported"):
        refused(kdtool(*words(work, "--logits", file, "--force", name=name)), 2, name, "Choose another")
    refused(kdtool(*words(work, "--logits", file, name="a/b")), 2, "--name")


def test_what_needs_the_network_says_that_there_is_none(work: Path, tmp_path: Path, logits_knc: np.ndarray):
    made(*words(work, "--logits", saved(tmp_path / "l.npy", logits_knc)))
    common = ["-w", work, "--dataset", "digits", "--teacher", "ours"]
    for command in (["cache-teacher", "--views", "9"], ["cache-teacher", "--dry-run"], ["verify-cache"]):
        refused(kdtool(*command, *common), 1, "were imported", "import-logits --dataset digits --name ours")
    out = tmp_path / "weights.pt"
    refused(kdtool("export", "-w", work, "ours", "--out", out), 1, "no network of ours")
    assert not out.exists()


def test_nothing_of_a_network_replaces_imported_logits(work: Path, tmp_path: Path, logits_knc: np.ndarray):
    made(*words(work, "--logits", saved(tmp_path / "l.npy", logits_knc)))
    before = cache_of(work).read_bytes()
    named = ("-w", work, "--dataset", "digits")
    file = shutil.copy(PACKAGED, tmp_path / "ours.pt")
    for command in (
        ("cache-teacher", *named, "--teacher", file),
        ("cache-teacher", *named, "--teacher", file, "--force"),
        ("cache-teacher", *named, "--teacher", file, "--dry-run"),
    ):
        refused(kdtool(*command), 1, "imported logits", "ever replaces them")
    for more in ((), ("--force",)):
        refused(kdtool("train-teacher", *named, "--name", "ours", *more), 2, "--name ours", "Choose another --name")
    assert cache_of(work).read_bytes() == before


def test_the_command_for_other_views_names_the_data_and_every_file(work: Path, tmp_path: Path, logits_knc: np.ndarray):
    test = saved(tmp_path / "t.npy", np.random.default_rng(1).normal(size=(TEST_ROWS, CLASSES)).astype(np.float32))
    made(*words(work, "--logits", saved(tmp_path / "l.npy", logits_knc), "--test-logits", test))
    again = "kdtool import-logits --dataset digits --name ours --logits FILE… --test-logits FILE"
    refused(kdtool("cache-teacher", "-w", work, "--dataset", "digits", "--teacher", "ours"), 1, again)


def test_an_array_of_objects_is_not_advised_to_be_loaded(work: Path, tmp_path: Path):
    np.save(tmp_path / "o.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    told = kdtool(*words(work, "--logits", tmp_path / "o.npy"))
    refused(told, 1, "of Python objects, which are never loaded")
    assert "allow_pickle" not in told.stderr


def test_what_ones_own_loop_asks_amiss_is_told(digits: Path, tmp_path: Path):
    subset = digits / "subsets" / "third"
    for setting in ("batch_size", "workers"):
        with pytest.raises(UsageError, match=f"{setting} must be at least 1, got 0"):
            toolkit.subset_loader(subset, **{setting: 0})
    with pytest.raises(UsageError, match="whole number"):
        next(toolkit.slot_images(subset, 1.5))  # type: ignore[arg-type]
    with pytest.raises(FailureError, match="nope: no folder"):
        toolkit.row_labels(tmp_path / "nope")
