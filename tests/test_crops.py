"""Resized crops: boxes as integers, drawn by FFCV's decoder to the same pixels whoever asks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

import toolkit
from tests.conftest import kdtool, made, refused
from tests.own_things import of_8
from tests.test_laws import (
    TEACHER,
    Draw,
    cached_logits,
    digits_of,
    largest_difference,
    live_teacher,
    network_input,
    student_from_cache,
    student_of_a_live_teacher,
)
from toolkit.core.errors import UsageError
from toolkit.formats.beton import cut, open_beton
from toolkit.formats.beton_writer import Storage, write_beton
from toolkit.formats.bundle import open_bundle
from toolkit.formats.dataset import write_record
from toolkit.formats.views_of import ViewReader
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.training.showing import Showing
from toolkit.training.stream import StreamSource
from toolkit.views.families import middle_squares
from toolkit.views.plan import Plan
from toolkit.views.schedule import geometry_of_slots, nearest_slots

CPU = torch.device("cpu")
MEAN, STD = [0.5] * 3, [0.25] * 3
PLAN = Plan("resized-crop-flip", 24, 20, least_area=20, seed=3)
ROWS = np.arange(4000)
SIZES = np.random.default_rng(0).integers(17, 90, (len(ROWS), 2))

# what version 1 cuts from an image of 80 × 100: views 0 to 3 of row 0, then of row 1,281,166
GOLDEN = [
    [5, 15, 70, 70, 0],
    [20, 42, 53, 50, 1],
    [10, 23, 52, 42, 0],
    [8, 11, 71, 55, 1],
    [5, 15, 70, 70, 0],
    [9, 13, 64, 66, 1],
    [2, 6, 72, 63, 0],
    [25, 38, 52, 57, 1],
]


class Photos:
    """Real photographs cut to many sizes."""

    def __init__(self, count: int) -> None:
        from sklearn.datasets import load_sample_image

        self.photo, self.count = load_sample_image("flower.jpg"), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        height, width = SIZES[row]
        top, left = row * 7 % 300, row * 13 % 500
        return np.ascontiguousarray(self.photo[top : top + height, left : left + width]), row % 5


@pytest.fixture(scope="module", params=["raw", "jpg"])
def photos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / f"{request.param}.beton"
    write_beton(Photos(60), path, classes=5, storage=Storage(request.param))
    return path


def boxes(plan: Plan, slot: int, rows: np.ndarray = ROWS, sizes: np.ndarray = SIZES) -> np.ndarray:
    return plan.geometry(rows, np.full(len(rows), slot), sizes)


@pytest.mark.parametrize("slot", [0, 1, 2, 700])
def test_boxes_lie_within_their_image_and_have_the_promised_area_and_shape(slot: int):
    top, left, height, width, _ = boxes(PLAN, slot).astype(np.int64).T
    assert top.min() >= 0 and left.min() >= 0 and height.min() >= 1 and width.min() >= 1
    assert (top + height <= SIZES[:, 0]).all() and (left + width <= SIZES[:, 1]).all()
    if slot:  # within the rounding of a side to whole pixels, where an attempt fitted: most images
        fits = (SIZES.max(axis=1) * 3 <= SIZES.min(axis=1) * 4) & (height * width < 0.9 * SIZES.prod(axis=1))
        assert fits.sum() > 1000
        assert (((height + 0.5) * (width + 0.5))[fits] >= 0.2 * SIZES.prod(axis=1)[fits]).all()
        assert (((width - 0.5) / (height + 0.5))[fits] <= 4 / 3).all()
        assert (((width + 0.5) / (height - 0.5))[fits] >= 3 / 4).all()


def test_areas_are_uniform_and_places_reach_every_edge():
    sizes = np.full((len(ROWS), 2), 1000)
    top, left, height, width, _ = boxes(PLAN, 5, sizes=sizes).T
    share = np.sort(height.astype(np.int64) * width / 1e6)
    assert share[0] == pytest.approx(0.2, abs=0.01)
    # boxes near the whole image seldom fit their shape, as in torchvision: compare the part where all do
    below = share[share < 0.7]
    assert np.abs(np.quantile(below, [0.25, 0.5, 0.75]) - [0.325, 0.45, 0.575]).max() < 0.03
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == (left + width).max() == 1000


def test_view_0_is_the_middle_square_of_seven_eighths_and_unmirrored():
    found = boxes(PLAN, 0, np.arange(2), np.array([[80, 100], [64, 64]]))
    assert found.tolist() == [[5, 15, 70, 70, 0], [4, 4, 56, 56, 0]]


@pytest.mark.parametrize(("height", "width"), [(7, 300), (300, 7), (1, 1), (2, 65_535)])
def test_boxes_of_extreme_images_are_the_largest_of_an_allowed_shape(height: int, width: int):
    found = boxes(PLAN, 4, np.arange(50), np.tile((height, width), (50, 1)))
    assert (found[:, 2] <= height).all() and (found[:, 3] <= width).all() and (found[:, 2:4] >= 1).all()
    assert (found[:, 3] <= np.maximum(found[:, 2] * 4 // 3, 1)).all()


def test_boxes_depend_on_nothing_but_seed_row_view_and_size():
    whole = boxes(PLAN, 9)
    some = np.array([4, 1000, 17])
    assert np.array_equal(boxes(PLAN, 9, ROWS[some], SIZES[some]), whole[some])
    for other in (boxes(replace(PLAN, seed=4), 9), boxes(PLAN, 11)):
        assert (other[:, :4] != whole[:, :4]).any(axis=1).mean() > 0.9


def test_mirrors_alternate_with_flips_and_never_come_without():
    assert [int(boxes(PLAN, slot)[0, 4]) for slot in range(4)] == [0, 1, 0, 1]
    assert boxes(replace(PLAN, family="resized-crop"), 1)[:, 4].sum() == 0


def test_boxes_are_those_of_version_1():
    rows, sizes = np.repeat([0, 1_281_166], 4), np.tile((80, 100), (8, 1))
    assert PLAN.geometry(rows, np.tile(np.arange(4), 2), sizes).tolist() == GOLDEN


def test_the_nearest_box_is_the_one_brute_force_finds():
    rows, sizes = ROWS[:40], SIZES[:40]
    cached_nk, views_n = PLAN.views(rows, 6), np.full(40, 123)
    found = nearest_slots(PLAN.geometry(rows, views_n, sizes), geometry_of_slots(PLAN, rows, cached_nk, sizes))
    for n, box in enumerate(boxes(PLAN, 123, rows, sizes).astype(int)):
        rivals = {}
        for slot in range(6):
            top, left, height, width, mirrored = boxes(PLAN, slot, rows, sizes)[n].astype(int)
            if mirrored == box[4]:
                corners = np.array([top, left, top + height, left + width])
                rivals[slot] = ((corners - [box[0], box[1], box[0] + box[2], box[1] + box[3]]) ** 2).sum()
        assert found[n] == min(rivals, key=lambda slot: (rivals[slot], slot))


def test_a_family_without_its_geometry_is_refused():
    with pytest.raises(UsageError, match="least area"):
        Plan("resized-crop", 24, 24)
    with pytest.raises(UsageError, match="1 to 100"):
        Plan("resized-crop", 24, 24, least_area=0)


# drawing


def drawn(
    path: Path, slot: int, batch_size: int = 16, workers: int = 2, positions: np.ndarray | None = None
) -> np.ndarray:
    beton = open_beton(path)
    positions = np.arange(len(beton)) if positions is None else positions
    reader = ViewReader(beton, PLAN, batch_size, CPU, workers)
    return np.concatenate([batch.numpy() for batch in reader.slot(positions, slot)])


@pytest.mark.parametrize("slot", [0, 3])
def test_pixels_are_the_boxs_scaled_by_area_and_mirrored(photos: Path, slot: int):
    beton, samples = open_beton(photos), Photos(60)
    found = drawn(photos, slot)
    for row, (top, left, height, width, mirrored) in enumerate(boxes(PLAN, slot, np.arange(60), SIZES[:60])):
        frame = samples[row][0]
        if photos.stem == "jpg":
            at, size = int(beton.records_n["image"]["ptr"][row]), int(beton.bytes_n[row])
            frame = cv2.imdecode(np.array(beton.content[at : at + size]), cv2.IMREAD_COLOR)[:, :, ::-1]
        box = np.ascontiguousarray(frame[top : top + height, left : left + width])
        expected = cv2.resize(box, (PLAN.width, PLAN.height), interpolation=cv2.INTER_AREA)
        expected = expected[:, ::-1] if mirrored else expected
        # FFCV decodes JPEG with a faster transform than OpenCV: a few grey levels
        assert np.abs(found[row].astype(int) - expected).max() <= (0 if photos.stem == "raw" else 12)


def test_pixels_do_not_depend_on_threads_batches_or_subsets(photos: Path, tmp_path: Path):
    whole = drawn(photos, 5)
    assert np.array_equal(drawn(photos, 5, batch_size=7, workers=1), whole)
    some = np.array([3, 8, 20, 41, 59])
    assert np.array_equal(drawn(photos, 5, positions=some[::-1]), whole[some[::-1]])
    cut(open_beton(photos), some, tmp_path / "part.beton")
    assert np.array_equal(drawn(tmp_path / "part.beton", 5), whole[some])


def test_a_student_is_shown_what_the_teacher_was(photos: Path, tmp_path: Path):
    rows = np.sort(np.random.default_rng(1).permutation(60)[:37])
    cut(open_beton(photos), rows, tmp_path / "part.beton")
    part = open_beton(tmp_path / "part.beton")
    source = StreamSource(part, np.arange(37), PLAN, MEAN, STD, batch_size=10, seed=8)
    showing = Showing(rows, PLAN, 8, None, SIZES[rows])
    teacher = ViewReader(open_beton(photos), PLAN, 16, CPU)
    for epoch in range(3):
        view_n, _ = showing.views(epoch)
        seen = torch.cat(list(teacher.views(rows, view_n)))
        for batch in source.batches(epoch):
            at = np.searchsorted(rows, batch.rows_b.numpy())
            expected = (seen[at].float() / 255 - 0.5) / 0.25
            assert torch.allclose(batch.images_bchw.permute(0, 2, 3, 1), expected, atol=1e-6)
            assert batch.labels_b.tolist() == (rows[at] % 5).tolist()


# the laws


class Enlarged:
    """The first digits of a split, each drawn larger, to a size of its own."""

    def __init__(self, digits: Path, split: str, count: int) -> None:
        beton = digits_of(digits).split(split)
        self.frames, self.labels_n = beton.frames(np.arange(count)), beton.labels_n[:count]
        self.sizes_n2 = np.random.default_rng(count).integers(10, 33, (count, 2))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        height, width = self.sizes_n2[row].tolist()
        return cv2.resize(self.frames[row], (width, height), interpolation=cv2.INTER_CUBIC), int(self.labels_n[row])


COUNTS = {"train": 400, "test": 100}


@pytest.fixture(scope="module")
def crops(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of enlarged digits that are shown in resized crops of 8 × 8, as their packaged teacher wants them."""
    workspace = tmp_path_factory.mktemp("crops")
    folder = workspace / "data" / "digits"
    for split, count in COUNTS.items():
        write_beton(Enlarged(digits, split, count), folder / f"{split}.beton", classes=10)
    record = replace(
        digits_of(digits).record,
        family="resized-crop-flip",
        least_area=30,
        train_rows=COUNTS["train"],
        test_rows=COUNTS["test"],
        train_fingerprint=open_beton(folder / "train.beton").content_fingerprint(),
        test_fingerprint=open_beton(folder / "test.beton").content_fingerprint(),
    )
    write_record(folder, record)
    return workspace


