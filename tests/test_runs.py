"""kdtool runs tells what there is: filtered, averaged, and compared pair by pair."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from tests.conftest import kdtool, made, refused
from toolkit.core.errors import UsageError
from toolkit.report.runs import Condition, averages, compared, differing, sweep_table
from toolkit.report.statistics import paired_difference


@pytest.fixture(scope="module")
def ran(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with students of two alphas, two temperatures and three seeds, one unfinished and one broken."""
    workspace = Path(shutil.copytree(digits, tmp_path_factory.mktemp("runs") / "work"))
    words = ["distill", "-w", workspace, "--subset", "third", "--iterations", 2, "--precision", "float32"]
    for seed in range(3):
        made(*words, "--seed", seed, "--alpha", 0)
        for temperature in (1, 4):
            made(*words, "--seed", seed, "--alpha", 1, "--temperature", temperature)
    made(*words, "--subset", "hard", "--seed", 0, "--alpha", 0)
    begun = workspace / "runs" / "begun"
    begun.mkdir()
    (begun / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    broken = workspace / "runs" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"result": {"top1"')
    (workspace / "runs" / "nothing").mkdir()
    return workspace


def rows_of(workspace: Path, *words: Any) -> list[dict[str, Any]]:
    return made("runs", "-w", workspace, *words)["rows"]


def record_of(workspace: Path, name: str) -> dict[str, Any]:
    return json.loads((workspace / "runs" / name / "run.json").read_text())


def test_all_runs_are_listed_as_their_records_say(ran: Path):
    rows = rows_of(ran)
    assert len(rows) == 11
    for row in rows:
        if row["state"] == "done":
            record = record_of(ran, row["name"])
            assert (row["top1"], row["agreement"]) == (record["result"]["top1"], record["result"]["agreement"])
            assert (row["alpha"], row["seed"]) == (record["settings"]["alpha"], record["settings"]["seed"])
            assert (row["method"], row["frac"]) == (record["subset"]["method"], record["subset"]["fraction"])
            assert row["dataset"] == "digits"
    assert [row["state"] for row in rows if row["name"] == "begun"] == ["stopped after epoch 2"]


def test_a_broken_record_is_skipped_with_a_line(ran: Path):
    shown = kdtool("runs", "-w", ran)
    assert shown.exit_code == 0 and "11 runs" in shown.stdout
    assert len(shown.stderr.splitlines()) == 1 and "broken" in shown.stderr and "skipped" in shown.stderr


def test_only_columns_that_differ_are_shown(ran: Path):
    header = made("runs", "-w", ran)["header"]
    assert {"name", "state", "frac", "method", "alpha", "temperature", "seed", "top1"} <= set(header)
    assert not {"arch", "teacher", "recipe", "lr", "dataset", "subset_seed"} & set(header)
    assert made("runs", "-w", ran, "--columns", "top1,batch-size")["header"] == ["top1", "batch_size"]


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        (["alpha=1"], 6),
        (["alpha=1", "temperature=4"], 3),
        (["alpha>=0.5"], 6),
        (["alpha<1"], 4),
        (["method!=random"], 1),
        (["method=hardest"], 1),
        (["frac=0.3", "seed>0", "alpha==0"], 2),
        (["frac>0.29", "frac<=0.3"], 9),
        (["state!=done"], 1),
        (["teacher=none"], 4),
        (["weights=false"], 10),
        (["agreement=none"], 4),
        (["alpha=0.7"], 0),
    ],
)
def test_where_keeps_the_runs_of_which_all_of_it_holds(ran: Path, conditions: list[str], count: int):
    words = [word for condition in conditions for word in ("--where", condition)]
    assert len(rows_of(ran, *words)) == count


def test_runs_are_sorted_by_any_column(ran: Path):
    values = [row["top1"] for row in rows_of(ran, "--sort", "-top1")]
    assert values[-1] is None and values[:-1] == sorted(values[:-1], reverse=True)
    assert [row["seed"] for row in rows_of(ran, "--sort", "seed", "--where", "alpha=0", "--where", "frac=0.3")] == [
        0,
        1,
        2,
    ]


