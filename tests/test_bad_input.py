"""Bad input: one clear line on stderr that says what, found and what to run next; exit code 2 for usage and 1 for
failure; never a traceback, and never a half-written artifact. Everything here is real: files, damage, full disks.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import kdtool, made
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.locks import only_writer
from toolkit.formats.bundle import open_bundle, rows_fingerprint
from toolkit.formats.cache import open_cache
from toolkit.formats.cache_writing import new_cache
from toolkit.formats.checkpoint import load_checkpoint, save_checkpoint, save_torch
from toolkit.formats.parts import Parts
from toolkit.models.zoo import build_model
from toolkit.pipeline.known_teachers import PRETRAINED_FOLDER

TEACHER = PRETRAINED_FOLDER / "digits-resnet8.pt"
DIGITS = ("--dataset", "digits")
DISTILL_ANY = ("distill", "--subset", "fifth", "--name", "new")
CACHE_MORE = ("cache-teacher", *DIGITS, "--views", "3")
CACHE_DRY = ("cache-teacher", *DIGITS, "--dry-run")
CACHE_MORE_DRY = (*CACHE_DRY, "--views", "3")
CACHE_SUBSET = ("cache-teacher", "--subset", "fifth", "--views", "3")
BUILD = ("build-subset", *DIGITS, "--frac", "0.5")
BUILD_AGAIN = ("build-subset", *DIGITS, "--frac", "0.2", "--name", "fifth")
DISTILL = (*DISTILL_ANY, "--epochs", "1")
TRAIN = ("train-teacher", *DIGITS, "--arch", "resnet8", "--epochs", "1", "--name", "new")


@dataclass(frozen=True)
class Ended:
    """How a command in a process of its own ended; the same names as click's Result."""

    exit_code: int
    stdout: str
    stderr: str


def fails(result: Any, code: int, *words: str, progress: int = 0) -> str:
    """The command's one line, after `progress` lines of a run that had begun: with this exit code and these words."""
    rates = re.compile(r"[^:]+: [\d,]+ of [\d,]+ (img|rows), .* left")  # shown where the machine is busy
    lines = [line for line in result.stderr.splitlines() if not rates.fullmatch(line)]
    assert result.exit_code == code, f"exit code {result.exit_code}: {result.stderr}{result.stdout}"
    assert len(lines) == 1 + progress, f"not one line: {result.stderr}"
    assert result.stdout == ""
    for wrong in ("Traceback", "an error of kdtool itself", ".tmp", " object at 0x"):
        assert wrong not in result.stderr
    for word in words:
        assert word in lines[-1], f"'{word}' is missing: {lines[-1]}"
    return lines[-1]


def held(workspace: Path) -> dict[str, str]:
    """Every file and its content's hash, but for the locks, which stay; nothing temporary among them."""
    names = {str(path.relative_to(workspace)): path for path in workspace.rglob("*")}
    assert not [name for name in names if ".tmp" in name]
    files = {name: path for name, path in names.items() if path.is_file() and not path.name.endswith(".lock")}
    return {name: hashlib.sha1(path.read_bytes()).hexdigest() for name, path in files.items()}


@contextmanager
def unchanged(workspace: Path) -> Iterator[None]:
    """Whatever runs inside leaves every file of the workspace as it was, and no other."""
    before = held(workspace)
    yield
    assert held(workspace) == before


