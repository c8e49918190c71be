"""kdtool pack: a data set, decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import whole_folder
from toolkit.core.imported import imported, is_reference
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.data.noise import check_noise, noise_in, with_noise
from toolkit.data.pack import check_limit, pack
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.dataset import (
    SPLITS,
    PackedData,
    data_key,
    noise_named,
    open_packed,
    pack_command,
    write_record,
)
from toolkit.formats.workspace import Workspace


def pack_data(
    workspace: Workspace,
    dataset: str,
    data_dir: Path | None = None,
    limit: int | None = None,
    force: bool = False,
    workers: int = 2,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Packs `dataset` into the workspace, unless it is there already. Raises UsageError or FailureError."""
    if workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    before = workspace.data(data_key(dataset, limit)) / "data.json"
    unchanged = before.is_file() and not force
    packed = ensure_packed(workspace, dataset, data_dir, limit, force, workers, progress)
    record = packed.record
    for split in SPLITS:
        packed.split(split)  # what was there already is looked at before it is said to be there
    return {
        "path": str(packed.folder),
        "dataset": record.dataset,
        "train_rows": record.train_rows,
        "test_rows": record.test_rows,
        "classes": record.classes,
        "fingerprint": record.train_fingerprint,
        "unchanged": unchanged,
    }


def ensure_packed(
    workspace: Workspace,
    dataset: str,
    data_dir: Path | None = None,
    limit: int | None = None,
    force: bool = False,
    workers: int = 2,
    progress: Progress = silent,
    from_file: bool = False,
) -> PackedData:
    """The packed data, made now if they are missing (or `force`): only then is a data set of one's own imported.

    A data set with label noise, by the name that `noise_name` gives it, is made of its base, itself packed if missing.
    `from_file` says that a file named the data set, and not the user: one of one's own is then never imported. Raises
    UsageError or FailureError.
    """
    noisy = check_dataset(dataset, limit)
    folder = workspace.data(data_key(dataset, limit))
    if force or not (folder / "data.json").is_file():
        base, noise = None, None
        # refused, if it is, before anything of the new data set is there, even its lock
        if is_reference(dataset) and noisy is None:
            if from_file:
                raise FailureError(
                    f"{folder}: not there, and {dataset} is a data set of one's own: only you decide which code runs. "
                    f"Run: {pack_command(folder.name)}"
                )
            imported(dataset, "--dataset")
        if noisy is not None:
            how = {"workers": workers, "progress": progress, "from_file": from_file}
            base = ensure_packed(workspace, noisy[0], data_dir, limit, **how)  # type: ignore[arg-type]
            noise = noise_in(base, *noisy[1:])
        with only_writer(folder), whole_folder(folder) as temporary:
            if base is not None and noise is not None:
                record = with_noise(base, noise, temporary)
            else:
                record = pack(dataset, temporary, data_dir, limit, workers, progress)
            write_record(temporary, record)
    packed = open_packed(folder)
    if packed.record.key != folder.name:
        raise FailureError(f"{folder / 'data.json'}: a record of {packed.record.key}. Run: {pack_command(folder.name)}")
    return packed


def check_dataset(dataset: str, limit: int | None = None) -> tuple[str, float, int] | None:
    """What `noise_named` says of it. Raises UsageError for a name that no data set is packed by, or a limit it can't
    have."""
    noisy = noise_named(dataset)
    if noisy is not None:
        check_noise(*noisy)
    check_limit(dataset, limit)
    return noisy


def bundle_and_data(
    workspace: Workspace,
    subset: str | None,
    dataset: str,
    data_dir: Path | None,
    limit: int | None,
    progress: Progress,
) -> tuple[Bundle | None, PackedData]:
    """The named subset's bundle and the data it was cut from; without one, None and the data set asked for."""
    bundle = None if subset is None else open_bundle(workspace.subset(subset))
    if bundle is not None:
        dataset, limit = bundle.data.dataset, bundle.data.limit
    return bundle, ensure_packed(workspace, dataset, data_dir, limit, progress=progress, from_file=bundle is not None)
