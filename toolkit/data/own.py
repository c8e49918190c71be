"""Data sets of one's own: module:function, called as function(split), returns a torch Dataset, or anything like one.

It has a length and gives (image, label): images as PIL's, as uint8 arrays (h, w) or (h, w, 3), or as uint8 tensors
(3, h, w); labels from 0 up. The same each time: leave random transforms out, as kdtool draws the views. The training
one may say more, in attributes, which Subset and ConcatDataset hide:

    classes      names of the classes         "class 0", "class 1", … up to the largest label
    mean, std    of 0 … 1 pixel values        those of the training split, exactly
    family       which views keep the meaning pad-crop: mirroring may change it
    padding      of pad-crops, in pixels      an eighth of the shorter side, 1 to 63
    size         of resized crops: the network's side, or (height, width)
    least_area   of resized crops, in percent 8, as torchvision's

Shapes: n rows, h and w height and width.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.imported import aside, imported, told
from toolkit.core.progress import Progress, silent
from toolkit.data.arrays import Arrays, Images, Source, as_rgb
from toolkit.data.spilled import Spilled

LEAST_AREA = 8
_MOST_PADDING = 63  # by default: a plan numbers its views in sixteen bits, mirrored ones too
_CROPS = ("resized-crop", "resized-crop-flip")
_FAMILIES = ("pad-crop", "pad-crop-flip", *_CROPS)
_READ_TWICE = 16  # rows, to find random transforms by
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # PIL's, of more than eight bits
_LEAVE_OUT = "leave out ToTensor() and Normalize(), as kdtool normalises"


def own_source(reference: str, progress: Progress = silent, spill: Path | None = None) -> Source:
    """The source that the function behind `reference` describes. A split is read once, into a file without a name in
    the folder `spill` (default: the system's for such files).

    Raises UsageError for a function that can't be found, and FailureError naming the first bad row of what it returns.
    """
    build = imported(reference, "--dataset")
    training = _split(build, reference, "train")
    of = f"--dataset {reference}"
    family = getattr(training, "family", "pad-crop")
    if family not in _FAMILIES:
        raise FailureError(f"{of}: its family must be one of {', '.join(_FAMILIES)}, found {family!r}")
    one_size = family not in _CROPS
    images, labels_n = _read(training, f"{of}, train split", one_size, None, progress, spill)
    names = _class_names(training, labels_n, of)
    mean, std = _moments(images)
    side = min(images[0].shape[:2])

    def load(split: str, data_dir: Path | None) -> Arrays:
        if data_dir is not None:
            raise UsageError(f"--data-dir is for data sets that kdtool knows by name: {reference} finds its own files")
        if split == "train":
            return images, labels_n
        size = images[0].shape[:2] if one_size else None
        found = _read(_split(build, reference, split), f"{of}, {split} split", one_size, size, progress, spill)
        _check_labels(found[1], len(names), f"{of}, {split} split")
        return found

    return Source(
        load,
        names,
        family,
        padding=_whole(training, "padding", min(max(1, round(side / 8)), _MOST_PADDING), 0, of) if one_size else 0,
        mean=_three(training, "mean", mean, of),
        std=_three(training, "std", std, of),
        size=None if one_size else _size(training, of),
        least_area=None if one_size else _whole(training, "least_area", LEAST_AREA, 1, of),
    )


def _split(build: Callable[[str], Any], reference: str, split: str) -> Any:
    """One split's Dataset, with a length above 0."""
    of = f"--dataset {reference}"
    try:
        with aside():
            dataset = build(split)
    except (Exception, SystemExit) as error:
        raise FailureError(f"{of}: called with '{split}' it fails: {told(error)}") from error
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise FailureError(
            f"{of}: of '{split}' returns {type(dataset).__name__}, expected a torch Dataset with a length and items"
        )
    try:
        length = len(dataset)
    except (Exception, SystemExit) as error:
        raise FailureError(f"{of}, {split} split: has no length: {told(error)}") from error
    if length < 1:
        raise FailureError(f"{of}, {split} split: has no rows. Give it some")
    return dataset


def _read(
    dataset: Any, of: str, one_size: bool, size: tuple[int, ...] | None, progress: Progress, spill: Path | None
) -> tuple[Images, np.ndarray]:
    """(images, labels (n,) int64), the images of one size where they must be: that of the training split or of row
    0."""
    rows = len(dataset)
    labels_n = np.empty(rows, dtype=np.int64)
    with progress(f"read {of.partition(', ')[2]}", rows, "img") as tick, Spilled(rows, spill) as images:
        for row in range(rows):
            image, labels_n[row] = _row(dataset, row, of)
            if row < _READ_TWICE:
                again, label = _row(dataset, row, of)
                if label != labels_n[row] or not np.array_equal(image, again):
                    raise FailureError(
                        f"{of}: row {row} is another when it is read again. Leave random transforms out: kdtool draws "
                        "the views"
                    )
            if one_size and row == 0:
                size = size or image.shape[:2]
            if one_size and image.shape[:2] != size:
                raise FailureError(
                    f"{of}: row {row} is of {image.shape[0]} × {image.shape[1]} pixels, not {size[0]} × {size[1]} as "  # type: ignore[index]
                    "those before it. Resize them, or give the Dataset family = 'resized-crop' and a size"
                )
            images.add(image)
            tick(1)
    return images, labels_n


def _row(dataset: Any, row: int, of: str) -> tuple[np.ndarray, int]:
    """The image (h, w, 3) uint8, and its label."""
    try:
        with aside():
            sample = dataset[row]
    except (Exception, SystemExit) as error:
        raise FailureError(f"{of}: row {row} could not be read: {told(error)}") from error
    return _pair(sample, f"{of}: row {row}")


def _pair(sample: Any, of: str) -> tuple[np.ndarray, int]:
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        length = f" of {len(sample)}" if isinstance(sample, (tuple, list)) else ""
        raise FailureError(f"{of}: expected (image, label), found {type(sample).__name__}{length}")
    return _pixels(sample[0], of), _label(sample[1], of)


def _pixels(image: Any, of: str) -> np.ndarray:
    """(h, w, 3) uint8."""
    pillow, torch = sys.modules.get("PIL.Image"), sys.modules.get("torch")  # whoever gives one has imported it
    if pillow is not None and isinstance(image, pillow.Image):
        if image.mode in _DEEP_MODES:
            raise FailureError(f"{of}: a PIL image of mode {image.mode}, expected eight bits a channel, as L or RGB")
        array = np.asarray(image.convert("RGB"))
    elif torch is not None and isinstance(image, torch.Tensor):
        array = image.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise FailureError(f"{of}: expected a PIL image, an array or a tensor, found {type(image).__name__}")
    if array.dtype != np.uint8:
        hint = f": {_LEAVE_OUT}" if array.dtype.kind == "f" else ""
        raise FailureError(f"{of}: expected pixels of uint8, 0 to 255, found {array.dtype}{hint}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        kind = "(3, h, w) of a tensor" if not isinstance(image, np.ndarray) else "(h, w) or (h, w, 3) of an array"
        raise FailureError(f"{of}: expected the shape {kind}, found {tuple(image.shape)}")
    return array if array.ndim == 3 else as_rgb(array[None])[0]


def _label(label: Any, of: str) -> int:
    value = label.item() if hasattr(label, "item") and getattr(label, "shape", None) in ((), (1,)) else label
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 62:
        raise FailureError(f"{of}: expected a whole number as label, found {type(label).__name__} {str(label)[:40]}")
    return value


def _check_labels(labels_n: np.ndarray, classes: int, of: str) -> None:
    bad = np.flatnonzero((labels_n < 0) | (labels_n >= classes))
    if len(bad):
        found = f"row {bad[0]} has label {labels_n[bad[0]]}"
        raise FailureError(f"{of}: {found}, expected 0 to {classes - 1}")


def _class_names(dataset: Any, labels_n: np.ndarray, of: str) -> tuple[str, ...]:
    """Raises FailureError for labels outside the classes, and for a class that no training row shows."""
    names, shown = getattr(dataset, "classes", None), np.unique(labels_n)
    if names is not None:
        listed = isinstance(names, Sequence) and not isinstance(names, str)
        if not listed or not names or not all(isinstance(one, str) for one in names):
            found = f"{type(names).__name__} {str(names)[:40]}"
            raise FailureError(f"{of}: its classes must be a list of names, found {found}")
    _check_labels(labels_n, int(shown[-1]) + 1 if names is None else len(names), f"{of}, train split")
    classes = int(shown[-1]) + 1 if names is None else len(names)
    if len(shown) < classes:
        missing = next(label for label in range(classes) if label >= len(shown) or shown[label] != label)
        raise FailureError(
            f"{of}, train split: {classes - len(shown)} of {classes} classes have no row; the first is {missing}. "
            "Labels must be 0, 1, 2, …, every one of them in the training split"
        )
    if classes < 2:
        raise FailureError(
            f"{of}, train split: all rows are of one class, so there is nothing to learn. Give it others"
        )
    return tuple(names or (f"class {number}" for number in range(classes)))


def _moments(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over 0 … 1, from counts of each value: exact, in any order. That of a
    channel which never varies is 1, as nothing is left of it to divide."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), 256):
        pixels_p3 = np.concatenate([images[at].reshape(-1, 3) for at in range(start, min(start + 256, len(images)))])
        for channel in range(3):
            counts[channel] += np.bincount(pixels_p3[:, channel], minlength=256)
    values, pixels = np.arange(256), int(counts[0].sum())
    mean, std = [], []
    for row in counts:
        total, squares = int((row * values).sum()), int((row * values**2).sum())
        mean.append(total / pixels / 255)
        std.append(math.sqrt(pixels * squares - total**2) / pixels / 255 or 1.0)
    return mean, std


def _three(dataset: Any, name: str, found: list[float], of: str) -> tuple[float, float, float]:
    given = getattr(dataset, name, None)
    if given is None:
        return found[0], found[1], found[2]
    try:
        values = np.broadcast_to(np.asarray(given, dtype=np.float64).ravel(), 3).tolist()
    except (TypeError, ValueError):
        raise FailureError(f"{of}: its {name} must be one number or three, found {str(given)[:60]}") from None
    if not all(0 <= value <= 1 for value in values) or (name == "std" and min(values) <= 0):
        least = "above 0" if name == "std" else "0"
        raise FailureError(f"{of}: its {name} must be of 0 … 1 pixel values, {least} to 1, found {str(given)[:60]}")
    return values[0], values[1], values[2]


def _whole(dataset: Any, name: str, default: int, least: int, of: str) -> int:
    value = getattr(dataset, name, default)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise FailureError(f"{of}: its {name} must be a whole number of at least {least}, found {str(value)[:40]}")
    return int(value)


def _size(dataset: Any, of: str) -> tuple[int, int]:
    given = getattr(dataset, "size", None)
    sides = [given, given] if isinstance(given, (int, np.integer)) else given
    try:
        height, width = (int(side) for side in sides)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise FailureError(
            f"{of}: resized crops need the Dataset's size: it must be the side of the network's images or "
            "(height, width), "
            f"found {str(given)[:40]}"
        )
    return height, width
