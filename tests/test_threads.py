"""How many threads and how much memory a command takes: a container's share, unless the user says otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toolkit.core.device
import toolkit.pipeline.runtime
from tests.conftest import made
from toolkit.core.device import available_cpus, free_memory_bytes
from toolkit.core.processes import Processes
from toolkit.pipeline.runtime import compute_on

ROOT = Path(__file__).parent.parent
PATIENCE_S = 240
CPUS = 64


@pytest.fixture()
def large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(CPUS)), raising=False)


def placed(root: Path, files: dict[str, str]) -> Path:
    """A folder laid out as control groups are mounted."""
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "cgroup"


def quota_1(folder: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, CPUS),
        ({"cpu.max": "max 100000\n"}, CPUS),
        (quota_1("cpu", "300000\n"), 3),
        (quota_1("cpu,cpuacct", "75000\n", "50000\n"), 2),
        (quota_1("cpu", "-1\n"), CPUS),
        ({}, CPUS),
        ({"cpu.max": ""}, CPUS),
        ({"cpu.max": "two cores\n"}, CPUS),
        ({"cpu.max": "0 0\n"}, CPUS),
        ({"cpu.max": "200000\n"}, CPUS),
        ({"cpu.max": "-5 100000\n"}, CPUS),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, CPUS),
        ({"cpu.max/a-folder": "where a file was expected"}, CPUS),
    ],
)
def test_a_quota_is_rounded_up_and_what_says_nothing_is_none(
    files: dict[str, str], expected: int, tmp_path: Path, large_host: None
):
    assert available_cpus(placed(tmp_path, files), tmp_path / "none") == expected


def test_bytes_that_are_no_text_are_no_quota(tmp_path: Path, large_host: None):
    root = placed(tmp_path, {"cpu.max": ""})
    (root / "cpu.max").write_bytes(b"\xff\xfe200000 100000")
    assert available_cpus(root, tmp_path / "none") == CPUS


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a.slice/b.service\n", {"a.slice/b.service/cpu.max": "400000 100000"}, 4),
        ("0::/a.slice/b.service\n", {"a.slice/b.service/cpu.max": "max 100000", "a.slice/cpu.max": "600000 100000"}, 6),
        ("0::/a.slice\n", {"a.slice/cpu.max": "400000 100000", "cpu.max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/job\n3:memory:/other\n0::/\n", quota_1("cpu,cpuacct/job", "500000"), 5),
        ("4:cpu:/seen/by/the/host\n0::/\n", quota_1("cpu", "200000"), 2),
        ("3:cpuset:/job\n0::/\n", quota_1("cpu/job", "200000"), CPUS),
        ("nonsense\n::\n", {"cpu.max": "700000 100000"}, 7),
    ],
)
def test_the_tightest_group_at_or_above_the_process_counts(
    own: str, files: dict[str, str], expected: int, tmp_path: Path, large_host: None
):
    (tmp_path / "own").write_text(own)
    assert available_cpus(placed(tmp_path, files), tmp_path / "own") == expected


def test_the_affinity_mask_counts_where_it_is_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert available_cpus(placed(tmp_path, {"cpu.max": "400000 100000"}), tmp_path / "none") == 2


def test_this_machine_has_a_cpu():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("variable", "asked", "cpus", "expected"),
    [
        (None, None, 2, 2),
        (None, None, 99, 8),
        ("8", None, 2, 8),
        (None, 5, 2, 5),
        ("8", 5, 2, 5),
    ],
)
def test_a_quota_sets_torchs_threads_unless_the_user_does(
    variable: str | None, asked: int | None, cpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
):
    now = [8]  # of torch, by its own choice or by the variable
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: now.__setitem__(0, threads))
    monkeypatch.setattr(toolkit.pipeline.runtime, "available_cpus", lambda: cpus)
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert compute_on("cpu", "float32", asked).threads == expected


def test_processes_of_one_machine_share_its_cpus(tmp_path: Path):
    """Started by a real torchrun, which says OMP_NUM_THREADS=1 where nobody says anything."""
    packed = made("pack", "-w", tmp_path, "--dataset", "digits", "--limit", 20)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended = subprocess.run(
        [*torchrun, "-m", "tests.threads_told", str(packed["path"])],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stderr
    told = sorted(map(json.loads, ended.stdout.splitlines()), key=lambda one: one["rank"])
    shared = {"workers": 4, "by torchrun": 4, "by nobody": 4, "by the user": 3}
    assert told == [{"rank": 0, **shared}, {"rank": 1, **shared}]


@pytest.mark.parametrize(("processes", "expected"), [(1, 2), (2, 1), (3, 1), (8, 1)])
def test_each_process_has_a_thread_however_few_the_cpus(processes: int, expected: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(toolkit.pipeline.runtime, "available_cpus", lambda: 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        beside = Processes(0, processes, 0, processes)
        assert compute_on("cpu", "float32", None, beside).threads == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "", 8 << 30),
        ({"memory.max": "max\n"}, "", 8 << 30),
        ({"memory.max": f"{2 << 30}\n"}, "", 2 << 30),
        ({"memory.max": f"{99 << 30}\n"}, "", 8 << 30),
        ({"memory/memory.limit_in_bytes": f"{3 << 30}\n"}, "", 3 << 30),
        ({"a/b/memory.max": "max\n", "a/memory.max": f"{1 << 30}\n"}, "0::/a/b\n", 1 << 30),
        ({"memory/job/memory.limit_in_bytes": f"{5 << 30}\n"}, "4:cpu:/x\n3:memory:/job\n", 5 << 30),
        ({"memory.max": "plenty\n"}, "", 8 << 30),
        ({"memory.max": f"{4 << 30}\n", "memory.current": f"{1 << 30}\n"}, "", 3 << 30),
        (
            {
                "memory.max": f"{4 << 30}",
                "memory.current": f"{3 << 30}",
                "memory.stat": f"anon 7\ninactive_file {1 << 30}\n",
            },
            "",
            2 << 30,
        ),
        ({"memory.max": "1000", "memory.current": "5000"}, "", 0),
    ],
)
def test_free_memory_is_no_more_than_a_containers_limit(files: dict[str, str], own: str, expected: int, tmp_path: Path):
    (tmp_path / "meminfo").write_text("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")
    (tmp_path / "own").write_text(own)
    assert free_memory_bytes(tmp_path / "meminfo", placed(tmp_path, files), tmp_path / "own") == expected


def test_a_system_that_does_not_tell_is_taken_for_a_small_one(tmp_path: Path):
    assert free_memory_bytes(tmp_path / "none", tmp_path, tmp_path / "none") == 4 << 30
