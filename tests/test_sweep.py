"""A sweep is many students as one: each run once, kept, resumed, and no process of it left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import kdtool, made, refused, start_kdtool
from toolkit.cli import cli
from toolkit.core import progress
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.locks import Locked, only_writer
from toolkit.formats.checkpoint import load_checkpoint
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.run_folder import images_before
from toolkit.pipeline.sweep import command, pool, worker
from toolkit.pipeline.sweep import prepare as preparing
from toolkit.pipeline.sweep.command import _Course, _shared_out, part_of
from toolkit.pipeline.sweep.file import read_sweep
from toolkit.pipeline.sweep.prepare import patiently
from toolkit.pipeline.sweep.request import AXES, Cell, Sweep
from toolkit.pipeline.sweep.resolve import Run, finished, key_of
from toolkit.pipeline.sweep.table import Table, read_lines, results_path
from toolkit.pipeline.sweep.worker import Failed, How

PATIENCE_S = 300
DIGITS = ("--dataset", "digits", "--precision", "float32")
# Two stages of pooling leave nothing of 8 × 8 pixels: it is built, and fails when it sees an image
TOO_DEEP = "torchvision:squeezenet1_0"
TIMES = ("seconds", "images_per_s", "wait_share", "path")


def copy_of(digits: Path, folder: Path) -> Path:
    """The packed digits and their teacher's cache, to write in."""
    for part in ("data", "teachers"):
        shutil.copytree(digits / part, folder / part)
    return folder


def lines_of(workspace: Path, name: str, part: str = "") -> list[dict[str, Any]]:
    return read_lines(workspace / "sweeps" / name / f"results{part}.jsonl")


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**line, "seconds": None, "result": {key: line["result"][key] for key in line["result"] if key not in TIMES}}
        for line in lines
    ]


