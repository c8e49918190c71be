"""Every command as a user runs it: what it makes, what it prints, and that a second run makes nothing anew."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import toolkit.pipeline.student
from tests.conftest import kdtool, made
from toolkit.cli import cli
from toolkit.distill.losses import distillation_loss
from toolkit.formats.beton import open_beton
from toolkit.formats.bundle import open_bundle
from toolkit.formats.cache import open_cache
from toolkit.formats.checkpoint import load_checkpoint
from toolkit.formats.dataset import open_packed
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model
from toolkit.scores import SCORES
from toolkit.training.evaluate import predict, top1

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture()
def copied(digits: Path, tmp_path: Path) -> Path:
    """The digits workspace, to write in."""
    return Path(shutil.copytree(digits, tmp_path / "work"))


def changed_files(folder: Path, command: list[object]) -> set[str]:
    """The files whose bytes or times differ after a command."""

    def state() -> dict[str, tuple[int, bytes]]:
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
        return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    made(*command)
    after = state()
    return {name for name in {**before, **after} if before.get(name) != after.get(name)}


def test_help_lists_the_pipeline_in_order():
    shown = kdtool("--help").output
    names = [
        "doctor",
        "pack",
        "noise",
        "train-teacher",
        "cache-teacher",
        "import-logits",
        "verify-cache",
        "views",
        "score",
        "build-subset",
        "show",
        "compare",
        "distill",
        "sweep",
        "runs",
        "report",
        "evaluate",
        "export",
        "ls",
        "inspect",
        "completion",
    ]
    places = [shown.index(f"\n  {name} ") for name in names]
    assert places == sorted(places)
    assert list(cli.commands) == names


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_command_has_help_with_an_example_that_parses(name: str):
    shown = kdtool(name, "--help").output
    assert f"kdtool {name}" in shown and "Example:" in shown
    example = shown.split("Example:")[1].strip().splitlines()[0].split()
    assert example[:2] == ["kdtool", name]
    cli.commands[name].make_context(name, example[2:])


def test_the_three_commands_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On Fashion-MNIST cut to 200 rows of each split; everything else is default."""
    if not FASHION.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    monkeypatch.chdir(tmp_path)
    limit = ["--limit", "200"]
    cache = made("cache-teacher", *limit)
    assert cache["path"] == "kdtool-work/teachers/fashion-mnist-resnet20/cache-limit-200.h5"
    assert (cache["rows"], cache["views"], cache["classes"], cache["bytes_per_view"]) == (200, 2, 10, 20)
    assert cache["teacher_top1"] > 85
    subset = made("build-subset", "--frac", "0.5", *limit)
    assert (subset["rows"], subset["fraction"], subset["method"]) == (100, 0.5, "random")
    run = made("distill", "--epochs", "2")
    assert run["subset"] == subset["name"]
    assert run["teacher_forward_passes"] == 0
    assert {"path", "top1", "agreement", "alpha", "temperature", "epochs", "images_per_s"} <= run.keys()
    record = json.loads((Path(run["path"]) / "run.json").read_text())
    assert record["teacher_images_behind_targets"] == 200 * 2 + 200
    assert {"settings", "versions", "command", "created"} <= record.keys()
    assert len((Path(run["path"]) / "metrics.jsonl").read_text().splitlines()) == 2


def test_pack_limits_are_class_balanced_and_have_a_folder_of_their_own(tmp_path: Path):
    result = made("pack", "-w", tmp_path, "--dataset", "digits", "--limit", "55")
    assert result["path"].endswith("data/digits-limit-55")
    for split in ("train", "test"):
        counts = np.bincount(open_beton(Path(result["path"]) / f"{split}.beton").labels_n)
        assert counts.sum() == 55 and set(counts) == {5, 6}


def test_every_command_is_idempotent(copied: Path):
    words: list[list[object]] = [
        ["pack", "-w", copied, "--dataset", "digits"],
        ["cache-teacher", "-w", copied, "--dataset", "digits", "--views", "3"],
        ["build-subset", "-w", copied, "--dataset", "digits", "--frac", "0.3", "--name", "third"],
        ["distill", "-w", copied, "--subset", "third", "--epochs", "1", "--name", "again"],
        ["train-teacher", "-w", copied, "--dataset", "digits", "--arch", "resnet8", "--epochs", "1"],
    ]
    for command in words:
        made(*command)
        assert changed_files(copied, command) == set(), command