def test_groups_are_averaged_over_what_is_left(ran: Path):
    rows = rows_of(ran, "--by", "alpha,temperature", "--where", "method=random")
    assert [(row["alpha"], row["temperature"], row["n"]) for row in rows] == [
        (0.0, None, 3),
        (1.0, 1.0, 3),
        (1.0, 4.0, 3),
    ]
    values = [row["top1"] for row in rows_of(ran, "--where", "temperature=4")]
    group = next(row for row in rows if row["temperature"] == 4)
    assert group["top1"] == pytest.approx(mean(values)) and group["top1_sd"] == pytest.approx(stdev(values))
    assert "±" in kdtool("runs", "-w", ran, "--by", "alpha").stdout


def test_groups_are_compared_with_the_matching_runs_pair_by_pair(ran: Path):
    """Without a teacher there is no temperature: the same run is the partner of both."""
    rows = rows_of(ran, "--by", "temperature", "--against", "alpha=0")
    group = next(row for row in rows if row["temperature"] == 4)
    by_seed = {
        alpha: [row["top1"] for row in rows_of(ran, *where, "--where", f"alpha={alpha}", "--sort", "seed")]
        for alpha, where in {1: ["--where", "temperature=4"], 0: ["--where", "frac=0.3"]}.items()
    }
    wanted = paired_difference(by_seed[1], by_seed[0])
    assert (group["difference"], group["low"], group["high"], group["pairs"]) == pytest.approx(
        (wanted.mean, wanted.low, wanted.high, 3)
    )
    one = rows_of(ran, "--where", "seed=0", "--by", "temperature", "--against", "alpha=0")
    assert all(row["low"] is None and row["pairs"] == 1 for row in one if row["temperature"] is not None)
    shown = kdtool("runs", "-w", ran, "--against", "alpha=0", "--where", "method=random").stdout
    assert "top1 against alpha=0 [95 %]" in shown and f"{wanted.mean:+.2f} [{wanted.low:+.2f}, " in shown


def test_runs_that_share_a_partner_are_one_pair():
    """Six students, but only three runs to compare with: differences of 2, 2 and 4 by hand, whose standard deviation is
    √(4/3), and the t of two degrees of freedom 4.302653."""
    top1 = {0.0: (80.0, 82.0, 84.0), 0.5: (81.0, 84.0, 86.0), 1.0: (83.0, 84.0, 90.0)}
    rows = [
        {"alpha": alpha, "seed": seed, "frac": 0.1, "top1": one, "state": "done"}
        for alpha, values in top1.items()
        for seed, one in enumerate(values)
    ]
    (found,) = compared(rows, ["frac"], [Condition.parse("alpha=0", "--against")], ["frac", "alpha", "seed"])
    half = 4.302653 * (4 / 3) ** 0.5 / 3**0.5
    assert found["pairs"] == 3
    assert (found["difference"], found["low"], found["high"]) == pytest.approx((8 / 3, 8 / 3 - half, 8 / 3 + half))


def test_where_does_not_take_away_what_is_compared_with(ran: Path):
    wanted = [row for row in rows_of(ran, "--by", "temperature", "--against", "alpha=0") if row["pairs"]]
    assert [row["pairs"] for row in wanted] == [3, 3]
    assert rows_of(ran, "--where", "alpha=1", "--by", "temperature", "--against", "alpha=0") == wanted
    assert rows_of(ran, "--where", "temperature=4", "--by", "temperature", "--against", "alpha=0") == wanted[1:]


def test_that_nothing_can_be_compared_is_said(ran: Path):
    none = kdtool("runs", "-w", ran, "--where", "frac=0.3", "--by", "alpha", "--against", "alpha=0.7")
    assert none.exit_code == 0 and "--against alpha=0.7: nothing to compare" in none.stderr
    alone = kdtool("runs", "-w", ran, "--by", "alpha", "--against", "method=hardest", "--where", "alpha=1")
    assert "--against method=hardest: nothing to compare" in alone.stderr