def children_of(pid: int) -> list[int]:
    """The processes that this one started: of a sweep its workers, and multiprocessing's own helper."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def workers_of(pid: int) -> list[int]:
    return [child for child in children_of(pid) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Any, process: subprocess.Popen[str] | None = None) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


# what is asked --------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_cell():
    sweep, name = read_sweep(None, {"frac": ("0.1", "0.5"), "alpha": ("0", "auto"), "seed": ("0..2", "7")})
    assert len(sweep.cells) == 2 * 2 * 4
    assert sweep.seed == (0, 1, 2, 7)
    assert sweep.alpha == (0.0, "auto")
    assert [cell.seed for cell in sweep.cells[:4]] == [0, 1, 2, 7]
    assert name.startswith("fashion-mnist-")
    assert {*AXES} == {*asdict(sweep.cells[0])}


def test_a_file_says_what_options_say_and_options_override_it(tmp_path: Path):
    file = tmp_path / "study.yaml"
    file.write_text("frac: [0.1, 0.3]\nalpha: 0\nseed: 0..1\nbatch-size: 64\nlr: 1e-2\nnested: true\nteacher: null\n")
    sweep, name = read_sweep(file, {})
    assert (sweep.frac, sweep.alpha, sweep.seed) == ((0.1, 0.3), (0.0,), (0, 1))
    assert (sweep.batch_size, sweep.lr, sweep.nested, sweep.teacher) == (64, 0.01, True, (None,))
    assert name == "study"
    assert read_sweep(file, {"seed": ("0", "1"), "lr": "0.01"}) == (sweep, "study")
    other, other_name = read_sweep(file, {"seed": ("5",)})
    assert other == replace(sweep, seed=(5,))
    assert other_name.startswith("study-")


def test_what_was_asked_can_be_run_again_from_its_own_record(tmp_path: Path):
    asked = Sweep((0.1,), alpha=(0.0, "search"), teacher=("mine", None), seed=(0, 3), balance=False, views="epochs:3")
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", **asked.to_record()}))
    assert read_sweep(file, {}) == (asked, "mine")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frac: [0.1", ["not YAML", "line 2"]),
        ("- 0.1", ["expected keys and values", "list"]),
        ("fracs: 0.1", ["unknown key 'fracs'", "did you mean frac"]),
        ("frac: 0.1\nbatch_sise: 3", ["did you mean batch-size"]),
        ("frac: 0.1\nbatch-size: 3\nbatch_size: 4", ["batch-size stands there twice"]),
        ("frac: tenth", ["frac", "expected a number", "'tenth'"]),
        ("frac: [0.1, [0.2]]", ["frac", "expected a number", "[0.2] (list)"]),
        ("frac: 0.1\nseed: 1.5", ["seed", "expected a whole number", "1.5 (float)"]),
        ("frac: 0.1\nseed: 4..1", ["seed", "from small to large"]),
        ("frac: 0.1\nseed: -1", ["--seed must be from 0"]),
        ("frac: 0.1\nseed: []", ["--seed: a sweep needs at least one value"]),
        ("frac: 0.1\nnested: 1", ["nested", "expected true or false", "1 (int)"]),
        ("frac: 0.1\nalpha: high", ["alpha", "expected a number, auto or search"]),
        ("frac: 0.1\nalpha: 2", ["--alpha"]),
        ("frac: 0.1\nloss: [kd, dkt]", ["unknown loss 'dkt'", "did you mean dkd"]),
        ("frac: 0.1\nmethod: hradest", ["unknown method", "did you mean hardest"]),
        ("frac: 0.1\nrecipe: fst", ["did you mean fast"]),
        ("frac: 1.5", ["--frac must be above 0 and at most 1"]),
        ("frac: 0.1\nepochs: 2\niterations: 9", ["give one of them"]),
        ("frac: 0.1\nbeta: 2", ["--beta has no meaning for --loss kd", "dkd or dist"]),
        ("frac: 0.1\nweights: true", ["--weights has no meaning for --method random"]),
        ("frac: 0.1\ncenter: 0.3", ["--center has no meaning"]),
        ("frac: 0.1\nviews: some", ["--views must be a number"]),
        ("alpha: 1", ["--frac is missing"]),
        ("frac: 0.1\nname: a/b", ["plain folder name"]),
    ],
)
def test_a_file_that_asks_amiss_is_told_so_in_one_line(tmp_path: Path, text: str, words: list[str]):
    file = tmp_path / "study.yaml"
    file.write_text(text + "\n")
    refused(kdtool("sweep", file, "-w", tmp_path / "w"), 2, *words)
    assert not (tmp_path / "w").exists()


def test_a_file_that_is_not_there_and_a_shard_that_cannot_be_are_told_so(tmp_path: Path):
    refused(kdtool("sweep", tmp_path / "none.yaml"), 1, "none.yaml", "No such file")
    refused(kdtool("sweep", "--frac", "x"), 2, "--frac: expected a number, found 'x'")
    words = ("sweep", "-w", tmp_path / "w", *DIGITS, "--frac", "0.1")
    refused(kdtool(*words, "--shard", "3/2"), 2, "--shard must be i/n", "3/2")
    refused(kdtool(*words, "--shard", "half"), 2, "expected i/n")
    refused(kdtool(*words, "--jobs", "0"), 2, "--jobs must be at least 1")
    refused(kdtool(*words, "--source", "steam"), 2, "steam")
    assert not (tmp_path / "w").exists()


def test_beta_and_weights_reach_only_the_cells_that_know_them():
    asked = Sweep((0.1,), method=("random", "craig"), loss=("kd", "dkd"), alpha=(0.0, 1.0), beta=2.0, weights=True)
    for cell in asked.cells:
        said = asked.trained(cell, "subset", "teacher", None)
        assert said.get("beta") == (2.0 if cell.loss == "dkd" and cell.taught else None)
        assert said["weights"] == (cell.method == "craig")
        assert said["teacher"] == ("teacher" if cell.taught else None)


def test_cells_that_are_the_same_run_have_one_essence():
    asked = Sweep((0.1,), alpha=(0.0, 1.0), temperature=(1.0, 4.0), loss=("kd", "mse"), match=("exact", "mean"))
    essences = {asked.essence(cell) for cell in asked.cells}
    assert len(asked.cells) == 16
    assert len(essences) == 1 + 2 * 2 + 1 * 2  # no teacher; kd by temperature and match; mse has no temperature


@pytest.mark.parametrize("count", [1, 2, 3, 5, 100])
def test_shards_part_the_distinct_cells_and_together_are_the_whole(count: int):
    asked = Sweep((0.1, 0.3), alpha=(0.0, 0.5, 1.0), temperature=(1.0, 4.0), seed=tuple(range(3)))
    parts = [part_of(asked, (number, count)) for number in range(1, count + 1)]
    assert sorted((cell for part in parts for cell in part), key=asked.cells.index) == asked.cells
    essences = [{asked.essence(cell) for cell in part} for part in parts]
    assert sum(map(len, essences)) == len(set().union(*essences)) == 2 * 3 * (1 + 2 * 2)
    assert max(map(len, essences)) - min(map(len, essences)) <= 1


def test_a_shard_that_is_none_is_refused():
    with pytest.raises(UsageError, match="--shard must be i/n"):
        part_of(Sweep((0.1,)), (0, 2))


@pytest.mark.parametrize(
    ("device", "cpus", "asked", "expected"),
    [
        ("cpu", 4, (None, None), (4, 1)),
        ("cpu", 4, (None, 2), (2, 2)),
        ("cpu", 5, (None, 2), (2, 2)),
        ("cpu", 4, (None, 8), (1, 8)),
        ("cpu", 4, (3, None), (3, 1)),
        ("cpu", 4, (3, 2), (3, 2)),
        ("cuda", 4, (None, None), (1, None)),
        ("cuda", 4, (2, 3), (2, 3)),
    ],
)
def test_students_at_a_time_fill_the_cpus_and_a_gpu_has_one(
    device: str, cpus: int, asked: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "available_cpus", lambda: cpus)
    monkeypatch.setattr(command, "compute_on", lambda *how: SimpleNamespace(device=torch.device(device)))
    assert _shared_out(Sweep((0.1,)), *asked) == expected


def test_what_another_process_is_making_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparing, "_WAIT_S", 0.0)
    answers, told = iter([Locked("a: is being written by b. Wait"), Locked("a: is being written by b. Wait"), 7]), []

    def work() -> int:
        answer = next(answers)
        if isinstance(answer, Locked):
            raise answer
        return answer

    assert patiently(work, told.append) == 7
    assert told == ["waiting: a: is being written by b"]


# one sweep, looked at from many sides ---------------------------------------------------------------------------------

AXES_OF_STUDY = ("--alpha", "0", "--alpha", "1", "--temperature", "1", "--temperature", "4")
STUDY = (*DIGITS, "--frac", "0.1", *AXES_OF_STUDY, "--arch", "resnet8", "--arch", TOO_DEEP, "--iterations", "3")


@pytest.fixture(scope="module")
def swept(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A workspace with the sweep `study`, of eight cells and six runs of which three fail, and how it ended."""
    workspace = copy_of(digits, tmp_path_factory.mktemp("sweep"))
    return workspace, kdtool("sweep", "-w", workspace, *STUDY, "--name", "study", "--jobs", "2")


