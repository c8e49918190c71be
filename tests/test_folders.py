"""Image folders: what is listed, how each kind of file is read, and packing them in parts that outlive a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from tests.conftest import kdtool, made, refused
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.folder_settings import FolderSettings
from toolkit.data import folder_pack, folder_plan
from toolkit.data import pictures as reading
from toolkit.data.folders import fingerprint_of, list_folder
from toolkit.data.pictures import BadPicture, read_picture
from toolkit.formats import beton as beton_module
from toolkit.formats.beton import Beton, cut, join, open_beton
from toolkit.formats.beton_writer import write_beton
from toolkit.formats.dataset import open_packed
from toolkit.formats.ffcv_loader import one_epoch, open_loader
from toolkit.formats.views_of import ViewReader
from toolkit.training.stream import StreamSource

CPU = torch.device("cpu")
CLASSES = ("apple", "pear", "quince")
COUNTS = {"train": 14, "val": 4}


def noise(seed: int, height: int, width: int) -> Image.Image:
    """Smooth enough for JPEG to be worth its name."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def fill(folder: Path) -> Path:
    """Pictures of three classes, of sizes and formats of their own; some lie a folder deeper."""
    seed = 0
    for split, count in COUNTS.items():
        for name in CLASSES:
            for number in range(count):
                seed += 1
                place = folder / split / name / ("deep" if number % 5 == 3 else "")
                place.mkdir(parents=True, exist_ok=True)
                height, width = np.random.default_rng(seed).integers(20, 90, 2).tolist()
                noise(seed, height, width).save(place / f"{number:03}.{('jpg', 'png', 'webp')[number % 3]}")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return fill(tmp_path / "pictures")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What packing the pictures in one go comes to, of each split."""
    folder = tmp_path_factory.mktemp("whole")
    pack(folder / "work", fill(folder / "pictures"))
    return files(folder / "work")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_plan, "PART_ROWS", 5)


def pack(workspace: Path, pictures: Path, *words: object) -> dict[str, object]:
    return made("pack", "-w", workspace, "--dataset", "imagefolder", "--data-dir", pictures, "--workers", 2, *words)


def files(workspace: Path) -> dict[str, bytes]:
    return {split: packed(workspace, split).path.read_bytes() for split in ("train", "test")}


def packed(workspace: Path, split: str = "train") -> Beton:
    return open_packed(workspace / "data" / "imagefolder").split(split)


# what is listed


def test_files_are_listed_in_torchvisions_order(pictures: Path, tmp_path: Path):
    for split, listing in list_folder(pictures, "imagefolder").items():
        theirs = ImageFolder(str(listing.folder))
        assert [str(listing.path(row)) for row in range(len(listing))] == [path for path, _ in theirs.samples]
        assert listing.labels_n.tolist() == theirs.targets
        assert list(listing.class_names) == theirs.classes
        assert len(listing) == len(CLASSES) * COUNTS[{"test": "val"}.get(split, split)]


def test_a_listing_takes_few_bytes_a_file_however_long_the_names(pictures: Path, tmp_path: Path):
    for number in range(50):
        noise(0, 9, 9).save(pictures / "train" / "pear" / f"{'long' * 50}{number}.png")
    listing = list_folder(pictures, "imagefolder")["train"]
    columns = (listing.ends_n, listing.labels_n, listing.sizes_n, listing.times_n)
    assert sum(column.nbytes for column in columns) <= 28 * len(listing)
    assert list(tmp_path.iterdir()) == [pictures]  # the names' file is mapped, and lies elsewhere


def test_a_plan_takes_fewer_and_lets_go_of_the_listing(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    listed = []

    def listing(*arguments: object) -> object:
        found = list_folder(*arguments)  # type: ignore[arg-type]
        listed.extend(weakref.ref(column) for one in found.values() for column in (one.sizes_n, one.times_n))
        return found

    monkeypatch.setattr(folder_plan, "list_folder", listing)
    plan = folder_plan.plan_folder("imagefolder", pictures, None, FolderSettings())
    for split in plan.splits.values():
        held = (split.rows_m, *(getattr(split.listing, name) for name in ("ends_n", "labels_n", "sizes_n", "times_n")))
        assert sum(column.nbytes for column in held) <= 16 * len(split.rows_m)
    assert len(listed) == 4 and not any(column() is not None for column in listed)


def test_a_temporary_folder_that_takes_no_names_is_told(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(pictures / "absent"))
    with pytest.raises(FailureError, match=r"temporary file \(No such file.*TMPDIR"):
        list_folder(pictures, "imagefolder")


@pytest.mark.parametrize("column", ["class_names", "labels_n", "sizes_n", "times_n"])
def test_a_parts_fingerprint_is_of_all_that_it_holds(pictures: Path, column: str):
    listing, rows = list_folder(pictures, "imagefolder")["train"], np.arange(20, dtype=np.int32)
    other = {"class_names": ("pear", "apple", "quince")}.get(column)
    if other is None:
        other = getattr(listing, column).copy()
        other[3] = 2
    assert replace(listing, **{column: other}).identity(rows) != listing.identity(rows)
    assert listing.identity(rows, 1) != listing.identity(rows, 2)


def test_files_that_are_no_images_by_intent_are_left_out(pictures: Path, tmp_path: Path):
    before = fingerprint_of(list_folder(pictures, "imagefolder"))
    for name in (".hidden.jpg", "Thumbs.db", "desktop.ini", "README", "License.txt", "boxes.txt", "labels.CSV"):
        (pictures / "train" / "pear" / name).write_text("words")
    (pictures / "train" / "pear" / ".cache").mkdir()
    (pictures / "train" / "pear" / ".cache" / "a.jpg").write_text("words")
    (pictures / "train" / "README.md").write_text("words")
    (pictures / "train" / ".ipynb_checkpoints").mkdir()
    assert fingerprint_of(list_folder(pictures, "imagefolder")) == before


def test_the_listings_fingerprint_is_the_folders_wherever_it_lies(pictures: Path, tmp_path: Path):
    before = fingerprint_of(list_folder(pictures, "imagefolder"))
    moved = pictures.rename(tmp_path / "elsewhere")
    assert fingerprint_of(list_folder(moved, "imagefolder")) == before
    (moved / "train" / "pear" / "000.jpg").rename(moved / "train" / "pear" / "0000.jpg")
    assert fingerprint_of(list_folder(moved, "imagefolder")) != before


def take_away(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def lone_class(folder: Path) -> None:
    for split in COUNTS:
        for name in CLASSES[1:]:
            take_away(folder / split / name)


SHAPES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (take_away, "pictures: not found"),
    "no train": (
        lambda folder: (folder / "train").rename(folder / "training"),
        r"expected train/.*holds training",
    ),
    "no val": (lambda folder: take_away(folder / "val"), r"expected train/ and val/ \(or test/\).*holds train$"),
    "val and test": (lambda folder: (folder / "test" / "fig").mkdir(parents=True), "holds both val/ and test/"),
    "a class less": (lambda folder: take_away(folder / "val" / "pear"), "not in val/, such as pear"),
    "a class more": (lambda folder: (folder / "val" / "pear").rename(folder / "val" / "fig"), "such as pear"),
    "empty class": (lambda folder: (folder / "train" / "fig").mkdir(), "fig: a class without images"),
    "loose images": (lambda folder: noise(0, 9, 9).save(folder / "val" / "a.png"), "1 images lie beside.*a.png"),
    "no class": (lambda folder: [take_away(folder / "val" / name) for name in CLASSES], "holds no class folder"),
    "one class": (lone_class, "nothing to learn"),
    "a loop": (
        lambda folder: (folder / "val" / "pear" / "again").symlink_to(".."),
        "val/apple are one folder, by a link",
    ),
    "a link to itself": (
        lambda folder: (folder / "train" / "fig").symlink_to("fig"),
        r"fig: can't be listed \(Too many",
    ),
    "odd name": (lambda folder: (folder / "val" / "pear").rename(folder / "val" / "pe\nar"), "not printable"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_of_another_shape_is_refused_in_one_line(pictures: Path, tmp_path: Path, shape: str):
    spoil, words = SHAPES[shape]
    spoil(pictures)
    with pytest.raises(FailureError, match=words):
        list_folder(pictures, "imagefolder")


LINKS = {
    "train/pear/again": "../pear",
    "train/pear/apples": "../apple",
    "train/apple/tested": "../../val/apple",
    "train/redapple": "apple",
    "val": "train",
}


@pytest.mark.parametrize("link", LINKS)
def test_a_folder_that_is_met_twice_by_a_link_is_refused(pictures: Path, link: str):
    if link == "val":
        take_away(pictures / "val")
    if link == "train/redapple":
        (pictures / "val" / "redapple").mkdir()
        noise(0, 9, 9).save(pictures / "val" / "redapple" / "a.png")
    (pictures / link).symlink_to(LINKS[link])
    with pytest.raises(FailureError, match=r"are one folder, by a link\. Take the link away"):
        list_folder(pictures, "imagefolder")


def test_imagenets_test_folder_without_labels_is_passed_over(pictures: Path):
    (pictures / "test" / ".hidden").mkdir(parents=True)
    noise(0, 9, 9).save(pictures / "test" / "ILSVRC2012_test_00000001.JPEG")
    assert list_folder(pictures, "imagefolder")["test"].folder == pictures / "val"


def test_imagenet_has_a_thousand_classes(pictures: Path):
    with pytest.raises(FailureError, match=r"3 class folders, and ImageNet has 1,000.*--dataset imagefolder"):
        list_folder(pictures, "imagenet")
    added = [f"n{number:08}" for number in range(997)]
    for split in ("train", "val"):
        for name in added:
            (pictures / split / name).mkdir()
            (pictures / split / name / "a.JPEG").touch()
    assert list_folder(pictures, "imagenet")["train"].class_names == ("apple", *added, "pear", "quince")


# how each kind is read


def saved(path: Path, image: Image.Image, **how: object) -> Path:
    image.save(path, **how)
    return path


def through_torchvision(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def palette(transparent: bool) -> Image.Image:
    image = noise(1, 20, 30).quantize(16)
    if transparent:
        image.info["transparency"] = bytes(range(16))
    return image


KINDS: dict[str, tuple[str, Callable[[], Image.Image]]] = {
    "rgb": ("a.jpg", lambda: noise(1, 20, 30)),
    "grayscale": ("a.jpg", lambda: noise(1, 20, 30).convert("L")),
    "black and white": ("a.png", lambda: noise(1, 20, 30).convert("1")),
    "cmyk": ("a.jpg", lambda: noise(1, 20, 30).convert("CMYK")),
    "palette": ("a.png", lambda: palette(False)),
    "palette with transparency": ("a.png", lambda: palette(True)),
    "gif": ("a.gif", lambda: palette(False)),
    "alpha": ("a.png", lambda: noise(1, 20, 30).convert("RGBA")),
    "gray and alpha": ("a.png", lambda: noise(1, 20, 30).convert("LA")),
    "ycbcr": ("a.tiff", lambda: noise(1, 20, 30).convert("YCbCr")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # torchvision's way warns, ours not
def test_every_kind_of_image_is_read_as_torchvision_reads_it(tmp_path: Path, kind: str):
    name, make = KINDS[kind]
    path = saved(tmp_path / name, make())
    found = read_picture(path)
    assert found.shape == (20, 30, 3) and found.dtype == np.uint8
    assert np.array_equal(found, through_torchvision(path))


def test_reading_warns_of_nothing(tmp_path: Path):
    read_picture(saved(tmp_path / "a.png", palette(True)))  # warnings are errors here


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exifs_orientation_is_applied(tmp_path: Path, orientation: int, ending: str):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{ending}", noise(2, 20, 30), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
    assert np.array_equal(read_picture(path), expected)


def test_exif_that_cant_be_read_turns_nothing(tmp_path: Path):
    path = saved(tmp_path / "a.jpg", noise(2, 20, 30), exif=b"Exif\0\0nonsense, and no TIFF header")
    assert np.array_equal(read_picture(path), through_torchvision(path))


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path: Path, name: str):
    values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    found = read_picture(saved(tmp_path / name, Image.fromarray(values)))
    assert np.array_equal(found, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def cut_off(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.jpg": (lambda path: (noise(1, 90, 90).save(path), cut_off(path, 0.7)), "truncated"),
    "truncated.png": (lambda path: (noise(1, 90, 90).save(path), cut_off(path, 0.7)), "could not be read"),
    "truncated.webp": (lambda path: (noise(1, 90, 90).save(path), cut_off(path, 0.7)), "could not be read"),
    "corrupt.png": (lambda path: (noise(1, 90, 90).save(path), overwritten(path)), "could not be read"),
    "header.jpg": (lambda path: (noise(1, 90, 90).save(path), cut_off(path, 0.01)), "not an image|could not be read"),
    "words.jpg": (lambda path: path.write_text("words and no picture"), "not an image"),
    "program.jpg": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
    "empty.jpg": (lambda path: path.touch(), "empty"),
    "one.png": (lambda path: noise(1, 1, 1).save(path), "1 × 1 pixels"),
    "line.png": (lambda path: noise(1, 40, 1).save(path), "1 × 40 pixels"),
    "huge.png": (lambda path: Image.new("1", (10_000, 9_000)).save(path), "more than 89,478,485 pixels"),
    "huger.png": (lambda path: Image.new("1", (20_000, 9_000)).save(path), "more than 89,478,485 pixels"),
    "float.tiff": (lambda path: Image.new("F", (9, 9)).save(path), "floating point"),
    "deep.tiff": (lambda path: Image.new("I", (9, 9), 1 << 20).save(path), "more than 16 bits"),
    "nowhere.jpg": (lambda path: path.symlink_to("there is no such file"), "link to nowhere"),
    "pipe.jpg": (os.mkfifo, "not a file"),
    "folder.jpg": (lambda path: path.mkdir(), "not a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_kind_of_bad_file_is_told(tmp_path: Path, name: str):
    make, words = BAD[name]
    make(tmp_path / name)
    with pytest.raises(BadPicture, match=words):
        read_picture(tmp_path / name)


def test_lack_of_memory_is_no_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def lacking(*arguments: object, **how: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", lacking)
    with pytest.raises(MemoryError):
        read_picture(saved(tmp_path / "a.png", noise(1, 9, 9)))


# packing


def stored(beton: Beton, row: int) -> bytes:
    at = int(beton.records_n["image"]["ptr"][row])
    return beton.content[at : at + int(beton.bytes_n[row])].tobytes()


@pytest.mark.parametrize("mode", ["jpg", "raw", "smart"])
def test_what_is_stored_is_what_ffcvs_own_encoder_gives(pictures: Path, tmp_path: Path, mode: str):
    from ffcv.fields.rgb_image import encode_jpeg, resizer

    noise(1, 300, 500).save(pictures / "train" / "pear" / "large.png")  # to 180 × 300 here: smart has it as JPEG
    pack(tmp_path / "work", pictures, "--write-mode", mode, "--max-resolution", 300, "--jpeg-quality", 70)
    beton, theirs = packed(tmp_path / "work"), ImageFolder(str(pictures / "train"))
    for row, (path, label) in enumerate(theirs.samples):
        pixels = resizer(read_picture(Path(path)), 300)
        as_jpg = mode == "jpg" or (mode == "smart" and pixels.nbytes > 1 << 16)
        assert stored(beton, row) == (encode_jpeg(pixels, 70) if as_jpg else pixels).tobytes()
        assert tuple(beton.sizes_n2[row]) == pixels.shape[:2]
        assert (beton.labels_n[row], beton.rows_n[row]) == (label, row)
    modes = set(beton.records_n["image"]["mode"].tolist())
    assert modes == {"jpg": {0}, "raw": {1}, "smart": {0, 1}}[mode]


def test_ffcvs_own_loader_reads_what_was_joined(pictures: Path, tmp_path: Path, small_parts: None):
    for split in COUNTS:  # of one size, which FFCV's plain decoder needs
        for path in (pictures / split).rglob("*.*"):
            noise(len(path.name), 24, 32).save(path)
    pack(tmp_path / "work", pictures, "--write-mode", "raw")
    beton, theirs = packed(tmp_path / "work"), ImageFolder(str(pictures / "train"))
    with one_epoch(open_loader(beton.path, 16)) as batches:
        images, labels, rows = (torch.cat(column).numpy() for column in zip(*batches, strict=True))
    assert np.array_equal(images, np.stack([read_picture(Path(path)) for path, _ in theirs.samples]))
    assert labels[:, 0].tolist() == theirs.targets
    assert rows[:, 0].tolist() == list(range(len(theirs)))


class Random:
    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(row)
        return rng.integers(0, 256, (*rng.integers(200, 400, 2), 3), dtype=np.uint8), row % 5


def test_joined_pieces_are_a_cut_of_the_whole_numbered_anew(tmp_path: Path):
    write_beton(Random(), tmp_path / "whole.beton", classes=5)
    whole, pieces = open_beton(tmp_path / "whole.beton"), []
    for first, last, left_out in ((0, 13, [0, 12]), (13, 14, [0]), (14, 40, [])):
        cut(whole, np.arange(first, last), tmp_path / f"{first}.beton")
        pieces.append((tmp_path / f"{first}.beton", left_out))
    kept = np.array([*range(1, 12), *range(14, 40)])
    fingerprint = join(pieces, tmp_path / "joined.beton")
    cut(whole, kept, tmp_path / "cut.beton")
    joined, expected = open_beton(tmp_path / "joined.beton"), open_beton(tmp_path / "cut.beton")
    assert fingerprint == joined.content_fingerprint()
    assert joined.rows_n.tolist() == list(range(len(kept)))
    assert [stored(joined, row) for row in range(len(kept))] == [stored(expected, row) for row in range(len(kept))]
    assert joined.labels_n.tolist() == expected.labels_n.tolist() == (kept % 5).tolist()
    assert joined.path.stat().st_size == expected.path.stat().st_size


def test_joining_holds_40_bytes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_beton(Random(), tmp_path / "few.beton", classes=5)
    few = replace(open_beton(tmp_path / "few.beton"), page_bytes=1 << 14)
    few.records_n["image"]["mode"], few.records_n["image"]["width"], few.records_n["image"]["height"] = 1, 2, 2
    few.bytes_n[:] = 12  # of 2 × 2 pixels, so that rows are many and bytes few
    cut(few, np.arange(4096) % 40, tmp_path / "many.beton")
    monkeypatch.setattr(beton_module, "_BLOCK_ROWS", 1 << 10)
    tracemalloc.start()
    try:
        join([(tmp_path / "many.beton", [0])] * 60, tmp_path / "joined.beton")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    of_parts = 2 << 20
    assert peak <= 40 * 60 * 4095 + of_parts, f"{(peak - of_parts) / (60 * 4095):.1f} bytes a row"


def test_the_files_do_not_depend_on_workers_or_parts(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes], small_parts: None
):
    pack(tmp_path / "work", pictures, "--workers", 3)
    assert files(tmp_path / "work") == whole


def test_the_record_says_how_it_was_packed(pictures: Path, tmp_path: Path, small_parts: None):
    result = pack(
        tmp_path / "work", pictures, "--size", 32, "--family", "resized-crop", "--least-area", 20, "--jpeg-quality", 80
    )
    record = open_packed(Path(str(result["path"]))).record
    assert (record.classes, record.class_names) == (3, list(CLASSES))
    assert (record.train_rows, record.test_rows, record.skipped) == (42, 12, 0)
    assert (record.height, record.width, record.family, record.least_area) == (32, 32, "resized-crop", 20)
    assert (record.max_resolution, record.write_mode, record.jpeg_quality) == (500, "jpg", 80)
    assert record.mean == [0.485, 0.456, 0.406]
    assert sorted(path.name for path in (tmp_path / "work" / "data").iterdir()) == [".imagefolder.lock", "imagefolder"]


def test_limit_takes_classes_in_turn(pictures: Path, tmp_path: Path):
    made("pack", "-w", tmp_path, "--dataset", "imagefolder-few", "--data-dir", pictures, "--limit", 7)
    beton = open_packed(tmp_path / "data" / "imagefolder-few-limit-7").split("train")
    assert beton.labels_n.tolist() == [0, 0, 0, 1, 1, 2, 2]
    words = ("pack", "-w", tmp_path, "--dataset", "imagefolder-few", "--data-dir", pictures, "--limit", 2)
    refused(kdtool(*words), 2, "--limit must be at least the number of classes (3)")


def test_the_same_pack_again_returns_what_is_there(pictures: Path, tmp_path: Path):
    first = pack(tmp_path / "work", pictures)
    again = pack(tmp_path / "work", pictures)
    assert (first["unchanged"], again["unchanged"]) == (False, True)
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder")
    assert made(*words)["unchanged"]
    refused(kdtool(*words, "--write-mode", "raw"), 1, "--write-mode was jpg, now raw; --jpeg-quality was 90", "--force")
    assert "already there;" in kdtool(*words).stdout
    assert "already there by names and sizes;" in kdtool(*words, "--data-dir", pictures).stdout
    (pictures / "val" / "pear" / "000.jpg").unlink()
    refused(kdtool(*words, "--data-dir", pictures), 1, "holds other files than were packed, by names and", "--force")
    assert pack(tmp_path / "work", pictures, "--force")["test_rows"] == 11


def test_hints_pack_again_with_the_options_that_were_given(pictures: Path, tmp_path: Path):
    with_bad_files(pictures)
    given = "--max-resolution 80 --write-mode raw --size 24 --family resized-crop --least-area 20 --on-bad skip"
    pack(tmp_path / "work", pictures, *given.split(), "--limit", 30)
    packed_at = tmp_path / "work" / "data" / "imagefolder-limit-30"
    (packed_at / "test.beton").unlink()
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--limit", 30, *given.split())
    refused(kdtool(*words), 1, f"Run: kdtool pack --dataset imagefolder --data-dir D {given} --limit 30 --force")


def test_a_folder_that_is_not_there_leaves_no_workspace(tmp_path: Path):
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--data-dir", tmp_path / "typo")
    refused(kdtool(*words), 1, "typo: not found. Name the folder that holds train/")
    assert list(tmp_path.iterdir()) == []


def test_later_commands_say_how_to_pack_what_is_not(tmp_path: Path):
    for words in (
        ("cache-teacher", "--dataset", "imagefolder-x"),
        ("build-subset", "--dataset", "imagefolder-x", "--frac", "0.5"),
        ("noise", "--dataset", "imagefolder-x", "--rate", "0.1"),
        ("pack", "--dataset", "imagefolder-x"),
    ):
        result = kdtool(words[0], "-w", tmp_path / "work", *words[1:])
        refused(result, 1, "Run: kdtool pack --dataset imagefolder-x --data-dir D")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--dataset", "digits", "--write-mode", "jpg"), "--write-mode is for image folders"),
        (("--dataset", "imagefolder", "--write-mode", "png"), "known are jpg, raw, smart"),
        (("--dataset", "imagefolder", "--on-bad", "ask"), "known are fail, skip"),
        (("--dataset", "imagefolder", "--family", "pad-crop"), "known are resized-crop, resized-crop-flip"),
        (("--dataset", "imagefolder", "--jpeg-quality", "101"), "--jpeg-quality must be 1 to 100, got 101"),
        (("--dataset", "imagefolder", "--max-resolution", "1"), "--max-resolution must be 2 to 8,192, got 1"),
        (("--dataset", "imagefolder", "--size", "0"), "--size must be 1 to 8,192, got 0"),
        (("--dataset", "imagefolder", "--least-area", "0"), "--least-area must be 1 to 100, got 0"),
        (("--dataset", "imagefolder-Upper"), "unknown data set"),
        (("--dataset", "imagefolder-limit-7"), "unknown data set"),
        (("--dataset", "imagefoldr"), "did you mean imagefolder?"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, tuple) else "",
)
def test_options_that_cant_be_are_refused(tmp_path: Path, words: tuple[str, ...], told: str):
    refused(kdtool("pack", "-w", tmp_path, "--data-dir", tmp_path, *words), 2, told)


def test_settings_check_themselves():
    with pytest.raises(UsageError, match="--max-resolution"):
        FolderSettings(max_resolution=100_000)


# bad files


def with_bad_files(pictures: Path) -> list[str]:
    """Several kinds among the good ones; their paths, in order."""
    spoilt = []
    for name in ("truncated.jpg", "words.jpg", "one.png", "empty.jpg", "nowhere.jpg"):
        BAD[name][0](pictures / "train" / "pear" / name)
        spoilt.append(f"train/pear/{name}")
    (pictures / "train" / "quince" / "film.mp4").write_text("pictures that move")
    noise(0, 2, 2000).save(pictures / "train" / "quince" / "thread.png")
    BAD["huge.png"][0](pictures / "val" / "apple" / "huge.png")
    return sorted([*spoilt, "train/quince/film.mp4", "train/quince/thread.png", "val/apple/huge.png"])


def test_bad_files_fail_after_all_were_looked_at_and_mending_goes_on(
    pictures: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
):
    spoilt = with_bad_files(pictures)
    work = tmp_path / "work"
    words = ("pack", "-w", work, "--dataset", "imagefolder", "--data-dir", pictures)
    refused(kdtool(*words), 1, "8 of 62 files can't be packed", "pear/empty.jpg: an empty file", "…", "--on-bad skip")
    listed = [line.split("\t") for line in (work / "data" / "imagefolder.bad-files.txt").read_text().splitlines()]
    assert sorted(str(Path(path).relative_to(pictures)) for path, _ in listed) == spoilt
    assert all(why for _, why in listed)
    assert not (work / "data" / "imagefolder").exists()

    written, parts = counted_parts(monkeypatch), parts_in(work)
    refused(kdtool(*words), 1, "8 of 62 files can't be packed")
    assert written == []
    for name in spoilt[:-1]:
        (pictures / name).unlink()
    noise(9, 30, 30).save(pictures / spoilt[-1])
    result = made(*words)
    assert (result["train_rows"], result["test_rows"], result["skipped"]) == (42, 13, 0)
    assert 1 <= len(written) <= 6 < parts  # of the parts that held them
    assert sorted(path.name for path in (work / "data").iterdir()) == [".imagefolder.lock", "imagefolder"]
    pack(tmp_path / "fresh", pictures)
    assert files(work) == files(tmp_path / "fresh")


def counted_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each part that is written from now on."""
    rows, write = [], folder_pack.write_part

    def counting(path: Path, of: object, rows_m: np.ndarray, *how: object) -> object:
        rows.append(len(rows_m))
        return write(path, of, rows_m, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_pack, "write_part", counting)
    return rows


