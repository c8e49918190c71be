"""Whether a JPEG's coded pixels are damaged: Pillow's decoder shows something for whatever it finds, and tells nobody.

simplejpeg does tell: libjpeg's first warning. Of these are damage:

    bad Huffman code, bad arithmetic code, premature end of data segment, premature end of JPEG file,
    found marker … instead of RST…, Inconsistent progression sequence, … extraneous bytes before marker …

and not those that say nothing of pixels: of JFIF's version, Adobe's transform, a colour profile, a scan's parameters,
or bytes between the segments of the header. Nor are extraneous bytes of one value, or one alone, before the end of the
image: cameras fill up with them, and two files of ImageNet have one (nothings/stb#422).

Not all damage leaves a trace. Codes have no check sum, and after wrong bits a decoder soon falls into step again: only
where it then ends before the data, or they before it, or a code or marker can't be is it told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import simplejpeg

_DAMAGE = re.compile(
    "bad (Huffman|arithmetic) code|premature end|found marker|inconsistent progression|extraneous bytes", re.IGNORECASE
)
_LEFT_BEFORE_END = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers that say how large the image is, and of what components
_SEQUENTIAL = (0xC0, 0xC1)
_SCAN = 0xDA
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_BESIDE = {*range(0xE0, 0xF0), 0xFE}  # segments of applications, and comments


def damage_of(jpeg: bytes) -> str | None:
    """What is wrong with the coded pixels of a JPEG that Pillow has decoded; None where nothing is seen to be, or it is
    of a kind that simplejpeg does not know."""
    header, components, coded = _split(jpeg)
    try:
        # an eighth of the size, and gray where that can be: all codes are read, but little else is done
        simplejpeg.decode_jpeg(
            header + coded,
            colorspace="CMYK" if components == 4 else "GRAY",
            fastdct=True,
            min_height=1,
            min_width=1,
        )
    except ValueError as error:
        words = str(error)
        if _DAMAGE.search(words) and not _padding(coded, words):
            return words.removeprefix("Corrupt JPEG data: ")
    return None


def _padding(coded: bytes, words: str) -> bool:
    """Whether what `words` tell of are bytes of one value, or a single one, left before the end of the image."""
    told = _LEFT_BEFORE_END.search(words)
    if told is None:
        return False
    left = coded[: coded.find(_END)].rstrip(b"\xff")  # of these any number may stand before a marker
    return len({*left[-int(told[1]) :]}) == 1


def _split(jpeg: bytes) -> tuple[bytes, int, bytes]:
    """(the header without all that may be odd and decides no code, its components, all after it)"""
    kept, components, sequential = [_START], 0, False
    for marker, segment, end in _segments(jpeg):
        if marker in _FRAMES:
            components, sequential = segment[9], marker in _SEQUENTIAL
        if marker == _SCAN:
            kept.append(segment[:-3] + b"\0\x3f\0" if sequential else segment)
            return b"".join(kept), components, jpeg[end:]
        if marker not in _BESIDE:
            kept.append(segment)
    return jpeg, components, b""


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, the segment with it, where it ends) of each up to the first scan's, and what lies between passed over as
    libjpeg does."""
    at = 2
    while (at := jpeg.find(b"\xff", at)) >= 0 and at + 4 <= len(jpeg):
        marker = jpeg[at + 1]
        if marker == 0xFF or marker == 0 or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        yield marker, jpeg[at:end], end
        at = end
