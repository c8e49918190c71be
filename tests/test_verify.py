"""verify-cache, cache-teacher --dry-run and --encoding, as a user runs them: what is cached is what the teacher says,
at the price announced, in the encoding asked for.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import kdtool, made
from tests.test_bad_input import OTHER_PLAN, fails, refused, rewritten
from tests.test_laws import everything_in, same
from toolkit.core.recipes import RECIPES
from toolkit.formats.cache import open_cache
from toolkit.formats.encodings import Arrays
from toolkit.formats.parts import Parts
from toolkit.models.zoo import build_model
from toolkit.teacher.caching import TeacherPass

DIGITS = ("--dataset", "digits")
FLOAT32 = ("--precision", "float32")
CACHE = ("cache-teacher", *DIGITS, *FLOAT32)
VERIFY = ("verify-cache", *DIGITS, *FLOAT32)
AGAIN = "Run: kdtool cache-teacher --dataset digits --teacher digits-resnet8 --force"
ROWS, TEST_ROWS = 1442, 355
BYTES_PER_VIEW = {"float16": 20, "float32": 40, "int8": 18, "topk:3": 20}

State = dict[str, tuple[int, bytes]]


def state_of(workspace: Path) -> State:
    """Every file and folder, locks too: when it was last written, and its bytes."""
    found = sorted(workspace.rglob("*"))
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in found}


def cache_of(workspace: Path, teacher: str = "digits-resnet8") -> Path:
    return workspace / "teachers" / teacher / "cache.h5"


def targets_of(workspace: Path, subset: str) -> Path:
    return workspace / "subsets" / subset / "targets" / "digits-resnet8.h5"


@pytest.fixture
def packed(digits: Path, tmp_path: Path) -> Path:
    """A workspace of one's own with nothing but the packed digits."""
    shutil.copytree(digits / "data", tmp_path / "packed" / "data")
    return tmp_path / "packed"


@dataclass(frozen=True)
class Pipeline:
    """What each command said, from the announced cost to the student. Commands that write nothing may run in it."""

    workspace: Path
    cost: dict[str, Any]
    cache: dict[str, Any]
    subset: dict[str, Any]
    student: dict[str, Any]

    def copy(self, folder: Path) -> Path:
        """Its data and caches, to damage."""
        for part in ("data", "teachers"):
            shutil.copytree(self.workspace / part, folder / part)
        return folder


class Pipelines(dict[str, Pipeline]):
    """The real commands, one after the other, in each encoding: run when first asked for."""

    def __init__(self, digits: Path, folder: Path) -> None:
        self.digits, self.folder = digits, folder

    def __missing__(self, encoding: str) -> Pipeline:
        workspace = self.folder / encoding.replace(":", "-")
        shutil.copytree(self.digits / "data", workspace / "data")
        common = ("-w", workspace)
        cache = (*CACHE, "--views", "3", "--encoding", encoding, *common)
        self[encoding] = Pipeline(
            workspace,
            made(*cache, "--dry-run"),
            made(*cache),
            made("build-subset", *DIGITS, "--frac", "0.1", "--name", "tenth", *common),
            made("distill", "--subset", "tenth", "--epochs", "3", "--name", "first", *common),
        )
        return self[encoding]


