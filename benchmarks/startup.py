"""How long a user waits before anything happens: `kdtool --help`, and the first step of a resident `distill`.

    python -m benchmarks.startup [--save]     # about 2 minutes; --save writes results/startup-<date>.json

Both are real commands, timed from their start: `--help` to its end, `distill` of half of Fashion-MNIST to the line that
it prints after its first step (--iterations 1). Two cores; files are in the page cache after a run that is not kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

from benchmarks.machine import KDTOOL, facts, in_words, save, scratch
from benchmarks.training import taught_bundle
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.runtime import compute_on

HELPS, DISTILLS = 20, 7


def seconds_to(words: list[str], sign: str | None) -> float:
    """Until the command prints a line that begins with `sign`, or until its end. Ends the program where it fails."""
    start_s = time.perf_counter()
    with subprocess.Popen([KDTOOL, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as command:
        assert command.stdout is not None
        seen = (time.perf_counter() - start_s for line in command.stdout if sign and line.startswith(sign))
        seen_s = next(seen, None)
        command.stdout.read()
    if command.returncode or (sign and seen_s is None):
        sys.exit(f"kdtool {' '.join(words)}: ended with {command.returncode}")
    return time.perf_counter() - start_s if seen_s is None else seen_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/startup-<date>.json")
    asked, machine = parser.parse_args(), facts()
    print(in_words(machine), flush=True)
    with scratch() as folder:
        bundle = taught_bundle(Workspace(folder), "fashion-mnist", 0.5, compute_on())
        here = ["--workspace", str(folder), "--subset", bundle.record.name]
        one_step = ["distill", *here, "--iterations", "1", "--force"]
        found = {
            "--help": [seconds_to(["--help"], None) for _ in range(1 + HELPS)][1:],
            "first step of distill": [seconds_to(one_step, "epoch 1:") for _ in range(1 + DISTILLS)][1:],
        }
    for name, seconds in found.items():
        print(f"{name}: {median(seconds):.2f} s ({min(seconds):.2f} – {max(seconds):.2f}, {len(seconds)} times)")
    if asked.save:
        print(save("startup", {"machine": machine, "seconds": found}))


if __name__ == "__main__":
    main()
