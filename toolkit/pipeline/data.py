"""kdtool pack: a data set, decoded once.

An image folder is packed where the user says where it lies; every later command finds it by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.device import available_cpus
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import whole_folder
from toolkit.core.folder_settings import FOLDER_OPTIONS, FolderSettings, option
from toolkit.core.imported import imported, is_reference
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.data.folder_pack import (
    discard_packed_parts,
    discard_parts,
    pack_folder,
    take_packed,
)
from toolkit.data.folder_plan import listing_fingerprint, plan_folder
from toolkit.data.noise import check_noise, noise_in, with_noise
from toolkit.data.pack import check_limit
from toolkit.data.pack import pack as packed_from_source
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.dataset import (
    SPLITS,
    DataRecord,
    PackedData,
    data_key,
    is_image_folder,
    noise_named,
    open_packed,
    pack_command,
    recorded_settings,
    write_record,
)
from toolkit.formats.workspace import Workspace


def pack(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    dataset: str = defaults.DATASET,
    data_dir: Place | None = None,
    limit: int | None = None,
    workers: int | None = None,
    max_resolution: int | None = None,
    write_mode: str | None = None,
    jpeg_quality: int | None = None,
    size: int | None = None,
    family: str | None = None,
    least_area: int | None = None,
    on_bad: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Packs `dataset` into the workspace, unless it is there already.

    From `max_resolution` to `on_bad` they are FolderSettings', of an image folder, whose own defaults None stands for.
    With `dry_run` a few rows are packed into a temporary folder: the result is `Foreseen.told`. Raises UsageError or
    FailureError.
    """
    workspace, data_dir = Workspace.at(workspace), as_path(data_dir)
    if workers is not None and workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    check_dataset(dataset, limit)
    asked = (max_resolution, write_mode, jpeg_quality, size, family, least_area, on_bad)
    settings = _folder_settings(dataset, dict(zip(FOLDER_OPTIONS, asked, strict=True)))
    folder = workspace.data(data_key(dataset, limit))
    unchanged = (folder / "data.json").is_file() and not force
    if unchanged and settings is not None:
        _need_same(open_packed(folder).record, settings, data_dir, folder)
    if dry_run:
        return _foreseen(folder, dataset, data_dir, limit, workers, settings, unchanged, progress)
    packed = ensure_packed(workspace, dataset, data_dir, limit, force, workers, progress, settings=settings)
    record = packed.record
    for split in SPLITS:
        packed.split(split)  # what was there already is looked at before it is said to be there
    if unchanged and settings is not None:
        discard_packed_parts(folder, record)
    return {
        "path": str(packed.folder),
        "dataset": record.dataset,
        "train_rows": record.train_rows,
        "test_rows": record.test_rows,
        "classes": record.classes,
        **{name: getattr(record.plan, name) for name in ("height", "width", "family")},
        "skipped": record.skipped,
        "fingerprint": record.train_fingerprint,
        "unchanged": unchanged,
    }


def _foreseen(
    folder: Path,
    dataset: str,
    data_dir: Path | None,
    limit: int | None,
    workers: int | None,
    settings: FolderSettings | None,
    unchanged: bool,
    progress: Progress,
) -> dict[str, Any]:
    from toolkit.pipeline.foresee.foreseen import already_there
    from toolkit.pipeline.foresee.packing import foreseen_pack

    if unchanged:
        return already_there(open_packed(folder).folder)
    plan = None
    if settings is not None:
        plan = plan_folder(dataset, _place_of_images(folder, dataset, data_dir, limit, ""), limit, settings)
    usual = 2 if plan is None else available_cpus()
    return foreseen_pack(folder, dataset, data_dir, limit, workers or usual, progress, plan)


def _place_of_images(folder: Path, dataset: str, data_dir: Path | None, limit: int | None, more: str) -> Path:
    """`data_dir`, of an image folder. Raises FailureError where it was not given."""
    if data_dir is None:
        again = ("" if limit is None else f" --limit {limit}") + more
        raise FailureError(
            f"{folder}: an image folder, and only you know where its images lie. "
            f"Run: kdtool pack --dataset {dataset} --data-dir D{again}"
        )
    return data_dir


def _folder_settings(dataset: str, given: dict[str, Any]) -> FolderSettings | None:
    """Of an image folder, and otherwise None. Raises UsageError for an option that the data set has no use for."""
    named = {name: value for name, value in given.items() if value is not None}
    if is_image_folder(dataset):
        return FolderSettings(**named)
    if named:
        raise UsageError(
            f"{option(next(iter(named)))} is for image folders (--dataset imagefolder or imagenet): {dataset} is none"
        )
    return None


def _need_same(record: DataRecord, settings: FolderSettings, data_dir: Path | None, folder: Path) -> None:
    """Raises FailureError, saying what differs, unless this is what packing would make again."""
    wanted, found = settings.recorded, recorded_settings(record)
    changed = (name for name in wanted if found[name] != wanted[name])
    differ = [f"{option(name)} was {found[name]}, now {wanted[name]}" for name in changed]
    if data_dir is not None and listing_fingerprint(data_dir, record.dataset) != record.listing:
        differ.append(f"{data_dir} holds other files than were packed, by names and sizes")
    if differ:
        raise FailureError(
            f"{folder}: packed in another way ({'; '.join(differ)}). Add --force to make it again, or give it a name "
            "of its own: --dataset imagefolder-NAME"
        )


def ensure_packed(
    workspace: Workspace,
    dataset: str,
    data_dir: Path | None = None,
    limit: int | None = None,
    force: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
    from_file: bool = False,
    settings: FolderSettings | None = None,
) -> PackedData:
    """The packed data, made now if they are missing (or `force`): only then is a data set of one's own imported, and an
    image folder looked for, in `data_dir`. `workers` are by default 2, and for an image folder the CPUs there are.

    A data set with label noise, by the name that `noise_name` gives it, is made of its base, itself packed if missing.
    `from_file` says that a file named the data set, and not the user: one of one's own is then never imported. Raises
    UsageError or FailureError.
    """
    noisy = check_dataset(dataset, limit)
    folder = workspace.data(data_key(dataset, limit))
    if force or not (folder / "data.json").is_file():
        base, noise, plan = None, None, None
        # refused, if it is, before anything of the new data set is there, even its lock
        if is_reference(dataset) and noisy is None:
            if from_file:
                raise FailureError(
                    f"{folder}: not there, and {dataset} is a data set of one's own: only you decide which code runs. "
                    f"Run: {pack_command(folder.name)}"
                )
            imported(dataset, "--dataset")
        if is_image_folder(dataset):
            place = _place_of_images(folder, dataset, data_dir, limit, " --force" if force else "")
            plan = plan_folder(dataset, place, limit, settings or FolderSettings())
        if noisy is not None:
            how = {"workers": workers, "progress": progress, "from_file": from_file}
            base = ensure_packed(workspace, noisy[0], data_dir, limit, **how)  # type: ignore[arg-type]
            noise = noise_in(base, *noisy[1:])
        with only_writer(folder):
            pictures = None
            if plan is not None:
                pictures = pack_folder(plan, folder, workers or available_cpus(), progress)
            with whole_folder(folder) as temporary:
                if pictures is not None:
                    take_packed(folder, temporary)
                    record = pictures
                elif base is not None and noise is not None:
                    record = with_noise(base, noise, temporary)
                else:
                    record = packed_from_source(dataset, temporary, data_dir, limit, workers or 2, progress)
                write_record(temporary, record)
            if pictures is not None:
                discard_parts(folder)
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