@pytest.fixture(scope="module")
def pipelines(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    return Pipelines(digits, tmp_path_factory.mktemp("pipelines"))


# What the teacher says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", BYTES_PER_VIEW)
def test_a_sound_cache_is_what_the_teacher_says_and_is_not_touched(pipelines: Pipelines, encoding: str):
    workspace = pipelines[encoding].workspace
    before = state_of(workspace)
    found = made(*VERIFY, "-w", workspace)
    assert {"path", "teacher", "samples", "mean", "largest", "mean_bound", "largest_bound"} <= found.keys()
    assert (found["samples"], found["encoding"], found["precision"], found["views"]) == (256, encoding, "float32", 3)
    assert 0 <= found["mean"] <= found["mean_bound"] < found["largest_bound"]
    assert found["mean"] <= found["largest"] <= found["largest_bound"]
    assert made(*VERIFY, "--subset", "tenth", "-w", workspace)["path"] == str(targets_of(workspace, "tenth"))
    assert state_of(workspace) == before


@pytest.mark.parametrize("encoding", BYTES_PER_VIEW)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_targets_of_a_subset_are_what_the_teacher_says(digits: Path, tmp_path: Path, encoding: str, precision: str):
    workspace = Path(shutil.copytree(digits, tmp_path / "work"))
    asked = ("--subset", "hard", "-w", workspace)
    cached = made("cache-teacher", *asked, "--precision", precision, "--dtype", encoding, "--views", "3", "--force")
    assert cached["encoding"] == encoding and cached["verified"]["samples"] == 64
    for machine in ("float32", "bfloat16"):  # one that would not have cached so allows as much as the rougher
        found = made("verify-cache", *asked, "--precision", machine, "--samples", "100")
        assert (found["samples"], found["precision"]) == (100, precision)
        assert found["largest"] <= found["largest_bound"]


def test_a_cache_at_the_precision_of_proofs_is_what_the_teacher_says(packed: Path):
    words = ("-w", packed, "--precision", "float64", "--encoding", "float64", "--views", "1")
    assert made("cache-teacher", *DIGITS, *words)["verified"]["largest"] < 1e-9


def test_a_verified_cache_is_said_in_words_with_its_bounds(pipelines: Pipelines):
    result = kdtool(*VERIFY, "--samples", "40", "--seed", "3", "-w", pipelines["float16"].workspace)
    number = r"\d\S*"
    words = rf"asked again about 40 views, the teacher deviates by {number} logits on average and {number} at most "
    assert re.search(rf"{words}\(bounds: {number} and {number}\)$", result.stdout.strip())


Change = Callable[[dict[str, np.ndarray]], Arrays]  # all arrays of a cache → those that are replaced


def exchanged(first: str, second: str) -> Change:
    return lambda arrays: {
        name.replace(f"/{ours}/", f"/{theirs}/"): array
        for ours, theirs in ((first, second), (second, first))
        for name, array in arrays.items()
        if name.startswith(f"slots/{ours}/")
    }


def of_every_slot(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda arrays: {at: change(array) for at, array in arrays.items() if re.fullmatch(rf"slots/\d+/{name}", at)}


def one_number(name: str, value: float) -> Change:
    """In every row."""

    def change(arrays: dict[str, np.ndarray]) -> Arrays:
        array = arrays[name].copy()
        array[(slice(None), 0) if array.ndim == 2 else slice(None)] = value
        return {name: array}

    return change


# Wrong in a third or more of the views, by twice float32's bounds or more: 256 samples miss that with a chance below
# 1e-45. The bounds of bfloat16 are wider: logits scaled by 1.02 lie within them.
WRONG: dict[str, tuple[str, Change]] = {
    "slots exchanged": ("float16", exchanged("0", "1")),
    "slots of levels exchanged": ("int8", exchanged("0", "1")),
    "slots of the largest exchanged": ("topk:3", exchanged("1", "2")),
    "every row its neighbour's": ("float16", of_every_slot("logits", lambda logits_nc: np.roll(logits_nc, 1, axis=0))),
    "scaled": ("float16", of_every_slot("logits", lambda logits_nc: (1.02 * logits_nc).astype(logits_nc.dtype))),
    "scaled in full": ("float32", of_every_slot("logits", lambda logits_nc: np.float32(1.02) * logits_nc)),
    "one class of one slot": ("float32", one_number("slots/2/logits", 5.0)),
    "steps of levels": ("int8", of_every_slot("int8/scale", lambda scale_n: np.float32(1.1) * scale_n)),
    "steps without end": ("int8", one_number("slots/1/int8/scale", np.inf)),
    "classes exchanged": ("topk:3", of_every_slot("topk/indices", lambda classes_nk: classes_nk[:, [1, 0, 2]])),
    "the next class": ("topk:3", of_every_slot("topk/indices", lambda classes_nk: (classes_nk + 1) % 10)),
    "a class that is none": ("topk:3", one_number("slots/0/topk/indices", 12)),
    "the rest of another row": ("topk:3", of_every_slot("topk/tail", lambda tail_n4: np.roll(tail_n4, 1, axis=0))),
    "not a number": ("topk:3", one_number("slots/0/topk/values", np.nan)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_sound_file_of_wrong_logits_is_refused_with_deviation_bound_and_command(
    pipelines: Pipelines, tmp_path: Path, wrong: str
):
    encoding, change = WRONG[wrong]
    workspace = pipelines[encoding].copy(tmp_path / "work")
    path = cache_of(workspace)
    rewritten(path, change(everything_in(path)))
    with open_cache(path) as cache:
        assert cache.verify() > 0  # every checksum is right
    before = state_of(workspace)
    line = fails(kdtool(*VERIFY, "-w", workspace), 1, f"{path}: not what the teacher says", "over 256 samples", AGAIN)
    number = r"(\d\S*|inf|nan)"
    assert re.search(rf"by {number} on average and {number} at most .* float32 allows {number} and {number}\. ", line)
    assert state_of(workspace) == before


def test_exchanged_slots_are_told_apart_in_bfloat16_too(digits: Path, tmp_path: Path):
    workspace = Path(shutil.copytree(digits, tmp_path / "work"))
    asked = ("--subset", "third", "--precision", "bfloat16", "-w", workspace)
    made("cache-teacher", *asked, "--views", "3", "--force")
    path = targets_of(workspace, "third")
    rewritten(path, exchanged("0", "1")(everything_in(path)))
    again = "Run: kdtool cache-teacher --subset third --teacher digits-resnet8 --force"
    fails(kdtool("verify-cache", *asked), 1, "not what the teacher says", "bfloat16 allows", again)


def test_a_single_wrong_view_is_found_when_the_sample_meets_it_and_not_else(pipelines: Pipelines, tmp_path: Path):
    """One of 432: 256 samples meet it in 45 of 100 cases, 20,000 miss it with a chance below 1e-19."""
    workspace = pipelines["float16"].copy(tmp_path / "work")
    shutil.copytree(pipelines["float16"].workspace / "subsets", workspace / "subsets")
    path = targets_of(workspace, "tenth")
    logits_nc = everything_in(path)["slots/1/logits"]
    logits_nc[70] = np.roll(logits_nc[70], 1)
    rewritten(path, {"slots/1/logits": logits_nc})
    asked = (*VERIFY, "--subset", "tenth", "-w", workspace)
    found = [kdtool(*asked, "--seed", seed).exit_code for seed in range(12)]
    assert set(found) == {0, 1}
    fails(kdtool(*asked, "--samples", "20000"), 1, "not what the teacher says", "over 20000 samples")


def test_the_cache_of_another_teacher_is_refused_by_name_and_under_a_false_name_by_what_it_says(
    pipelines: Pipelines, tmp_path: Path
):
    workspace = pipelines["float16"].copy(tmp_path / "work")
    with open_cache(cache_of(workspace)) as cache:
        ours = cache.record.teacher_fingerprint
    made("train-teacher", *DIGITS, *FLOAT32, "--epochs", "1", "--arch", "resnet8", "--name", "other", "-w", workspace)
    made(*CACHE, "--teacher", "other", "--views", "2", "-w", workspace)
    shutil.copy(cache_of(workspace, "other"), cache_of(workspace))
    with open_cache(cache_of(workspace)) as cache:
        theirs = cache.record.teacher_fingerprint
    words = (f"a cache of something else (teacher_fingerprint {theirs} → {ours})", AGAIN)
    refused(workspace, VERIFY, 1, *words)
    rewritten(cache_of(workspace), teacher_fingerprint=ours)
    refused(workspace, VERIFY, 1, "not what the teacher says", AGAIN)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"data_fingerprint": "0" * 16}, f"data_fingerprint {'0' * 16} → "),
        ({"test_fingerprint": "0" * 16}, f"test_fingerprint {'0' * 16} → "),
        ({"plan": OTHER_PLAN}, "plan {"),
    ],
)
def test_a_cache_of_other_data_or_views_is_refused_by_name(
    pipelines: Pipelines, tmp_path: Path, record: dict[str, Any], words: str
):
    workspace = pipelines["float16"].copy(tmp_path / "work")
    rewritten(cache_of(workspace), **record)
    refused(workspace, VERIFY, 1, "a cache of something else", words, AGAIN)