def refused(workspace: Path, command: tuple[Any, ...], code: int, *words: str, progress: int = 0) -> str:
    """A command that fails as promised and changes nothing."""
    with unchanged(workspace):
        return fails(kdtool(*command, "-w", workspace), code, *words, progress=progress)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits packed, two views cached, a fifth kept, a student of one epoch. Commands that fail may run in it."""
    workspace = tmp_path_factory.mktemp("good")
    common = ("-w", workspace)
    made("pack", *DIGITS, *common)
    made("cache-teacher", *DIGITS, "--views", "2", *common)
    made(*BUILD_AGAIN, *common)
    made("distill", "--epochs", "1", "--name", "done", *common)
    return workspace


@pytest.fixture
def ours(good: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(good, tmp_path / "ours"))


def cache_of(workspace: Path) -> Path:
    return workspace / "teachers" / "digits-resnet8" / "cache.h5"


def targets_of(workspace: Path) -> Path:
    return workspace / "subsets" / "fifth" / "targets" / "digits-resnet8.h5"


def train_of(workspace: Path) -> Path:
    return workspace / "data" / "digits" / "train.beton"


def truncated(path: Path, size: int) -> None:
    """Cut to `size` bytes, counted from the end where it is negative."""
    path.write_bytes(path.read_bytes()[:size])


def rewritten(path: Path, arrays: dict[str, np.ndarray] | None = None, **record: Any) -> None:
    """A cache or targets file, sound in itself, with other arrays or another record."""
    with open_cache(path) as old:
        new_record = replace(old.record, **record)
        content = {name: old.read(name) for name in old.dataset_names()} | (arrays or {})
    with new_cache(path, new_record) as out:
        for name, array in content.items():
            out.write(name, array)


def edited(path: Path, **fields: Any) -> None:
    """A JSON record with other fields, or without those that are None."""
    record = {**json.loads(path.read_text()), **fields}
    path.write_text(
        json.dumps({name: value for name, value in record.items() if name not in fields or value is not None})
    )


def flipped(path: Path, content: np.ndarray) -> None:
    """One bit changed in the middle of an array's bytes in the file."""
    file = bytearray(path.read_bytes())
    start = file.find(content.tobytes())
    assert start > 0
    file[start + content.nbytes // 2] ^= 1
    path.write_bytes(file)


def a_teacher(path: Path, weights: Callable[[dict[str, torch.Tensor]], None] | None = None, **fields: Any) -> Path:
    """A checkpoint file: the teacher of digits with other fields, its weights changed by `weights`."""
    teacher = replace(load_checkpoint(TEACHER), **fields)
    if weights is not None:
        weights(teacher.weights)
    save_checkpoint(path, teacher)
    return path


# Values that cannot be, and names that do not exist -------------------------------------------------------------------

VALUES = [
    *[(("build-subset", *DIGITS), "--frac", value, 2) for value in ("0", "-1", "1.5", "nan", "inf", "0.001", "half")],
    *[(("cache-teacher", *DIGITS), "--views", v, 2) for v in ("0", "-1", "10", "some", "1.5", "²", "epochs:0")],
    *[(("cache-teacher", *DIGITS), "--views", value, 2) for value in ("epochs:x", "epochs:-1", "epochs:", "all:3")],
    *[(CACHE_MORE, "--batch-size", value, 2) for value in ("0", "-1", "many")],
    *[(CACHE_MORE, "--encoding", value, 2) for value in ("topk:0", "topk:10", "topk:x", "topk:-1", "int4", "Int8")],
    *[(CACHE_MORE_DRY, "--encoding", value, 2) for value in ("topk:10", "int4")],
    *[(CACHE_DRY, "--views", value, 2) for value in ("0", "10", "epochs:0")],
    *[(CACHE_MORE_DRY, "--batch-size", value, 2) for value in ("0", "many")],
    *[(("verify-cache", *DIGITS), "--samples", value, 2) for value in ("0", "-1", "x")],
    *[(("verify-cache", *DIGITS), "--seed", value, 2) for value in ("-1", "99999999999999999999", "x")],
    *[(DISTILL, "--alpha", value, 2) for value in ("-0.1", "1.1", "nan", "inf", "x")],
    *[(DISTILL, "--temperature", value, 2) for value in ("0", "-1", "nan", "inf", "x")],
    *[(DISTILL, "--lr", value, 2) for value in ("0", "-1", "nan", "inf", "x")],
    *[(DISTILL, "--label-smoothing", value, 2) for value in ("-0.1", "1", "nan", "x")],
    *[(DISTILL, "--ema", value, 2) for value in ("0", "1", "-1", "nan", "x")],
    *[(("evaluate", TEACHER), "--size", value, 2) for value in ("0", "-1", "16", "x")],
    *[(("evaluate", TEACHER), "--crop", value, 2) for value in ("0", "1.5", "nan", "0.9", "x")],
    *[(DISTILL_ANY, "--epochs", value, 2) for value in ("0", "-1", "x")],
    *[(DISTILL, "--batch-size", value, 2) for value in ("0", "-1", "x")],
    *[(DISTILL_ANY, "--iterations", value, 2) for value in ("0", "-1", "x")],
    *[(DISTILL, "--views", value, 2) for value in ("0", "-1", "3", "x")],
    *[(DISTILL, "--width", value, 2) for value in ("0", "-4")],
    *[(DISTILL, "--threads", value, 2) for value in ("0", "-1")],
    *[(DISTILL, "--seed", value, 2) for value in ("-1", "99999999999999999999", "x")],
    *[(BUILD, "--seed", value, 2) for value in ("-1", "99999999999999999999")],
    *[(DISTILL, "--name", value, 2) for value in ("", " ", "../x", "a/b", ".hidden", "x" * 300)],
    *[(TRAIN, option, "nan", 2) for option in ("--lr",)],
    *[(TRAIN, option, "0", 2) for option in ("--epochs", "--batch-size", "--width", "--threads")],
    *[(("pack", *DIGITS), "--limit", value, 2) for value in ("0", "-1", "9", "x")],
    *[(("pack", *DIGITS), "--workers", value, 2) for value in ("0", "-1")],
]


@pytest.mark.parametrize(("command", "option", "value", "code"), VALUES, ids=lambda value: str(value)[:24])
def test_a_value_that_cannot_be_is_named_with_what_was_found(good: Path, command, option: str, value: str, code: int):
    line = refused(good, (*command, f"{option}={value}"), code, option)
    assert value[:20] in line or str(len(value)) in line


def test_a_fraction_that_empties_a_class_says_the_smallest_that_does_not(good: Path):
    line = refused(good, ("build-subset", *DIGITS, "--frac", "0.001"), 2, "10 classes", "Use --frac 0.007 or more")
    assert "1 of 1442 rows" in line


NAMES = [
    (("pack", "--dataset", "digit"), 2, "did you mean digits?"),
    (("pack", "--dataset", "zzz"), 2, "known are fashion-mnist"),
    (("cache-teacher", *DIGITS, "--teacher", "digits-resnet9"), 1, "digits-resnet8", "kdtool train-teacher"),
    (("cache-teacher", *DIGITS, "--teacher", "../x"), 2, "--teacher"),
    (("cache-teacher", *DIGITS, "--dtype", "float15"), 2, "float16, float32, int8"),
    ((*CACHE_DRY, "--teacher", "digits-resnet9"), 1, "digits-resnet8", "kdtool train-teacher"),
    (("cache-teacher", "--subset", "none"), 1, "kdtool build-subset"),
    (("cache-teacher", "--subset", "none", "--dry-run"), 1, "kdtool build-subset"),
    (("verify-cache", *DIGITS, "--teacher", "digits-resnet9"), 1, "digits-resnet8", "kdtool train-teacher"),
    (("verify-cache", "--subset", "none"), 1, "kdtool build-subset"),
    ((*BUILD, "--teacher", "none"), 1, "neither a file nor a teacher", "kdtool train-teacher"),
    ((*BUILD, "--method", "hardst"), 2, "did you mean hardest?"),
    ((*BUILD, "--method", "hardest", "--score", "eln2"), 2, "did you mean el2n?"),
    ((*BUILD, "--score", "el2n"), 2, "--score has no meaning for --method random"),
    ((*DISTILL, "--arch", "resnet9"), 2, "did you mean resnet8?"),
    ((*DISTILL, "--arch", "torchvision:resnet5O"), 2, "resnet50"),
    ((*DISTILL, "--recipe", "fastt"), 2, "did you mean fast?"),
    ((*DISTILL, "--match", "nearst"), 2, "did you mean nearest?"),
    ((*DISTILL, "--precision", "float16"), 2, "did you mean bfloat16?"),
    ((*DISTILL, "--teacher", "none"), 1, "holds targets of digits-resnet8, not of none", "kdtool cache-teacher"),
    (("distill", "--subset", "none"), 1, "kdtool build-subset"),
    *[((*DISTILL, "--device", name), 2, f"--device {name}") for name in ("gpu", "cpu:3", "mps", "meta", "cuda:x")],
    (("train-teacher", *DIGITS, "--arch", "resnt20"), 2, "did you mean resnet20?"),
    (("train-teacher", *DIGITS, "--subset", "none"), 1, "kdtool build-subset"),
    (("evaluate", "{done}", "--split", "val"), 2, "'train', 'test'"),
    (("evaluate", "{done}", "--dataset", "digit"), 2, "did you mean digits?"),
]


@pytest.mark.parametrize(("command", "code", "words"), [(case[0], case[1], case[2:]) for case in NAMES], ids=str)
def test_an_unknown_name_is_answered_with_the_nearest_known(good: Path, command, code: int, words: tuple[str, ...]):
    done = str(good / "runs" / "done")
    refused(good, tuple(word.replace("{done}", done) for word in command), code, *words)


def test_a_device_this_machine_lacks_is_said(good: Path):
    name = f"cuda:{torch.cuda.device_count() or 7}"
    refused(good, (*DISTILL, "--device", name), 2, f"--device {name}", "torch finds")


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (("build-subset",), "--frac"),
        (("build-subset", "--frac"), "--frac"),
        (("distill", "--wat"), "--wat"),
        (("distill", "extra"), "extra"),
        (("distil",), "distill"),
        (("inspect",), "PATH"),
        (("--wat",), "--wat"),
    ],
    ids=str,
)
def test_a_command_that_cannot_be_parsed_points_to_its_help(command: tuple[str, ...], word: str):
    line = fails(kdtool(*command), 2, word, "--help")
    assert line.startswith("kdtool")


