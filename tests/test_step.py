"""A step never waits: no operation of a step, or of drawing a batch, has a result that the host must see to go on.

On a GPU such an operation stops the host until the device has done all it was told, and the device then idles while the
host catches up. On a CPU nothing waits, so the operations themselves are watched for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.loss_curves import CASES, Case, loss_of, resident_source, stream_source, trainer_of
from toolkit.training.loop import Trainer, _Under
from toolkit.training.showing import Batch

# Each gives the host a number, or a tensor whose shape depends on the numbers in another.
WAITING = {
    "allclose",
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "histc",
    "repeat_interleave",
    "tensor_split",
}
# Of these no operation tells on a CPU. Each takes numbers from the device, or sends it some from pageable memory.
CROSSING = {"tolist", "numpy", "cpu", "__array__", "tensor", "as_tensor", "asarray", "from_numpy"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
CASES_OF_A_STEP = [
    *CASES.items(),
    *((precision, Case(precision=precision)) for precision in ("float32", "bfloat16")),
    ("smoothed and averaged", Case(alpha=0.5, changed=(("label_smoothing", 0.1), ("ema", 0.9)))),
    ("no decay of batch normalisation", Case(changed=(("batchnorm_decay", False),))),
]


class Operations(TorchDispatchMode):
    """Fails at the operation that would wait, so that the traceback shows whose it is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [index for index in (args[1] if name in INDEXING else ()) if is_mask(index)]
        assert name not in WAITING and not masks, f"the host would wait for {func}"
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """Fails at the call that would cross to the device and back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        places = [place for place in (*args[1:], *kwargs.values()) if isinstance(place, torch.device | str)]
        sent_and_waited_for = name == "to" and places and not kwargs.get("non_blocking")
        assert name not in CROSSING and not sent_and_waited_for, f"the host would wait for {func}"
        return func(*args, **kwargs)


@contextmanager
def never_waits() -> Iterator[None]:
    with Calls(), Operations():
        yield


def is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def started(case: Case, device: str = "cpu") -> tuple[Trainer, Iterator[Batch]]:
    """A trainer after its first step, and its source's batches after the first: with that one come the epoch's order
    and views, and with that step the optimizer's state."""
    source = resident_source(case, device)
    trainer = trainer_of(case, source, loss_of(case), device)
    trainer.model.train()
    batches = source.batches(0)
    trainer.take_step(next(batches))
    return trainer, batches


@pytest.mark.parametrize(("name", "case"), CASES_OF_A_STEP, ids=[name for name, _ in CASES_OF_A_STEP])
def test_a_step_never_waits(name: str, case: Case):
    trainer, batches = started(case)
    batch = next(batches)
    with never_waits():
        trainer.take_step(batch)


def test_keeping_what_a_step_gave_never_waits():
    trainer, batches = started(CASES["student"])
    under = _Under()
    for batch in batches:
        loss, hits = trainer.take_step(batch)
        with never_waits():
            under.add(loss, hits, len(batch.labels_b), len(trainer.source))
    assert under.batches == len(trainer.source) - 1


@pytest.mark.parametrize("kind", ["resident", "stream"])
@pytest.mark.parametrize(("name", "case"), CASES_OF_A_STEP, ids=[name for name, _ in CASES_OF_A_STEP])
def test_drawing_a_batch_never_waits(name: str, case: Case, kind: str, digits: Path):
    """Of the streaming source what its loop does; a thread of its own waits for the disk."""
    source = resident_source(case) if kind == "resident" else stream_source(case, digits)
    batches = source.batches(1)
    next(batches)
    with never_waits():
        assert len(list(batches)) == len(source) - 1


def is_noticed(waits: Callable[[], Any]) -> bool:
    try:
        with never_waits():
            waits()
    except AssertionError as error:
        assert "the host would wait" in str(error)
        return True
    return False


