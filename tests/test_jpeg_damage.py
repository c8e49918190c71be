"""JPEG files whose damage Pillow passes over are refused, by what a strict decoder says of them; files that are only
odd are read, and as Pillow reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.conftest import kdtool, made, refused
from toolkit.data.jpeg_damage import damage_of
from toolkit.data.pictures import BadPicture, read_picture

SOI, SOS, EOI = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
JFIF = 20  # where its segment ends


def photo(name: str = "china.jpg", width: int = 300, height: int = 200) -> Image.Image:
    return Image.fromarray(load_sample_image(name)).resize((width, height))


def jpeg(image: Image.Image | None = None, **how: object) -> bytes:
    file = io.BytesIO()
    (image or photo()).save(file, "JPEG", **how)
    return file.getvalue()


def put_in(extra: bytes, at: int = 2, content: bytes | None = None) -> bytes:
    content = jpeg() if content is None else content
    at %= len(content)
    return content[:at] + extra + content[at:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def overwritten(at: float, by: bytes, **how: object) -> bytes:
    """With other bytes at a share of its coded pixels."""
    content = bytearray(jpeg(**how))
    first = content.index(SOS) + 20
    first += int(at * (len(content) - first))
    content[first : first + len(by)] = by
    return bytes(content)


def as_pillow_reads(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def with_other_scan_parameters() -> bytes:
    content = jpeg()
    end = content.index(SOS) + 14
    return content[: end - 3] + bytes(3) + content[end:]


def cmyk(transform: int) -> bytes:
    content = bytearray(jpeg(photo().convert("CMYK")))
    content[content.index(b"Adobe") + 11] = transform
    return bytes(content)


def of_several() -> bytes:
    file = io.BytesIO()
    photo().save(file, "MPO", save_all=True, append_images=[photo("flower.jpg")])
    return file.getvalue()


ODD: dict[str, Callable[[], bytes]] = {
    "grayscale": lambda: jpeg(photo().convert("L")),
    "progressive": lambda: jpeg(progressive=True),
    "progressive and gray": lambda: jpeg(photo().convert("L"), progressive=True),
    "RGB, not YCbCr": lambda: jpeg(keep_rgb=True),
    "CMYK": lambda: cmyk(0),
    "YCCK": lambda: cmyk(2),
    "restart markers": lambda: jpeg(restart_marker_blocks=1),
    "restart markers, progressive": lambda: jpeg(progressive=True, restart_marker_rows=1),
    "16-bit tables": lambda: jpeg(quality=1),
    "EXIF with a thumbnail": lambda: put_in(segment(0xE1, b"Exif\0\0" + jpeg(photo(width=40, height=30)))),
    "markers in a comment": lambda: put_in(segment(0xFE, EOI + SOS + EOI)),
    "no JFIF segment": lambda: SOI + jpeg()[JFIF:],
    "JFIF of another version": lambda: jpeg().replace(b"JFIF\0\1\1", b"JFIF\0\x09\x09"),
    "Adobe's with an unknown transform": lambda: put_in(segment(0xEE, b"Adobe\0\x64\0\0\0\0\x63")),
    "a colour profile of nonsense": lambda: put_in(segment(0xE2, b"ICC_PROFILE\0\x05\x02nonsense")),
    "a part of a colour profile twice": lambda: put_in(2 * segment(0xE2, b"ICC_PROFILE\0\1\1a part")),
    "bytes between segments": lambda: put_in(b"\0\x12\x13", JFIF),
    "a stuffed byte between segments": lambda: put_in(b"\xff\0\x01", JFIF),
    "fill bytes before a marker": lambda: put_in(b"\xff\xff\xff", JFIF),
    "other parameters of a scan": with_other_scan_parameters,
    "padded with zeros": lambda: put_in(bytes(500), -2),
    "padded with fill bytes": lambda: put_in(bytes(9) + b"\xff\xff", -2),
    "one byte before the end": lambda: put_in(b"\x7f", -2),
    "bytes after the end": lambda: jpeg() + b"something else",
    "an image after the end": lambda: put_in(bytes(9), -2) + jpeg(photo("flower.jpg")),
    "several images": of_several,
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_and_not_damaged_is_read_as_pillow_reads_it(tmp_path: Path, kind: str):
    (tmp_path / "a.jpg").write_bytes(ODD[kind]())
    assert np.array_equal(read_picture(tmp_path / "a.jpg"), as_pillow_reads(ODD[kind]()))


def test_nothing_that_pillow_writes_is_damaged():
    sizes = [(2, 2), (7, 9), (1, 40), (33, 250), (321, 240)]
    ways = [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}]
    for size, quality, sampling, way in product(sizes, (1, 75, 100), (0, 1, 2), ways):
        assert damage_of(jpeg(photo("china.jpg", *size), quality=quality, subsampling=sampling, **way)) is None


def test_any_one_byte_before_the_end_is_a_camera_filling_up():
    told = 0
    for width in range(40, 90):
        content = put_in(b"\x7f", -2, jpeg(photo(width=width, height=30), optimize=True))
        assert damage_of(content) is None
        told += "extraneous" in strictly(content)
    assert told  # of some the decoder complains


def strictly(content: bytes) -> str:
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(content)
    except ValueError as error:
        return str(error)
    return ""


RANDOM = np.random.default_rng(0).integers(0, 255, 40, dtype=np.uint8).tobytes()  # without 255, which begins a marker

DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "other bytes": (lambda: overwritten(0.3, RANDOM), "a damaged JPEG"),
    "zeros": (lambda: overwritten(0.7, bytes(512)), "a damaged JPEG"),
    "other bytes, progressive": (lambda: overwritten(0.3, RANDOM, progressive=True), "a damaged JPEG"),
    "other bytes, CMYK": (lambda: overwritten(0.7, RANDOM, image=photo().convert("CMYK")), "a damaged JPEG"),
    "other bytes, gray": (lambda: overwritten(0.4, RANDOM, image=photo().convert("L")), "a damaged JPEG"),
    "a restart marker": (lambda: overwritten(0.5, b"\xff\xd5", restart_marker_rows=1), "a damaged JPEG"),
    "the end too early": (lambda: overwritten(0.5, EOI), "a damaged JPEG|could not be read"),
    "coded pixels are left": (lambda: put_in(bytes(range(1, 30)), -2), "27 extraneous bytes before marker 0xd9"),
    "less than its size": (lambda: jpeg().replace(b"\0\xc8\x01\x2c", b"\0\xfa\x01\x2c"), "premature end of data"),
    "behind what is only odd": (
        lambda: overwritten(0.3, RANDOM).replace(b"JFIF\0\1\1", b"JFIF\0\x09\x09"),
        "a damaged JPEG",
    ),
    "no end": (lambda: jpeg()[:-2], "truncated"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_that_pillow_passes_over_is_told(tmp_path: Path, kind: str):
    content, words = DAMAGED[kind]
    (tmp_path / "a.jpg").write_bytes(content())
    with pytest.raises(BadPicture, match=words):
        read_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize("progressive", [False, True])
def test_of_forty_wrong_bytes_most_are_told(tmp_path: Path, progressive: bool):
    """Not all: after some a decoder falls into step again, and no decoder can know."""
    found = 0
    for at in np.linspace(0.02, 0.9, 50):
        (tmp_path / "a.jpg").write_bytes(overwritten(at, RANDOM, progressive=progressive))
        try:
            read_picture(tmp_path / "a.jpg")
        except BadPicture:
            found += 1
    assert found >= 40


def test_damaged_files_are_listed_by_path_and_skipped_if_asked(tmp_path: Path):
    folder = tmp_path / "pictures"
    for split, name, count in product(("train", "val"), ("china", "flower"), range(3)):
        path = folder / split / name / f"{count}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo(f"{name}.jpg", 100 + count, 80)))
    damaged = folder / "train" / "flower" / "1.jpg"
    damaged.write_bytes(DAMAGED["other bytes"][0]())
    words = ("pack", "-w", tmp_path / "work", "--dataset", "imagefolder", "--data-dir", folder)
    refused(kdtool(*words), 1, f"1 of 12 files can't be packed: {damaged}: a damaged JPEG (", "--on-bad skip")
    packed = made(*words, "--on-bad", "skip")
    assert (packed["train_rows"], packed["test_rows"]) == (5, 6)
    (listed,) = json.loads((Path(packed["path"]) / "bad-files.json").read_text())["train"]
    assert listed[0] == "train/flower/1.jpg" and listed[1].startswith("a damaged JPEG (")