def test_a_cache_of_other_rows_is_refused_by_name(pipelines: Pipelines, tmp_path: Path):
    workspace = pipelines["float16"].copy(tmp_path / "work")
    rewritten(cache_of(workspace), {"rows": np.arange(ROWS) + 1})
    refused(workspace, VERIFY, 1, "a cache of something else (rows)", AGAIN)


def test_a_cache_of_a_precision_that_is_none_is_asked_about_at_this_machines(pipelines: Pipelines, tmp_path: Path):
    workspace = pipelines["float16"].copy(tmp_path / "work")
    rewritten(cache_of(workspace), precision="half")
    assert made(*VERIFY, "-w", workspace)["precision"] == "half"


def test_without_a_cache_there_is_nothing_to_verify(packed: Path):
    refused(packed, VERIFY, 1, "cache.h5: not found", AGAIN.removesuffix(" --force"))


# After every cache-teacher --------------------------------------------------------------------------------------------


def test_cache_teacher_verifies_what_it_wrote_unless_told_not_to(packed: Path):
    first = made(*CACHE, "--views", "1", "-w", packed)
    assert first["verified"].keys() == {"samples", "mean", "largest", "mean_bound", "largest_bound"}
    assert first["teacher_images"] == ROWS + TEST_ROWS  # those of the verification are not among the cache's
    again = made(*CACHE, "--views", "1", "-w", packed)
    assert again["unchanged"] and "verified" in again  # an earlier run may have been stopped before it verified
    assert again["teacher_images"] == 0
    assert "asked again about 64 views" in kdtool(*CACHE, "--views", "2", "-w", packed).stdout
    assert "verified" not in made(*CACHE, "--views", "3", "--no-verify", "-w", packed)


