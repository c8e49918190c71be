"""Networks, teachers and data sets of one's own: found, asked, refused in one line, and used from end to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import own_things
from tests.conftest import kdtool, made, refused
from toolkit.core.errors import UsageError
from toolkit.core.imported import imported
from toolkit.data.own import own_source
from toolkit.formats.beton import open_beton
from toolkit.formats.cache import open_cache
from toolkit.formats.checkpoint import load_checkpoint, without_prefixes
from toolkit.formats.dataset import DataRecord, open_packed
from toolkit.models.zoo import FeatureReader, build_model, check_network, head_of, images_seen
from toolkit.pipeline.known_networks import network_of
from toolkit.pipeline.runtime import compute_on

OURS = "tests.own_things"
ROOT = Path(__file__).parent.parent


def own(name: str) -> str:
    return f"{OURS}:{name}"


@pytest.fixture(autouse=True)
def same_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports by name is not there for the next one."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder for modules that a test writes, whose names begin with `mine`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(count: int = 4, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# Finding code ---------------------------------------------------------------------------------------------------------


def test_a_module_in_the_current_folder_is_found_before_any_other(here: Path):
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text("def net(): return 'elsewhere'\n")
    (here / "mine.py").write_text("class Nets:\n    @staticmethod\n    def net(): return 'here'\n")
    sys.path.insert(0, str(elsewhere))
    assert imported("mine:Nets.net", "--arch")() == "here"
    assert sys.path[-1] == str(here)  # nothing in it takes the place of what kdtool imports later


def test_what_a_module_imports_later_is_found_too(here: Path):
    (here / "mine_layers.py").write_text("SIZE = 3\n")
    (here / "mine.py").write_text("def net():\n    import mine_layers\n    return mine_layers.SIZE\n")
    assert imported("mine:net", "--arch")() == 3


NOT_FOUND: dict[str, tuple[str, tuple[str, ...]]] = {
    "no module": ("mine_other:net", ("no module 'mine_other'", "PYTHONPATH", "{here}")),
    "no package": ("mine.deep:net", ("no module 'mine.deep'",)),
    "no attribute": ("mine:nett", ("mine.py", "no 'nett'", "did you mean net")),
    "no inner attribute": ("mine:net.deep", ("mine:net has no 'deep'",)),
    "nothing like it": ("mine:zzz", ("it defines net",)),
    "not callable": ("mine:NUMBER", ("expected a function or a class, found int",)),
    "an error in it": ("mine_broken:net", ("ZeroDivisionError: division by zero (mine_broken.py, line 2)",)),
    "bad syntax": ("mine_syntax:net", ("SyntaxError", "mine_syntax.py, line 1")),
    "its import is missing": ("mine_needs:net", ("No module named 'nowhere_at_all'", "mine_needs.py, line 1")),
    "it exits": ("mine_exits:net", ("SystemExit: 3",)),
    "a file": ("mine.py:net", ("a module's name and not a file's: mine:net",)),
    "a path": ("./mine:net", ("a module's name and not a file's: mine:net",)),
    "no function": ("mine:", ("must be module:function",)),
    "no name": ("mine:a b", ("must be module:function",)),
}


@pytest.mark.parametrize("kind", NOT_FOUND)
@pytest.mark.parametrize("what", ["--arch", "--dataset"])
def test_what_cannot_be_found_is_refused_in_one_line(here: Path, kind: str, what: str):
    (here / "mine.py").write_text("NUMBER = 3\ndef net(): ...\n")
    (here / "mine_broken.py").write_text("print('hello')\n1 / 0\n")
    (here / "mine_syntax.py").write_text("def net(:\n")
    (here / "mine_needs.py").write_text("import nowhere_at_all\n")
    (here / "mine_exits.py").write_text("raise SystemExit(3)\n")
    reference, words = NOT_FOUND[kind]
    with pytest.raises(UsageError) as refusal:
        imported(reference, what)
    line = str(refusal.value)
    assert line.startswith(what)
    assert "\n" not in line
    for word in words:
        assert word.format(here=here) in line


def test_torchvision_stays_torchvisions(here: Path):
    (here / "torchvision.py").write_text("def resnet18(classes): raise SystemExit(3)\n")
    assert type(build_model("torchvision:resnet18", 10)).__module__ == "torchvision.models.resnet"


# Networks -------------------------------------------------------------------------------------------------------------


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_same_seed_builds_the_same_network_and_leaves_the_generator_alone(here: Path):
    (here / "mine.py").write_text(
        "import torch\nNOISE = torch.rand(7)\ndef net(classes): return torch.nn.Conv2d(3, classes, 3)\n"
    )
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = build_model("mine:net", 10, seed=3)  # this one imports, the next one does not
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(first, build_model("mine:net", 10, seed=3))
    assert not same_weights(first, build_model("mine:net", 10, seed=4))


REFUSED: dict[str, tuple[str, ...]] = {
    "failing": ("RuntimeError: no network of 10 classes for anyone", "own_things.py, line"),
    "no_module": ("returns str, expected a torch.nn.Module",),
    "empty": ("has no parameters",),
    "lazy": ("lazy layers",),
    "Noting": ("no checkpoint keeps its _extra_state, which is no tensor",),
    "transposed": ("gives float32 (10, 2), expected float logits (2, 10)",),
    "with_auxiliary": ("gives tuple when training, expected logits alone",),
    "infinite": ("not finite",),
    "of_one_size": ("fails on two images of 8 × 8 pixels: RuntimeError",),
    "not_callable": ("expected a function or a class, found int",),
    "exiting": ("called with 10 classes it fails: SystemExit: 0",),
    "exiting_forward": ("fails on two images of 8 × 8 pixels: SystemExit: 0",),
    "frozen": ("all of its network is frozen",),
    "detached": ("its logits have no gradient",),
    "probabilities": ("gives probabilities when evaluating, expected logits",),
    "meta": ("on the meta device",),
    "scripted": ("returns TorchScript",),
    "never_initialised": ("NeverInitialised does not call super().__init__()",),
    "viewing": ("view size is not compatible", "channels last: use .flatten(1) or .reshape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_be_used_is_refused_in_one_line(name: str):
    with pytest.raises(UsageError) as refusal:
        check_network(build_model(own(name), 10), own(name), 10, 8, 8)
    assert str(refusal.value).startswith(f"--arch {own(name)}: ")
    assert "\n" not in str(refusal.value)
    for words in REFUSED[name]:
        assert words in str(refusal.value)


def test_a_frozen_teacher_and_a_module_that_turns_gradients_off_are_taken(here: Path):
    check_network(build_model(own("frozen"), 10), own("frozen"), 10, 8, 8, trains=False)
    (here / "mine.py").write_text(
        "import torch\nfrom tests.own_things import plain as net\ntorch.set_grad_enabled(False)\n"
    )
    check_network(build_model("mine:net", 10), "mine:net", 10, 8, 8)
    assert torch.is_grad_enabled()


def test_a_network_returned_twice_is_refused():
    build_model(own("shared"), 10)
    with pytest.raises(UsageError, match="the same network again"):
        build_model(own("shared"), 10)


def test_a_width_is_not_for_networks_of_ones_own():
    with pytest.raises(UsageError, match="--width belongs to"):
        build_model(own("plain"), 10, width=8)


def test_asking_a_network_leaves_no_trace():
    model = build_model(own("drawn"), 10, seed=1)
    model.bn.eval()  # of modes that differ, each is kept
    before, seen, random = {k: v.clone() for k, v in model.state_dict().items()}, images_seen(), torch.get_rng_state()
    check_network(model, own("drawn"), 10, 8, 8)
    FeatureReader(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (images_seen(), images_seen(model)) == (seen, 0)
    assert torch.equal(random, torch.get_rng_state())
    assert (model.training, model.bn.training) == (True, False)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.fc._forward_hooks


def test_one_of_kdtools_inside_is_counted_once():
    model, before = build_model(own("wrapped"), 10).eval(), images_seen()
    with torch.no_grad():
        model(images(5))
    assert (images_seen(model), images_seen() - before) == (5, 5)


WITH_HEAD = {"plain": "fc", "drawn": "fc", "linear_first": "fc", "parallel": "module.fc"}
WITHOUT = ("scaled", "in_place", "conv_head")


@pytest.mark.parametrize("name", [*WITH_HEAD, *WITHOUT])
@pytest.mark.parametrize("inferring", [False, True])
def test_the_reader_finds_the_layer_that_gives_the_logits_or_none(name: str, inferring: bool):
    model, x_bchw = build_model(own(name), 10).eval(), images()
    with torch.inference_mode(inferring), torch.set_grad_enabled(False):
        features_bd, logits_bc = FeatureReader(model)(x_bchw)
        expected_bc = model(x_bchw)
    head = head_of(model)
    if name in WITH_HEAD:
        assert head is model.get_submodule(WITH_HEAD[name])
        assert features_bd.shape == (4, 16)
        torch.testing.assert_close(logits_bc, expected_bc)
    else:
        assert head is None
        assert torch.equal(logits_bc, expected_bc)
        assert features_bd is logits_bc


@pytest.mark.parametrize("name", ["plain", "conv_head"])
def test_logits_are_float32_under_autocast(name: str):
    model = build_model(own(name), 10).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features_bd, logits_bc = FeatureReader(model)(images())
        said_bc = model(images())
    assert features_bd.dtype == logits_bc.dtype == torch.float32
    if name == "plain":
        assert torch.equal(logits_bc, F.linear(features_bd, model.fc.weight, model.fc.bias))
        assert not torch.equal(logits_bc, logits_bc.bfloat16().float())
    else:  # the network's own, at the precision it ran at
        assert torch.equal(logits_bc, said_bc.float())


def test_a_network_is_asked_once():
    model, x_bchw = build_model(own("plain"), 10).eval(), images()
    passes: list[int] = []
    model.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    with torch.inference_mode():
        for _ in range(3):
            FeatureReader(model)(x_bchw)
    assert passes == [2, 4, 4, 4]


# Data sets ------------------------------------------------------------------------------------------------------------


class Rows:
    """A Dataset of these samples."""

    def __init__(self, samples: list[Any], **attributes: Any) -> None:
        self.samples = samples
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]


class Drawn(Rows):
    """Each time brighter, as random transforms make it."""

    def __getitem__(self, row: int) -> Any:
        self.samples = [(image + 1, label) for image, label in self.samples]
        return self.samples[row]


def grey(value: int = 0, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width), value, dtype=np.uint8)


def two(**attributes: Any) -> Rows:
    return Rows([(grey(10), 0), (grey(200), 1)], **attributes)


def source_of(monkeypatch: pytest.MonkeyPatch, train: Any, test: Any = None) -> Any:
    """The source of these two splits."""
    splits = {"train": train, "test": train if test is None else test}
    monkeypatch.setattr(own_things, "made_now", lambda split: splits[split], raising=False)
    return own_source(own("made_now"))


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "grey array": lambda pixels: pixels[..., 0],
    "grey array of one channel": lambda pixels: pixels[..., :1],
    "array": lambda pixels: pixels,
    "tensor": lambda pixels: torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
    "grey tensor": lambda pixels: torch.from_numpy(pixels[None, ..., 0].copy()),
    "flat tensor": lambda pixels: torch.from_numpy(pixels[..., 0].copy()),
    "PIL": lambda pixels: _pil(pixels),
    "PIL with alpha": lambda pixels: _pil(pixels).convert("RGBA"),
    "PIL with a palette": lambda pixels: _pil(pixels[..., 0]).convert("P"),
}


def _pil(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_become_the_same_pixels(monkeypatch: pytest.MonkeyPatch, kind: str):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    if kind not in ("array", "tensor", "PIL", "PIL with alpha"):
        pixels[:] = pixels[..., :1]
    source = source_of(monkeypatch, Rows([(KINDS[kind](image), row) for row, image in enumerate(pixels)]))
    images_nhwc, labels_n = source.load("train", None)
    assert np.array_equal(images_nhwc, pixels)
    assert labels_n.tolist() == [0, 1]


@pytest.mark.parametrize(
    "one", [lambda value: np.array([value]), int, np.int64, np.uint8, lambda value: torch.tensor(value), np.array]
)
def test_labels_of_every_kind_of_whole_number_are_read(monkeypatch: pytest.MonkeyPatch, one: Any):
    source = source_of(monkeypatch, Rows([(grey(), one(1)), (grey(), one(0))]))
    assert source.load("test", None)[1].tolist() == [1, 0]


def test_mean_and_std_are_the_training_splits_exactly(monkeypatch: pytest.MonkeyPatch):
    pixels = np.random.default_rng(1).integers(0, 256, (300, 4, 5, 3), dtype=np.uint8)
    pixels[..., 2] = 7
    samples = [(image, row % 3) for row, image in enumerate(pixels)]
    source = source_of(monkeypatch, Rows(samples), two())
    channels = pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(source.mean, channels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(source.std[:2], channels.std(axis=0)[:2], rtol=1e-12)
    assert source.std[2] == 1  # of a channel that never varies
    sizes = Rows([(image[: 2 + row % 3], label) for row, (image, label) in enumerate(samples)])
    sizes.family, sizes.size = "resized-crop", 4
    of_all = np.concatenate([image.reshape(-1, 3) for image, _ in sizes.samples]) / 255
    np.testing.assert_allclose(source_of(monkeypatch, sizes).mean, of_all.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("height", "width", "padding"), [(8, 8, 1), (2, 9, 1), (28, 30, 4), (32, 32, 4), (900, 600, 63)]
)
def test_padding_is_an_eighth_of_the_shorter_side(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, padding: int
):
    assert source_of(monkeypatch, Rows([(grey(0, height, width), label) for label in (0, 1)])).padding == padding


def test_attributes_of_the_training_split_say_more(monkeypatch: pytest.MonkeyPatch):
    told = {"classes": ["no", "yes"], "mean": torch.tensor([0.1, 0.2, 0.3]), "std": 0.5, "padding": 3}
    source = source_of(monkeypatch, two(family="pad-crop-flip", **told))
    assert source.class_names == ("no", "yes")
    assert source.mean == pytest.approx((0.1, 0.2, 0.3))
    assert (source.std, source.family, source.padding) == ((0.5, 0.5, 0.5), "pad-crop-flip", 3)
    crops = source_of(monkeypatch, two(family="resized-crop-flip", size=(6, 9), least_area=30))
    assert (crops.family, crops.size, crops.least_area) == ("resized-crop-flip", (6, 9), 30)
    assert source_of(monkeypatch, two()).class_names == ("class 0", "class 1")


WRONG: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no length": (iter([]), ("expected a torch Dataset",)),
    "nothing": (Rows([]), ("has no rows",)),
    "no pair": (Rows([grey()]), ("row 0", "expected (image, label), found ndarray")),
    "three": (Rows([(grey(), 0, 1)]), ("found tuple of 3",)),
    "a float tensor": (Rows([(torch.zeros(3, 8, 8), 0)]), ("found float32", "leave out ToTensor()")),
    "a float array": (Rows([(np.zeros((8, 8)), 0)]), ("found float64", "leave out ToTensor()")),
    "sixteen bits": (Rows([(np.zeros((8, 8), np.int16), 0)]), ("uint8", "found int16")),
    "four channels": (Rows([(np.zeros((8, 8, 4), np.uint8), 0)]), ("found (8, 8, 4)",)),
    "channels first": (Rows([(np.zeros((3, 8, 8), np.uint8), 0)]), ("(h, w, 3) of an array", "found (3, 8, 8)")),
    "channels last": (Rows([(torch.zeros(8, 8, 3, dtype=torch.uint8), 0)]), ("(3, h, w) of a tensor",)),
    "a path": (Rows([("cat.png", 0)]), ("expected a PIL image, an array or a tensor, found str",)),
    "a float label": (Rows([(grey(), 0.0)]), ("row 0", "expected a whole number as label, found float 0.0")),
    "a name as label": (Rows([(grey(), "cat")]), ("whole number", "found str cat")),
    "a truth as label": (Rows([(grey(), True)]), ("whole number", "found bool")),
    "a huge label": (Rows([(grey(), 1 << 70)]), ("whole number",)),
    "a label below 0": (Rows([(grey(), 0), (grey(), -1)]), ("row 1 has label -1", "expected 0 to 0")),
    "a label past the classes": (two(classes=["one"]), ("row 1 has label 1", "expected 0 to 0")),
    "a class without rows": (Rows([(grey(), 0), (grey(), 3)]), ("2 of 4 classes have no row; the first is 1",)),
    "a gap of billions": (Rows([(grey(), 0), (grey(), 1 << 40)]), ("the first is 1",)),
    "classes that are no names": (two(classes=2), ("classes must be a list of names, found int 2",)),
    "two sizes": (Rows([(grey(), 0), (grey(), 1), (grey(0, 8, 9), 1)]), ("row 2 is of 8 × 9 pixels, not 8 × 8",)),
    "a family that is none": (two(family="flip"), ("family must be one of pad-crop", "found 'flip'")),
    "crops without a size": (two(family="resized-crop"), ("need the Dataset's size",)),
    "a mean of 0 … 255": (two(mean=127.0), ("mean must be of 0 … 1",)),
    "a std of 0": (two(std=0.0), ("std must be of 0 … 1", "above 0")),
    "two means": (two(mean=(0.1, 0.2)), ("one number or three",)),
    "one class": (Rows([(grey(), 0), (grey(), 0)]), ("all rows are of one class",)),
    "random transforms": (Drawn([(grey(), 0), (grey(), 1)]), ("row 0 is another", "Leave random transforms out")),
    "a padding of halves": (two(padding=1.5), ("padding must be a whole number of at least 0",)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_data_set_that_cannot_be_packed_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
):
    splits, words = WRONG[kind]
    monkeypatch.setattr(own_things, "made_now", lambda split: splits, raising=False)
    refused(kdtool("pack", "-w", tmp_path, "--dataset", own("made_now")), 1, own("made_now"), *words)
    assert not list(tmp_path.glob("data/*/data.json"))


def test_what_a_data_sets_own_code_raises_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Broken(Rows):
        def __getitem__(self, row: int) -> Any:
            raise KeyError(row)

    made_of = {"train": two(), "test": Broken([1])}
    monkeypatch.setattr(own_things, "made_now", made_of.__getitem__, raising=False)
    command = ("pack", "-w", tmp_path, "--dataset", own("made_now"))
    refused(kdtool(*command), 1, "test split: row 0 could not be read: KeyError: 0 (test_own.py, line")
    made_of["test"] = Rows([(grey(), 5)])
    refused(kdtool(*command), 1, "test split: row 0 has label 5")
    made_of["test"] = Rows([(grey(0, 9, 8), 0)])
    refused(kdtool(*command), 1, "test split: row 0 is of 9 × 8 pixels, not 8 × 8")
    del made_of["test"]
    refused(kdtool(*command), 1, "called with 'test' it fails: KeyError: 'test'")
    monkeypatch.setattr(own_things, "made_now", sys.exit)
    refused(kdtool(*command), 1, "called with 'train' it fails: SystemExit: train")
    monkeypatch.setattr(own_things, "made_now", made_of.__getitem__)
    made_of["test"] = two()
    refused(kdtool(*command, "--limit", 1), 2, "--limit must be at least the number of classes (2)")
    refused(kdtool(*command, "--data-dir", tmp_path), 2, "--data-dir", "finds its own files")
    made_of["train"] = two(padding=200)
    refused(kdtool(*command), 2, "padding 200")
    assert not list(tmp_path.glob("data/*/data.json"))


def test_a_module_that_is_not_there_leaves_nothing_behind(tmp_path: Path):
    refused(kdtool("pack", "-w", tmp_path, "--dataset", "mine_nowhere:digits"), 2, "no module 'mine_nowhere'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["Pictures", "Tensors"])
def test_the_same_images_pack_to_the_same_content(work: Path, tmp_path: Path, name: str):
    packed = made("pack", "-w", tmp_path, "--dataset", own(name))
    assert packed["fingerprint"] == open_packed(work / "data" / own("digits")).record.train_fingerprint


# From end to end ------------------------------------------------------------------------------------------------------

DIGITS = ("--dataset", own("digits"))
TAUGHT = f"{OURS}-digits-{OURS}-drawn-s0"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with own digits, a teacher of an own network, its weights alone in weights.pt (as DataParallel names
    them), cached from that file, and a subset. Read it only."""
    folder = tmp_path_factory.mktemp("own")
    taught = made("train-teacher", "-w", folder, *DIGITS, "--arch", own("drawn"), "--epochs", 6)
    assert taught["name"] == TAUGHT
    weights = load_checkpoint(Path(taught["path"])).weights
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, folder / "weights.pt")
    made("cache-teacher", "-w", folder, *DIGITS, "--teacher", folder / "weights.pt", "--arch", own("drawn"))
    made("build-subset", "-w", folder, *DIGITS, "--frac", "0.3")
    return folder