def test_what_alpha_was_asked_for_is_a_column(ran: Path, tmp_path: Path):
    workspace = Path(shutil.copytree(ran, tmp_path / "work"))
    assert all(row["alpha_asked"] == row["alpha"] for row in rows_of(workspace, "--where", "state=done"))
    assert "alpha_asked" not in made("runs", "-w", workspace)["header"]
    words = ["distill", "-w", workspace, "--subset", "third", "--iterations", 2, "--precision", "float32"]
    name = made(*words, "--alpha", "auto")["name"]
    (row,) = rows_of(workspace, "--where", "alpha-asked=auto")
    assert row["name"] == name and row["alpha"] == record_of(workspace, name)["settings"]["alpha"]
    assert "alpha_asked" in made("runs", "-w", workspace)["header"]
    where = ["--where", "alpha-asked=1", "--where", "temperature=4"]
    (row,) = rows_of(workspace, *where, "--by", "alpha-asked", "--against", "alpha-asked=auto")
    assert row["pairs"] == 1


def test_several_partners_that_differ_are_refused_naming_how(ran: Path):
    refused(kdtool("runs", "-w", ran, "--against", "alpha=1", "--where", "frac=0.3"), 2, "temperature", "--against")
    made("runs", "-w", ran, "--against", "alpha=1", "--against", "temperature=4", "--where", "frac=0.3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--where", "alhpa=1"], ["--where", "unknown column 'alhpa'", "did you mean alpha"]),
        (["--where", "alpha"], ["--where 'alpha'", "expected a column, a sign and a value"]),
        (["--where", "alpha="], ["expected a column"]),
        (["--by", "method,teahcer"], ["--by", "did you mean teacher"]),
        (["--by", ","], ["--by", "expected columns"]),
        (["--against", "lpha=0"], ["--against", "did you mean alpha"]),
        (["--sort", "-top2"], ["--sort", "did you mean top1"]),
        (["--columns", "nmae"], ["--columns", "did you mean name"]),
        (["--by", "alpha", "--columns", "name"], ["--columns has no meaning"]),
    ],
)
def test_what_is_asked_amiss_is_told_in_one_line(ran: Path, words: list[str], said: list[str]):
    (ran / "runs" / "broken" / "run.json").rename(ran / "broken.json")
    try:
        refused(kdtool("runs", "-w", ran, *words), 2, *said)
    finally:
        (ran / "broken.json").rename(ran / "runs" / "broken" / "run.json")