X, POSITIONS = torch.arange(6.0), torch.tensor([0, 1])
OPERATIONS: dict[str, tuple[Callable[[], Any], bool]] = {
    "item": (lambda: X.sum().item(), True),
    "float": (lambda: float(X[0]), True),
    "tolist": (lambda: X.sum().tolist(), True),
    "numpy": (lambda: X.sum().numpy(), True),
    "to the host": (lambda: X.cpu(), True),
    "to another place": (lambda: X.to("cpu"), True),
    "sent on its way": (lambda: X.to(torch.device("cpu"), non_blocking=True), False),
    "to another type": (lambda: X.to(torch.float64), False),
    "numbers from the host": (lambda: X * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), True),
    "if": (lambda: 1 if X.isfinite().all() else 0, True),
    "equal": (lambda: torch.equal(X, X), True),
    "allclose": (lambda: torch.allclose(X, X), True),
    "nonzero": (lambda: torch.nonzero(X), True),
    "where of one argument": (lambda: torch.where(X > 2), True),
    "masked_select": (lambda: X.masked_select(X > 2), True),
    "a mask as an index": (lambda: X[X > 2], True),
    "a tensor put in by a mask": (lambda: X.clone().__setitem__(X > 2, X[:3]), True),
    "unique": (lambda: X.unique(), True),
    "repeat_interleave": (lambda: X.repeat_interleave(torch.arange(6)), True),
    "positions as an index": (lambda: X[POSITIONS], False),
    "where of three": (lambda: torch.where(X > 2, X, 0.0), False),
    "masked_fill": (lambda: X.masked_fill(X > 2, 0.0), False),
    "argmax": (lambda: (X.argmax() == 2).sum(), False),
}


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_the_watch_knows_what_waits(name: str):
    operation, waits = OPERATIONS[name]
    assert is_noticed(operation) == waits


def test_a_loss_that_reads_its_own_value_is_noticed():
    trainer, batches = started(CASES["student"])
    loss, batch = trainer.loss, next(batches)

    def peeping(logits_bc: Tensor, batch: Batch) -> Tensor:
        value = loss(logits_bc, batch)
        assert value.item() >= 0
        return value

    trainer.loss = peeping
    assert is_noticed(lambda: trainer.take_step(batch))


def test_a_source_that_picks_rows_by_a_mask_is_noticed():
    source = resident_source(CASES["student"])
    batches = source.batches(0)
    next(batches)
    draw = source._renderer.draw
    source._renderer.draw = lambda rows_b, views_b3: draw(rows_b, views_b3)[rows_b >= 0]  # type: ignore[method-assign]
    assert is_noticed(lambda: next(batches))


@contextmanager
def refused_to_wait() -> Iterator[None]:
    """torch's own watch, on a GPU: it raises where the host waits."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(CASES))
def test_on_a_gpu_neither_a_step_nor_drawing_waits(name: str, precision: str):
    trainer, batches = started(replace(CASES[name], precision=precision), "cuda")
    with refused_to_wait():
        for batch in batches:
            trainer.take_step(batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["topk:4", "int8", "all views, mean"])
def test_on_a_gpu_both_sources_give_the_same_batches(name: str, digits: Path):
    """However late a batch is looked at: FFCV's own buffers are written over."""
    case = CASES[name]
    for epoch in range(2):
        streamed = list(stream_source(case, digits, "cuda").batches(epoch))
        resident = list(resident_source(case, "cuda").batches(epoch))
        for ours, theirs in zip(streamed, resident, strict=True):
            assert torch.equal(ours.images_bchw, theirs.images_bchw) and torch.equal(ours.rows_b, theirs.rows_b)
            alike = zip(targets_in(ours), targets_in(theirs), strict=True)
            assert all(torch.equal(one, other) for one, other in alike)


def targets_in(batch: Batch) -> list[Tensor]:
    return list(batch.logits_bc) if isinstance(batch.logits_bc, tuple) else [batch.logits_bc]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_watch_notices_item():
    x = torch.ones(1, device="cuda")
    with refused_to_wait(), pytest.raises(RuntimeError, match="synchroniz"):
        x.item()
