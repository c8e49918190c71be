"""What is to be packed of an image folder: which files, in which parts, by which names.

Where a part begins is a matter of names alone: a file that is added or taken away moves no boundary but its own, and
what was packed of others stands. A part is called by its fingerprint, of the files' names, labels, sizes and times and
of what decides their pixels.

Shapes: n files of a split, m chosen of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from toolkit.core.folder_settings import FolderSettings
from toolkit.core.hashing import fingerprint
from toolkit.data.folders import Listing, fingerprint_of, list_folder
from toolkit.data.pack import balanced_head, refuse_limit
from toolkit.formats.dataset import SPLITS

PART_ROWS = 4096  # on average

_READER = 2  # another number where the same files give other pixels, or others are refused

Bad = list[tuple[int, str]]  # row of the listing, and why it can't be packed


@dataclass(frozen=True)
class FolderSplit:
    """The rows of a listing that are packed: `names` are the parts' fingerprints, `bounds` where they begin and end.

    16 bytes a file are held: `rows_m` is int32, and the listing is one without sizes and times.
    """

    listing: Listing
    rows_m: np.ndarray
    bounds: list[int]
    names: list[str]
    most: int

    @property
    def name(self) -> str:
        return fingerprint(*self.names)

    def parts(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, rows of the listing) of each."""
        ends = pairwise(self.bounds)
        return ((name, self.rows_m[first:end]) for name, (first, end) in zip(self.names, ends, strict=True))

    def pixels(self, row: int) -> np.ndarray:
        """Of an image: (h, w, 3) uint8. Raises BadPicture where there is none that can be packed."""
        from toolkit.data.pictures import BadPicture, read_picture
        from toolkit.formats.beton_writer import stored_size

        if not self.listing.looks_like_an_image(row):
            raise BadPicture("not an image, by its name")
        pixels = read_picture(self.listing.path(row))
        if min(stored_size(pixels.shape[:2], self.most)) < 2:
            raise BadPicture(f"of {pixels.shape[1]} × {pixels.shape[0]} pixels: scaling leaves no two a side")
        return pixels

    def still_bad(self, rows: list[int]) -> Bad | None:
        """Why each of these files can't be packed, or None where one can."""
        from toolkit.data.pictures import BadPicture

        bad = []
        for row in rows:
            try:
                self.pixels(row)
            except BadPicture as error:
                bad.append((row, str(error)))
            else:
                return None
        return bad


@dataclass(frozen=True)
class FolderPlan:
    """What is to be packed of an image folder; `listing` is its files' fingerprint."""

    dataset: str
    limit: int | None
    settings: FolderSettings
    listing: str
    splits: dict[str, FolderSplit]


def plan_folder(dataset: str, data_dir: Path, limit: int | None, settings: FolderSettings) -> FolderPlan:
    """Looks at names, sizes and times, and writes nothing.

    Raises FailureError for a folder of another shape, UsageError for a limit below the number of classes.
    """
    listings = list_folder(data_dir, dataset)
    refuse_limit(limit, len(listings["train"].class_names))
    listing = fingerprint_of(listings)
    splits = {split: _split(listings.pop(split), split, limit, settings) for split in SPLITS}
    return FolderPlan(dataset, limit, settings, listing, splits)


def listing_fingerprint(data_dir: Path, dataset: str) -> str:
    """What the record would have as `listing`, packed now. Raises FailureError for a folder of another shape."""
    return fingerprint_of(list_folder(data_dir, dataset))


def _split(listing: Listing, split: str, limit: int | None, settings: FolderSettings) -> FolderSplit:
    rows_m = np.arange(len(listing), dtype=np.int32)
    if limit is not None:
        rows_m = balanced_head(listing.labels_n, limit).astype(np.int32)
    salts = [zlib.crc32(name.encode()) for name in listing.class_names]  # files are often called the same in each class
    hashes = (zlib.crc32(listing.name(int(row)), salts[listing.labels_n[row]]) for row in rows_m)
    bounds = sorted({0, *(at for at, number in enumerate(hashes) if number % PART_ROWS == 0), len(rows_m)})
    decides = (_READER, split, settings.max_resolution, settings.write_mode, settings.stored_quality)
    names = [listing.identity(rows_m[first:end], *decides) for first, end in pairwise(bounds)]
    return FolderSplit(listing.without_states(), rows_m, bounds, names, settings.max_resolution)
