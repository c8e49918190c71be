"""What is held: our own arrays take 64 bytes a row at most, and --memory-limit decides what is held at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import toolkit.formats.ffcv_loader
import toolkit.pipeline.cache_content as cache_content
import toolkit.teacher.dynamics
from tests.conftest import kdtool, made, refused
from tests.test_dynamics import TRAIN, all_of, same, trained
from toolkit.cli import cli
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import rng_for
from toolkit.core.long_lists import read_long_lists, write_long_lists
from toolkit.core.memory import kept_to, left_bytes, size_bytes, taken_bytes
from toolkit.core.progress import silent
from toolkit.core.sizes import in_words
from toolkit.data.spilled import Spilled
from toolkit.formats.beton import Beton, cut, open_beton
from toolkit.formats.beton_writer import write_beton
from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.bundle import open_bundle
from toolkit.formats.encodings import Arrays, DecodedRows, Encoding, default_encoding
from toolkit.formats.ffcv_loader import checked_rows
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.cache_content import CacheContent, scores_of_views
from toolkit.pipeline.import_logits import _Given
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import open_source, resident_bytes, stream_bytes
from toolkit.pipeline.sweep.command import need_room, share_of_memory
from toolkit.pipeline.sweep.resolve import Run
from toolkit.pipeline.sweep.worker import How
from toolkit.selection import choose
from toolkit.selection.pool import Pool
from toolkit.training.showing import Showing, row_order, shares
from toolkit.training.stream import StreamSource
from toolkit.training.targets import Targets
from toolkit.views.plan import Plan

STEPS = 400
# of a long epoch, in a process of its own: in one that ran before, freed memory would hide what is taken
LONG_EPOCH = f"""
import torch
from toolkit.core.memory import taken_bytes
from toolkit.core.recipes import Recipe
from toolkit.models.zoo import build_model
from toolkit.training.loop import Trainer
from toolkit.training.showing import Batch

class Source:
    batch_size, rows = 128, 128 * {STEPS}
    def __len__(self):
        return {STEPS}
    def batches(self, epoch, start=0):
        for _ in range(start, {STEPS}):
            yield Batch(torch.zeros(128, 3, 8, 8), torch.zeros(128, dtype=torch.int64), torch.arange(128), None)

def loss(logits_bc, batch):
    return torch.nn.functional.cross_entropy(logits_bc, batch.labels_b)