def drawn_by_opencv(digits: Path, crops: Path) -> Draw:
    samples, plan = Enlarged(digits, "train", COUNTS["train"]), digits_of(crops).record.plan

    def draw(row: int, view: int) -> torch.Tensor:
        box = plan.geometry(np.array([row]), np.array([view]), samples.sizes_n2[[row]])[0].tolist()
        top, left, height, width, mirrored = box
        cropped = samples[row][0][top : top + height, left : left + width]
        image = cv2.resize(np.ascontiguousarray(cropped), (8, 8), interpolation=cv2.INTER_AREA)
        return torch.from_numpy((image[:, ::-1] if mirrored else image).copy()).permute(2, 0, 1)

    return draw


def test_law_1_holds_for_resized_crops(digits: Path, crops: Path):
    data, rows, slots = digits_of(crops), np.arange(0, COUNTS["train"], 2), 6
    logits_vnc = cached_logits(data, "float64", "float64", slots, rows)
    live = student_of_a_live_teacher(data, drawn_by_opencv(digits, crops), slots, rows=rows)
    assert largest_difference(student_from_cache(data, logits_vnc, "float64", rows=rows), live) < 1e-9
    others_vnc = np.roll(logits_vnc, 1, axis=0)
    assert largest_difference(student_from_cache(data, others_vnc, "float64", rows=rows), live) > 1e-3


