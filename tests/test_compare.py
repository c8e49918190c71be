"""Rank correlations and overlaps, against scipy and brute force, and the pictures that show them."""

from __future__ import annotations

import json
import math
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from tests.conftest import kdtool, made, refused
from toolkit.cli import seeing
from toolkit.formats.bundle import open_bundle
from toolkit.formats.cache import open_cache
from toolkit.report.charts import HeatMap, heat_maps, save_png
from toolkit.report.comparing import overlaps, rank_correlations

TEACHER = "digits-resnet8"


@pytest.fixture(scope="module")
def work(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits workspace, to draw in, with a subset of other data and a damaged one."""
    work = Path(shutil.copytree(digits, tmp_path_factory.mktemp("compare") / "work"))
    made("build-subset", "-w", work, "--dataset", "digits", "--limit", 100, "--frac", "0.5", "--name", "other")
    shutil.copytree(work / "subsets" / "third", work / "subsets" / "torn")
    (work / "subsets" / "torn" / "subset.json").write_text("{")
    return work


def compared(work: Path, out: Path, *words: Any) -> dict[str, Any]:
    return made("compare", "-w", work, "--dataset", "digits", "--out", out, *words)


def test_rank_correlations_are_scipys_with_ties_too():
    rng = np.random.default_rng(0)
    scores_kn = np.stack([rng.normal(size=400), rng.integers(0, 4, 400), rng.integers(0, 40, 400), rng.random(400)])
    scores_kn[3] += scores_kn[0]
    expected = [[spearmanr(a, b).statistic for a in scores_kn] for b in scores_kn]
    assert np.allclose(rank_correlations(scores_kn), expected, atol=1e-12, rtol=0)


def test_rank_correlations_know_ranks_only():
    scores_n = np.random.default_rng(1).normal(size=50)
    scores_kn = np.stack([scores_n, np.exp(scores_n), -scores_n, np.where(scores_n > 1.5, np.inf, scores_n)])
    rho_kk = rank_correlations(scores_kn)
    assert rho_kk[0, 1] == pytest.approx(1) and rho_kk[0, 2] == pytest.approx(-1) and rho_kk[0, 3] > 0.95
    with pytest.raises(ValueError, match="not a number"):
        rank_correlations(np.array([[0.0, np.nan]]))


def test_a_score_that_is_the_same_for_all_rows_correlates_with_none():
    rho_kk = rank_correlations(np.array([[1.0, 2, 3], [5, 5, 5]]))
    assert rho_kk[0, 0] == 1 and np.isnan(rho_kk[0, 1]) and np.isnan(rho_kk[1]).all()


def test_overlaps_are_those_of_sets():
    rng = np.random.default_rng(2)
    subsets = [np.sort(rng.choice(60, size, replace=False)) for size in (5, 20, 41, 60)]
    found = overlaps(subsets, 60)
    for a, one in enumerate(subsets):
        for b, other in enumerate(subsets):
            both, either = len({*one} & {*other}), len({*one} | {*other})
            assert found.common[a, b] == both
            assert found.share[a, b] == both / min(len(one), len(other))
            assert found.jaccard[a, b] == both / either


@pytest.mark.parametrize(("a", "b"), [(2, 3), (3, 3), (1, 6), (5, 4), (6, 6)])
def test_chance_is_the_mean_over_every_pair_of_subsets(a: int, b: int):
    one = set(range(a))  # by symmetry one of them may be fixed
    pairs = [(len(one & {*other}), len(one | {*other})) for other in combinations(range(6), b)]
    found = overlaps([np.arange(a), np.arange(b)], 6)
    assert found.share_by_chance[0, 1] == pytest.approx(np.mean([both / min(a, b) for both, _ in pairs]))
    assert found.jaccard_by_chance[0, 1] == pytest.approx(np.mean([both / either for both, either in pairs]))


def test_chance_is_exact_for_millions_of_rows():
    found = overlaps([np.arange(128_117), np.arange(384_350)], 1_281_167)
    assert found.share_by_chance[0, 1] == 384_350 / 1_281_167
    common = 128_117 * 384_350 / 1_281_167
    assert found.jaccard_by_chance[0, 1] == pytest.approx(common / (128_117 + 384_350 - common), rel=1e-5)


def test_impossible_subsets_are_refused():
    for subset in (np.arange(0), np.arange(11)):
        with pytest.raises(ValueError, match="rows of 10"):
            overlaps([subset], 10)


def cells(figure: Any, path: Path) -> list[np.ndarray]:
    """The colours of each map's cells, (k, k, 3), read off the picture near a corner of each, beside its number."""
    save_png(figure, path)
    with Image.open(path) as picture:
        picture_yx3 = np.array(picture.convert("RGB"))
    height, width = picture_yx3.shape[:2]
    read = []
    for axes in figure.axes:
        place, k = axes.get_position(), axes.images[0].get_array().shape[0]
        left, top, cell = place.x0 * width, (1 - place.y1) * height, place.width * width / k
        at = [[(int(top + (y + 0.15) * cell), int(left + (x + 0.15) * cell)) for x in range(k)] for y in range(k)]
        read.append(np.array([[picture_yx3[spot] for spot in line] for line in at]))
    return read


def test_cells_are_coloured_by_their_values(tmp_path: Path):
    rho_kk = np.array([[1, -1, np.nan], [-1, 1, 0], [np.nan, 0, 1]])
    share_kk = np.array([[1, 0.1], [0.1, 1]])
    maps = [
        HeatMap("one", ["a", "b", "$c_"], rho_kk, -1, 1),
        HeatMap("two", ["d", "e" * 300], share_kk, 0, 1, share_kk),
    ]
    colours, shares = (cell.astype(int) for cell in cells(heat_maps(maps), tmp_path / "h.png"))
    red, blue = colours[0, 0], colours[0, 1]
    assert red[0] > 90 > red[2] and blue[2] > 90 > blue[0]
    assert np.abs(colours[1, 2] - 247).max() < 3 and colours[0, 2].tolist() == [238, 238, 238]
    assert shares[0, 0].sum() < 300 < 650 < shares[0, 1].sum()


def test_cells_say_their_numbers():
    one = HeatMap("", ["a", "b"], np.array([[1, np.nan], [-0.001, 1]]), -1, 1, np.array([[1, 0.25], [0.5, 1]]))
    assert [one.text(0, 0), one.text(0, 1), one.text(1, 0)] == ["1.00", "–\n(0.25)", "0.00\n(0.50)"]
    texts = [text.get_text() for text in heat_maps([one]).axes[0].texts]
    assert texts == ["1.00", "–\n(0.25)", "0.00\n(0.50)", "1.00"]


def test_many_maps_stand_below_each_other_and_names_never_leave_the_picture(tmp_path: Path):
    names = [f"a rather long name of a subset number {number}" for number in range(30)]
    one = HeatMap("a title\nof two lines", names, np.eye(30), 0, 1)
    figure = heat_maps([one, one])
    assert [axes.get_position().x0 for axes in figure.axes] == [figure.axes[0].get_position().x0] * 2
    cells(figure, tmp_path / "h.png")
    with Image.open(tmp_path / "h.png") as picture:
        picture_yx3 = np.array(picture.convert("RGB"))
    for edge in (picture_yx3[:3], picture_yx3[-3:], picture_yx3[:, :3], picture_yx3[:, -3:]):
        assert (edge == 255).all()


def test_named_scores_are_compared_as_scipy_would(work: Path, tmp_path: Path):
    result = compared(work, tmp_path / "c.png", "--score", "el2n", "--score", "margin")
    with open_cache(work / "teachers" / TEACHER / "cache.h5") as cache:
        expected = spearmanr(cache.score("el2n"), cache.score("margin")).statistic
    assert result["scores"] == ["el2n", "margin"] and result["subsets"] == {} and result["overlap"] is None
    assert result["spearman"][0][1] == pytest.approx(expected) and result["spearman"][1][1] == 1
    assert (tmp_path / "c.png").is_file()


def test_named_subsets_are_compared_as_sets(work: Path, tmp_path: Path):
    result = compared(work, tmp_path / "c.png", "--subset", "third", "--subset", "hard")
    third, hard = ({*open_bundle(work / "subsets" / name).rows_m.tolist()} for name in ("third", "hard"))
    assert result["subsets"] == {"third": 433, "hard": 144} and result["spearman"] is None
    assert result["common_rows"][0][1] == len(third & hard)
    assert result["overlap"][0][1] == len(third & hard) / 144
    assert result["overlap_by_chance"][0][1] == 433 / 1442
    assert result["jaccard"][0][1] == len(third & hard) / len(third | hard)


def test_by_default_all_of_the_data_set_is_compared_and_the_rest_is_named(work: Path, tmp_path: Path):
    result = compared(work, tmp_path / "c.png")
    with open_cache(work / "teachers" / TEACHER / "cache.h5") as cache:
        assert set(result["scores"]) >= set(cache.scores)
    assert set(result["subsets"]) == {"hard", "third"}
    assert set(result["skipped"]) == {"subset other", "subset torn"}
    assert "digits-limit-100" in result["skipped"]["subset other"]
    shown = kdtool("compare", "-w", work, "--dataset", "digits", "--out", tmp_path / "c.png").stdout
    for word in ("| el2n ", "third, hard", "chance", "Jaccard", "skipped: subset other", str(tmp_path / "c.png")):
        assert word in shown


def test_the_same_things_compared_give_the_same_picture(work: Path, tmp_path: Path):
    for name in "ab":
        compared(work, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_scores_of_two_teachers_carry_their_names(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    shutil.copytree(ours / "teachers" / TEACHER, ours / "teachers" / "twin")
    result = compared(ours, tmp_path / "c.png", "--score", "el2n", "--teacher", TEACHER, "--teacher", "twin")
    assert result["scores"] == [f"el2n of {TEACHER}", "el2n of twin"]
    assert result["spearman"][0][1] == pytest.approx(1)


def test_a_constant_score_is_null_in_json(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    np.save(tmp_path / "flat.npy", np.ones(1442))
    made("score", "-w", ours, "--dataset", "digits", "--import", tmp_path / "flat.npy", "--name", "flat")
    result = compared(ours, tmp_path / "c.png", "--score", "el2n", "--score", "flat")
    assert result["spearman"] == [[1.0, None], [None, None]]
    assert not any(isinstance(x, float) and math.isnan(x) for row in result["spearman"] for x in row)
    assert "NaN" not in json.dumps(result)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--score", "el2n"], 2, ["1 scores and 0 subsets of digits", "two of either"]),
        (["--score", "el2n", "--score", "el2n"], 2, ["two of either"]),
        (["--score", "el2n", "--score", "el3n"], 2, ["el3n", "el2n"]),
        (["--subset", "third", "--subset", "other"], 1, ["other", "digits-limit-100", "but the data are digits"]),
        (["--subset", "third", "--subset", "none"], 1, ["none", "not found"]),
        (["--subset", "third", "--subset", "torn"], 1, ["torn", "JSON"]),
        (["--score", "el2n", "--score", "loss", "--teacher", "nobody"], 1, ["nobody"]),
        (["--subset", "third", "--subset", "hard", "--teacher", TEACHER], 2, ["--teacher has no meaning for --subset"]),
    ],
)
def test_what_cannot_be_compared_is_refused_and_leaves_nothing(
    words: list[Any], code: int, said: list[str], work: Path, tmp_path: Path
):
    refused(kdtool("compare", "-w", work, "--dataset", "digits", "--out", tmp_path / "c.png", *words), code, *said)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_another_kind_is_refused(work: Path, tmp_path: Path):
    refused(kdtool("compare", "-w", work, "--dataset", "digits", "--out", tmp_path / "c.jpg"), 2, "ends in .png")


def test_a_stale_or_damaged_score_is_skipped_unless_it_was_named(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    made("score", "-w", ours, "--dataset", "digits", "--score", "centroid")
    np.save(tmp_path / "x.npy", np.arange(1442))
    imported = Path(
        made("score", "-w", ours, "--dataset", "digits", "--import", tmp_path / "x.npy", "--name", "x")["path"]
    )
    assert {"centroid", "x"} < set(compared(ours, tmp_path / "c.png")["scores"])
    imported.write_bytes(imported.read_bytes()[:-100])
    with h5py.File(ours / "teachers" / TEACHER / "cache.h5", "r+") as file:
        file["checksums/features"][0] += 1
    result = compared(ours, tmp_path / "c.png")
    assert "el2n" in result["scores"] and not {"centroid", "x"} & set(result["scores"])
    assert "computed from another cache.h5" in result["skipped"][f"score centroid of {TEACHER}"]
    assert "not a readable HDF5 file" in result["skipped"][str(imported)]
    assert "Run:" not in str(result["skipped"])
    words = ("compare", "-w", ours, "--dataset", "digits", "--score", "el2n", "--score", "centroid")
    refused(kdtool(*words, "--out", tmp_path / "d.png"), 1, "centroid", "Run: kdtool score")


def test_more_than_a_picture_holds_is_cut_and_said(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    everything = compared(ours, tmp_path / "c.png")
    monkeypatch.setattr("toolkit.pipeline.compare._MOST", 2)
    for name in ("one", "two"):
        build = ("build-subset", "-w", ours, "--dataset", "digits", "--frac", "0.2", "--index-only")
        made(*build, "--name", name, "--seed", len(name))
    result = compared(ours, tmp_path / "c.png")
    assert result["scores"] == everything["scores"][:2] and len(result["subsets"]) == 2
    left = len(everything["scores"]) - 2
    assert result["skipped"][f"{left} more scores"] == "a picture holds 2: name others with --score"
    assert "2 more subsets" in result["skipped"]


def test_the_default_picture_is_named_after_what_is_compared(work: Path, tmp_path: Path):
    ours = Path(shutil.copytree(work, tmp_path / "ours"))
    words = ("compare", "-w", ours, "--dataset", "digits")
    paths = [made(*words)["path"], made(*words, "--subset", "third", "--subset", "hard")["path"]]
    assert [Path(path).name for path in paths] == ["digits-compare.png", "digits-compare-third-hard.png"]


@pytest.mark.parametrize(("scores", "widest"), [(8, None), (9, 130), (24, 260), (25, 100)])
def test_tables_of_many_scores_stay_narrow(scores: int, widest: int | None):
    names = [f"score-{number}" for number in range(scores)]
    lines = seeing._square(names, [["0.123"] * scores] * scores).splitlines()
    assert ("| score-0 |" in lines[0]) == (scores <= 8)
    assert ("| 9 score-8 " in "\n".join(lines)) == (9 <= scores <= 24)
    assert widest is None or max(map(len, lines)) < widest


def test_the_pairs_of_many_subsets_are_the_most_alike():
    share = np.random.default_rng(0).random((12, 12))
    share = np.minimum(share, share.T).tolist()
    squares = ("common_rows", "overlap", "overlap_by_chance", "jaccard", "jaccard_by_chance")
    result = {
        "subsets": {f"s{a}": 5 for a in range(12)},
        **dict.fromkeys(squares, share),
        "common_rows": [[1] * 12] * 12,
    }
    text, left = seeing._pairs(result)
    shown = [float(line.split("|")[5]) for line in text.splitlines()[2:]]
    pairs = sorted((share[a][b] for a, b in combinations(range(12), 2)), reverse=True)
    assert shown == [round(value, 3) for value in pairs[:40]]
    assert left == "and 26 pairs that share less: see the picture, or --json"
