"""make bench: each stage's rate beside its bound, in turn in one run, on Fashion-MNIST; 5 to 8 minutes on two cores.

    python -m benchmarks.throughput [--save] [--quick]      # --save writes results/throughput-<date>.json
    python -m benchmarks.throughput --gpu …                 # on a GPU: see benchmarks/gpu.py

- pack counts decoding the source, checking, FFCV's writer, fingerprints and fsync. Bound: the slower of decoding alone
  and writing the same bytes with fsync.
- build-subset counts choosing the half, copying its frames, fingerprint, records and fsync. Bound: copying the image
  file it wrote, in this process, with fsync.
- cache-teacher counts drawing the views, the teacher, encoding, and saving each part with fsync. Bound: the teacher's
  forward pass on one batch, over and over, same precision.
- distill counts whole epochs: waiting for data, the step, progress, the look at the losses. Bound: the student's
  forward, loss, backward and optimizer step on one batch, over and over, same precision, compiled or not alike.

build-subset runs on Fashion-MNIST and on the same frames enlarged to 112 × 112, whose half is of more than 1 GiB.
distill runs from the resident source, and from the streaming one on raw and on JPEG frames, on half of the data; its
epochs are taken in slices of 30 steps, about 1.7 s, so that stage and bound lie close together in time.

Last, the student's step eager and through torch.compile in turn, with what compiling takes from an empty cache.

Not counted: starting Python, importing, opening files and loaders, compiling, evaluation, checkpoints; in cache-teacher
joining the parts and the scores. Files are read from the page cache by stage and bound alike. A first round of each is
warm-up and kept apart. Ratios are taken round by round (benchmarks/rounds.py).
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from benchmarks.machine import facts, in_words, save, scratch
from benchmarks.rounds import HEADER, Block, Contest, in_turn, row, slowest
from benchmarks.storage import as_jpeg, cutting, enlarged, packing
from benchmarks.training import Epochs, Slices, Step, caching, one_batch, taught_bundle, trainer_of
from toolkit.core.files import remove_folder
from toolkit.formats.beton import open_beton
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.report.tables import table

BATCH = 128


@dataclass(frozen=True)
class Sizes:
    """`fraction` is what distill trains on, `steps` a slice of its epochs, `seconds` a block of arithmetic."""

    dataset: str = "fashion-mnist"
    fraction: float = 0.5
    steps: int | None = 30
    side: int = 112
    seconds: float = 1.5
    rounds: int = 15
    disk_rounds: int = 9
    large_rounds: int = 7
    compile: dict[str, Any] = field(default_factory=dict)


QUICK = Sizes("digits", 0.2, 2, 16, 0.05, 2, 2, 2, {"backend": "eager"})


@dataclass(frozen=True)
class Result:
    """A contest, which of its contestants is the stage, and which are its bounds."""

    contest: Contest
    stage: str
    bounds: list[str]
    more: dict[str, Any]

    @property
    def bound(self) -> str:
        return slowest(self.contest, self.bounds)

    def to_record(self) -> dict[str, Any]:
        ratio = self.contest.ratio(self.stage, self.bound).to_record()
        return {**self.contest.to_record(), "stage": self.stage, "bound": self.bound, "ratio": ratio, **self.more}


def on_disk(workspace: Workspace, sizes: Sizes) -> list[Result]:
    data = ensure_packed(workspace, sizes.dataset)
    results = []
    blocks = packing(workspace, sizes.dataset)
    results.append(Result(in_turn("pack", "MB", blocks, sizes.disk_rounds), "pack", ["decode", "write"], {}))
    blocks = cutting(workspace, sizes.dataset)
    contest = in_turn("build-subset, a half", "MB", blocks, sizes.disk_rounds)
    results.append(Result(contest, "build-subset", ["copy"], {}))
    large = Workspace(workspace.root / "large")
    enlarged(data, large, sizes.side)
    blocks = cutting(large, sizes.dataset)
    size_bytes = (large.root / "kept").stat().st_size
    contest = in_turn(f"build-subset, {size_bytes / 2**30:.2f} GiB", "MB", blocks, sizes.large_rounds)
    results.append(Result(contest, "build-subset", ["copy"], {"bytes": size_bytes}))
    remove_folder(large.root)
    return results


def epochs_beside_bound(
    name: str,
    bundle: Bundle,
    compute: Compute,
    batch_size: int,
    seconds: float,
    rounds: int,
    until_s: float = float("inf"),
    steps: int | None = None,
    **how: Any,
) -> Result:
    """distill from one source, in slices of `steps`; `how` are the arguments of `trainer_of`.

    Adds the shares of waiting and of targets.
    """
    trainer = trainer_of(bundle, compute, batch_size, **how)
    arch, batch = how.get("arch", "resnet8"), one_batch(trainer)
    if steps is not None:
        trainer.source = Slices(trainer.source, steps)
    epochs = Epochs(trainer, seconds)
    step = Step(batch, bundle.data.classes, compute, arch, {} if how.get("compiled") else None)
    # what is compared stands side by side, whichever way round
    blocks: dict[str, Block] = {"targets timed": epochs.with_targets_timed, "distill": epochs}
    blocks["step"] = step.block(seconds)
    contest = in_turn(name, "img", blocks, rounds, until_s)
    kept = slice(1, None)  # without the warm-up
    on_targets = [
        targets_s * rate for targets_s, rate in zip(epochs.targets_s[kept], contest.rates["distill"], strict=True)
    ]
    more = {"share_of_waiting": epochs.waited[kept], "share_of_targets": on_targets, "batch_size": batch_size}
    return Result(contest, "distill", ["step"], more)


def with_arithmetic(workspace: Workspace, sizes: Sizes, compute: Compute) -> list[Result]:
    blocks = caching(workspace, sizes.dataset, compute, BATCH, sizes.seconds)
    caches = Result(in_turn("cache-teacher", "img", blocks, sizes.rounds), "cache-teacher", ["forward"], {})
    bundle = taught_bundle(workspace, sizes.dataset, sizes.fraction, compute)
    images = bundle.images()
    path = workspace.root / "jpeg.beton"
    as_jpeg(images.frames(bundle.indices_m), images.labels_n[bundle.indices_m], path, bundle.data.classes)
    jpeg = open_beton(path)  # its rows count from 0, so other views are shown; they cost the same
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("distill, resident", {}),
        ("distill, stream, raw", {"kind": "stream"}),
        ("distill, stream, JPEG", {"kind": "stream", "images": jpeg}),
    ]
    asked = (bundle, compute, BATCH, sizes.seconds, sizes.rounds)
    return [caches, *(epochs_beside_bound(name, *asked, steps=sizes.steps, **how) for name, how in kinds)]


def compiling(workspace: Workspace, sizes: Sizes, compute: Compute) -> dict[str, Any]:
    """The step as `--compile` makes it, beside the eager one."""
    bundle = open_bundle(workspace.subset(f"part-{sizes.fraction:g}"))
    batch = one_batch(trainer_of(bundle, compute, BATCH))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(workspace.root / "inductor")
    steps = {"compiled": Step(batch, bundle.data.classes, compute, compile=sizes.compile)}
    steps["eager"] = Step(batch, bundle.data.classes, compute)
    blocks: dict[str, Block] = {name: step.block(sizes.seconds) for name, step in steps.items()}
    contest = in_turn("step", "img", blocks, sizes.rounds)
    ratio, compile_s = contest.ratio("compiled", "eager"), steps["compiled"].compile_s
    rates = [f"{median(contest.rates[name]):,.0f}" for name in ("compiled", "eager")]
    print(
        f"a compiled step is {ratio.median:.2f} times as fast ({ratio.low_quartile:.2f} – {ratio.high_quartile:.2f}; "
        f"{rates[0]} beside {rates[1]} img/s), after {compile_s:.0f} s of compiling"
    )
    return {**contest.to_record(), "ratio": ratio.to_record(), "compile_s": compile_s}


def shares(results: list[Result]) -> str:
    """What the epochs' time went into besides the step: a line for each source."""
    lines = []
    for result in results:
        if "share_of_targets" in result.more:
            waiting, targets = (100 * np.array(result.more[f"share_of_{key}"]) for key in ("waiting", "targets"))
            lines.append(
                f"{result.contest.name}: targets take {median(targets):.2f} % of a step "
                f"({targets.min():.2f} – {targets.max():.2f}), and the loop waits for data {median(waiting):.2f} % of "
                f"its time ({waiting.min():.2f} – {waiting.max():.2f})"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/throughput-<date>.json")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it runs")
    parser.add_argument("--gpu", action="store_true", help="the sections of benchmarks/gpu.py instead")
    asked, others = parser.parse_known_args()
    if asked.gpu:
        from benchmarks import gpu

        gpu.main([*others, *(["--quick"] if asked.quick else [])])
        return
    if others:
        parser.error(f"unknown arguments {' '.join(others)}")
    sizes = QUICK if asked.quick else Sizes()
    machine, start_s = facts(), time.perf_counter()
    print(in_words(machine), flush=True)
    with scratch() as folder:
        workspace = Workspace(folder)
        compute = compute_on()
        results = [*on_disk(workspace, sizes), *with_arithmetic(workspace, sizes, compute)]
        print(table(HEADER, [row(result.contest, result.stage, result.bound) for result in results]))
        print(shares(results), flush=True)
        compiled = compiling(workspace, sizes, compute)
    print(
        f"ResNet-20 teacher, ResNet-8 student, batch {BATCH}; ratio: median of the rounds; "
        f"{(time.perf_counter() - start_s) / 60:.1f} minutes"
    )
    if asked.save:
        record = {"machine": machine, "results": [result.to_record() for result in results], "compiled": compiled}
        print(save("throughput", record))


if __name__ == "__main__":
    main()
