"""The wheel of ffcv that `make ffcv-wheel` leaves installs where there is no OpenCV, and reads what kdtool wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADED = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])
import json
print(json.dumps(sorted({line.split()[-1] for line in open("/proc/self/maps") if "opencv" in line or "jpeg" in line})))
"""

IMPORTED = """
import json
import cv2, ffcv.fields.rgb_image
maps = open("/proc/self/maps").read().splitlines()
windows = sorted({line.split()[-1] for line in maps if any(name in line for name in ("libGL", "libgthread", "libX11"))})
print(json.dumps({"ffcv": ffcv.__file__, "cv2": cv2.__file__, "windows": windows}))
"""


def run(*command: object, **env: str) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist = tmp_path_factory.mktemp("wheel") / "dist"
    run(ROOT / "scripts" / "ffcv_wheel.sh", dist, PYTHON=sys.executable)
    (made,) = dist.iterdir()
    return made


def bare_python(wheel: Path, folder: Path) -> Path:
    """That of an environment which holds the wheel alone."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return python


@pytest.mark.long
def test_the_wheel_brings_its_libraries(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for library in ("opencv_core", "opencv_imgproc", "turbojpeg"):
        assert any(f"ffcv.libs/lib{library}" in name for name in names), library
    assert "manylinux" in wheel.name


@pytest.mark.long
def test_it_installs_into_a_bare_environment_and_loads_nothing_of_the_system(wheel: Path, tmp_path: Path):
    python = bare_python(wheel, tmp_path / "bare")
    (library,) = (tmp_path / "bare").rglob("_libffcv*.so")
    loaded = run(python, "-c", LOADED, library)
    assert "opencv_imgproc" in loaded
    assert all("ffcv.libs" in path for path in json.loads(loaded)), loaded


@pytest.mark.long
def test_with_what_it_asks_for_it_imports_without_a_library_of_windows(wheel: Path, tmp_path: Path):
    """The rest of what it asks for, torch and Numba, is this environment's: only OpenCV's own wheel differs."""
    python = bare_python(wheel, tmp_path / "bare")
    (about,) = (tmp_path / "bare").rglob("ffcv-*/METADATA")
    asked = [line.split()[1] for line in about.read_text().splitlines() if line.startswith("Requires-Dist: opencv")]
    assert asked == ["opencv-python-headless"]
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", *asked)
    (about.parents[1] / "others.pth").write_text(sysconfig.get_path("purelib"))  # after its own
    loaded = json.loads(run(python, "-c", IMPORTED))
    assert loaded["ffcv"] and all(str(tmp_path / "bare") in path for path in (loaded["ffcv"], loaded["cv2"]))
    assert all("ffcv.libs" in path for path in loaded["windows"]), loaded  # what stands there for libGLX, in Debian's


@pytest.mark.long
def test_students_are_trained_through_it(wheel: Path, digits: Path, tmp_path: Path):
    work = shutil.copytree(digits, tmp_path / "work")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path / "new",
        wheel,
    )
    words = ("distill", "-w", work, "--subset", "third", "--source", "stream", "--iterations", 2, "--name", "by-wheel")
    code = "import ffcv, sys; print(ffcv.__file__, file=sys.stderr); from toolkit.cli import main; main()"
    path = os.pathsep.join([str(tmp_path / "new"), sysconfig.get_path("purelib"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "new") in done.stderr.splitlines()[0]