taken = []
model, recipe = build_model("resnet8", 1000, width=4), Recipe(1, 128, 0.1, "cosine")
trainer = Trainer(model, Source(), loss, recipe, {STEPS}, torch.device("cpu"), "bfloat16")
trainer.run_epoch(after_step=lambda: taken.append(taken_bytes()))
print(taken[-1] - taken[{STEPS} // 4])
"""

FEW, MANY, CLASSES, SLOTS, BATCH = 20_000, 160_000, 100, 12, 512
MOST = 64  # bytes a row
SHIFTS = Plan("pad-crop-flip", 2, 2, padding=4)
BOXES = Plan("resized-crop-flip", 2, 2, least_area=8)


class Frames:
    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return np.full((2, 2, 3), row, np.uint8), row % 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Packed data of FEW and of MANY rows, and logits (SLOTS, MANY, CLASSES) beside them."""
    folder = tmp_path_factory.mktemp("long")
    write_beton(Frames(), folder / "frames.beton", classes=5)
    made = {}
    for rows in (FEW, MANY):
        made[rows] = folder / f"{rows}.beton"
        frames = replace(open_beton(folder / "frames.beton"), page_bytes=1 << 14)  # a page is held while it is written
        cut(frames, np.arange(rows) % 40, made[rows])
    logits_path = folder / "logits"
    with logits_path.open("wb") as file:
        file.truncate(2 * SLOTS * MANY * CLASSES)
    return {**made, 0: logits_path}


class NoFFCV:
    """In the place of FFCV's Loader, whose own tables are not ours: rows in the order it is told, without pixels."""

    def __init__(self, path: Path, size: int, indices_n: np.ndarray, **settings: Any) -> None:
        self.indices, self.next_epoch, self.traversal_order = checked_rows(indices_n, 1 << 62), 0, None
        self.size, self.reader, self.beton = size, SimpleNamespace(file_name=path), open_beton(path)


@contextmanager
def _epoch_of_none(loader: NoFFCV, pinned: bool) -> Iterator[Iterator[tuple[torch.Tensor, ...]]]:
    at_n = loader.traversal_order.sample_order(loader.next_epoch)  # type: ignore[attr-defined]

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for start in range(0, len(at_n), loader.size):
            at = at_n[start : start + loader.size]
            rows, labels = (
                torch.from_numpy(x[at].astype(np.int64)) for x in (loader.beton.rows_n, loader.beton.labels_n)
            )
            yield torch.zeros((len(at), 2, 2, 3), dtype=torch.uint8), labels[:, None], rows[:, None]

    yield batches()


def peak_bytes(act: Callable[[], Any]) -> int:
    """Of all numpy arrays and Python objects that were there at one time."""
    tracemalloc.start()
    try:
        kept = act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        del kept


def bytes_a_row(act: Callable[[int], Any]) -> float:
    act(FEW)  # what is imported and remembered the first time is none of a row's
    return (peak_bytes(lambda: act(MANY)) - peak_bytes(lambda: act(FEW))) / (MANY - FEW)


def streamed(files: dict[int, Path], plan: Plan, match: str | None, hold: bool = False) -> Callable[[int], Any]:
    """What a streaming source of all rows holds, with the rows that it was given, and gives in its first batches."""

    def act(rows: int) -> Any:
        targets = None
        if match is not None:
            logits_knc = np.memmap(files[0], np.float16, "r", shape=(SLOTS, rows, CLASSES))
            targets = Targets.of_logits(np.array(logits_knc[:1]) if hold else np.asarray(logits_knc), match)
        shown = (plan, [0.5] * 3, [0.5] * 3, BATCH, 0)
        # held by the command all the time, as those of a bundle that is weighted
        rows_m, weights_m = np.arange(rows, dtype=np.int32), np.ones(rows, np.float32)
        held = rows_m, rows_m.copy(), weights_m
        source = StreamSource(open_beton(files[rows]), rows_m, *shown, targets=targets, weights_n=weights_m)
        batches = source.batches(0)
        next(batches)
        batches.close()
        return source, held

    return act


@pytest.fixture
def without_ffcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit.formats.ffcv_loader, "open_loader", NoFFCV)
    monkeypatch.setattr(toolkit.formats.ffcv_loader, "one_epoch", _epoch_of_none)
    monkeypatch.setattr("toolkit.training.stream._VIEWS_BYTES", 0)
    monkeypatch.setattr("toolkit.training.stream._BOXES_AT_A_TIME", 1 << 10)  # less than FEW, as what else is constant
    monkeypatch.setattr("toolkit.formats.beton._BLOCK_ROWS", 1 << 10)


@pytest.mark.parametrize("match", [None, "exact", "nearest", "mean"])
@pytest.mark.parametrize("plan", [SHIFTS, BOXES], ids=["shifts", "boxes"])
def test_a_stream_holds_64_bytes_a_row_at_most(
    plan: Plan, match: str | None, files: dict[int, Path], without_ffcv: None
):
    assert bytes_a_row(streamed(files, plan, match)) <= MOST


@pytest.mark.parametrize(("number", "count"), [(0, 1), (1, 3)])
def test_ffcv_is_told_the_order_that_the_batches_have(
    files: dict[int, Path], without_ffcv: None, number: int, count: int
):
    """From any batch of an epoch on, of one process or several; the rows it was given are not copied."""
    rows_m, part = np.arange(0, FEW, 7), (number, count)
    source = StreamSource(
        open_beton(files[FEW]),
        rows_m,
        SHIFTS,
        [0.5] * 3,
        [0.5] * 3,
        BATCH,
        0,
        weights_n=np.ones(len(rows_m)),
        part=part,
    )
    assert source._indices_n is rows_m and source.loader.indices is None
    for epoch, start in ((0, 0), (3, 2)):
        batches = source.batches(epoch, start)
        next(batches)
        told_m = source.sample_order(epoch)
        batches.close()
        order_n = row_order(len(rows_m), epoch, 0)
        mine = [order_n[first:end] for first, end in shares(len(rows_m), BATCH, part, start)]
        assert told_m.dtype == np.uint64 and np.array_equal(told_m, rows_m[np.concatenate(mine)])


def test_ffcvs_own_loaders_are_left_as_they_are(files: dict[int, Path], monkeypatch: pytest.MonkeyPatch):
    """What is put in the place of FFCV's classes is there while ours are made alone, also where that fails; two of ours
    in one process work one beside the other."""
    ffcv_loader = toolkit.formats.ffcv_loader
    theirs = ffcv_loader.ffcv.loader.loader

    def classes() -> set[str]:
        return {theirs.EpochIterator.__module__, theirs.OSCacheManager.__module__}

    untouched = {"ffcv.loader.epoch_iterator", "ffcv.memory_managers.os_cache"}
    assert classes() == untouched
    one, other = (ffcv_loader.open_loader(files[FEW], size) for size in (7000, 9000))
    assert classes() == untouched and type(one.memory_manager) is type(other.memory_manager) is ffcv_loader._LeanManager
    rows_n = weakref.ref(one.indices)
    ffcv_loader.ordered_by(one, SimpleNamespace(sample_order=lambda epoch: np.arange(FEW, dtype=np.uint64)))
    assert rows_n() is None
    with ffcv_loader.one_epoch(one) as ours, ffcv_loader.one_epoch(other) as others:
        assert classes() == untouched
        assert [len(batch[0]) for batch in ours] == [7000, 7000, 6000]
        assert [len(batch[0]) for batch in others] == [9000, 9000, 2000]
    usual = theirs.Loader(str(files[FEW]), 100, 1, order=theirs.OrderOption.QUASI_RANDOM)
    assert len(usual.memory_manager.page_to_samples) > 1

    def broken(self: Any, reader: Any) -> None:
        raise RuntimeError("no table")

    monkeypatch.setattr(ffcv_loader._LeanManager, "__init__", broken)
    with pytest.raises(RuntimeError, match="no table"):
        ffcv_loader.open_loader(files[FEW], 100)
    assert classes() == untouched
    monkeypatch.setattr(one, "next_traversal_order", lambda: broken(None, None))
    with pytest.raises(RuntimeError, match="no table"), ffcv_loader.one_epoch(one):
        pass
    assert classes() == untouched


def test_a_stream_that_held_a_number_a_class_would_be_seen(files: dict[int, Path], without_ffcv: None):
    assert bytes_a_row(streamed(files, BOXES, "exact", hold=True)) > MOST


def test_a_stream_that_held_every_view_would_be_seen(
    files: dict[int, Path], without_ffcv: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("toolkit.training.stream._VIEWS_BYTES", 1 << 40)
    assert bytes_a_row(streamed(files, SHIFTS, None)) > MOST


def test_an_epoch_takes_no_more_memory_the_longer_it_is():
    done = subprocess.run([sys.executable, "-c", LONG_EPOCH], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 << 20  # small tensors kept from step to step made it 150 MiB


def test_opening_and_cutting_a_file_hold_64_bytes_a_row_at_most(
    files: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("toolkit.formats.beton._BLOCK_ROWS", 1 << 10)

    def act(rows: int) -> Any:
        beton = open_beton(files[rows])
        cut(beton, np.arange(rows), tmp_path / "cut.beton")
        assert beton.content_fingerprint()
        return beton

    assert bytes_a_row(act) <= MOST


def test_a_bundles_rows_are_written_and_read_in_64_bytes_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.core.long_lists._BLOCK", 1 << 10)
    monkeypatch.setattr("toolkit.core.long_lists._BLOCK_BYTES", 1 << 13)

    def act(rows: int) -> Any:
        numbers_m = np.arange(rows)
        write_long_lists(tmp_path / "loader.json", {"file": "x", "indices": numbers_m, "rows": numbers_m})
        return read_long_lists(tmp_path / "loader.json", ("indices", "rows"), "make it")

    assert bytes_a_row(act) <= MOST


@pytest.mark.parametrize("numbers", [[], [7], list(range(200_000)), [0, 1 << 40, 3]])
def test_long_lists_are_what_json_writes_and_reads(numbers: list[int], tmp_path: Path):
    path = tmp_path / "lists.json"
    record = {"file": 'a "rows": [9]', "rows": np.array(numbers, dtype=np.int64), "more": [1.5, None]}
    write_long_lists(path, record)
    plain = {**record, "rows": numbers}
    assert path.read_text() == json.dumps(plain) + "\n"
    found, arrays = read_long_lists(path, ("rows", "gone"), "make it")
    assert {**found, **{name: values.tolist() for name, values in arrays.items()}} == plain


@pytest.mark.parametrize("rows", ["[1,2]", "[ 1, 2 ]", "[1, -2]", '["a"]', "[1, 2.5]", "[1, [2]]", "null"])
def test_lists_that_kdtool_did_not_write_are_left_to_json(rows: str, tmp_path: Path):
    path = tmp_path / "lists.json"
    path.write_text(f'{{"rows": {rows}}}')
    found, arrays = read_long_lists(path, ("rows",), "make it")
    assert not arrays and found == json.loads(path.read_text())


def test_the_view_of_one_slot_is_that_of_all():
    rows = np.arange(0, 3000, 7)
    for plan in (SHIFTS, BOXES, Plan("pad-crop", 8, 8, padding=2), Plan("pad-crop", 8, 8, padding=0)):
        slots = min(plan.size, 40)
        some = np.arange(len(rows)) * 11 % slots
        assert np.array_equal(plan.views_in(rows, some), plan.views(rows, slots)[np.arange(len(rows)), some])


@pytest.mark.parametrize("match", [None, "exact", "nearest", "mean"])
@pytest.mark.parametrize("plan", [SHIFTS, BOXES], ids=["shifts", "boxes"])
def test_views_are_the_same_whether_they_are_held_or_not(plan: Plan, match: str | None):
    rows, sizes = np.arange(5, 700, 3), rng_for(1).integers(20, 60, (232, 2))
    targets = None if match is None else Targets.of_logits(np.zeros((5, len(rows), 3), np.float32), match)
    held, anew = (Showing(rows, plan, 9, targets, sizes, most_bytes=most) for most in (1e9, -1))
    at_b = rng_for(2).permutation(len(rows))[:50]
    for epoch in (0, 3, 400):
        for whole, of_all, of_batch in zip(held.views(epoch), anew.views(epoch), anew.views(epoch, at_b), strict=True):
            assert np.array_equal(whole, of_all) and np.array_equal(whole[at_b], of_batch)
        assert np.array_equal(held.shown(epoch)[at_b], anew.shown(epoch, at_b))


@pytest.mark.parametrize(
    ("said", "expected"),
    [("8G", 8 << 30), ("8GiB", 8 << 30), ("8GB", 8 * 10**9), ("512MiB", 512 << 20), ("1.5 k", 1536), ("77", 77)],
)
def test_sizes_are_read_as_people_write_them(said: str, expected: int):
    assert size_bytes(said) == expected


@pytest.mark.parametrize("said", ["", "0", "8Q", "-1G", "G", "iB", "nan", "1e9", "0.1", "8 GG"])
def test_what_is_no_size_is_refused(said: str):
    with pytest.raises(UsageError, match="Give it as 8G"):
        size_bytes(said)


COMMANDS = ["train-teacher", "cache-teacher", "score", "distill", "build-subset --frac 0.5", "sweep --frac 0.5"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_limit_that_can_not_be_ends_every_command_with_one_line(command: str, tmp_path: Path):
    for said, words in [("8Q", ("--memory-limit 8Q", "not a size")), ("5M", ("takes", "before it begins"))]:
        refused(kdtool(*command.split(), "--memory-limit", said, "-w", tmp_path), 2, *words)
    assert not list(tmp_path.iterdir())


def fed(digits: Path, kind: str) -> Any:
    bundle = open_bundle(digits / "subsets" / "third")
    targets = load_knowledge(bundle, match="nearest", views=3).targets
    how = (compute_on("cpu", "float32", 1), targets, kind)
    return open_source(bundle.images(), bundle.indices_m, bundle.data, 50, 3, *how)


def test_a_limit_too_small_for_the_data_streams_the_same_batches(digits: Path, monkeypatch: pytest.MonkeyPatch):
    free = fed(digits, "auto")
    bundle = open_bundle(digits / "subsets" / "third")
    needed = resident_bytes(free.rows, bundle.data, load_knowledge(bundle, match="nearest", views=3).targets)
    monkeypatch.setattr("toolkit.core.memory.taken_bytes", lambda: 1 << 30)
    with kept_to((1 << 30) + 2 * needed - 1):
        # of so few rows FFCV's buffers would be more than all there is
        monkeypatch.setattr("toolkit.pipeline.sources._BATCHES", 0)
        monkeypatch.setattr("toolkit.pipeline.sources.FFCV_BYTES", 0)
        small = fed(digits, "auto")
        with pytest.raises(FailureError, match=r"--source resident.*Use --source stream"):
            fed(digits, "resident")
    with kept_to((1 << 30) + 2 * needed):
        assert fed(digits, "auto").name == "resident"
    with kept_to((1 << 30) + 100), pytest.raises(FailureError, match="streaming 433 rows takes"):
        fed(digits, "auto")
    assert (free.name, small.name) == ("resident", "stream")
    for one, other in zip(free.batches(2), small.batches(2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))


def test_several_processes_and_jobs_share_the_limit(monkeypatch: pytest.MonkeyPatch):
    for name in ("core.memory", "pipeline.sweep.command"):
        monkeypatch.setattr(f"toolkit.{name}.taken_bytes", lambda: 100)
    assert share_of_memory(4) is None and left_bytes(7) > 1 << 60
    with kept_to(1100):
        assert (left_bytes(), left_bytes(2), left_bytes(11), share_of_memory(4)) == (1000, 450, 0, 250)
        said = "1.1 KiB leave 100 bytes to each of 10 at a time, and a process takes 100 bytes before it begins"
        with pytest.raises(UsageError, match=f"{said}. Give it more, or fewer --jobs"):
            share_of_memory(10)
    assert share_of_memory(4) is None


def test_a_sweep_whose_processes_would_have_too_little_says_so_before_any_begins(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Too little for Python and torch, which is known at once; or for what a run holds, once its subset is there."""
    workspace = Path(shutil.copytree(digits, tmp_path / "work"))
    words = ("sweep", "--dataset", "digits", "--frac", 0.3, "--alpha", 0, "--epochs", 1, "-w", workspace, "--jobs", 2)
    taken = 64 << 20
    for name in ("core.memory", "pipeline.sweep.command"):
        monkeypatch.setattr(f"toolkit.{name}.taken_bytes", lambda: taken)
    refused(kdtool(*words, "--memory-limit", 3 * taken), 2, "--memory-limit", "each of 2", "fewer --jobs")
    assert not (workspace / "sweeps").exists()
    least = stream_bytes(433, 128, open_bundle(workspace / "subsets" / "third").data)
    before = list(workspace.glob("runs/*"))
    for more, source in ((2 * least - 4, "stream"), (0, "auto"), (0, "resident")):
        limit = 3 * taken + 2 + more
        result = kdtool(*words, "--source", source, "--batch-size", 128, "--memory-limit", limit)
        refused(result, 2, "--memory-limit", "holds", "fewer --jobs")
    assert list(workspace.glob("runs/*")) == before
    runs = [Run("key", "student", {}, {}, 1, (), {"auto": 5, "stream": 9})]
    how = How(Workspace(workspace), "cpu", "float32", False, 1, "auto", None, taken + 5)
    need_room(runs, how, 2)
    need_room(runs, replace(how, memory_limit=None), 2)
    with kept_to(1 << 40), pytest.raises(UsageError, match="student holds 9 bytes beside the 64"):
        need_room(runs, replace(how, source="stream"), 1)


def test_the_commands_that_take_a_limit_are_those_its_help_names():
    taking = {
        name: next(one.help or "" for one in command.params if one.name == "memory_limit")
        for name, command in cli.commands.items()
        if any(one.name == "memory_limit" for one in command.params)
    }
    (help_,) = set(taking.values())
    assert {word for word in re.findall(r"[a-z-]+", help_.partition(" Of ")[2]) if word in cli.commands} == set(taking)


def test_what_is_taken_is_told_by_the_system(tmp_path: Path):
    (tmp_path / "status").write_text("VmRSS:\t 900 kB\nRssAnon:\t 100 kB\nRssFile:\t 700 kB\nRssShmem:\t 3 kB\n")
    assert taken_bytes(tmp_path / "status") == 103 * 1024 and taken_bytes(tmp_path / "none") == 0
    assert [in_words(count) for count in (5, 1536, 3 << 20, 5 << 29)] == ["5 bytes", "1.5 KiB", "3.0 MiB", "2.5 GiB"]


def test_global_selection_that_can_not_fit_is_refused(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.core.memory.left_bytes", lambda sharing=1: 1000)
    words = ("build-subset", "--dataset", "digits", "--frac", 0.1, "--method", "herding", "--name", "no-room")
    result = kdtool(*words, "--no-balance", "--memory-limit", "1T", "-w", digits)
    refused(result, 1, "--no-balance --method herding on 1,442 rows takes", "Leave --no-balance out")
    assert not (digits / "subsets" / "no-room").exists()


def test_dynamics_spilled_to_disk_are_those_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made("pack", "--dataset", "digits", "--limit", 200, "-w", tmp_path)
    held = all_of(trained(tmp_path, "held", "--epochs", 4, "--seeds", 2))
    monkeypatch.setattr(toolkit.teacher.dynamics, "HELD_BYTES", 0)
    monkeypatch.setattr(toolkit.teacher.dynamics, "Held", None)  # what is not held is not made for a moment either
    assert same(all_of(trained(tmp_path, "spilled", "--epochs", 4, "--seeds", 2)), held)
    save, calls = toolkit.teacher.dynamics.Parts.save, []

    def killed(self: Any, key: str, **arrays: np.ndarray) -> None:
        calls.append(key)
        if len(calls) == 3:
            raise OSError("the third part is never written")
        save(self, key, **arrays)

    words = (*TRAIN, "--name", "stopped", "--epochs", 4, "--seeds", 2, "-w", tmp_path)
    with monkeypatch.context() as once:
        once.setattr(toolkit.teacher.dynamics.Parts, "save", killed)
        assert kdtool(*words).exit_code == 1
    left = sorted(path.name for path in (tmp_path / "teachers" / "stopped" / "dynamics.h5.parts").glob("*.log-*"))
    assert left == [f"seed-0-process-0-epoch-{epoch:05d}.log-probabilities" for epoch in (2, 3)]
    made(*words)
    assert same(all_of(tmp_path / "teachers" / "stopped"), held)
    assert sorted(path.name for path in (tmp_path / "teachers" / "stopped").iterdir()) == sorted(
        path.name for path in (tmp_path / "teachers" / "held").iterdir()
    )


class Content(CacheContent):
    """Three blocks of three views, made up."""

    def block(self, slot: int, number: int, name: str) -> np.ndarray:
        rows = min(BLOCK_ROWS, self.rows - number * BLOCK_ROWS)
        logits_bc = rng_for(slot, number).normal(0, 3, (rows, self.encoding.classes)).astype(np.float32)
        return self.encoding.encode(logits_bc)[name]

    def features(self, number: int) -> None:
        return None

    def canonical(self, number: int) -> np.ndarray:
        return self.block(0, number, "logits")


@pytest.mark.parametrize("encoding", ["float16", "int8", "topk:3"])
def test_scores_are_the_same_bits_however_few_rows_are_decoded(encoding: str, monkeypatch: pytest.MonkeyPatch):
    content = Content(2 * BLOCK_ROWS + 5, Encoding.parse(encoding, 7))
    labels_n = rng_for(3).integers(0, 7, content.rows)
    whole = scores_of_views(content, 3, labels_n, silent)
    monkeypatch.setattr(cache_content, "_STORED_BYTES", 40_000)
    monkeypatch.setattr(cache_content, "_DECODED_BYTES", 3_000)
    parts = scores_of_views(content, 3, labels_n, silent)
    assert whole.keys() == parts.keys() == {"disagreement"}
    assert np.array_equal(whole["disagreement"], parts["disagreement"])


def test_scores_read_each_block_once_where_there_is_room_for_its_views(monkeypatch: pytest.MonkeyPatch):
    """And no features, which none of them looks at but the first block's, to know whether there are any."""
    read = Counter[Any]()

    class Counted(Content):
        def block(self, slot: int, number: int, name: str) -> np.ndarray:
            read[slot, number, name] += 1
            return super().block(slot, number, name)

        def features(self, number: int) -> None:
            read["features", number] += 1

    monkeypatch.setattr(cache_content, "_STORED_BYTES", 40_000)
    content = Counted(2 * BLOCK_ROWS + 5, Encoding.parse("int8", 7))
    scores_of_views(content, 3, np.zeros(content.rows, np.int64), silent)
    assert set(read.values()) == {1} and ("features", 1) not in read
    monkeypatch.setattr(cache_content, "free_memory_bytes", lambda: 0)
    scores_of_views(content, 3, np.zeros(content.rows, np.int64), silent)
    assert max(read.values()) > 2


def test_logits_from_outside_are_encoded_once_for_all_of_a_slots_datasets(tmp_path: Path):
    read, logits_nc = list[int](), np.zeros((5, 7), np.float32)
    table = SimpleNamespace(name="logits", block=lambda number: read.append(number) or logits_nc)
    given: Any = _Given(5, Encoding.parse("topk:2", 7), [table], None)
    assert len(given.encoded(0, 0)) > 1 and read == [0]


@pytest.mark.parametrize("method", ["contextual-diversity", "cal", "glister"])
@pytest.mark.parametrize("balance", [True, False])
def test_logits_decoded_when_looked_at_choose_the_same_rows(method: str, balance: bool):
    encoding, rng = Encoding.parse("int8", 6), rng_for(4)
    labels_n, features_nd = np.arange(120) % 6, rng.normal(size=(120, 5)).astype(np.float32)
    stored: Arrays = encoding.encode(rng.normal(0, 3, (120, 6)).astype(np.float32))
    pools = [
        Pool(labels_n, None, features_nd, logits) for logits in (encoding.dense(stored), DecodedRows(encoding, stored))
    ]
    picked = [choose(method, pool, 0.2, rng_for(5), balance=balance) for pool in pools]
    assert np.array_equal(picked[0].rows_m, picked[1].rows_m)


def test_past_200_classes_the_small_encoding_is_the_default():
    assert [default_encoding(classes) for classes in (10, 200, 201, 1000)] == ["float16", "float16", "int8", "int8"]


def test_images_read_once_come_back_from_disk(tmp_path: Path):
    images = [rng_for(row).integers(0, 256, (row + 1, 7 - row, 3), dtype=np.uint8) for row in range(5)]
    with Spilled(5, tmp_path) as spilled:
        for image in images:
            spilled.add(image)
    assert len(spilled) == 5 and not list(tmp_path.iterdir())
    assert all(np.array_equal(spilled[row], image) for row, image in enumerate(images))
    assert np.array_equal(spilled[np.array([3, 1])][0], images[3])


def test_an_opened_file_is_left_as_it_is_by_what_is_written_to_its_records(files: dict[int, Path]):
    def opened() -> Beton:
        return open_beton(files[FEW])

    before = opened().labels_n[:9].tolist()
    opened().records_n["label"][:] = 3
    assert opened().labels_n[:9].tolist() == before