def test_cells_that_are_the_same_run_are_trained_once(swept: tuple[Path, Any]):
    workspace, _ = swept
    lines = lines_of(workspace, "study")
    assert [Cell(**line["cell"]) for line in lines] == read_sweep(workspace / "sweeps/study/sweep.yaml", {})[0].cells
    assert len(lines) == 8 and len({line["key"] for line in lines}) == 6
    untaught = [line for line in lines if line["cell"]["alpha"] == 0 and line["status"] == "done"]
    assert len(untaught) == 2 and untaught[0]["run"] == untaught[1]["run"]
    assert len(list(workspace.glob("runs/*/run.json"))) == 3


def test_a_failed_cell_is_kept_and_stops_no_other(swept: tuple[Path, Any]):
    workspace, ended = swept
    assert ended.exit_code == 1
    last = ended.stderr.splitlines()[-1]
    assert "4 of 8 cells failed" in last and "results.jsonl" in last
    told = ended.stderr.splitlines()
    assert sum(line.startswith("[") for line in told) == 6 and any(line.startswith("[6/6] ") for line in told)
    for line in lines_of(workspace, "study"):
        fails = line["cell"]["arch"] == TOO_DEEP
        assert line["status"] == ("failed" if fails else "done")
        assert ("error" in line) == fails and ("result" in line) != fails
        assert line["key"] == key_of(line["settings"])
    assert "± " not in ended.stdout and "failed" in ended.stdout and ended.stdout.rstrip().endswith("results.jsonl")


