"""doctor says what is wrong with a machine and what mends it; ls says what a workspace holds and what is stale."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import kdtool, made, refused
from toolkit.core.locks import only_writer
from toolkit.formats.workspace import Workspace
from toolkit.pipeline import doctor as doctors


@pytest.fixture(scope="module")
def work(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits workspace, to write in, with scores, a teacher of its own and a student."""
    work = Path(shutil.copytree(digits, tmp_path_factory.mktemp("looking") / "work"))
    of_digits = ("--dataset", "digits", "-w", work)
    made("train-teacher", *of_digits, "--arch", "resnet8", "--width", 4, "--epochs", 1, "--name", "own")
    made("cache-teacher", *of_digits, "--teacher", "own", "--views", 1)
    made("score", *of_digits, "--score", "prototype", "--teacher", "own")
    made("build-subset", *of_digits, "--frac", 0.1, "--method", "hardest", "--teacher", "own", "--name", "by-own")
    made("distill", "-w", work, "--subset", "by-own", "--teacher", "own", "--iterations", 1, "--name", "student")
    return work


@pytest.fixture
def copied(work: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(work, tmp_path / "work"))


def listed(work: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["kind"], one["name"]): one for one in made("ls", "-w", work)["artifacts"]}


def test_everything_kdtool_made_is_listed_with_what_it_came_from(work: Path):
    found = listed(work)
    assert {kind for kind, _ in found} == {"data", "teacher", "cache", "dynamics", "scores", "subset", "run"}
    assert found["cache", "own"]["of"] == ["digits", "own"]
    assert found["subset", "by-own"]["of"] == ["digits", "own"]
    assert found["run", "student"]["of"] == ["by-own", "own"]
    assert found["scores", "digits/own"]["about"] == "prototype"
    assert "1,442 + 355 images" in found["data", "digits"]["about"]
    assert not any(one["stale"] for one in found.values())


def test_sizes_are_those_on_disk(work: Path):
    result = made("ls", "-w", work)
    assert result["bytes"] == sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    for one in result["artifacts"]:
        path = Path(one["path"])
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        assert one["bytes"] == sum(file.stat().st_size for file in files)


def test_a_busy_machine_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for load, noted in ((0.9, False), (3.5, True)):
        monkeypatch.setattr(doctors, "others_load", lambda load=load: load)
        checks = {one["name"]: one for one in doctors.doctor(tmp_path)["checks"]}
        assert ("load" in checks) == noted
    assert "3.5 programs" in checks["load"]["found"] and "--threads 1" in checks["load"]["mend"]


def test_what_is_being_trained_is_not_called_stopped(copied: Path):
    begun = copied / "runs" / "begun"
    begun.mkdir()
    (begun / "metrics.jsonl").write_text("{}\n")
    stopped = "stopped after epoch 1"
    assert listed(copied)["run", "begun"]["about"].startswith(stopped)
    with only_writer(begun / "student.pt"):
        assert listed(copied)["run", "begun"]["about"] == "training, 1 epoch done"
        states = {row["name"]: row["state"] for row in made("runs", "-w", copied)["rows"]}
        assert states["begun"] == "running, epoch 2"
    assert listed(copied)["run", "begun"]["about"].startswith(stopped)


def test_an_artifact_is_inspected_by_its_name(work: Path, digits: Path):
    assert made("inspect", "by-own", "-w", work) == made("inspect", work / "subsets" / "by-own")
    assert made("inspect", "student", "-w", work)["path"] == str(work / "runs" / "student")
    refused(kdtool("inspect", "nothing", "-w", work), 1, "nothing: not found", "kdtool ls")


