"""make demo: the three commands on real data, and the same student without the teacher, in a few minutes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.machine import KDTOOL
from toolkit.report.tables import table

FRACTION, EPOCHS = 0.1, 30


def kdtool(*words: str) -> dict[str, Any]:
    """Runs the command as a user would and shows it; returns its result. Ends the demo where the command fails."""
    print(f"\n$ kdtool {' '.join(words)}", flush=True)
    start_s = time.perf_counter()
    done = subprocess.run([KDTOOL, *words, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    result = json.loads(done.stdout.splitlines()[-1])
    result["wall_s"] = time.perf_counter() - start_s
    print(f"  {result['path']}  ({result['wall_s']:.0f} s)", flush=True)
    return result


def main() -> None:
    cache = kdtool("cache-teacher")
    subset = kdtool("build-subset", "--frac", str(FRACTION))
    # named, so that a subset built since an earlier demo is not taken for the newest
    training = ("distill", "--subset", subset["name"], "--epochs", str(EPOCHS))
    taught, alone = kdtool(*training), kdtool(*training, "--alpha", "0")
    rows = [
        ["teacher (ResNet-20, all the data)", "60,000", "", f"{cache['teacher_top1']:.2f} %"],
        *(
            [f"student (ResNet-8), {name}", f"{subset['rows']:,}", f"{run['alpha']:g}", f"{run['top1']:.2f} %"]
            for name, run in (("labels only", alone), ("targets from the cache", taught))
        ),
    ]
    print()
    print(table(["Fashion-MNIST", "images", "alpha", "test accuracy"], rows))
    print(
        f"\nKD from the cache: {taught['top1'] - alone['top1']:+.2f} points (one seed), "
        f"{taught['teacher_forward_passes']} teacher forward passes while the student trained; the cache took "
        f"{cache['wall_s']:.0f} s once, and serves every fraction, alpha, temperature and student from here on.\n"
        "All of it lies in kdtool-work (kdtool ls). Next: docs/tutorial.md"
    )


if __name__ == "__main__":
    main()