def test_a_students_record_is_what_distill_makes(swept: tuple[Path, Any], tmp_path: Path):
    workspace, _ = swept
    line = next(line for line in lines_of(workspace, "study") if line["cell"]["temperature"] == 4 and "result" in line)
    record = json.loads((workspace / "runs" / line["run"] / "run.json").read_text())
    assert (record["settings"], record["result"]) == (line["settings"], line["result"])
    assert record["threads"] == 1
    alone = ["distill", "-w", workspace, "--subset", record["settings"]["subset"], "--iterations", "3", *DIGITS[2:]]
    alone += ["--alpha", line["cell"]["alpha"], "--temperature", "4", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        assert made(*alone)["name"] == line["run"]  # the very run: it is there already
        again = made(*alone, "--name", "alone")
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (load_checkpoint(workspace / "runs" / run / "student.pt").weights for run in (line["run"], "alone"))
    assert again["top1"] == line["result"]["top1"] and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_finished_cells_are_not_run_again_and_failed_ones_are(swept: tuple[Path, Any]):
    workspace, _ = swept
    before = {path: path.stat().st_mtime_ns for path in workspace.glob("runs/*/*") if path.is_file()}
    again = kdtool("sweep", workspace / "sweeps/study/sweep.yaml", "-w", workspace, "--jobs", "1")
    assert again.exit_code == 1, again.output
    told = [line for line in again.stderr.splitlines() if line.startswith("[")]
    assert [line.partition(" ")[0] for line in told] == ["[4/6]", "[5/6]", "[6/6]"]
    assert all(TOO_DEEP in line and "failed" in line for line in told)
    finished_files = {path for path in before if path.name != ".student.pt.lock"}
    assert all(path.stat().st_mtime_ns == before[path] for path in finished_files)


def test_shards_together_are_the_whole_and_take_runs_that_are_there(swept: tuple[Path, Any]):
    workspace, _ = swept
    parts: list[dict[str, Any]] = []
    arch = ["--arch", "resnet8"]  # those that succeed: nothing is left to train
    asked = [word for word in STUDY if word not in ("--arch", "resnet8", TOO_DEEP)] + arch
    for number in (1, 2):
        result = made("sweep", "-w", workspace, *asked, "--name", "parts", "--shard", f"{number}/2")
        assert Path(result["path"]).name == f"results-{number}-of-2.jsonl"
        parts += result["results"]
    whole = [line for line in lines_of(workspace, "study") if line["status"] == "done"]
    by_cell = {json.dumps(line["cell"]): line for line in without_times(parts)}
    assert len(parts) == len(whole) == 4
    assert all(by_cell[json.dumps(line["cell"])] == line for line in without_times(whole))


def test_a_dry_run_tells_what_there_is_and_writes_nothing(swept: tuple[Path, Any], tmp_path: Path):
    workspace, _ = swept
    plan = made("sweep", "-w", workspace, *STUDY, "--name", "study", "--seed", "0..1", "--dry-run", "--jobs", "3")
    assert (plan["cells"], plan["runs"], plan["done"], plan["jobs"]) == (16, 12, 3, 3)
    assert [Path(one.partition(":")[0]).name for one in plan["to_make"]] == ["digits-random-index-0.1-s1"]
    assert not (workspace / "subsets" / "digits-random-index-0.1-s1").exists()
    empty = kdtool("sweep", "-w", tmp_path / "w", *STUDY, "--dry-run")
    assert "8 cells, 6 of them distinct, 0 done" in empty.stdout
    assert "to make" in empty.stdout and "data/digits: the packed data" in empty.stdout
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--dataset", "digist"], 2, ["digist", "did you mean digits"]),
        (["--dataset", "digits", "--limit", "3"], 2, ["--limit"]),
        (["--dataset", "mnist"], 1, ["no teacher for mnist"]),
        (["--dataset", "digits", "--teacher", "nobody"], 1, ["--teacher nobody", "neither a file nor a teacher"]),
        (["--dataset", "digits", "--arch", "resnte8"], 2, ["resnte8"]),
        (["--dataset", "digits", "--arch", "nowhere_at_all:net"], 2, ["--arch nowhere_at_all:net", "no module"]),
    ],
)
def test_names_are_looked_up_before_anything_is_packed(tmp_path: Path, words: list[str], code: int, said: list[str]):
    for more in (["--dry-run"], []):
        refused(kdtool("sweep", "-w", tmp_path, "--frac", "0.1", *words, *more), code, *said)
    assert not (tmp_path / "data").exists()


