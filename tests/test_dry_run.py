"""--dry-run on every long command: it tells what would be made, in the same words everywhere, and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import kdtool, made, refused
from toolkit.cli import cli

D = ("--dataset", "digits")
TOLD = {"dry_run", "path", "there", "teacher_passes", "student_passes", "bytes", "minutes", "basis", "makes"}
ROWS, TEST_ROWS = 1442, 355
LONG = {
    "pack": ("pack", *D, "--limit", "300"),
    "train-teacher": ("train-teacher", *D, "--arch", "resnet8", "--epochs", "2"),
    "cache-teacher": ("cache-teacher", *D, "--encoding", "float32", "--force"),
    "verify-cache": ("verify-cache", *D, "--samples", "50"),
    "score": ("score", *D, "--score", "centroid", "--score", "prototype"),
    "build-subset": ("build-subset", *D, "--frac", "0.2", "--method", "herding"),
    "distill": ("distill", "--subset", "third", "--epochs", "3"),
    "noise": ("noise", *D, "--rate", "0.1"),
    "import-logits": ("import-logits", *D, "--name", "outside", "--logits", "{folder}/outside.npy"),
    "evaluate": ("evaluate", "{work}/runs/learned"),
    "sweep": ("sweep", *D, "--frac", "0.2", "--epochs", "2", "--alpha", "0", "--alpha", "1"),
}


def everything(workspace: Path) -> dict[str, tuple[bytes, int]]:
    """Every file and folder, with its content and the time it was written, locks and hidden ones too."""
    return {
        str(path.relative_to(workspace)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [workspace, *workspace.rglob("*")]
    }


@pytest.fixture(scope="module")
def work(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = Path(shutil.copytree(digits, tmp_path_factory.mktemp("dry") / "work"))
    np.save(work.parent / "outside.npy", np.random.default_rng(0).normal(size=(ROWS, 10)).astype(np.float32))
    made("distill", "-w", work, "--subset", "third", "--width", 4, "--iterations", 1, "--name", "learned")
    return work


def words_of(name: str, work: Path) -> list[str]:
    return [word.format(work=work, folder=work.parent) for word in LONG[name]]


def told(workspace: Path, *words: Any) -> dict[str, Any]:
    """What a dry run tells, which leaves the workspace as it was, byte for byte."""
    before = everything(workspace)
    result = made(*words, "-w", workspace, "--dry-run")
    assert everything(workspace) == before
    return result


def test_these_are_the_commands_that_have_a_dry_run():
    assert {name for name, one in cli.commands.items() if any(p.name == "dry_run" for p in one.params)} == {*LONG}


@pytest.mark.parametrize("name", LONG)
def test_a_dry_run_tells_the_same_of_every_command_and_writes_nothing(name: str, work: Path):
    found = told(work, *words_of(name, work))
    assert found.keys() >= TOLD
    assert (found["dry_run"], found["there"]) == (True, False)
    assert str(work) in found["path"]
    assert found["makes"] == (name not in ("evaluate", "verify-cache"))
    assert found["minutes"] >= 0 and found["bytes"] >= 0 and found["basis"]
    before = everything(work)
    shown = kdtool(*words_of(name, work), "-w", work, "--dry-run").stdout
    assert everything(work) == before
    doing = "would be made; nothing was written" if found["makes"] else "would be looked at, and nothing written"
    for word in (doing, "  passes  ", "  disk    ", "  time    about "):
        assert word in shown


@pytest.mark.parametrize("name", ["pack", "train-teacher", "cache-teacher", "build-subset", "sweep"])
def test_a_dry_run_in_no_workspace_makes_none(name: str, tmp_path: Path):
    workspace = tmp_path / "none"
    words = [word for word in LONG[name] if word != "herding" and word != "--method"]
    found = made(*words, "-w", workspace, "--dry-run", *(() if "--limit" in words else ("--limit", "200")))
    assert list(tmp_path.iterdir()) == []
    assert str(workspace) in found["path"] and "kdtool-dry-run" not in json.dumps(found)


def test_noise_and_logits_from_outside_take_the_bytes_that_were_told(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    shutil.copy(work.parent / "outside.npy", tmp_path)
    for name, made_files in (("noise", "data/*noise*/*.beton"), ("import-logits", "teachers/outside/cache.h5")):
        foretold = told(ours, *words_of(name, ours))
        made(*words_of(name, ours), "-w", ours)
        assert foretold["bytes"] == pytest.approx(sum(path.stat().st_size for path in ours.glob(made_files)), rel=0.2)
        assert told(ours, *words_of(name, ours))["there"]


def test_logits_of_a_subset_are_foreseen_where_the_data_is_not(work: Path, tmp_path: Path):
    shutil.copytree(work / "subsets" / "third", tmp_path / "third")
    np.save(tmp_path / "logits.npy", np.zeros((round(0.3 * ROWS), 10), np.float32))
    words = ("import-logits", "--subset", tmp_path / "third", "--name", "outside", "--logits", tmp_path / "logits.npy")
    found = made(*words, "-w", tmp_path / "none", "--dry-run")
    assert not found["there"] and not (tmp_path / "none").exists() and "packs" not in found
    made(*words, "-w", tmp_path / "none")
    assert made(*words, "-w", tmp_path / "none", "--dry-run")["there"]


def test_what_is_packed_first_is_told_too(tmp_path: Path):
    words = ("cache-teacher", *D, "-w", tmp_path / "w", "--dry-run")
    packs = made(*words)["packs"]
    assert f"before  {tmp_path / 'w' / 'data' / 'digits'}: the packed data" in kdtool(*words).stdout
    made("pack", *D, "-w", tmp_path / "w")
    folder = tmp_path / "w" / "data" / "digits"
    assert packs["path"] == str(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert 0.5 * size < packs["bytes"] < 2 * size  # each worker begins a page of 2 MiB, if it comes in time
    assert "packs" not in made(*words)


def test_an_image_folder_is_not_packed_for_a_dry_run(tmp_path: Path):
    result = kdtool(
        "cache-teacher", "--dataset", "imagefolder-pets", "--data-dir", tmp_path, "-w", tmp_path / "w", "--dry-run"
    )
    refused(result, 1, "imagefolder-pets: not packed yet", "kdtool pack --dataset imagefolder-pets", "--dry-run")
    assert "--force" not in result.stderr
    folder = tmp_path / "w" / "data" / "imagefolder-pets"
    folder.mkdir(parents=True)
    (folder / "data.json").write_text("{}")
    noisy = ("cache-teacher", "--dataset", "imagefolder-pets-noise-0.1-s0", "--dry-run", "-w", tmp_path / "w")
    refused(kdtool(*noisy), 1, "noise-0.1-s0: not packed yet", "kdtool noise --dataset imagefolder-pets --rate 0.1")


def test_evaluating_is_told_by_its_images(work: Path):
    found = told(work, *words_of("evaluate", work), "--split", "train")
    assert (found["student_passes"], found["bytes"]) == (ROWS, 0) and "top1" not in found


def test_passes_are_those_that_the_command_then_counts(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    student = told(ours, "distill", "--subset", "hard", "--epochs", "2", "--name", "x")
    assert (student["student_passes"], student["teacher_passes"]) == (2 * 144, 0)
    made("distill", "-w", ours, "--subset", "hard", "--epochs", "2", "--name", "x")
    record = json.loads((ours / "runs" / "x" / "run.json").read_text())
    assert record["student_images"] == student["student_passes"]
    there = told(ours, "distill", "--subset", "hard", "--epochs", "2", "--name", "x")
    assert there["there"] and there["student_passes"] == there["bytes"] == 0
    weights = (ours / "runs" / "x" / "student.pt").stat().st_size
    assert 0.5 * weights < student["bytes"] <= weights


def test_a_teachers_dynamics_are_counted(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    words = (
        "train-teacher",
        *D,
        "--arch",
        "resnet8",
        "--epochs",
        "2",
        "--snapshots",
        "1",
        "--seeds",
        "2",
        "--name",
        "t",
    )
    found = told(ours, *words)
    assert found["teacher_passes"] == 2 * (2 * ROWS + ROWS)
    made(*words, "-w", ours)
    size = sum((ours / "teachers" / "t" / name).stat().st_size for name in ("teacher.pt", "dynamics.h5"))
    assert 0.7 * size < found["bytes"] < 1.1 * size
    assert told(ours, *words)["there"]
    refused(kdtool(*words, "--width", "8", "-w", ours, "--dry-run"), 1, "other settings", "width 16 → 8")


def test_the_bytes_of_data_and_subsets_are_those_on_disk(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    packed = told(ours, "pack", *D, "--limit", "400")
    made("pack", *D, "--limit", "400", "-w", ours)
    size = sum(path.stat().st_size for path in (ours / "data" / "digits-limit-400").glob("*.beton"))
    assert packed["bytes"] == pytest.approx(size, rel=0.05)
    assert (packed["train_rows"], packed["test_rows"]) == (400, TEST_ROWS)
    words = ("build-subset", *D, "--frac", "0.5", "--name", "half")
    subset = told(ours, *words)
    made(*words, "-w", ours)
    size = sum(path.stat().st_size for path in (ours / "subsets" / "half").rglob("*.[bh]*"))
    assert subset["bytes"] == pytest.approx(size, rel=0.05)
    assert told(ours, *words)["there"]


def test_a_subset_that_lacks_targets_is_not_there(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    shutil.rmtree(ours / "subsets" / "third" / "targets")
    found = told(ours, "build-subset", *D, "--frac", "0.3", "--name", "third")
    assert (found["there"], found["lacks"]) == (False, ["digits-resnet8"])


def test_scores_that_are_there_are_not_computed_again(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    words = ("score", *D, "--score", "centroid")
    assert told(ours, *words)["scores"] == ["centroid"]
    made(*words, "-w", ours)
    assert told(ours, *words)["there"]
    found = told(ours, *words, "--score", "prototype")
    assert (found["scores"], found["bytes"]) == (["prototype"], 4 * ROWS)
    np.save(tmp_path / "mine.npy", np.arange(ROWS, dtype=np.float32))
    imported = told(ours, "score", *D, "--import", tmp_path / "mine.npy", "--name", "mine")
    assert imported["scores"] == ["mine"] and not (ours / "scores" / "digits" / "imported.h5").exists()


def test_a_sweep_adds_up_its_students_and_uses_the_rate_of_earlier_runs(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    words = ("sweep", *D, "--frac", "0.1", "--epochs", "2", "--alpha", "0", "--alpha", "1", "--jobs", "1")
    found = told(ours, *words)
    assert (found["student_passes"], found["teacher_passes"]) == (2 * 2 * 144, 0)
    assert "tried here" in found["basis"]
    made(*words, "-w", ours)
    assert told(ours, *words)["there"]
    more = told(ours, *words, "--seed", "0..1")
    assert (more["student_passes"], more["done"]) == (2 * 2 * 144, 2)
    assert "by 2 earlier runs here" in more["basis"]


def test_a_dry_run_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for command in ("pack", "cache-teacher", "train-teacher"):
        asked = kdtool(command, "--dataset", "cifar10", "--dry-run", "-w", tmp_path / "w")
        refused(asked, 1, "data set cifar10", "a dry run downloads nothing", "kdtool pack --dataset cifar10")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("distill", "--subset", "thrid"), 1, "Did you mean third?"),
        (("distill", "--subset", "third", "--alpha", "2"), 2, "--alpha"),
        (("train-teacher", *D, "--arch", "resnet9"), 2, "did you mean resnet8?"),
        (("build-subset", *D, "--frac", "0"), 2, "--frac"),
        (("score", *D, "--score", "el3n"), 2, "did you mean el2n?"),
        (("pack", "--dataset", "imagefolder"), 1, "kdtool pack --dataset imagefolder --data-dir D"),
        (("verify-cache", *D, "--samples", "0"), 2, "--samples"),
    ],
    ids=str,
)
def test_a_dry_run_is_refused_where_the_command_would_be(words: tuple[str, ...], code: int, said: str, work: Path):
    before = everything(work)
    refused(kdtool(*words, "-w", work, "--dry-run"), code, said)
    assert everything(work) == before


def test_an_image_folder_is_foreseen_by_some_of_its_images(tmp_path: Path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    words = ("pack", "--dataset", "imagefolder-pets", "--data-dir", tmp_path / "pictures", "-w", tmp_path / "w")
    found = made(*words, "--dry-run")
    assert (found["train_rows"], found["test_rows"], found["there"]) == (12, 12, False)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
