"""The picture of views: what it shows is what the renderer drew, and where it can't be drawn nothing is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from tests.conftest import kdtool, made, refused
from toolkit.data.pack import first_of_each_class
from toolkit.formats.bundle import open_bundle
from toolkit.formats.dataset import PackedData, open_packed
from toolkit.formats.views_of import ViewReader
from toolkit.report.montage import Layout, class_label, montage


@pytest.fixture(scope="module")
def crops(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits whose views are boxes cut out and scaled back to their 8 × 8 pixels, by FFCV's decoder."""
    workspace = tmp_path_factory.mktemp("crops")
    shutil.copytree(digits / "data", workspace / "data")
    path = workspace / "data" / "digits" / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "family": "resized-crop", "least_area": 30}))
    return workspace


@pytest.fixture(params=["pad-crop", "resized-crop"])
def workspace(request: pytest.FixtureRequest, digits: Path, crops: Path) -> Path:
    return {"pad-crop": digits, "resized-crop": crops}[request.param]


def packed(workspace: Path) -> PackedData:
    return open_packed(workspace / "data" / "digits")


def drawn(out: Path, workspace: Path, *words: Any) -> tuple[dict[str, Any], np.ndarray]:
    """The command's result and the picture, read back: (y, x, 3) uint8."""
    result = made("views", "-w", workspace, "--dataset", "digits", "--montage", out, *words)
    with Image.open(out) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert picture.size == (result["width"], result["height"])
        return result, np.array(picture)


def layout_of(result: dict[str, Any], workspace: Path) -> Layout:
    labels_n = packed(workspace).split("train").labels_n
    labels_r = tuple((row, str(labels_n[row])) for row in result["row_numbers"])
    return Layout(labels_r, result["slots"], 8, 8, result["scale"])


def reader(workspace: Path, batch_size: int) -> ViewReader:
    data = packed(workspace)
    return ViewReader(data.split("train"), data.record.plan, batch_size, torch.device("cpu"))


def views(reader: ViewReader, rows: list[int], slot: int) -> np.ndarray:
    return torch.cat(list(reader.slot(np.array(rows), slot))).numpy()


def test_tiles_are_the_renderers_pixels_enlarged(workspace: Path, tmp_path: Path):
    words = ["--row", 1441, "--row", 3, "--row", 700, "--views", 5, "--scale", 3]
    result, picture_yx3 = drawn(tmp_path / "views.png", workspace, *words)
    assert (result["rows"], result["row_numbers"], result["slots"]) == (3, [1441, 3, 700], 5)
    layout, draws = layout_of(result, workspace), reader(workspace, 2)  # another batch size than the command's
    for slot in range(5):
        for row, view_hw3 in enumerate(views(draws, result["row_numbers"], slot)):
            assert np.array_equal(picture_yx3[layout.tile(row, slot)], np.kron(view_hw3, np.ones((3, 3, 1), np.uint8)))


def test_the_first_column_is_the_canonical_view(workspace: Path, tmp_path: Path):
    result, picture_yx3 = drawn(tmp_path / "views.png", workspace)
    layout, data = layout_of(result, workspace), packed(workspace)
    rows_r = np.array(result["row_numbers"])
    found_rhw3 = np.stack([picture_yx3[layout.tile(row, 0)][::8, ::8] for row in range(8)])
    canonical_rhw3 = next(reader(workspace, 8).views(rows_r, np.zeros(8, dtype=np.int16))).numpy()
    assert np.array_equal(found_rhw3, canonical_rhw3)
    if data.record.plan.finite:
        assert np.array_equal(found_rhw3, data.split("train").frames(rows_r))


def test_the_result_says_what_is_drawn(workspace: Path, tmp_path: Path):
    out = tmp_path / "views.png"
    result, picture_yx3 = drawn(out, workspace)
    assert (result["path"], result["dataset"], result["rows"], result["slots"]) == (str(out), "digits", 8, 8)
    assert result["family"] == packed(workspace).record.plan.geometry_in_words
    assert (result["scale"], picture_yx3.shape) == (8, (result["height"], result["width"], 3))
    line = kdtool("views", "-w", workspace, "--dataset", "digits", "--montage", out, "--rows", 1, "--views", 2).stdout
    for word in (str(out), "1 rows × 2 slots", result["family"], "pixels"):
        assert word in line


def test_rows_are_the_first_of_each_class_in_turn(digits: Path, tmp_path: Path):
    result, _ = drawn(tmp_path / "views.png", digits, "--rows", 14, "--views", 1, "--scale", 1)
    labels_n = packed(digits).split("train").labels_n
    of_class = [np.flatnonzero(labels_n == label) for label in range(10)]
    assert result["row_numbers"] == [int(rows[0]) for rows in of_class] + [int(rows[1]) for rows in of_class[:4]]


def test_classes_of_unequal_size_still_take_turns():
    assert first_of_each_class(np.array([2, 2, 0, 2, 5, 0]), 99).tolist() == [2, 0, 4, 5, 1, 3]


