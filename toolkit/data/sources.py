"""Data sets by name: where their images are found, and which views keep their meaning.

Each source gives (images (n, h, w, 3) uint8, labels (n,) int64) per split; grayscale images become RGB. No mirrored
views where they change the meaning (a mirrored 2 is no digit), and padding in proportion to the image.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.core.imported import is_reference
from toolkit.core.places import place_in_class
from toolkit.core.progress import Progress, silent
from toolkit.data.arrays import Arrays, Source, as_rgb
from toolkit.data.glyphs import glyphs_in, kanji, load_glyphs

LARGE_LEAST_AREA = 35  # percent: a smaller part of a kanji may be another kanji
DEBIAN_FOLDER = Path("/usr/share/datasets")
GLYPH_SIZE = 24


def _idx_array(path: Path) -> np.ndarray:
    """An array in LeCun's idx format, gzipped. Raises FailureError naming a damaged file."""
    import gzip
    import zlib

    try:
        content = gzip.decompress(path.read_bytes())
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", count=dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, zlib.error, IndexError, ValueError) as error:
        raise FailureError(f"{path}: damaged ({error}). Delete it, or name another --data-dir") from error


def _idx_folder(name: str, torchvision_folder: str, data_dir: Path | None) -> Path | None:
    """The first folder that holds the four idx files, looking in --data-dir first, then where Debian puts them."""
    places = [] if data_dir is None else [data_dir, data_dir / name, data_dir / torchvision_folder / "raw"]
    places.append(DEBIAN_FOLDER / name)
    return next((place for place in places if (place / "train-images-idx3-ubyte.gz").is_file()), None)


def _load_idx(name: str, torchvision_class: str, split: str, data_dir: Path | None) -> Arrays:
    folder = _idx_folder(name, torchvision_class, data_dir)
    if folder is None:
        dataset = _torchvision(name, torchvision_class, data_dir, train=split == "train")
        return as_rgb(dataset.data.numpy()), dataset.targets.numpy().astype(np.int64)
    prefix = {"train": "train", "test": "t10k"}[split]
    images = _idx_array(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = _idx_array(folder / f"{prefix}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise FailureError(
            f"{folder}: the {split} images are of shape {images.shape}, their labels of {labels.shape}. "
            "Delete them, or name another --data-dir"
        )
    return as_rgb(images), labels.astype(np.int64)


def _load_cifar(name: str, torchvision_class: str, split: str, data_dir: Path | None) -> Arrays:
    dataset = _torchvision(name, torchvision_class, data_dir, train=split == "train")
    return dataset.data, np.asarray(dataset.targets, dtype=np.int64)


def _load_svhn(name: str, torchvision_class: str, split: str, data_dir: Path | None) -> Arrays:
    dataset = _torchvision(name, torchvision_class, data_dir, split=split)
    return np.ascontiguousarray(dataset.data.transpose(0, 2, 3, 1)), dataset.labels.astype(np.int64)


def _download_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kdtool"


def _torchvision(name: str, torchvision_class: str, data_dir: Path | None, **split: Any) -> Any:
    """torchvision's own reader, over files found in --data-dir or downloaded (its progress bar goes to stderr)."""
    from torchvision import datasets

    build = getattr(datasets, torchvision_class)
    # looked at now: torchvision makes the folder that it would download into
    into = data_dir or _download_folder()
    folders = [into / torchvision_class / "raw", into / torchvision_class, into, *into.parents]
    new = [folder for folder in folders if not folder.exists()]
    asked = "none given" if data_dir is None else f"{data_dir}{'' if data_dir.is_dir() else ', which is no folder'}"
    if data_dir is not None:
        with contextlib.suppress(RuntimeError):  # torchvision's word for 'not found here'
            return build(str(data_dir), download=False, **split)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return build(str(into), download=True, **split)
    except (RuntimeError, OSError) as error:
        for folder in new:
            with contextlib.suppress(OSError):  # it is not there, or holds something
                folder.rmdir()
        package = "dataset-fashion-mnist" if name == "fashion-mnist" else None
        install = f"Run: apt-get install {package}, or put" if package else "Put"
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FailureError(
            f"data set {name}: not in --data-dir ({asked}) nor in {DEBIAN_FOLDER / name}, and the "
            f"download failed ({reason}). {install} its files, as torchvision names them, in a folder "
            f"and pass it: kdtool pack --dataset {name} --data-dir FOLDER"
        ) from error


def lies_in(name: str, data_dir: Path | None) -> Path | None:
    """The folder where a data set of SOURCES lies and needs no download, None where none is known. Looks at names
    alone; `data_dir` first."""
    if name == "digits":
        import sklearn

        return Path(sklearn.__file__).parent / "datasets"
    if name.startswith("glyphs-"):
        return glyphs_in(data_dir)
    downloaded = _download_folder()
    if name in _IDX:
        return _idx_folder(name, _IDX[name], data_dir) or _idx_folder(name, _IDX[name], downloaded)
    places = [downloaded] if data_dir is None else [data_dir, downloaded]
    return next((place for place in places if (place / _FILES[name]).exists()), None)


_IDX = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST", "kmnist": "KMNIST"}
_FILES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "svhn": "train_32x32.mat"}  # torchvision's


