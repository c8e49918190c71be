"""Keeps a sweep's table as a result file: without the workspace's paths, and with the machine it ran on.

    kdtool sweep benchmarks/studies/losses.yaml
    python -m benchmarks.keep_study kdtool-work losses

Run it on the machine and the commit of the sweep.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, facts


def kept(line: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """A finished cell's line of results.jsonl as it is kept."""
    result = {name: value for name, value in line["result"].items() if name != "path"}
    return {
        **{name: line[name] for name in ("cell", "key", "settings", "seconds")},
        "result": result,
        "machine": machine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("sweep", help="its name")
    asked = parser.parse_args()
    lines = (asked.workspace / "sweeps" / asked.sweep / "results.jsonl").read_text().splitlines()
    machine = facts()
    done = [line for line in map(json.loads, lines) if line["status"] == "done"]
    path = RESULTS / f"{asked.sweep}.jsonl"
    path.write_text("".join(json.dumps(kept(line, machine)) + "\n" for line in done))
    print(path)


if __name__ == "__main__":
    main()
