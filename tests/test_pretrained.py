"""Teachers by name: torchvision's; of timm's see test_timm.py. No test reaches a network: torch.hub's one door to
it is shut, or a test answers in its place. Weights are real state_dicts, of random numbers, in files named as
torchvision names them: each network's record gets an address with the hash of its file."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import ssl
from collections import OrderedDict
from dataclasses import replace
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import models

import toolkit
from tests.conftest import kdtool, made, refused
from tests.test_laws import everything_in, same
from tests.test_processes import said, torchrun
from toolkit.core.errors import FailureError
from toolkit.formats.cache import open_cache
from toolkit.formats.dataset import open_packed
from toolkit.models.class_maps import ClassMap
from toolkit.models.pretrained import build_network, pretrained_teacher, without_dots
from toolkit.models.weight_files import weights_file
from toolkit.models.zoo import build_model
from toolkit.pipeline.known_teachers import name_of
from toolkit.pipeline.library_teachers import LibraryAsked, _tell

RESNET, SQUEEZENET = "torchvision:resnet18@IMAGENET1K_V1", "torchvision:squeezenet1_1@IMAGENET1K_V1"
FISH = ("Great_White_Shark", "tench", "goldfish")  # ImageNet's classes 2, 0 and 1
CATEGORIES = models.ResNet18_Weights.DEFAULT.meta["categories"]
DATA = ("--dataset", "tests.test_pretrained:fish")
FLOAT32 = ("--precision", "float32", "--encoding", "float32")


class Pictures(torch.utils.data.Dataset):
    """Real digits as pictures of 32 × 32 pixels."""

    family, size = "pad-crop-flip", 32

    def __init__(self, classes: tuple[str, ...], rows: int) -> None:
        self.classes, self.rows, self.images = classes, rows, load_digits().images

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        pixels = np.rint(self.images[row % len(self.images)] * (255 / 16)).astype(np.uint8)
        return Image.fromarray(pixels).resize((self.size, self.size)).convert("RGB"), row % len(self.classes)


def fish(split: str) -> Pictures:
    return Pictures(FISH, 48 if split == "train" else 12)


def tools(split: str) -> Pictures:
    return Pictures(("left spanner", "goldfish", "right spanner"), 12)


def all_classes(split: str) -> Pictures:
    return Pictures(tuple(CATEGORIES), 1000)


def no_network(*args: Any, **more: Any) -> Any:
    raise URLError("no network in tests")


class Answer(io.BytesIO):
    """What a server sends."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.headers = Message()
        self.headers["Content-Length"] = str(len(content))

    def info(self) -> Message:
        return self.headers


def keep_weights(patch: pytest.MonkeyPatch, folder: Path, reference: str, state: dict[str, torch.Tensor]) -> Path:
    """The file of a network's weights, and torchvision's record of it, with its hash."""
    name, _, weights = reference.removeprefix("torchvision:").partition("@")
    kept = folder / "hub" / "checkpoints" / "weights.pth"
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, kept)
    file = kept.rename(kept.with_name(f"{name}-{hashlib.sha256(kept.read_bytes()).hexdigest()[:8]}.pth"))
    patch.setattr(models.get_model_weights(name)[weights].value, "url", f"https://weights.invalid/models/{file.name}")
    return file


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.urlopen", no_network)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    """TORCH_HOME with the weights of two networks; the files by reference."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("torch")
        patch.setenv("TORCH_HOME", str(home))
        yield {
            reference: keep_weights(patch, home, reference, build_model(reference.partition("@")[0], 1000).state_dict())
            for reference in (RESNET, SQUEEZENET)
        }