def _load_digits(name: str, torchvision_class: str, split: str, data_dir: Path | None) -> Arrays:
    """scikit-learn's 1,797 real 8 × 8 digits; every fifth row of each class, in row order, is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    chosen = (place_in_class(labels) % 5 == 4) == (split == "test")
    return as_rgb(images[chosen]), labels[chosen]


def _load_glyphs(name: str, torchvision_class: str, split: str, data_dir: Path | None) -> Arrays:
    size = 2 * GLYPH_SIZE if name.endswith("-large") else GLYPH_SIZE
    images, labels = load_glyphs(int(name.split("-")[1]), size, split, data_dir)
    return as_rgb(images), labels


def _source(
    load: Callable[[str, str, str, Path | None], Arrays],
    name: str,
    torchvision_class: str,
    class_names: str,
    family: str,
    padding: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    **crops: Any,
) -> Source:
    def loaded(split: str, data_dir: Path | None) -> Arrays:
        return load(name, torchvision_class, split, data_dir)

    three = lambda values: tuple(values) * (3 // len(values))  # noqa: E731 - one number stands for three channels
    return Source(loaded, tuple(class_names.split("|")), family, padding, three(mean), three(std), **crops)


def _glyphs(name: str, family: str, padding: int, **crops: Any) -> Source:
    classes = "|".join(kanji(int(name.split("-")[1])))
    return _source(_load_glyphs, name, "", classes, family, padding, (0.294,), (0.383,), **crops)


_DIGITS = "0|1|2|3|4|5|6|7|8|9"
_CLOTHES = "T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot"
_CIFAR10 = "airplane|automobile|bird|cat|deer|dog|frog|horse|ship|truck"
_KANA = "o|ki|su|tsu|na|ha|ma|ya|re|wo"
_CIFAR100 = "|".join(f"class {number}" for number in range(100))

# The usual means and standard deviations of the training split, per channel.
SOURCES: dict[str, Source] = {
    "fashion-mnist": _source(
        _load_idx, "fashion-mnist", "FashionMNIST", _CLOTHES, "pad-crop-flip", 2, (0.286,), (0.353,)
    ),
    "mnist": _source(_load_idx, "mnist", "MNIST", _DIGITS, "pad-crop", 2, (0.1307,), (0.3081,)),
    "kmnist": _source(_load_idx, "kmnist", "KMNIST", _KANA, "pad-crop", 2, (0.1918,), (0.3483,)),
    "cifar10": _source(
        _load_cifar,
        "cifar10",
        "CIFAR10",
        _CIFAR10,
        "pad-crop-flip",
        4,
        (0.4914, 0.4822, 0.4465),
        (0.247, 0.2435, 0.2616),
    ),
    "cifar100": _source(
        _load_cifar,
        "cifar100",
        "CIFAR100",
        _CIFAR100,
        "pad-crop-flip",
        4,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
    ),
    "svhn": _source(
        _load_svhn, "svhn", "SVHN", _DIGITS, "pad-crop", 4, (0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)
    ),
    "digits": _source(_load_digits, "digits", "", _DIGITS, "pad-crop", 1, (0.306,), (0.376,)),
    "glyphs-100": _glyphs("glyphs-100", "pad-crop", 2),
    "glyphs-1000": _glyphs("glyphs-1000", "pad-crop", 2),
    "glyphs-100-large": _glyphs(
        "glyphs-100-large", "resized-crop", 0, size=(GLYPH_SIZE, GLYPH_SIZE), least_area=LARGE_LEAST_AREA
    ),
}


def source_named(name: str, progress: Progress = silent, spill: Path | None = None) -> Source:
    """One of SOURCES, or of one's own, which is imported and read, into a file in `spill`.

    Raises UsageError for a name that is neither."""
    if is_reference(name):
        from toolkit.data.own import own_source

        return own_source(name, progress, spill)
    if name not in SOURCES:
        known = unknown_name("data set", name, [*SOURCES, "imagefolder", "imagenet"])
        raise UsageError(
            f"{known}; imagefolder-NAME, what kdtool noise makes of them, or module:function for one of your own"
        )
    return SOURCES[name]
