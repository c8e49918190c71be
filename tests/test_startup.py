"""Starting up: what each command imports, by name and in an interpreter of its own. What is not imported costs nothing.

Times are for the benchmarks: a busy machine would fail them here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import toolkit
from toolkit.cli import cli

HEAVY = {"torch", "numpy", "h5py", "ffcv", "numba", "torchvision", "sklearn", "scipy", "PIL", "tqdm", "matplotlib"}
# Torch's compiler, over a second: torch's optimizers import it too, so training can't do without.
COMPILER = {"torch._dynamo", "torch._inductor"}
# torch itself imports tqdm
UNUSED = HEAVY - {"torch", "numpy", "h5py", "tqdm"}
_LISTING = "\nimport atexit, sys\natexit.register(lambda: print('\\n' + ' '.join(sys.modules)))\n"


def modules_after(code: str, *words: object) -> set[str]:
    """The modules a fresh interpreter holds at its exit, after running `code` with these words as its arguments."""
    command = [sys.executable, "-c", _LISTING + code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def modules_of(*words: object) -> set[str]:
    """The modules that a kdtool command leaves behind."""
    return modules_after("from toolkit.cli import main; main()", *words)


@pytest.fixture(scope="module")
def copied(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits workspace, to write in, with a student in it, and logits made elsewhere in data/logits.npy."""
    work = Path(shutil.copytree(digits, tmp_path_factory.mktemp("startup") / "work"))
    rows = len(toolkit.row_labels(work / "data" / "digits"))
    np.save(work / "data" / "logits.npy", np.arange(10 * rows, dtype=np.float32).reshape(rows, 10))
    return work


@pytest.fixture(scope="module")
def distilled(copied: Path) -> set[str]:
    """The modules of a one-step resident run, whose student is left in runs/one."""
    return modules_of(
        "distill", "-w", copied, "--subset", "third", "--iterations", 1, "--name", "one", "--source", "resident"
    )


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], [], *([name, "--help"] for name in cli.commands)], ids=str
)
def test_asking_what_kdtool_is_imports_nothing_heavy(words: list[str]):
    loaded = modules_of(*words)
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_help_reads_no_other_packages_versions():
    assert not modules_of("--help") & {"importlib.metadata", "email", "toolkit.pipeline"}


def test_importing_the_package_imports_nothing_heavy():
    assert not modules_after("import toolkit") & {*HEAVY, "click"}


def test_resident_distill_imports_nothing_that_it_does_not_use(distilled: set[str]):
    assert {"torch", "h5py", "toolkit.training.resident"} <= distilled
    assert distilled & UNUSED == set()
    assert not distilled & {"toolkit.formats.ffcv_loader", "toolkit.formats.beton_writer", "toolkit.report.montage"}


def test_distill_leaves_torchs_compiler_to_torch():
    """Its modules import none of it: what does is the optimizer, once there is one."""
    assert not modules_after("import toolkit.pipeline.student") & {*COMPILER, *UNUSED}


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (["build-subset", "--dataset", "digits", "--frac", "0.2"], {"torch", *UNUSED}),
        (["build-subset", "--dataset", "digits", "--frac", "0.2", "--method", "hardest"], {"torch", *UNUSED}),
        (["pack", "--dataset", "digits"], {"torch", *UNUSED}),
        (["cache-teacher", "--dataset", "digits", "--force"], {*COMPILER, *UNUSED}),
        (
            ["import-logits", "--dataset", "digits", "--name", "ours", "--logits", "data/logits.npy"],
            {"torch", *UNUSED},
        ),
        (["verify-cache", "--dataset", "digits", "--samples", "16"], {*COMPILER, *UNUSED}),
        (["ls"], {"torch", *UNUSED}),
        (["inspect", "data/digits"], {"torch", *UNUSED}),
        (["inspect", "subsets/third"], {"torch", *UNUSED}),
        (["inspect", "teachers/digits-resnet8/cache.h5"], {"torch", *UNUSED}),
        (["inspect", "runs/one"], {*COMPILER, *UNUSED}),
        (["evaluate", "runs/one"], {*COMPILER, *UNUSED}),
        (["export", "runs/one", "--out", "data/weights.pt"], {*COMPILER, *UNUSED}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_nothing_that_it_does_not_use(
    words: list[str], unused: set[str], copied: Path, distilled: set[str]
):
    command, *rest = words
    places = [copied / word if "/" in word else word for word in rest]
    loaded = modules_of(command, "-w", copied, *places)
    assert "numpy" in loaded
    assert loaded & unused == set()


def test_a_librarys_teacher_by_its_whole_name_is_known_without_the_library():
    asked = "torchvision:resnet50@IMAGENET1K_V2", "timm:resnet50.a1_in1k"
    code = f"from toolkit.pipeline.known_teachers import name_of; print([name_of(one) for one in {asked}])"
    assert not modules_after(code) & {"torch", "timm", *UNUSED}


def test_runs_reads_records_alone(copied: Path, distilled: set[str]):
    assert not modules_of("runs", "-w", copied) & {*HEAVY, "yaml"}
