"""Our reading and cutting of .beton files against FFCV's own Loader."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import toolkit
from toolkit.core.errors import FailureError
from toolkit.formats import beton as beton_module
from toolkit.formats.beton import cut, open_beton
from toolkit.formats.beton_writer import write_beton
from toolkit.formats.bundle import open_bundle
from toolkit.formats.ffcv_loader import one_epoch, open_loader
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import open_source


class Images:
    """Random images, of one size or of many."""

    def __init__(self, rows: int, ragged: bool = False) -> None:
        rng = np.random.default_rng(rows)
        sizes = rng.integers(300, 500, size=(rows, 2)) if ragged else np.full((rows, 2), (9, 7))
        self.images = [rng.integers(0, 256, size=(*size, 3), dtype=np.uint8) for size in sizes]
        self.labels = rng.integers(0, 5, size=rows)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.images[row], int(self.labels[row])


def through_ffcv(path: Path, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with one_epoch(open_loader(path, 32, rows)) as batches:
        held = list(batches)
    images, labels, numbers = (torch.cat(column).numpy() for column in zip(*held, strict=True))
    return images, labels[:, 0], numbers[:, 0]


def test_packed_frames_are_the_source(tmp_path: Path):
    source = Images(700)
    write_beton(source, tmp_path / "a.beton", classes=5, workers=2)
    beton = open_beton(tmp_path / "a.beton")
    assert np.array_equal(beton.frames(), np.stack(source.images))
    assert np.array_equal(beton.labels_n, source.labels)
    assert np.array_equal(beton.rows_n, np.arange(700))


def test_mapped_frames_equal_ffcvs_loader(tmp_path: Path):
    write_beton(Images(300), tmp_path / "a.beton", classes=5)
    beton = open_beton(tmp_path / "a.beton")
    images, labels, rows = through_ffcv(beton.path)
    assert np.array_equal(beton.frames(), images)
    assert np.array_equal(beton.labels_n, labels)
    assert np.array_equal(beton.rows_n, rows)


def test_a_cut_opens_in_ffcv_and_holds_exactly_its_rows(tmp_path: Path):
    write_beton(Images(300), tmp_path / "a.beton", classes=5)
    beton = open_beton(tmp_path / "a.beton")
    rows = np.sort(np.random.default_rng(0).choice(300, 77, replace=False))
    cut(beton, rows, tmp_path / "b.beton")
    images, labels, numbers = through_ffcv(tmp_path / "b.beton")
    assert np.array_equal(images, beton.frames(rows))
    assert np.array_equal(labels, beton.labels_n[rows])
    assert np.array_equal(numbers, rows)


def test_a_cut_of_ragged_frames_over_many_pages_keeps_every_byte(tmp_path: Path):
    source = Images(30, ragged=True)
    write_beton(source, tmp_path / "a.beton", classes=5, workers=1)
    beton = open_beton(tmp_path / "a.beton")
    rows = np.array([0, 3, 4, 11, 12, 13, 20, 29])
    cut(beton, rows, tmp_path / "b.beton")
    part = open_beton(tmp_path / "b.beton")
    for position, row in enumerate(rows):
        record = part.records_n["image"][position]
        stored = part.content[int(record["ptr"]) :][: part.bytes_n[position]]
        assert np.array_equal(stored.reshape(record["height"], record["width"], 3), source.images[row])
    pages = (part.records_n["image"]["ptr"].astype(int) // part.page_bytes).tolist()
    ends = ((part.records_n["image"]["ptr"].astype(int) + part.bytes_n - 1) // part.page_bytes).tolist()
    assert pages == ends and len(set(pages)) > 1


def test_cutting_is_independent_of_the_writers_page_order(tmp_path: Path):
    for name, workers in (("a", 1), ("b", 3)):
        write_beton(Images(2000), tmp_path / f"{name}.beton", classes=5, workers=workers)
        cut(open_beton(tmp_path / f"{name}.beton"), np.arange(0, 2000, 3), tmp_path / f"{name}-cut.beton")
    assert (tmp_path / "a-cut.beton").read_bytes() == (tmp_path / "b-cut.beton").read_bytes()
    assert (
        open_beton(tmp_path / "a.beton").content_fingerprint() == open_beton(tmp_path / "b.beton").content_fingerprint()
    )


@pytest.mark.parametrize("ragged", [False, True])
def test_a_cut_returns_the_fingerprint_of_the_file_it_wrote(tmp_path: Path, ragged: bool):
    rows = 60  # ragged: of many pages, and the disk is told to begin in between
    write_beton(Images(rows, ragged), tmp_path / "a.beton", classes=5)
    beton = open_beton(tmp_path / "a.beton")
    for kept in (np.arange(rows), np.arange(0, rows, 3), np.array([rows - 1])):
        returned = cut(beton, kept, tmp_path / "b.beton")
        assert returned == open_beton(tmp_path / "b.beton").content_fingerprint()


class RefusingHash:
    def update(self, content: bytes) -> None:
        raise MemoryError("no room to hash")


def test_an_error_while_hashing_ends_the_cut_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_beton(Images(300), tmp_path / "a.beton", classes=5)
    monkeypatch.setattr(beton_module.hashlib, "sha256", RefusingHash)
    before = threading.active_count()
    with pytest.raises(MemoryError, match="no room to hash"):
        cut(open_beton(tmp_path / "a.beton"), np.arange(300), tmp_path / "b.beton")
    assert threading.active_count() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.beton"]


def test_a_disk_that_refuses_while_pages_are_hashed_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_beton(Images(300), tmp_path / "a.beton", classes=5)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(beton_module.os, "fsync", full)
    before = threading.active_count()
    with pytest.raises(FailureError, match=r"b\.beton: could not be written \(No space left on device\)"):
        cut(open_beton(tmp_path / "a.beton"), np.arange(300), tmp_path / "b.beton")
    assert threading.active_count() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.beton"]


def test_packing_ends_on_a_machine_of_one_core(tmp_path: Path):
    """Numba's TBB pool waits for ever at exit after a fork on one core; the timeout is for a hang, not for speed."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        f"from toolkit.cli import cli; cli(['pack', '-w', {str(tmp_path)!r}, '--dataset', 'digits'])"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode == 0
    assert open_beton(tmp_path / "data" / "digits" / "train.beton").labels_n.shape == (1442,)


