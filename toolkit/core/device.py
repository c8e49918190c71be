"""Which device, at which precision and on how many CPUs: chosen once, recorded in every artifact."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.core.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "bfloat16", "float64")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU. Raises UsageError for a device this machine has not."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: not a device. Use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch finds no GPU here. Use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: torch finds {torch.cuda.device_count()} GPUs here. Use cuda:0 to "
            f"cuda:{torch.cuda.device_count() - 1}"
        )
    return device


def cpu_bfloat16() -> str | None:
    """What multiplies bfloat16 on this CPU, or None. Torch has no public way to ask, and not every version this one."""
    import torch

    kinds = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
    return next((kind for kind, name in kinds.items() if getattr(torch.cpu, name, bool)()), None)


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the hardware multiplies it (AMX, AVX512-BF16, Ampere and later), else float32."""
    import torch

    if name not in PRECISIONS:
        raise unknown_name("precision", name, list(PRECISIONS))
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = cpu_bfloat16() is not None
    return "bfloat16" if fast else "float32"


def parameter_dtype(precision: str) -> torch.dtype:
    """Parameters are float32 under bfloat16 autocast too; float64 is for proofs of exactness."""
    import torch

    return torch.float64 if precision == "float64" else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context a forward pass runs in."""
    import torch

    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def available_cpus(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """How many CPUs this process can keep busy: those it may run on, or fewer where a container's quota gives it less.

    Torch counts the first alone: in a small container on a large host it would start a thread a core, and the kernel
    stop them all for most of each period. Part of a CPU counts as one. `cgroups` is where control groups of version 1
    or 2 are mounted, and `own` the list of this process's own.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *(math.ceil(quota) for quota in _quotas(cgroups, own))])


def others_load() -> float:
    """How many programs had a CPU or waited for one, for each CPU, over the last minute: past 1 the threads of one
    program wait for each other's turn."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def free_memory_bytes(meminfo: Path = MEMINFO, cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Memory that this process may still take: of the system, or of its container where that has less. What would be
    given back, as files that are only kept in memory, is free. Where the system does not tell, 4 GiB.
    """
    available = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(meminfo), re.MULTILINE)
    free_bytes = int(available[1]) * 1024 if available else 1 << 32
    return max(0, min([free_bytes, *_left_of_limits(cgroups, own)]))


def _left_of_limits(cgroups: Path, own: Path) -> Iterator[int]:
    """The bytes each control group with a limit may still take."""
    files = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}  # of version 2 and 1
    for folder in _own_folders(cgroups, own, "memory"):
        for limit, used in ((_text(folder / name).strip(), _text(folder / files[name]).strip()) for name in files):
            if limit.isdecimal():  # no limit is `max`
                kept = re.search(r"^inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                taken = int(used) if used.isdecimal() else 0
                yield int(limit) - max(0, taken - (int(kept[1]) if kept else 0))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """The CPUs each control group may use that has a quota: of this process's own, and all above it."""
    for folder in _own_folders(cgroups, own, "cpu"):
        files = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")  # version 2 has the first alone, 1 the others
        words = " ".join(_text(folder / name) for name in files).split()
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):  # no quota is `max` or -1
            yield int(words[0]) / int(words[1])


def _own_folders(cgroups: Path, own: Path, controller: str) -> Iterator[Path]:
    """Where limits may stand. A container often mounts its own group as the root, and then lists the host's path."""
    listed = [line.split(":", 2) for line in _text(own).splitlines() if line.count(":") >= 2]
    paths = {"", *(path for number, names, path in listed if number == "0" or controller in names.split(","))}
    for mount in (cgroups, cgroups / controller, cgroups / f"{controller},{controller}acct"):
        for path in paths:
            folder = mount / path.strip("/")
            yield from (above for above in (folder, *folder.parents) if above.is_relative_to(mount))


def _text(path: Path) -> str:
    """Empty where there is no such file, or none that can be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