def parts_in(work: Path) -> int:
    return len(list((work / "data" / ".imagefolder.parts").glob("*.beton")))


def failed_once(pictures: Path, work: Path) -> tuple[object, ...]:
    """The command, whose parts are all there: one file in val is bad, and is taken away again."""
    words = ("pack", "-w", work, "--dataset", "imagefolder", "--data-dir", pictures)
    bad = pictures / "val" / "quince" / "zzz.png"
    bad.write_text("words")
    refused(kdtool(*words), 1, "1 of 55 files can't be packed")
    bad.unlink()
    return words


def another_picture(pictures: Path) -> None:
    """Other pixels under the same name, size and time."""
    path = pictures / "train" / "apple" / "002.webp"
    before, content = path.stat(), path.read_bytes()
    same = next(made for quality in range(100) if len(made := webp(quality)) <= len(content))
    path.write_bytes(same + bytes(len(content) - len(same)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def webp(quality: int) -> bytes:
    file = io.BytesIO()
    noise(99, 40, 40).save(file, "webp", quality=99 - quality)
    return file.getvalue()


def a_class_before_all(pictures: Path) -> None:
    for split in COUNTS:
        (pictures / split / "aaa").mkdir()
        noise(77, 30, 30).save(pictures / split / "aaa" / "0.png")


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "none": (lambda pictures: None, 0),
    "the first file goes": (lambda pictures: (pictures / "train" / "apple" / "000.jpg").unlink(), 1),
    "another picture": (another_picture, 1),
    "a class before all": (a_class_before_all, 99),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_part_is_made_again_where_its_files_changed_and_no_other(
    pictures: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, change: str
):
    words = failed_once(pictures, tmp_path / "work")
    parts = parts_in(tmp_path / "work")
    make, most = CHANGES[change]
    make(pictures)
    written = counted_parts(monkeypatch)
    made(*words)
    assert min(most, 1) <= len(written) - 1 <= most and parts > 4  # one of them held the bad file
    pack(tmp_path / "fresh", pictures)
    assert files(tmp_path / "work") == files(tmp_path / "fresh")


def failing(monkeypatch: pytest.MonkeyPatch, where: Callable[[], bool] = lambda: True) -> None:
    """A disk that can't read one good file."""
    read = reading.read_picture

    def flaky(path: Path) -> np.ndarray:
        if path.match("train/pear/004.*") and where():
            raise BadPicture("could not be read (Input/output error)")
        return read(path)

    monkeypatch.setattr(reading, "read_picture", flaky)


@pytest.mark.parametrize("when", ["looking", "packing", "joining"])
def test_a_file_that_can_be_read_after_all_is_packed(
    pictures: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
):
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--data-dir", pictures, "--on-bad", "skip")
    here, join_parts = os.getpid(), folder_pack.join

    def ending(pieces: list[object], path: Path) -> str:
        if path.name == "test.beton":
            raise KeyboardInterrupt
        return join_parts(pieces, path)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        failing(patched, (lambda: os.getpid() != here) if when == "packing" else lambda: True)
        if when == "looking":
            refused(kdtool(*words[:-2]), 1, "1 of 54 files", "train/pear/004.png: could not be read (Input/output")
        if when == "packing":
            refused(kdtool(*words), 1, "a moment later it could. Run the same command")
        if when == "joining":
            patched.setattr(folder_pack, "join", ending)
            assert kdtool(*words).exit_code == 130
    written = counted_parts(monkeypatch)
    result = made(*words)
    assert result["skipped"] == 0
    assert when != "looking" or len(written) == 1
    assert files(tmp_path / "work") == whole


def test_skipped_files_are_listed_and_counted(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path, small_parts: None
):
    good = {split: [path for path, _ in ImageFolder(str(pictures / split)).samples] for split in COUNTS}
    spoilt = with_bad_files(pictures)
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--data-dir", pictures, "--on-bad", "skip")
    result = kdtool(*words)
    assert result.exit_code == 0 and "8 bad files left out" in result.stdout
    data = open_packed(tmp_path / "work" / "data" / "imagefolder")
    assert (data.record.train_rows, data.record.test_rows, data.record.skipped) == (42, 12, 8)
    listed = json.loads((data.folder / "bad-files.json").read_text())
    assert sorted(path for split in listed.values() for path, _ in split) == spoilt
    for split, paths in (("train", good["train"]), ("test", good["val"])):
        beton = data.split(split)
        assert beton.rows_n.tolist() == list(range(len(paths)))
        assert beton.sizes_n2.tolist() == [list(read_picture(Path(path)).shape[:2]) for path in paths]
    assert files(tmp_path / "work") == whole
    assert "8 bad files left out" in kdtool(*words).stdout


def test_a_class_that_loses_all_its_images_is_an_error(pictures: Path, tmp_path: Path):
    for path in (pictures / "val" / "pear").rglob("*.*"):
        path.write_text("words")
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--data-dir", pictures, "--on-bad", "skip")
    refused(kdtool(*words), 1, "val/pear: every file that was looked at is bad")


def test_names_of_any_bytes_are_listed_on_one_line(pictures: Path, tmp_path: Path):
    strange = os.fsencode(pictures / "val" / "pear") + b"/a\tb\n\xff.jpg"
    Path(os.fsdecode(strange)).write_text("words")
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--data-dir", pictures)
    refused(kdtool(*words), 1, r"a\tb\n\udcff.jpg")
    assert len((tmp_path / "work" / "data" / "imagefolder.bad-files.txt").read_text().splitlines()) == 1


# killed


KILLED = """
import sys, time
from toolkit.data import folder_plan, pictures
from toolkit.cli import main
folder_plan.PART_ROWS = 5
read = pictures.read_picture
def slowly(path):
    time.sleep(0.05)
    return read(path)
pictures.read_picture = slowly
main()
"""


def test_a_killed_pack_goes_on_after_its_last_whole_part(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
):
    words = ["pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--data-dir", pictures, "--workers", 1]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, words)], stderr=subprocess.DEVNULL)
    parts, deadline_s = tmp_path / "work" / "data" / ".imagefolder.parts", time.monotonic() + 120
    try:
        while len(list(parts.glob("*.beton"))) < 2 and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = sum(len(open_beton(path)) for path in parts.glob("*.beton"))
    assert 0 < done < 54 and not (tmp_path / "work" / "data" / "imagefolder").exists()
    written = counted_parts(monkeypatch)
    made(*words)
    assert sum(written) == 54 - done
    assert files(tmp_path / "work") == whole


