"""Image folders: which files are of which class, in torchvision's order, held in few bytes a file.

    D/train/<class>/…   and   D/val/<class>/…   or   D/test/<class>/…

A class is a folder; its files may lie in folders of their own. Left out without a word: hidden files and folders,
Thumbs.db, desktop.ini, README and the like, and files of text (.txt, .md, .json, .csv, .xml, .html, .yaml). Every other
file is taken for an image, and a bad one if its name does not end like an image's.

Shapes: n files of a split, m chosen of them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.hashing import fingerprint

IMAGENET, IMAGENET_CLASSES = "imagenet", 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as every network pretrained on it expects

_ENDINGS = (
    *(b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".bmp", b".dib", b".gif", b".tif", b".tiff"),
    *(b".ppm", b".pgm", b".pbm", b".pnm", b".jp2"),
)
_TEXT = (b".txt", b".md", b".rst", b".json", b".csv", b".tsv", b".xml", b".html", b".yaml", b".yml")
_BESIDE = re.compile(rb"(thumbs\.db|desktop\.ini|(readme|license|licence|copying|notice)(\..*)?)")


@dataclass(frozen=True)
class Listing:
    """The files of one split, class after class. `names` holds each one's path within its class's folder, one after
    another, in a file that is mapped; `sizes_n` are in bytes; `times_n`, in ns, are when a file's content changed plus
    when anything about it did, modulo 2⁶³: one put back with its old time is another. Both are −1 of what is not there.

    28 bytes a file are held, however long the names; 12 once `without_states`.
    """

    folder: Path
    class_names: tuple[str, ...]
    names: mmap.mmap
    ends_n: np.ndarray
    labels_n: np.ndarray
    sizes_n: np.ndarray
    times_n: np.ndarray

    def __len__(self) -> int:
        return len(self.ends_n)

    def name(self, row: int) -> bytes:
        return self.names[int(self.ends_n[row - 1]) if row else 0 : int(self.ends_n[row])]

    def within(self, row: int) -> Path:
        """Its path below the folder that holds the splits."""
        return Path(self.folder.name, self.class_names[self.labels_n[row]], os.fsdecode(self.name(row)))

    def path(self, row: int) -> Path:
        return self.folder.parent / self.within(row)

    def without_states(self) -> Listing:
        """Without sizes and times, which only `identity` and `fingerprint_of` ask for."""
        none = np.empty(0, dtype=np.int64)
        return replace(self, sizes_n=none, times_n=none)

    def looks_like_an_image(self, row: int) -> bool:
        return _is_image(self.name(row))

    def identity(self, rows_m: np.ndarray, *settings: object) -> str:
        """16 hexadecimal digits of SHA-256 over these files' labels, classes, names, sizes and times, and settings."""
        labels_m = self.labels_n[rows_m]
        classes = [f"{label}:{self.class_names[label]}" for label in np.unique(labels_m)]
        columns = (labels_m.astype("<i8"), self.sizes_n[rows_m], self.times_n[rows_m])
        names = b"\0".join(self.name(row) for row in rows_m)
        return fingerprint(repr((*settings, classes)), names, *(column.tobytes() for column in columns))


def fingerprint_of(listings: dict[str, Listing]) -> str:
    """16 hexadecimal digits of SHA-256 over classes, names and sizes of all splits: the same wherever they lie."""
    digest = hashlib.sha256()
    for split, listing in listings.items():
        digest.update(repr((split, listing.class_names, len(listing))).encode())
        digest.update(listing.names)
        for column_n in (listing.ends_n, listing.labels_n, listing.sizes_n):
            digest.update(column_n.data)
    return digest.hexdigest()[:16]


def list_folder(data_dir: Path, dataset: str) -> dict[str, Listing]:
    """The train and test split of an image folder. Names lie in the temporary folder (TMPDIR), in files without a name.

    Raises FailureError for a folder of another shape: a split that is missing or there twice, images beside the class
    folders, classes that differ or have no image, the same folder in two places; and for what can't be listed.
    """
    folders = {"train": data_dir / "train", "test": _test_folder(data_dir)}
    seen: dict[bytes, bytes] = {}  # the real path of each folder, and where it was met
    listings = {split: _list_split(folder, seen) for split, folder in folders.items()}
    train, test = (set(listing.class_names) for listing in listings.values())
    for some, others, has, lacks in ((train, test, "train", "test"), (test, train, "test", "train")):
        if some - others:
            first = sorted(some - others)
            raise FailureError(
                f"{folders[has]}: {len(first):,} of its {len(some):,} classes are not in {folders[lacks].name}/, such "
                f"as {', '.join(first[:3])}. Both must have the same class folders"
            )
    if len(train) < 2:
        raise FailureError(
            f"{folders['train']}: all images are of one class, so there is nothing to learn. Put a folder "
            "for each class there"
        )
    if dataset == IMAGENET and len(train) != IMAGENET_CLASSES:
        raise FailureError(
            f"{folders['train']}: {len(train):,} class folders, and ImageNet has {IMAGENET_CLASSES:,}. For another "
            f"data set run: kdtool pack --dataset imagefolder --data-dir {data_dir}"
        )
    return listings


