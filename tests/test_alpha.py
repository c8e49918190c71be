"""Alpha by rule and by search: halving finds the best, trials never see what judges them, and a killed search goes on.

Shapes: m rows of the subset, t of them in training, h held out.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toolkit.pipeline.alpha_search as search
import toolkit.pipeline.student
from tests.conftest import kdtool, made, refused
from tests.loss_curves import CASES, targets_of
from toolkit.core.errors import FailureError, UsageError
from toolkit.distill.alpha import CANDIDATES, Halved, alpha_rule, halve, rungs_of, tried_on
from toolkit.formats.bundle import open_bundle
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.held_out import held_out, held_out_of
from toolkit.pipeline.knowledge import load_knowledge
from toolkit.pipeline.run_folder import forget
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.student_request import StudentRequest, open_student_request
from toolkit.training.showing import Batch
from toolkit.training.targets import TargetReader

# the rule


def test_the_rule_rises_as_less_is_kept():
    fractions = np.linspace(0.01, 1, 100).tolist()
    assert all(alpha_rule(less) > alpha_rule(more) for less, more in pairwise(fractions))
    assert (alpha_rule(0.1), alpha_rule(0.3), alpha_rule(1.0)) == (0.95, 0.85, 0.5)
    assert alpha_rule(1 / 3) == 0.8333


def test_alpha_auto_is_the_run_of_its_number(work: Path):
    words = ("distill", "-w", work, "--subset", "third", "--epochs", "1", "--alpha")
    auto = made(*words, "auto")
    assert auto["alpha"] == alpha_rule(0.3) and "-a0.85-" in auto["name"]
    assert made(*words, "0.85") == auto  # the run that is there, seconds and all


# halving


def scored(best: float) -> tuple[Callable[[float, int], float], list[tuple[float, int]]]:
    """A trial that is the better the nearer to `best`, and what was tried."""
    tried: list[tuple[float, int]] = []

    def accuracy(alpha: float, steps: int) -> float:
        tried.append((alpha, steps))
        return -abs(alpha - best)

    return accuracy, tried


@pytest.mark.parametrize("best", CANDIDATES)
def test_halving_finds_the_best_and_spends_as_much_on_each_rung(best: float):
    accuracy, tried = scored(best)
    assert halve(CANDIDATES, rungs_of(120), accuracy, likely=0.5).alpha == best
    assert Counter(steps for _, steps in tried) == {10: 8, 20: 4, 40: 2}
    assert sum(steps for _, steps in tried) == 2 * 120
    assert [alpha for alpha, steps in tried if steps == 10] == list(CANDIDATES)


def test_what_is_worst_on_a_rung_is_not_tried_again():
    accuracy, tried = scored(0.9)
    halve(CANDIDATES, (1, 2, 4), accuracy, likely=0.0)
    assert {alpha for alpha, steps in tried if steps == 2} == {0.8, 0.9, 0.95, 1.0}
    assert {alpha for alpha, steps in tried if steps == 4} == {0.9, 0.95}


@pytest.mark.parametrize(
    ("likely", "best"), [(0.85, 0.9), (0.95, 0.95), (0.5, 0.5), (0.4, 0.5), (0.15, 0.1), (1.0, 1.0)]
)
def test_of_equals_the_one_nearest_to_the_rule_is_best_then_the_larger(likely: float, best: float):
    """0.9 and 0.8 are equally far from 0.85, as 0.3 and 0.5 from 0.4."""
    assert halve(CANDIDATES, (1, 2, 4), lambda alpha, steps: 50.0, likely) == Halved(best, tied=True)


def test_who_ties_with_the_best_on_the_last_rung_alone_lets_the_rule_decide():
    early = {1: lambda alpha: 50.0, 2: lambda alpha: alpha, 4: lambda alpha: alpha}
    assert halve(CANDIDATES, (1, 2, 4), lambda alpha, steps: early[steps](alpha), 0.9) == Halved(1.0, tied=False)
    late = {1: lambda alpha: alpha, 2: lambda alpha: alpha, 4: lambda alpha: 50.0}
    assert halve(CANDIDATES, (1, 2, 4), lambda alpha, steps: late[steps](alpha), 0.9) == Halved(0.95, tied=True)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 7, 13, 240])
def test_no_trial_is_asked_for_twice_and_all_are_known_before(steps: int):
    """A run of a step has three rungs of one: the first decides."""
    accuracy, tried = scored(0.7)
    assert halve(CANDIDATES, rungs_of(steps), accuracy, likely=1.0) == Halved(0.7, tied=False)
    assert len(set(tried)) == len(tried) and [asked for _, asked in tried] == tried_on(rungs_of(steps), len(CANDIDATES))
    assert rungs_of(1) == (1, 1, 1)


def test_rungs_are_a_twelfth_a_sixth_and_a_third():
    assert [rungs_of(steps) for steps in (240, 30, 12, 6, 2)] == [
        (20, 40, 80),
        (3, 5, 10),
        (1, 2, 4),
        (1, 1, 2),
        (1, 1, 1),
    ]


# what is held out


def labels_of(*sizes: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.parametrize(
    "sizes", [(50, 50, 50), (5, 10, 100), (1, 1, 30), (2, 2), (2,), (3, 1, 1, 1), (1, 7, 4)], ids=str
)
def test_a_fifth_of_each_class_is_held_out_and_the_rest_is_in_training(sizes: tuple[int, ...]):
    labels_m = labels_of(*sizes)
    training_t, held_h = held_out(labels_m, seed=3)
    assert sorted([*training_t.tolist(), *held_h.tolist()]) == list(range(len(labels_m)))
    assert len(held_h) >= 1 and (np.diff(held_h) > 0).all()
    assert set(labels_m[training_t].tolist()) == set(range(len(sizes)))
    for label, size in enumerate(sizes):
        count = int((labels_m[held_h] == label).sum())
        assert abs(count - size / 5) < 1 and count < size


def test_what_is_held_out_is_a_matter_of_the_seed():
    labels_m = labels_of(40, 40)
    assert np.array_equal(held_out(labels_m, 1)[1], held_out(labels_m, 1)[1])
    assert not np.array_equal(held_out(labels_m, 1)[1], held_out(labels_m, 2)[1])


def test_where_nothing_can_be_held_out_it_is_refused():
    with pytest.raises(
        UsageError, match=r"--alpha search: no class has more than one of the subset's 3 rows.*--alpha auto"
    ):
        held_out(np.array([0, 1, 2]), 0)


# targets of a part


@pytest.mark.parametrize("name", ["student", "int8", "topk:4", "all views, mean", "all views and labels, nearest"])
def test_targets_of_some_rows_are_those_rows_targets(name: str):
    targets, cpu = targets_of(CASES[name]), torch.device("cpu")
    assert targets is not None
    at_m = np.array([5, 0, 100, 7, 199])
    some, place_b = targets.of_rows(at_m), np.array([4, 1, 2])
    assert (some.rows, some.slots, some.match) == (5, targets.slots, targets.match)
    assert np.array_equal(some.mean(place_b), targets.mean(at_m[place_b]))
    slots = 1 if targets.match == "mean" else targets.slots
    for slot in range(slots):
        assert np.array_equal(some.dense(slot), targets.dense(slot, at_m))
        of_all = targets.table(cpu, torch.float64).gather(torch.from_numpy(slot * targets.rows + at_m[place_b]))
        of_some = some.table(cpu, torch.float64).gather(torch.from_numpy(slot * 5 + place_b))
        reader = TargetReader(some, torch.float64)
        read = reader.decode(reader.read(np.full(3, slot), place_b))
        for one, other in zip(
            *(found if isinstance(found, tuple) else [found] for found in (of_some, read)), strict=True
        ):
            assert torch.equal(one, other)
        for one, other in zip(
            *(found if isinstance(found, tuple) else [found] for found in (of_some, of_all)), strict=True
        ):
            assert torch.equal(one, other)


# the search


@pytest.fixture(scope="module")
def work(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the digits workspace, with a weighted subset `craig` and one of a row of each class, `tiny`."""
    workspace = Path(shutil.copytree(digits, tmp_path_factory.mktemp("alpha") / "work"))
    common = ("build-subset", "-w", workspace, "--dataset", "digits", "--frac")
    made(*common, "0.1", "--method", "craig", "--name", "craig")
    made(*common, "0.007", "--name", "tiny")
    return workspace