@pytest.mark.parametrize("point", ["join", "write_json", "whole_folder", "discard_parts"])
def test_ended_at_any_later_point_no_image_is_decoded_again(
    pictures: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
):
    from toolkit.pipeline import data as pipeline

    module = folder_pack if hasattr(folder_pack, point) and point != "discard_parts" else pipeline
    function, calls = getattr(module, point), []

    def ending(*arguments: object, **how: object) -> object:
        calls.append(point)
        # joins are of train, then of test; records of their parts, and then of them
        now = {"join": len(calls) == 2, "write_json": str(arguments[0]).endswith("test.json")}
        if now.get(point, True):
            raise KeyboardInterrupt
        return function(*arguments, **how)

    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--data-dir", pictures)
    with monkeypatch.context() as patched:
        patched.setattr(module, point, ending)
        assert kdtool(*words).exit_code == 130
    written = counted_parts(monkeypatch)
    made(*words)
    assert written == []
    assert files(tmp_path / "work") == whole
    assert sorted(path.name for path in (tmp_path / "work" / "data").iterdir()) == [".imagefolder.lock", "imagefolder"]


def test_what_a_forced_pack_has_still_to_use_is_kept(
    pictures: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
):
    from toolkit.pipeline import data as pipeline

    def ending(folder: Path) -> None:
        raise KeyboardInterrupt

    pack(tmp_path / "work", pictures)
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder")
    forced = (*words, "--data-dir", pictures, "--force", "--jpeg-quality", 50)
    bad = pictures / "train" / "pear" / "zzz.png"
    bad.write_text("words")
    refused(kdtool(*forced), 1, "1 of 55 files")
    parts = parts_in(tmp_path / "work")
    assert made(*words)["unchanged"] and parts_in(tmp_path / "work") == parts > 2
    bad.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "whole_folder", ending)
        assert kdtool(*forced).exit_code == 130
    assert made(*words)["unchanged"] and parts_in(tmp_path / "work") == 2  # train and test, joined