def test_kdtool_alone_shows_its_help():
    result = kdtool()
    assert result.exit_code == 0
    assert result.stdout == kdtool("--help").stdout


@pytest.mark.parametrize("command", [("pack", "--dataset", "digit"), ("inspect", "nowhere"), ("distill", "--wat")])
def test_json_is_for_results_alone_and_errors_stay_one_line(tmp_path: Path, command: tuple[str, ...]):
    fails(kdtool(*command, "--json", "-w", tmp_path), kdtool(*command, "-w", tmp_path).exit_code)


@pytest.mark.parametrize(("command", "code"), [(("pack", "--dataset", "digit"), 2), (("inspect", "nowhere"), 1)])
def test_debug_shows_the_traceback_above_the_same_line(tmp_path: Path, command: tuple[str, ...], code: int):
    plain = fails(kdtool(*command, "-w", tmp_path), code)
    result = kdtool(*command, "--debug", "-w", tmp_path)
    assert result.exit_code == code
    assert result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1] == plain


# Teachers -------------------------------------------------------------------------------------------------------------


def test_a_teacher_of_other_classes_is_refused(good: Path, tmp_path: Path):
    seven = a_teacher(tmp_path / "seven.pt", classes=7, weights=lambda weights: None)
    save_checkpoint(seven, replace(load_checkpoint(seven), weights=build_model("resnet8", 7).state_dict()))
    for command in (CACHE_MORE, ("evaluate", seven)):
        words = ("--teacher", seven) if command is CACHE_MORE else ()
        refused(good, (*command, *words), 1, "7 classes, but digits has 10", "kdtool train-teacher --dataset digits")


def test_a_teacher_of_another_data_set_is_refused(good: Path, tmp_path: Path):
    other = a_teacher(tmp_path / "other.pt", dataset="mnist")
    refused(good, (*CACHE_MORE, "--teacher", other), 1, "trained on mnist", "kdtool train-teacher --dataset digits")
    refused(good, ("evaluate", other, *DIGITS), 1, "trained on mnist")


