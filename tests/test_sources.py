"""Two sources, one truth: what the resident and the streaming source give, and what the loop says of waiting for them.

Shapes: n rows, b batch, c classes, k slots.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import toolkit.pipeline.sources
from tests.conftest import kdtool, made
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.recipes import RECIPES
from toolkit.distill.losses import distillation_loss
from toolkit.formats.beton import Beton, open_beton
from toolkit.formats.beton_writer import Storage, write_beton
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.cache import open_cache
from toolkit.formats.dataset import open_packed
from toolkit.formats.encodings import Encoding
from toolkit.formats.ffcv_loader import one_epoch, open_loader
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import open_source, resident_bytes
from toolkit.pipeline.student import distill as run_student
from toolkit.teacher.train import label_loss
from toolkit.training.compile import compiled_forward
from toolkit.training.evaluate import predict
from toolkit.training.loop import EpochResult, Trainer
from toolkit.training.prefetch import made_ahead
from toolkit.training.showing import Batch
from toolkit.training.targets import Targets, TopK

BATCH, SEED, SLOTS = 50, 3, 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle(digits: Path) -> Bundle:
    return open_bundle(digits / "subsets" / "third")


@pytest.fixture(scope="module")
def jpeg(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """The digits' test images again, as JPEG."""
    packed = open_beton(digits / "data" / "digits" / "test.beton")
    frames, labels = packed.frames(), packed.labels_n

    class Samples:
        def __len__(self) -> int:
            return len(frames)

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            return frames[row], int(labels[row])

    path = tmp_path_factory.mktemp("jpeg") / "test.beton"
    write_beton(Samples(), path, classes=10, storage=Storage("jpg"))
    return open_beton(path)


def source_of(kind: str, bundle: Bundle, targets: Targets | None, images: Beton | None = None, threads: int = 1):
    images = bundle.images() if images is None else images
    indices = bundle.indices_m if images.path == bundle.images_path else np.arange(0, len(images), 2)
    compute = compute_on("cpu", "float32", threads)
    return open_source(images, indices, bundle.data, BATCH, SEED, compute, targets, kind)


def flat(batch: Batch) -> list[torch.Tensor]:
    images_bchw, labels_b, rows_b, logits, weights = batch
    more = [] if logits is None else list(logits) if isinstance(logits, TopK) else [logits]
    return [images_bchw, labels_b, rows_b, *more, *([] if weights is None else [weights])]


def same_batches(one, other, epochs: int = 3) -> bool:
    for epoch in range(epochs):
        pairs = list(zip(one.batches(epoch), other.batches(epoch), strict=True))
        assert len(pairs) == len(one) == len(other) > 2
        for ours, theirs in pairs:
            alike = zip(flat(ours), flat(theirs), strict=True)
            if not all(a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b) for a, b in alike):
                return False
    return True


def encoded(bundle: Bundle, name: str, match: str) -> Targets:
    """The bundle's targets, as a cache of another encoding would hold them."""
    found = load_knowledge(bundle, views=SLOTS).targets
    encoding = Encoding.parse(name, 10)
    slots = [encoding.encode(found.dense(slot)) for slot in range(SLOTS)]
    return Targets(encoding, {array: np.stack([slot[array] for slot in slots]) for array in slots[0]}, match)


# one truth


@pytest.mark.parametrize("match", ["exact", "nearest", "mean"])
@pytest.mark.parametrize("encoding", ["float16", "float32", "int8", "topk:3"])
def test_law_2_both_sources_give_the_same_batches_bit_for_bit(bundle: Bundle, encoding: str, match: str):
    if (encoding, match) == ("topk:3", "mean"):
        return  # refused: test_encodings.py
    targets = encoded(bundle, encoding, match)
    assert same_batches(source_of("resident", bundle, targets), source_of("stream", bundle, targets, threads=2))


def test_law_2_holds_without_targets_and_would_notice_another_seed(bundle: Bundle):
    resident, stream = (source_of(kind, bundle, None) for kind in ("resident", "stream"))
    assert same_batches(resident, stream)
    other = open_source(
        bundle.images(), bundle.indices_m, bundle.data, BATCH, SEED + 1, compute_on("cpu", "float32"), None, "stream"
    )
    assert not same_batches(resident, other)


