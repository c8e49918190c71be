"""Image folders end to end: teacher and student are shown the same pixels, bit for bit, on JPEG; the commands of
benchmarks/pictures/README.md, on real pictures, by two processes; and the tables of docs/imagenet.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks import imagenet
from tests.conftest import made
from tests.test_laws import everything_in, same
from toolkit.formats.bundle import open_bundle
from toolkit.formats.dataset import PackedData, open_packed
from toolkit.formats.views_of import ViewReader
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import open_source
from toolkit.training.stream import StreamSource
from toolkit.views.render import normalise

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
REGISTRY_S, COMMAND_S = 60, 1800
TESTED = 1906  # pictures of the vendor that is held out


def same_pixels_shown(data: PackedData, folder: Path, batch_size: int, threads: int, epochs: int) -> int:
    """How many images a student of a bundle is shown; each as the teacher was, which reads the packed data, another
    file, in other batches."""
    bundle = open_bundle(folder)
    assert bundle.images().path != data.split("train").path
    targets = load_knowledge(bundle).targets
    compute = compute_on("cpu", "float32", threads)
    source = open_source(bundle.images(), bundle.indices_m, bundle.data, batch_size, 7, compute, targets, "stream")
    assert isinstance(source, StreamSource)
    plan, (mean_c, std_c) = bundle.data.plan, map(torch.tensor, (bundle.data.mean, bundle.data.std))
    teacher, shown = ViewReader(data.split("train"), plan, 16, CPU, workers=1), 0
    for epoch in range(epochs):
        for batch in source.batches(epoch):
            rows_b = batch.rows_b.numpy()
            views_b, _ = source.showing.views(epoch, np.searchsorted(bundle.rows_m, rows_b))
            images_bhwc = torch.cat(list(teacher.views(rows_b, views_b)))
            assert torch.equal(batch.images_bchw, normalise(images_bhwc, mean_c, std_c))
            assert np.array_equal(batch.labels_b.numpy(), data.split("train").labels_n[rows_b])
            shown += len(rows_b)
    return shown


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JPEG files cut out of two photographs, to many sizes."""
    folder, draw = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 8)):
        for name in ("china", "flower"):
            photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                width, height = draw.integers(40, 200, 2).tolist()
                left, top = draw.integers(0, 400), draw.integers(0, 200)
                tile = photo.crop((left, top, left + width, top + height))
                tile.save(folder / split / name / f"{number}.jpg", quality=85)
    return folder


@pytest.fixture(scope="module")
def distillable(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedData, Path]:
    """They as packed JPEG frames, and half of them, with targets."""
    data = ("-w", tmp_path_factory.mktemp("work"), "--dataset", "imagefolder-photographs")
    packed = made("pack", *data, "--data-dir", photographs, "--max-resolution", 120, "--size", 32, "--workers", 1)
    made("train-teacher", *data, "--arch", "resnet8", "--width", 4, "--epochs", 1, "--name", "t", "--no-dynamics")
    made("cache-teacher", *data, "--teacher", "t", "--views", 3, "--no-verify")
    half = made("build-subset", *data, "--frac", 0.5)
    return open_packed(Path(packed["path"])), Path(half["path"])


@pytest.mark.parametrize(("batch_size", "threads"), [(16, 1), (7, 2)])
def test_teacher_and_student_are_shown_the_same_pixels_bit_for_bit_on_jpeg(
    distillable: tuple[PackedData, Path], batch_size: int, threads: int
):
    data, folder = distillable
    assert (data.record.write_mode, data.record.train_rows) == ("jpg", 80)
    assert same_pixels_shown(data, folder, batch_size, threads, epochs=4) == 4 * 40


def commands(document: Path) -> list[list[str]]:
    """The lines of a document's shell blocks, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def run(words: list[str], folder: Path) -> str:
    """What a command says on stdout, run where no kdtool is installed but this one's."""
    python = Path(sys.executable).parent
    words = [*words, "--json"] if "toolkit" in words or words[0] == "kdtool" else words
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": f"{python}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.long
def test_the_documented_commands_run_on_photographs_by_two_processes(photographs: Path, tmp_path: Path):
    """Without npm too: the same lines, of tiles of two photographs. What is learned of 80 of them is not judged."""
    told = {}
    for words in commands(ROOT / "benchmarks" / "pictures" / "README.md")[1:]:
        words = [str(photographs) if word == "emoji" else word for word in words]
        told[shlex.join(words)] = json.loads(run(words, tmp_path).splitlines()[-1])
    assert len(told) == 8 and all(one["rows"] == 16 for line, one in told.items() if "evaluate" in line)
    assert all(one["teacher_forward_passes"] == 0 for line, one in told.items() if " distill " in line)
    data = open_packed(tmp_path / "kdtool-work" / "data" / "imagefolder-emoji")
    assert same_pixels_shown(data, tmp_path / "kdtool-work" / "subsets" / "half", 16, 2, epochs=2) == 2 * 40


