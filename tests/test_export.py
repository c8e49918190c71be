"""kdtool export: weights that need nothing of kdtool; and toolkit.load_network, a checkpoint for code of one's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import toolkit.models.zoo
from tests.conftest import kdtool, made, refused
from toolkit.formats.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from toolkit.models.zoo import build_model

PACKAGED = Path(toolkit.__file__).parent / "pretrained" / "digits-resnet8.pt"
ALONE = """
import sys, torch
weights = torch.load(sys.argv[1], weights_only=True)
assert not [name for name in sys.modules if name.startswith("toolkit")]
print(type(weights).__name__, len(weights), {type(value).__name__ for value in weights.values()})
"""


@pytest.fixture(scope="module")
def work(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits workspace with a student in it, called one."""
    work = Path(shutil.copytree(digits, tmp_path_factory.mktemp("export") / "work"))
    made("distill", "-w", work, "--subset", "third", "--epochs", "1", "--width", "8", "--name", "one")
    return work


def checkpoint_of(path: Path, arch: str, classes: int, model: torch.nn.Module) -> Path:
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]
    weights = model.state_dict()
    save_checkpoint(path, Checkpoint(arch, 16, classes, "digits", "0" * 16, mean, std, 0, 50.0, {}, {}, weights))
    return path


def test_an_exported_file_needs_nothing_of_kdtool(work: Path, tmp_path: Path):
    out = tmp_path / "weights.pt"
    made("export", "-w", work, "one", "--out", out)
    command = [sys.executable, "-c", ALONE, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    expected = load_checkpoint(work / "runs" / "one" / "student.pt").weights
    assert done.stdout.split("\n")[0] == f"dict {len(expected)} {{'Tensor'}}", done.stderr
    found = torch.load(out, weights_only=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("what", ["one", "digits-resnet8", "runs/one", "runs/one/student.pt"])
def test_what_export_prints_loads_the_network(work: Path, tmp_path: Path, what: str):
    named = work / what if "/" in what else what
    shown = kdtool("export", "-w", work, named, "--out", tmp_path / "weights.pt")
    assert shown.exit_code == 0
    names = {"torch": torch, "toolkit": toolkit, "torchvision": torchvision}
    for line in shown.stdout.splitlines()[1:3]:
        exec(line.strip(), names)
    original = toolkit.load_network(PACKAGED if what == "digits-resnet8" else work / "runs" / "one")
    x_bchw = torch.rand(4, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(names["network"].eval()(x_bchw), original(x_bchw))


def test_torchvisions_networks_are_told_by_torchvision(work: Path, tmp_path: Path):
    arch = "torchvision:squeezenet1_1"
    file = checkpoint_of(tmp_path / "student.pt", arch, 3, build_model(arch, 3))
    result = made("export", "-w", work, file, "--out", tmp_path / "weights.pt")
    assert result["network"] == 'torchvision.models.get_model("squeezenet1_1", num_classes=3)'
    network = eval(result["network"])
    network.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))


def test_a_network_loaded_has_the_accuracy_of_its_run(work: Path):
    run = made("evaluate", "-w", work, work / "runs" / "one", "--precision", "float32")
    network = toolkit.load_network(work / "runs" / "one")
    assert not network.training and network.input_mean.shape == network.input_std.shape == (3,)
    right = seen = 0
    with torch.inference_mode():
        for images_bchw, labels_b in toolkit.test_batches(work / "subsets" / "third"):
            right, seen = right + int((network(images_bchw).argmax(1) == labels_b).sum()), seen + len(labels_b)
    assert 100 * right / seen == pytest.approx(run["top1"], abs=0.3)  # one of 355: batches differ


def test_weights_are_written_once_and_other_files_are_kept(work: Path, tmp_path: Path):
    out, words = tmp_path / "weights.pt", ["export", "-w", work, "one", "--out", tmp_path / "weights.pt"]
    assert not made(*words)["unchanged"]
    state = out.stat()
    assert made(*words)["unchanged"] and out.stat().st_mtime_ns == state.st_mtime_ns
    refused(kdtool("export", "-w", work, "digits-resnet8", "--out", out), 2, str(out), "--force")
    out.write_text("mine")
    refused(kdtool(*words), 2, str(out), "--force")
    assert out.read_text() == "mine"
    assert not made(*words, "--force")["unchanged"]


def test_a_checkpoint_is_never_written_over_by_its_own_weights(work: Path):
    file = work / "runs" / "one" / "student.pt"
    before = file.read_bytes()
    refused(kdtool("export", "-w", work, "one", "--out", file, "--force"), 2, "the checkpoint itself")
    refused(kdtool("export", "-w", work, "one", "--out", file.parent, "--force"), 2, "a folder")
    assert file.read_bytes() == before


def test_what_is_no_network_is_refused(work: Path, tmp_path: Path):
    out = tmp_path / "weights.pt"
    plain, text = tmp_path / "plain.pt", tmp_path / "text.pt"
    torch.save(build_model("resnet8", 10).state_dict(), plain)
    text.write_text("no weights")
    (work / "runs" / "killed").mkdir(exist_ok=True)
    (work / "runs" / "killed" / "checkpoint.pt").touch()
    for what, told in [
        ("two", "Did you mean one"),
        ("killed", "not finished"),
        (plain, "a plain state_dict already"),
        (text, "not a readable checkpoint"),
        (work / "subsets" / "third", "no checkpoint there"),
    ]:
        refused(kdtool("export", "-w", work, what, "--out", out), 1, str(what), told)
    assert not out.exists()


def test_a_name_of_both_a_run_and_a_teacher_must_be_told_apart(work: Path, tmp_path: Path):
    folder = work / "teachers" / "one"
    folder.mkdir()
    shutil.copyfile(PACKAGED, folder / "teacher.pt")
    refused(kdtool("export", "-w", work, "one", "--out", tmp_path / "weights.pt"), 2, "both a run and a teacher")
    shutil.rmtree(folder)


def test_code_of_ones_own_runs_only_where_it_is_named_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = "from torch import nn\nRAN = []\ndef net(classes):\n    RAN.append(1)\n    return nn.Linear(4, classes)\n"
    (tmp_path / "exported_network.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = checkpoint_of(tmp_path / "student.pt", "exported_network:net", 3, torch.nn.Linear(4, 3))
    with pytest.raises(ValueError, match="exported_network:net"):
        toolkit.load_network(file)
    made("export", file, "--out", tmp_path / "weights.pt")
    assert "exported_network" not in sys.modules
    network = toolkit.load_network(file, arch="exported_network:net")
    assert network(torch.zeros(2, 4)).shape == (2, 3)
    with pytest.raises(ValueError, match="not resnet8"):
        toolkit.load_network(file, arch="resnet8")


def test_a_folder_that_only_a_lock_made_is_no_run(work: Path, tmp_path: Path):
    (work / "runs" / "begun").mkdir()
    refused(kdtool("export", "-w", work, "begun", "--out", tmp_path / "w.pt"), 1, "begun: neither a file nor a run")
