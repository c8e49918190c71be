"""Contact sheets, histograms and class balance: what they show is what is on disk, and nothing is left half-drawn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.conftest import kdtool, made, refused
from toolkit.core.hashing import rng_for
from toolkit.formats.bundle import open_bundle
from toolkit.formats.cache import open_cache
from toolkit.formats.cache_writing import new_blocks
from toolkit.formats.dataset import open_packed
from toolkit.formats.dynamics import DYNAMICS_SCHEMA, SERIES
from toolkit.formats.weights import write_weights
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.pictures import picture_path
from toolkit.report.balance import balance_lines, class_balance
from toolkit.report.charts import binned, histogram, save_png
from toolkit.report.sheets import (
    WRONG,
    Group,
    SheetLayout,
    Tile,
    broken_into_lines,
    pick_groups,
    sheet,
    shortened,
    text_width,
)

TEACHER = "digits-resnet8"


@pytest.fixture(scope="module")
def work(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits workspace, to draw in."""
    return Path(shutil.copytree(digits, tmp_path_factory.mktemp("show") / "work"))


def shown(work: Path, *words: Any) -> dict[str, Any]:
    return made("show", "-w", work, "--dataset", "digits", *words)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.array(picture.convert("RGB"))


def known(work: Path, score: str = "el2n") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and the teacher's guesses, as the cache says."""
    with open_cache(work / "teachers" / TEACHER / "cache.h5") as cache:
        logits_nc = cache.read("slots/0/logits")
        return cache.score(score).astype(float), cache.read("labels"), logits_nc.argmax(axis=1)


def layout_of(work: Path, rows: list[int], title: str, score: str = "el2n") -> SheetLayout:
    """The layout that a sheet of one group must have."""
    scores_n, labels_n, guesses_n = known(work, score)
    tiles = [
        Tile(r, float(scores_n[r]), str(labels_n[r]), str(guesses_n[r]), bool(guesses_n[r] == labels_n[r]))
        for r in rows
    ]
    return SheetLayout((Group(title, broken_into_lines(tiles, 80)),), 8, 8, 10)


def test_groups_are_the_ends_of_a_sort_and_chance():
    scores_n = np.random.default_rng(0).normal(size=500)
    picked = pick_groups(scores_n, 30, rng_for(3, 1))
    order = np.argsort(scores_n)
    assert picked["easiest"].tolist() == order[:30].tolist()
    assert picked["hardest"].tolist() == order[::-1][:30].tolist()
    assert len(set(picked["random"].tolist())) == 30
    assert not {*picked["random"].tolist()} <= {*order[:60].tolist()}
    assert {len(rows) for rows in pick_groups(scores_n, 9999, rng_for(3, 1)).values()} == {500}


def test_among_equal_scores_chance_decides_and_the_seed_repeats_it():
    even_n = np.zeros(1000)
    one, again, other = (pick_groups(even_n, 20, rng_for(seed, 1)) for seed in (0, 0, 1))
    for group in one:
        assert one[group].tolist() == again[group].tolist() != other[group].tolist()
        assert one[group].max() > 500 and one[group].min() < 500
    with pytest.raises(ValueError, match="not a number"):
        pick_groups(np.array([0.0, np.nan]), 1, rng_for(0, 1))


def test_a_sheets_tiles_are_the_images_of_the_hardest_rows(work: Path, tmp_path: Path):
    result = shown(work, "--out", tmp_path / "sheets", "--count", 14)
    scores_n, _, _ = known(work)
    rows = result["row_numbers"]["hardest"]
    assert rows == np.argsort(-scores_n, kind="stable")[:14].tolist()
    picture_yx3 = pixels(tmp_path / "sheets" / "hardest.png")
    layout = layout_of(work, rows, f"Hardest by el2n of {TEACHER}, digits")
    assert picture_yx3.shape[:2] == layout.size
    frames_rhw3 = open_packed(work / "data" / "digits").split("train").frames(np.array(rows))
    for frame_hw3, (_, *place) in zip(frames_rhw3, layout.places(), strict=True):
        assert np.array_equal(picture_yx3[layout.tile(*place)], frame_hw3.repeat(10, 0).repeat(10, 1))
    written_yx3 = sheet(frames_rhw3, layout)  # with the labels, scores and guesses that the cache tells
    assert np.array_equal(picture_yx3, written_yx3)


