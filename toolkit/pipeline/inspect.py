"""kdtool inspect: whether an artifact is what it says.

Shapes: n rows, m rows of a subset, c classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.errors import FailureError
from toolkit.core.files import did_you_mean_path, read_json
from toolkit.formats.beton import open_beton
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.cache import open_cache
from toolkit.formats.dataset import SPLITS, DataRecord, PackedData, noise_of, open_packed, pack_command
from toolkit.formats.dynamics import open_dynamics
from toolkit.formats.kinds import h5_kind, open_blocks
from toolkit.formats.scores_file import open_scores
from toolkit.formats.workspace import Workspace
from toolkit.report.balance import class_balance

_MOST_CLASSES = 1 << 20  # a file without a record may hold any number as a label


def _inspect_data(folder: Path) -> dict[str, Any]:
    packed = open_packed(folder)
    promised = {"train": packed.record.train_fingerprint, "test": packed.record.test_fingerprint}
    balance = {}
    for split in SPLITS:
        beton = packed.split(split)
        balance[split] = class_balance(_counts(beton.labels_n, packed.record.classes), packed.record.class_names)
        found = beton.content_fingerprint()
        if found != promised[split]:
            raise FailureError(
                f"{folder / split}.beton: content {found}, data.json says {promised[split]}. "
                f"Run: {pack_command(packed.record.key, packed.record)}"
            )
    noise = noise_of(folder)
    flipped = {} if noise is None else {"flipped_labels": len(noise.rows_m)}
    return {"kind": "packed data", **packed.record.to_record(), **flipped, "class_balance": balance}


def _counts(labels_n: np.ndarray, classes: int) -> np.ndarray:
    """How many rows of each class: (c,) int64."""
    return np.bincount(labels_n, minlength=classes)


def _inspect_subset(folder: Path) -> dict[str, Any]:
    bundle = open_bundle(folder)
    images = bundle.images()
    found = images.content_fingerprint()
    if found != bundle.record.images_fingerprint:
        raise FailureError(
            f"{images.path}: content {found}, subset.json says {bundle.record.images_fingerprint}. "
            f"Run: {bundle.record.made_by}"
        )
    blocks = {}
    for teacher in bundle.teachers():
        with open_cache(bundle.targets_path(teacher), bundle.targets_command(teacher)) as cache:
            if not np.array_equal(cache.read("rows"), bundle.rows_m):
                raise FailureError(f"{cache.path}: not of this subset's rows. Run: {bundle.record.made_by}")
            blocks[teacher] = cache.verify()
    record = {key: value for key, value in asdict(bundle.record).items() if key != "data"}
    counts_c = _counts(images.labels_n[bundle.indices_m], bundle.data.classes)
    whole = _whole(bundle)
    whole_c = None if whole is None else _counts(whole.split("train").labels_n, bundle.data.classes)
    balance = class_balance(counts_c, bundle.data.class_names, whole_c)
    flipped = {} if whole is None else _flipped(bundle, whole)
    weights_m = bundle.weights_m
    weighed = {} if weights_m is None else {"weights": [float(weights_m.min()), float(weights_m.max())]}
    held = {"data": bundle.data.key, "images": len(images), "verified_blocks": blocks}
    return {"kind": "subset", **record, **held, **weighed, **flipped, "class_balance": {"subset": balance}}


def _whole(bundle: Bundle) -> PackedData | None:
    """The data that the subset was cut from, where they lie in the same workspace: it stands for itself, and they may
    be gone, or damaged."""
    folder = bundle.folder.resolve().parent.parent / "data" / bundle.data.key
    try:
        packed = open_packed(folder)
        packed.split("train")
    except FailureError:
        return None
    return packed if packed.record.train_fingerprint == bundle.data.train_fingerprint else None


def _flipped(bundle: Bundle, whole: PackedData) -> dict[str, int]:
    """How many labels of the subset were flipped, where its data were made with noise."""
    try:
        noise = noise_of(whole.folder)
    except FailureError:
        return {}
    return {} if noise is None else {"flipped_labels": int(np.isin(bundle.rows_m, noise.rows_m).sum())}


def _inspect_run(folder: Path) -> dict[str, Any]:
    from toolkit.formats.checkpoint import load_checkpoint

    record = read_json(folder / "run.json", "kdtool distill")
    result = record.get("result")
    if not isinstance(result, dict) or "top1" not in result or "created" not in record:
        raise FailureError(f"{folder / 'run.json'}: not the record of a finished run. Run: kdtool distill --force")
    student = load_checkpoint(folder / "student.pt", "kdtool distill --force")
    if student.top1 != result["top1"]:
        raise FailureError(f"{folder}: student.pt and run.json are of different runs. Run: kdtool distill --force")
    return {"kind": "run", **result, "created": record["created"]}


def _inspect_teacher(folder: Path) -> dict[str, Any]:
    found = _inspect_checkpoint(folder / "teacher.pt")
    files = {path.name: _inspect_h5(path)["verified_blocks"] for path in sorted(folder.glob("*.h5"))}
    return {**found, "kind": "teacher", "verified_blocks": files}


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    from toolkit.formats.checkpoint import Checkpoint, load_network, weights_fingerprint

    checkpoint = load_network(path)
    weights = checkpoint.weights if isinstance(checkpoint, Checkpoint) else checkpoint
    parameters = sum(tensor.numel() for tensor in weights.values() if tensor.is_floating_point())
    if not isinstance(checkpoint, Checkpoint):
        shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
        ends = {name: shapes[name] for name in (next(iter(shapes)), next(reversed(shapes)))}
        told = {"fingerprint": weights_fingerprint("", weights), "numbers": parameters, "tensors": len(weights)}
        return {"kind": "plain state_dict", **told, "first_and_last": ends}
    record = {key: getattr(checkpoint, key) for key in checkpoint.__dataclass_fields__ if key != "weights"}
    return {"kind": "checkpoint", "fingerprint": checkpoint.fingerprint, "numbers": parameters, **record}


def _inspect_cache(path: Path) -> dict[str, Any]:
    with open_cache(path) as cache:
        record = asdict(cache.record)
        return {
            **record,
            "rows": len(cache),
            "views": cache.slots,
            "bytes_per_view": cache.bytes_per_view,
            "plan_fingerprint": cache.plan.fingerprint,
            "scores": {name: score.get("definition", "") for name, score in cache.scores.items()},
            "verified_blocks": cache.verify(),
        }


def _inspect_dynamics(path: Path) -> dict[str, Any]:
    with open_dynamics(path) as dynamics:
        rows = len(dynamics.rows_n)
        return {"kind": "dynamics", **asdict(dynamics.record), "rows": rows, "verified_blocks": dynamics.verify()}


def _inspect_weights(path: Path) -> dict[str, Any]:
    with open_blocks(path, "kdtool build-subset --force, with its --method and other settings") as (record, blocks):
        verified, weights_m = blocks.verify(), blocks.read("weights")
        span = {"smallest": float(weights_m.min(initial=np.inf)), "largest": float(weights_m.max(initial=-np.inf))}
        return {"kind": "weights", **record, "rows": len(weights_m), **span, "verified_blocks": verified}


def _inspect_scores(path: Path) -> dict[str, Any]:
    with open_scores(path) as reader:
        told = {
            "rows": len(reader),
            "scores": {name: about.get("definition", "") for name, about in reader.scores.items()},
        }
        return {"kind": "scores", **asdict(reader.record), **told, "verified_blocks": reader.verify()}


H5_KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "cache": _inspect_cache,
    "dynamics": _inspect_dynamics,
    "scores": _inspect_scores,
    "weights": _inspect_weights,
}


def _inspect_h5(path: Path) -> dict[str, Any]:
    return H5_KINDS.get(h5_kind(path), _inspect_cache)(path)


def _inspect_beton(path: Path) -> dict[str, Any]:
    beton = open_beton(path)
    labels, counts = np.unique(beton.labels_n, return_counts=True)
    images = beton.records_n["image"]
    sizes = sorted({(int(height), int(width)) for height, width in zip(images["height"], images["width"], strict=True)})
    record = _record_beside(path)
    names = None if record is None or labels.max(initial=0) >= record.classes else record.class_names
    balance = {}
    if len(labels) and labels[0] >= 0 and labels[-1] < _MOST_CLASSES:
        balance = {path.stem: class_balance(_counts(beton.labels_n, len(names or [])), names)}
    return {
        "kind": "FFCV file",
        "rows": len(beton),
        "fields": ["image", "label", "row"],
        "sizes": sizes[:5],
        "class_counts": dict(zip(labels.tolist(), counts.tolist(), strict=True)),
        "fingerprint": beton.content_fingerprint(),
        "class_balance": balance,
    }


def _record_beside(path: Path) -> DataRecord | None:
    """What the folder of a .beton says about its data, if it says anything: there the classes have names."""
    try:
        if (path.parent / "data.json").is_file():
            return open_packed(path.parent).record
        return open_bundle(path.parent).data
    except FailureError:
        return None


FOLDERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "data.json": _inspect_data,
    "subset.json": _inspect_subset,
    "run.json": _inspect_run,
    "train.json": _inspect_teacher,
}
FILES: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".beton": _inspect_beton,
    ".h5": _inspect_h5,
    ".pt": _inspect_checkpoint,
}


def inspect(path: Place, *, workspace: Workspace | Place = defaults.WORKSPACE) -> dict[str, Any]:
    """What an artifact is and holds, after checking all of it. `path` may be the name of one in the workspace, where
    only one is called so. Raises FailureError for anything damaged or foreign."""
    path = _named(as_path(path), Workspace.at(workspace))
    if path.is_dir():
        for name, look in FOLDERS.items():
            if (path / name).is_file():
                return {"path": str(path), **look(path)}
        raise FailureError(
            f"{path}: no artifact of kdtool ({', '.join(FOLDERS)} would tell). Name a data, subset or run folder, "
            "or a .beton, .h5 or .pt file"
        )
    if not path.exists():
        raise FailureError(
            f"{path}: not found. {did_you_mean_path(path)}Name a data, subset or run folder, or a .beton, .h5 "
            "or .pt file: kdtool ls lists them"
        )
    if path.suffix in FILES:
        return {"path": str(path), **FILES[path.suffix](path)}
    raise FailureError(f"{path}: expected a file ending in {', '.join(FILES)}, found '{path.suffix or path.name}'")


def _named(path: Path, workspace: Workspace) -> Path:
    """The folder of that name in the workspace, where there is one and nothing else is meant."""
    if path.exists() or len(path.parts) != 1:
        return path
    found = [folder for kind in ("data", "subsets", "runs") if (folder := workspace.root / kind / path).is_dir()]
    return found[0] if len(found) == 1 else path
