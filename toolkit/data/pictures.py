"""One image file, decoded whole: truncation is found here, as FFCV would show what is missing as grey.

As torchvision reads it, `Image.open(path).convert("RGB")`: grayscale three times over, palettes looked up, CMYK by
Pillow's formula, alpha dropped and not blended, the first picture of several. But two things: what EXIF says of how
the camera was held is applied, and of 16 bits a channel the upper 8 are kept, which `convert` would clip to white. Of
16 bits that hold values of 12, as microscopes and X-ray machines write them, that is nearly black: no file says so.

What a JPEG's decoder passes over in silence is damage too, as far as there is a trace of it: jpeg_damage.py. PNG has
check sums; of WebP, GIF, BMP, TIFF and JPEG 2000 wrong bytes in the middle can't always be seen.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from toolkit.data.jpeg_damage import damage_of

# All others are left alone: Pillow would hand an .eps to a program of its own
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")
_JPEG = ("JPEG", "MPO")  # the second is what Pillow calls a JPEG with others behind it
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LONGEST = 160  # characters of Pillow's words

Image.init()  # all readers once, and not in every worker of every part


class BadPicture(Exception):
    """A file that no image can be read from; says why, in part of a line."""


def read_picture(path: Path) -> np.ndarray:
    """The pixels of an image file: (h, w, 3) uint8, at least 2 × 2. Raises BadPicture."""
    try:
        if not path.is_file():
            raise BadPicture("not a file" if path.exists() else "not found, or a link to nowhere")
        if path.stat().st_size == 0:
            raise BadPicture("an empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            pixels = _decoded(path)
    except (BadPicture, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadPicture(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise BadPicture("not an image, or one whose beginning is damaged") from error
    except Exception as error:  # Pillow's readers raise almost anything over damaged files
        words = " ".join(str(getattr(error, "strerror", None) or error).split())[:_LONGEST]
        raise BadPicture(f"could not be read ({words or type(error).__name__})") from error
    if min(pixels.shape[:2]) < 2:
        raise BadPicture(f"of {pixels.shape[1]} × {pixels.shape[0]} pixels, and it takes 2 a side")
    return pixels


def _decoded(path: Path) -> np.ndarray:
    with Image.open(path, formats=_FORMATS) as image:
        image.load()
        damage = damage_of(path.read_bytes()) if image.format in _JPEG else None
        if damage is not None:
            raise BadPicture(f"a damaged JPEG ({damage})")
        upright = _upright(image)
        if upright.mode.startswith("I"):
            return _of_sixteen_bits(np.asarray(upright))
        if upright.mode == "F":
            raise BadPicture("pixels of floating point, which say nothing of their range")
        return np.asarray(upright.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """The image as EXIF says that it was held. By our own table, as Pillow's function writes all of EXIF anew, which
    fails on what cameras leave there."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, EOFError, struct.error):
        turn = None  # EXIF that can't be read turns nothing, here as in every viewer
    return image if turn is None else image.transpose(turn)


def _of_sixteen_bits(pixels_hw: np.ndarray) -> np.ndarray:
    if pixels_hw.min() < 0 or pixels_hw.max() > 0xFFFF:
        raise BadPicture("pixels of more than 16 bits")
    return np.repeat((pixels_hw >> 8).astype(np.uint8)[..., None], 3, axis=2)