def test_a_teacher_that_answers_otherwise_the_second_time_is_found_out(packed: Path, monkeypatch: pytest.MonkeyPatch):
    asked: set[tuple[str, int]] = set()
    honest = TeacherPass.run

    def moody(self: TeacherPass, views: Any, positions_n: np.ndarray, slot: int) -> tuple[np.ndarray, np.ndarray]:
        logits_nc, features_nd = honest(self, views, positions_n, slot)
        before = (views.beton.path.name, slot) in asked
        asked.add((views.beton.path.name, slot))
        return logits_nc + np.float32(before), features_nd

    monkeypatch.setattr(TeacherPass, "run", moody)
    line = fails(kdtool(*CACHE, "--views", "2", "-w", packed), 1, "cache.h5: not what the teacher says", AGAIN)
    assert "logits deviate by 1 on average" in line and "over 64 samples" in line
    asked.clear()
    made(*CACHE, "--views", "2", "--force", "--no-verify", "-w", packed)


def test_a_teacher_that_guesses_is_noted(packed: Path, tmp_path: Path):
    model = build_model("resnet8", 10, width=4)
    torch.nn.init.zeros_(model.fc.weight)  # the same class for every image
    torch.save(model.state_dict(), tmp_path / "guess.pt")
    words = ("--teacher", tmp_path / "guess.pt", "--arch", "resnet8", "--width", "4", "--views", "1", "-w", packed)
    shown = kdtool("cache-teacher", *DIGITS, *words)
    assert shown.exit_code == 0
    assert "guess: " in shown.stderr and "hardly more than chance, 10.00 %" in shown.stderr
    assert "chance" not in kdtool(*CACHE, "--views", "1", "-w", packed).stderr


def test_a_misspelt_teacher_is_refused_before_anything_is_packed(tmp_path: Path):
    line = fails(kdtool("cache-teacher", *DIGITS, "--teacher", "digits-resnet9", "-w", tmp_path), 1, "digits-resnet8")
    assert "Did you mean digits-resnet8?" in line and not list(tmp_path.iterdir())


# What it would cost ---------------------------------------------------------------------------------------------------


def stored_bytes(path: Path) -> int:
    """Of all that a user reads, by plain h5py."""
    return sum(array.nbytes for name, array in everything_in(path).items() if not name.startswith("checksums/"))