def test_a_shard_without_cells_says_so(swept: tuple[Path, Any]):
    workspace, _ = swept
    plan = kdtool("sweep", "-w", workspace, *STUDY, "--name", "study", "--shard", "9/9", "--dry-run")
    assert plan.exit_code == 0 and "--shard 9/9 has no cells: there are 6 distinct ones" in plan.stderr


def test_a_second_sweep_on_the_same_table_is_told_who_holds_it(swept: tuple[Path, Any]):
    workspace, _ = swept
    with only_writer(results_path(Workspace(workspace), "study")):
        refused(kdtool("sweep", "-w", workspace, *STUDY, "--name", "study"), 1, "results.jsonl", str(os.getpid()))


def test_a_damaged_table_is_told_and_not_believed(swept: tuple[Path, Any]):
    workspace, _ = swept
    folder = workspace / "sweeps" / "torn"
    folder.mkdir()
    (folder / "results.jsonl").write_text('{"cell": {}\n')
    refused(kdtool("sweep", "-w", workspace, *STUDY, "--name", "torn"), 1, "results.jsonl: line 1", "Delete the file")


def test_a_run_of_other_settings_in_its_folder_is_neither_believed_nor_touched(swept: tuple[Path, Any]):
    workspace, _ = swept
    line = next(line for line in lines_of(workspace, "study") if line["status"] == "done")
    changed = {**line["settings"], "targets_fingerprint": "0123456789abcdef"}
    run = run_of(line, changed)
    name, result = finished(Workspace(workspace), run)
    assert (name, result) == (f"{line['run']}-{run.key[:8]}", None)
    assert finished(Workspace(workspace), run_of(line, line["settings"])) == (line["run"], line["result"])


def run_of(line: dict[str, Any], settings: dict[str, Any]) -> Run:
    return Run(key_of(settings), line["run"], settings, {}, 1, ())


def test_a_run_that_another_process_trains_is_put_off(swept: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch):
    workspace, _ = swept
    monkeypatch.setattr(worker, "_WAIT_S", 0.0)
    line = next(line for line in lines_of(workspace, "study") if line["status"] == "done")
    wanted = replace(run_of(line, line["settings"]), name="elsewhere")
    wanted = replace(wanted, asked={"subset": line["settings"]["subset"], "alpha": 0.0, "iterations": 3})
    how = How(Workspace(workspace), "cpu", "float32", False, torch.get_num_threads(), "auto", None)
    with only_writer(workspace / "runs" / "elsewhere" / "student.pt"):
        assert isinstance(worker._trained(wanted, how, None), worker.Later)  # type: ignore[arg-type]


def course(folder: Path) -> tuple[_Course, Any, list[int], list[str]]:
    """A sweep of one run of 100 images, 40 of which were shown earlier; what it ticks, and what it tells."""
    asked, ticks, told = Sweep((0.1,)), list[int](), list[str]()
    run = Run("key", "run", {}, {}, 100, tuple(asked.cells))
    found = _Course(asked, Table(folder / "results.jsonl", asked.cells), told.append, ticks.append, runs=3)
    found.shown["key"] = 40
    return found, run, ticks, told


def test_progress_counts_what_is_trained_now_and_nothing_else(tmp_path: Path, capsys: Any, monkeypatch: Any):
    found, run, ticks, _ = course(tmp_path)
    assert found.to_show(run) == 60
    found.images(run, 10)
    found.end(run, Failed("no", None))
    assert ticks == [10, -50]
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress._plain_lines("sweep", 160, "img") as tick:
        for number in (*ticks, 5):
            tick(number)
    assert [line.partition(" img")[0] for line in capsys.readouterr().err.splitlines()] == [
        "sweep: 10 of 160",
        "sweep: 10 of 110",
        "sweep: 15 of 110",
    ]


def test_the_same_reason_is_told_in_full_once(tmp_path: Path):
    found, run, _, told = course(tmp_path)
    for path in ("a/student.pt", "b/student.pt"):
        found.end(run, Failed(f"{path}: could not be written (No space left on device)", None))
    found.end(run, Failed("c/student.pt: damaged", None))
    assert [line.partition("failed: ")[2] for line in told] == [
        "a/student.pt: could not be written (No space left on device)",
        "b/student.pt: as above",
        "c/student.pt: damaged",
    ]
    assert "No space left" in found.table.lines[0]["error"] or "damaged" in found.table.lines[0]["error"]