def test_a_trained_teacher_caches_and_distills_under_its_own_name(copied: Path):
    common = ["-w", copied, "--dataset", "digits"]
    taught = made("train-teacher", *common, "--arch", "resnet8", "--width", "8", "--epochs", "2", "--name", "mine")
    checkpoint = load_checkpoint(Path(taught["path"]))
    assert (checkpoint.arch, checkpoint.width, checkpoint.dataset, checkpoint.seed) == ("resnet8", 8, "digits", 0)
    assert checkpoint.data_fingerprint == open_bundle(copied / "subsets" / "third").data.train_fingerprint
    cache = made("cache-teacher", *common, "--teacher", "mine", "--views", "2")
    assert cache["teacher_top1"] == pytest.approx(taught["top1"])
    subset = made("build-subset", *common, "--frac", "0.3", "--name", "third")
    assert subset["targets"] == ["digits-resnet8", "mine"]
    run = made("distill", "-w", copied, "--subset", "third", "--teacher", "mine", "--epochs", "1")
    assert (run["teacher"], run["views"]) == ("mine", 2)


def test_a_teacher_can_be_trained_on_a_subset_only(copied: Path):
    common = ["-w", copied, "--dataset", "digits", "--arch", "resnet8", "--epochs", "1"]
    assert made("train-teacher", *common, "--subset", "third")["rows"] == 433


def test_random_subsets_need_no_cache_and_get_targets_either_way(tmp_path: Path):
    common = ["-w", tmp_path, "--dataset", "digits"]
    words = ["build-subset", *common, "--frac", "0.2", "--name", "fifth"]
    assert made(*words)["targets"] == []
    assert "cache-teacher --subset fifth" in kdtool("distill", "-w", tmp_path).stderr
    made("cache-teacher", "-w", tmp_path, "--subset", "fifth", "--views", "epochs:3")
    alone = made("distill", "-w", tmp_path, "--epochs", "3")
    assert (alone["match"], alone["views"]) == ("exact", 3)
    made("cache-teacher", *common, "--views", "5")
    assert made(*words)["targets"] == ["digits-resnet8"]
    with open_cache(tmp_path / "subsets" / "fifth" / "targets" / "digits-resnet8.h5") as targets:
        assert targets.slots == 5


def test_targets_are_the_caches_rows(digits: Path):
    bundle = open_bundle(digits / "subsets" / "hard")
    cache = digits / "teachers" / "digits-resnet8" / "cache.h5"
    with open_cache(bundle.targets_path("digits-resnet8")) as ours, open_cache(cache) as theirs:
        for name in ("slots/0/logits", "slots/8/logits", "labels"):
            assert np.array_equal(ours.read(name), theirs.read(name)[bundle.rows_m])


def test_hardest_keeps_the_highest_scores_of_each_class(digits: Path):
    bundle = open_bundle(digits / "subsets" / "hard")
    with open_cache(digits / "teachers" / "digits-resnet8" / "cache.h5") as cache:
        score, labels = cache.score("el2n"), cache.read("labels")
    kept = np.isin(np.arange(len(score)), bundle.rows_m)
    for label in range(10):
        of_class = labels == label
        assert score[of_class & kept].min() >= score[of_class & ~kept].max()


def test_the_cache_is_raw_logits_of_the_teacher(digits: Path):
    path = digits / "teachers" / "digits-resnet8" / "cache.h5"
    with h5py.File(path) as file:
        assert file["slots/0/logits"].dtype == np.float16
        assert file["slots/0/logits"].chunks is None
        assert sorted(file["scores"]) == sorted(SCORES)
        assert all("definition" in score.attrs for score in file["scores"].values())
        logits = file["slots/0/logits"][:].astype(np.float32)
        assert not np.allclose(np.exp(logits).sum(axis=1), 1, atol=0.1)
        top1_on_train = 100 * float((logits.argmax(axis=1) == file["labels"][:]).mean())
    assert top1_on_train == pytest.approx(
        made(
            "evaluate", "-w", digits, "--split", "train", Path(toolkit.__file__).parent / "pretrained/digits-resnet8.pt"
        )["top1"]
    )


def test_alpha_zero_needs_no_targets_and_is_plain_training(copied: Path):
    shutil.rmtree(copied / "subsets" / "third" / "targets")
    words = ["distill", "-w", copied, "--subset", "third", "--alpha", "0", "--iterations", "9", "--batch-size", "100"]
    run = made(*words)
    assert (run["agreement"], run["teacher"], run["epochs"]) == (None, None, 2)