def _test_folder(data_dir: Path) -> Path:
    try:
        if not data_dir.is_dir():
            what = "not a folder" if data_dir.exists() else "not found"
            raise FailureError(f"--data-dir {data_dir}: {what}. Name the folder that holds train/ and val/ or test/")
        here = _folders_in(data_dir)
        found = [name for name in ("val", "test") if name in here]
        if len(found) == 2 and not _folders_in(data_dir / "test"):  # ImageNet's has no labels
            found.pop()
    except OSError as error:
        _refuse(error)
    if "train" not in here or not found:
        holds = f"holds {', '.join(here[:3])}{' …' if len(here) > 3 else ''}" if here else "holds no folder"
        raise FailureError(
            f"{data_dir}: expected train/ and val/ (or test/) in it, each with a folder for every class; it {holds}"
        )
    if len(found) == 2:
        raise FailureError(f"{data_dir}: holds both val/ and test/, and kdtool tests on one. Move the other away")
    return data_dir / found[0]


def _folders_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_split(folder: Path, seen: dict[bytes, bytes]) -> Listing:
    ends, sizes, times, labels = array("q"), array("q"), array("q"), array("i")
    class_names, end = _class_names(folder), 0
    with _names_file() as names:
        for label, class_name in enumerate(class_names):
            images = 0
            for name, size, time in _files(os.fsencode(folder / class_name), seen):
                names.write(name)
                end += len(name)
                images += _is_image(name)
                for column, value in ((ends, end), (sizes, size), (times, time), (labels, label)):
                    column.append(value)
            if not images:
                raise FailureError(f"{folder / class_name}: a class without images. Put some there, or delete it")
        columns = [np.frombuffer(column, dtype=column.typecode) for column in (ends, labels, sizes, times)]
        return Listing(folder, class_names, _mapped(names), *columns)


@contextmanager
def _names_file() -> Iterator[IO[bytes]]:
    try:
        with tempfile.TemporaryFile() as names:
            yield names
    except OSError as error:  # of this file: the folder's own are refused where they are met
        raise FailureError(
            f"{tempfile.gettempdir()}: the files' names could not be kept in a temporary file ({error.strerror}). "
            "Free some space there, or set "
            "TMPDIR to another folder"
        ) from error


def _mapped(file: IO[bytes]) -> mmap.mmap:
    file.flush()
    return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:  # of is_dir too: a link to itself
        _refuse(error)
    loose = sorted(name for name, is_folder in found if not is_folder and _is_image(os.fsencode(name)))
    if loose:
        raise FailureError(
            f"{folder}: {len(loose):,} images lie beside the class folders, such as {loose[0]}. Put each into the "
            "folder of its class"
        )
    names = sorted(name for name, is_folder in found if is_folder)
    if not names:
        raise FailureError(
            f"{folder}: holds no class folder. Put the images of each class into a folder of its own there"
        )
    for name in names:
        if not name.isprintable():  # what is no UTF-8 is not, either
            raise FailureError(f"{folder}: a class folder's name is not printable: {name!r}. Rename it")
    return tuple(names)


def _files(folder: bytes, seen: dict[bytes, bytes]) -> Iterator[tuple[bytes, int, int]]:
    """(path within the folder, bytes, times) of all but what is left out, in torchvision's order. `seen` are all
    folders that were listed, and is told of these: one that is met again, by a link, would leak from split to split."""
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            first = os.fsdecode(seen[real])
            raise FailureError(f"{os.fsdecode(place)} and {first} are one folder, by a link. Take the link away")
        seen[real] = place
        folders[:] = [name for name in folders if not name.startswith(b".")]
        found.append((place, names))
    for place, names in sorted(found):
        for name in sorted(names):
            if not _left_out(name):
                path = os.path.join(place, name)  # noqa: PTH118 - of bytes
                yield (path[len(folder) + 1 :], *_size_and_time(path))


def _refuse(error: OSError) -> NoReturn:
    raise FailureError(
        f"{os.fsdecode(error.filename)}: can't be listed ({error.strerror}). Mend its permissions, or take it away"
    ) from error


def _size_and_time(path: bytes) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - of bytes
    except OSError:  # a link to nowhere, say: told when the image is read
        return -1, -1
    times = (found.st_mtime_ns + found.st_ctime_ns) % (1 << 63)
    return (found.st_size, times) if stat.S_ISREG(found.st_mode) else (-1, -1)


def _left_out(name: bytes) -> bool:
    name = name.lower()
    return name.startswith(b".") or name.endswith(_TEXT) or _BESIDE.fullmatch(name) is not None


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(_ENDINGS)