@pytest.mark.parametrize("encoding", BYTES_PER_VIEW)
def test_the_announced_passes_and_bytes_are_those_of_the_cache(pipelines: Pipelines, encoding: str):
    cost, cache = pipelines[encoding].cost, pipelines[encoding].cache
    assert cost["passes"] == cost["passes_of_the_whole_cache"] == cache["teacher_images"] == 3 * ROWS + TEST_ROWS
    assert cost["bytes"] == stored_bytes(Path(cache["path"])) > cost["passes"] * BYTES_PER_VIEW[encoding]
    assert (cost["encoding"], cost["bytes_per_view"]) == (encoding, cache["bytes_per_view"])
    assert cost["minutes"] == pytest.approx(cost["passes"] / cost["images_per_s"] / 60)


def repaying_students(passes: int, kept: int) -> int:
    """Counted: students are trained beside a live teacher until it has run as often."""
    live, students = 0, 0
    while live < passes:
        live += kept * RECIPES["fast"].epochs
        students += 1
    return students


def test_a_dry_run_writes_nothing_and_says_what_students_repay_it(tmp_path: Path):
    """In floating point, 0.3 · 12 rows · 30 epochs are less than the 108 passes."""
    words = ("-w", tmp_path, "--limit", "12")
    cost = made(*CACHE, "--views", "8", "--dry-run", *words)
    assert list(tmp_path.iterdir()) == []
    assert cost["passes"] == 8 * 12 + 12
    kept = {"0.05": 1, "0.1": 1, "0.3": 4, "0.5": 6, "1": 12}
    assert cost["students_to_repay"] == {name: repaying_students(108, rows) for name, rows in kept.items()}
    before = state_of(tmp_path)
    shown = kdtool(*CACHE, "--views", "8", "--dry-run", *words).stdout
    assert "108 images through the teacher" in shown and "float16: 20 bytes a view" in shown and "about" in shown
    assert (
        "students of 30 epochs" in shown
        and "1 on 30% of the rows, 1 on 50% of the rows, 1 on 100% of the rows" in shown
    )
    assert state_of(tmp_path) == before


def test_students_that_repay_a_cache_train_on_the_rows_that_build_subset_keeps(packed: Path):
    cost = made(*CACHE, "--views", "all", "--dry-run", "-w", packed)
    for fraction, students in cost["students_to_repay"].items():
        kept = made("build-subset", *DIGITS, "--frac", fraction, "--name", fraction, "--index-only", "-w", packed)
        assert students == repaying_students(9 * ROWS + TEST_ROWS, kept["rows"])
    assert cost["students_to_repay"]["0.05"] == 7


def test_the_cost_of_a_subsets_targets_is_repaid_by_its_own_students(packed: Path):
    kept = made("build-subset", *DIGITS, "--frac", "0.01", "--name", "few", "-w", packed)["rows"]
    words = ("cache-teacher", "--subset", "few", "--views", "5", *FLOAT32, "-w", packed)
    before = state_of(packed)
    cost = made(*words, "--dry-run")
    assert state_of(packed) == before
    assert (cost["rows"], cost["passes"]) == (kept, 5 * kept + TEST_ROWS)
    assert cost["students_to_repay"] == {"1": repaying_students(cost["passes"], kept)} == {"1": 2}
    assert made(*words)["teacher_images"] == cost["passes"]
    assert stored_bytes(targets_of(packed, "few")) == cost["bytes"]