@pytest.mark.parametrize("match", ["exact", "nearest", "mean"])
def test_every_match_learns_from_the_teacher(copied: Path, match: str):
    words = ["distill", "-w", copied, "--subset", "third", "--views", "3", "--match", match, "--epochs", "12"]
    run = made(*words, "--batch-size", "32")
    assert (run["match"], run["views"]) == (match, 3)
    assert run["agreement"] > 60 and run["top1"] > 60  # ten classes: chance is 10


def test_by_default_only_cached_views_are_shown_however_long_the_run(copied: Path):
    run = made("distill", "-w", copied, "--subset", "third", "--views", "3", "--epochs", "4")
    assert (run["match"], run["views"]) == ("exact", 3)


def test_an_indexed_subset_trains_to_the_weights_of_a_copied_one(copied: Path):
    common = ["-w", copied, "--dataset", "digits", "--frac", "0.2"]
    weights = []
    for name, flags in (("whole", []), ("indexed", ["--index-only"])):
        made("build-subset", *common, "--name", name, *flags)
        run = made("distill", "-w", copied, "--subset", name, "--epochs", "2")
        weights.append(load_checkpoint(Path(run["path"]) / "student.pt").weights)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not (copied / "subsets" / "indexed" / "images.beton").exists()


def test_changed_targets_are_not_taken_for_the_same_run(copied: Path):
    """A cache made again otherwise reaches the bundle, and a finished run is not returned for it."""
    run = ["distill", "-w", copied, "--subset", "third", "--epochs", "1", "--views", "2", "--name", "one"]
    made(*run)
    again = ["cache-teacher", "-w", copied, "--dataset", "digits", "--views", "all", "--dtype", "float32", "--force"]
    made(*again)
    made("build-subset", "-w", copied, "--dataset", "digits", "--frac", "0.3", "--name", "third")
    with open_cache(copied / "subsets" / "third" / "targets" / "digits-resnet8.h5") as targets:
        assert targets.record.encoding == "float32"
    refused = kdtool(*run)
    assert refused.exit_code == 1 and "targets_fingerprint" in refused.stderr


def test_replacing_a_bundle_keeps_targets_that_cost_a_teacher(tmp_path: Path):
    words = ["build-subset", "-w", tmp_path, "--dataset", "digits", "--frac", "0.2", "--name", "fifth"]
    made(*words)
    made("cache-teacher", "-w", tmp_path, "--subset", "fifth", "--views", "2")
    assert made(*words, "--force")["targets"] == ["digits-resnet8"]


def test_inspect_sees_one_changed_pixel_of_a_subset(copied: Path):
    path = copied / "subsets" / "third" / "images.beton"
    content = bytearray(path.read_bytes())
    content[int(open_beton(path).records_n["image"]["ptr"][7])] ^= 1
    path.write_bytes(content)
    seen = kdtool("inspect", path.parent)
    assert seen.exit_code == 1 and "content" in seen.stderr


def test_teacher_forward_passes_are_counted_where_they_happen(digits: Path, tmp_path: Path, monkeypatch):
    """A loss that calls a live teacher is found out."""
    live = build_model("resnet8", 10).eval()

    def cheating_loss(*asked: Any):
        honest = distillation_loss(*asked)

        def loss(logits_bc, batch):
            with torch.no_grad():
                live(batch.images_bchw)
            return honest(logits_bc, batch)

        return loss

    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(toolkit.pipeline.student, "distillation_loss", cheating_loss)
    run = made("distill", "-w", tmp_path, "--subset", "third", "--epochs", "2", "--name", "cheat")
    assert run["teacher_forward_passes"] == 2 * 433


def test_agreement_is_with_the_teachers_own_predictions(copied: Path):
    run = made("distill", "-w", copied, "--subset", "third", "--epochs", "3")
    student = load_checkpoint(Path(run["path"]) / "student.pt")
    model = build_model(student.arch, student.classes, student.width)
    model.load_state_dict(student.weights)
    test = open_beton(copied / "data" / "digits" / "test.beton")
    cpu = torch.device("cpu")
    plan = open_packed(copied / "data" / "digits").record.plan
    predicted = predict(model, test, plan, student.mean, student.std, cpu, "bfloat16" if bfloat16() else "float32")
    with open_cache(copied / "teachers" / "digits-resnet8" / "cache.h5") as cache:
        teacher = cache.read("test/logits").argmax(axis=1)
    assert run["agreement"] == pytest.approx(top1(predicted, teacher), abs=0.6)  # two of 355: the layout differs
    assert run["top1"] == pytest.approx(top1(predicted, test.labels_n), abs=0.6)


