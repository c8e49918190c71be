"""The verdicts on the paper's claims are what the README's rules say of given accuracies."""

import json
import re
from collections import Counter
from itertools import product
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.machine import read_lines
from benchmarks.paper import __main__ as paper
from benchmarks.paper import claims, figures, rule
from benchmarks.paper.design import FRACTIONS, SEEN, SMALL, WHOLE, Data, cells_of, full, named, seen, studies, words
from toolkit.cli import sweep as commands
from toolkit.distill.alpha import alpha_rule

DATA = Data("digits", None, 3, 1, 1, 1)
README = Path(claims.__file__).with_name("README.md").read_text()


def line(study: str, frac: float, alpha: float, teacher: str, seed: int, top1: float, method: str = "random") -> Any:
    cell = {"method": method, "frac": frac, "alpha": alpha, "teacher": teacher, "seed": seed}
    return {"study": study, "cell": cell, "result": {"top1": top1}}


def verdict(found: list[claims.Judged], claim: str, setting: str = "larger teacher") -> str:
    (one,) = [one for one in found if (one.claim, one.setting) == (claim, setting)]
    return one.verdict


def pruned(gain: float, behind: float) -> list[Any]:
    """Random and hard rows: KD gains so much, more where little is kept; with it hard rows are so far behind."""
    teacher, lines = named("resnet20"), []
    for frac, seed in product((*FRACTIONS, WHOLE), range(3)):
        alone = 80 + 10 * frac + seed + 0.01 * seed * frac
        taught = alone + gain / frac
        lines += [line("alpha", frac, alpha, teacher, seed, top1) for alpha, top1 in ((0.0, alone), (1.0, taught))]
        for study, method in [("forgetting", "hardest")] + [("methods", m) for m in ("hardest", "easiest", "moderate")]:
            lines.append(line(study, frac, 0.0, teacher, seed, alone - behind, method))
            lines.append(line(study, frac, 1.0, teacher, seed, taught - behind, method))
    return lines


def test_a_gain_everywhere_holds_and_a_loss_anywhere_fails():
    found = claims.verdicts(DATA, pruned(gain=1.0, behind=1.0))
    assert [verdict(found, claim) for claim in ("a1", "a2", "b1", "b2")] == [claims.HOLDS] * 4
    found = claims.verdicts(DATA, pruned(gain=-1.0, behind=-1.0))
    assert [verdict(found, claim) for claim in ("a1", "a2", "b1", "b2")] == [claims.FAILS] * 4


def test_a_cell_without_runs_leaves_its_claim_undecided():
    lines = [one for one in pruned(1.0, 1.0) if one["cell"]["method"] != "moderate"]
    found = claims.verdicts(DATA, lines)
    assert verdict(found, "a1") == claims.OPEN
    assert verdict(found, "b1") == claims.HOLDS


def test_cells_that_say_alone_what_a_claim_says_are_counted():
    lines = pruned(gain=1.0, behind=1.0)
    for one in lines:  # one cell of the 20 loses by KD
        if (one["study"], one["cell"]["frac"], one["cell"]["alpha"]) == ("forgetting", 0.1, 1.0):
            one["result"]["top1"] -= 20
    (a1,) = [one for one in claims.verdicts(DATA, lines) if (one.claim, one.setting) == ("a1", "larger teacher")]
    assert (a1.decided, len(a1.cells)) == (19, 20)
    few = [one for one in lines if one["study"] == "alpha"]
    assert (a1.against, a1.in_short) == (1, claims.FAILS)
    assert "not decided: 4 of 20" in claims.side_by_side({"digits": claims.verdicts(DATA, few)})


def test_random_half_with_the_teacher_is_compared_with_everything_without():
    assert verdict(claims.verdicts(DATA, pruned(5.0, 1.0)), "c") == claims.HOLDS  # +10 against +5 for the other half
    assert verdict(claims.verdicts(DATA, pruned(1.0, 1.0)), "c") == claims.FAILS


@pytest.mark.parametrize(("sign", "expected"), [(-1, claims.HOLDS), (1, claims.FAILS)])
def test_the_best_alpha_is_followed_over_fractions(sign: int, expected: str):
    lines = []
    for frac, alpha, seed in product((*FRACTIONS, WHOLE), claims.ALPHAS, range(3)):
        best = 0.5 + sign * (0.1 + 0.01 * seed) * log(frac / FRACTIONS[2])
        lines.append(line("alpha", frac, alpha, named("resnet20"), seed, 90 - (alpha - best) ** 2))
    assert verdict(claims.verdicts(DATA, lines), "d") == expected