HALF = {"rtol": 2**-10, "atol": 1e-3}  # a step of float16, and the float32 that the command's teacher runs in


def stores_halves(stored: h5py.Group, said_nc: np.ndarray) -> None:
    np.testing.assert_allclose(stored["logits"][()].astype(float), said_nc, **HALF)


def stores_bytes(stored: h5py.Group, said_nc: np.ndarray) -> None:
    levels_nc, scale_n, offset_n = (stored[f"int8/{name}"][()].astype(float) for name in ("levels", "scale", "offset"))
    off_nc = np.abs(levels_nc * scale_n[:, None] + offset_n[:, None] - said_nc)
    assert (off_nc <= 0.5 * scale_n[:, None] + 1e-3).all()
    assert (scale_n <= np.ptp(said_nc, axis=1) / 255 + 1e-4).all()


def stores_the_top_three(stored: h5py.Group, said_nc: np.ndarray) -> None:
    values_nk, indices_nk, tail_n4 = (stored[f"topk/{name}"][()] for name in ("values", "indices", "tail"))
    kept_nk = np.take_along_axis(said_nc, indices_nk.astype(int), axis=1)
    np.testing.assert_allclose(values_nk.astype(float), kept_nk, **HALF)
    others_nc = said_nc.copy()
    np.put_along_axis(others_nc, indices_nk.astype(int), -np.inf, axis=1)
    assert (np.isinf(others_nc).sum(axis=1) == 3).all()
    assert (kept_nk.min(axis=1) >= others_nc.max(axis=1) - 1e-3).all()
    for column, tau in enumerate((1, 2, 4, 8)):
        tail_n = np.log(np.exp(others_nc / tau).sum(axis=1))
        np.testing.assert_allclose(tail_n4[:, column].astype(float), tail_n, **HALF)


