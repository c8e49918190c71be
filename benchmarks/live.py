"""The comparison that matters: a live-teacher loop as it is usually written, beside kdtool's loop, in turn in one run.

    python -m benchmarks.live [--save] [--quick]         # about 4 minutes; --save writes results/live-<date>.json

The live loop (`Photos`, `usual_transforms`, `LiveLoop.train`) is written from scratch in the manner of RepDistiller's
(github.com/HobbitLong/RepDistiller, helper/loops.py): torchvision transforms on PIL images, a DataLoader with workers,
the teacher's forward pass at every step under no_grad, KL with a temperature, SGD as torch builds it, and loss and
accuracy read at every step. It is not that loop: the loss is kdtool's (there, cross-entropy is added), accuracy is the
top-1 alone (there also the top-5, neither of them read by .item()), SGD has kdtool's Nesterov momentum, the workers are
2 for two cores (there 8), a GPU is sent pinned memory, and images have three equal channels, as the networks want. It
runs at kdtool's own precision, at float32 as is usual, and once made stronger than usual: channels last, workers kept
from epoch to epoch, and as many of them as a warm-up finds fastest. kdtool's loop is the one of `kdtool distill`:
resident source, targets of two cached views, match exact. Student, teacher, images and batch size are the same.

Counted: everything from one step to the next. Not counted: caching (benchmarks/students.py counts it), evaluation,
starting Python; and at the start of each block of the live loop the batches that its workers made while the others
ran, two a worker and one. After the block the workers are left to fill their queue, so that the next one has the cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.machine import facts, in_words, save, scratch
from benchmarks.rounds import NEVER, Block, Contest, Work, in_turn, stopwatch
from benchmarks.training import TEMPERATURE, Epochs, Slices, taught_bundle, trainer_of
from toolkit.core.device import autocast
from toolkit.formats.beton import Beton
from toolkit.formats.bundle import Bundle
from toolkit.formats.dataset import DataRecord, PackedData, open_packed
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import build_model
from toolkit.pipeline.known_networks import network_of
from toolkit.pipeline.known_teachers import find_teacher
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.report.tables import table

KDTOOL, EQUAL, USUAL, STRONG = "kdtool", "live, same precision", "live, float32", "live, stronger"
_REST_S = 0.5


class Photos(Dataset):
    """Images as PIL sees them, made from arrays one by one, as torchvision's own data sets do."""

    def __init__(self, images_nhwc: np.ndarray, labels_n: np.ndarray, transform: Any) -> None:
        self.images_nhwc, self.labels_n, self.transform = images_nhwc, labels_n, transform

    def __len__(self) -> int:
        return len(self.labels_n)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images_nhwc[index])), int(self.labels_n[index])