@pytest.fixture(scope="module")
def work(hub: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the fish, cached by both networks. Read it only."""
    workspace = tmp_path_factory.mktemp("fish")
    for reference in hub:
        made("cache-teacher", "-w", workspace, *DATA, "--teacher", reference, *FLOAT32)
    return workspace


def torchvisions(file: Path, name: str, **more: Any) -> torch.nn.Module:
    network = models.get_model(name, weights=None, **more)
    network.load_state_dict(torch.load(file, weights_only=True))
    return network.eval()


# What a cache holds


@pytest.mark.parametrize("reference", [RESNET, SQUEEZENET])
def test_a_teacher_by_name_is_torchvisions_network_on_the_same_pixels_normalised_as_its_weights_were(
    reference: str, hub: dict[str, Path], work: Path
):
    live = torchvisions(hub[reference], reference[len("torchvision:") :].partition("@")[0])
    preset = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    columns = [CATEGORIES.index(name) for name in ("great white shark", "tench", "goldfish")]
    with open_cache(work / "teachers" / name_of(reference) / "cache.h5") as cache:
        for slot in range(2):
            pixels = np.concatenate([images for images, _ in toolkit.slot_images(_folder(work), slot)])
            x_bchw = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
            mean, std = (torch.tensor(values)[:, None, None] for values in (preset.mean, preset.std))
            with torch.no_grad():
                expected = live((x_bchw - mean) / std)[:, columns].numpy()
            np.testing.assert_allclose(cache.read(f"slots/{slot}/logits"), expected, atol=1e-4)


def _folder(work: Path) -> Path:
    return work / "data" / DATA[1]


def test_the_record_says_which_file_of_which_weights_and_which_classes(hub: dict[str, Path], work: Path):
    about = made("inspect", work / "teachers" / "resnet18-IMAGENET1K_V1" / "cache.h5")
    assert about["teacher_arch"] == "torchvision:resnet18"
    assert about["classes"] == 3
    assert about["features_are"] is None
    assert about["teacher_weights"] == {
        "name": RESNET,
        "url": f"https://weights.invalid/models/{hub[RESNET].name}",
        "sha256": hashlib.sha256(hub[RESNET].read_bytes()).hexdigest(),
        "resize": 256,
        "crop": [224, 224],
        "top1_of_its_record": 69.758,
        "classes": "3 of its 1,000 classes, by name",
    }


def test_a_network_without_a_linear_head_gives_its_logits_for_features(work: Path):
    with open_cache(work / "teachers" / "squeezenet1_1-IMAGENET1K_V1" / "cache.h5") as cache:
        assert cache.record.features_are == "logits"
        assert cache.read("features").shape == (48, 3)
    with open_cache(work / "teachers" / "resnet18-IMAGENET1K_V1" / "cache.h5") as cache:
        assert cache.read("features").shape == (48, 512)


def test_what_is_special_is_said_in_a_line_each(work: Path):
    done = kdtool("cache-teacher", "-w", work, *DATA, "--teacher", RESNET, *FLOAT32)
    assert done.exit_code == 0
    assert "already there" in done.stdout
    assert f"{RESNET}: 3 of its 1,000 classes, by name" in done.stderr
    assert f"{RESNET}: made for 224 × 224 pixels" in done.stderr
    assert "the data's 32 × 32" in done.stderr


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("IMAGENET1K_V1", []),
        ("IMAGENET1K_V2", ["the middle 96.6% of the shorter side, and the test split is judged by 87.5%"]),
    ],
)
def test_a_record_of_another_share_of_the_image_is_told(work: Path, weights: str, told: list[str]):
    data = open_packed(_folder(work)).record
    data = replace(data, family="resized-crop-flip", height=224, width=224, padding=None, least_area=8)
    said: list[str] = []
    asked = LibraryAsked(on_note=said.append)
    _tell(pretrained_teacher(f"torchvision:resnet50@{weights}"), data, ClassMap(None, "all of them", True), asked)
    assert len(said) == len(told) and all(one in line for one, line in zip(told, said, strict=True))


def test_a_network_without_weights_in_its_name_is_the_librarys_usual_one(work: Path):
    told = made("verify-cache", "-w", work, *DATA, "--teacher", "torchvision:resnet18", "--samples", 8)
    assert told["teacher"] == "resnet18-IMAGENET1K_V1"


def test_what_its_artifacts_are_called_names_the_teacher_too(work: Path):
    told = made("verify-cache", "-w", work, *DATA, "--teacher", "resnet18-IMAGENET1K_V1", "--samples", 8)
    assert told["samples"] == 8


def test_subsets_students_and_sweeps_take_the_name_and_never_the_weights(
    work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where there are none
    common = ("-w", work, "--teacher", RESNET)
    subset = made("build-subset", *common, *DATA, "--frac", 0.5, "--method", "hardest", "--name", "half")
    assert "resnet18-IMAGENET1K_V1" in subset["targets"]
    run = made("distill", *common, "--subset", "half", "--arch", "resnet8", "--width", 4, "--iterations", 1)
    assert run["teacher_forward_passes"] == 0
    scored = made("score", *common, *DATA, "--score", "knn_distance")
    assert scored["teacher"] == "resnet18-IMAGENET1K_V1"
    plan = made("sweep", *common, *DATA, "--frac", 0.5, "--iterations", 1, "--dry-run")
    assert not any("cache" in line for line in plan["to_make"])


def test_a_sweep_makes_the_cache_of_a_teacher_by_name(hub: dict[str, Path], tmp_path: Path):
    asked = ("--teacher", RESNET, "--frac", 0.5, "--iterations", 1, "--width", 4, "--jobs", 1)
    result = made("sweep", "-w", tmp_path, *DATA, *asked)
    assert result["failed"] == 0
    assert (tmp_path / "teachers" / "resnet18-IMAGENET1K_V1" / "cache.h5").is_file()


@pytest.mark.long
def test_law_5_two_processes_cache_a_teacher_by_name_as_one_does(
    hub: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its weights lie where they were put. Of those that can't be had the first process tells, and all end."""
    home = tmp_path / "torch"
    monkeypatch.setenv("TORCH_HOME", str(home))
    (home / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(hub[RESNET], home / "hub" / "checkpoints")
    words = ("cache-teacher", *DATA, "--teacher", RESNET, *FLOAT32, "--threads", 1, "--views", 3)
    made(*words, "-w", tmp_path / "one")
    lost = "torchvision:resnet34@IMAGENET1K_V1"
    ended = torchrun(
        {
            "words": [*words, "-w", tmp_path / "two", "--teacher", lost],
            "addresses": {lost: "https://weights.invalid/models/resnet34-b627a593.pth"},
            "goes on": True,
        },
        {
            "words": [*words, "-w", tmp_path / "two", "--json"],
            "addresses": {RESNET: models.ResNet18_Weights.IMAGENET1K_V1.url},
        },
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = said(ended.stderr)
    assert "resnet34-b627a593.pth: not there" in line and "put it there" in line
    assert json.loads(ended.stdout.splitlines()[-1])["teacher_images"] == 3 * 48 + 12
    one, two = (tmp_path / name / "teachers" / name_of(RESNET) / "cache.h5" for name in ("one", "two"))
    assert same(everything_in(two), everything_in(one))


def test_evaluate_takes_a_name_and_agrees_with_the_cache(work: Path):
    result = made("evaluate", RESNET, "-w", work, *DATA, "--precision", "float32")
    with open_cache(work / "teachers" / "resnet18-IMAGENET1K_V1" / "cache.h5") as cache:
        assert result["top1"] == cache.record.teacher_top1
    assert result["path"] == RESNET
    refused(kdtool("evaluate", RESNET, "-w", work), 2, "does not say what it learned", "--dataset NAME")


def test_all_thousand_classes_stay_as_they_are(hub: dict[str, Path], tmp_path: Path):
    data = ("--dataset", "tests.test_pretrained:all_classes")
    made("cache-teacher", "-w", tmp_path, *data, "--teacher", RESNET, "--views", 1, "--no-verify")
    with open_cache(tmp_path / "teachers" / "resnet18-IMAGENET1K_V1" / "cache.h5") as cache:
        assert cache.record.teacher_weights["classes"] == "its 1,000 classes as they are"
        assert cache.record.encoding == "int8"


def test_a_class_map_makes_the_data_the_teachers(hub: dict[str, Path], tmp_path: Path):
    common = ("-w", tmp_path, "--dataset", "tests.test_pretrained:tools", "--teacher", RESNET)
    refused(kdtool("cache-teacher", *common), 2, "left spanner, right spanner", "--class-map FILE")
    file = tmp_path / "class map.yaml"
    refused(kdtool("cache-teacher", *common, "--class-map", file), 1, "not readable", str(file))
    file.write_text("left spanner: 7\ngoldfish: goldfish\nright spanner: 9\n")
    made("cache-teacher", *common, "--class-map", file)
    made("evaluate", RESNET, "-w", tmp_path, "--dataset", "tests.test_pretrained:tools", "--class-map", file)
    file.write_text("left spanner: 9\ngoldfish: goldfish\nright spanner: 7\n")
    again = kdtool("cache-teacher", *common, "--class-map", file)
    assert again.exit_code == 1
    assert "a cache of something else (teacher_fingerprint" in again.stderr
    assert f"--class-map '{file}'" in again.stderr


# Names


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("torchvision:resnt50", "no network 'resnt50': did you mean resnet50"),
        ("torchvision:", "no network ''"),
        ("torchvision:resnet50@V2", "resnet50 has the weights IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision:resnet50@imagenet1k_v2", "resnet50 has the weights IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision:resnet50@", "unknown weights ''"),
        ("torchvision:fasterrcnn_resnet50_fpn", "is torchvision's for detection"),
        ("torchvision:fcn_resnet50", "is torchvision's for segmentation"),
        ("torchvision:quantized_resnet50", "is torchvision's for quantization"),
        ("torchvision:r3d_18", "is torchvision's for video"),
        ("torchvision:vgg16@IMAGENET1K_FEATURES", "have no classes"),
    ],
)
def test_a_name_that_is_no_classifiers_is_refused_before_anything_is_packed(reference: str, told: str, tmp_path: Path):
    refused(kdtool("cache-teacher", "-w", tmp_path, *DATA, "--teacher", reference), 2, told)
    assert list(tmp_path.iterdir()) == []


def test_every_teacher_of_torchvision_has_a_name_of_its_own_that_leads_back_to_it():
    known = [
        f"torchvision:{name}@{weights.name}"
        for name in models.list_models(module=models)
        for weights in models.get_model_weights(name)
        if weights.meta["categories"]
    ]
    names = [pretrained_teacher(reference).name for reference in known]
    assert len(set(names)) == len(names) > 100
    assert names == [name_of(reference) for reference in known]
    assert [f"torchvision:{name.replace('-', '@')}" for name in names] == known


def test_another_teacher_of_the_same_name_is_never_taken_for_it(hub: dict[str, Path], tmp_path: Path):
    (tmp_path / "teachers" / "resnet18-IMAGENET1K_V1").mkdir(parents=True)
    (tmp_path / "teachers" / "resnet18-IMAGENET1K_V1" / "teacher.pt").touch()
    refused(kdtool("cache-teacher", "-w", tmp_path, *DATA, "--teacher", RESNET), 2, "is the name of another")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--teacher", RESNET, "--arch", "torchvision:resnet18"), "--arch belongs to weights in a file"),
        (("--teacher", RESNET, "--width", 8), "--width belongs to weights in a file"),
        (("--teacher", "digits-resnet8", "--class-map", "map.yaml"), "--class-map belongs to teachers of torchvision"),
    ],
)
def test_options_of_other_teachers_are_refused(words: tuple[Any, ...], told: str, work: Path):
    refused(kdtool("cache-teacher", "-w", work, "--dataset", "digits", *words), 2, told)