def test_a_subsets_picture_holds_its_rows_only(digits: Path, tmp_path: Path):
    result, _ = drawn(tmp_path / "views.png", digits, "--subset", "hard", "--rows", 30, "--views", 1)
    rows_m = open_bundle(digits / "subsets" / "hard").rows_m
    assert result["rows"] == 30
    assert set(result["row_numbers"]) <= set(rows_m.tolist())
    asked, _ = drawn(tmp_path / "views.png", digits, "--subset", "hard", "--row", rows_m[-1])
    assert asked["row_numbers"] == [rows_m[-1]]


def test_a_picture_drawn_again_is_the_same_file(digits: Path, tmp_path: Path):
    drawn(tmp_path / "one.png", digits)
    drawn(tmp_path / "two.png", digits)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("scale", [1, 2, 9])
@pytest.mark.parametrize("slots", [1, 30, 120])
def test_tiles_never_meet_each_other_or_the_labels(scale: int, slots: int):
    layout = Layout(((7, "a"), (123456, "a much longer name")), slots, 5, 9, scale)
    nothing_yx3 = montage(np.zeros((0, 0, 5, 9, 3), np.uint8), layout)
    held_yx = (nothing_yx3 != 255).any(axis=2).astype(int)  # the labels
    assert held_yx.any()
    for row in range(2):
        for slot in range(slots):
            held_yx[layout.tile(row, slot)] += 1
            assert held_yx[layout.tile(row, slot)].shape == (5 * scale, 9 * scale)
    assert held_yx.max() == 1
    edges = [held_yx[:2], held_yx[-2:], held_yx[:, :2], held_yx[:, -2:]]
    assert not any(edge.any() for edge in edges)


@pytest.mark.parametrize(("slots", "width"), [(8, 64), (100, 20), (200, 1), (1, 1)])
def test_slot_numbers_never_run_into_each_other(slots: int, width: int):
    layout = Layout(((0, "a"),), slots, 8, width, 1)
    headings = layout.headings()
    middles = [layout.tile(0, slot)[1].start + width / 2 for slot in headings]
    longest = max(map(ImageFont.load_default(13).getlength, headings.values()))
    assert headings[0] in ("slot 0", "0")
    assert all(distance >= longest for distance in np.diff(middles))


@pytest.mark.parametrize(
    ("name", "label"),
    [("T-shirt/top", "T-shirt/top"), ("お", "1"), ("Å", "1"), (" ", "1"), ("a" * 30, "a" * 21 + "...")],
)
def test_a_name_the_font_lacks_becomes_its_number(name: str, label: str):
    assert class_label(["zero", name], 1) == label


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--rows", 0], 2, ["--rows must be at least 1", "got 0"]),
        (["--scale", 0], 2, ["--scale must be at least 1", "got 0"]),
        (["--row", 5, "--row", 1442], 2, ["--row 1442", "1,442 training rows of digits", "nearest is 1441"]),
        (["--row", -1], 2, ["--row -1", "nearest is 0"]),
        (["--row", 10**30], 2, ["nearest is 1441"]),
        (["--views", 10], 2, ["--views must be 1 to 9"]),
        (["--subset", "hard", "--row", 0], 2, ["--row 0", "144 training rows of subset hard", "nearest is"]),
        (["--subset", "none"], 1, ["subset.json: not found", "kdtool build-subset"]),
        (["--scale", 200], 2, ["8,192", "lower --views and lower --rows, or lower --scale"]),
        (["--scale", 1, "--rows", 1000], 2, ["8,192", "pixels, more than 8,192 a side: lower --rows"]),
        (["--scale", 999, "--row", 1, "--row", 2], 2, ["name fewer with --row"]),
        (["--scale", 10**30], 2, ["or lower --scale"]),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_leaves_nothing(
    words: list[Any], code: int, said: list[str], digits: Path, tmp_path: Path
):
    command = ["views", "-w", digits, "--dataset", "digits", "--montage", tmp_path / "views.png"]
    refused(kdtool(*command, *words), code, *said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("views.jpg", 1, ["views.jpg", "ends in .png"]),
        ("views", 1, ["ends in .png"]),
        ("none/views.png", 1, ["there is no folder", "none"]),
        ("taken.png", 2, ["taken.png", "is a directory"]),
    ],
)
def test_a_picture_without_a_place_is_refused_and_leaves_nothing(
    name: str, code: int, said: list[str], digits: Path, tmp_path: Path
):
    (tmp_path / "taken.png").mkdir()
    refused(kdtool("views", "-w", digits, "--dataset", "digits", "--montage", tmp_path / name), code, *said)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken.png"]


def test_a_refused_picture_leaves_the_old_one(digits: Path, tmp_path: Path):
    out = tmp_path / "views.png"
    drawn(out, digits)
    before = out.read_bytes()
    refused(kdtool("views", "-w", digits, "--dataset", "digits", "--montage", out, "--scale", 999), 2)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["views.png"]