class Standing:
    """In a worker's place: a process that ends when it is told to, and what was done to it, in `said`."""

    def __init__(self, how: Any) -> None:
        self.run: Any = None
        self.ready, self.dead, self.said, self.sent = True, False, list[str](), [Failed("no", None)]
        self.process = SimpleNamespace(sentinel=self, is_alive=lambda: not self.said, exitcode=0, join=lambda: None)
        for word in ("terminate", "kill"):
            setattr(self.process, word, partial(self.said.append, word))
        self.connection = self

    def give(self, run: Any) -> None:
        self.run = run

    def messages(self) -> Iterator[Any]:
        while self.sent:
            yield self.sent.pop()

    def dismiss(self) -> None: ...

    def close(self) -> None: ...


def test_workers_save_before_they_end_where_the_table_cannot_be_written(monkeypatch: pytest.MonkeyPatch):
    standing: list[Standing] = []
    monkeypatch.setattr(pool, "_Worker", lambda how: standing.append(Standing(how)) or standing[-1])
    monkeypatch.setattr(pool, "wait", lambda signs, timeout: signs)

    def full(run: Any, outcome: Any) -> None:
        raise FailureError("results.jsonl: could not be written")

    with pytest.raises(FailureError, match="could not be written"):
        pool.train_all([run_of({"run": "a"}, {}), run_of({"run": "b"}, {})], None, 2, lambda *_: None, full)  # type: ignore[arg-type]
    assert [one.said for one in standing] == [["terminate", "kill"]] * 2


def test_a_process_that_cannot_start_ends_the_sweep(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FailureError, match=r"could not start.*__main__"):
        pool._need_started(SimpleNamespace(dead=True, ready=False, process=SimpleNamespace(exitcode=1)))  # type: ignore[arg-type]
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(_inheriting=True))
    with pytest.raises(SystemExit, match="__main__"):
        pool.refuse_unguarded()


def test_what_a_worker_prints_goes_to_stderr():
    code = "import os, multiprocessing as m; from toolkit.pipeline.sweep.worker import serve\n"
    code += "ours, theirs = m.Pipe(); ours.send(None); serve(theirs, None); os.write(1, b'noise')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "noise")


# damage, and how it is mended -----------------------------------------------------------------------------------------


SMALL = (*DIGITS, "--frac", "0.1", "--iterations", "2", "--jobs", "1", "--name", "small")