def test_a_csv_file_holds_every_row(ran: Path, tmp_path: Path):
    made("runs", "-w", ran, "--csv", tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        read = list(csv.DictReader(file))
    assert {row["name"]: row["top1"] for row in read} == {
        row["name"]: "" if row["top1"] is None else str(row["top1"]) for row in rows_of(ran)
    }


def test_a_sweep_names_its_own_runs(ran: Path):
    folder = ran / "sweeps" / "mine"
    folder.mkdir(parents=True)
    names = [row["name"] for row in rows_of(ran, "--where", "alpha=1")]
    for part, name in zip(("-1-of-2", "-2-of-2"), names[:2], strict=True):
        (folder / f"results{part}.jsonl").write_text(json.dumps({"cell": {}, "status": "done", "run": name}) + "\n")
    assert [row["name"] for row in rows_of(ran, "--sweep", "mine")] == sorted(names[:2])
    (folder / "results.jsonl").write_text(json.dumps({"cell": {}, "status": "done", "run": "gone"}) + "\n")
    shown = kdtool("runs", "-w", ran, "--sweep", "mine")
    assert shown.exit_code == 0 and "1 of the sweep's 3 runs are not here (gone)" in shown.stderr
    refused(kdtool("runs", "-w", ran, "--sweep", "yours"), 1, "yours", "kdtool sweep")


def test_an_empty_workspace_has_no_runs(tmp_path: Path):
    assert kdtool("runs", "-w", tmp_path).stdout == "no runs\n"
    assert kdtool("runs", "-w", tmp_path, "--by", "alpha", "--against", "alpha=0").stdout == "no runs\n"


def test_partners_train_as_long_by_epochs_or_by_steps():
    """A tenth of the rows are a tenth of the steps of as many epochs."""
    rows = [
        {"name": "a", "frac": 0.1, "epochs": 3, "iterations": 6, "top1": 80.0, "state": "done"},
        {"name": "b", "frac": 1.0, "epochs": 3, "iterations": 60, "top1": 90.0, "state": "done"},
        {"name": "c", "frac": 1.0, "epochs": 5, "iterations": 100, "top1": 95.0, "state": "done"},
    ]
    found = compared(rows, ["frac"], [Condition.parse("frac=1", "--against")], ["frac"])
    assert [(row["difference"], row["pairs"]) for row in found] == [(-10.0, 1), (None, 0)]


def test_a_setting_without_a_meaning_is_no_difference():
    rows = [{"alpha": 0.0, "temperature": None}, {"alpha": 1.0, "temperature": 4.0}]
    assert differing(rows, ["alpha", "temperature"]) == ["alpha"]


@pytest.mark.parametrize("text", ["", "=1", "a b=1", "alpha~1"])
def test_a_condition_that_is_none_is_refused(text: str):
    with pytest.raises(UsageError, match="expected a column"):
        Condition.parse(text, "--where")


def test_words_have_no_order():
    assert not Condition.parse("arch>a", "--where").holds({"arch": "resnet8"})
    assert not Condition.parse("alpha>0", "--where").holds({"alpha": "search"})
    assert Condition.parse("alpha=search", "--where").holds({"alpha": "search"})


def test_one_run_has_no_spread():
    (row,) = averages([{"alpha": 1.0, "top1": 90.0, "agreement": None}], ["alpha"])
    assert row == {"alpha": 1.0, "n": 1, "top1": 90.0, "top1_sd": None, "agreement": None, "agreement_sd": None}


def test_a_sweep_is_shown_averaged_over_its_seeds_with_its_failures():
    def line(alpha: float, seed: int, top1: float | None) -> dict[str, Any]:
        cell = {"alpha": alpha, "seed": seed}
        if top1 is None:
            return {"cell": cell, "status": "failed", "error": "no"}
        return {"cell": cell, "status": "done", "result": {"top1": top1, "agreement": None, "alpha": 0.5, "seed": 9}}

    shown = sweep_table(
        [line(0.0, 0, 80.0), line(0.0, 1, 82.0), line(1.0, 0, 90.0), line(1.0, 1, None)], ["alpha", "seed"]
    )
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in shown.splitlines()]
    assert cells[0] == ["alpha", "top1", "agreement", "n", "failed"]
    assert cells[2:] == [["0", "81.00 ± 1.41", "", "2", "0"], ["1", "90.00", "", "1", "1"]]


def test_partners_of_as_many_epochs_end_at_their_ends():
    """Of 431 rows and batches of 128, 12 steps are 3 epochs, and 10 steps are none."""
    shared = {"frac": 0.3, "epochs": 3, "rows": 431, "batch_size": 128, "state": "done"}
    rows = [
        {**shared, "alpha": 1.0, "iterations": 12, "top1": 90.0},
        {**shared, "alpha": 0.0, "iterations": 10, "top1": 80.0},
    ]
    against = [Condition.parse("alpha=0", "--against")]
    assert [row["pairs"] for row in compared(rows, ["alpha"], against, ["frac", "alpha"])] == [0, 0]
    rows[1]["iterations"] = 12
    assert [row["pairs"] for row in compared(rows, ["alpha"], against, ["frac", "alpha"])] == [1, 0]