def bfloat16() -> bool:
    from toolkit.core.device import resolve_precision

    return resolve_precision("auto", torch.device("cpu")) == "bfloat16"


def test_evaluate_repeats_a_runs_accuracy(copied: Path):
    run = made("distill", "-w", copied, "--subset", "third", "--epochs", "2")
    again = made("evaluate", "-w", copied, run["path"])
    assert again["top1"] == run["top1"]
    shares = [100 * accuracy for accuracy in again["per_class"].values()]
    assert len(shares) == 10


def test_inspect_describes_every_kind_of_artifact(copied: Path):
    run = made("distill", "-w", copied, "--subset", "third", "--epochs", "1")
    taught = made("train-teacher", "-w", copied, "--dataset", "digits", "--arch", "resnet8", "--epochs", "1")
    kinds = {
        "packed data": copied / "data" / "digits",
        "FFCV file": copied / "data" / "digits" / "test.beton",
        "subset": copied / "subsets" / "hard",
        "cache": copied / "teachers" / "digits-resnet8" / "cache.h5",
        "targets": copied / "subsets" / "hard" / "targets" / "digits-resnet8.h5",
        "run": Path(run["path"]),
        "teacher": Path(taught["path"]).parent,
        "checkpoint": Path(run["path"]) / "student.pt",
    }
    for kind, path in kinds.items():
        assert made("inspect", path)["kind"] == kind
        shown = kdtool("inspect", path)
        assert shown.exit_code == 0 and shown.stdout.endswith("whole and sound\n")


def test_distill_takes_the_newest_subset_and_says_which(copied: Path):
    path = copied / "subsets" / "hard" / "subset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": "2999-01-01T00:00:00Z"}))
    result = kdtool("distill", "-w", copied, "--epochs", "1")
    assert "subsets/hard" in result.stderr
    assert "subsets/hard" in kdtool("distill", "-w", copied, "--epochs", "1").stderr  # finished before


def test_of_subsets_of_one_second_the_newest_is_the_one_written_last(tmp_path: Path):
    for name in ("b", "a", "c"):
        path = tmp_path / "subsets" / name / "subset.json"
        path.parent.mkdir(parents=True)
        path.write_text('{"created": "2026-01-01T00:00:00Z"}')
        os.utime(path, ns=(0, {"b": 1, "a": 3, "c": 2}[name]))
    assert Workspace(tmp_path).newest_subset().name == "a"


def test_a_bundle_trains_on_another_machine(copied: Path, tmp_path: Path):
    """Only the bundle's folder and the test split travel."""
    away = tmp_path / "away"
    shutil.move(copied / "subsets" / "third", tmp_path / "carried")
    shutil.copytree(copied / "data", away / "data")
    (away / "data" / "digits" / "train.beton").unlink()
    shutil.rmtree(copied)
    assert made("distill", "-w", away, "--subset", tmp_path / "carried", "--epochs", "1")["teacher_forward_passes"] == 0


def test_plain_ffcv_opens_loader_json(digits: Path):
    from ffcv.loader import Loader, OrderOption

    folder = digits / "subsets" / "third"
    spec = json.loads((folder / "loader.json").read_text())
    loader = Loader(
        str(folder / spec["file"]),
        batch_size=100,
        num_workers=1,
        order=OrderOption[spec["order"]],
        seed=spec["seed"],
        indices=np.array(spec["indices"], dtype=np.uint64),
        drop_last=spec["drop_last"],
    )
    rows = [row for _, _, row_b1 in loader for row in row_b1[:, 0].tolist()]
    assert sorted(rows) == spec["rows"] and len(rows) == 433


def test_json_is_the_last_line_of_stdout(digits: Path):
    words = ["build-subset", "-w", digits, "--dataset", "digits", "--frac", "0.3", "--name", "third", "--json"]
    assert {"path", "rows", "fraction", "method", "bytes"} <= json.loads(kdtool(*words).stdout.splitlines()[-1]).keys()


def test_the_workspace_comes_from_the_environment(digits: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KDTOOL_WORKSPACE", str(digits))
    assert made("pack", "--dataset", "digits")["path"] == str(digits / "data" / "digits")
