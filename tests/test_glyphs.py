"""Glyphs: the kanji are JIS's, they are drawn the same way each time, and the test family is never trained on.

What needs Debian's fonts runs where they are installed: 100 classes, 3,186 training images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from toolkit.core.errors import FailureError, UsageError
from toolkit.data.glyphs import FONTS, HELD_OUT, TRAINING, framed, kanji, load_glyphs, rendered
from toolkit.data.sources import source_named
from toolkit.formats.dataset import SPLITS

CLASSES = 100
FAINT = 32  # of 255: the thinnest strokes cover a quarter of a pixel, rounding leaks less into the margin
FILES = {typeface.file for typeface in TRAINING + HELD_OUT}
INSTALLED = {path.name for path in FONTS.rglob("*")} >= FILES
needs_fonts = pytest.mark.skipif(not INSTALLED, reason="Debian's fonts for glyphs are not all installed")


def test_the_kanji_are_those_of_jis_level_1_in_code_order():
    level_1 = kanji(2965)
    assert len(set(level_1)) == 2965
    assert (level_1[0], level_1[-1]) == ("亜", "腕")
    codes = [character.encode("iso2022_jp") for character in level_1]
    assert codes == sorted(codes)
    assert kanji(CLASSES) == level_1[:CLASSES]


@pytest.mark.parametrize("classes", [0, 2966])
def test_more_classes_than_there_are_kanji_is_refused(classes: int):
    with pytest.raises(UsageError, match=f"1 to 2965 classes, got {classes}"):
        kanji(classes)


@pytest.mark.parametrize("classes", [100, 1000])
def test_a_class_is_named_by_its_character(classes: int):
    source = source_named(f"glyphs-{classes}")
    assert source.class_names == kanji(classes)
    assert (source.family, source.padding) == ("pad-crop", 2)  # a mirrored kanji is no kanji


@pytest.mark.parametrize("split", SPLITS)
def test_missing_fonts_are_one_line_that_says_what_to_install(tmp_path: Path, split: str):
    absent = TRAINING[0]
    for file in FILES - {absent.file}:
        (tmp_path / file).touch()
    with pytest.raises(FailureError) as one:
        load_glyphs(3, 24, split, tmp_path)
    assert str(one.value).endswith(f"Run: apt-get install {absent.package}")
    assert f"{tmp_path}: holds {len(FILES) - 1} of the {len(FILES)}" in str(one.value)
    with pytest.raises(FailureError) as none:
        load_glyphs(3, 24, split, tmp_path / "nowhere")
    assert "\n" not in str(none.value)
    assert set(str(none.value).split()) >= {typeface.package for typeface in TRAINING + HELD_OUT}


def test_a_damaged_font_is_named_with_its_package(tmp_path: Path):
    for file in FILES:
        (tmp_path / file).write_bytes(b"no font")
    with pytest.raises(FailureError, match=f"{TRAINING[0].file}: .*--reinstall {TRAINING[0].package}"):
        load_glyphs(3, 24, "train", tmp_path)


def built_in(size: int) -> ImageFont.FreeTypeFont:
    face = ImageFont.load_default(size)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


@pytest.mark.parametrize("size", [24, 48])
def test_a_glyph_is_centred_and_fills_the_frame_but_a_margin(size: int):
    for image in rendered(built_in(4 * size), tuple("OIl-WQ8"), size):
        assert image is not None
        assert image.shape == (size, size)
        assert image.dtype == np.uint8
        inked = [np.flatnonzero(image.max(axis) > FAINT) for axis in (1, 0)]
        (above, left), (below, right) = ([at[0] for at in inked], [size - 1 - at[-1] for at in inked])
        assert max(abs(above - below), abs(left - right)) <= size // 24
        assert max(1, size // 24 - 1) <= min(above, below, left, right) <= size // 24


def test_a_glyph_is_drawn_the_same_each_time():
    first, again = (rendered(built_in(96), tuple("AB"), 24) for _ in range(2))
    np.testing.assert_array_equal(np.array(first), np.array(again))


def test_scaling_averages_areas():
    from PIL import Image

    half = Image.new("L", (88, 88))
    half.paste(200, (0, 0, 44, 88))
    image = framed(half, 24)
    assert image[12].tolist() == [0] + [200] * 11 + [0] * 12


def test_a_character_that_a_font_lacks_gives_no_image():
    present, missing, blank = rendered(built_in(96), ("A", "亜", " "), 24)
    assert present is not None
    assert missing is None
    assert blank is None


def test_no_family_and_no_file_is_in_both_splits():
    for field in ("family", "package", "file"):
        assert not {getattr(face, field) for face in TRAINING} & {getattr(face, field) for face in HELD_OUT}
    assert len(FILES) == len(TRAINING + HELD_OUT)


@pytest.fixture(scope="module")
def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {split: load_glyphs(CLASSES, 24, split) for split in SPLITS}


@needs_fonts
def test_every_class_has_images_in_both_splits_in_class_order(splits: dict[str, tuple[np.ndarray, np.ndarray]]):
    for split, least in (("train", 15), ("test", len(HELD_OUT))):
        images, labels = splits[split]
        assert images.shape == (len(labels), 24, 24)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        assert np.all(np.diff(labels) >= 0)
        assert np.bincount(labels, minlength=CLASSES).min() >= least


@needs_fonts
def test_no_image_is_blank_and_no_two_are_identical(splits: dict[str, tuple[np.ndarray, np.ndarray]]):
    images = np.concatenate([splits[split][0] for split in SPLITS])
    assert images.max(axis=(1, 2)).min() > FAINT
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


@needs_fonts
def test_a_class_has_the_same_images_whatever_the_number_of_classes(splits: dict[str, tuple[np.ndarray, np.ndarray]]):
    few, labels = load_glyphs(3, 24, "test")
    np.testing.assert_array_equal(few, splits["test"][0][: len(labels)])


@needs_fonts
def test_the_sources_statistics_are_those_of_its_training_images(splits: dict[str, tuple[np.ndarray, np.ndarray]]):
    source, values = source_named("glyphs-100"), splits["train"][0] / 255
    assert values.mean() == pytest.approx(source.mean[0], abs=0.001)
    assert values.std() == pytest.approx(source.std[0], abs=0.001)


@needs_fonts
def test_glyphs_are_drawn_at_any_size():
    images, labels = load_glyphs(3, 48, "test")
    assert images.shape == (3 * len(HELD_OUT), 48, 48)
    assert labels.tolist() == sorted(list(range(3)) * len(HELD_OUT))