STORES = {"float16": stores_halves, "int8": stores_bytes, "topk:3": stores_the_top_three}


@pytest.mark.parametrize("encoding", STORES)
def test_the_commands_cache_cut_and_distill_resized_crops(digits: Path, crops: Path, tmp_path: Path, encoding: str):
    shutil.copytree(crops, tmp_path, dirs_exist_ok=True)
    common = ["-w", tmp_path, "--precision", "float32"]
    words = ["cache-teacher", *common, "--views", "epochs:3", "--encoding", encoding]
    cached = made(*words, "--dataset", "digits")
    cut_out = made("build-subset", "-w", tmp_path, "--dataset", "digits", "--frac", "0.5", "--name", "half")
    run = made("distill", *common, "--subset", "half", "--epochs", "3")
    assert (run["teacher_forward_passes"], run["views"], run["match"]) == (0, 3, "exact")
    assert cached["teacher_images"] == 3 * COUNTS["train"] + COUNTS["test"]
    targets = Path(cut_out["path"]) / "targets" / "digits-resnet8.h5"
    said = what_a_live_teacher_says(digits, crops, np.arange(COUNTS["train"]), slots=3)
    check_stored(Path(cached["path"]), said, encoding)
    check_stored(targets, said, encoding)
    made(*words, "--subset", "half", "--force")
    check_stored(targets, said, encoding)