def request_in(workspace: Path, **asked: Any) -> StudentRequest:
    asked = {"subset": "third", "alpha": "search", "epochs": 6, "seed": 4, **asked}
    return open_student_request(Workspace(workspace), compute_on("cpu", "float32", 1), **asked)


def searched(request: StudentRequest, folder: Path, source: str = "resident", **heard: Any) -> dict[str, Any]:
    return search.search_alpha(request, compute_on("cpu", "float32", 1), source, folder, **heard)


def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Batch], list[np.ndarray]]:
    """The batches that trials train on, and the rows that judge them, as numbers in the packed data."""
    batches: list[Batch] = []
    judging: list[np.ndarray] = []
    honest, predict = search.distillation_loss, search.predict

    def loss_of(*asked: Any) -> Callable[..., torch.Tensor]:
        loss = honest(*asked)

        def watching(logits_bc: torch.Tensor, batch: Batch) -> torch.Tensor:
            batches.append(batch)
            return loss(logits_bc, batch)

        return watching

    def judged(model: Any, images: Any, *shown: Any) -> torch.Tensor:
        judging.append(images.rows_n[shown[-1]])
        return predict(model, images, *shown)

    monkeypatch.setattr(search, "distillation_loss", loss_of)
    monkeypatch.setattr(search, "predict", judged)
    return batches, judging


