"""What is handed on: a source archive with all that tests and wheel are made from, and a wheel that works alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import toolkit

ROOT = Path(__file__).parents[1]
OF_THE_REPOSITORY = {".gitignore", ".ci/run"}  # and of no use outside it
GENERATED = [  # what lies about where people work
    "kdtool-work/data/digits/train.beton",
    "benchmarks/kdtool-work/runs/one/student.pt",
    "toolkit/__pycache__/old.cpython-311.pyc",
    "tests/__pycache__/old.cpython-311.pyc",
    "tests/train.beton",
    "dist/kdtool-0.0.0.tar.gz",
    "build/lib/toolkit/old.py",
    "site/index.html",
    ".venv/bin/kdtool",
]
SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def run(*command: object, cwd: Path | None = None, **env: str) -> str:
    """Its stdout; Python finds kdtool where it is installed, or where `env` says."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, env={**inherited, **env})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    """Every file of the repository; of an unpacked sdist all there is."""
    if (ROOT / ".git").exists():
        return run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    return [
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built where people have worked, without a network."""
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in GENERATED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("made here")
    run(sys.executable, "-c", SDIST, dist, cwd=tree)
    (made,) = dist.iterdir()
    return made


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, and from nothing else."""
    dist = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", dist)
    run(sys.executable, "-m", "pip", "wheel", *options, sdist)
    (made,) = dist.iterdir()
    return made


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel in it, and the libraries of this one beside it."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # a line of a .pth file is a folder to look in after this one; the .pth files there are not read
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin"


def test_the_sdist_holds_what_is_tracked_and_nothing_made(unpacked: Path):
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {*tracked()} - OF_THE_REPOSITORY - held == set()
    assert held & {*GENERATED} == set()


@pytest.mark.long
def test_the_tests_are_found_in_the_sdist(unpacked: Path):
    asked = ("--collect-only", "-q", "-p", "no:cacheprovider", "tests")
    listed = run(sys.executable, "-m", "pytest", *asked, cwd=unpacked, PYTHONPATH=str(unpacked))
    assert f"tests/{Path(__file__).name}: " in listed


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    package = {name for name in tracked() if name.startswith("toolkit/")}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert {"toolkit/py.typed", "toolkit/pretrained/README.md", "toolkit/pretrained/digits-resnet8.pt"} <= package
    licences = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "LICENSES.md"}
    assert wheel.name == f"kdtool-{toolkit.__version__}-py3-none-any.whl"


def test_each_binary_file_of_the_wheel_is_named_with_its_licence(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (licences,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/LICENSES.md"))
        binary = {name for name in archive.namelist() if b"\0" in archive.read(name)}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in licences.splitlines() if line.startswith("| ")
    ]
    told = {row[0]: row[1:] for row in rows if row[0].startswith("toolkit/")}
    assert told.keys() == binary
    for what, trained_on, licence in told.values():
        assert what and trained_on and licence in ("MIT", "CC BY 4.0")


def test_the_metadata_say_what_it_is(metadata: Message):
    assert (metadata["Name"], metadata["Version"]) == ("kdtool", toolkit.__version__)
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert set(metadata.get_all("Provides-Extra")) == {"timm", "docs", "dev"}
    classifiers = metadata.get_all("Classifier")
    assert "Typing :: Typed" in classifiers and not any(one.startswith("License") for one in classifiers)
    assert metadata.get_all("Project-URL") is None and metadata["Home-page"] is None  # it has no place on the web


def test_the_version_is_the_changelogs_newest():
    released = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == toolkit.__version__
    assert released == sorted(released, key=lambda version: [*map(int, version.split("."))], reverse=True)


def test_the_installed_wheel_works_alone(installed: Path, tmp_path: Path):
    kdtool, where = installed / "kdtool", {"cwd": tmp_path, "OMP_NUM_THREADS": "1"}
    code = "import toolkit; print(toolkit.__file__)"
    assert Path(run(installed / "python", "-c", code, cwd=tmp_path).strip()).is_relative_to(installed.parent)
    assert run(kdtool, "--version", **where).split()[-1] == toolkit.__version__
    assert "cache-teacher" in run(kdtool, "--help", **where)
    run(kdtool, "cache-teacher", "--dataset", "digits", **where)  # by the teacher that comes with it
    run(kdtool, "build-subset", "--dataset", "digits", "--frac", "0.3", **where)
    assert "teacher forward passes" in run(kdtool, "distill", "--epochs", "2", **where)


USERS_CODE = """
from __future__ import annotations

from pathlib import Path

import torch

import toolkit


def student(folder: Path, epochs: int) -> float:
    toolkit.pack(folder, dataset="digits", progress=toolkit.on_stderr)
    subset = toolkit.build_subset(folder, dataset="digits", frac=0.3)
    try:
        run = toolkit.distill(folder, subset=subset["name"], alpha="auto", epochs=epochs)
    except toolkit.UsageError as error:
        raise SystemExit(str(error)) from error
    toolkit.views(folder, montage="views.png", row=[1, 2])
    network: torch.nn.Module = toolkit.load_network(run["path"])
    top1: float = toolkit.evaluate(run["path"], workspace=folder)["top1"]
    return top1
"""
MISTAKES = {
    "toolkit.distill(alpah=1.0)": 'Unexpected keyword argument "alpah"',
    'toolkit.build_subset(frac="a tenth")': 'Argument "frac" to "build_subset" has incompatible type "str"',
    "toolkit.distil()": 'Module has no attribute "distil"',
}


@pytest.mark.long
def test_a_users_code_is_checked_against_the_installed_wheel(installed: Path, tmp_path: Path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(USERS_CODE)
    bad.write_text("import toolkit\n\n" + "\n".join(MISTAKES) + "\n")
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", installed / "python")
    assert run(*mypy, good, cwd=tmp_path).startswith("Success")
    said = subprocess.run([*map(str, mypy), str(bad)], capture_output=True, text=True, cwd=tmp_path).stdout.splitlines()
    for line, (code, mistake) in enumerate(MISTAKES.items(), start=3):
        assert any(one.startswith(f"bad.py:{line}: error: {mistake}") for one in said), code