def what_a_live_teacher_says(digits: Path, crops: Path, rows: np.ndarray, slots: int) -> np.ndarray:
    """(v, n, c) float64, of images drawn one by one."""
    record, draw = digits_of(crops).record, drawn_by_opencv(digits, crops)
    views_nv = record.plan.views(rows, slots)
    with torch.no_grad():
        said = [live_teacher()(network_input(draw, rows, views_n, record)).numpy() for views_n in views_nv.T]
    return np.stack(said)


def check_stored(path: Path, said_vnc: np.ndarray, encoding: str) -> None:
    with h5py.File(path) as file:
        for slot, said_nc in enumerate(said_vnc):
            STORES[encoding](file[f"slots/{slot}"], said_nc[file["rows"][()]])


def test_slot_images_are_the_crops_that_the_teacher_is_shown(crops: Path):
    """For networks of one's own: the same pixels as the caching pass, of the data and of a subset, in row order."""
    data = digits_of(crops)
    reader = ViewReader(data.split("train"), data.record.plan, 50, CPU)
    expected = torch.cat(list(reader.slot(np.arange(COUNTS["train"]), 3))).numpy()
    shown = list(toolkit.slot_images(data.folder, 3, batch_size=64))
    assert np.array_equal(np.concatenate([images for images, _ in shown]), expected)
    assert np.array_equal(np.concatenate([rows for _, rows in shown]), np.arange(COUNTS["train"]))
    subset = made("build-subset", "-w", crops, "--dataset", "digits", "--frac", "0.2", "--name", "shown")
    part = list(toolkit.slot_images(subset["path"], 3))
    rows = np.concatenate([rows for _, rows in part])
    assert len(rows) == 80 and np.array_equal(np.concatenate([images for images, _ in part]), expected[rows])


# without a cached view for each epoch, and at another size


