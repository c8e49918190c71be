"""Kanji drawn from Debian's fonts: real data with as many as 2,965 classes, made without a network.

A class is a kanji of JIS X 0208 level 1, in code order. It has one training image per typeface of TRAINING and one test
image per weight of HELD_OUT, a family that shares no drawing with them: accuracy is that on typefaces never seen.
A typeface that lacks a kanji leaves that image out.

Fonts are drawn from where they are installed and never redistributed: each stays under its own licence, which its
Debian package states. A package of another version may give other pixels, which the packed data's fingerprint shows.

Legend: n images, h = w = size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolkit.core.errors import FailureError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

FONTS = Path("/usr/share/fonts")
MARGIN = 1 / 24  # of the frame, on the nearest sides
OVERSAMPLING = 4  # pixels drawn per pixel kept, each way
NO_CHARACTER = "\U0010ffff"  # Unicode promises never to assign it, so every font answers with its 'missing' box


@dataclass(frozen=True)
class Typeface:
    """`file` is searched below the font folder; `index` is the face within a .ttc."""

    package: str
    file: str
    family: str
    index: int = 0


# One package of each drawing: Takao and Monapo are IPA's, MigMix and VL Gothic are M+, Komatuna is Konatu, LXGW WenKai
# is Klee, Droid Fallback is Micro Hei. None derives from Source Han, which Noto CJK is. Left out as hardly legible at
# 24 pixels: Rampart, Misaki, cursive brushes.
TRAINING = (
    Typeface("fonts-aoyagi-kouzan-t", "AoyagiKouzanT.ttf", "Aoyagi Kouzan"),
    Typeface("fonts-aoyagi-soseki", "aoyagi-soseki.ttf", "Aoyagi Soseki"),
    Typeface("fonts-arphic-ukai", "ukai.ttc", "AR PL UKai"),
    Typeface("fonts-arphic-uming", "uming.ttc", "AR PL UMing"),
    Typeface("fonts-dejima-mincho", "dejima-mincho-r227.ttf", "Dejima Mincho"),
    Typeface("fonts-dotgothic16", "DotGothic16-Regular.ttf", "DotGothic16"),
    Typeface("fonts-horai-umefont", "ume-tgo5.ttf", "Ume Gothic"),
    Typeface("fonts-horai-umefont", "ume-tmo3.ttf", "Ume Mincho"),
    Typeface("fonts-ipaexfont-gothic", "ipaexg.ttf", "IPAex Gothic"),
    Typeface("fonts-ipaexfont-mincho", "ipaexm.ttf", "IPAex Mincho"),
    Typeface("fonts-kiloji", "kiloji.ttf", "kiloji"),
    Typeface("fonts-klee", "KleeOne-Regular.ttf", "Klee One"),
    Typeface("fonts-konatu", "Konatu.ttf", "Konatu"),
    Typeface("fonts-kouzan-mouhitsu", "kouzan-mouhitsu-gyosho.ttf", "Kouzan Brush Gyosho"),
    Typeface("fonts-morisawa-bizud-gothic", "BIZUDGothic-Regular.ttf", "BIZ UDGothic"),
    Typeface("fonts-morisawa-bizud-mincho", "BIZUDMincho-Regular.ttf", "BIZ UDMincho"),
    Typeface("fonts-motoya-l-cedar", "MTLc3m.ttf", "Motoya L Cedar"),
    Typeface("fonts-motoya-l-maruberi", "MTLmr3m.ttf", "Motoya L Maruberi"),
    Typeface("fonts-mplus", "Mplus1-Thin.otf", "M PLUS 1"),
    Typeface("fonts-mplus", "Mplus1-Black.otf", "M PLUS 1"),
    Typeface("fonts-oradano-mincho-gsrr", "OradanoGSRR.ttf", "Oradano Mincho"),
    Typeface("fonts-reggae", "ReggaeOne-Regular.ttf", "Reggae One"),
    Typeface("fonts-rocknroll", "RocknRollOne-Regular.ttf", "RocknRoll One"),
    Typeface("fonts-sawarabi-gothic", "sawarabi-gothic-medium.ttf", "Sawarabi Gothic"),
    Typeface("fonts-sawarabi-mincho", "sawarabi-mincho-medium.ttf", "Sawarabi Mincho"),
    Typeface("fonts-seto", "setofont.ttf", "SetoFont"),
    Typeface("fonts-stick", "Stick-Regular.ttf", "Stick"),
    Typeface("fonts-train", "TrainOne-Regular.ttf", "Train One"),
    Typeface("fonts-wqy-microhei", "wqy-microhei.ttc", "WenQuanYi Micro Hei"),
    Typeface("fonts-wqy-zenhei", "wqy-zenhei.ttc", "WenQuanYi Zen Hei"),
    Typeface("fonts-yozvox-yozfont-standard-kana", "YOzRS_.ttf", "YOzFont"),
    Typeface("fonts-yusei-magic", "YuseiMagic-Regular.ttf", "Yusei Magic"),
)
# Index 0 is the Japanese face.
HELD_OUT = (
    Typeface("fonts-noto-cjk-extra", "NotoSansCJK-Thin.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk-extra", "NotoSansCJK-Light.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk-extra", "NotoSansCJK-DemiLight.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk", "NotoSansCJK-Regular.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk-extra", "NotoSansCJK-Medium.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk", "NotoSansCJK-Bold.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk-extra", "NotoSansCJK-Black.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk-extra", "NotoSerifCJK-ExtraLight.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk-extra", "NotoSerifCJK-Light.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk", "NotoSerifCJK-Regular.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk-extra", "NotoSerifCJK-Medium.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk-extra", "NotoSerifCJK-SemiBold.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk", "NotoSerifCJK-Bold.ttc", "Noto CJK"),
    Typeface("fonts-noto-cjk-extra", "NotoSerifCJK-Black.ttc", "Noto CJK"),
)
TYPEFACES = {"train": TRAINING, "test": HELD_OUT}


@cache
def _level_1() -> tuple[str, ...]:
    """JIS X 0208 level 1, rows 16 to 47 of 94 cells; the last row is not full."""
    codes = (bytes((0xA0 + row, 0xA0 + cell)) for row in range(16, 48) for cell in range(1, 95))
    return tuple("".join(code.decode("euc_jp", errors="ignore") for code in codes))


def kanji(classes: int) -> tuple[str, ...]:
    """The first `classes` kanji of JIS X 0208 level 1, in code order. Raises UsageError for more than there are."""
    level_1 = _level_1()
    if not 1 <= classes <= len(level_1):
        raise UsageError(f"--dataset: glyphs must have 1 to {len(level_1)} classes, got {classes}")
    return level_1[:classes]


def _drawn(face: FreeTypeFont, character: str) -> Image | None:
    """The character's ink, or None where the font's own program for it is broken or draws nothing."""
    from PIL import Image

    try:
        mask = face.getmask(character, mode="L")
    except OSError:  # FreeType's word for a glyph that can't be drawn
        return None
    if 0 in mask.size:
        return None
    image = Image.frombytes("L", mask.size, bytes(mask))
    box = image.getbbox()
    return image.crop(box) if box else None


def framed(ink: Image, size: int) -> np.ndarray:
    """(size, size) uint8: `ink` scaled by averaging areas until its longer side fills the frame but MARGIN, centred."""
    from PIL import Image

    side = round(max(ink.size) / (1 - 2 * MARGIN))
    canvas = Image.new("L", (side, side))
    canvas.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX))


def rendered(face: FreeTypeFont, characters: tuple[str, ...], size: int) -> list[np.ndarray | None]:
    """Each character white on black, (size, size) uint8, or None where `face` lacks it."""
    missing = _drawn(face, NO_CHARACTER)
    inks = (_drawn(face, character) for character in characters)
    return [None if ink is None or ink == missing else framed(ink, size) for ink in inks]


def _found(typefaces: tuple[Typeface, ...], folder: Path) -> dict[Typeface, Path]:
    """The file of each typeface. Raises FailureError naming the packages to install where any is missing."""
    installed = {path.name: path for path in sorted(folder.rglob("*"))}
    missing = sorted({typeface.package for typeface in typefaces if typeface.file not in installed})
    if missing:
        found = sum(typeface.file in installed for typeface in typefaces)
        raise FailureError(
            f"{folder}: holds {found} of the {len(typefaces)} typefaces that glyphs are drawn from. "
            f"Run: apt-get install {' '.join(missing)}"
        )
    return {typeface: installed[typeface.file] for typeface in typefaces}


def glyphs_in(fonts: Path | None = None) -> Path | None:
    """The folder that holds all typefaces, `fonts` or FONTS; None where one is missing."""
    folder = fonts or FONTS
    try:
        _found((*TRAINING, *HELD_OUT), folder)
    except FailureError:
        return None
    return folder


def _opened(typeface: Typeface, path: Path, pixels: int) -> FreeTypeFont:
    from PIL import ImageFont

    try:
        # An open file, as Pillow would look elsewhere for a damaged path's name; the layout, as Raqm isn't everywhere.
        with path.open("rb") as file:
            return ImageFont.truetype(file, pixels, typeface.index, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise FailureError(
            f"{path}: not a readable font ({error}). Run: apt-get install --reinstall {typeface.package}"
        ) from error


def load_glyphs(classes: int, size: int, split: str, fonts: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, size, size) uint8 and labels (n,) int64 of `train` or `test`, by class, then in the table's order.

    The same class has the same images whatever the number of classes. `fonts` is the folder to look in instead of
    FONTS. Raises UsageError for too many classes, FailureError naming the packages to install.
    """
    characters = kanji(classes)
    paths = _found(TRAINING + HELD_OUT, fonts or FONTS)  # both splits' at once: one message, one apt-get
    faces = (_opened(typeface, paths[typeface], OVERSAMPLING * size) for typeface in TYPEFACES[split])
    of_class = zip(*(rendered(face, characters, size) for face in faces), strict=True)
    kept = [(image, label) for label, images in enumerate(of_class) for image in images if image is not None]
    return np.stack([image for image, _ in kept]), np.array([label for _, label in kept], dtype=np.int64)