@pytest.fixture(scope="module")
def small(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A workspace in which the sweep `small` made its cache and one run; and its result."""
    workspace = tmp_path_factory.mktemp("small")
    shutil.copytree(digits / "data", workspace / "data")
    return workspace, made("sweep", "-w", workspace, *SMALL)


def targets_in(workspace: Path) -> Path:
    return workspace / "subsets" / "digits-random-index-0.1-s0" / "targets" / "digits-resnet8.h5"


def test_what_is_missing_is_made_with_the_usual_views(small: tuple[Path, dict[str, Any]]):
    workspace, result = small
    assert (workspace / "teachers" / "digits-resnet8" / "cache.h5").is_file()
    assert result["results"][0]["settings"]["views"] == 2
    bundle = json.loads((workspace / "subsets" / "digits-random-index-0.1-s0" / "subset.json").read_text())
    assert bundle["index_only"]  # one copy of the images for all


def test_damage_in_one_subset_fails_its_cells_alone_and_mended_it_goes_on(small: tuple[Path, dict[str, Any]]):
    workspace, alone = small
    whole = targets_in(workspace).read_bytes()
    targets_in(workspace).write_bytes(whole[: len(whole) // 2])
    damaged = kdtool("sweep", "-w", workspace, *SMALL, "--seed", "0..1")
    assert damaged.exit_code == 1 and "1 of 2 cells failed" in damaged.stderr
    lines = lines_of(workspace, "small")
    assert [(line["status"], line["key"] is None) for line in lines] == [("failed", True), ("done", False)]
    assert str(targets_in(workspace)) in lines[0]["error"]
    targets_in(workspace).write_bytes(whole)
    mended = made("sweep", "-w", workspace, *SMALL, "--seed", "0..1")
    assert mended["failed"] == 0 and [line["status"] for line in lines_of(workspace, "small")] == ["done", "done"]
    assert mended["results"][0] == alone["results"][0] | {"seconds": 0.0}  # the run was there all the time


def test_a_study_may_grow_and_shrink_but_not_change_what_its_cells_share(small: tuple[Path, dict[str, Any]]):
    workspace, _ = small
    earlier = lines_of(workspace, "small")
    grown = kdtool("sweep", "-w", workspace, *SMALL, "--seed", "2", "--alpha", "0")
    assert grown.exit_code == 0 and f"stay in it: {len(earlier)}" in grown.stderr
    lines = lines_of(workspace, "small")
    assert lines[1:] == earlier and (lines[0]["cell"]["seed"], lines[0]["cell"]["alpha"]) == (2, 0)
    for more in ([], ["--dry-run"]):
        other = kdtool("sweep", "-w", workspace, *SMALL, "--iterations", "3", "--batch-size", "9", *more)
        refused(other, 2, "sweep.yaml", "iterations 2 → 3", "batch-size None → 9", "--name")
    assert lines_of(workspace, "small") == lines


def test_the_runs_folder_is_believed_and_not_the_table(small: tuple[Path, dict[str, Any]]):
    workspace, alone = small
    run = workspace / "runs" / alone["results"][0]["run"]
    shutil.rmtree(run)
    assert made("sweep", "-w", workspace, *SMALL, "--dry-run")["done"] == 0
    again = made("sweep", "-w", workspace, *SMALL)
    assert (run / "run.json").is_file()
    assert without_times(again["results"]) == without_times(alone["results"])


def test_a_run_whose_targets_have_changed_since_is_run_again(small: tuple[Path, dict[str, Any]]):
    workspace, before = small
    assert made("sweep", "-w", workspace, *SMALL, "--dry-run")["done"] == 1
    made("cache-teacher", "-w", workspace, "--dataset", "digits", "--encoding", "float32", "--force")
    plan = made("sweep", "-w", workspace, *SMALL, "--alpha", "0", "--alpha", "1", "--dry-run")
    assert plan["done"] == 0 and [one.partition(": ")[2] for one in plan["to_make"]] == [
        "the targets of digits-resnet8, to be cut again"
    ]
    after = made("sweep", "-w", workspace, *SMALL)
    ours, theirs = after["results"][0], before["results"][0]
    assert ours["key"] != theirs["key"] and ours["run"] == f"{theirs['run']}-{ours['key'][:8]}"
    assert (workspace / "runs" / theirs["run"] / "run.json").is_file()
    assert [line["key"] for line in lines_of(workspace, "small")][:1] == [ours["key"]]


# processes that die, and signals --------------------------------------------------------------------------------------

LONG = (*DIGITS, "--frac", "0.1", "--epochs", "3000", "--jobs", "2", "--name", "long")


@contextmanager
def started(workspace: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A sweep of long runs in a process of its own, once two of them train; and its workers."""
    process = start_kdtool("sweep", "-w", workspace, *LONG, *words)
    try:
        until(lambda: len(list(workspace.glob("runs/*/metrics.jsonl"))) == 2, process)
        yield process, workers_of(process.pid)
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], everyone: list[int]) -> tuple[str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    until(lambda: not any(map(lives, everyone)))
    return out, err


def test_a_worker_that_is_killed_fails_its_cell_alone_and_sigterm_ends_in_one_line(digits: Path, tmp_path: Path):
    with started(copy_of(digits, tmp_path), "--seed", "0..2") as (process, workers):
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGTERM)  # it alone: its run is put off
        until(lambda: len(list(tmp_path.glob("runs/*/metrics.jsonl"))) == 3, process)  # and the third begins
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: lines_of(tmp_path, "long"), process)
        failed = [line for line in lines_of(tmp_path, "long") if line["status"] == "failed"]
        assert len(failed) == 1 and "SIGKILL" in failed[0]["error"] and "lack of memory" in failed[0]["error"]
        until(lambda: len(workers_of(process.pid)) == 2, process)  # replaced
        everyone = [*workers, *children_of(process.pid)]
        process.send_signal(signal.SIGTERM)
        out, err = ended(process, everyone)
    assert process.returncode == 143 and out == ""
    told = [line for line in err.splitlines() if not line.startswith("sweep: ")]
    assert len(told) == 2 and "failed: its process was ended by SIGKILL" in told[0]
    assert told[1].startswith("kdtool: stopped: 1 of 3 runs")
    assert len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 3 and not list(tmp_path.glob("runs/*/run.json"))