def test_only_what_is_missing_is_counted(packed: Path, monkeypatch: pytest.MonkeyPatch):
    words = (*CACHE, "-w", packed, "--views")

    def cost(views: str, *more: str) -> tuple[int, int]:
        before = state_of(packed)
        told = made(*words, views, "--dry-run", *more)
        assert state_of(packed) == before
        assert told["passes_of_the_whole_cache"] == int(views) * ROWS + TEST_ROWS
        return told["passes"], told["bytes"]

    save, saved = Parts.save, []

    def killed(self: Parts, key: str, **arrays: np.ndarray) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(key)
        save(self, key, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "save", killed)
        assert kdtool(*words, "3").exit_code == 130
    assert saved == [f"train-slot-0000{slot}-rows-0000000000" for slot in range(2)]
    passes, whole = cost("3")
    assert passes == ROWS + TEST_ROWS
    int8 = whole - 2 * (3 * ROWS + TEST_ROWS)
    assert cost("3", "--force", "--encoding", "int8") == (3 * ROWS + TEST_ROWS, int8)
    assert made(*words, "3")["teacher_images"] == ROWS + TEST_ROWS
    before = stored_bytes(cache_of(packed))
    assert before == whole  # the logits of finished parts too are written
    assert cost("3") == cost("2") == (0, 0)
    disagreement = 4 * ROWS  # the score of several views, which is written anew
    assert cost("5") == (2 * ROWS, 20 * 2 * ROWS + disagreement)
    assert cost("2", "--force") == (2 * ROWS + TEST_ROWS, whole - 20 * ROWS)
    assert made(*words, "5")["teacher_images"] == 2 * ROWS
    assert stored_bytes(cache_of(packed)) - before == 20 * 2 * ROWS


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--encoding=int8", ("encoding float16 → int8",)),
        ("--encoding=topk:4", ("encoding float16 → topk:4",)),
        ("--precision=bfloat16", ("precision float32 → bfloat16",)),
    ],
)
def test_a_dry_run_is_refused_where_the_command_would_be(pipelines: Pipelines, option: str, words: tuple[str, ...]):
    workspace, command = pipelines["float16"].workspace, (*CACHE, "--views", "4", option)
    line = refused(workspace, (*command, "--dry-run"), 1, "a cache of something else", *words, AGAIN[1:])
    assert line == refused(workspace, command, 1)


# Encodings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", BYTES_PER_VIEW)
def test_every_encoding_goes_from_teacher_to_student_without_another_pass(pipelines: Pipelines, encoding: str):
    done = pipelines[encoding]
    assert (done.cache["encoding"], done.cache["bytes_per_view"]) == (encoding, BYTES_PER_VIEW[encoding])
    assert (done.student["match"], done.student["views"], done.student["teacher_forward_passes"]) == ("exact", 3, 0)
    assert np.isfinite(done.student["top1"]) and done.student["agreement"] is not None
    with open_cache(cache_of(done.workspace)) as cache, open_cache(targets_of(done.workspace, "tenth")) as targets:
        assert targets.record.encoding == cache.record.encoding == encoding
        rows_m, ours, theirs = targets.read("rows"), targets.encoded(3), cache.encoded(3)
        assert all(np.array_equal(a.in_memory(), theirs[name].in_memory()[:, rows_m]) for name, a in ours.items())
        assert np.array_equal(targets.test_classes(), cache.test_classes())


def test_top_k_targets_have_no_mean_and_serve_no_temperature_below_one(pipelines: Pipelines):
    """Said in one line, before anything is trained."""
    workspace, train = pipelines["topk:3"].workspace, ("distill", "--subset", "tenth", "--epochs", "9", "--name", "new")
    refused(workspace, (*train, "--match", "mean"), 2, "--match mean: topk:3", "Use --match nearest or exact")
    refused(workspace, (*train, "--temperature", "0.5"), 2, "--temperature 0.5: top-k", "--encoding float16")


@pytest.mark.parametrize("encoding", ["int8", "topk:3"])
def test_views_are_added_in_the_encoding_that_is_there_and_equal_those_cached_at_once(
    pipelines: Pipelines, packed: Path, encoding: str
):
    made(*CACHE, "--views", "1", "--encoding", encoding, "-w", packed)
    assert made(*CACHE, "--views", "2", "-w", packed)["encoding"] == encoding
    assert made(*CACHE, "--views", "3", "--encoding", "auto", "-w", packed)["encoding"] == encoding
    assert same(everything_in(cache_of(packed)), everything_in(cache_of(pipelines[encoding].workspace)))
    assert "scores/disagreement" in everything_in(cache_of(packed))


def test_a_cache_made_again_without_an_encoding_is_of_the_default_one(pipelines: Pipelines, tmp_path: Path):
    workspace = pipelines["int8"].copy(tmp_path / "work")
    refused(workspace, (*CACHE, "--views", "4", "--encoding", "float16"), 1, "encoding int8 → float16")
    words = (*CACHE, "--views", "2", "--force", "-w", workspace)
    assert made(*words, "--dry-run")["encoding"] == "float16"
    assert made(*words)["encoding"] == "float16"
    record = made("inspect", cache_of(workspace))
    assert json.dumps(record).count("int8") == 0
