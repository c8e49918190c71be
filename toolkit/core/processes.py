"""One run in several processes: who they are, how they meet and what they add up.

torchrun starts them and says in the environment who each is (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
The first one writes, prints and holds the locks; the others only compute. Tensors on the CPU are added up through gloo,
those on a GPU through NCCL, without making the host wait. What each says as it ends: see last_words.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from toolkit.core.errors import FailureError, KdtoolError, UsageError
from toolkit.core.interrupts import Stopped

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

_WORDS_WITHIN = timedelta(days=1)  # the others wait while the first one packs, evaluates or writes
_ARRIVED_WITHIN_S = 600.0  # on other machines they may start minutes later
_ARRIVED = "kdtool/arrived"


class Lost(FailureError):
    """Another process of this run ended, or does not answer."""


class Followed(KdtoolError):
    """The first process failed and says why: this one ends with its exit code and without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("the first process failed")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Processes:
    """Process `rank` of `count`, of the `local_count` on this machine number `local_rank`: all from 0. Every method but
    `share` is called by all of them, in the same order. Raises Lost, a FailureError, where another one has ended."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    _words: Any = field(default=None, repr=False, compare=False)  # gloo, patient: what is said and not computed

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's part of `rows` rows: see `share_of`."""
        return share_of(rows, self.rank, self.count)

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; the same bits in each."""
        if self.count > 1:
            import torch.distributed as dist

            with self._together():
                dist.all_reduce(tensor)
        return tensor

    def agreed(self, *numbers: int) -> tuple[int, ...]:
        """Of each number the largest that any process holds. A GPU does not wait for it."""
        if self.count == 1:
            return numbers
        import torch
        import torch.distributed as dist

        with self._together():
            largest = torch.tensor(numbers, dtype=torch.int64)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._words)
            return tuple(largest.tolist())

    def total(self, number: int) -> int:
        """The sum of what each process counted."""
        if self.count == 1:
            return number
        import torch
        import torch.distributed as dist

        with self._together():
            counted = torch.tensor(number)
            dist.all_reduce(counted, group=self._words)
            return int(counted)

    def barrier(self) -> None:
        """Waits until all are here."""
        self.agreed(0)

    def first_only(self, function: Callable[[], T]) -> T:
        """Runs it in the first process alone and gives its result, made of what JSON has, to all.

        Where it raises, the others raise Followed, with the same exit code. Not where it was told to stop: so were
        they, or they raise Lost as it ends. To tell them would take as long as they stand in their own last words.
        """
        if self.count == 1:
            return function()
        import torch.distributed as dist

        answer: list[Any] = [None]
        if self.first:
            try:
                answer = [{"result": function()}]
            except (Stopped, KeyboardInterrupt):
                raise
            except BaseException as error:
                with suppress(Lost), self._together():
                    failed = {"failed": getattr(error, "exit_code", 1)}
                    dist.broadcast_object_list([failed], src=0, group=self._words)
                raise
        with self._together():
            dist.broadcast_object_list(answer, src=0, group=self._words)
        if "failed" in answer[0]:
            raise Followed(answer[0]["failed"])
        return answer[0]["result"]

    def first_before(self, function: Callable[[], T]) -> T:
        """Runs it in the first process and then, where nothing is left to be made, in the others."""
        made: list[T] = []
        if self.count > 1:
            self.first_only(lambda: made.append(function()))
        return made[0] if made else function()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """gloo and NCCL tell of a process that is gone in words of their own."""
        try:
            yield
        except RuntimeError as error:
            raise Lost(
                f"another of the {self.count} processes ended (see above, and torchrun's summary below). Mend what it "
                "says, then run the same command again: it goes on from its last checkpoint or part"
            ) from error


ALONE = Processes()


def share_of(rows: int, rank: int, count: int) -> slice:
    """Where part `rank` of `rows` rows lies when they are dealt out to `count` as np.array_split does: in order, and
    the first ones one row longer where they don't come out even."""
    size, longer = divmod(rows, count)
    start = rank * size + min(rank, longer)
    return slice(start, start + size + (rank < longer))


def told() -> tuple[int, int, int]:
    """(rank, count, local rank), as torchrun says in the environment; (0, 1, 0) without it.

    Raises UsageError where they are no such numbers.
    """
    words = [os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))]
    words.append(os.environ.get("LOCAL_RANK", words[0]))
    if not all(word.isascii() and word.isdecimal() for word in words) or int(words[0]) >= int(words[1]):
        raise UsageError(
            f"RANK {words[0]}, WORLD_SIZE {words[1]}, LOCAL_RANK {words[2]}: not what torchrun says. "
            "Start it by torchrun, or take these out of the environment"
        )
    rank, count, local_rank = map(int, words)
    return (rank, count, local_rank) if count > 1 else (0, 1, 0)


def local_count() -> int:
    """How many processes torchrun started on this machine; 1 where it does not say."""
    word = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(word) if told()[1] > 1 and word.isascii() and word.isdecimal() else 1


def silent_here() -> bool:
    """Whether this is a process of several that prints nothing, as it is not the first."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


_store: Any = None  # torchrun's, which outlives each of its processes
_met = 0


def meeting_store() -> Any:
    """What processes that have joined can leave words in for each other, even as they end; None before."""
    return _store


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started together, once all are here; ALONE without it. They part with the block.

    After an error they don't: the others learn of it as this process ends, and not before it said why.
    """
    global _store, _met
    rank, count, local_rank = told()
    if count == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized():  # left by an error, where Python goes on after it
        dist.destroy_process_group()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        _met += 1  # who meets again must not read what was written the time before
        store = dist.PrefixStore(f"kdtool-{_met}", next(rendezvous("env://"))[0])
        _all_arrived(store, count)
        _store = store
        dist.init_process_group(backend, store=_store, rank=rank, world_size=count)
        words = dist.new_group(backend="gloo", timeout=_WORDS_WITHIN)
    except (RuntimeError, ValueError) as error:
        found = " ".join(str(error).split())[:160]
        raise FailureError(f"{count} processes did not find each other ({found}). Start them by torchrun") from error
    yield Processes(rank, count, local_rank, local_count(), words)
    dist.destroy_process_group()
    _store = None


def _all_arrived(store: Any, count: int) -> None:
    """Waits, as torch would, but here signals are heard: one may have died on its way. Raises FailureError in the
    end."""
    here, deadline_s = store.add(_ARRIVED, 1), time.monotonic() + _ARRIVED_WITHIN_S
    while here < count:
        if time.monotonic() > deadline_s:
            raise FailureError(
                f"only {here} of {count} processes arrived within {_ARRIVED_WITHIN_S:g} s. Look at what the others say"
            )
        time.sleep(0.02)
        here = store.add(_ARRIVED, 0)


def in_processes(function: Callable[P, T]) -> Callable[P, T]:
    """Of a function of the pipeline that takes `processes`: it is run by all that torchrun started together."""

    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        with joined() as processes:
            return function(*arguments, **{"processes": processes, **named})  # type: ignore[arg-type]

    return run


def refuse_in_processes(count: int, what: str, instead: str) -> None:
    """Raises UsageError for what only one process can do."""
    if count > 1:
        raise UsageError(f"{what} works in one process, not in {count}. {instead}")


def parts_fit(rows: int, batch_size: int, processes: Processes) -> None:
    """Raises UsageError where a whole batch has not a row for each process."""
    if min(rows, batch_size) < processes.count:
        found = f"--batch-size {batch_size}" if batch_size <= rows else f"{rows} rows"
        raise UsageError(f"{found}: {processes.count} processes need a row each. Start fewer processes")
