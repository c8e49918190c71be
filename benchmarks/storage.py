"""What is bounded by decoding and by the disk: pack and build-subset.

Shapes: n rows, h and w height and width.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rounds import Block, Work, stopwatch
from toolkit.core.files import remove_folder
from toolkit.data.sources import source_named
from toolkit.formats.beton import open_beton
from toolkit.formats.dataset import SPLITS, PackedData, open_packed, write_record
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.data import pack as pack_data
from toolkit.pipeline.subset import build_subset

_CHUNK_BYTES = 8 << 20


def packing(workspace: Workspace, dataset: str, data_dir: Path | None = None) -> dict[str, Block]:
    """`pack` beside decoding its source into arrays alone, and writing the bytes it wrote; in MB of packed files."""
    folder = ensure_packed(workspace, dataset, data_dir).folder
    content = b"".join((folder / f"{split}.beton").read_bytes() for split in SPLITS)
    megabytes, target = len(content) / 1e6, workspace.root / "written"

    def pack() -> None:
        pack_data(workspace, dataset=dataset, data_dir=data_dir)

    def decode() -> None:
        for split in SPLITS:
            source_named(dataset).load(split, data_dir)

    def write() -> None:
        with target.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())

    works = {"pack": (pack, folder), "decode": (decode, None), "write": (write, target)}
    return {name: _once(work, megabytes, left) for name, (work, left) in works.items()}


def cutting(workspace: Workspace, dataset: str) -> dict[str, Block]:
    """`build-subset` of one half beside copying the image file that it wrote; in MB of that file."""

    written, kept, target = (workspace.root / name for name in ("subsets/cut/images.beton", "kept", "copied"))

    def cut() -> None:
        build_subset(workspace, frac=0.5, dataset=dataset, name="cut")

    def copy() -> None:
        copy_file(kept, target)

    cut()
    copy_file(written, kept)  # the stage replaces its own output
    megabytes = kept.stat().st_size / 1e6
    works = {"build-subset": (cut, written.parent), "copy": (copy, target)}
    return {name: _once(work, megabytes, left) for name, (work, left) in works.items()}


def _once(work: Callable[[], None], megabytes: float, left: Path | None) -> Block:
    def block() -> Work:
        if left is not None:  # outside the clock: no side pays for removing what it left in the last round
            if left.is_dir():
                remove_folder(left)
            else:
                left.unlink(missing_ok=True)
        with stopwatch() as elapsed:
            work()
        return Work(megabytes, elapsed[0])

    return block


def copy_file(source: Path, target: Path) -> None:
    """Reads a file and writes its bytes durably, in this process, through one buffer."""
    buffer = bytearray(_CHUNK_BYTES)
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as written:
        while size := read.readinto(buffer):
            written.write(memoryview(buffer)[:size])
        os.fsync(written.fileno())


class _Enlarged:
    """Samples whose frames PIL scales up as they are asked for."""

    def __init__(self, images_nhwc: np.ndarray, labels_n: np.ndarray, side: int) -> None:
        self.images_nhwc, self.labels_n, self.side = images_nhwc, labels_n, side

    def __len__(self) -> int:
        return len(self.labels_n)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        from PIL import Image

        enlarged = Image.fromarray(self.images_nhwc[row]).resize((self.side, self.side))
        return np.asarray(enlarged), int(self.labels_n[row])


def enlarged(small: PackedData, workspace: Workspace, side: int) -> None:
    """Packs the same rows at `side` × `side` pixels into another workspace, under the same name."""
    from toolkit.formats.beton_writer import write_beton

    folder = workspace.data(small.record.key)
    folder.mkdir(parents=True)
    fingerprints: dict[str, Any] = {}
    for split in SPLITS:
        images = small.split(split)
        path = folder / f"{split}.beton"
        write_beton(_Enlarged(images.frames(), images.labels_n, side), path, small.record.classes)
        fingerprints[f"{split}_fingerprint"] = open_beton(path).content_fingerprint()
    write_record(folder, replace(small.record, height=side, width=side, **fingerprints))
    open_packed(folder)


def as_jpeg(images_nhwc: np.ndarray, labels_n: np.ndarray, path: Path, classes: int) -> None:
    """The frames as a .beton of JPEG files."""
    from toolkit.formats.beton_writer import Storage, write_beton

    write_beton(_Enlarged(images_nhwc, labels_n, images_nhwc.shape[1]), path, classes, storage=Storage("jpg"))