def test_the_result_names_every_file_and_row(work: Path, tmp_path: Path):
    result = shown(work, "--out", tmp_path / "x", "--count", 5, "--score", "margin")
    names = ["hardest", "easiest", "random", "histogram"]
    assert result["files"] == [str(tmp_path / "x" / f"{name}.png") for name in names]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == sorted(f"{name}.png" for name in names)
    assert result["score"] == f"margin of {TEACHER}" and result["rows"] == 1442 and result["kept"] is None
    assert all(len(rows) == 5 for rows in result["row_numbers"].values())
    lines = kdtool("show", "-w", work, "--dataset", "digits", "--out", tmp_path / "x").stdout.splitlines()
    assert lines[:4] == result["files"] and "1,442 rows" in lines[-1]


def test_one_png_holds_all_groups_and_the_histogram_lies_beside_it(work: Path, tmp_path: Path):
    result = shown(work, "--out", tmp_path / "all.png", "--count", 4)
    assert result["files"] == [str(tmp_path / "all.png"), str(tmp_path / "all-histogram.png")]
    alone = shown(work, "--out", tmp_path / "apart", "--count", 4)
    heights = [pixels(path).shape[0] for path in alone["files"][:3]]
    assert max(heights) < pixels(tmp_path / "all.png").shape[0] < sum(heights)


