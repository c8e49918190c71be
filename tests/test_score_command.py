"""kdtool score: what it computes and keeps, what it takes in from outside, and each refusal in one line."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.conftest import kdtool, made
from toolkit.core.errors import FailureError, UsageError
from toolkit.formats.cache import open_cache
from toolkit.formats.dataset import open_packed
from toolkit.formats.dynamics import open_dynamics
from toolkit.formats.scores_file import Scored, open_scores, reduced, write_scores
from toolkit.formats.workspace import Workspace
from toolkit.pipeline import score_compute
from toolkit.pipeline.found_scores import find_score, known_scores
from toolkit.pipeline.known_teachers import PRETRAINED_FOLDER
from toolkit.scores import FEATURES, SCORES, from_dynamics, from_features

DIGITS = ("--dataset", "digits")
TEACHER = "digits-resnet8"


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits workspace, with a teacher of its own: two seeds of five epochs, with snapshots, and its cache."""
    work = Path(shutil.copytree(digits, tmp_path_factory.mktemp("score") / "work"))
    common = ("-w", work, *DIGITS)
    net = ("--arch", "resnet8", "--width", 4, "--epochs", 5)
    made("train-teacher", *common, *net, "--name", "mine", "--seeds", 2, "--snapshots", "1,3")
    made("train-teacher", *common, *net, "--name", "part", "--subset", "third")
    made("cache-teacher", *common, "--teacher", "mine", "--views", 1)
    return work


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "work"))


@pytest.fixture
def bare(digits: Path, tmp_path: Path) -> Path:
    """A workspace with packed digits and the packaged teacher's cache, and no dynamics."""
    for part in ("data", "teachers"):
        shutil.copytree(digits / part, tmp_path / "work" / part)
    return tmp_path / "work"


def refused(workspace: Path, words: tuple[Any, ...], code: int, *expected: str) -> None:
    """One line on stderr with these words, this exit code, and no file changed."""
    before = files(workspace)
    result = kdtool("score", "-w", workspace, *DIGITS, *words)
    assert result.exit_code == code, result.output
    assert result.stdout == "" and len(result.stderr.splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stderr and "of kdtool itself" not in result.stderr
    for word in expected:
        assert word in result.stderr, f"'{word}' is missing: {result.stderr}"
    assert files(workspace) == before


def files(workspace: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(workspace)): path for path in workspace.rglob("*") if path.is_file()}
    assert not [name for name in found if ".tmp" in name]
    return {name: path.read_bytes() for name, path in found.items() if not name.endswith(".lock")}


def packed(workspace: Path) -> Any:
    return open_packed(workspace / "data" / "digits")


def found(workspace: Path, name: str, teacher: str | None = None) -> tuple[np.ndarray, str]:
    return find_score(Workspace(workspace), packed(workspace), teacher, name)


def test_everything_that_is_on_disk_is_scored(work: Path):
    result = made("score", "-w", work, *DIGITS, "--teacher", "mine")
    names = {one["name"] for one in result["scores"]}
    assert names == {*FEATURES, "forgetting", "aum", "dyn_unc", "tdds", "el2n@1", "grand@1", "grand@3"}
    assert result["skipped"] == [] and result["path"].endswith("scores/digits/mine.h5")
    with open_scores(Path(result["path"])) as scores, open_cache(work / "teachers/mine/cache.h5") as cache:
        assert scores.scores.keys() == names
        assert np.array_equal(scores.labels_n, cache.read("labels"))
        assert np.array_equal(scores.rows_n, np.arange(len(cache)))
        assert scores.record.teacher_fingerprint == cache.record.teacher_fingerprint
        assert scores.verify() == 2 + len(names)
        for one in result["scores"]:
            about, values_n = scores.scores[one["name"]], scores.score(one["name"])
            assert about["high"] == "hard" and about["definition"] == one["definition"] and about["paper"]
            assert len(about["source"]) == 16
            assert (one["mean"], one["min"], one["max"]) == (values_n.mean(), values_n.min(), values_n.max())