def test_the_best_alpha_is_the_parabolas_top_within_the_grid():
    assert claims.best_alpha((0.0, 0.5, 1.0), (0.0, 1.0, 0.0)) == pytest.approx(0.5)
    assert claims.best_alpha((0.0, 0.5, 1.0), (0.0, 1.0, 1.9)) == 1.0
    assert claims.best_alpha((0.0, 0.5, 1.0), (2.0, 0.0, 3.0)) == 1.0  # no top
    assert [claims.best_alpha((0.0, 0.5, 1.0), (2.0, 0.0, 2.0), ties) for ties in (min, max)] == [0.0, 1.0]


def peaked(slope: float) -> rule.Curves:
    """Accuracies that are highest where 1 − slope·f is, on the grid."""
    alpha_a = np.array(claims.ALPHAS)
    return {("any", frac): (alpha_a, 90 - abs(alpha_a - (1 - slope * frac))) for frac in (0.5, 1.0)}


def test_the_rule_for_alpha_is_fitted_to_the_least_regret():
    curve = peaked(0.5)["any", 0.5]
    assert [rule.regret(curve, alpha) for alpha in (0.75, 0.625, 1.0)] == pytest.approx([0, 0.125, 0.25])
    assert rule.fitted(peaked(0.5)) == 0.5
    assert rule.fitted(peaked(0.0)) == 0.0
    compared = rule.rules({"one": peaked(0.5), "other": peaked(0.5)})
    assert list(compared)[:3] == [f"1 − 0.5·f, fitted on {name}" for name in ("one", "other", "all")]
    assert compared["1 − 0.5·f, fitted on all"](0.5) == 0.75


def test_the_rule_of_alpha_auto_is_the_one_that_all_kept_runs_fit():
    found = rule.curves_of(paper.results(SMALL, Path(paper.__file__).with_name("results")))
    k = rule.fitted(rule.together(found))
    assert [alpha_rule(frac) for frac in (*FRACTIONS, WHOLE)] == pytest.approx(
        [1 - k * frac for frac in (*FRACTIONS, WHOLE)]
    )


def test_regrets_are_told_of_every_fraction_that_has_all_its_runs_and_on_average():
    peaks = {0.25: 1.0, 0.5: 0.75}
    lines = [
        line("alpha", frac, alpha, named("resnet20"), 0, 90 - abs(alpha - best))
        for frac, best in peaks.items()
        for alpha in claims.ALPHAS
    ]
    lines += [line("alpha", 1.0, 0.0, named("resnet20"), 0, 90)]
    told = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in rule.in_words({"digits": (DATA, lines)}).split("\n")
    ]
    assert told[0][2:] == ["1 − 0.5·f, fitted on digits", "always 1", "always 0.5", "no teacher"]
    assert told[2:] == [
        ["digits, larger teacher, 0.25", "1", "0.12", "0.00", "0.50", "1.00"],
        ["digits, larger teacher, 0.5", "0.75", "0.00", "0.25", "0.25", "0.75"],
        ["digits, mean", "", "0.06", "0.12", "0.38", "0.88"],
        ["digits, mean, f < 1", "", "0.06", "0.12", "0.38", "0.88"],
    ]


def test_more_data_for_the_teacher_is_judged_by_the_slope():
    lines = [
        line("seen-s0".replace("0", str(seed)), 0.1, 1.0, seen(saw, seed), seed, 80 + (1 + 0.1 * seed) * log(saw))
        for saw, seed in product(SEEN, range(3))
    ]
    (judged,) = [one for one in claims.verdicts(DATA, lines) if one.claim == "f"]
    assert judged.verdict == claims.HOLDS
    slope = judged.cells["slope"]
    assert slope is not None
    assert slope.mean == pytest.approx(1.1)


def test_what_teachers_saw_is_drawn_where_there_are_runs():
    lines = [line(f"seen-s{seed}", 0.1, 1.0, seen(saw, seed), seed, 80 + saw) for saw, seed in product(SEEN, range(3))]
    drawn = figures.teachers_seen("digits", DATA, lines)
    assert drawn is not None and drawn.startswith(b"\x89PNG")
    assert drawn != figures.teachers_seen("digits", DATA, lines[:-3])
    assert figures.teachers_seen("digits", DATA, pruned(1.0, 1.0)) is None


def test_every_claim_has_a_verdict_and_stands_in_the_readme():
    found = {one.claim for one in claims.verdicts(DATA, [])}
    assert found == claims.SAID.keys()
    assert found == set(re.findall(r"^\| ([a-g]\d?) \|", README, re.MULTILINE))


