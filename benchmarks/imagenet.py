"""What ImageNet costs, on paper: a number of images times what one takes.

    python -m benchmarks.imagenet                       # disk, and CPU hours by what was measured here
    python -m benchmarks.imagenet --teacher-rate R --student-rate S --gpus 8 --cores 64
    python -m benchmarks.imagenet --measure --save      # CPU seconds an image, on this machine; some minutes

R and S are images a second of one of your GPUs: the teacher's forward pass, and a step of the student's training. No
GPU was measured here, so without them nothing is said of hours on one. CPU seconds are of photographs of scikit-learn,
cut to ImageNet's usual 500 × 375 pixels: the mean over all, by user and system time of every process, so that a busy
machine changes them less than seconds on the clock. Yours depend on your images; `cache-teacher --dry-run` times your
own teacher on your own data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import KDTOOL, RESULTS, facts, in_words, save, scratch
from toolkit.formats.encodings import Encoding
from toolkit.report.tables import table

TRAIN, TEST, CLASSES = 1_281_167, 50_000, 1000
WIDTH, HEIGHT, QUALITY = 500, 375, 90
MEASURED = 4000  # images
FEATURES = 2048  # of a ResNet-50, float16, once a row


class Measured(NamedTuple):
    """What one image of full size takes: CPU seconds to look at and pack, and to decode, cut and scale to 224 × 224;
    and its bytes in the packed data."""

    pack_cpu_s: float
    draw_cpu_s: float
    packed_bytes: float


class Asked(NamedTuple):
    """Rates are of one GPU, in images a second; None where nobody said."""

    views: int = 2
    frac: float = 0.5
    epochs: int = 16
    encoding: str = "int8"
    gpus: int = 1
    cores: int = 1
    teacher_rate: float | None = None
    student_rate: float | None = None


def disk(one: Measured, asked: Asked) -> list[tuple[str, str, float]]:
    """(what, how it is computed, bytes)"""
    view = Encoding.parse(asked.encoding, CLASSES).bytes_per_view
    kept = round(asked.frac * TRAIN)
    images, features = one.packed_bytes, 2 * FEATURES
    return [
        ("packed data", f"({TRAIN:,} + {TEST:,}) × {images:,.0f}", (TRAIN + TEST) * images),
        (f"logits, {asked.encoding}", f"{asked.views} × {TRAIN:,} × {view:,}", asked.views * TRAIN * view),
        ("features", f"{TRAIN:,} × {FEATURES:,} × 2", TRAIN * features),
        ("subset's images", f"{kept:,} × {images:,.0f}", kept * images),
        ("subset's targets", f"{asked.views} × {kept:,} × {view:,}", asked.views * kept * view),
    ]


def passes(asked: Asked) -> list[tuple[str, str, int]]:
    """(what, how it is computed, images)"""
    kept = round(asked.frac * TRAIN)
    shown = asked.epochs * kept
    return [
        ("cache-teacher", f"{asked.views} × {TRAIN:,} + {TEST:,}", asked.views * TRAIN + TEST),
        ("distill", f"{asked.epochs} × {kept:,}", shown),
        ("a live teacher, for each student", f"{asked.epochs} × {kept:,}", shown),
    ]


def hours(images: int, rate: float | None, cpu_s: float, asked: Asked) -> float | None:
    """On the clock: of GPUs at `rate` images a second each, or of the cores that draw for them, whichever is slower."""
    return None if rate is None else max(images / (asked.gpus * rate), images * cpu_s / asked.cores) / 3600


def report(one: Measured, asked: Asked) -> str:
    sizes = [[what, f"{how} bytes", f"{size / 1e9:,.1f} GB"] for what, how, size in disk(one, asked)]
    drawn = [(what, how, images, one.draw_cpu_s) for what, how, images in passes(asked)]
    rates = (asked.teacher_rate, asked.student_rate, asked.teacher_rate)
    looked = [("pack", f"{TRAIN:,} + {TEST:,}", TRAIN + TEST, one.pack_cpu_s), *drawn]
    lines = []
    for (what, how, images, cpu_s), rate in zip(looked, (None, *rates), strict=True):
        clock = images * cpu_s / asked.cores / 3600 if what == "pack" else hours(images, rate, cpu_s, asked)
        told = "" if clock is None else f"{clock:,.1f}"
        # a live teacher is shown what was drawn for the student
        cpu = "" if what.startswith("a live") else f"{images * cpu_s / 3600:,.1f}"
        lines.append([what, how, f"{images / 1e6:,.1f} M", cpu, told])
    clock = f"hours, {asked.gpus} GPUs and {asked.cores} cores"
    return "\n\n".join((table(["on disk", "", ""], sizes), table(["stage", "images", "", "CPU hours", clock], lines)))


def measure(folder: Path, count: int = MEASURED) -> Measured:
    """Packs so many photographs, and a tenth of them: the difference is what an image takes. Then draws two views each.

    FFCV compiles beforehand.
    """
    took: dict[int, float] = {}
    for images in (count // 10, count):
        data = ["--dataset", f"imagefolder-{images}", "-w", str(folder / "work")]
        _write_photographs(folder / f"{images}", images)
        took[images] = _cpu_s([KDTOOL, "pack", *data, "--data-dir", str(folder / f"{images}"), "--workers", "1"])
    packed = folder / "work" / "data" / f"imagefolder-{count}"
    return Measured(
        pack_cpu_s=(took[count] - took[count // 10]) / (_of_both_splits(count) - _of_both_splits(count // 10)),
        draw_cpu_s=_drawing_s(packed),
        packed_bytes=(packed / "train.beton").stat().st_size / count,
    )


def _of_both_splits(count: int) -> int:
    return count + count // 10


def _write_photographs(folder: Path, count: int) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    for split, images in (("train", count), ("val", count // 10)):
        for row, draw in enumerate(np.random.default_rng(0).spawn(images)):
            photo, name = photos[row % 2], folder / split / str(row % 2) / f"{row}.jpg"
            left, top = int(draw.integers(photo.width - WIDTH)), int(draw.integers(photo.height - HEIGHT))
            name.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((left, top, left + WIDTH, top + HEIGHT)).save(name, quality=QUALITY)


def _cpu_s(words: Sequence[str]) -> float:
    """Of a command and all it starts."""
    before = os.times()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (after.children_user + after.children_system) - (before.children_user + before.children_system)


def _drawing_s(packed: Path) -> float:
    import torch

    from toolkit.formats.dataset import open_packed
    from toolkit.formats.views_of import ViewReader

    data = open_packed(packed)
    reader = ViewReader(data.split("train"), data.record.plan, 64, torch.device("cpu"), workers=1)
    rows_n = np.arange(data.record.train_rows)
    for _ in reader.slot(rows_n[:64], 0):  # FFCV compiles
        pass
    before = os.times()
    for slot in (1, 2):
        for _ in reader.slot(rows_n, slot):
            pass
    after = os.times()
    return ((after.user + after.system) - (before.user + before.system)) / (2 * len(rows_n))


def latest() -> dict[str, Any]:
    """What was measured last, and on what."""
    return json.loads(max(RESULTS.glob("imagenet-*.json")).read_text())  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure on this machine instead of taking the results")
    parser.add_argument("--save", action="store_true", help="write results/imagenet-<date>.json")
    for name, default in Asked()._asdict().items():
        kind = float if default is None else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    said = vars(parser.parse_args())
    again, kept = said.pop("measure"), said.pop("save")
    if again:
        machine = facts()
        with scratch() as folder:
            found = {"machine": machine, "images": MEASURED, "measured": measure(folder)._asdict()}
        if kept:
            print(save("imagenet", found))
    else:
        found = latest()
    one = Measured(**found["measured"])
    print(f"measured on {in_words(found['machine'])}: of an image of {WIDTH} × {HEIGHT} pixels")
    took = f"{one.pack_cpu_s * 1e3:.1f} CPU ms to pack, {one.draw_cpu_s * 1e3:.1f} to draw"
    print(f"{took}, {one.packed_bytes:,.0f} bytes\n")
    print(report(one, Asked(**said)))


if __name__ == "__main__":
    main()
