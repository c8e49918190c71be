"""Appending to a cache: old bytes stay where they are, and a kill at any moment leaves the old or the new file.

Everything is real: HDF5 files, processes that die at every step of an append, full disks, damage.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from toolkit.core.errors import FailureError
from toolkit.core.files import DeferringFile
from toolkit.formats.appending import lookup3
from toolkit.formats.cache import CacheRecord, open_cache
from toolkit.formats.cache_writing import CacheWriter, grown_cache, new_cache
from toolkit.views.plan import Plan

ROWS, TEST_ROWS, CLASSES = 300, 20, 10
OLD, NEW = 2, 3  # slots


def record(slots: int, command: str = "kdtool") -> CacheRecord:
    return CacheRecord(
        kind="cache",
        dataset="digits",
        data_fingerprint="data",
        test_fingerprint="test",
        limit=None,
        teacher="some",
        teacher_fingerprint="weights",
        teacher_arch="resnet8",
        classes=CLASSES,
        mean=[0.5],
        std=[0.25],
        plan=Plan("pad-crop", 8, 8, 2).to_record(),
        precision="float32",
        encoding="float16",
        slots=slots,
        views=[0] * slots,
        teacher_top1=float("nan"),
        teacher_images=ROWS * slots,
        command=command,
        created="today",
        versions={},
    )


def logits(slot: int) -> np.ndarray:
    return np.random.default_rng(slot).normal(size=(ROWS, CLASSES)).astype(np.float16)


def score(slots: int) -> np.ndarray:
    return np.arange(ROWS, dtype=np.float32) * slots


def about(slots: int) -> dict[str, str]:
    return {"definition": f"a score of {slots} views", "high": "hard"}


def make(path: Path, slots: int = OLD) -> Path:
    with new_cache(path, record(slots)) as out:
        out.write("rows", np.arange(ROWS))
        out.write("labels", np.arange(ROWS) % CLASSES)
        for slot in range(slots):
            out.write(f"slots/{slot}/logits", logits(slot))
        out.write("test/logits", logits(99)[:TEST_ROWS])
        out.write("test/labels", np.arange(TEST_ROWS))
        out.write("scores/disagreement", score(slots), **about(slots))
    return path


def add(out: CacheWriter, slots: range) -> None:
    for slot in slots:
        out.write(f"slots/{slot}/logits", logits(slot))
    out.replace("scores/disagreement", score(slots.stop), **about(slots.stop))


def append(path: Path, first: int = OLD, stop: int = NEW) -> None:
    with grown_cache(path, record(stop)) as out:
        add(out, range(first, stop))


def contents(path: Path) -> dict[str, Any]:
    """All that a cache says of itself; every block is checked as it is read."""
    with open_cache(path) as cache:
        datasets = {name: cache.read(name).tobytes() for name in cache.dataset_names()}
        return {
            "record": str(cache.record),
            "scores": cache.scores,
            "print": cache.fingerprint(cache.slots),
            **datasets,
        }


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each dataset lies in the file: its first byte, and the one after its last."""
    found: dict[str, tuple[int, int]] = {}

    def place(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item.id.get_offset(), item.id.get_offset() + item.nbytes

    with h5py.File(path, "r") as file:
        file.visititems(place)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cache of the old slots, and one of all slots written at once."""
    folder = tmp_path_factory.mktemp("caches")
    make(folder / "old.h5", OLD)
    make(folder / "new.h5", NEW)
    return folder


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of the old cache."""
    return Path(shutil.copy(made / "old.h5", tmp_path / "cache.h5"))


@contextmanager
def each_step(monkeypatch: pytest.MonkeyPatch, step: Callable[..., None]) -> Iterator[None]:
    """Calls `step(kind, data, offset, size, act)` in place of all that an append does to the disk; `act` does it."""
    write, truncate, pwrite, fsync, ftruncate = (
        *(DeferringFile.write, DeferringFile.truncate),
        *(os.pwrite, os.fsync, os.ftruncate),
    )

    def on_write(file: DeferringFile, data: Any) -> int:
        step("write", file.tell(), len(data), lambda part=1.0: write(file, data[: int(len(data) * part)]))
        return len(data)

    def on_truncate(file: DeferringFile, size: int) -> int:
        step("truncate", size, 0, lambda part=1.0: truncate(file, size))
        return size

    def on_pwrite(fd: int, data: bytes, offset: int) -> int:
        step("pwrite", offset, len(data), lambda part=1.0: pwrite(fd, data, offset))
        return len(data)

    with monkeypatch.context() as patch:
        patch.setattr(DeferringFile, "write", on_write)
        patch.setattr(DeferringFile, "truncate", on_truncate)
        patch.setattr(os, "pwrite", on_pwrite)
        patch.setattr(os, "fsync", lambda fd: step("fsync", 0, 0, lambda part=1.0: fsync(fd)))
        patch.setattr(os, "ftruncate", lambda fd, n: step("truncate", n, 0, lambda part=1.0: ftruncate(fd, n)))
        yield


def test_appended_cache_says_what_one_written_at_once_says(made: Path, path: Path) -> None:
    append(path)
    assert contents(path) == contents(made / "new.h5")
    assert list(path.parent.iterdir()) == [path]


def test_old_datasets_are_neither_moved_nor_rewritten(made: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, old_places = path.read_bytes(), places(path)
    steps: list[tuple[str, int, int]] = []

    def note(kind: str, offset: int, size: int, act: Callable[..., Any]) -> None:
        steps.append((kind, offset, size))
        act()

    with each_step(monkeypatch, note):
        append(path)
    assert path.read_bytes()[48 : len(old)] == old[48:]
    new_places = places(path)
    assert {name for name in old_places if new_places[name] != old_places[name]} == {
        "scores/disagreement",
        "checksums/scores/disagreement",
    }
    # within the old file one write, of the superblock; before it all else is on disk, and after it that is, too
    assert [step for step in steps if step[0] in ("write", "pwrite") and step[1] < len(old)] == [("pwrite", 0, 48)]
    assert [kind for kind, _, _ in steps[-3:]] == ["fsync", "pwrite", "fsync"]


def dies_at(number: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Appends in a process that dies at its step `number`, halfway through if it is a write; whether it came so far."""
    child = os.fork()
    if child == 0:
        count = 0

        def step(kind: str, offset: int, size: int, act: Callable[..., Any]) -> None:
            nonlocal count
            count += 1
            if count == number:
                if kind == "write":
                    act(0.5)
                os.kill(os.getpid(), signal.SIGKILL)
            act()

        try:
            with each_step(monkeypatch, step):
                append(path)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_append_killed_at_any_step_leaves_the_old_or_the_new_cache(
    made: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = contents(path), contents(made / "new.h5")
    found, number = [], 0
    died = True
    while died:
        number += 1
        shutil.copy(made / "old.h5", path)
        died = dies_at(number, path, monkeypatch)
        now = contents(path)
        assert now in (old, new), f"killed at step {number}"
        found.append(now == new)
        if now == old:
            append(path)
            assert contents(path) == new, f"appended again after a kill at step {number}"
    assert number > 20
    assert found == sorted(found), "once new, always new"
    assert found[-2:] == [True, True], "killed at the last step, and not at all"


APPEND_AND_WAIT = """
from tests.test_appending import *
with grown_cache(Path(sys.argv[1]), record(NEW)) as out:
    add(out, range(OLD, NEW))
    print("written", flush=True)
    input()
"""
READ_AND_WAIT = """
from tests.test_appending import *
with open_cache(Path(sys.argv[1])) as cache:
    print("opened", flush=True)
    input()
    print(cache.verify(), cache.slots, cache.fingerprint(cache.slots), flush=True)
"""


@contextmanager
def another(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has come to its first `print`, and waits for a line."""
    command, pipe, root = [sys.executable, "-c", code, str(path)], subprocess.PIPE, Path(__file__).parents[1]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() in ("written\n", "opened\n")
            yield process
        finally:
            process.kill()


def test_append_killed_from_outside_leaves_the_old_cache(made: Path, path: Path) -> None:
    old = contents(path)
    with another(APPEND_AND_WAIT, path):
        assert contents(path) == old
    assert contents(path) == old
    assert path.stat().st_size > (made / "old.h5").stat().st_size
    append(path)
    assert contents(path) == contents(made / "new.h5")


def test_readers_keep_the_cache_they_opened(made: Path, path: Path) -> None:
    old = contents(path)
    with another(READ_AND_WAIT, path) as reader:
        append(path)
        assert contents(path) == contents(made / "new.h5")
        append(path, NEW, NEW + 3)
        said, _ = reader.communicate("\n")
    blocks = len(old) - len(("record", "scores", "print"))
    assert said.split() == [str(blocks), str(OLD), old["print"]]


def test_cache_may_be_open_in_the_process_that_appends(made: Path, path: Path) -> None:
    """There it shows the old contents until all who opened it have closed it: HDF5 opens a file once a process."""
    old = contents(path)
    with open_cache(path):
        append(path)
        assert contents(path) == old
    assert contents(path) == contents(made / "new.h5")


@pytest.mark.parametrize("room", [-1000, 0, 1, 5000, 12000])
def test_full_disk_is_one_clear_error_and_leaves_the_old_bytes(path: Path, room: int) -> None:
    old = path.read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) + room, unlimited[1]))
    try:
        with pytest.raises(FailureError, match=r"cache\.h5: could not be written .*too large.* run the same command"):
            append(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert path.read_bytes() == old


def test_error_of_the_caller_leaves_the_old_bytes(path: Path) -> None:
    old = path.read_bytes()
    with pytest.raises(ZeroDivisionError), grown_cache(path, record(NEW)) as out:
        add(out, range(OLD, NEW))
        _ = 1 / 0
    assert path.read_bytes() == old


def test_what_a_killed_append_left_is_ignored_and_then_taken_away(path: Path) -> None:
    old, before = contents(path), path.read_bytes()
    append(path)
    new, size_bytes = contents(path), path.stat().st_size
    path.write_bytes(before + os.urandom(100_000))
    assert contents(path) == old
    append(path)
    assert contents(path) == new != old
    assert path.stat().st_size == size_bytes  # the bytes themselves may differ: HDF5 writes down the second


def test_failure_after_the_new_superblock_takes_nothing_away(
    made: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[str] = []

    def step(kind: str, offset: int, size: int, act: Callable[..., Any]) -> None:
        kinds.append(kind)
        if kind == "fsync" and "pwrite" in kinds:
            raise OSError(5, "Input/output error")
        act()

    with each_step(monkeypatch, step), pytest.raises(FailureError, match="Input/output error"):
        append(path)
    assert contents(path) == contents(made / "new.h5")


def test_cache_may_grow_many_times(path: Path) -> None:
    sizes = [path.stat().st_size]
    for slots in range(OLD, 14):
        append(path, slots, slots + 1)
        sizes.append(path.stat().st_size)
    assert contents(path) == contents(make(path.with_name("once.h5"), 14))
    added = [size - logits(0).nbytes - score(1).nbytes for size in np.diff(sizes)]
    assert max(added) < 16_384, "what an append adds beside its data"


@pytest.mark.parametrize("length", [1, 70_000])
def test_record_may_become_longer_or_shorter(path: Path, length: int) -> None:
    for size in (length, 20):
        with grown_cache(path, record(OLD, "x" * size)):
            pass
        with open_cache(path) as cache:
            assert cache.record.command == "x" * size
            cache.verify()


def damaged(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "it is not HDF5": lambda path: path.write_bytes(b"no HDF5" * 100),
    "it is not HDF5 of this kind": lambda path: path.write_bytes(b""),
    "superblock fails its checksum": lambda path: damaged(path, 30, b"\xff"),
    "it is cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "checksum": lambda path: damaged(path, 60, b"\xff\xff\xff"),  # the root group's header
}


@pytest.mark.parametrize("words", DAMAGES)
def test_damaged_cache_is_not_appended_to(path: Path, words: str) -> None:
    DAMAGES[words](path)
    before = path.read_bytes()
    with pytest.raises(FailureError, match=rf"cache\.h5: can't be appended to \(.*{words}.*\. Run: kdtool"):
        append(path)
    assert path.read_bytes() == before


def test_append_that_hdf5_would_lose_is_refused(path: Path) -> None:
    """An attribute read before one is written: HDF5 puts the new text where the old one is."""
    before = path.read_bytes()
    with (
        pytest.raises(FailureError, match="can't be appended to"),
        grown_cache(path, record(OLD)) as out,
    ):
        assert out._file["scores/disagreement"].attrs["high"] == "hard"
        out.replace("scores/disagreement", score(3), definition="y" * 40)
    assert path.read_bytes() == before


def test_checksum_is_the_one_hdf5_writes(path: Path) -> None:
    head = path.read_bytes()[:48]
    assert lookup3(head[:44]) == struct.unpack("<I", head[44:])[0]
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551  # Jenkins' own example