def test_fingerprint_sees_one_changed_pixel_and_one_changed_label(tmp_path: Path):
    source = Images(50)
    prints = []
    for name, change in (
        ("a", lambda: None),
        ("b", lambda: source.images[7].__setitem__((0, 0, 0), 255 - source.images[7][0, 0, 0])),
    ):
        change()
        write_beton(source, tmp_path / f"{name}.beton", classes=5)
        prints.append(open_beton(tmp_path / f"{name}.beton").content_fingerprint())
    source.labels[3] = (source.labels[3] + 1) % 5
    write_beton(source, tmp_path / "c.beton", classes=5)
    prints.append(open_beton(tmp_path / "c.beton").content_fingerprint())
    assert len(set(prints)) == 3


def test_opening_a_loader_leaves_torchs_threads_alone(tmp_path: Path):
    write_beton(Images(50), tmp_path / "a.beton", classes=5)
    threads = torch.get_num_threads()
    with one_epoch(open_loader(tmp_path / "a.beton", 8, workers=threads + 3)) as batches:
        next(batches)
    assert torch.get_num_threads() == threads


def test_leaving_an_epoch_early_leaves_no_thread(tmp_path: Path):
    write_beton(Images(500), tmp_path / "a.beton", classes=5)
    loader = open_loader(tmp_path / "a.beton", 8)
    before = threading.active_count()
    for _ in range(3):
        with one_epoch(loader) as batches:
            next(batches)
    assert threading.active_count() == before


@pytest.mark.parametrize("index_only", [False, True])
def test_law_2_streaming_gives_the_resident_batches_bit_for_bit(digits: Path, tmp_path: Path, index_only: bool):
    from tests.conftest import made

    options = ["--index-only"] if index_only else []
    name = f"stream-{index_only}"
    workspace = shutil.copytree(digits, tmp_path / "work")
    made("build-subset", "-w", workspace, "--dataset", "digits", "--frac", "0.2", "--name", name, *options)
    folder = workspace / "subsets" / name
    bundle = open_bundle(folder)
    for match in ("exact", "nearest", "mean"):
        targets = load_knowledge(bundle, match=match, views=4).targets
        cpu = compute_on("cpu", "float32")
        resident = open_source(bundle.images(), bundle.indices_m, bundle.data, 50, 3, cpu, targets)
        stream = toolkit.subset_loader(folder, batch_size=50, match=match, views=4, seed=3)
        for epoch in range(2):
            pairs = list(zip(resident.batches(epoch), stream, strict=True))
            assert len(pairs) == 6
            for ours, ffcvs in pairs:
                assert ours.weights_b is None and ffcvs.weights_b is None
                assert all(torch.equal(a, b) for a, b in zip(ours[:4], ffcvs[:4], strict=True))


def test_subset_loader_shows_what_the_teacher_saw(digits: Path):
    from toolkit.formats.cache import open_cache

    with open_cache(digits / "teachers" / "digits-resnet8" / "cache.h5") as cache:
        logits = cache.encoded(cache.slots)["logits"].in_memory()
    seen = set()
    loader = toolkit.subset_loader(digits / "subsets" / "third", batch_size=64)
    for batch in loader:
        for row, own in zip(batch.rows_b.tolist(), batch.logits_bc, strict=True):
            assert any(np.array_equal(logits[slot, row].astype(np.float32), own.numpy()) for slot in range(len(logits)))
            seen.add(row)
    assert len(seen) == loader.rows == round(0.3 * 1442)
    assert len(loader) == -(-loader.rows // 64) == len(list(loader))  # batches, as of torch's DataLoader