@pytest.mark.parametrize("other", [("--jpeg-quality", 50), ("--max-resolution", 40), ("--write-mode", "raw")])
def test_other_settings_begin_again(
    pictures: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, other: tuple[object, ...]
):
    with_bad_files(pictures)
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--data-dir", pictures)
    refused(kdtool(*words), 1, "8 of 62")
    written = counted_parts(monkeypatch)
    refused(kdtool(*words, *other), 1, "8 of 62")
    assert sum(written) == 62
    assert parts_in(tmp_path / "work") == len(written)  # those of before are gone
    made(*words, *other, "--on-bad", "skip", "--size", 64)  # neither changes a stored pixel
    assert sum(written) == 62
    pack(tmp_path / "fresh", pictures, *other, "--on-bad", "skip")
    assert files(tmp_path / "work") == files(tmp_path / "fresh")


# shown


def test_a_student_is_shown_the_teachers_pixels_bit_for_bit_on_jpeg(pictures: Path, tmp_path: Path):
    pack(tmp_path / "work", pictures, "--size", 24)
    data = open_packed(tmp_path / "work" / "data" / "imagefolder")
    train, plan = data.split("train"), data.record.plan
    assert not train.raw and len(np.unique(train.sizes_n2, axis=0)) > 20
    rows = np.sort(np.random.default_rng(0).permutation(len(train))[:31])
    cut(train, rows, tmp_path / "part.beton")
    part = open_beton(tmp_path / "part.beton")
    zero, one = [0.0] * 3, [1 / 255] * 3  # so that what the network is fed are the pixels themselves
    student = StreamSource(part, np.arange(31), plan, zero, one, batch_size=8, seed=5, dtype=torch.float64)
    teacher = ViewReader(train, plan, 16, CPU, workers=1)
    for epoch in range(3):
        view_n, _ = student.showing.views(epoch)
        seen_mhwc = torch.cat(list(teacher.views(rows, view_n))).numpy()
        shown = 0
        for batch in student.batches(epoch):
            at = np.searchsorted(rows, batch.rows_b.numpy())
            pixels = np.rint(batch.images_bchw.permute(0, 2, 3, 1).numpy()).astype(np.uint8)
            assert np.array_equal(pixels, seen_mhwc[at])
            assert np.array_equal(batch.labels_b.numpy(), train.labels_n[rows[at]])
            shown += len(at)
        assert shown == 31