def rewritten(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_what_was_made_of_other_data_is_stale(copied: Path):
    rewritten(copied / "data" / "digits" / "data.json", train_fingerprint="0123456789abcdef")
    stale = {key for key, one in listed(copied).items() if one["stale"]}
    assert stale == {key for key in listed(copied) if key[0] != "data"}
    shown = kdtool("ls", "-w", copied).stdout
    assert "stale: subset by-own: made of other data than data/digits" in shown and f"{len(stale)} stale" in shown


def test_what_follows_another_training_of_its_teacher_is_stale(copied: Path):
    train = ("train-teacher", "--dataset", "digits", "-w", copied, "--arch", "resnet8", "--width", 4, "--name", "own")
    made(*train, "--epochs", 2, "--force")
    made("cache-teacher", "--dataset", "digits", "-w", copied, "--teacher", "own", "--views", 1, "--force")
    found = {key: one["stale"] for key, one in listed(copied).items() if one["stale"]}
    assert set(found) == {("run", "student"), ("scores", "digits/own")}
    assert all("of another training of own" in why for why in found.values())


def test_a_run_of_other_rows_than_its_subset_has_now_is_stale(copied: Path):
    made("build-subset", "--dataset", "digits", "-w", copied, "--frac", 0.2, "--name", "by-own", "--force")
    found = {key: one["stale"] for key, one in listed(copied).items() if one["stale"]}
    assert found == {("run", "student"): "of other rows than subsets/by-own has now"}


def test_what_a_killed_command_left_is_told_and_what_a_running_one_writes_is_not(copied: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (copied / "subsets" / f".half.{ended.pid}.tmp").mkdir()
    (copied / "subsets" / f".half.{ended.pid}.tmp" / f".inner.{ended.pid}.tmp").write_text("x")
    (copied / "runs" / ".being-made.1.tmp").mkdir()
    found = [one for kind, one in listed(copied).items() if kind[0] == "left over"]
    assert [one["name"] for one in found] == [f"subsets/.half.{ended.pid}.tmp"]
    assert "killed" in found[0]["stale"]


def test_broken_records_are_listed_with_the_reason(copied: Path):
    (copied / "subsets" / "by-own" / "subset.json").write_text("{")
    (copied / "teachers" / "own" / "cache.h5").write_bytes(b"no HDF5")
    (copied / "data" / "digits" / "data.json").write_text("[]")
    found = listed(copied)
    assert "not readable as JSON" in found["subset", "by-own"]["stale"]
    assert "cache.h5" in found["cache", "own"]["stale"]
    assert "expected a JSON object" in found["data", "digits"]["stale"]


def test_many_runs_are_one_line_unless_all_are_asked_for(copied: Path):
    for number in range(30):
        shutil.copytree(copied / "runs" / "student", copied / "runs" / f"copy-{number}")
    shown = kdtool("ls", "-w", copied).stdout
    assert "31 of them" in shown and "copy-7" not in shown
    assert "copy-7" in kdtool("ls", "--all", "-w", copied).stdout


def test_no_workspace_is_told_in_a_line(tmp_path: Path):
    refused(kdtool("ls", "-w", tmp_path / "none"), 1, "no such workspace yet", "kdtool cache-teacher")


def checks_of(workspace: Path, **more: Any) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in doctors.doctor(Workspace(workspace), **more)["checks"]}


def test_a_sound_machine_has_no_problems(work: Path):
    result = kdtool("doctor", "-w", work)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == "no problems"
    found = checks_of(work)
    assert found["torch and torchvision"]["state"] == found["FFCV"]["state"] == "ok"
    assert "packed in" in found["digits"]["found"]
    assert "computes in" in found["CPU"]["found"]


@pytest.mark.parametrize(
    ("module", "error", "name", "mend"),
    [
        (
            "torchvision",
            RuntimeError("operator torchvision::nms does not exist"),
            "torch and torchvision",
            "torch torchvision",
        ),
        ("torch", OSError("libcudart.so: cannot open"), "import torch", "torch torchvision"),
        ("ffcv", ImportError("libGL.so.1: cannot open shared object file"), "FFCV", "apt-get install libgl1"),
        ("ffcv", ImportError("libgthread-2.0.so.0: cannot open"), "FFCV", "--no-deps opencv-python-headless"),
        ("ffcv", ModuleNotFoundError("No module named 'ffcv'"), "FFCV", "make setup"),
        ("ffcv", ModuleNotFoundError("No module named 'distutils'"), "FFCV", "install setuptools"),
    ],
)
def test_a_library_that_does_not_import_is_a_problem_with_its_mend(
    module: str, error: Exception, name: str, mend: str, work: Path, monkeypatch: pytest.MonkeyPatch
):
    def imported(asked: str) -> object:
        if asked == ("toolkit.formats.ffcv_loader" if module == "ffcv" else module):
            raise error
        return importlib.import_module(asked)

    monkeypatch.setattr(doctors, "import_module", imported)
    result = kdtool("doctor", "-w", work)
    assert result.exit_code == 1 and result.stdout.splitlines()[-1] == "1 problem"
    found = checks_of(work)[name]
    assert found["state"] == "problem" and mend in found["mend"]


def test_stale_artifacts_are_problems(copied: Path):
    rewritten(copied / "subsets" / "by-own" / "subset.json", rows_fingerprint="0123456789abcdef")
    result = kdtool("doctor", "-w", copied)
    assert result.exit_code == 1 and "run student" in result.stdout and "kdtool ls" in result.stdout


def test_data_sets_are_looked_for_where_torchvision_and_the_user_keep_them(tmp_path: Path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    found = checks_of(tmp_path / "work", data_dir=tmp_path)
    assert found["cifar10"]["found"] == f"in {tmp_path}"
    assert found["mnist"]["found"] == f"in {tmp_path / 'MNIST' / 'raw'}"
    assert "svhn" in found["data sets"]["found"] and "kdtool pack" in found["data sets"]["mend"]
    assert found["workspace"]["state"] == "note"


def test_folders_of_images_and_data_of_ones_own_are_found_where_they_are_packed(work: Path, tmp_path: Path):
    folder = tmp_path / "data" / "imagefolder-pets"
    shutil.copytree(work / "data" / "digits", folder)
    assert checks_of(tmp_path)["imagefolder-pets"]["found"] == f"packed in {folder}"


def test_records_that_lack_what_is_told_are_listed_and_end_nothing(tmp_path: Path):
    for place in ("data/pets/data.json", "subsets/half/subset.json", "runs/one/run.json", "teachers/t/train.json"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("{}")
    (tmp_path / "teachers" / "t" / "teacher.pt").touch()
    assert {kind for kind, _ in listed(tmp_path)} == {"data", "subset", "run", "teacher"}


def test_what_could_not_be_looked_at_says_what_to_do_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(workspace: Workspace, data_dir: Path | None) -> Iterator[Any]:
        raise ImportError("no torch")

    monkeypatch.setattr(doctors, "_LOOKS", (broken,))
    found = checks_of(tmp_path)["broken"]
    assert found["state"] == "problem" and "no torch" in found["found"] and "Mend the libraries above" in found["mend"]


def test_gpus_are_told_with_the_precision_that_will_be_used(work: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    about = SimpleNamespace(name="a GPU", total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(doctors, "resolve_precision", lambda precision, device: f"that of {device}")
    found = checks_of(work)
    for index in range(2):
        assert found[f"GPU {index}"]["found"] == f"a GPU, 24.0 GiB: computes in that of cuda:{index}"


def test_little_room_is_noted(work: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctors, "free_memory_bytes", lambda: 1 << 29)
    monkeypatch.setattr(doctors.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    found = checks_of(work)
    assert found["memory"]["state"] == "note" and "512.0 MiB" in found["memory"]["found"]
    assert found["disk"]["state"] == "note" and "another --workspace" in found["disk"]["mend"]