def test_a_data_set_of_ones_own_is_packed_under_its_name(work: Path):
    packed = open_packed(work / "data" / own("digits"))
    record, digits = packed.record, own_things.Digits("train")
    assert (record.dataset, record.classes, record.family, record.padding) == (own("digits"), 10, "pad-crop", 1)
    assert (record.train_rows, record.test_rows, record.height, record.width) == (1438, 359, 8, 8)
    assert np.array_equal(packed.split("train").frames()[..., 0], digits.images)
    assert packed.split("train").labels_n.tolist() == digits.labels.tolist()
    again = made("pack", "-w", work, *DIGITS)
    assert again["fingerprint"] == record.train_fingerprint


def test_a_plain_state_dict_is_cached_as_the_checkpoint_is(work: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    common = ("-w", copy, *DIGITS)
    refused(kdtool("cache-teacher", *common, "--teacher", TAUGHT), 1, "teacher.pt", f"Add: --arch {own('drawn')}")
    cached = made("cache-teacher", *common, "--teacher", TAUGHT, "--arch", own("drawn"))
    assert cached["teacher"] == TAUGHT
    paths = [copy / "teachers" / name / "cache.h5" for name in (TAUGHT, "weights")]
    with open_cache(paths[0]) as of_checkpoint, open_cache(paths[1]) as of_weights:
        one, other = of_checkpoint.record, of_weights.record
        assert (one.teacher_arch, one.teacher_fingerprint) == (other.teacher_arch, other.teacher_fingerprint)
        assert np.array_equal(of_checkpoint.read("slots/1/logits"), of_weights.read("slots/1/logits"))
        assert one.features_are is None
        assert of_weights.read("features").shape == (1438, 16)


def test_all_who_run_the_teacher_ask_for_its_network(work: Path):
    file = work / "weights.pt"
    common = ("-w", work, *DIGITS)
    for words in (
        ("cache-teacher", *common, "--teacher", file),
        ("cache-teacher", *common, "--teacher", file, "--dry-run"),
        ("verify-cache", *common, "--teacher", file),
        ("evaluate", file, *common),
    ):
        refused(kdtool(*words), 1, "weights.pt: a plain state_dict", "Add: --arch")
    arch = ("--arch", own("drawn"))
    assert made("verify-cache", *common, "--teacher", file, "--samples", 16, *arch)["teacher"] == "weights"
    assert made("cache-teacher", *common, "--teacher", file, *arch, "--dry-run")["passes"] == 0
    refused(kdtool("evaluate", file, "-w", work, *arch), 2, "does not say what it learned", "Add: --dataset")
    assert (
        made("evaluate", file, *common, *arch)["top1"]
        == load_checkpoint(work / "teachers" / TAUGHT / "teacher.pt").top1
    )


def test_another_network_than_the_files_is_refused(work: Path):
    common, teacher = ("-w", work, *DIGITS), ("--teacher", TAUGHT)
    refused(kdtool("cache-teacher", *common, *teacher, "--arch", own("plain")), 2, f"of the network {own('drawn')}")
    refused(kdtool("cache-teacher", *common, *teacher, "--arch", own("drawn"), "--width", 8), 2, "--width 16, not 8")
    file = ("--teacher", work / "weights.pt")
    refused(kdtool("cache-teacher", *common, *file, "--arch", own("conv_head")), 1, "weights.pt", "do not fit")
    refused(kdtool("cache-teacher", *common, *file, "--arch", own("plain"), "--width", 8), 2, "--width belongs to")
    refused(kdtool("cache-teacher", *common, *file, "--arch", "resnet9"), 2, "unknown architecture")


def test_a_cache_of_other_weights_or_another_network_is_another_teachers(work: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    weights = torch.load(copy / "weights.pt", weights_only=True)["state_dict"]
    first = next(iter(weights))
    torch.save({**weights, first: weights[first] + 1}, copy / "weights.pt")
    words = ("cache-teacher", "-w", copy, *DIGITS, "--teacher", copy / "weights.pt", "--arch", own("drawn"))
    line = refused_line(words, "teacher_fingerprint", "kdtool cache-teacher")
    made(*line.split("run: kdtool ")[1].split(), "-w", copy)  # the command it names, as it stands


def refused_line(words: tuple[Any, ...], *said: str) -> str:
    result = kdtool(*words)
    refused(result, 1, *said)
    return result.stderr.strip()


def test_plain_weights_of_a_resnet_take_a_width(digits: Path, tmp_path: Path):
    torch.save(build_model("resnet8", 10, width=4).state_dict(), tmp_path / "small.pt")
    data = DataRecord(**open_packed(digits / "data" / "digits").record.to_record())
    compute = compute_on("cpu", "float32")
    checkpoint, model = network_of(tmp_path / "small.pt", data, compute, "resnet8", 4)
    assert (checkpoint.width, checkpoint.mean, checkpoint.dataset) == (4, data.mean, "digits")
    assert not model.training


def test_prefixes_are_taken_off_where_the_network_has_none():
    weights = {f"module._orig_mod.{name}": tensor for name, tensor in own_things.Plain(3).state_dict().items()}
    wanted = list(own_things.Plain(3).state_dict())
    assert list(without_prefixes(weights, wanted)) == wanted
    inner = own_things.parallel(3).state_dict()
    assert list(without_prefixes(inner, list(inner))) == list(inner)


def test_a_student_of_ones_own_learns_resumes_and_is_evaluated(work: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    name = f"{OURS}-digits-random-0.3-s0"
    words = ("distill", "-w", copy, "--subset", name, "--arch", own("plain"), "--epochs", 2)
    run = made(*words)
    assert run["name"].startswith(f"{name}-{OURS}-plain-weights-")
    assert ":" not in run["name"]
    assert run["teacher_forward_passes"] == 0
    assert made(*words) == run
    refused(kdtool("evaluate", run["path"], "-w", copy), 1, "student.pt", f"Add: --arch {own('plain')}")
    assert made("evaluate", run["path"], "-w", copy, "--arch", own("plain"))["top1"] == run["top1"]
    assert made("distill", *words[1:], "--name", "again", "--force")["top1"] == run["top1"]


@pytest.mark.parametrize("name", ["failing", "no_module", "with_auxiliary", "of_one_size"])
def test_a_student_that_cannot_learn_is_refused_before_its_run(work: Path, name: str):
    words = ("distill", "-w", work, "--arch", own(name), "--epochs", 1, "--name", f"not-{name}")
    refused(kdtool(*words), 2, f"--arch {own(name)}")
    assert not (work / "runs" / f"not-{name}" / "checkpoint.pt").exists()
    refused(kdtool("train-teacher", "-w", work, *DIGITS, "--arch", own(name), "--name", "not-trained"), 2, own(name))
    assert not (work / "teachers" / "not-trained").exists()


def test_a_teacher_without_a_linear_head_is_trained_recorded_and_cached(work: Path, tmp_path: Path):
    common, conv = ("-w", tmp_path, *DIGITS), ("--arch", own("conv_head"))
    made("train-teacher", *common, *conv, "--epochs", 2, "--snapshots", "1", "--name", "conv")
    cached = made("cache-teacher", *common, "--teacher", "conv", *conv)
    assert cached["features_are"] == "logits"
    with open_cache(tmp_path / "teachers" / "conv" / "cache.h5") as cache:
        assert cache.record.features_are == "logits"
        assert np.array_equal(cache.read("features"), cache.read("slots/0/logits"))
    told = kdtool("cache-teacher", *common, "--teacher", "conv", *conv)
    assert "no linear layer makes its logits" in told.stdout


def test_what_own_code_prints_is_not_a_result(here: Path):
    (here / "mine.py").write_text(
        "print('importing')\nfrom tests.own_things import Plain, Digits\n"
        "def net(classes):\n    print('building')\n    return Plain(classes)\n"
        "def data(split):\n    print('reading')\n    return Digits(split, rows=60)\n"
    )
    words = ("train-teacher", "--dataset", "mine:data", "--arch", "mine:net", "--epochs", 1, "--no-dynamics", "--json")
    result = kdtool(*words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["name"] == "mine-data-mine-net-s0"
    assert {"importing", "building", "reading"} <= set(result.stderr.splitlines())


def test_packed_data_and_artifacts_need_their_module_no_more(work: Path, tmp_path: Path):
    """In an interpreter that can't import it; kdtool is found as a console script finds it, away from the folder."""
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    run = made("distill", "-w", copy, "--arch", own("plain"), "--epochs", 1, "--name", "one")
    name = f"{OURS}-digits-random-0.3-s0"
    commands = [
        ("pack", *DIGITS),
        ("build-subset", *DIGITS, "--frac", "0.1"),
        ("build-subset", *DIGITS, "--frac", "0.1", "--method", "hardest", "--teacher", "weights"),
        ("distill", "--arch", "resnet8", "--width", "4", "--iterations", "1", "--subset", name),
        ("views", *DIGITS, "--montage", tmp_path / "views.png"),
        ("score", *DIGITS, "--teacher", "weights", "--score", "margin"),
        ("noise", *DIGITS, "--rate", "0.1"),
        ("inspect", copy / "data" / own("digits")),
        ("inspect", copy / "teachers" / TAUGHT),
        ("inspect", copy / "weights.pt"),
        ("inspect", run["path"]),
    ]
    script = (
        "import sys, json\nfrom toolkit.cli import cli\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n        cli(words)\n    except SystemExit as end:\n        assert not end.code, words\n"
        "assert not any(name.startswith('tests') for name in sys.modules)\n"
    )
    listed = [[str(word) for word in (*words, "-w", copy)] for words in commands]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, json.dumps(listed)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plain state_dict" in done.stdout


def test_noise_limit_and_resized_crops_work_with_data_of_ones_own(tmp_path: Path):
    limited = made("pack", "-w", tmp_path, *DIGITS, "--limit", 50)
    assert limited["train_rows"] == 50
    assert open_packed(tmp_path / "data" / f"{own('digits')}-limit-50").record.limit == 50
    noisy = made("noise", "-w", tmp_path, *DIGITS, "--rate", "0.2", "--limit", 50)
    assert (noisy["of"], noisy["flipped"]) == (own("digits"), 10)
    common = ("-w", tmp_path, "--dataset", own("Sizes"), "--limit", 60)
    made("train-teacher", *common, "--arch", own("plain"), "--epochs", 1, "--no-dynamics", "--name", "crops")
    made("cache-teacher", *common, "--teacher", "crops", "--arch", own("plain"), "--views", 3)
    record = open_packed(tmp_path / "data" / f"{own('Sizes')}-limit-60").record
    assert (record.family, record.height, record.least_area) == ("resized-crop", 8, 50)
    sizes = open_beton(tmp_path / "data" / record.key / "train.beton").sizes_n2
    assert len({tuple(size) for size in sizes.tolist()}) > 1


def test_the_console_script_finds_code_in_the_current_folder(tmp_path: Path):
    script = Path(sys.executable).with_name("kdtool")
    if not script.is_file():
        pytest.skip("kdtool is not installed as a script")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nclass data(list):\n"
        "    def __init__(self, split): super().__init__((np.full((8, 8), 9 * n, np.uint8), n % 2) for n in range(8))\n"
    )
    command = [str(script), "pack", "--dataset", "mine:data", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == 2


# What decides ---------------------------------------------------------------------------------------------------------

MARKING = (
    "from pathlib import Path\nfrom tests.own_things import Digits\nPath('imported').touch()\n"
    "def data(split): return Digits(split, rows=100)\n"
)


@pytest.fixture
def marked(here: Path) -> Path:
    """A workspace with a student of data of one's own, whose module leaves a file where it is imported; it is not yet
    imported any more, and its file is gone."""
    (here / "mine_marking.py").write_text(MARKING)
    common = ("-w", here / "first", "--dataset", "mine_marking:data")
    made("build-subset", *common, "--frac", "0.5", "--name", "half")
    made("noise", *common, "--rate", "0.1")
    made(
        "build-subset",
        "-w",
        here / "first",
        "--dataset",
        "mine_marking:data-noise-0.1-s0",
        "--frac",
        "0.5",
        "--name",
        "noisy",
    )
    made("distill", "-w", here / "first", "--subset", "half", "--alpha", 0, "--arch", "resnet8", "--width", 2,
         "--iterations", 1, "--name", "one")  # fmt: skip
    (here / "imported").unlink()
    del sys.modules["mine_marking"]
    return here


def test_no_file_decides_which_data_sets_code_runs(marked: Path):
    """A bundle and a checkpoint that somebody gave, in a workspace without their data."""
    fresh, first = ("-w", marked / "fresh"), marked / "first"
    np.save(marked / "50.npy", np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32))
    given = ("--name", "ours", "--logits", marked / "50.npy", "--test-logits", marked / "50.npy")
    for words in (
        ("distill", *fresh, "--subset", first / "subsets" / "half", "--alpha", 0, "--iterations", 1),
        ("distill", *fresh, "--subset", first / "subsets" / "noisy", "--alpha", 0, "--iterations", 1),
        ("evaluate", first / "runs" / "one", *fresh),
        ("evaluate", first / "runs" / "one", *fresh, "--dry-run"),
        ("cache-teacher", *fresh, "--subset", first / "subsets" / "half"),
        ("train-teacher", *fresh, "--subset", first / "subsets" / "half"),
        ("import-logits", *fresh, "--subset", first / "subsets" / "half", *given),
        ("import-logits", *fresh, "--subset", first / "subsets" / "half", *given, "--dry-run"),
    ):
        refused(kdtool(*words), 1, "only you decide which code runs", "kdtool pack --dataset mine_marking:data")
        assert not (marked / "imported").exists(), words
    assert not list(marked.glob("fresh/data/*/data.json"))
    made("pack", *fresh, "--dataset", "mine_marking:data")  # said by the user
    assert (marked / "imported").exists()
    made("evaluate", first / "runs" / "one", *fresh)


def test_an_edited_network_is_another_run(marked: Path):
    source = "from tests.own_things import Plain\ndef net(classes): return Plain(classes)\n"
    (marked / "mine_net.py").write_text(source)
    common = ("-w", marked / "first", "--arch", "mine_net:net")
    for words in (
        ("distill", *common, "--subset", "half", "--alpha", 0, "--iterations", 1),
        ("train-teacher", *common, "--dataset", "mine_marking:data", "--epochs", 1, "--no-dynamics"),
    ):
        (marked / "mine_net.py").write_text(source)
        first = made(*words)
        assert made(*words) == first
        (marked / "mine_net.py").write_text(source + "# edited\n")
        refused(kdtool(*words), 1, "other settings (code ", "--force")
        made(*words, "--force")


def test_packed_data_of_ones_own_say_that_they_were_there(work: Path):
    told = kdtool("pack", "-w", work, *DIGITS).stdout
    assert "already there; --force reads it again" in told
    assert made("pack", "-w", work, *DIGITS)["unchanged"]


def test_what_a_network_prints_when_it_runs_is_not_a_result(work: Path, tmp_path: Path):
    words = ("train-teacher", "-w", tmp_path, *DIGITS, "--limit", 100, "--arch", own("talking"), "--epochs", 1)
    result = kdtool(*words, "--no-dynamics", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["epochs"] == 1
    assert "forward" in result.stderr


# Names ----------------------------------------------------------------------------------------------------------------


def test_training_never_takes_the_name_of_logits_that_it_did_not_make(work: Path):
    words = ("train-teacher", "-w", work, *DIGITS, "--arch", own("plain"), "--name", "weights")
    refused(kdtool(*words), 2, "--name weights", "cache.h5", "Choose another --name")
    refused(kdtool(*words, "--force"), 2, "Choose another --name")


def test_a_teacher_cached_from_a_file_is_asked_for_by_its_file(work: Path):
    words = ("-w", work, *DIGITS, "--teacher", "weights")
    refused(kdtool("cache-teacher", *words), 1, "made from a file", "Name it, and its --arch")
    refused(kdtool("cache-teacher", *words[:-1], work / "nope.pt"), 2, "nope.pt: not found")
    subset = ("distill", "-w", work, "--subset", f"{OURS}-digits-random-0.3-s0", "--arch", "resnet8", "--iterations", 1)
    run = made(*subset, "--width", 2, "--teacher", work / "weights.pt", "--name", "by-file")
    assert run["teacher"] == "weights"


def test_a_file_with_another_teachers_name_is_refused(work: Path, tmp_path: Path):
    for name in (TAUGHT, "digits-resnet8"):
        file = Path(shutil.copy(work / "weights.pt", tmp_path / f"{name}.pt"))
        words = ("cache-teacher", "-w", work, *DIGITS, "--teacher", file, "--arch", own("drawn"))
        refused(kdtool(*words), 2, f"{name} is the name of another teacher", "Rename the file")


def test_data_that_show_one_view_and_not_every_class_in_the_test_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 256, (8, 8), dtype=np.uint8), row % 3) for row in range(12)]
    splits = {"train": Rows(rows, padding=0), "test": Rows(rows[:2])}
    monkeypatch.setattr(own_things, "made_now", splits.__getitem__, raising=False)
    common = ("-w", tmp_path, "--dataset", own("made_now"))
    words = ("--arch", "resnet8", "--width", 2, "--epochs", 1, "--no-dynamics", "--name", "one")
    made("train-teacher", *common, *words)
    assert made("cache-teacher", *common, "--teacher", "one")["views"] == 1
    refused(kdtool("cache-teacher", *common, "--teacher", "one", "--views", 2), 2, "--views must be 1 to 1")
    file = tmp_path / "teachers" / "one"
    assert made("evaluate", file, "-w", tmp_path)["per_class"]["class 2"] is None
    assert "–    class 2" in kdtool("evaluate", file, "-w", tmp_path).stdout