def test_law_2_holds_for_jpeg_frames(bundle: Bundle, jpeg: Beton):
    assert not jpeg.raw
    assert same_batches(source_of("resident", bundle, None, jpeg), source_of("stream", bundle, None, jpeg))


def test_a_network_is_evaluated_on_jpeg_frames_too(bundle: Bundle, jpeg: Beton, digits: Path):
    raw, data = open_packed(digits / "data" / "digits").split("test"), bundle.data
    model = build_model("resnet8", 10, width=4)
    shown = (data.plan, data.mean, data.std, CPU, "float32")
    of_jpeg, of_raw = predict(model, jpeg, *shown), predict(model, raw, *shown)
    assert len(of_jpeg) == len(of_raw)
    assert (of_jpeg == of_raw).float().mean() > 0.8  # JPEG changes pixels a little


def test_frames_of_many_sizes_are_refused_by_pad_crops(bundle: Bundle, tmp_path: Path):
    class Ragged:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            return np.full((8 + row % 2, 8, 3), row, np.uint8), 0

    for mode in ("raw", "jpg"):
        write_beton(Ragged(), tmp_path / f"{mode}.beton", classes=10, storage=Storage(mode))
        images = open_beton(tmp_path / f"{mode}.beton")
        for kind in ("resident", "stream"):
            with pytest.raises(FailureError, match=r"differ in size|not all raw and of one size"):
                open_source(images, np.arange(20), bundle.data, BATCH, SEED, compute_on("cpu"), None, kind)


# targets left on disk


def test_targets_on_disk_are_those_read_into_memory(digits: Path, bundle: Bundle):
    path = bundle.targets_path("digits-resnet8")
    with open_cache(path) as cache:
        mapped = cache.encoded(SLOTS)["logits"]
        read = np.stack([cache.read(f"slots/{slot}/logits") for slot in range(SLOTS)])
    assert not mapped[0].flags.writeable and not mapped[0].flags.owndata  # a map, not a copy
    assert np.array_equal(mapped.in_memory(), read)  # and it outlives the reader


def test_targets_of_a_cache_that_grew_are_mapped_alike(digits: Path, tmp_path: Path):
    common = ("-w", tmp_path, "--dataset", "digits", "--limit", "200")
    made("cache-teacher", *common, "--views", "1")
    made("cache-teacher", *common, "--views", "3")
    made("build-subset", *common, "--frac", "0.5", "--name", "half")
    half = open_bundle(tmp_path / "subsets" / "half")
    with open_cache(half.targets_path("digits-resnet8")) as cache:
        read = [cache.read(f"slots/{slot}/logits") for slot in range(3)]
        assert np.array_equal(cache.encoded(3)["logits"].in_memory(), np.stack(read))


def test_damaged_targets_are_refused_before_they_are_mapped(bundle: Bundle, digits: Path, tmp_path: Path):
    path = tmp_path / "targets.h5"
    path.write_bytes(bundle.targets_path("digits-resnet8").read_bytes())
    with h5py.File(path, "r") as file:
        offset = file["slots/2/logits"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 11] ^= 1
    path.write_bytes(content)
    damage = "slots/2/logits, rows from 0, fails its checksum"
    with open_cache(path) as cache, pytest.raises(FailureError, match=damage):
        cache.encoded(SLOTS)


# which source