def test_scores_are_those_of_the_recorded_arrays(work: Path):
    made("score", "-w", work, *DIGITS, "--teacher", "mine", *(f"--score={name}" for name in ("el2n@4", "aum@3")))
    made("score", "-w", work, *DIGITS, "--teacher", "mine")
    with open_dynamics(work / "teachers/mine/dynamics.h5") as dynamics:

        def series(name: str) -> np.ndarray:
            return np.stack([dynamics.series(name, seed) for seed in range(2)])

        logits, features = ([dynamics.snapshot(name, seed, 3) for seed in (0, 1)] for name in ("logits", "features"))
        expected = {
            "forgetting": from_dynamics.forgetting(series("correct")),
            "aum": from_dynamics.aum(series("logit_true"), series("logit_other")),
            "aum@3": from_dynamics.aum(series("logit_true")[:, :3], series("logit_other")[:, :3]),
            "dyn_unc": from_dynamics.dyn_unc(series("loss")),
            "tdds": from_dynamics.tdds(series("kl")),
            "el2n@4": series("el2n")[:, 3].mean(axis=0),
            "grand@3": from_dynamics.grand(logits, features, dynamics.labels_n),
        }
    with open_cache(work / "teachers/mine/cache.h5") as cache:
        features_nd, labels_n = cache.read("features"), cache.read("labels")
    expected |= {
        "centroid": from_features.centroid(features_nd, labels_n),
        "knn_distance": from_features.knn_distance(features_nd, labels_n),
    }
    for name, values_n in expected.items():
        stored_n, described = found(work, name, "mine")
        np.testing.assert_allclose(stored_n, values_n, rtol=1e-6, atol=1e-7, err_msg=name)
        assert described == f"{name} of mine" and stored_n.dtype == np.float64