@pytest.fixture(scope="module")
def halved(crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same workspace with three views cached, and half of the rows. Students may be trained in it."""
    workspace = Path(shutil.copytree(crops, tmp_path_factory.mktemp("halved") / "work"))
    made("cache-teacher", "-w", workspace, "--dataset", "digits", "--views", 3, "--precision", "float32")
    made("build-subset", "-w", workspace, "--dataset", "digits", "--frac", 0.5, "--name", "half")
    return workspace


@pytest.mark.parametrize("match", ["exact", "nearest", "mean"])
def test_a_crops_target_is_what_its_match_says(halved: Path, match: str):
    """Boxes of all shapes, of images of all shapes: the cached box whose corners lie nearest, mirrored alike."""
    loader = toolkit.subset_loader(halved / "subsets" / "half", batch_size=64, match=match)
    bundle = open_bundle(halved / "subsets" / "half")
    rows_m, sizes_m2, plan = bundle.rows_m, bundle.images().sizes_n2[bundle.indices_m], bundle.data.plan
    with h5py.File(bundle.targets_path("digits-resnet8")) as file:
        cached_kmc = np.stack([file[f"slots/{slot}/logits"][()] for slot in range(3)]).astype(np.float32)
    cached_km5 = np.stack([boxes(plan, slot, rows_m, sizes_m2) for slot in range(3)]).astype(np.int64)
    showing = Showing(rows_m, plan, 0, load_knowledge(bundle, match=match).targets, sizes_m2)
    chosen = set()
    for epoch, batches in zip(range(3), (list(loader) for _ in range(3)), strict=True):
        view_m, _ = showing.views(epoch)
        shown_m5 = plan.geometry(rows_m, view_m, sizes_m2).astype(np.int64)
        for batch in batches:
            for row, logits_c in zip(batch.rows_b.tolist(), batch.logits_bc.numpy(), strict=True):
                at = int(np.searchsorted(rows_m, row))
                slot = nearest_by_hand(shown_m5[at], cached_km5[:, at])
                if match == "exact":
                    assert np.array_equal(cached_km5[slot, at], shown_m5[at])
                expected = cached_kmc[:, at].mean(axis=0) if match == "mean" else cached_kmc[slot, at]
                np.testing.assert_allclose(logits_c, expected, rtol=1e-6, atol=1e-6)
                chosen.add(slot)
    assert chosen == {0, 1, 2}


def nearest_by_hand(shown_5: np.ndarray, cached_k5: np.ndarray) -> int:
    def corners(box_5: np.ndarray) -> np.ndarray:
        return np.array([box_5[0], box_5[1], box_5[0] + box_5[2], box_5[1] + box_5[3]])

    rivals = [slot for slot, box_5 in enumerate(cached_k5) if box_5[4] == shown_5[4]]
    return min(rivals, key=lambda slot: (((corners(cached_k5[slot]) - corners(shown_5)) ** 2).sum(), slot))


def test_the_middle_square_of_seven_eighths_is_view_0s():
    sizes = np.concatenate([SIZES, [(1, 1), (1, 9), (65_535, 500), (375, 500)]])
    assert np.array_equal(middle_squares(sizes, 0.875), boxes(PLAN, 0, np.arange(len(sizes)), sizes))
    assert middle_squares(np.array([[10, 21]]), 1.0).tolist() == [[0, 5, 10, 10, 0]]
    assert middle_squares(np.array([[10, 21]]), 0.01).tolist() == [[4, 10, 1, 1, 0]]


def right_by_hand(digits: Path, size: int, crop: float) -> float:
    """The live teacher's accuracy, in percent, on middle squares cut and scaled by OpenCV one by one."""
    samples, record = Enlarged(digits, "test", COUNTS["test"]), digits_of(digits).record

    def draw(row: int, view: int) -> torch.Tensor:
        frame, _ = samples[row]
        side = int(min(frame.shape[:2]) * crop)
        top, left = ((whole - side) // 2 for whole in frame.shape[:2])
        square = np.ascontiguousarray(frame[top : top + side, left : left + side])
        scaled = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(scaled).permute(2, 0, 1)

    rows = np.arange(COUNTS["test"])
    with torch.no_grad():
        found_n = live_teacher()(network_input(draw, rows, 0 * rows, record)).argmax(dim=1).numpy()
    return 100 * float((found_n == samples.labels_n).mean())


@pytest.mark.parametrize(("size", "crop"), [(8, 0.875), (8, 1.0), (12, 0.875), (6, 0.6)])
def test_evaluate_cuts_the_middle_and_scales_it_as_asked(digits: Path, crops: Path, size: int, crop: float):
    words = ("evaluate", TEACHER, "-w", crops, "--precision", "float32")
    found = made(*words, "--size", size, "--crop", crop)
    assert found["top1"] == pytest.approx(right_by_hand(digits, size, crop))
    assert (found["size"], found["crop"]) == ([size, size], crop)
    if (size, crop) == (8, 0.875):
        assert made(*words) == found


@pytest.mark.parametrize("match", ["nearest", "mean"])
def test_a_run_shown_more_views_than_are_cached_is_evaluated_at_its_own_size_and_then_at_any(halved: Path, match: str):
    run = made("distill", "-w", halved, "--subset", "half", "--epochs", 2, "--match", match, "--views", 2)
    assert (run["teacher_forward_passes"], run["views"], run["match"], run["source"]) == (0, 2, match, "stream")
    assert made("evaluate", run["path"], "-w", halved)["top1"] == run["top1"]
    shown = kdtool("evaluate", run["path"], "-w", halved, "--size", 10)
    assert shown.exit_code == 0 and "of 100 test images of digits, 10 × 10 pixels" in shown.stdout


def test_another_size_is_refused_where_it_can_not_be(digits: Path, crops: Path, tmp_path: Path):
    for words, said in ((("--size", 16), "--size 16"), (("--crop", 0.9), "--crop 0.9")):
        line = f"{said}: digits is shown whole, at its 8 × 8 pixels (pad-crop). Leave it out"
        refused(kdtool("evaluate", TEACHER, "-w", digits, *words), 2, line)
    fixed = ("--arch", "tests.own_things:of_8")
    torch.save(of_8(10).state_dict(), tmp_path / "fixed.pt")
    words = ("evaluate", tmp_path / "fixed.pt", "-w", crops, "--dataset", "digits", *fixed)
    made(*words, "--crop", 0.9)
    refused(kdtool(*words, "--size", 12), 2, "--size 12: this network takes no such images", "12 × 12 pixels")