def test_pages_show_what_the_kept_runs_say():
    found = paper.results(SMALL, Path(paper.__file__).with_name("results"))
    for page, text in paper.pages(found).items():
        assert page.read_text() == text, f"{page}: run python -m benchmarks.paper --report"
    assert (Path(paper.__file__).with_name("results") / "verdicts.md").read_text() == paper.report(
        found, Path(paper.__file__).with_name("results")
    )


def test_every_picture_that_the_guide_shows_is_there_and_no_other():
    shown = set(re.findall(r"\((guide/[^)]*)\)", paper.GUIDE.read_text()))
    there = {f"guide/{path.name}" for path in paper.GUIDE.with_suffix("").iterdir()}
    assert shown == there and "guide/digits-fraction.png" in there


def test_the_guides_pictures_are_drawn_of_the_kept_runs():
    folder = Path(paper.__file__).with_name("results")
    drawn = figures.of_reports("digits", folder)
    assert drawn.keys() == figures.DRAWN.keys()
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())


@pytest.mark.parametrize(("key", "place"), [("fashion-mnist", 0), ("digits", 1)])
def test_the_readme_counts_the_cells_of_every_sweep(key: str, place: int):
    counted: Counter[str] = Counter()
    for study, options in studies(SMALL[key]).items():
        counted[re.sub(r"^(seen|noise)-.*", r"\1", study)] += cells_of(SMALL[key], options)
    said = re.findall(r"^\| `([a-z-]+?)(?:-s…)?`.*?\| *(\d+), (\d+) *\|$", README, re.MULTILINE)
    assert counted == {study: int(cells[place]) for study, *cells in said}


def test_a_study_that_is_whole_is_not_run_again(tmp_path: Path):
    folder = Path(paper.__file__).with_name("results")
    assert paper.missing("digits", SMALL["digits"], folder, None) == {}
    for path in folder.glob("digits-*"):
        whole = path.read_text()
        (tmp_path / path.name).write_text(whole[: whole.rstrip().rfind("\n") + 1] if "noise" in path.name else whole)
    assert paper.missing("digits", SMALL["digits"], tmp_path, None).keys() == {"noise", "noise-hard"}
    assert paper.missing("digits", SMALL["digits"], tmp_path / "none", "seen-s1").keys() == {"seen-s1"}


@pytest.mark.parametrize("data", [*SMALL.values(), full("cifar100")], ids=[*SMALL, "full"])
def test_every_sweep_is_one_that_kdtool_knows(data: Data):
    for options in studies(data).values():
        said = commands.sweep.make_context("sweep", words(options)).params
        assert said["frac"]
        assert said["dataset"].startswith(data.dataset)


def test_teachers_of_studies_that_are_not_run_again_stay(tmp_path: Path):
    for workspace, names in (("one", "ba"), ("other", "bc")):
        for name in names:
            place = tmp_path / workspace / "teachers" / name / "train.json"
            place.parent.mkdir(parents=True)
            result = {"name": name, "top1": 90.0, "rows": 10, "epochs": 2, "seconds": 1.0}
            place.write_text(json.dumps({"result": result, "command": f"{workspace} {name}"}))
        paper.keep_teachers(tmp_path / workspace, "digits", tmp_path)
    kept = read_lines(tmp_path / "teachers-digits.jsonl")
    assert [line["command"] for line in kept] == ["one a", "other b", "other c"]
    assert kept[0] == {"teacher": "a", "top1": 90.0, "rows": 10, "epochs": 2, "command": "one a"}


@pytest.mark.long
def test_studies_run_from_nothing_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The studies that make most before they train: teachers of parts of the data, and noise."""
    monkeypatch.setattr(paper, "WORKSPACES", tmp_path / "work")
    data = Data("digits", None, 2, 2, 4, 2, steps=(64, 0.05))
    for only in ("seen", "noise"):
        paper.run("digits", data, tmp_path / "results", only)
    kept = paper.results({"digits": data}, tmp_path / "results")
    assert Counter(line["study"] for line in kept["digits"][1]) == {
        "seen-s0": 4, "seen-s1": 4, "noise": 8, "noise-hard": 8,
    }  # fmt: skip
    found = claims.verdicts(data, kept["digits"][1])
    assert {one.claim for one in found if all(cell is not None for cell in one.cells.values())} == {"f", "g"}
    told = paper.report(kept, tmp_path / "results")
    assert "| g     |" in told and f"| {named('resnet20')}" in told.partition("Teachers:")[2]