def test_a_search_sees_its_subset_alone_and_judges_by_what_it_does_not_train_on(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """There is no test split here at all, nor any other training data: only the bundle."""
    away = tmp_path / "away"
    shutil.copytree(work / "subsets" / "third", away / "subsets" / "third")
    batches, judging = watched(monkeypatch)
    lines: list[str] = []
    found = searched(request_in(away), tmp_path / "run", on_trial=lines.append)
    bundle = open_bundle(away / "subsets" / "third")
    training_t, held_h = held_out_of(bundle, seed=4)
    assert found["held_out_rows"] == len(held_h) == 87
    assert {int(row) for batch in batches for row in batch.rows_b} == set(bundle.rows_m[training_t].tolist())
    assert all(np.array_equal(rows, bundle.rows_m[held_h]) for rows in judging)
    labels = Counter(bundle.images().records_n["label"][bundle.indices_m[held_h]].tolist())
    assert len(labels) == 10 and max(labels.values()) - min(labels.values()) <= 2
    targets = load_knowledge(bundle).targets
    cached_kmc = np.stack([targets.dense(slot) for slot in range(targets.slots)])
    for batch in batches[:3]:
        at_b = np.searchsorted(bundle.rows_m, batch.rows_b.numpy())
        assert (cached_kmc[:, at_b] == batch.logits_bc.numpy()).all(axis=2).any(axis=0).all()  # each row its own
    # the table
    assert [trial["alpha"] for trial in found["trials"][:8]] == list(CANDIDATES)
    # 6 epochs are 24 steps of four batches, of which three are enough for four fifths of the rows: 18
    assert Counter(trial["steps"] for trial in found["trials"]) == {2: 8, 3: 4, 6: 2}
    assert (found["rungs"], found["candidates"]) == ([2, 3, 6], list(CANDIDATES))
    assert [trial["images"] for trial in found["trials"]] == [*([256] * 8), *([346] * 4), *([2 * 346] * 2)]
    assert found["images"] == 4816 and found["share_of_run"] == 4816 / (6 * 433)
    assert found["seconds"] == sum(trial["seconds"] for trial in found["trials"]) > 0
    last = found["trials"][-1]
    assert lines[0] == (
        "searching for alpha: 14 trials of 2 to 6 steps, judged by 87 held-out rows; 1.85 times the run's images"
    )
    assert lines[14] == f"alpha {last['alpha']:g}: {last['top1']:.2f} % of 87 held-out rows after 6 steps"
    assert len(lines) == 15 + (found["decided_by"] == "rule") and lines[1].endswith("after 2 steps")


@pytest.mark.parametrize(
    ("length", "low", "high"),
    [
        ({"epochs": 30}, 1.55, 1.65),
        ({"epochs": 1}, 2.3, 2.4),
        ({"iterations": 12}, 1.5, 2.2),
        ({"iterations": 5}, 1.5, 2.0),
        ({"iterations": 1}, 7.9, 8.0),
    ],
)
def test_a_search_costs_about_as_much_of_any_run_and_says_so_before(
    work: Path, length: dict[str, int], low: float, high: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not of one whose twelfth is far from a step."""

    def trial(bench: Any, alpha: float, steps: int, progress: Any) -> search.Trial:
        return search.Trial(alpha, steps, 50.0, bench.images_in(steps), 0.1, 0, False)

    monkeypatch.setattr(search._Bench, "trial", trial)
    lines: list[str] = []
    found = searched(request_in(work, **{"epochs": None, **length}), tmp_path, on_trial=lines.append)
    assert low <= found["share_of_run"] <= high
    assert lines[0].endswith(f"held-out rows; {found['share_of_run']:.2f} times the run's images")
    # nothing told them apart
    assert (found["alpha"], found["decided_by"]) == (0.9, "rule")
    assert lines[-1] == "alpha 0.9: another was as good on the held-out rows, so the rule (--alpha auto) decided"


def without_seconds(found: dict[str, Any]) -> dict[str, Any]:
    trials = [{key: trial[key] for key in trial if key != "seconds"} for trial in found["trials"]]
    return {**{key: found[key] for key in found if key != "seconds"}, "trials": trials}


def test_a_search_is_decided_by_its_settings(work: Path, tmp_path: Path):
    """Whatever the source; another seed holds out other rows."""
    one = without_seconds(searched(request_in(work), tmp_path / "one"))
    assert one == without_seconds(searched(request_in(work), tmp_path / "two", source="stream"))
    assert one != without_seconds(searched(request_in(work, seed=5), tmp_path / "three"))


def test_a_stopped_search_goes_on_after_its_last_trial(work: Path, monkeypatch: pytest.MonkeyPatch):
    """On the command line: stopped in the third trial, and later in the run itself. No trial is run twice."""
    words = (
        "distill",
        "-w",
        work,
        "--subset",
        "third",
        "--alpha",
        "search",
        "--epochs",
        "6",
        "--threads",
        "1",
        "--name",
    )
    alone = made(*words, "alone")
    honest, begun = search.new_network, 0

    def until(stop: int) -> None:
        nonlocal begun
        begun = 0

        def network(*asked: Any) -> Any:
            nonlocal begun
            begun += 1
            if begun == stop:
                raise KeyboardInterrupt
            return honest(*asked)

        monkeypatch.setattr(search, "new_network", network)

    until(3)
    result = kdtool(*words, "stopped")
    assert result.exit_code == 130 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "kdtool: stopped after 2 trials of its search for an alpha. Run the same command again: "
        "it goes on after the last trial"
    )
    folder = work / "runs" / "stopped"
    kept = json.loads((folder / "alpha.json").read_text())["trials"]
    assert [trial["alpha"] for trial in kept] == [0.1, 0.3]

    until(99)
    with monkeypatch.context() as broken:
        broken.setattr(
            toolkit.pipeline.student, "run_to_end", lambda *asked, **more: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        again = kdtool(*words, "stopped")
        assert again.exit_code == 130 and ": 14 trials of 2 to 6 steps, 2 of them kept from before," in again.stderr
    assert begun == 12

    until(1)
    resumed = made(*words, "stopped")
    assert begun == 0
    tables = [
        json.loads((work / "runs" / name / "run.json").read_text())["alpha_search"] for name in ("alone", "stopped")
    ]
    assert without_seconds(tables[0]) == without_seconds(tables[1]) and tables[1]["trials"][:2] == kept
    assert resumed["top1"] == alone["top1"] and resumed["alpha"] == alone["alpha"]
    weights = [
        torch.load(work / "runs" / name / "student.pt", weights_only=True)["weights"] for name in ("alone", "stopped")
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_searched_run_says_what_it_found_and_what_that_cost(work: Path):
    words = ("distill", "-w", work, "--subset", "third", "--alpha", "search", "--epochs", "1")
    run = made(*words)
    assert "-asearch-t4-" in run["name"] and run["alpha"] in CANDIDATES
    cost = run["alpha_search"]
    assert cost["images"] == 8 * 128 and cost["share_of_run"] == pytest.approx(8 * 128 / 433) and cost["seconds"] > 0
    record = json.loads((Path(run["path"]) / "run.json").read_text())
    assert record["settings"]["alpha"] == "search" and len(record["alpha_search"]["trials"]) == 8
    assert run["teacher_forward_passes"] == 0 and "trials" not in cost
    again = kdtool(*words)
    tied = ", by the rule among equals" if cost["decided_by"] == "rule" else ""
    assert f"alpha {run['alpha']:g} (searched with 1,024 images, 2.36 times the run's{tied})" in again.stdout
    assert "held-out" not in again.stderr  # it is there
    number = made(*words[:-4], "--alpha", f"{run['alpha']}", "--epochs", "1", "--threads", "1")
    assert number["name"] != run["name"] and number["top1"] == run["top1"]


def test_a_search_with_other_settings_is_not_gone_on_with(work: Path, tmp_path: Path):
    request, folder = request_in(work, epochs=1), tmp_path / "run"
    found = searched(request, folder)
    path = folder / "alpha.json"
    content = json.loads(path.read_text())
    for broken, said in (
        (
            {**content, "settings": {**content["settings"], "temperature": 2.0}},
            r"other settings \(temperature 2.0 → 4.0\)",
        ),
        ({**content, "format": "another"}, "not a search for alpha of this version"),
        ({**content, "trials": [{"alpha": 0.0}]}, "not whole .*Delete it"),
        ({**content, "trials": None}, "not a search"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(FailureError, match=said):
            searched(request, folder)
    forget(folder)  # what --force does first
    alpha, anew = search.settled_alpha(request, compute_on("cpu", "float32", 1), "resident", folder)
    assert anew is not None and alpha == found["alpha"] and without_seconds(anew) == without_seconds(found)


def test_a_run_is_not_gone_on_with_by_another_alpha_than_it_was_begun_with(work: Path, monkeypatch: pytest.MonkeyPatch):
    """A search that is found again, in an edited or another alpha.json, may end otherwise."""
    words = ("distill", "-w", work, "--subset", "third", "--alpha", "search", "--epochs", "2", "--name", "mixed")

    def end(result: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("toolkit.cli.commands._epoch_line", end)
        assert kdtool(*words).exit_code == 143
    folder = work / "runs" / "mixed"
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    content = json.loads((folder / "alpha.json").read_text())
    other = next(alpha for trial in content["trials"][-2:] if (alpha := trial["alpha"]) != saved["found"]["alpha"])
    for trial in content["trials"]:
        trial["top1"] = 100 - 100 * abs(trial["alpha"] - other)
    (folder / "alpha.json").write_text(json.dumps(content))
    result = kdtool(*words)
    assert result.exit_code == 1 and f"alpha {saved['found']['alpha']} → {other}" in result.stderr
    del saved["found"]  # as an earlier version saved it
    torch.save(saved, folder / "checkpoint.pt")
    assert made(*words)["alpha"] == other
    made("distill", "-w", work, "--subset", "third", "--epochs", "1", "--name", "mixed", "--force")
    assert not (folder / "alpha.json").exists()


def test_a_candidate_that_diverges_is_the_worst(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    honest, lines = search.distillation_loss, []

    def breaking(alpha: float, *asked: Any) -> Callable[..., torch.Tensor]:
        loss = honest(alpha, *asked)
        return loss if alpha < 0.9 else lambda logits_bc, batch: loss(logits_bc, batch) * torch.nan

    monkeypatch.setattr(search, "distillation_loss", breaking)
    found = searched(request_in(work), tmp_path / "run", on_trial=lines.append)
    assert [trial["alpha"] for trial in found["trials"] if trial["diverged"]] == [0.9, 0.95, 1.0]
    assert found["alpha"] < 0.9 and "alpha 1: diverged within 2 steps" in lines


def test_a_weighted_search_weighs_its_part(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    batches, _ = watched(monkeypatch)
    request = request_in(work, subset="craig", weights=True, epochs=1)
    searched(request, tmp_path / "run")
    assert request.weights_m is not None
    weight_of = dict(zip(request.bundle.rows_m.tolist(), request.weights_m.tolist(), strict=True))
    first: dict[int, float] = {}
    for batch in batches[: len(batches) // 8]:
        assert batch.weights_b is not None
        first |= dict(zip(batch.rows_b.tolist(), batch.weights_b.tolist(), strict=True))
    assert np.mean(list(first.values())) == pytest.approx(1, abs=1e-5)
    ratios = [first[row] / weight_of[row] for row in first if weight_of[row]]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-5)


def test_a_subset_too_small_for_a_search_is_refused_before_anything(work: Path):
    words = ("distill", "-w", work, "--subset", "tiny", "--alpha", "search", "--name", "tiny")
    refused(kdtool(*words), 2, "--alpha search", "the subset's 10 rows", "--alpha auto")
    assert not (work / "runs" / "tiny").exists()


@pytest.mark.parametrize("alpha", ["best", "1.5", "nan", "-0.1"])
def test_what_is_no_alpha_is_refused_in_one_line(alpha: str, work: Path):
    words = ("distill", "-w", work, "--subset", "third", "--alpha", alpha)
    refused(kdtool(*words), 2, "--alpha must be a number from 0 to 1, auto or search, got")


def test_the_search_counts_a_teacher_that_runs(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from toolkit.models.zoo import build_model

    live, honest = build_model("resnet8", 10).eval(), search.distillation_loss

    def cheating(*asked: Any) -> Callable[..., torch.Tensor]:
        loss = honest(*asked)

        def calling(logits_bc: torch.Tensor, batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                live(batch.images_bchw)
            return loss(logits_bc, batch)

        return calling

    monkeypatch.setattr(search, "distillation_loss", cheating)
    assert searched(request_in(work, epochs=1), tmp_path / "run")["teacher_forward_passes"] == 8 * 128