def test_ctrl_c_reaches_all_processes_and_ends_in_one_line(digits: Path, tmp_path: Path):
    with started(copy_of(digits, tmp_path), "--seed", "0..1") as (process, workers):
        everyone = [*workers, *children_of(process.pid)]
        for pid in [process.pid, *workers]:  # as a terminal does
            os.kill(pid, signal.SIGINT)
        out, err = ended(process, everyone)
    assert process.returncode == 130 and out == ""
    told = [line for line in err.splitlines() if not line.startswith("sweep: ")]
    assert len(told) == 1 and told[0].startswith("kdtool: stopped: 0 of 2 runs")
    runs = [path.name for path in tmp_path.glob("runs/*")]
    assert len(runs) == 2 and all(images_before(Workspace(tmp_path).run(run)) > 0 for run in runs)
    shown = kdtool("runs", "-w", tmp_path)
    assert shown.exit_code == 0 and "epoch " in shown.stdout


def test_half_trained_students_go_on_from_their_checkpoints(digits: Path, tmp_path: Path):
    """What metrics.jsonl told of the epochs before, their seconds too, stands when more of them follow."""

    def told() -> dict[str, str]:
        return {path.parent.name: path.read_text() for path in tmp_path.glob("runs/*/metrics.jsonl")}

    with started(copy_of(digits, tmp_path), "--seed", "0..1") as (process, workers):
        until(lambda: all(text.count("\n") >= 3 for text in told().values()), process)
        everyone = [*workers, *children_of(process.pid)]
        process.send_signal(signal.SIGTERM)
        ended(process, everyone)
    before = told()
    with started(tmp_path, "--seed", "0..1") as (process, _):
        until(lambda: all(len(told()[name]) > len(text) for name, text in before.items()), process)
        after = told()
    assert len(before) == 2 and all(after[name].startswith(text) for name, text in before.items())


def test_a_killed_sweep_leaves_no_process_behind(digits: Path, tmp_path: Path):
    with started(copy_of(digits, tmp_path), "--seed", "0..1") as (process, workers):
        everyone = [*workers, *children_of(process.pid)]
        assert set(workers) < set(everyone)
        process.kill()
        ended(process, everyone)


@pytest.mark.long
def test_a_sweep_of_24_cells_killed_twice_and_resumed_equals_one_left_alone(digits: Path, tmp_path: Path):
    asked = [*DIGITS, "--frac", "0.1", "--frac", "0.2", "--alpha", "0", "--alpha", "0.5", "--alpha", "1"]
    asked += ["--loss", "kd", "--loss", "mse", "--seed", "0..1", "--epochs", "60", "--views", "4", "--jobs", "2"]
    alone, killed = copy_of(digits, tmp_path / "alone"), copy_of(digits, tmp_path / "killed")
    whole = made("sweep", "-w", alone, *asked, "--name", "s")
    assert whole["cells"] == 24 and whole["runs"] == 20
    rng = np.random.default_rng(0)
    for part in (0.3, 0.7):
        process = start_kdtool("sweep", "-w", killed, *asked, "--name", "s")
        wanted = round(part * whole["runs"])
        until(lambda: len(list(killed.glob("runs/*/run.json"))) >= wanted, process)  # noqa: B023
        time.sleep(float(rng.uniform(0, 1)))
        everyone = children_of(process.pid)
        process.kill()
        ended(process, everyone)
    resumed = made("sweep", "-w", killed, *asked, "--name", "s")
    assert without_times(resumed["results"]) == without_times(whole["results"])
    for line in whole["results"]:
        places = (where / "runs" / line["run"] / "student.pt" for where in (killed, alone))
        ours, theirs = (load_checkpoint(place).weights for place in places)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_axis_and_setting_is_an_option():
    options = {parameter.name for parameter in cli.commands["sweep"].params}
    assert {*AXES, *asdict(Sweep((0.1,)))} <= options


def test_the_example_is_a_sweep():
    asked, name = read_sweep(Path(__file__).parents[1] / "examples" / "sweep.yaml", {})
    assert name == "sweep" and len(asked.cells) == 36
    assert len({asked.essence(cell) for cell in asked.cells}) == 36