# Files


def test_missing_weights_are_one_line_that_says_what_to_put_where(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = ("-w", work, *DATA, "--teacher", "torchvision:resnet34")
    file, url = tmp_path / "hub/checkpoints/resnet34-b627a593.pth", models.ResNet34_Weights.DEFAULT.url
    done = kdtool("cache-teacher", *asked)
    refused(
        done, 1, f"{file}: not there", "no network in tests", f"Get {url}", "put it there", "the same command again"
    )
    monkeypatch.setattr("torch.hub.urlopen", lambda *args: pytest.fail("a dry run downloads nothing"))
    refused(kdtool("cache-teacher", *asked, "--dry-run"), 1, f"{file}: not there", "downloads nothing", url)
    assert list(file.parent.glob("*")) == []


def test_a_file_that_is_not_what_its_name_says_is_refused(
    hub: dict[str, Path], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / hub[RESNET].name
    file.parent.mkdir(parents=True)
    file.write_bytes(hub[RESNET].read_bytes()[:-1])
    refused(kdtool("cache-teacher", "-w", work, *DATA, "--teacher", RESNET), 1, f"{file}: damaged, or another file")


def test_normalisation_is_each_records_own():
    assert pretrained_teacher("torchvision:efficientnet_v2_l").mean == (0.5, 0.5, 0.5)
    assert pretrained_teacher(RESNET).mean == (0.485, 0.456, 0.406)


def test_weights_are_downloaded_whole_or_not_at_all(
    hub: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    content, folder = hub[RESNET].read_bytes(), tmp_path / "hub" / "checkpoints"

    class Cut(Answer):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError("the cable was pulled")

    monkeypatch.setattr("torch.hub.urlopen", lambda request: Cut(content))
    with pytest.raises(FailureError, match="the cable was pulled"):
        weights_file(pretrained_teacher(RESNET))
    monkeypatch.setattr("torch.hub.urlopen", lambda request: Answer(content[:-1]))
    with pytest.raises(FailureError, match="is not this file"):
        weights_file(pretrained_teacher(RESNET))
    assert list(folder.iterdir()) == []
    monkeypatch.setattr("torch.hub.urlopen", lambda request: Answer(content))
    assert weights_file(pretrained_teacher(RESNET)) == folder / hub[RESNET].name
    assert [path.read_bytes() for path in folder.iterdir()] == [content]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ssl.SSLError(1, "record layer failure"), "could not be downloaded .*record layer failure"),
        (ssl.SSLEOFError(8, "EOF occurred"), "could not be downloaded"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "could not be downloaded .*Network is unreachable"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "could not be downloaded"),
        (TimeoutError("timed out"), "could not be downloaded .*timed out"),
        (IncompleteRead(b"", 7), "could not be downloaded"),
        (OSError(errno.ENOSPC, "No space left on device"), "could not be written .*No space left.*Set TORCH_HOME"),
    ],
    ids=lambda value: repr(value)[:24] if isinstance(value, Exception) else "",
)
def test_what_breaks_in_the_middle_is_told_as_what_it_is(
    error: Exception, told: str, hub: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    class Broken(Answer):
        def read(self, size: int | None = -1) -> bytes:
            raise error

    monkeypatch.setattr("torch.hub.urlopen", lambda request: Broken(b"content"))
    with pytest.raises(FailureError, match=told):
        weights_file(pretrained_teacher(RESNET))
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(FailureError, match=r"could not be written .*Set TORCH_HOME"):
        weights_file(pretrained_teacher("torchvision:resnet34"))


@pytest.mark.parametrize("kind", ["others", "infinite", "objects"])
def test_weights_that_do_not_fit_are_refused(kind: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    reference = "torchvision:mobilenet_v3_small@IMAGENET1K_V1"
    state = build_network("torchvision:mobilenet_v3_small", 1000).state_dict()
    if kind == "infinite":
        state["classifier.3.bias"][3] = float("inf")
    broken = {"others": {"fc.weight": torch.zeros(2)}, "objects": {"weights": Pictures(FISH, 1)}}
    file = keep_weights(monkeypatch, tmp_path, reference, broken.get(kind, state))
    told = {"others": "do not fit", "infinite": "not all finite (classifier.3.bias)", "objects": "not a readable"}
    refused(kdtool("cache-teacher", "-w", work, *DATA, "--teacher", reference), 1, str(file), told[kind])


def test_images_too_small_for_the_network_are_one_line(
    hub: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reference = "torchvision:alexnet@IMAGENET1K_V1"
    monkeypatch.setattr(
        "toolkit.pipeline.library_teachers.build_network",  # 230 MB of weights would be all the same
        lambda arch, classes: build_network("torchvision:squeezenet1_1", classes),
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    keep_weights(monkeypatch, tmp_path, reference, torch.load(hub[SQUEEZENET], weights_only=True))
    done = kdtool("cache-teacher", "-w", tmp_path, "--dataset", "tests.test_pretrained:small", "--teacher", reference)
    refused(done, 2, f"--teacher {reference}: fails on two images of 8 × 8 pixels")


class SmallPictures(Pictures):
    size = 8


def small(split: str) -> Pictures:
    return SmallPictures(FISH, 12)


@pytest.mark.parametrize(("name", "side"), [("densenet121", 32), ("googlenet", 64), ("mnasnet0_5", 32)])
def test_networks_are_built_around_their_weights_as_torchvision_builds_them(
    name: str, side: int, monkeypatch: pytest.MonkeyPatch
):
    weights = models.get_model_weights(name).DEFAULT
    teacher = pretrained_teacher(f"torchvision:{name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = build_network(teacher.arch, teacher.classes, **teacher.settings)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)  # with its layers' versions, that some layers ask for
    if name == "densenet121":  # as the file that is downloaded has them
        state = OrderedDict(
            (key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key, value)
            for key, value in state.items()
            if not key.endswith("num_batches_tracked")
        )
    monkeypatch.setattr(
        type(weights), "get_state_dict", lambda self, **how: OrderedDict(state) if "dense" in name else state
    )
    theirs = models.get_model(name, weights=weights).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    ours.load_state_dict(without_dots(state))
    x_bchw = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x_bchw), theirs(x_bchw))


def test_a_vision_transformer_is_built_for_the_images_its_weights_were_made_for():
    teacher = pretrained_teacher("torchvision:vit_b_16@IMAGENET1K_SWAG_E2E_V1")
    assert teacher.settings == {"image_size": 384}
    assert teacher.crop == (384, 384)


# timm


def test_without_timm_its_teachers_are_one_line(work: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    asked = ("-w", work, *DATA)
    for words in (("cache-teacher", *asked, "--teacher"), ("evaluate", *asked)):
        refused(kdtool(*words, "timm:resnet18.a1_in1k"), 1, "pip install 'kdtool[timm]'")
    refused(kdtool("train-teacher", *asked, "--arch", "timm:resnet18"), 1, "pip install 'kdtool[timm]'")
