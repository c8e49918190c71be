"""kdtool doctor: whether this machine and this workspace are fit for work, and what mends what is not."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.device import available_cpus, cpu_bfloat16, free_memory_bytes, others_load, resolve_precision
from toolkit.core.errors import FailureError
from toolkit.core.sizes import in_words
from toolkit.core.versions import __version__
from toolkit.formats.workspace import Workspace

OK, NOTE, PROBLEM = "ok", "note", "problem"
BUSY = 1.5  # programs for each CPU
LITTLE_DISK, LITTLE_MEMORY = 2 << 30, 2 << 30  # bytes
_SETUP = "Run: make setup, in a checkout of kdtool"
_LIBRARIES = ("torch", "torchvision", "ffcv", "h5py", "numpy")
_AGAIN = f"Run: {sys.executable} -m pip install --upgrade --force-reinstall torch torchvision"


@dataclass(frozen=True)
class Check:
    """`found` in a line; `mend`: what to run or do about a problem, or a note."""

    name: str
    state: str
    found: str
    mend: str | None = None


def doctor(workspace: Workspace | Place = defaults.WORKSPACE, *, data_dir: Place | None = None) -> dict[str, Any]:
    """Every check, in order, and how many are `problems`. Imports torch, torchvision and FFCV; writes nothing. Raises
    nothing for a machine that is not fit: it says so."""
    workspace, data_dir = Workspace.at(workspace), as_path(data_dir)
    checks: list[Check] = []
    for look in _LOOKS:
        try:
            checks += look(workspace, data_dir)
        except ImportError as error:  # of a library that has a line of its own above
            what = look.__name__.strip("_").replace("_", " ")
            checks.append(Check(what, PROBLEM, f"not looked at: {error}", "Mend the libraries above, then look again"))
    problems = sum(check.state == PROBLEM for check in checks)
    return {"problems": problems, "checks": [asdict(check) for check in checks]}


def _python(workspace: Workspace, data_dir: Path | None) -> Iterator[Check]:
    yield Check("kdtool", OK, f"{__version__}, Python {platform.python_version()} ({sys.executable})")
    for name in _LIBRARIES:
        try:
            yield Check(name, OK, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, PROBLEM, "not installed", _install(name))


def _install(name: str) -> str:
    return _SETUP if name == "ffcv" else f"Run: {sys.executable} -m pip install {name}"


def _torch(workspace: Workspace, data_dir: Path | None) -> Iterator[Check]:
    """Builds of torch and torchvision that do not fit each other fail when torchvision is imported."""
    error = _import_error("torch")
    if error is not None:
        yield Check("import torch", PROBLEM, error, _AGAIN)
        return
    error = _import_error("torchvision")
    if error is None:
        yield Check("torch and torchvision", OK, "fit each other")
    elif "torchvision::nms" in error:
        yield Check("torch and torchvision", PROBLEM, f"builds of two releases or kinds ({error})", _AGAIN)
    else:
        yield Check("import torchvision", PROBLEM, error, _AGAIN)


def _ffcv(workspace: Workspace, data_dir: Path | None) -> Iterator[Check]:
    error = _import_error("toolkit.formats.ffcv_loader")
    if error is None:
        yield Check("FFCV", OK, "imports")
        return
    mend = next((f"Run: {mend}" for sign, mend in _MENDS.items() if sign in error), _SETUP)
    if "distutils" in error:
        mend = f"Run: {sys.executable} -m pip install setuptools"
    yield Check("FFCV", PROBLEM, error, mend)


# opencv-python loads two libraries of the system, to draw windows; the one without windows does not
_HEADLESS = f"{sys.executable} -m pip install --force-reinstall --no-deps opencv-python-headless"
_MENDS = {
    "libGL.so.1": f"apt-get install libgl1; without root: {_HEADLESS}",
    "libgthread-2.0.so.0": f"apt-get install libglib2.0-0; without root: {_HEADLESS}",
    "libturbojpeg": "apt-get install libturbojpeg0",
}


def _import_error(module: str) -> str | None:
    """In a line; whatever an extension module raises while it loads is what is asked for here."""
    try:
        import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return None


def _devices(workspace: Workspace, data_dir: Path | None) -> Iterator[Check]:
    if "torch" not in sys.modules:
        return
    import torch

    cpu = torch.device("cpu")
    kind = cpu_bfloat16() or "no bfloat16 instructions"
    yield Check("CPU", OK, f"{available_cpus()} CPUs, {kind}: computes in {resolve_precision('auto', cpu)}")
    load = others_load()
    if load > BUSY:
        said = f"busy: {load:.1f} programs for each CPU over the last minute"
        yield Check("load", NOTE, said, "Use --threads 1: threads that wait for each other are slower than one")
    memory = free_memory_bytes()
    little = memory < LITTLE_MEMORY
    yield Check(
        "memory",
        NOTE if little else OK,
        f"{in_words(memory)} free",
        "Use --source stream and a smaller --batch-size" if little else None,
    )
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield Check("GPU", NOTE, f"none that torch finds (built {f'for CUDA {built}' if built else 'without CUDA'})")
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        about = torch.cuda.get_device_properties(device)
        precision = resolve_precision("auto", device)
        yield Check(f"GPU {index}", OK, f"{about.name}, {in_words(about.total_memory)}: computes in {precision}")


def _data_sets(workspace: Workspace, data_dir: Path | None) -> Iterator[Check]:
    from toolkit.data.sources import SOURCES, lies_in

    absent = []
    for name in SOURCES:
        place = lies_in(name, data_dir)
        if (workspace.data(name) / "data.json").is_file():
            yield Check(name, OK, f"packed in {workspace.data(name)}")
        elif place is not None:
            yield Check(name, OK, f"in {place}")
        else:
            absent.append(name)
    for record in sorted(workspace.root.glob("data/*/data.json")):  # folders of images, and one's own
        if record.parent.name not in SOURCES and not record.parent.name.startswith("."):
            yield Check(record.parent.name, OK, f"packed in {record.parent}")
    if absent:
        mend = "Run: kdtool pack --dataset NAME, which downloads it, or says where its files may lie"
        yield Check("data sets", NOTE, f"not here: {', '.join(absent)}", mend)


def _disk(workspace: Workspace, data_dir: Path | None) -> Iterator[Check]:
    folder = next(path for path in (workspace.root.absolute(), *workspace.root.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    little = free < LITTLE_DISK
    yield Check(
        "disk",
        NOTE if little else OK,
        f"{in_words(free)} free at {folder}",
        "Free some, or use another --workspace" if little else None,
    )


def _workspace(workspace: Workspace, data_dir: Path | None) -> Iterator[Check]:
    from toolkit.pipeline.listing import artifacts

    try:
        found = artifacts(workspace)
    except FailureError:
        yield Check("workspace", NOTE, f"{workspace.root}: none yet", "Run: kdtool cache-teacher")
        return
    stale = [one for one in found if one.stale]
    count = f"{len(found):,} artifact" + ("" if len(found) == 1 else "s")
    yield Check("workspace", OK, f"{workspace.root}: {count}, {len(stale)} stale")
    mend = "Run: kdtool ls, which lists all; with --force the command that made it makes it again"
    for one in stale[:3]:
        yield Check(f"{one.kind} {one.name}", PROBLEM, one.stale or "", mend)


_Look = Callable[[Workspace, Path | None], Iterator[Check]]
_LOOKS: tuple[_Look, ...] = (_python, _torch, _ffcv, _devices, _data_sets, _disk, _workspace)
