"""Selection and scores at ImageNet's size: 1,281,167 × 2,048 float16 features, 1,000 classes, within 8 GiB.

    python -m benchmarks.selection_scale [--save] [--rows N] [--only herding d2 …]     # hours; 5.3 GB of disk

Each runs in a process of its own, f = 0.1 and balanced, on features mapped from a file. The memory is the process's
peak: its own, Python's and torch's, and the pages of the file that it looked at, though the kernel may take those back.

The features are synthetic: a centre for each class, normal noise about it, nothing below zero. Classes lie mixed
through the file, which is harder to read than in turn. --save writes results/selection-scale-<date>.json.

Shapes: n rows, d features, c classes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.child import Measured, measured, work
from toolkit.core.files import need_space
from toolkit.core.hashing import rng_for
from toolkit.report.tables import table

ROWS, FEATURES, CLASSES = 1_281_167, 2_048, 1_000
FRACTION = 0.1
BOUND_BYTES = 8 * 2**30
BLOCK_ROWS = 8_192
MODULE = "benchmarks.selection_scale"
_SALT = 0x5CA1E


def write_features(folder: Path, rows: int, features: int = FEATURES, classes: int = CLASSES) -> None:
    """Block by block: features_nd.npy float16, labels_n.npy int64, scores_n.npy float32."""
    import torch

    need_space(folder / "features_nd.npy", rows * features * 2)
    rng, generator = rng_for(0, _SALT), torch.Generator().manual_seed(0)
    labels_n = rng.permutation(np.arange(rows) % classes)
    np.save(folder / "labels_n.npy", labels_n)
    np.save(folder / "scores_n.npy", rng.gamma(2.0, size=rows).astype(np.float32))
    centres_cd = torch.randn(classes, features, generator=generator)
    with (folder / "features_nd.npy").open("wb") as file:
        shape = {"descr": "<f2", "fortran_order": False, "shape": (rows, features)}
        np.lib.format.write_array_header_1_0(file, shape)
        for start in range(0, rows, BLOCK_ROWS):
            labels_b = torch.from_numpy(labels_n[start : start + BLOCK_ROWS])
            noise_bd = torch.randn(len(labels_b), features, generator=generator)
            file.write(noise_bd.add_(centres_cd[labels_b]).relu_().half().numpy().data)


def opened(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores, and the features, mapped."""
    labels_n, scores_n = (np.load(folder / f"{name}.npy") for name in ("labels_n", "scores_n"))
    return labels_n, scores_n, np.load(folder / "features_nd.npy", mmap_mode="r")


def _chosen(method: str, folder: Path) -> int:
    from toolkit.selection import choose
    from toolkit.selection.pool import How, Pool

    return len(choose(method, Pool(*opened(folder)), FRACTION, rng_for(0, _SALT, 1), How()).rows_m)


def _prototype(folder: Path) -> int:
    from toolkit.scores.from_features import prototype

    labels_n, _, features_nd = opened(folder)
    return len(prototype(features_nd, int(labels_n.max()) + 1, rng_for(0, _SALT, 2)))


def _centroid(folder: Path) -> int:
    from toolkit.scores.from_features import centroid

    labels_n, _, features_nd = opened(folder)
    return len(centroid(features_nd, labels_n))


def _knn_distance(folder: Path) -> int:
    from toolkit.scores.from_features import knn_distance

    labels_n, _, features_nd = opened(folder)
    return len(knn_distance(features_nd, labels_n))


METHODS = ("herding", "moderate", "stratified", "k-center", "d2")
WORKS: dict[str, Callable[[Path], int]] = {
    **{method: partial(_chosen, method) for method in METHODS},
    "prototype": _prototype,
    "centroid": _centroid,
    "knn_distance": _knn_distance,
}


def row(name: str, found: Measured) -> list[str]:
    kind = "selection" if name in METHODS else "score"
    peak = f"{found.peak_bytes / 2**30:.2f} GiB"
    if found.error is not None:
        return [name, kind, found.error, peak, "no"]
    return [name, kind, f"{found.seconds:,.0f} s", peak, "yes" if found.peak_bytes <= BOUND_BYTES else "no"]


HEADER = ["name", "kind", "time", "peak memory", "within 8 GiB"]


def child(name: str, folder: Path, rows: int) -> None:
    import torch  # noqa: F401 - most need it: it counts for none

    if name == "write":
        work(lambda: write_features(folder, rows))
    work(lambda: WORKS[name](folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/selection-scale-<date>.json")
    parser.add_argument("--rows", type=int, default=ROWS, help="fewer, to try it")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), help="only these")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child[0], Path(asked.child[1]), asked.rows)
    from benchmarks.machine import facts, in_words, save, scratch

    machine = facts()
    print(in_words(machine), flush=True)
    results: dict[str, Measured] = {}
    with scratch() as folder:
        written = measured(MODULE, "--rows", asked.rows, "--child", "write", folder)
        if written.error is not None:
            sys.exit(f"the features could not be written: {written.error}")
        print(f"features: written in {written.seconds:.0f} s", file=sys.stderr, flush=True)
        for name in asked.only:
            results[name] = measured(MODULE, "--child", name, folder)
            print(f"{name}: {', '.join(row(name, results[name])[2:4])}", file=sys.stderr, flush=True)
    print(table(HEADER, [row(name, found) for name, found in results.items()]))
    print(f"{asked.rows:,} × {FEATURES:,} synthetic float16 features, {CLASSES:,} classes, balanced, f = {FRACTION:g}")
    if asked.save:
        size = {"rows": asked.rows, "features": FEATURES, "classes": CLASSES, "fraction": FRACTION}
        found = {name: result.to_record() for name, result in results.items()}
        print(save("selection-scale", {"machine": machine, **size, "results": found}))


if __name__ == "__main__":
    main()