def test_the_same_seed_draws_the_same_files_and_another_other_samples(work: Path, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        shown(work, "--out", tmp_path / name, "--count", 6, "--seed", seed, "--subset", "third")
    a, b, c = ([(tmp_path / name / f"{file}.png").read_bytes() for file in ("random", "histogram")] for name in "abc")
    assert a == b
    assert a[0] != c[0] and a[1] == c[1]


def test_per_class_has_a_line_for_each_class(work: Path, tmp_path: Path):
    rows = shown(work, "--out", tmp_path / "x", "--count", 3, "--per-class")["row_numbers"]["hardest"]
    scores_n, labels_n, _ = known(work)
    for label in range(10):
        of_class = np.flatnonzero(labels_n == label)
        hardest = of_class[np.argsort(-scores_n[of_class], kind="stable")[:3]]
        assert rows[3 * label : 3 * label + 3] == hardest.tolist()


def test_what_the_teacher_gets_wrong_is_framed_in_red():
    tiles = (Tile(0, 0.1, "a", "a"), Tile(1, 1.2, "a", "b", False), Tile(2, 3.0, "c"))
    layout = SheetLayout((Group("title", (tiles,)),), 4, 6, 9)
    picture_yx3 = sheet(np.zeros((3, 4, 6, 3), np.uint8), layout)
    found = []
    for number in range(3):
        down, across = layout.tile(0, 0, number)
        found.append(picture_yx3[down.start - 1, across.start - 1].tolist() == list(WRONG))
    assert found == [False, True, False]


@pytest.mark.parametrize("width", [3, 28, 200])
@pytest.mark.parametrize("name", ["a", "a name as long as names of classes get at the very most"])
def test_tiles_never_meet_each_other_or_the_captions(width: int, name: str):
    tiles = [Tile(10**6 + number, 1.5e-7, name, name, number % 2 == 0) for number in range(9)]
    layout = SheetLayout(
        (Group("one", broken_into_lines(tiles, width)), Group("two", (tuple(tiles[:2]),))), 5, width, 1
    )
    black = sheet(np.zeros((11, 5, width, 3), np.uint8), layout)
    white = sheet(np.full((11, 5, width, 3), 255, np.uint8), layout)
    covered_yx = np.zeros(layout.size, dtype=int)
    for _, *place in layout.places():
        assert covered_yx[layout.tile(*place)].shape == (5, width)
        covered_yx[layout.tile(*place)] += 1
    assert covered_yx.max() == 1
    assert np.array_equal((black != white).any(axis=2), covered_yx == 1)  # no caption over a sample
    edges = [black[:2], black[-2:], black[:, :2], black[:, -2:]]
    assert all((edge == 255).all() for edge in edges)


def test_a_long_name_is_cut_to_its_column():
    assert shortened("Ankle boot", 500) == "Ankle boot"
    cut = shortened("a rather long name of a class", 80)
    assert cut.endswith("...") and text_width(cut, 12) <= 80


def test_bins_count_every_row_once_and_integers_have_their_own():
    scores_n, kept_n = np.random.default_rng(1).gamma(1.0, size=3000), np.arange(3000) % 3 == 0
    bins = binned(scores_n, kept_n)
    assert (bins.kept.sum(), bins.dropped.sum()) == (1000, 2000)
    low, high = bins.edges[:-1], bins.edges[1:]
    brute = [int(((scores_n >= a) & (scores_n < b)).sum()) for a, b in zip(low, high, strict=True)]
    brute[-1] += 1  # the largest, which is the last edge
    assert (bins.kept + bins.dropped).tolist() == brute
    counted = binned(np.array([0, 0, 3, 7.0]), np.array([True, False, True, True]))
    assert counted.kept.tolist() == [1, 0, 0, 1, 0, 0, 0, 1] and counted.dropped.tolist() == [1, *[0] * 7]
    assert binned(np.full(5, 0.25), np.ones(5, dtype=bool)).kept.sum() == 5


def test_the_histogram_says_how_many_were_kept_and_dropped():
    scores_n = np.concatenate([np.zeros(5000), np.linspace(0, 1, 100)])
    figure = histogram(scores_n, np.arange(5100) >= 5000, "el2n of $t_1$", "data")
    axes = figure.axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["dropped: 5,000 rows", "kept: 100 rows"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == (r"el2n of \$t_1\$", "rows", "log")
    everything = histogram(np.linspace(0, 1, 100), None, "el2n", "data").axes[0]
    assert [text.get_text() for text in everything.get_legend().get_texts()] == ["all: 100 rows"]
    assert everything.get_yscale() == "linear"


def test_the_histogram_shows_both_parts_in_their_colours(tmp_path: Path):
    half_n = np.arange(100) < 50
    save_png(histogram(np.arange(100) / 100, half_n, "s", "t"), tmp_path / "h.png")
    picture = pixels(tmp_path / "h.png").astype(int)
    middle = picture[picture.shape[0] // 2]
    blue, orange = middle[:, 2] - middle[:, 0] > 40, middle[:, 0] - middle[:, 2] > 40
    assert blue.sum() > 100 and orange.sum() > 100
    assert np.flatnonzero(blue).max() < np.flatnonzero(orange).min() + 20  # low scores kept, high ones dropped


def test_a_subset_sets_kept_against_dropped(work: Path, tmp_path: Path):
    assert shown(work, "--out", tmp_path / "x", "--count", 1, "--subset", "hard")["kept"] == 144
    plain = shown(work, "--out", tmp_path / "y", "--count", 1)
    assert Path(plain["files"][-1]).read_bytes() != (tmp_path / "x" / "histogram.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--count", 0], 2, ["--count must be at least 1, got 0"]),
        (["--count", 1400, "--per-class"], 2, ["8,192", "lower --count, or leave out --per-class"]),
        (["--seed", -1], 2, ["--seed"]),
        (["--score", "el3n"], 2, ["el3n", "el2n"]),
        (["--score", "forgetting"], 2, ["forgetting", "kdtool"]),
        (["--subset", "none"], 1, ["none", "subset.json: not found"]),
        (["--teacher", "nobody"], 1, ["nobody"]),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_leaves_nothing(
    words: list[Any], code: int, said: list[str], work: Path, tmp_path: Path
):
    refused(kdtool("show", "-w", work, "--dataset", "digits", "--out", tmp_path / "x", *words), code, *said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["taken.csv", "taken.csv/x", "folder.png"])
def test_what_is_neither_a_folder_nor_a_png_file_is_refused(out: str, work: Path, tmp_path: Path):
    (tmp_path / "taken.csv").write_text("")
    (tmp_path / "folder.png").mkdir()
    words = ("show", "-w", work, "--dataset", "digits", "--out", tmp_path / out)
    refused(kdtool(*words), 2, f"--out {tmp_path / out}", "ends in .png")


@pytest.mark.parametrize("out", ["runs/x", "data/digits", "subsets", "teachers/all.png"])
def test_no_picture_is_drawn_among_artifacts(out: str, work: Path):
    refused(kdtool("show", "-w", work, "--dataset", "digits", "--out", work / out), 2, "holds artifacts, not pictures")


def test_each_has_a_folder_of_its_own_by_default(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    shutil.copytree(ours / "teachers" / TEACHER, ours / "teachers" / "twin")
    ways = ([], ["--teacher", "twin"], ["--subset", "third"], ["--per-class"], ["--score", "loss"])
    paths = [shown(ours, "--count", 1, *words)["path"] for words in ways]
    assert [Path(path).name for path in paths] == [
        "digits-el2n",
        "digits-el2n-of-twin",
        "digits-el2n-kept-by-third",
        "digits-el2n-per-class",
        "digits-loss",
    ]
    assert shown(ours, "--count", 1, "--teacher", TEACHER)["path"] == paths[0]


def test_pictures_names_are_short_and_no_two_are_alike(tmp_path: Path):
    workspace = Workspace(tmp_path)
    long = [picture_path(workspace, "digits", f"{'x' * 300}{end}") for end in "ab"]
    strange = [picture_path(workspace, "digits", word) for word in ("a/b", "a b", "a_b")]
    assert len({*long, *strange}) == 5
    assert all(len(path.name) < 100 and path.parent == tmp_path / "pictures" for path in (*long, *strange))


def test_a_subset_of_other_data_than_named_is_refused(work: Path, tmp_path: Path):
    words = ["show", "-w", work, "--subset", "third", "--out", tmp_path / "x", "--count", 1]
    refused(kdtool(*words, "--dataset", "fashion-mnist"), 2, "the subset third is of --dataset digits. Leave them out")
    refused(kdtool(*words, "--dataset", "digits", "--limit", 200), 2, "--limit 200", "of --dataset digits")
    assert made(*words)["dataset"] == made(*words, "--dataset", "digits")["dataset"] == "digits"


def test_class_balance_tells_counts_ends_and_shares():
    balance = class_balance(np.array([3, 0, 9]), ["a", "b", "c"], np.array([6, 4, 9]))
    assert [one["rows"] for one in balance["classes"]] == [3, 0, 9]
    assert (balance["smallest"]["name"], balance["largest"]["name"]) == ("b", "c")
    assert [one["share_kept"] for one in balance["classes"]] == [0.5, 0.0, 1.0]
    assert (balance["least_kept"], balance["most_kept"]) == (0.0, 1.0)
    summary, *bars = balance_lines(balance)
    assert "3 classes of 0 to 9 rows" in summary and "0.0 to 100.0 %" in summary
    assert [bar.count("█") for bar in bars] == [10, 0, 30]


def test_many_classes_are_summarised_for_people_only():
    balance = class_balance(np.arange(1, 1001))
    lines = balance_lines(balance)
    assert len(balance["classes"]) == 1000 and len(lines) < 20
    assert "1000 classes of 1 to 1,000 rows" in lines[0]
    assert any("988 classes between" in line for line in lines)


def test_inspect_tells_the_balance_of_data_a_file_and_a_subset(work: Path):
    labels_n = open_packed(work / "data" / "digits").split("train").labels_n
    whole = np.bincount(labels_n).tolist()
    rows_m = open_bundle(work / "subsets" / "hard").rows_m
    kept = np.bincount(labels_n[rows_m], minlength=10)
    data = made("inspect", work / "data" / "digits")["class_balance"]
    assert [one["rows"] for one in data["train"]["classes"]] == whole and "test" in data
    file = made("inspect", work / "data" / "digits" / "train.beton")["class_balance"]["train"]
    assert [(one["name"], one["rows"]) for one in file["classes"]] == [(str(n), rows) for n, rows in enumerate(whole)]
    subset = made("inspect", work / "subsets" / "hard")
    assert subset["balance"] is True
    classes = subset["class_balance"]["subset"]["classes"]
    assert [one["rows"] for one in classes] == kept.tolist()
    assert [one["share_kept"] for one in classes] == (kept / np.array(whole)).tolist()
    lines = kdtool("inspect", work / "subsets" / "hard").stdout
    assert "10 classes of" in lines and "█" in lines


def test_a_carried_subset_is_inspected_without_the_data_it_was_cut_from(work: Path, tmp_path: Path):
    shutil.copytree(work / "subsets" / "third", tmp_path / "carried")
    balance = made("inspect", tmp_path / "carried")["class_balance"]["subset"]
    assert sum(one["rows"] for one in balance["classes"]) == 433
    assert "share_kept" not in balance["classes"][0]


def test_inspect_knows_weights_and_sees_damage_in_them(tmp_path: Path):
    path = tmp_path / "weights.h5"
    write_weights(path, np.arange(20000), np.ones(20000), "craig")
    found = made("inspect", path)
    assert (found["kind"], found["method"], found["rows"], found["verified_blocks"]) == ("weights", "craig", 20000, 6)
    assert (found["smallest"], found["largest"]) == (1.0, 1.0)
    with h5py.File(path, "r+") as file:
        file["weights"][12345] = 7.0
    refused(
        kdtool("inspect", path), 1, "weights.h5", "/weights, rows from 8192, fails its checksum", "kdtool build-subset"
    )


def test_inspect_knows_scores(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    path = made("score", "-w", ours, "--dataset", "digits", "--score", "centroid")["path"]
    found = made("inspect", path)
    assert (found["kind"], found["rows"], list(found["scores"])) == ("scores", 1442, ["centroid"])
    with h5py.File(path, "r+") as file:
        file["scores/centroid"][7] += 1
    refused(kdtool("inspect", path), 1, "/scores/centroid", "fails its checksum", "kdtool score")


def test_inspect_knows_dynamics_and_sees_damage_in_them(tmp_path: Path):
    path, rows_n = tmp_path / "dynamics.h5", np.arange(100)
    said = {"dataset": "digits", "data_fingerprint": "1", "rows_fingerprint": "2", "limit": None, "teacher": "mine"}
    made_of = {"teacher_fingerprint": "3", "arch": "resnet8", "classes": 10, "seeds": [0], "top1s": [97.0]}
    rest = {"epochs": 1, "snapshots": [], "settings": {}, "command": "", "created": "", "versions": {}}
    with new_blocks(path, DYNAMICS_SCHEMA, {**said, **made_of, **rest}) as out:
        for name in ("rows", "labels"):
            out.write(name, rows_n)
        for name, dtype in SERIES.items():
            out.write(f"seeds/0/epochs/1/{name}", rows_n.astype(dtype))
    found = made("inspect", path)
    assert (found["kind"], found["teacher"], found["rows"]) == ("dynamics", "mine", 100)
    assert found["verified_blocks"] == 2 + len(SERIES)
    with h5py.File(path, "r+") as file:
        file["seeds/0/epochs/1/loss"][3] = 1e9
    refused(kdtool("inspect", path), 1, "epochs/1/loss", "fails its checksum", "kdtool train-teacher")


@pytest.mark.parametrize("schema", ["kdtool gossip 1", "kdtool scores 9", "kdtool weights 9", 7, None])
def test_a_file_of_an_unknown_kind_is_one_clear_line(schema: Any, tmp_path: Path):
    path = tmp_path / "some.h5"
    with h5py.File(path, "w") as file:
        if schema is not None:
            file.attrs["schema"] = schema
    refused(kdtool("inspect", path), 1, "some.h5")