def scaled(name: str, factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def scale(weights: dict[str, torch.Tensor]) -> None:
        weights[name].mul_(factor)

    return scale


@pytest.mark.parametrize(
    ("name", "factor", "words"),
    [
        ("fc.weight", float("nan"), ("not all finite (fc.weight)", "smaller --lr")),
        ("fc.bias", float("inf"), ("not all finite (fc.bias)", "smaller --lr")),
        ("fc.weight", 1e38, ("its logits for row", "are not finite", "another --teacher")),
        ("fc.weight", 1e6, ("do not fit float16", "--encoding float32")),
        ("stage3.0.bn2.weight", 1e6, ("do not fit float16",)),
    ],
)
def test_a_teacher_whose_numbers_are_broken_leaves_no_cache(
    good: Path, tmp_path: Path, name: str, factor: float, words: tuple[str, ...]
):
    broken = a_teacher(tmp_path / "broken.pt", scaled(name, factor))
    refused(good, (*CACHE_MORE, "--teacher", broken), 1, *words)


def test_features_too_large_for_the_cache_are_refused_where_logits_are_not(good: Path, tmp_path: Path):
    def large(weights: dict[str, torch.Tensor]) -> None:
        weights["stage3.0.bn2.weight"].mul_(1e6)
        weights["fc.weight"].mul_(1e-6)

    broken = a_teacher(tmp_path / "broken.pt", large)
    refused(good, (*CACHE_MORE, "--teacher", broken), 1, "features beyond", "another --teacher")


class Bomb:
    """What a malicious checkpoint holds: unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _checkpoint_content(**fields: Any) -> dict[str, Any]:
    return {**torch.load(TEACHER, weights_only=True), **fields}


NO_CHECKPOINTS: dict[str, Callable[[Path, Path], Any]] = {
    "empty": lambda file, trap: file.write_bytes(b""),
    "random bytes": lambda file, trap: file.write_bytes(np.random.default_rng(0).bytes(5000)),
    "text": lambda file, trap: file.write_text("these are not weights\n"),
    "truncated": lambda file, trap: file.write_bytes(TEACHER.read_bytes()[:20000]),
    "a list": lambda file, trap: torch.save([1, 2], file),
    "no tensors": lambda file, trap: torch.save({"state_dict": {"fc.weight": 1.0}}, file),
    "a whole model": lambda file, trap: torch.save(torch.nn.Linear(2, 2), file),
    "too few fields": lambda file, trap: torch.save({"format": "kdtool checkpoint 1"}, file),
    "weights of no tensors": lambda file, trap: torch.save(_checkpoint_content(weights={"fc.weight": "x"}), file),
    "two channels": lambda file, trap: torch.save(_checkpoint_content(mean=[0.5, 0.5]), file),
    "a std of zero": lambda file, trap: torch.save(_checkpoint_content(std=[0.0, 0.0, 0.0]), file),
    "a pickle that runs code": lambda file, trap: file.write_bytes(pickle.dumps(Bomb(trap))),
    "a torch file that runs code": lambda file, trap: torch.save(Bomb(trap), file),
    "weights that run code": lambda file, trap: torch.save(_checkpoint_content(weights=Bomb(trap)), file),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_and_never_run(good: Path, tmp_path: Path, kind: str):
    file, trap = tmp_path / "file.pt", tmp_path / "trap"
    NO_CHECKPOINTS[kind](file, trap)
    for command in ((*CACHE_MORE, "--teacher", file), ("evaluate", file), ("inspect", file)):
        refused(good, command, 1, str(file), "checkpoint", "kdtool train-teacher")
    assert not trap.exists()


@pytest.mark.parametrize("weights", [{}, {"fc.weight": torch.zeros(3)}])
def test_weights_that_do_not_fit_their_architecture_are_refused(good: Path, tmp_path: Path, weights: dict[str, Any]):
    file = a_teacher(tmp_path / "file.pt")
    save_checkpoint(file, replace(load_checkpoint(file), weights=weights))
    refused(good, ("evaluate", file), 1, str(file), "do not fit")


def test_a_checkpoint_that_names_no_known_network_is_a_failure_of_the_file(good: Path, tmp_path: Path):
    file = a_teacher(tmp_path / "file.pt", arch="resnet9")
    refused(good, ("evaluate", file), 1, str(file), "resnet9")


# Caches and targets ---------------------------------------------------------------------------------------------------

SIZES = (0, 1, 8, 100, 2000, 20_000, -1)


@pytest.mark.parametrize("size", SIZES)
def test_a_truncated_cache_is_refused_by_all_who_read_it(ours: Path, size: int):
    truncated(cache_of(ours), size)
    again = "Run: kdtool cache-teacher"
    for command in (CACHE_MORE, BUILD, (*BUILD, "--method", "hardest"), ("inspect", cache_of(ours))):
        refused(ours, command, 1, "cache.h5", "not a readable HDF5 file", again)


@pytest.mark.parametrize("size", SIZES)
def test_truncated_targets_are_refused_by_all_who_read_them(ours: Path, size: int):
    truncated(targets_of(ours), size)
    subset = ours / "subsets" / "fifth"
    for command in (DISTILL, CACHE_SUBSET, BUILD_AGAIN, ("inspect", subset), ("inspect", targets_of(ours))):
        refused(ours, command, 1, "digits-resnet8.h5", "not a readable HDF5 file", "Run: kdtool cache-teacher")


def test_the_command_a_damaged_cache_asks_for_mends_it(ours: Path):
    truncated(cache_of(ours), -1)
    line = refused(ours, CACHE_MORE, 1, "Run: kdtool ")
    made(*line.split("Run: kdtool ")[1].split(), "-w", ours)
    made("inspect", cache_of(ours), "-w", ours)


@pytest.mark.parametrize("name", ["slots/0/logits", "slots/1/logits", "test/logits", "rows", "scores/el2n"])
def test_a_flipped_bit_in_a_cache_fails_its_checksum(ours: Path, name: str):
    with open_cache(cache_of(ours)) as cache:
        array = cache.read(name)
    flipped(cache_of(ours), array)
    refused(ours, ("inspect", cache_of(ours)), 1, f"/{name}", "fails its checksum", "Run: kdtool cache-teacher")
    if name == "slots/1/logits":
        refused(ours, BUILD, 1, f"/{name}", "fails its checksum", "Run: kdtool cache-teacher")


@pytest.mark.parametrize("name", ["slots/0/logits", "slots/1/logits", "test/logits", "rows"])
def test_a_flipped_bit_in_targets_fails_its_checksum(ours: Path, name: str):
    with open_cache(targets_of(ours)) as targets:
        array = targets.read(name)
    flipped(targets_of(ours), array)
    for command in (DISTILL, ("inspect", ours / "subsets" / "fifth"), ("inspect", targets_of(ours))):
        refused(ours, command, 1, f"/{name}", "fails its checksum", "Run: kdtool cache-teacher")


def test_flipped_bits_anywhere_in_targets_end_in_one_line_or_in_nothing(ours: Path):
    """HDF5's own tables carry checksums too, so that damage there can't send it round in circles."""
    sound, rng = targets_of(ours).read_bytes(), np.random.default_rng(0)
    for place in rng.integers(len(sound), size=100):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << rng.integers(8)
        targets_of(ours).write_bytes(damaged)
        result = kdtool("inspect", targets_of(ours))
        if result.exit_code != 0:
            fails(result, 1, "digits-resnet8.h5")


OTHER_PLAN = {"family": "pad-crop", "height": 8, "width": 8, "padding": 2, "seed": 0, "renderer": "pad-crop/1"}
IMPOSSIBLE_RECORDS = [
    {"slots": 9},
    {"slots": 0},
    {"slots": "two"},
    {"classes": 7},
    {"encoding": "float15"},
    {"plan": {}},
    {"plan": {**OTHER_PLAN, "family": "pad-crap"}},
    {"plan": {**OTHER_PLAN, "padding": "one"}},
    {"plan": {**OTHER_PLAN, "renderer": "pad-crop/9"}},
    {"teacher": None},
]


@pytest.mark.parametrize("record", IMPOSSIBLE_RECORDS, ids=str)
def test_a_record_that_does_not_describe_its_file_is_refused(ours: Path, record: dict[str, Any]):
    with open_cache(targets_of(ours)) as old:
        new_record, content = replace(old.record, **record), {name: old.read(name) for name in old.dataset_names()}
    with new_cache(targets_of(ours), new_record) as out:
        for name, array in content.items():
            out.write(name, array)
    for command in (DISTILL, CACHE_SUBSET, ("inspect", targets_of(ours))):
        refused(ours, command, 1, "digits-resnet8.h5", "Run: kdtool cache-teacher")


@pytest.mark.parametrize("missing", ["rows", "labels", "slots/1/logits", "test/logits"])
def test_a_cache_that_lacks_a_dataset_is_refused(ours: Path, missing: str):
    with open_cache(cache_of(ours)) as old:
        record, content = old.record, {name: old.read(name) for name in old.dataset_names() if name != missing}
    with new_cache(cache_of(ours), record) as out:
        for name, array in content.items():
            out.write(name, array)
    for command in (CACHE_MORE, BUILD, ("inspect", cache_of(ours))):
        refused(ours, command, 1, "cache.h5", f"/{missing}", "Run: kdtool cache-teacher")


def test_an_hdf5_file_that_is_no_cache_is_refused(good: Path, tmp_path: Path):
    import h5py

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2, 3]
    refused(good, ("inspect", tmp_path / "other.h5"), 1, "expected schema 2, found none")


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({"dataset": "mnist", "data_fingerprint": "0" * 16}, "data_fingerprint"),
        ({"teacher_fingerprint": "0" * 16}, "teacher_fingerprint"),
        ({"plan": OTHER_PLAN}, "'padding': 2"),
        ({"precision": "float64"}, "precision float64"),
    ],
)
def test_a_cache_of_something_else_is_not_added_to(ours: Path, record: dict[str, Any], word: str):
    rewritten(cache_of(ours), **record)
    refused(
        ours,
        CACHE_MORE,
        1,
        "a cache of something else",
        word,
        "kdtool cache-teacher --dataset digits --teacher digits-resnet8 --force",
    )


def test_a_cache_of_another_dtype_is_not_added_to(good: Path):
    refused(good, (*CACHE_MORE, "--dtype", "float32"), 1, "encoding float16 → float32", "--force")


def test_a_cache_of_other_data_gives_no_scores(ours: Path):
    rewritten(cache_of(ours), dataset="mnist", data_fingerprint="0" * 16)
    for options in (("--method", "hardest"), ("--teacher", "digits-resnet8")):
        refused(ours, (*BUILD, *options), 1, "made from mnist", "Run: kdtool cache-teacher --dataset digits")


@pytest.mark.parametrize(
    ("arrays", "record", "word"),
    [
        (lambda rows: {}, {"data_fingerprint": "0" * 16}, "made from other data"),
        (lambda rows: {}, {"test_fingerprint": "0" * 16}, "made from other data"),
        (lambda rows: {"rows": rows + 1}, {}, "other rows"),
        (lambda rows: {}, {"plan": OTHER_PLAN}, "padding 2"),
    ],
    ids=["data", "test data", "rows", "plan"],
)
def test_targets_of_something_else_teach_nobody(ours: Path, arrays: Any, record: dict[str, Any], word: str):
    rewritten(targets_of(ours), arrays(open_bundle(ours / "subsets" / "fifth").rows_m), **record)
    refused(ours, DISTILL, 1, "digits-resnet8.h5", word, "kdtool cache-teacher --subset fifth")


def test_targets_for_other_rows_are_seen_by_inspect(ours: Path):
    rewritten(targets_of(ours), {"rows": open_bundle(ours / "subsets" / "fifth").rows_m + 1})
    line = refused(ours, ("inspect", ours / "subsets" / "fifth"), 1, "not of this subset's rows")
    assert "kdtool build-subset --dataset digits --frac 0.2 --method random --seed 0 --name fifth --force" in line


@pytest.mark.parametrize("change", [{"encoding": "float32"}, {"teacher_fingerprint": "0" * 16}])
def test_an_unfinished_cache_of_another_identity_is_not_gone_on_with(ours: Path, change: dict[str, str]):
    folder = cache_of(ours).with_name("cache.h5.parts")
    with open_cache(cache_of(ours)) as cache:
        identity = {**cache.record.identity(), "kind": "cache", "rows": rows_fingerprint(cache.read("rows")), **change}
    Parts(folder, identity).save("train-slot-00002-rows-0000000000", logits=np.zeros((1442, 10), np.float16))
    (name, found), *_ = change.items()
    refused(ours, CACHE_MORE, 1, "unfinished work of another kind", f"{name} was {found}", "--force")


def test_a_damaged_part_is_named_and_a_part_of_unknown_work_is_not_used(ours: Path):
    folder = cache_of(ours).with_name("cache.h5.parts")
    with open_cache(cache_of(ours)) as cache:
        identity = {**cache.record.identity(), "kind": "cache", "rows": rows_fingerprint(cache.read("rows"))}
    key = "train-slot-00002-rows-0000000000"
    Parts(folder, identity).save(key, logits=np.zeros((1442, 10), np.float16))
    truncated(folder / f"{key}.npz", 1000)
    refused(ours, CACHE_MORE, 1, f"{key}.npz: damaged", "Delete it and run the same command again")
    (folder / "identity.json").unlink()
    refused(ours, CACHE_MORE, 1, "identity.json", "--force")


# Packed data and subsets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 100, 5000, 3_000_000, -1])
def test_a_truncated_beton_is_refused_by_all_who_read_it(ours: Path, size: int):
    truncated(train_of(ours), size)
    done = ours / "runs" / "done"
    readers = (CACHE_MORE, BUILD, TRAIN, ("pack", *DIGITS), ("inspect", ours / "data" / "digits"))
    for command in (*readers, ("evaluate", done, "--split", "train"), ("inspect", train_of(ours))):
        refused(ours, command, 1, "train.beton", "kdtool pack")


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_test_split_is_refused_before_training_not_after(ours: Path, size: int):
    truncated(ours / "data" / "digits" / "test.beton", size)
    for command in (DISTILL, TRAIN):
        refused(ours, command, 1, "test.beton", "kdtool pack --dataset digits --force")


@pytest.mark.parametrize("size", [0, 100, 5000, -1])
def test_truncated_images_of_a_subset_are_refused(ours: Path, size: int):
    truncated(ours / "subsets" / "fifth" / "images.beton", size)
    for command in (DISTILL, ("inspect", ours / "subsets" / "fifth")):
        refused(ours, command, 1, "images.beton", "kdtool build-subset --dataset digits --frac 0.2")


@pytest.mark.parametrize("place", [8, 16, 3 * 1048 + 24 + 2, 3 * 1048 + 24 + 8, 3 * 1048 + 24 + 20])
def test_flipped_bits_in_a_betons_tables_end_in_one_line(ours: Path, place: int):
    content = bytearray(train_of(ours).read_bytes())
    content[place : place + 4] = b"\xff" * 4
    train_of(ours).write_bytes(content)
    refused(ours, ("inspect", ours / "data" / "digits"), 1, "train.beton", "kdtool pack")
    refused(ours, TRAIN, 1, "train.beton", "kdtool pack")


DATA_RECORDS = [
    {"classes": None},
    {"unheard_of": 1},
    {"classes": "10"},
    {"classes": 5},
    {"class_names": ["one"]},
    {"family": "pad-crap"},
    {"padding": "one"},
    {"padding": -3},
    {"height": 9},
    {"mean": [0.5, 0.5]},
    {"std": [0.0, 0.0, 0.0]},
    {"train_rows": 5},
    {"dataset": "mnist"},
]


@pytest.mark.parametrize("fields", DATA_RECORDS, ids=str)
def test_a_data_record_that_cannot_be_is_refused(ours: Path, fields: dict[str, Any]):
    edited(ours / "data" / "digits" / "data.json", **fields)
    for command in (CACHE_MORE, BUILD, TRAIN, ("pack", *DIGITS)):
        refused(ours, command, 1, "data/digits", "kdtool pack --dataset digits --force")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"text"', "\0"])
@pytest.mark.parametrize("name", ["data/digits/data.json", "subsets/fifth/subset.json", "subsets/fifth/loader.json"])
def test_a_record_that_is_no_json_is_refused(ours: Path, name: str, content: str):
    (ours / name).write_text(content)
    refused(ours, DISTILL, 1, name, "JSON", "Run: kdtool")
    refused(ours, ("inspect", (ours / name).parent), 1, name, "JSON", "Run: kdtool")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("subset.json", {"rows": None}),
        ("subset.json", {"rows": 5}),
        ("subset.json", {"rows": "many"}),
        ("subset.json", {"rows_fingerprint": "0" * 16}),
        ("subset.json", {"data": {}}),
        ("subset.json", {"data": []}),
        ("loader.json", {"rows": None}),
        ("loader.json", {"rows": [1, 2]}),
        ("loader.json", {"rows": ["a"]}),
        ("loader.json", {"indices": None}),
        ("loader.json", {"indices": [1, 2]}),
        ("loader.json", {"indices": [-1] * 288}),
        ("loader.json", {"indices": [99999] * 288}),
        ("loader.json", {"file": 3}),
        ("loader.json", {"file": "gone.beton"}),
    ],
    ids=str,
)
def test_a_subset_whose_records_cannot_be_is_refused(ours: Path, name: str, fields: dict[str, Any]):
    edited(ours / "subsets" / "fifth" / name, **fields)
    for command in (DISTILL, ("inspect", ours / "subsets" / "fifth")):
        refused(ours, command, 1, "subsets/fifth", "kdtool build-subset")


def test_an_indexed_subset_without_its_data_says_what_to_run(ours: Path):
    made(*BUILD, "--index-only", "--name", "indexed", "-w", ours)
    train_of(ours).unlink()
    command = ("distill", "--subset", "indexed", "--epochs", "1")
    refused(ours, command, 1, "train.beton", "not found", "--frac 0.5", "--index-only")


def test_a_subset_of_other_data_is_not_used_with_these(ours: Path):
    record = json.loads((ours / "subsets" / "fifth" / "subset.json").read_text())
    edited(ours / "subsets" / "fifth" / "subset.json", data={**record["data"], "train_fingerprint": "0" * 16})
    refused(ours, CACHE_SUBSET, 1, "cut from digits", "kdtool build-subset")


def test_a_subset_with_other_settings_keeps_its_name(good: Path):
    refused(good, (*BUILD, "--name", "fifth"), 1, "other settings", "fraction 0.2 → 0.5", "another --name", "--force")


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_finished_run_with_other_settings_keeps_its_name(good: Path):
    command = ("distill", "--epochs", "2", "--name", "done")
    refused(good, command, 1, "other settings", "epochs 1 → 2", "another --name", "--force")


def test_a_forced_run_that_cannot_begin_leaves_the_finished_one(good: Path):
    refused(good, ("distill", "--name", "done", "--force", "--arch", "resnet9"), 2, "did you mean resnet8?")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"format": "another"}, ("not a training state of this version", "Delete it")),
        ({"settings": {"alpha": 0.5}}, ("an unfinished run with other settings", "alpha 0.5 → 1.0", "--force")),
    ],
)
def test_an_unfinished_run_of_something_else_is_not_gone_on_with(ours: Path, state: dict[str, Any], words: Any):
    (ours / "runs" / "new").mkdir(exist_ok=True)
    content = {"format": "kdtool training state 1", "state": {}, "epochs": [], **state}
    save_torch(ours / "runs" / "new" / "checkpoint.pt", content)
    refused(ours, DISTILL, 1, "checkpoint.pt", *words, progress=1)


def test_a_training_state_that_is_not_whole_is_refused(ours: Path):
    settings = json.loads((ours / "runs" / "done" / "run.json").read_text())["settings"]
    (ours / "runs" / "new").mkdir(exist_ok=True)
    checkpoint = ours / "runs" / "new" / "checkpoint.pt"
    save_torch(checkpoint, {"format": "kdtool training state 1", "settings": settings, "state": {}, "epochs": []})
    refused(ours, DISTILL, 1, "checkpoint.pt", "not a whole training state", "Delete it", progress=1)
    truncated(checkpoint, 500)
    refused(ours, DISTILL, 1, "checkpoint.pt", "not a readable checkpoint", progress=1)


@pytest.mark.parametrize("fields", [{"result": None}, {"result": {}}, {"result": []}, {"settings": []}])
def test_the_record_of_a_run_that_cannot_be_is_refused(ours: Path, fields: dict[str, Any]):
    edited(ours / "runs" / "done" / "run.json", **fields)
    refused(ours, ("distill", "--epochs", "1", "--name", "done"), 1, "runs/done", "--force")
    if "result" in fields:
        refused(ours, ("inspect", ours / "runs" / "done"), 1, "run.json", "kdtool distill")


def test_a_run_whose_student_is_gone_or_anothers_is_seen(ours: Path):
    student = ours / "runs" / "done" / "student.pt"
    save_checkpoint(student, replace(load_checkpoint(student), top1=12.5))
    refused(ours, ("inspect", ours / "runs" / "done"), 1, "of different runs", "kdtool distill --force")
    student.unlink()
    for command in (("inspect", ours / "runs" / "done"), ("evaluate", ours / "runs" / "done")):
        refused(ours, command, 1, "student.pt", "not found", "kdtool distill")


@pytest.mark.parametrize("command", [(*DISTILL, "--batch-size", "32"), TRAIN], ids=["distill", "train-teacher"])
def test_a_training_that_diverges_says_where_and_leaves_no_network(ours: Path, command: tuple[str, ...]):
    begun = 1 if command[0] == "distill" else 0
    words = ("the loss at step", "is not a number", "smaller --lr")
    refused(ours, (*command, "--lr", "1e6"), 1, *words, progress=begun)


def test_weights_broken_by_the_last_step_are_not_kept(ours: Path):
    command = (*DISTILL_ANY, "--iterations", "1", "--lr", "1e39", "--recipe", "paper-cifar")
    refused(ours, command, 1, "the weights after step 0 are not finite", "smaller --lr", progress=1)


def test_a_lack_of_memory_is_no_error_of_kdtool(good: Path):
    refused(good, (*DISTILL, "--width", "10000000000000"), 1, "not enough memory", "smaller --batch-size")


# Files, folders and other processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "evaluate"])
@pytest.mark.parametrize("path", ["nowhere", "nowhere.pt", "nowhere.h5", "."])
def test_a_path_with_nothing_of_ours_is_refused(good: Path, tmp_path: Path, command: str, path: str):
    refused(good, (command, tmp_path / path), 1, str(tmp_path))


def test_a_file_of_another_kind_is_refused(good: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("x")
    refused(good, ("inspect", tmp_path / "notes.txt"), 1, "expected a file ending in .beton, .h5, .pt")
    refused(good, ("evaluate", cache_of(good)), 1, "not a readable checkpoint")
    refused(good, (*CACHE_MORE, "--teacher", cache_of(good)), 1, "not a readable checkpoint")


def test_nothing_to_distill_says_what_to_run(tmp_path: Path):
    fails(kdtool("distill", "-w", tmp_path / "new"), 1, "no subset yet", "kdtool build-subset --frac 0.5")
    assert not (tmp_path / "new").exists()


def test_missing_folders_of_the_workspace_are_made(tmp_path: Path):
    made("pack", *DIGITS, "--limit", "20", "-w", tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c" / "data" / "digits-limit-20" / "data.json").is_file()


@pytest.mark.parametrize("command", [("pack", *DIGITS), ("cache-teacher", *DIGITS), BUILD])
def test_a_workspace_that_is_a_file_or_in_one_is_refused(tmp_path: Path, command: tuple[str, ...]):
    file = tmp_path / "file"
    file.write_text("in the way")
    fails(kdtool(*command, "-w", file), 2, str(file), "is a file")
    fails(kdtool(*command, "-w", file / "w"), 1, str(file / "w"), "Not a directory", "--workspace")
    assert file.read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where it likes")
def test_a_read_only_workspace_is_refused(ours: Path):
    folders = [ours, *(path for path in ours.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        for command in (("pack", *DIGITS, "--force"), (*CACHE_MORE, "--force"), BUILD, DISTILL):
            refused(ours, command, 1, "Permission denied", "--workspace")
    finally:
        for folder in folders:
            folder.chmod(0o700)


LOCKED = {
    "data": (("pack", *DIGITS, "--force"), "data/digits"),
    "cache": (CACHE_MORE, "teachers/digits-resnet8/cache.h5"),
    "targets": (CACHE_SUBSET, "subsets/fifth"),  # one lock for all that a bundle holds
    "subset": (BUILD_AGAIN, "subsets/fifth"),
    "run": (DISTILL, "runs/new/student.pt"),
    "teacher": (TRAIN, "teachers/new/teacher.pt"),
}


@pytest.mark.parametrize("kind", LOCKED)
def test_a_second_writer_is_told_who_is_writing(good: Path, kind: str):
    command, artifact = LOCKED[kind]
    with only_writer(good / artifact):
        refused(good, command, 1, artifact, f"is being written by process {os.getpid()}", "Wait for it to end")


def test_a_data_set_that_is_nowhere_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy"):  # nothing listens there, so no machine downloads anything
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "empty").mkdir()
    started = time.monotonic()
    for name in ("kmnist", "cifar10", "svhn"):
        result = kdtool("pack", "--dataset", name, "--data-dir", tmp_path / "empty", "-w", tmp_path / "w")
        fails(result, 1, f"data set {name}", "download failed", f"kdtool pack --dataset {name} --data-dir FOLDER")
        assert "which is no folder" not in result.stderr
    assert list((tmp_path / "empty").iterdir()) == []
    absent = tmp_path / "absent" / "too"
    result = kdtool("pack", "--dataset", "cifar10", "--data-dir", absent, "-w", tmp_path / "w")
    fails(result, 1, f"--data-dir ({absent}, which is no folder)", "download failed")
    assert not absent.parent.exists()
    assert time.monotonic() - started < 60
    assert held(tmp_path / "w") == {}


def idx(array: np.ndarray) -> bytes:
    """In LeCun's format, gzipped."""
    return gzip.compress(struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes())


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (b"no gzip", idx(np.zeros(20, np.uint8))),
        (idx(np.zeros((20, 8, 8), np.uint8))[:-12], idx(np.zeros(20, np.uint8))),
        (gzip.compress(b""), idx(np.zeros(20, np.uint8))),
        (gzip.compress(b"\0\0\x08\x03"), idx(np.zeros(20, np.uint8))),
        (idx(np.zeros((20, 8, 8), np.uint8)), idx(np.zeros(19, np.uint8))),
        (idx(np.zeros((20, 8, 8), np.uint8)), None),
        (idx(np.zeros((20, 8, 8), np.uint8)), idx(np.full(20, 11, np.uint8))),
    ],
    ids=["no gzip", "truncated", "empty", "no size", "too few labels", "no labels", "labels beyond the classes"],
)
def test_a_damaged_source_is_named(tmp_path: Path, images: bytes, labels: bytes | None):
    source = tmp_path / "source"
    source.mkdir()
    for prefix in ("train", "t10k"):
        (source / f"{prefix}-images-idx3-ubyte.gz").write_bytes(images)
        if labels is not None:
            (source / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(labels)
    fails(kdtool("pack", "--dataset", "mnist", "--data-dir", source, "-w", tmp_path / "w"), 1)
    assert held(tmp_path / "w") == {}


# Samples and rows -----------------------------------------------------------------------------------------------------

UNUSUAL = 1237  # rows, so that this test's shared memory is told from that of others


class Samples:
    """Black images, but for one row, which is what `bad` makes it."""

    def __init__(self, bad: Callable[[], Any] = lambda: None, rows: int = UNUSUAL) -> None:
        self.bad, self.rows = bad, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        black = np.zeros((4, 4, 3), np.uint8)
        return (self.bad() or (black, 0)) if row == 700 else (black, 0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unreadable() -> None:
    raise FileNotFoundError(2, "No such file or directory", "cat.jpg")


BAD_SAMPLES: dict[str, tuple[Callable[[], Any], str]] = {
    "grayscale": (lambda: (np.zeros((4, 4), np.uint8), 0), "row 700: expected an image of shape .* found uint8"),
    "float": (lambda: (np.zeros((4, 4, 3)), 0), "row 700: expected an image of shape .* found float64"),
    "no array": (lambda: ([[0]], 0), "row 700: expected an image of shape .* found list"),
    "no pixels": (lambda: (np.zeros((0, 4, 3), np.uint8), 0), "row 700: expected an image of 1 to 65,535 pixels"),
    "too large": (lambda: (np.zeros((900, 900, 3), np.uint8), 0), "row 700: expected an image of at most"),
    "label too large": (lambda: (np.zeros((4, 4, 3), np.uint8), 10), "row 700: expected a label from 0 to 9, found 10"),
    "label negative": (lambda: (np.zeros((4, 4, 3), np.uint8), -1), "row 700: expected a label from 0 to 9, found -1"),
    "label no integer": (lambda: (np.zeros((4, 4, 3), np.uint8), 0.5), "row 700: expected a label .* found 0.5"),
    "unreadable": (unreadable, "row 700: could not be read .*cat.jpg"),
    "killed": (die, r"a writing process died \(exit code -9"),
}


def shared_memory() -> set[str]:
    """The segments FFCV would make for these rows."""
    from ffcv.writer import get_metadata_type

    from toolkit.formats.beton_writer import IntField, RGBImageField

    size = UNUSUAL * get_metadata_type([RGBImageField(), IntField(), IntField()]).itemsize
    return {path.name for path in Path("/dev/shm").iterdir() if path.is_file() and path.stat().st_size == size}


@pytest.mark.parametrize("kind", BAD_SAMPLES)
def test_a_bad_sample_stops_packing_and_leaves_nothing(tmp_path: Path, kind: str):
    from toolkit.formats.beton_writer import write_beton

    bad, message = BAD_SAMPLES[kind]
    before, started = shared_memory(), time.monotonic()
    with pytest.raises(FailureError, match=message):
        write_beton(Samples(bad), tmp_path / "x.beton", classes=10)
    assert time.monotonic() - started < 60
    assert list(tmp_path.iterdir()) == []
    assert shared_memory() == before


def test_good_samples_leave_no_shared_memory_either(tmp_path: Path):
    from toolkit.formats.beton_writer import write_beton

    before = shared_memory()
    write_beton(Samples(), tmp_path / "x.beton", classes=10)
    assert [path.name for path in tmp_path.iterdir()] == ["x.beton"]
    assert shared_memory() == before


def test_no_samples_are_no_data_set(tmp_path: Path):
    from toolkit.formats.beton_writer import write_beton

    with pytest.raises(FailureError, match="no samples"):
        write_beton(Samples(rows=0), tmp_path / "x.beton", classes=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([True, False, True]), "got bool"),
        (np.array([0.0, 1.0]), "got float64"),
        (np.array([], dtype=np.int64), "shape"),
        (np.zeros((2, 2), dtype=np.int64), "shape"),
        (np.array([2, 1]), "increasing order"),
        (np.array([1, 1]), "named once"),
        (np.array([0, 10]), "between 0 and 9"),
        (np.array([-1, 3]), "between 0 and 9"),
        ([], "rows must be"),
        (["a"], "rows must be"),
    ],
)
def test_rows_that_would_hang_ffcv_are_refused(rows: Any, message: str):
    from toolkit.formats.ffcv_loader import checked_rows

    with pytest.raises(UsageError, match=message):
        checked_rows(rows, 10)