@pytest.mark.long
def test_every_command_works_on_an_image_folder(pictures: Path, tmp_path: Path):
    work, on = tmp_path / "work", ("-w", tmp_path / "work", "--dataset", "imagefolder")
    pack(work, pictures, "--size", 24)
    fast = ("--device", "cpu", "--precision", "float32")
    made("train-teacher", *on, "--arch", "resnet8", "--epochs", 2, "--batch-size", 16, "--name", "mine", *fast)
    made("cache-teacher", *on, "--teacher", "mine", "--views", 2, *fast)
    made("verify-cache", *on, "--teacher", "mine", "--samples", 20, *fast)
    made("score", *on, "--teacher", "mine")
    made("build-subset", *on, "--teacher", "mine", "--frac", 0.5, "--method", "herding", "--name", "half")
    run = made("distill", "-w", work, "--subset", "half", "--epochs", 2, "--batch-size", 7, *fast)
    assert (run["source"], run["teacher_forward_passes"]) == ("stream", 0)
    made("evaluate", run["path"], "-w", work, *fast)
    assert made("noise", *on, "--rate", 0.1)["flipped"] == 4
    made("views", *on, "--montage", tmp_path / "views.png")
    made("show", *on, "--teacher", "mine")
    made("inspect", work / "data" / "imagefolder", "-w", work)
