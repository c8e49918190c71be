"""The processes of a sweep: started once, fed with run after run, replaced when they die, ended with this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

from toolkit.core.errors import FailureError
from toolkit.core.interrupts import Stopped, stop_asked
from toolkit.pipeline.sweep.resolve import Run
from toolkit.pipeline.sweep.worker import Done, Failed, How, Images, Later, Ready, serve

OnImages = Callable[[Run, int], None]
OnEnd = Callable[[Run, Done | Failed], None]

_POLL_S = 0.2  # how soon a stop is seen
_GRACE_S = 60.0  # for a step and a checkpoint
_LEAVE_S = 10.0  # for a process whose pipe has ended
_GUARD = "if __name__ == '__main__':"


class _Worker:
    """A process, the pipe to it, and the run it was given."""

    def __init__(self, how: How) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half, and no GPU survives it
        self.run: Run | None = None
        self.ready = self.dead = False
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, how))
        with _inherited(how.threads):
            self.process.start()
        theirs.close()

    def give(self, run: Run) -> None:
        self.run = run
        self._send(run)

    def dismiss(self) -> None:
        self._send(None)

    def _send(self, run: Run | None) -> None:
        with suppress(OSError):  # it has died: `messages` tells
            self.connection.send(run)

    def messages(self) -> Iterator[Images | Done | Failed | Later]:
        """What it has sent; of one that died with a run on its hands, last of all what becomes of the run."""
        try:
            while self.connection.poll():
                message = self.connection.recv()
                self.ready = True
                if not isinstance(message, Ready):
                    yield message
        except (EOFError, OSError):
            self._leave()  # the pipe ends when the process does
            self.dead = True
        if not self.dead and not self.process.is_alive() and not self.connection.poll():
            self.dead = True  # a process of its own may still hold the pipe
        if self.dead:
            code = self.process.exitcode
            yield Later() if code == -signal.SIGTERM else Failed(_how_it_died(code), None)

    def _leave(self) -> None:
        self.process.join(_LEAVE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def close(self) -> None:
        self.connection.close()
        self.process.close()


def train_all(runs: Sequence[Run], how: How, jobs: int, on_images: OnImages, on_end: OnEnd) -> int:
    """Trains all runs, `jobs` at a time, each told to `on_end` once. Returns 0, or the number of the signal that asked
    to stop: then those under way have saved where they are, and nothing more is begun. So they have where `on_end`
    raises. Raises FailureError where processes cannot start."""
    waiting, workers = deque(runs), list[_Worker]()
    with stop_asked() as stop:
        try:
            while not stop.number and (waiting or any(worker.run for worker in workers)):
                _feed(workers, waiting, how, jobs)
                for worker in _ready(workers):
                    _hear(worker, waiting, workers, on_images, on_end)
            _end(workers, stop.number != 0, on_end)
        except Stopped:  # at once
            raise
        except Exception:
            _end(workers, True, lambda run, outcome: None)
            raise
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()
                worker.close()
    return stop.number


def _feed(workers: list[_Worker], waiting: deque[Run], how: How, jobs: int) -> None:
    """Gives every idle process a run, and starts new ones as long as there are runs for them."""
    for worker in workers:
        if worker.run is None and waiting and worker.process.is_alive():
            worker.give(waiting.popleft())
    while waiting and len(workers) < jobs:
        workers.append(_Worker(how))
        workers[-1].give(waiting.popleft())


def _ready(workers: list[_Worker]) -> list[_Worker]:
    """Those that have sent something, or died."""
    signs = {sign: worker for worker in workers for sign in (worker.connection, worker.process.sentinel)}
    return list(dict.fromkeys(signs[sign] for sign in wait(list(signs), timeout=_POLL_S)))  # type: ignore[index]


def _hear(worker: _Worker, waiting: deque[Run], workers: list[_Worker], on_images: OnImages, on_end: OnEnd) -> None:
    for message in worker.messages():
        _need_started(worker)
        run = worker.run
        if run is None:
            break
        if isinstance(message, Images):
            on_images(run, message.shown)
            continue
        worker.run = None
        if isinstance(message, Later):
            waiting.append(run)
        else:
            on_end(run, message)
    if worker.dead:
        workers.remove(worker)
        worker.close()


def _need_started(worker: _Worker) -> None:
    """Raises FailureError for a process that ended by itself before it was there: so would every other."""
    if worker.dead and not worker.ready and (worker.process.exitcode or 0) > 0:
        raise FailureError(
            f"sweep: a process of it could not start (exit code {worker.process.exitcode}): what it said stands above. "
            f"A Python script must call sweep under {_GUARD}"
        )


def refuse_unguarded() -> None:
    """Ends a process of a sweep that, while it starts, imports a script which calls sweep again: with one line, as
    nobody would catch an error here."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # what multiprocessing itself looks at
        raise SystemExit(f"kdtool: this script starts a sweep wherever it is imported. Call it under {_GUARD}")


def _end(workers: list[_Worker], told: bool, on_end: OnEnd) -> None:
    """Ends the processes: idle ones leave, those that train are `told` and save first. A run that ends just now
    counts."""
    for worker in workers:
        worker.dismiss()
        if told:
            worker.process.terminate()
    deadline_s = time.monotonic() + _GRACE_S
    while any(worker.process.is_alive() for worker in workers) and time.monotonic() < deadline_s:
        wait([worker.process.sentinel for worker in workers if worker.process.is_alive()], timeout=_POLL_S)
        for worker in workers:
            for message in worker.messages():
                if isinstance(message, Done) and worker.run is not None:
                    on_end(worker.run, message)
                    worker.run = None


@contextmanager
def _inherited(threads: int | None) -> Iterator[None]:
    """Within the block a new process inherits so many threads for torch, from its start, and a deaf ear to SIGINT: a
    terminal sends Ctrl-C to all processes, and this one tells the others."""
    before = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    resource_tracker.ensure_running()  # multiprocessing's own process, which would unblock it as it starts
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        killed = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        often = ": often the system's, for lack of memory; then run it with fewer --jobs" if code == -9 else ""
        return f"its process was ended by {killed}{often}"
    return f"its process ended with exit code {code}"
