"""The benchmarks compare what they say they compare. No timings here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import dynamics, gpu, methods, million, selection, selection_scale, students, sweep
from benchmarks.child import Measured, measured
from benchmarks.filling import filled
from benchmarks.live import EQUAL, KDTOOL, kd_loss, live_loop, report, usual_transforms
from benchmarks.live_run import test_top1 as accuracy_of
from benchmarks.machine import append, read_lines
from benchmarks.rounds import Contest, Work, in_turn, row, slowest
from benchmarks.storage import copy_file, cutting, enlarged
from benchmarks.training import TEMPERATURE, Epochs, Slices, Step, one_batch, trainer_of
from toolkit.core.files import remove_folder
from toolkit.data.sources import source_named
from toolkit.distill.losses import soft_target_loss
from toolkit.formats.bundle import open_bundle
from toolkit.formats.dataset import open_packed
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.runtime import compute_on
from toolkit.selection.methods import METHODS

ROOT = Path(students.__file__).parent.parent


def third(workspace: Path) -> Any:
    return open_bundle(workspace / "subsets" / "third")


def test_a_live_teacher_is_learned_from_by_kdtools_own_loss():
    student_bc, teacher_bc = torch.randn(2, 16, 10, generator=torch.Generator().manual_seed(0))
    assert kd_loss(student_bc, teacher_bc) == pytest.approx(
        float(soft_target_loss(student_bc, teacher_bc, TEMPERATURE))
    )


@pytest.mark.parametrize("stronger", [False, True])
def test_the_live_loop_teaches(digits: Path, stronger: bool):
    bundle, data = third(digits), open_packed(digits / "data" / "digits")
    torch.manual_seed(0)
    how = {"workers": 0, "batch_size": 64, "stronger": stronger, "lr": 0.1}
    loop = live_loop(data, bundle.images(), bundle.indices_m, compute_on("cpu", "float32"), **how)
    weights = [weight.clone() for weight in loop.teacher.parameters()]
    images = sum(loop.train(loop.loader) for _ in range(8))
    assert images == 8 * len(bundle.rows_m)
    assert len(loop.losses) == len(loop.accuracies) == 8 * len(loop.loader)
    assert np.mean(loop.losses[-7:]) < 0.5 * np.mean(loop.losses[:7])
    assert accuracy_of(loop, data) > 50
    assert all(torch.equal(before, now) for before, now in zip(weights, loop.teacher.parameters(), strict=True))


@pytest.mark.parametrize(("dataset", "flips"), [("fashion-mnist", True), ("digits", False)])
def test_the_live_loop_mirrors_only_what_kdtool_mirrors(digits: Path, dataset: str, flips: bool):
    record = open_packed(digits / "data" / "digits").record
    object.__setattr__(record, "family", source_named(dataset).family)
    assert ("RandomHorizontalFlip" in repr(usual_transforms(record))) == flips


def test_contestants_take_turns_and_their_warm_up_is_kept_apart():
    order: list[str] = []

    def block(name: str, rate: float) -> Any:
        def run() -> Work:
            order.append(name)
            return Work(rate * (1 + len(order)), 1 + len(order))

        return run

    contest = in_turn("turns", "img", {"a": block("a", 2.0), "b": block("b", 4.0)}, rounds=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert contest.rates == {"a": [2.0] * 3, "b": [4.0] * 3} and contest.warm_up == {"a": 2.0, "b": 4.0}
    assert slowest(contest, ["b", "a"]) == "a"


def test_no_third_round_is_begun_past_the_time():
    blocks = {"a": lambda: Work(1.0, 1.0)}
    assert in_turn("late", "img", blocks, 9, until_s=time.perf_counter() - 1).rounds == 2


def test_a_ratio_is_taken_round_by_round():
    """The machine halves its speed from round to round; the ratio does not move."""
    contest = Contest("distill", "img", {"ours": [8.0, 4.2, 2.0], "theirs": [10.0, 5.0, 2.5]}, {})
    found = contest.ratio("ours", "theirs")
    assert found.median == pytest.approx(0.8)
    assert found.low_quartile == pytest.approx(0.8) and found.high_quartile == pytest.approx(0.82)
    assert found.mean.ratio == pytest.approx(14.2 / 17.5) and found.mean.low < 0.8 < found.mean.high
    assert row(contest, "ours", "theirs")[:4] == ["distill", "4 img/s", "5 img/s", "0.80"]
    json.dumps(found.to_record())


def test_the_sentence_says_how_many_times_as_fast():
    rates = {KDTOOL: [20.0, 22.0, 20.0], EQUAL: [10.0, 11.0, 10.0], "live, stronger": [16.0, 17.6, 16.0]}
    said = report(Contest("live", "img", rates, {}), {"precision": "bfloat16", "stronger": {"workers": 0}})
    assert "2.00 ± 0.00 times as fast as a live-teacher loop at equal precision (bfloat16)" in said
    assert "1.25 ± 0.00 beside one made stronger" in said


def test_slices_are_the_sources_own_batches(digits: Path):
    source = trainer_of(third(digits), compute_on("cpu", "float32"), 64).source
    whole = [batch.rows_b for epoch in range(2) for batch in source.batches(epoch)]
    slices = Slices(source, 3)
    cut = [batch.rows_b for number in range(4) for batch in slices.batches(number)]
    assert len(cut) == 12 and all(torch.equal(a, b) for a, b in zip(cut, islice(whole, 12), strict=True))


def test_the_time_of_targets_is_taken_in_epochs_of_its_own(digits: Path):
    epochs = Epochs(trainer_of(third(digits), compute_on("cpu", "float32"), 64), seconds=0.01)
    assert epochs().amount == epochs.with_targets_timed().amount == len(third(digits).rows_m)
    assert len(epochs.waited) == len(epochs.targets_s) == 1
    assert epochs.targets_s[0] > 0 and 0 < epochs.waited[0] < 1


def test_the_bound_trains_on_one_batch(digits: Path):
    compute = compute_on("cpu", "float32")
    step = Step(one_batch(trainer_of(third(digits), compute, 64)), 10, compute)
    before = [weight.clone() for weight in step.forward.parameters()]
    assert step.block(seconds=0)().amount == 64
    assert not any(torch.equal(old, new) for old, new in zip(before, step.forward.parameters(), strict=True))


def test_what_is_cut_is_what_is_copied(digits: Path, tmp_path: Path):
    large = Workspace(tmp_path)
    enlarged(open_packed(digits / "data" / "digits"), large, side=12)
    for block in cutting(large, "digits").values():
        assert block().amount == pytest.approx((tmp_path / "kept").stat().st_size / 1e6)
    assert (tmp_path / "copied").read_bytes() == (tmp_path / "subsets/cut/images.beton").read_bytes()
    copy_file(tmp_path / "kept", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "kept").read_bytes()


def students_file(folder: Path, seeds: range = students.SEEDS) -> Path:
    def record(part: str, seed: int, seconds: float, **more: Any) -> None:
        common = {"part": part, "seed": seed, "wall_s": seconds, "epochs": 30, "top1": 90.0 + seed}
        append(
            folder / "students.jsonl",
            {**common, **more, "machine": {"cores": 2, "cpu": "x", "bfloat16": "y", "threads": 2}},
        )

    for part, seconds in (("pack", 10.0), ("cache-teacher", 30.0), ("build-subset", 10.0)):
        record(part, 0, seconds)
    for seed in reversed(seeds):
        record("distill", seed, 90.0 + seed)
        record(students.LIVE_HALF, seed, 18.0 + 2 * seed, measured=2, epochs_s=[10.0, 6.5])  # and 28 · 6.5 more
        record(students.LIVE_ALL, seed, 36.0 + 4 * seed, measured=2, epochs_s=[20.0, 13.0])
    return folder / "students.jsonl"


def test_the_students_add_up(tmp_path: Path):
    said = students.report(read_lines(students_file(tmp_path)))
    assert "| kdtool, everything   |    5 |   510 s |" in said  # 50 before, and 90 … 94
    assert "2.00 times as fast as live-teacher runs on the half" in said  # 1,020 over 510
    assert "4.00 times as fast as live-teacher runs on all the data" in said
    assert "measured 2 of 30 epochs of each of the live runs" in said
    assert "92.00 ± 1.58 %" in said


def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, workspace, ran = tmp_path / "some.jsonl", tmp_path / "workspace", []

    def timed(part: students.Part, epochs: int) -> dict[str, Any]:
        ran.append((part.name, part.seed))
        if len(ran) == 5:
            raise KeyboardInterrupt
        return {"part": part.name, "seed": part.seed, "wall_s": 1.0, "epochs": epochs}

    monkeypatch.setattr(students, "timed", timed)
    with pytest.raises(KeyboardInterrupt):
        students.study(file, workspace, "digits", 30, live_epochs=1, whole=True)
    workspace.mkdir()
    students.study(file, workspace, "digits", 30, live_epochs=1, whole=True)
    assert workspace.is_dir()
    assert len(ran) == 3 + 3 * 5 + 1 + 1 and ran[4] == ran[5]
    assert len(set(ran)) == len(read_lines(file)) == 19


def test_an_estimate_of_a_live_run_counts_once_what_is_done_once(tmp_path: Path):
    result = {
        "epochs_s": [2.0, 4.0],
        "evaluation_s": 1.0,
        "top1": 90.0,
        "rows": 5,
        "precision": "float32",
        "workers": 2,
    }
    part = students.Part(students.LIVE_HALF, 0, ["echo", json.dumps(result)], measured=2)
    record = students.timed(part, epochs=30)
    assert students.seconds_of(record) == pytest.approx(record["wall_s"] + 28 * 4.0)
    assert students.seconds_of({**record, "epochs_s": 30 * [2.0]}) == record["wall_s"]


def test_a_broken_section_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch):
    def broken(bench: Any, until_s: float) -> Any:
        yield {"first": 1}
        raise RuntimeError("no such kernel")

    def slow(bench: Any, until_s: float) -> Any:
        while True:
            time.sleep(0.01)
        yield {}

    def sound(bench: Any, until_s: float) -> Any:
        yield {"sound": until_s}

    sections = {"broken": (broken, 9.0), "slow": (slow, 0.1), "sound": (sound, 9.0)}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    kept: list[Any] = []
    gpu.run_sections(None, list(sections), time.perf_counter() + 100, lambda found: kept.append(json.dumps(found)))  # type: ignore[arg-type]
    found = json.loads(kept[-1])
    assert found["broken"]["results"] == [{"first": 1}] and "no such kernel" in found["broken"]["error"]
    assert "stopped after 0 s" in found["slow"]["error"]
    assert "error" not in found["sound"] and len(kept) == 3


def test_the_gpu_command_runs_through_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hour = {name: (section, 3600.0) for name, (section, _) in gpu.SECTIONS.items()}
    monkeypatch.setattr(gpu, "SECTIONS", hour)
    monkeypatch.setattr(gpu, "TOTAL_S", 36_000.0)
    gpu.main(["--device", "cpu", "--quick", "--workspace", str(tmp_path / "workspace"), "--out", str(tmp_path)])
    (file,) = tmp_path.glob("throughput-gpu-cpu-*.json")
    sections = json.loads(file.read_text())["sections"]
    assert list(sections) == list(gpu.SECTIONS)
    assert [name for name, section in sections.items() if "error" in section or not section["results"]] == []
    assert "top1" in sections["paper"]["results"][0]["result"]


def test_every_method_of_selection_has_a_bound():
    assert set(selection.GREEDY) < set(METHODS)
    assert {selection.bound_s(method) for method in METHODS} == {60.0, 300.0}
    over = selection.row("herding", Measured(seconds=61.0, held_bytes=2**20, peak_bytes=3 * 2**20))
    assert over == ["herding", "61.0 s", "2 MiB", "60 s", "no"]
    assert selection.row("craig", Measured(seconds=61.0))[-1] == "yes"
    assert selection.row("craig", Measured(error="stopped"))[1] == "over 1200 s"


def test_the_synthetic_pool_errs_as_a_good_teacher_does():
    pool = selection.synthetic(selection.Sizes(rows=5000))
    assert pool.features_nd is not None and pool.logits_nc is not None and pool.scores_n is not None
    assert pool.features_nd.shape == (5000, 64) and pool.features_nd.min() == 0
    wrong_n = pool.logits_nc.argmax(axis=1) != pool.labels_n
    assert 0.02 < wrong_n.mean() < 0.1
    assert pool.scores_n[wrong_n].min() > np.median(pool.scores_n)


def test_the_memory_of_a_child_is_what_it_took(tmp_path: Path):
    selection.write_pool(selection.synthetic(selection.QUICK), tmp_path)
    found = measured("benchmarks.selection", "--child", "random", tmp_path)
    assert found.error is None and found.found == 450
    assert found.held_bytes > 2**26 and 0 <= found.more_bytes < 2**25
    held = np.ones(2**25)  # 256 MiB that the process which starts it holds are no part of it
    again = measured("benchmarks.selection", "--child", "random", tmp_path)
    assert abs(again.peak_bytes - found.peak_bytes) < held.nbytes / 4
    broken = measured("benchmarks.selection", "--child", "random", tmp_path / "nowhere")
    assert broken.error is not None and "FileNotFoundError" in broken.error


def test_the_features_at_scale_are_what_every_work_reads(tmp_path: Path):
    selection_scale.write_features(tmp_path, rows=9000, features=8, classes=30)
    labels_n, scores_n, features_nd = selection_scale.opened(tmp_path)
    assert features_nd.shape == (9000, 8) and features_nd.dtype == np.float16
    assert features_nd.min() == 0 and np.isfinite(features_nd).all() and len(scores_n) == 9000
    assert np.array_equal(np.bincount(labels_n), np.full(30, 300))
    assert np.any(np.diff(labels_n) < 0)
    first, second = (features_nd[labels_n == label].astype(float).mean(axis=0) for label in (0, 1))
    assert np.linalg.norm(first - second) > 0.5
    done = {"stratified": 900, "centroid": 9000}
    assert {name: selection_scale.WORKS[name](tmp_path) for name in done} == done


@pytest.mark.parametrize("program", ["throughput", "live"])
def test_a_benchmark_runs_through_and_says_what_it_compared(program: str):
    words = [sys.executable, "-m", f"benchmarks.{program}", "--quick"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compared = {"throughput": "a compiled step is", "live": "kdtool trains a ResNet-8"}
    assert compared[program] in done.stdout


@pytest.mark.long
def test_the_students_study_runs_through(tmp_path: Path):
    words = [sys.executable, "-m", "benchmarks.students", "--quick", "--live-whole"]
    quick = ROOT / "kdtool-work" / "students-quick"
    quick.with_suffix(".jsonl").unlink(missing_ok=True)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "everything counted from packing on" in done.stdout
    remove_folder(quick)
    quick.with_suffix(".jsonl").unlink()


def a_line(way: str, seed: int, without: float, taught: float) -> dict[str, Any]:
    students = [{"alpha": alpha, "top1": top1} for alpha, top1 in ((0.0, without), (1.0, taught))]
    machine = {"cores": 1, "cpu": "x", "bfloat16": "none", "threads": 1}
    return {"way": way, "seed": seed, "students": students, "machine": machine, "overlap": 0.25}


def test_the_table_of_methods_pairs_students_by_seed():
    lines = [a_line("random", 1, 80, 90), a_line("herding", 0, 84, 91), a_line("random", 0, 82, 88)]
    lines.append(a_line("herding", 1, 81, 92))
    lines.insert(1, {"way": "herding", "select_s": 1.0, "peak_bytes": 2**30, "machine": lines[0]["machine"]})
    cells = methods.row(lines, "herding")
    assert cells[:4] == ["herding", "1.00", "1,024", "25"]
    assert cells[5].startswith("+1.50 [")  # (84 − 82, 81 − 80), not in the order of the file
    assert cells[7].startswith("+2.50 [")
    assert methods.row(lines, "random")[4:8] == ["81.00 ± 1.41", "", "89.00 ± 1.41", ""]
    assert all(way in methods.report(lines) for way in ("random", "herding"))


def test_the_table_of_methods_has_every_method_there_is():
    assert {words[1] for words in methods.WAYS.values()} == set(METHODS)
    assert set(methods.WEIGHTED) <= {name for name, method in METHODS.items() if method.weighted}


def test_work_is_done_once_whoever_comes(tmp_path: Path):
    file, done = tmp_path / "results.jsonl", lambda line: (line["way"], line["seed"])
    for _ in range(2):
        claimed = [("a", 0), ("b", 1)]
        methods.claimed(file, tmp_path / "claims", claimed, done, lambda way, seed: {"way": way, "seed": seed})
    assert [done(line) for line in read_lines(file)] == [("a", 0), ("b", 1)]


def test_recorded_and_plain_epochs_train_the_same_images(tmp_path: Path):
    contest = dynamics.contest(tmp_path, "digits", 100, "resnet8", 2)
    assert set(contest.rates) == {"plain", "recorded"}
    assert len(list((tmp_path / "parts").glob("*.npz"))) == 3  # a warm-up and two rounds


@pytest.mark.long
def test_a_sweep_and_one_after_another_train_the_same_students(tmp_path: Path):
    contest = sweep.contest(tmp_path, sweep.students("digits", 0.1, 1, cells=4), 1, [sweep.APART, sweep.COMMANDS])
    assert set(contest.rates) == {sweep.TOGETHER, sweep.APART, sweep.COMMANDS}
    assert len(list(tmp_path.glob("runs/*/student.pt"))) == 4


def test_the_table_of_a_million_rows_has_its_place_in_the_page_and_says_what_a_row_costs():
    measured = [million.Stage("distill", 0.5, "1G", 1, 20.0, 100.0)._asdict()]
    less = [million.Stage("distill", 0.5, "1G", 1, 3.0, 30.0)._asdict()]
    machine = {"cores": 2, "cpu": "some", "bfloat16": "none", "threads": 2, "commit": "abc"}
    made = million.in_a_table({"rows": 1 << 23, "machine": machine, "whole": measured, "at_part": less})
    assert "| distill |         1 |    1G |      20 | 209,715 |       100 |               30 |          20 |" in made
    assert made.endswith("8,388,608 rows on 2 cores of some (bfloat16: none), 2 threads, commit abc.")
    assert made in filled(million.PAGE.read_text(), {"million": made})
    assert million.in_a_table(million.latest()) in million.PAGE.read_text()


def test_what_a_commands_processes_hold_is_counted_in_sessions_of_their_own_too():
    child = [sys.executable, "-S", "-c", "import sys; print(1, flush=True); sys.stdin.read()"]
    code = f"import subprocess as s, sys; s.run({child!r}, start_new_session=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        held = million.held_bytes(process.pid)
        process.communicate()
    assert len(held) == 2 and min(held) > 1 << 20


@pytest.mark.long
def test_every_stage_takes_no_more_than_its_limit(tmp_path: Path):
    stages = million.measured(160_000, 20_000, tmp_path / "measured")
    assert million.beyond(stages) == []
    assert sum(stage.limit is not None for stage in stages) == 8 and max(stage.processes for stage in stages) >= 3
    assert million.beyond([stage._replace(limit="1M") for stage in stages]) == [stage.name for stage in stages]