class _Blocks:
    """What DynamicsReader gives of a snapshot, in blocks of 7 rows."""

    def __init__(self, arrays: dict[str, np.ndarray], seeds: int):
        self.arrays, self.labels_n = arrays, arrays["labels"]
        self.record = type("Record", (), {"seeds": list(range(seeds))})

    def block(self, name: str, number: int) -> np.ndarray:
        return self.arrays[name][7 * number : 7 * (number + 1)]

    def blocks(self, name: str) -> Any:
        return (self.block(name, number) for number in range(-(-len(self.arrays[name]) // 7)))


def test_snapshots_are_scored_block_by_block():
    rng, told = np.random.default_rng(0), []
    arrays = {"labels": rng.integers(0, 3, 40)}
    for seed in range(2):
        arrays[f"seeds/{seed}/snapshots/5/logits"] = rng.normal(size=(40, 3)).astype(np.float16)
        arrays[f"seeds/{seed}/snapshots/5/features"] = rng.normal(size=(40, 4)).astype(np.float16)
    whole = [[arrays[f"seeds/{seed}/snapshots/5/{name}"] for seed in range(2)] for name in ("logits", "features")]
    in_blocks = score_compute._of_snapshot(_Blocks(arrays, 2), "grand", 5, told.append)
    np.testing.assert_array_equal(in_blocks, from_dynamics.grand(*whole, arrays["labels"]))
    assert sum(told) == 40


def test_a_second_run_changes_nothing_and_force_makes_it_again(work: Path):
    command = ("score", "-w", work, *DIGITS, "--teacher", "mine")
    first = made(*command)
    before = files(work)
    second = made(*command)
    assert files(work) == before
    assert all(one["unchanged"] for one in second["scores"]) and not any(one["unchanged"] for one in first["scores"])
    forced = made(*command, "--force")
    assert not any(one["unchanged"] for one in forced["scores"])
    assert [one["mean"] for one in forced["scores"]] == [one["mean"] for one in first["scores"]]


def test_one_more_score_is_added_beside_the_others(work: Path):
    command = ("score", "-w", work, *DIGITS, "--teacher", "mine", "--score")
    made(*command, "aum")
    before_n, _ = found(work, "aum", "mine")
    result = made(*command, "forgetting", "--score", "aum")
    assert {one["name"]: one["unchanged"] for one in result["scores"]} == {"forgetting": False, "aum": True}
    assert np.array_equal(found(work, "aum", "mine")[0], before_n)
    assert {"aum", "forgetting", "el2n"} <= known_scores(Workspace(work), packed(work), "mine").names.keys()


def test_without_dynamics_the_features_are_scored_and_the_rest_is_named(bare: Path):
    result = kdtool("score", "-w", bare, *DIGITS)
    assert result.exit_code == 0, result.output
    assert len(result.stderr.splitlines()) == 1 and "dynamics.h5: not found. Run: kdtool train-teacher" in result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(FEATURES)
    assert all("mean" in line and "min" in line and "max" in line and len(line) < 80 for line in lines[1:])


def test_the_passs_scores_lie_in_the_cache_and_are_told_from_there(bare: Path):
    result = made("score", "-w", bare, *DIGITS, *(f"--score={name}" for name in SCORES))
    assert [one["name"] for one in result["scores"]] == list(SCORES)
    assert all(one["unchanged"] for one in result["scores"])
    with open_cache(bare / "teachers" / TEACHER / "cache.h5") as cache:
        values_n, described = found(bare, "margin")
        assert np.array_equal(values_n, cache.score("margin")) and described == f"margin of {TEACHER}"


def test_every_score_is_told_below_the_file_that_holds_it(bare: Path):
    words = ("score", "-w", bare, *DIGITS, "--score", "loss")
    assert made(*words)["path"] is None
    assert not (bare / "scores/digits" / f"{TEACHER}.h5").exists()
    lines = kdtool(*words, "--score", "centroid").stdout.splitlines()
    files = [line for line in lines if not line.startswith(" ")]
    assert [file.split(":")[0] for file in files] == [
        str(bare / "scores/digits" / f"{TEACHER}.h5"),
        str(bare / "teachers" / TEACHER / "cache.h5"),
    ]
    assert lines[1].split()[0] == "centroid" and lines[4].split()[0] == "loss"
    assert lines[5].strip() == SCORES["loss"].definition  # what was named is explained


def test_no_network_is_needed(work: Path):
    (work / "teachers/mine/teacher.pt").unlink()
    code = "import sys; from toolkit.cli import main\nimport atexit\n"
    code += "atexit.register(lambda: print(sorted({'torch', 'ffcv', 'torchvision', 'matplotlib'} & set(sys.modules))))"
    words = ["score", "-w", work, *DIGITS, "--teacher", "mine", "--score", "tdds", "--score", "centroid"]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nmain()", *map(str, words)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_the_cache_no_longer_holds_is_refused_and_made_again(work: Path):
    made("score", "-w", work, *DIGITS, "--teacher", "mine")
    with h5py.File(work / "teachers/mine/cache.h5", "r+") as file:
        file["checksums/features"][0] += 1
    with pytest.raises(FailureError, match=r"centroid was computed from another cache\.h5 .*Run: kdtool score"):
        found(work, "centroid", "mine")
    assert len(found(work, "aum", "mine")[0])  # of the dynamics, which are as they were


def test_a_new_cache_makes_its_scores_again_and_keeps_the_others(work: Path):
    made("score", "-w", work, *DIGITS, "--teacher", "mine")
    cached = retrained(work)  # by the same weights, with other features
    with h5py.File(work / "teachers" / TEACHER / "cache.h5", "r") as other:
        ours = json.loads(str(other.attrs["record"]))
    with h5py.File(work / "teachers/mine/cache.h5", "r+") as file:
        file.attrs["record"] = json.dumps({**ours, "teacher": "mine", "teacher_fingerprint": cached})
    result = made("score", "-w", work, *DIGITS, "--teacher", "mine", "--score", "centroid", "--score", "aum")
    assert {one["name"]: one["unchanged"] for one in result["scores"]} == {"centroid": False, "aum": True}
    # the others of the old cache are of nothing that is there
    assert "prototype" not in known_scores(Workspace(work), packed(work), "mine").names


def retrained(work: Path) -> str:
    """A cache by another network takes the place of mine's, as after another training; returns the old fingerprint."""
    with open_cache(work / "teachers/mine/cache.h5") as cache:
        old = cache.record.teacher_fingerprint
    shutil.copy(work / "teachers" / TEACHER / "cache.h5", work / "teachers/mine/cache.h5")
    return old


def test_the_dynamics_of_another_training_are_refused(work: Path):
    retrained(work)
    words = ("another training of mine", "than cache.h5 is of")
    refused(work, ("--teacher", "mine", "--score", "aum"), 1, "dynamics.h5", *words, "kdtool cache-teacher --dataset")
    result = made("score", "-w", work, *DIGITS, "--teacher", "mine")
    assert [one["name"] for one in result["scores"]] == list(FEATURES) and words[0] in result["skipped"][0]


@pytest.mark.parametrize("gone", [False, True], ids=["there", "gone"])
def test_scores_of_another_training_are_served_no_more(work: Path, gone: bool):
    command = ("score", "-w", work, *DIGITS, "--teacher", "mine")
    made(*command)
    old = retrained(work)
    if gone:
        (work / "teachers/mine/dynamics.h5").unlink()
    for name in ("forgetting", "centroid"):
        with pytest.raises(FailureError, match=rf"{name} is of another training of mine \({old}\).*--score {name}"):
            found(work, name, "mine")
    result = made(*command)
    assert {one["name"]: one["unchanged"] for one in result["scores"]} == dict.fromkeys(FEATURES, False)
    with open_scores(work / "scores/digits/mine.h5") as scores:
        assert set(scores.scores) == set(FEATURES)
        assert {scores.of_teacher(name) for name in FEATURES} == {scores.record.teacher_fingerprint} != {old}


def test_scores_whose_source_is_gone_are_found_and_not_told_as_there(work: Path):
    command = ("score", "-w", work, *DIGITS, "--teacher", "mine")
    made(*command)
    (work / "teachers/mine/dynamics.h5").unlink()
    assert {one["name"] for one in made(*command)["scores"]} == set(FEATURES)
    assert len(found(work, "forgetting", "mine")[0])  # of the very training that the cache is of
    (work / "teachers/mine/cache.h5").unlink()
    assert len(found(work, "forgetting", "mine")[0])


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("--score", "forgeting"), 2, ("did you mean forgetting?",)),
        (("--score", "grand@0"), 2, ("does not reproduce", "2303.14753", "--snapshots")),
        (("--score", "grand@2"), 2, ("snapshots of epochs: 1, 3", "kdtool train-teacher", "--snapshots 1,2,3")),
        (("--score", "el2n@0"), 2, ("epochs 1 to 5",)),
        (("--score", "el2n@6"), 2, ("epochs 1 to 5",)),
        (("--score", "el2n@x"), 2, ("after the @ stands an epoch",)),
        (("--score", "tdds@2"), 2, ("tdds needs 3 epochs at least, 2 was named",)),
        (("--score", "forgetting@1"), 2, ("forgetting needs 2 epochs at least, 1 was named",)),
        (("--device", "foo"), 2, ("--device foo", "cuda:N")),
        (("--score", "disagreement"), 2, ("needs 2 cached views", "kdtool cache-teacher", "--views 2")),
        (("--score", "aum", "--name", "x"), 2, ("--name is for --import",)),
        (("--low-is-hard",), 2, ("--low-is-hard is for --import",)),
        (("--import", "x.csv", "--name", "x"), 2, ("--import takes no --teacher",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_what_cannot_be_is_refused_in_one_line(trained: Path, words: Any, code: int, expected: tuple[str, ...]):
    refused(trained, ("--teacher", "mine", *words), code, *expected)


def test_a_teacher_that_left_nothing_is_refused(trained: Path):
    refused(trained, ("--teacher", "nobody"), 1, "neither a file nor a teacher known here")


def test_scores_that_need_what_is_missing_name_the_command(bare: Path):
    refused(bare, ("--score", "aum"), 1, "--score aum", "dynamics.h5: not found", "kdtool train-teacher")
    (bare / "teachers" / TEACHER / "cache.h5").unlink()
    both = ("cache.h5: not found. Run: kdtool cache-teacher --dataset digits", "dynamics.h5: not found. Run: kdtool")
    refused(bare, (), 1, "nothing to score from", *both, "then kdtool score --dataset digits --teacher NAME")
    refused(bare, ("--score", "loss"), 1, "nothing to score from", "kdtool cache-teacher --dataset digits")


def test_dynamics_of_a_subset_are_refused(trained: Path):
    refused(trained, ("--teacher", "part"), 1, "recorded on the subset third", "scores need every row")


def test_dynamics_of_limited_data_name_the_limit(trained: Path, tmp_path: Path):
    work = Path(shutil.copytree(trained, tmp_path / "work"))
    with h5py.File(work / "teachers/part/dynamics.h5", "r+") as file:
        record = json.loads(str(file.attrs["record"]))
        file.attrs["record"] = json.dumps({**record, "limit": 100, "settings": {**record["settings"], "subset": None}})
    expected = ("recorded on digits --limit 100", "Run: kdtool score --dataset digits --limit 100 --teacher part")
    refused(work, ("--teacher", "part"), 1, *expected)


def test_dynamics_of_other_data_are_refused(work: Path):
    with h5py.File(work / "teachers/mine/dynamics.h5", "r+") as file:
        file.attrs["record"] = str(file.attrs["record"]).replace(packed(work).record.train_fingerprint, "0" * 16)
    refused(work, ("--teacher", "mine", "--score", "aum"), 1, "recorded on digits (0000", "kdtool train-teacher")
    result = made("score", "-w", work, *DIGITS, "--teacher", "mine")
    assert [one["name"] for one in result["scores"]] == list(FEATURES) and "0000" in result["skipped"][0]


# -- looking scores up --


def test_an_unknown_score_lists_the_known_ones(work: Path):
    with pytest.raises(UsageError, match=r"did you mean el2n\?.*margin.*kdtool score.*forgetting"):
        found(work, "eln2", "mine")
    with pytest.raises(UsageError, match=r"aum of mine is not there yet .*el2n.*Run: kdtool score .*--score aum"):
        found(work, "aum", "mine")
    with pytest.raises(UsageError, match="needs 2 cached views"):
        found(work, "disagreement", "mine")


def test_without_a_cache_its_scores_name_the_command_that_makes_it(bare: Path):
    (bare / "teachers" / TEACHER / "cache.h5").unlink()
    with pytest.raises(FailureError, match=r"cache\.h5: not found\. Run: kdtool cache-teacher"):
        found(bare, "el2n")


@pytest.fixture
def packaged(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packaged digits teacher, with a score."""
    made("score", "-w", work, *DIGITS, "--teacher", "mine", "--score", "aum", "--score", "forgetting")
    pretrained = tmp_path / "pretrained"
    reduced(work / "scores/digits/mine.h5", pretrained / f"{TEACHER}.scores.h5", ("aum",))
    shutil.copy(PRETRAINED_FOLDER / f"{TEACHER}.pt", pretrained)
    for module in ("found_scores", "known_teachers"):
        monkeypatch.setattr(f"toolkit.pipeline.{module}.PRETRAINED_FOLDER", pretrained)
    return pretrained / f"{TEACHER}.pt"


def test_a_packaged_score_is_found_for_the_data_it_is_of(work: Path, packaged: Path):
    values_n, described = found(work, "aum")
    assert described == f"aum of {TEACHER}"
    np.testing.assert_array_equal(values_n, found(work, "aum", "mine")[0].astype(np.float16))
    assert np.array_equal(found(work, "aum", str(packaged))[0], values_n)
    assert {"name": "aum", "path": str(packaged.with_name(f"{TEACHER}.scores.h5"))}.items() <= made(
        "score", "-w", work, *DIGITS, "--score", "aum"
    )["scores"][0].items()
    with pytest.raises(UsageError, match="forgetting of digits-resnet8 is not there yet"):
        found(work, "forgetting")


def test_a_teacher_of_the_packaged_ones_name_has_not_its_scores(work: Path, packaged: Path, tmp_path: Path):
    elsewhere = shutil.copy(packaged, tmp_path)
    with pytest.raises(UsageError, match="aum of digits-resnet8 is not there yet"):
        found(work, "aum", str(elsewhere))
    shutil.copy(packaged, work / "teachers" / TEACHER / "teacher.pt")
    with pytest.raises(UsageError, match="aum of digits-resnet8 is not there yet"):
        found(work, "aum")
    assert "aum" not in {one["name"] for one in made("score", "-w", work, *DIGITS)["scores"]}


# -- the file --


def test_reduced_scores_are_small(work: Path, tmp_path: Path):
    made("score", "-w", work, *DIGITS, "--teacher", "mine")
    out = tmp_path / "small.h5"
    reduced(work / "scores/digits/mine.h5", out)
    with open_scores(out) as small, open_scores(work / "scores/digits/mine.h5") as whole:
        assert small.scores == whole.scores and small.record == whole.record
        assert np.array_equal(small.labels_n, whole.labels_n) and np.array_equal(small.rows_n, whole.rows_n)
        assert small.read("scores/aum").dtype == np.float16
        bytes_a_row = sum(small.read(name).nbytes for name in small.dataset_names()) / len(small)
        assert bytes_a_row == 2 * len(small.scores) + 3
    with pytest.raises(UsageError, match="did you mean aum"):
        reduced(out, tmp_path / "other.h5", ("amu",))


def test_what_float16_cannot_hold_is_refused(work: Path, tmp_path: Path):
    made("score", "-w", work, *DIGITS, "--teacher", "mine", "--score", "aum")
    with open_scores(work / "scores/digits/mine.h5") as reader:
        record, rows_n, labels_n = reader.record, reader.rows_n, reader.labels_n
    values_n = np.zeros(len(rows_n))
    values_n[3] = 1e6
    with pytest.raises(UsageError, match=r"score x: row 3 is 1000000\.0, which float16 can't hold"):
        write_scores(tmp_path / "x.h5", record, rows_n, labels_n, {"x": Scored(values_n, {})}, np.float16)
    assert not (tmp_path / "x.h5").exists()


def test_damage_is_told_in_one_line(work: Path):
    made("score", "-w", work, *DIGITS, "--teacher", "mine", "--score", "aum")
    path = work / "scores/digits/mine.h5"
    whole = path.read_bytes()
    with h5py.File(path, "r") as file:
        at = file["scores/aum"].id.get_offset()
    flipped = bytearray(whole)
    flipped[at] ^= 1
    for content, words in [
        (bytes(flipped), "/scores/aum, rows from 0, fails its checksum"),
        (whole[: len(whole) // 2], "not a readable HDF5 file"),
        (b"", "not a readable HDF5 file"),
        ((work / "teachers/mine/cache.h5").read_bytes(), "not scores of this version (expected schema"),
    ]:
        path.write_bytes(content)
        refused(work, ("--teacher", "mine", "--score", "aum"), 1, "mine.h5", words, "kdtool score", "--force")
        with pytest.raises(FailureError, match="Run: kdtool score"):
            found(work, "aum", "mine")
        made("score", "-w", work, *DIGITS, "--teacher", "mine", "--score", "aum", "--force")
        assert len(found(work, "aum", "mine")[0])


def test_scores_of_other_data_are_refused(work: Path):
    made("score", "-w", work, *DIGITS, "--teacher", "mine", "--score", "aum")
    with h5py.File(work / "scores/digits/mine.h5", "r+") as file:
        file.attrs["record"] = str(file.attrs["record"]).replace(packed(work).record.train_fingerprint, "0" * 16)
    refused(work, ("--teacher", "mine", "--score", "aum"), 1, "scores of digits (0000", "kdtool score")


@pytest.mark.parametrize("killed", [False, True], ids=["failing", "killed"])
def test_a_write_that_does_not_end_leaves_the_old_file(work: Path, killed: bool):
    command = ["score", "-w", str(work), *DIGITS, "--teacher", "mine", "--score"]
    made(*command, "aum")
    path = work / "scores/digits/mine.h5"
    before = path.read_bytes()
    ending = "os._exit(9)" if killed else "raise OSError(28, 'No space left on device')"
    code = f"""
import os
from toolkit.core.files import DeferringFile
def check(self):
    {ending}
DeferringFile.check = check
from toolkit.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code, *command, "forgetting"], capture_output=True, text=True)
    assert done.returncode == (9 if killed else 1), done.stderr
    if not killed:
        assert len(done.stderr.splitlines()) == 1 and "mine.h5: could not be written (No space left" in done.stderr
    assert path.read_bytes() == before
    made(*command, "forgetting")
    assert not list(path.parent.glob("*.tmp")) and not list(path.parent.glob(".*.tmp"))


# -- from outside --


def rows_of(workspace: Path) -> int:
    return packed(workspace).record.train_rows


def write_csv(path: Path, header: str, rows: Any) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def labels(workspace: Path) -> np.ndarray:
    return packed(workspace).split("train").labels_n


@pytest.fixture(scope="module")
def shelf(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed digits alone."""
    work = tmp_path_factory.mktemp("import") / "work"
    shutil.copytree(digits / "data", work / "data")
    return work


def test_imported_scores_are_found_by_row_whatever_the_order(shelf: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    values_n = rng.normal(size=rows_of(shelf)).astype(np.float32)
    order, labels_n, data = rng.permutation(len(values_n)), labels(shelf), packed(shelf).record.train_fingerprint
    np.save(tmp_path / "a.npy", values_n)
    write_csv(tmp_path / "b.csv", "row,score", ((row, values_n[row]) for row in order))
    write_csv(
        tmp_path / "c.csv",
        "label, Score,fingerprint,row,note",
        ((labels_n[row], values_n[row], data, row, "x") for row in order),
    )
    remarked = (tmp_path / "b.csv").read_text()
    (tmp_path / "d.csv").write_text(f"#fingerprint {data}\n# by hand\n\n{remarked}")
    for name in ("a.npy", "b.csv", "c.csv", "d.csv"):
        result = made("score", "-w", shelf, *DIGITS, "--import", tmp_path / name, "--name", name[0])
        assert result["scores"][0]["definition"] == f"imported from {name}"
        found_n, described = found(shelf, name[0])
        assert np.array_equal(found_n, values_n) and described == f"{name[0]} of the imported scores"
    made("score", "-w", shelf, *DIGITS, "--import", tmp_path / "a.npy", "--name", "turned", "--low-is-hard")
    assert np.array_equal(found(shelf, "turned")[0], -values_n)
    with open_scores(shelf / "scores/digits/imported.h5") as reader:
        assert set(reader.scores) == {"a", "b", "c", "d", "turned"}
        assert "sign turned" in reader.scores["turned"]["definition"] and reader.record.teacher is None


def test_importing_again_changes_nothing_and_other_numbers_need_force(shelf: Path, tmp_path: Path):
    command = ("score", "-w", shelf, *DIGITS, "--import", tmp_path / "x.npy", "--name", "again")
    np.save(tmp_path / "x.npy", np.arange(rows_of(shelf)))
    assert not made(*command)["scores"][0]["unchanged"]
    before = files(shelf)
    assert made(*command)["scores"][0]["unchanged"] and files(shelf) == before
    np.save(tmp_path / "x.npy", -np.arange(rows_of(shelf), dtype=np.float64))
    refused(shelf, command[5:], 1, "holds another score again", "--force")
    made(*command, "--force")
    assert found(shelf, "again")[0][-1] == 1 - rows_of(shelf)


def test_no_zero_is_below_zero(shelf: Path, tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros(rows_of(shelf)))
    made("score", "-w", shelf, *DIGITS, "--import", tmp_path / "x.npy", "--name", "zero", "--low-is-hard")
    assert not np.signbit(found(shelf, "zero")[0]).any()


def test_an_import_never_replaces_a_damaged_file_of_others(shelf: Path, tmp_path: Path):
    work = Path(shutil.copytree(shelf, tmp_path / "work"))
    np.save(tmp_path / "x.npy", np.zeros(rows_of(work)))
    words = ("--import", tmp_path / "x.npy", "--name", "x")
    path = Path(made("score", "-w", work, *DIGITS, *words)["path"])
    path.write_bytes(path.read_bytes()[:-100])
    refused(work, (*words, "--force"), 1, "imported.h5", f"Run: rm {path}", "--import FILE --name NAME")


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(7), "float64 of shape (7,)"),
        (np.zeros((2, 2)), "float64 of shape (2, 2)"),
        (np.array(["a"]), "expected floats"),
        (np.array([_Evil()], dtype=object), "not a readable .npy file of numbers"),
        (None, "not a readable .npy file of numbers"),
    ],
    ids=["short", "table", "words", "pickle", "no array"],
)
def test_npy_files_that_are_not_one_number_a_row_are_refused(shelf: Path, tmp_path: Path, array: Any, words: str):
    path = tmp_path / "x.npy"
    path.write_text("hello") if array is None else np.save(path, array, allow_pickle=True)
    refused(shelf, ("--import", path, "--name", "x"), 1, "x.npy", words)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_npy_numbers_must_be_finite(shelf: Path, tmp_path: Path, bad: float):
    values_n = np.zeros(rows_of(shelf))
    values_n[5] = bad
    np.save(tmp_path / "x.npy", values_n)
    refused(shelf, ("--import", tmp_path / "x.npy", "--name", "x"), 1, "row 5 is", "finite")


def changed(rows: list[list[Any]], at: int, column: int, value: Any) -> list[list[Any]]:
    rows[at][column] = value
    return rows


@pytest.mark.parametrize(
    ("header", "edit", "words"),
    [
        ("row,score", lambda rows: rows[:-2], ("lacks 2 of", "the first is row 1440")),
        ("row,score", lambda rows: [*rows, rows[3]], ("line 1444: row 3 is there twice",)),
        ("row,score", lambda rows: [*rows, [1442, 0]], ("row '1442'", "0 to 1441")),
        ("row,score", lambda rows: changed(rows, 0, 0, -1), ("line 2: row '-1'",)),
        ("row,score", lambda rows: changed(rows, 0, 0, "1.0"), ("line 2: row '1.0'",)),
        ("row,score", lambda rows: changed(rows, 4, 1, "nan"), ("line 6: the score of row 4 is 'nan'",)),
        ("row,score", lambda rows: changed(rows, 4, 1, "hard"), ("line 6: the score of row 4 is 'hard'",)),
        ("row,score", lambda rows: changed(rows, 4, 1, "1e39"), ("the score of row 4 is 1e+39", "finite")),
        ("row,score", lambda rows: [*rows[:5], [5], *rows[6:]], ("line 7: 1 cells, the header has 2",)),
        ("path,score", lambda rows: rows, ("keyed by path, but packed data keep no paths", "'row'")),
        ("index,score", lambda rows: rows, ("its header is 'index,score'", "row,score")),
        ("row,row", lambda rows: rows, ("its header is 'row,row'",)),
    ],
)
def test_csv_files_that_are_not_every_row_once_are_refused(
    shelf: Path, tmp_path: Path, header: str, edit: Any, words: tuple[str, ...]
):
    assert rows_of(shelf) == 1442
    path = write_csv(tmp_path / "x.csv", header, edit([[row, row / 7] for row in range(1442)]))
    refused(shelf, ("--import", path, "--name", "x"), 1, "x.csv", *words)


def test_scores_of_another_data_set_or_order_are_refused(shelf: Path, tmp_path: Path):
    labels_n, path = labels(shelf), tmp_path / "x.csv"
    other = (labels_n[9] + 1) % 10
    write_csv(path, "row,score,label", ((row, 0, other if row == 9 else labels_n[row]) for row in range(len(labels_n))))
    refused(shelf, ("--import", path, "--name", "x"), 1, "line 11: row 9 has label", "another data set")
    write_csv(path, "row,score,fingerprint", ((row, 0, "0123") for row in range(len(labels_n))))
    refused(shelf, ("--import", path, "--name", "x"), 1, "line 2", "0123", packed(shelf).record.train_fingerprint)
    path.write_text("#fingerprint 0123\nrow,score\n")
    refused(shelf, ("--import", path, "--name", "x"), 1, "line 1", "0123", packed(shelf).record.train_fingerprint)


def test_files_that_are_nothing_are_refused(shelf: Path, tmp_path: Path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(b"row,score\n\xff\xfe\n")
    (tmp_path / "x.txt").write_text("row,score\n")
    for name, words in {
        "empty.csv": "empty, expected a header",
        "binary.csv": "not readable as UTF-8 CSV",
        "x.txt": "expected a file ending in .npy or .csv",
        "none.csv": "not found",
    }.items():
        refused(shelf, ("--import", tmp_path / name, "--name", "x"), 1, name, words)


@pytest.mark.parametrize("name", ["el2n", "forgetting", "prototype", "a@3", "a/b", "", "-x", "a b", "x" * 65])
def test_names_that_are_ours_or_no_names_are_refused(shelf: Path, tmp_path: Path, name: str):
    np.save(tmp_path / "x.npy", np.zeros(rows_of(shelf)))
    refused(shelf, ("--import", tmp_path / "x.npy", "--name", name), 2, "--name")


def test_an_import_without_a_name_is_refused(shelf: Path, tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros(rows_of(shelf)))
    refused(shelf, ("--import", tmp_path / "x.npy"), 2, "--name")
    refused(shelf, ("--import", tmp_path / "x.npy", "--name", "x", "--score", "aum"), 2, "--import takes no --score")