def test_auto_streams_only_what_does_not_fit(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    targets = load_knowledge(bundle).targets
    needed = resident_bytes(len(bundle.rows_m), bundle.data, targets)
    frames, logits = source_of("resident", bundle, targets)._renderer.bordered_nHWc, 10 * 2 * targets.slots
    assert needed == frames.nbytes + len(bundle.rows_m) * logits
    for free, kind in ((2 * needed, "resident"), (2 * needed - 2, "stream")):
        monkeypatch.setattr(toolkit.pipeline.sources, "free_bytes", lambda device, free=free: free)
        assert source_of("auto", bundle, targets).name == kind


def test_an_unknown_source_is_refused_by_name(digits: Path):
    result = kdtool("distill", "-w", digits, "--subset", "third", "--source", "streem")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "unknown source 'streem': did you mean stream?" in result.stderr


def test_a_run_on_either_source_is_the_same_run(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    words = ("distill", "-w", tmp_path, "--subset", "third", "--epochs", "2", "--threads", "1")
    resident = made(*words, "--source", "resident", "--name", "a")
    stream = made(*words, "--source", "stream", "--name", "b")
    assert (resident["source"], stream["source"]) == ("resident", "stream")
    assert (resident["top1"], resident["agreement"]) == (stream["top1"], stream["agreement"])
    weights = [torch.load(tmp_path / "runs" / name / "student.pt", weights_only=True)["weights"] for name in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert made(*words, "--source", "stream", "--name", "a") == resident  # finished already, on another source


# the loop


def trainer_on(source, epochs: int = 3, **more) -> Trainer:
    model = build_model("resnet8", 10, width=4, seed=1)
    steps = epochs * len(source)
    return Trainer(model, source, distillation_loss(0.5, 4.0), RECIPES["fast"], steps, CPU, "float32", **more)


def test_a_run_resumes_on_the_other_source_to_the_same_weights(bundle: Bundle):
    targets = load_knowledge(bundle, views=SLOTS).targets
    alone = trainer_on(source_of("resident", bundle, targets))
    for _ in range(3):
        alone.run_epoch()
    first = trainer_on(source_of("stream", bundle, targets))
    first.run_epoch()
    next(iter(first.source.batches(1)))  # and a killed run had looked at more
    second = trainer_on(source_of("stream", bundle, targets))
    second.load_state(first.state())
    second.run_epoch()
    third = trainer_on(source_of("resident", bundle, targets))
    third.load_state(second.state())
    third.run_epoch()
    weights = alone.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in third.model.state_dict().items())


def test_no_thread_outlives_an_epoch_however_it_ends(bundle: Bundle):
    stream = source_of("stream", bundle, load_knowledge(bundle, views=SLOTS).targets)
    list(stream.batches(0))
    before = threading.active_count()

    def broken(logits_bc: torch.Tensor, batch: Batch) -> torch.Tensor:
        raise RuntimeError("in the middle of a step")

    def unreadable(slot_b: np.ndarray, at_b: np.ndarray) -> None:
        raise OSError("the disk is gone")

    list(stream.batches(1))
    for batch in stream.batches(2):
        assert len(batch.labels_b) == BATCH
        break
    del batch
    trainer = trainer_on(stream)
    trainer.loss = broken
    with pytest.raises(RuntimeError, match="in the middle of a step") as kept:
        trainer.run_epoch()
    assert threading.active_count() == before, "while the traceback holds the epoch"
    assert kept.tb is not None
    stream._targets.read = unreadable
    with pytest.raises(OSError, match="the disk is gone") as kept:
        list(stream.batches(3))
    assert threading.active_count() == before


def test_a_dying_loader_ends_the_epoch_with_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    stream = source_of("stream", bundle, load_knowledge(bundle, views=SLOTS).targets)
    list(stream.batches(0))

    def dying(order: np.ndarray) -> None:
        raise KeyError("numba lost a function")

    before = threading.active_count()
    monkeypatch.setattr("ffcv.loader.epoch_iterator.EpochIterator.run_pipeline", lambda *arguments: dying(arguments))
    with pytest.raises(FailureError, match="FFCV's loader failed"):
        list(stream.batches(1))
    assert threading.active_count() == before


def test_batches_are_copies_even_of_buffers_that_are_pinned_already(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """Where FFCV finds a GPU its ring is pinned, and pin_memory() of such a tensor is the tensor itself."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with one_epoch(open_loader(bundle.images_path, 16, workers=1)) as batches:
        held = list(batches)
    images = torch.cat([images_bhwc for images_bhwc, _, _ in held]).numpy()
    assert np.array_equal(images, bundle.images().frames())
    assert len({images_bhwc.data_ptr() for images_bhwc, _, _ in held}) == len(held)


def batched(rows: int, batch_size: int) -> list[range]:
    return [range(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 1), (1, 64), (5, 1), (5, 64), (65, 64)])
def test_both_sources_agree_on_the_smallest_of_subsets(bundle: Bundle, rows: int, batch_size: int):
    shown = (bundle.images(), bundle.indices_m[:rows], bundle.data, batch_size, SEED, compute_on("cpu", "float32"))
    resident, stream = (open_source(*shown, kind=kind) for kind in ("resident", "stream"))
    for epoch in range(2):
        pairs = list(zip(resident.batches(epoch), stream.batches(epoch), strict=True))
        assert [len(ours.labels_b) for ours, _ in pairs] == [len(part) for part in batched(rows, batch_size)]
        for ours, theirs in pairs:
            assert all(torch.equal(a, b) for a, b in zip(flat(ours), flat(theirs), strict=True))


def test_a_second_epoch_of_a_live_stream_is_refused(bundle: Bundle):
    stream = source_of("stream", bundle, None)
    first = stream.batches(0)
    next(first)
    next(stream.batches(1))
    with pytest.raises(UsageError, match="one at a time"):
        list(first)


class Slow:
    """A source that takes a while over each batch, and gives a ragged last one."""

    batch_size, rows, batch_s = 8, 20, 0.03

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for rows in (8, 8, 4)[start:]:
            time.sleep(self.batch_s)
            yield Batch(torch.randn(rows, 3, 8, 8), torch.arange(rows), torch.arange(rows), None)


def test_waiting_for_data_is_measured_where_it_happens():
    """All of it, and nothing of the step."""
    step_s = 0.05

    def slowly(logits_bc: torch.Tensor, batch: Batch) -> torch.Tensor:
        time.sleep(step_s)
        return label_loss(logits_bc, batch)

    trainer = Trainer(build_model("resnet8", 10, width=2), Slow(), slowly, RECIPES["fast"], 6, CPU, "float32")
    result = trainer.run_epoch()
    assert 3 * Slow.batch_s <= result.wait_s <= result.elapsed_s - 3 * step_s


def test_a_run_that_ends_within_an_epoch_asks_for_no_batch_too_many():
    asked = []

    class Counted(Slow):
        def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
            for batch in super().batches(epoch, start):
                asked.append(epoch)
                yield batch

    trainer = Trainer(build_model("resnet8", 10, width=2), Counted(), label_loss, RECIPES["fast"], 4, CPU, "float32")
    assert [trainer.run_epoch().steps for _ in range(2)] == [3, 4]
    assert asked == [0, 0, 0, 1]


def test_a_run_of_an_earlier_version_is_shown_and_gone_on_with(digits: Path, tmp_path: Path):
    """0.2.0 measured no waiting and knew no sources."""
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    words = ("distill", "-w", tmp_path, "--subset", "third", "--epochs", "3", "--threads", "1", "--name")
    made(*words, "old")
    record = json.loads((tmp_path / "runs" / "old" / "run.json").read_text())
    for name in ("source", "wait_share", "compile_s"):
        del record["result"][name]
    (tmp_path / "runs" / "old" / "run.json").write_text(json.dumps(record))
    shown = kdtool(*words, "old")
    assert shown.exit_code == 0 and "img/s, 0 teacher forward passes" in shown.stdout

    unfinished = tmp_path / "runs" / "begun"
    killed = Killed()
    with pytest.raises(KeyboardInterrupt):
        run_student(Workspace(tmp_path), subset="third", epochs=3, threads=1, name="begun", on_epoch=killed)
    saved = torch.load(unfinished / "checkpoint.pt", weights_only=True)
    for epoch in saved["epochs"]:
        del epoch["wait_s"]
    torch.save(saved, unfinished / "checkpoint.pt")
    assert 0 < made(*words, "begun")["wait_share"] < 1


class Killed:
    """After the first epoch."""

    def __call__(self, result: EpochResult) -> None:
        raise KeyboardInterrupt


def test_what_is_made_ahead_comes_in_order_and_its_error_where_it_is_taken():
    def items() -> Iterator[int]:
        yield from range(5)
        raise KeyError("gone")

    taken = []
    with pytest.raises(KeyError, match="gone"), made_ahead(items(), 2) as ahead:
        for item in ahead:
            taken.append(item)
    assert taken == [0, 1, 2, 3, 4]


def test_what_nobody_takes_is_not_made():
    made_so_far, closed = [], []

    def items() -> Iterator[int]:
        try:
            for item in range(100):
                made_so_far.append(item)
                yield item
        finally:
            closed.append(threading.current_thread().name)

    with made_ahead(items(), 2) as ahead:
        assert next(ahead) == 0
    assert len(made_so_far) <= 5
    assert closed == ["kdtool-prefetch"]


# compiled


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 10)
        self.draws = False

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        if self.draws:
            torch.rand(3)
        return self.fc(torch.relu(self.norm(self.conv(x_bchw))).mean(dim=(2, 3)))


def tiny_run(compiled: bool) -> tuple[Trainer, list[float]]:
    torch.manual_seed(0)
    model = Tiny()
    torch.manual_seed(7)  # the source draws from it too: the warm-up may not
    trainer = Trainer(model, Slow(), label_loss, RECIPES["fast"], 6, CPU, "float32", compiled)
    return trainer, [trainer.run_epoch().loss for _ in range(2)]


def test_a_compiled_network_trains_as_the_plain_one_and_a_ragged_batch_does_not_recompile_it():
    import torch._dynamo

    plain, losses = tiny_run(compiled=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled, compiled_losses = tiny_run(compiled=True)
    assert (plain.compile_s, compiled.compile_s > 0) == (0.0, True)
    np.testing.assert_allclose(compiled_losses, losses, rtol=1e-5)
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(tensor, compiled.model.state_dict()[name], rtol=1e-4, atol=1e-6), name


def test_the_warm_up_leaves_no_trace(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: forward)
    model = Tiny().train()
    model.draws = True
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    forward, _ = compiled_forward(model, torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), "float32")
    assert forward == model.forward
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_subset_smaller_than_a_batch_is_compiled_too(monkeypatch: pytest.MonkeyPatch):
    class Few(Slow):
        batch_size = 64

        def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
            yield Batch(torch.randn(20, 3, 8, 8), torch.arange(20) % 10, torch.arange(20), None)

    monkeypatch.setattr("toolkit.training.loop.compiled_forward", lambda model, *_: (model, 0.25))
    trainer = Trainer(Tiny(), Few(), label_loss, RECIPES["fast"], 2, CPU, "float32", compiled=True)
    trainer.run_epoch()
    assert trainer.compile_s == 0.25


@pytest.mark.long
def test_law_3_holds_for_a_compiled_student(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    asked: dict[str, Any] = {"subset": "third", "epochs": 3, "batch_size": 100, "threads": 1, "compile": True}
    whole = run_student(Workspace(tmp_path), name="whole", **asked)
    with pytest.raises(KeyboardInterrupt):
        run_student(Workspace(tmp_path), name="killed", on_epoch=Killed(), **asked)
    resumed = run_student(Workspace(tmp_path), name="killed", **asked)
    assert whole["compile_s"] > 0 and (whole["top1"], whole["agreement"]) == (resumed["top1"], resumed["agreement"])
    weights = [torch.load(Path(run["path"]) / "student.pt", weights_only=True)["weights"] for run in (whole, resumed)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    teacher = made("train-teacher", "-w", tmp_path, "--dataset", "digits", "--epochs", "1", "--compile")
    assert teacher["name"].endswith("-compiled-s0") and teacher["compile_s"] > 0


def test_compile_time_is_no_part_of_an_epoch(monkeypatch: pytest.MonkeyPatch):
    def slowly(model: torch.nn.Module, images_bchw: torch.Tensor, precision: str):
        time.sleep(0.5)
        return model, 0.5

    monkeypatch.setattr("toolkit.training.loop.compiled_forward", slowly)
    trainer = Trainer(Tiny(), Slow(), label_loss, RECIPES["fast"], 6, CPU, "float32", compiled=True)
    start_s = time.perf_counter()
    result = trainer.run_epoch()
    assert trainer.compile_s == 0.5
    assert result.elapsed_s <= time.perf_counter() - start_s - 0.5


def test_a_network_that_cannot_be_compiled_is_one_clear_error(digits: Path, tmp_path: Path, monkeypatch):
    import torch._inductor.config

    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",), "fx_graph_cache": False}):
        result = kdtool("distill", "-w", tmp_path, "--subset", "third", "--epochs", "1", "--width", "3", "--compile")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("kdtool: --compile: torch could not compile the network (")
    assert "C++ compiler" in result.stderr and "Traceback" not in result.stderr