def need_npm() -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: apt-get install npm")
    asked = ["npm", "view", "emoji-datasource-twitter@16.0.0", "version"]
    try:
        answered = subprocess.run(asked, capture_output=True, text=True, timeout=REGISTRY_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm's registry does not answer within {REGISTRY_S} s")
    if answered.returncode:
        pytest.skip(f"npm's registry is not reached: {' '.join(answered.stderr.split())[:200]}")


@pytest.mark.long
def test_the_documented_commands_run_on_real_pictures_by_two_processes(tmp_path: Path):
    need_npm()
    told = {}
    for words in commands(ROOT / "benchmarks" / "pictures" / "README.md"):
        out = run(words, tmp_path)
        command = words[words.index("toolkit") + 1] if "toolkit" in words else words[1]
        told[f"{command} {words[words.index('--name') + 1]}" if "--name" in words else shlex.join(words[:6])] = (
            json.loads(out.splitlines()[-1]) if "toolkit" in words or words[0] == "kdtool" else out
        )
    work = tmp_path / "kdtool-work"
    data = open_packed(work / "data" / "imagefolder-emoji")
    assert (data.record.write_mode, data.record.family) == ("jpg", "resized-crop-flip")
    assert data.record.test_rows == TESTED
    # by chance, or by the commonest class: a fifth
    likeliest = 100 * np.bincount(data.split("test").labels_n).max() / TESTED
    learned = 1.75 * likeliest
    taught, untaught = (told[f"distill {name}"] for name in ("taught", "untaught"))
    assert taught["top1"] > learned and told["train-teacher emoji20"]["top1"] > learned
    assert taught["teacher_forward_passes"] == 0 and taught["source"] == "stream" and untaught["alpha"] == 0
    as_it_is, larger = (one for name, one in told.items() if name.startswith("kdtool evaluate"))
    assert as_it_is["top1"] == pytest.approx(taught["top1"]) and as_it_is["size"] == [40, 40]
    assert (larger["size"], larger["crop"]) == ([48, 48], 1.0) and larger["top1"] > learned
    shown = same_pixels_shown(data, work / "subsets" / "half", 64, 2, epochs=2)
    assert shown == 2 * round(0.5 * data.record.train_rows)
    by_one = ("-w", tmp_path / "one", "--dataset", "imagefolder-emoji")
    shutil.copytree(work / "data", tmp_path / "one" / "data")
    shutil.copytree(work / "teachers", tmp_path / "one" / "teachers", ignore=shutil.ignore_patterns("cache*"))
    made("cache-teacher", *by_one, "--teacher", "emoji20", "--views", 4, "--threads", 1)
    one, two = (folder / "teachers" / "emoji20" / "cache.h5" for folder in (tmp_path / "one", work))
    assert same(everything_in(two), everything_in(one))


# The page on ImageNet


def test_the_pages_tables_are_what_the_benchmark_computes():
    page = (ROOT / "docs" / "imagenet.md").read_text()
    shown = imagenet.report(imagenet.Measured(**imagenet.latest()["measured"]), imagenet.Asked())
    sizes, stages = shown.split("\n\n")
    assert sizes in page
    for line in stages.splitlines()[2:]:  # but for the last column, which is empty without a rate
        assert [cell.strip() for cell in line.split("|")[1:5]] in [
            [cell.strip() for cell in other.split("|")[1:5]] for other in page.splitlines()
        ]


def test_what_imagenet_costs_is_images_times_what_one_takes():
    asked = imagenet.Asked(views=3, frac=0.1, epochs=10, gpus=2, cores=4, teacher_rate=1000, student_rate=500)
    assert {what: images for what, _, images in imagenet.passes(asked)} == {
        "cache-teacher": 3 * 1_281_167 + 50_000,
        "distill": 10 * 128_117,
        "a live teacher, for each student": 10 * 128_117,
    }
    of_gpus, of_cores = imagenet.hours(7_200_000, 1000, 0.001, asked), imagenet.hours(7_200_000, 1000, 0.01, asked)
    assert (of_gpus, of_cores) == (pytest.approx(1.0), pytest.approx(5.0))
    assert imagenet.hours(7_200_000, None, 0.01, asked) is None
    bytes_of = {what: size for what, _, size in imagenet.disk(imagenet.Measured(0, 0, 1000), asked)}
    assert bytes_of["packed data"] == 1_331_167_000 and bytes_of["logits, int8"] == 3 * 1_281_167 * 1008


@pytest.mark.long
def test_an_image_is_measured_by_packing_and_drawing(tmp_path: Path):
    found = imagenet.measure(tmp_path, count=200)
    assert found.draw_cpu_s > 0 and 10_000 < found.packed_bytes < 2_000_000