# Full disks -----------------------------------------------------------------------------------------------------------

FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv[1:] = sys.argv[2:]
from toolkit.cli import main
main()
"""


def on_a_full_disk(size: int, *words: Any) -> Ended:
    """kdtool in a process of its own that may write no file of more than `size` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(size), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Ended(done.returncode, done.stdout, done.stderr)


NO_SPACE = ("could not be written", "File too large", "free some space")


def test_a_full_disk_keeps_the_packed_data_that_were_there(good: Path):
    with unchanged(good):
        fails(on_a_full_disk(4_000_000, "pack", *DIGITS, "--force", "-w", good), 1, "train.beton", *NO_SPACE)


def test_a_full_disk_leaves_no_bundle(good: Path):
    with unchanged(good):
        fails(on_a_full_disk(100_000, *BUILD, "-w", good), 1, "images.beton", *NO_SPACE)


def test_a_full_disk_leaves_no_student(good: Path):
    with unchanged(good):
        fails(on_a_full_disk(100_000, *DISTILL, "-w", good), 1, "checkpoint.pt", *NO_SPACE, progress=1)


@pytest.mark.parametrize("size", [10_000, 100_000])
def test_a_full_disk_leaves_no_cache_but_whole_parts(ours: Path, size: int):
    """At the larger size it is HDF5 that is refused, which would crash the process if it were told."""
    before = held(ours)
    fails(on_a_full_disk(size, *CACHE_MORE, "-w", ours), 1, "cache.h5", *NO_SPACE)
    assert {name: found for name, found in held(ours).items() if ".parts" not in name} == before
    assert made(*CACHE_MORE, "-w", ours)["views"] == 3
    assert not [name for name in held(ours) if ".parts" in name]


SWEEP = """
import json, resource, sys
from click.testing import CliRunner
from toolkit.cli import cli
for size in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    result = CliRunner().invoke(cli, sys.argv[2:])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps([result.exit_code, result.stdout, result.stderr]))
"""


def test_a_disk_that_fills_anywhere_in_an_hdf5_file_is_one_line(ours: Path):
    """One process after another size, so that a crash at any of them is the process's."""
    shutil.rmtree(ours / "subsets" / "fifth" / "targets")
    sizes = [0, 1, 100, 1000, 4096, 10_000, 20_000, 28_000, 30_000, 31_000]
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, json.dumps(sizes), *BUILD_AGAIN, "-w", str(ours)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for line in done.stdout.splitlines():
        fails(Ended(*[json.loads(line)[at] for at in (0, 1, 2)]), 1, "could not be written")
    assert len(done.stdout.splitlines()) == len(sizes)
    assert not (ours / "subsets" / "fifth" / "targets" / "digits-resnet8.h5").exists()