def usual_transforms(data: DataRecord) -> Any:
    flips = [transforms.RandomHorizontalFlip()] if data.family.endswith("flip") else []
    return transforms.Compose(
        [
            transforms.RandomCrop((data.height, data.width), padding=data.padding),
            *flips,
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )


def kd_loss(student_bc: Tensor, teacher_bc: Tensor) -> Tensor:
    """τ²·KL(teacher ‖ student), mean over the batch."""
    log_q_bc = F.log_softmax(student_bc / TEMPERATURE, dim=1)
    p_bc = F.softmax(teacher_bc / TEMPERATURE, dim=1)
    return F.kl_div(log_q_bc, p_bc, reduction="batchmean") * TEMPERATURE**2


class LiveLoop:
    """A student that asks its teacher at every step."""

    def __init__(
        self,
        photos: Photos,
        student: nn.Module,
        teacher: nn.Module,
        compute: Compute,
        batch_size: int = 128,
        workers: int = 2,
        stronger: bool = False,
        lr: float = 0.05,
    ) -> None:
        self.compute, self.workers, self.stronger = compute, workers, stronger
        memory_format = torch.channels_last if stronger else torch.contiguous_format
        self.student = student.to(compute.device).to(memory_format=memory_format)
        self.teacher = teacher.to(compute.device).to(memory_format=memory_format).eval()
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        on_gpu = compute.device.type == "cuda"
        kept = stronger and workers > 0
        self.loader = DataLoader(
            photos, batch_size, shuffle=True, num_workers=workers, pin_memory=on_gpu, persistent_workers=kept
        )
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self._endless = self._epochs()

    def train(self, batches: Any, scheduler: Any = None) -> int:
        """Trains on the batches, one step each; returns how many images they held."""
        images = 0
        self.student.train()
        for images_bchw, labels_b in batches:
            images_bchw = images_bchw.to(self.compute.device, non_blocking=True)
            labels_b = labels_b.to(self.compute.device, non_blocking=True)
            if self.stronger:
                images_bchw = images_bchw.to(memory_format=torch.channels_last)
            with autocast(self.compute.device, self.compute.precision):
                student_bc = self.student(images_bchw)
                with torch.no_grad():
                    teacher_bc = self.teacher(images_bchw)
            loss = kd_loss(student_bc.float(), teacher_bc.float())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if scheduler is not None:
                scheduler.step()
            self.losses.append(loss.item())
            self.accuracies.append((student_bc.argmax(dim=1) == labels_b).float().mean().item())
            images += len(labels_b)
        return images

    def _epochs(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def block(self, seconds: float) -> Block:
        """Steps for so many seconds, and what the module's docstring says is not counted."""

        def block() -> Work:
            self.train(islice(self._endless, 2 * self.workers + 1))
            end_s = time.perf_counter() + seconds
            with stopwatch(self.compute.device) as elapsed:
                images = self.train(iter(lambda: next(self._endless) if time.perf_counter() < end_s else None, None))
            if self.workers:
                time.sleep(_REST_S)
            return Work(images, elapsed[0])

        return block


def live_loop(
    data: PackedData, images: Beton, rows_m: np.ndarray, compute: Compute, seed: int = 0, **how: Any
) -> LiveLoop:
    """A live loop on the rows `rows_m` of an image file, with the teacher that comes with kdtool and a new student."""
    photos = Photos(images.frames(rows_m), images.labels_n[rows_m], usual_transforms(data.record))
    _, teacher = network_of(find_teacher(Workspace(data.folder), None, data.record.dataset)[1], data.record, compute)
    return LiveLoop(photos, build_model("resnet8", data.record.classes, seed=seed), teacher, compute, **how)


def as_usual(device: torch.device, precision: str) -> Compute:
    """Not by `compute_on`, which for float32 forbids a GPU the TF32 that torch's convolutions use unless told."""
    return Compute(device, precision)


def contest(
    workspace: Workspace,
    bundle: Bundle,
    compute: Compute,
    batch_size: int = 128,
    seconds: float = 4.0,
    rounds: int = 9,
    workers: int = 2,
    tried: tuple[int, ...] = (0, 1, 2),
    slice_steps: int = 32,
    until_s: float = NEVER,
) -> tuple[Contest, dict[str, Any]]:
    """kdtool and the live loops in turn; and the stronger loop's workers, with the rates that chose them."""
    data, images = open_packed(workspace.data(bundle.data.key)), bundle.images()

    def live(precision: str, workers: int, stronger: bool = False) -> LiveLoop:
        how = {"batch_size": batch_size, "workers": workers, "stronger": stronger}
        return live_loop(data, images, bundle.indices_m, as_usual(compute.device, precision), **how)

    loops = {str(number): live(compute.precision, number, stronger=True) for number in tried}
    trial = in_turn("workers", "img", {name: loop.block(seconds / 2) for name, loop in loops.items()}, 2)
    best = max(trial.rates, key=lambda name: median(trial.rates[name]))
    trainer = trainer_of(bundle, compute, batch_size)
    trainer.source = Slices(trainer.source, slice_steps)
    blocks: dict[str, Block] = {KDTOOL: Epochs(trainer, seconds)}
    blocks[EQUAL] = live(compute.precision, workers).block(seconds)
    if compute.precision != "float32":
        blocks[USUAL] = live("float32", workers).block(seconds)
    blocks[STRONG] = loops[best].block(seconds)
    found = in_turn("live teacher", "img", blocks, rounds, until_s)
    chosen = {"workers": int(best), "tried": trial.rates}
    return found, {"precision": compute.precision, "workers": workers, "batch_size": batch_size, "stronger": chosen}


def report(found: Contest, settings: dict[str, Any]) -> str:
    """A table, and the sentences that compare."""
    ratios = {name: found.ratio(KDTOOL, name) for name in found.rates if name != KDTOOL}
    rows = [[KDTOOL, f"{median(found.rates[KDTOOL]):,.0f} img/s", *[""] * 3]]
    for name, ratio in ratios.items():
        quartiles = f"{ratio.low_quartile:.2f} – {ratio.high_quartile:.2f}"
        rows.append([name, f"{median(found.rates[name]):,.0f} img/s", f"{ratio.median:.2f}", quartiles, ratio.interval])
    header = ["loop", "rate", "kdtool is so many times as fast", "quartiles", "95 % of the mean"]
    usual = f", {ratios[USUAL].in_words} times beside its usual float32" if USUAL in ratios else ""
    best = settings["stronger"]["workers"]
    strong = f"{ratios[STRONG].in_words} beside one made stronger (channels last, {best} workers)"
    return (
        f"{table(header, rows)}\n"
        f"kdtool trains a ResNet-8 {ratios[EQUAL].in_words} times as fast as a live-teacher loop at equal precision "
        f"({settings['precision']}){usual}, and {strong}; mean and 95 % interval of {found.rounds} rounds. "
        "Not counted: caching, evaluation, starting Python."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/live-<date>.json")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it runs")
    asked = parser.parse_args()
    compute, machine = compute_on(), facts()
    print(in_words(machine), flush=True)
    with scratch() as folder:
        workspace = Workspace(folder)
        bundle = taught_bundle(workspace, "digits" if asked.quick else "fashion-mnist", 0.5, compute)
        sizes: dict[str, Any] = {"seconds": 0.2, "rounds": 2, "slice_steps": 2} if asked.quick else {}
        found, settings = contest(workspace, bundle, compute, **sizes)
    print(report(found, settings))
    if asked.save:
        print(save("live", {"machine": machine, "settings": settings, "contests": [found.to_record()]}))


if __name__ == "__main__":
    main()
