"""Resized crops: boxes as integers, drawn by FFCV's decoder to the same pixels whoever asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from toolkit.core.errors import UsageError
from toolkit.formats.beton import cut, open_beton
from toolkit.formats.beton_writer import write_beton
from toolkit.formats.views_of import ViewReader
from toolkit.training.showing import Showing
from toolkit.training.stream import StreamSource
from toolkit.views.plan import Plan
from toolkit.views.schedule import nearest_slots

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
    write_beton(Photos(60), path, classes=5, write_mode=request.param)
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
    found = nearest_slots(PLAN, rows, views_n, cached_nk, sizes)
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
