"""Writing a bundle from chosen rows, and its targets from a cache. Shapes: m rows kept, m2 test rows, c classes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.files import need_space, whole_folder
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.beton import Beton, cut
from toolkit.formats.bundle import Bundle, SubsetRecord, open_bundle, write_bundle_records
from toolkit.formats.cache import CacheReader, CacheRecord, open_cache
from toolkit.formats.cache_writing import grown_cache, new_cache
from toolkit.formats.weights import WEIGHTS, weights_fingerprint, write_weights


def cut_bundle(
    train: Beton,
    rows_m: np.ndarray,
    record: SubsetRecord,
    folder: Path,
    caches: Iterable[CacheReader],
    weights_m: np.ndarray | None = None,
) -> SubsetRecord:
    """Writes the bundle to `folder`, with targets from the caches, whole or not at all; returns its record with the
    bytes its images took. `weights_m` are the rows', where they do not count alike."""
    with whole_folder(folder) as temporary:
        if record.index_only:
            file, indices_m = os.path.relpath(train.path, folder), rows_m
            record = replace(record, images_fingerprint=record.data["train_fingerprint"])
        else:
            file, indices_m = "images.beton", np.arange(len(rows_m))
            images_fingerprint = cut(train, rows_m, temporary / file)
            size = (temporary / file).stat().st_size
            record = replace(record, images_fingerprint=images_fingerprint, bytes=size)
        if weights_m is not None:
            record = replace(record, weights_fingerprint=weights_fingerprint(weights_m))
            write_weights(temporary / WEIGHTS, rows_m, weights_m, record.method)
        write_bundle_records(temporary, record, file, indices_m, rows_m)
        bundle = open_bundle(temporary)
        _carry_targets(folder, bundle)
        for cache in caches:
            if adds_to(bundle, cache):
                cut_targets(cache, bundle, train)
    return record


def _carry_targets(folder: Path, bundle: Bundle) -> None:
    """Copies the targets of the bundle that is being replaced, where they are sound and of the same rows."""
    for path in sorted(folder.glob("targets/*.h5")):
        try:
            with open_cache(path, bundle.record.made_by) as targets:
                targets.verify()
                same_data = targets.record.data_fingerprint == bundle.data.train_fingerprint
                same_rows = same_data and np.array_equal(targets.read("rows"), bundle.rows_m)
        except FailureError:
            continue  # a damaged file may be the very reason for replacing the bundle
        if same_rows:
            kept = bundle.targets_path(path.stem)
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, kept)


def adds_to(bundle: Bundle, cache: CacheReader) -> bool:
    """Whether the bundle's targets lack views that the cache holds, or are of what cache or teacher no longer are."""
    path = bundle.targets_path(cache.record.teacher)
    if not path.is_file():
        return True
    with open_cache(path, bundle.targets_command(cache.record.teacher)) as targets:
        found, ours = targets.record.identity(), cache.record.identity()
        stored_otherwise = any(found[name] != ours[name] for name in ("encoding", "precision"))
        outdated = any(found[name] != ours[name] for name in ours.keys() - {"encoding", "precision"})
        outdated = outdated or _cache_was_remade(targets, cache)
        return outdated or targets.slots < cache.slots or (stored_otherwise and targets.slots == cache.slots)


def _cache_was_remade(targets: CacheReader, cache: CacheReader) -> bool:
    """Whether the targets were copied from slots that the cache has since got anew, with other content."""
    copied = targets.record.cut_from
    return copied is not None and targets.slots <= cache.slots and cache.fingerprint(targets.slots) != copied


def cut_targets(cache: CacheReader, bundle: Bundle, train: Beton) -> Path:
    """Writes targets/<teacher>.h5 from the cache's rows, or adds the views that it lacks.

    Raises FailureError when the cache is of other data, or of views that are drawn otherwise now.
    """
    record = cache.record
    if record.data_fingerprint != bundle.data.train_fingerprint:
        raise FailureError(
            f"{cache.path}: made from {record.dataset} ({record.data_fingerprint}), but the subset is of "
            f"{bundle.data.key} ({bundle.data.train_fingerprint}). Re-run: kdtool cache-teacher --force"
        )
    cache.check_views(train.sizes_n2, cache.slots)
    rows_m, path = bundle.rows_m, bundle.targets_path(record.teacher)
    targets = replace(
        record,
        kind="targets",
        views=cache.plan.checksums(rows_m, cache.slots, train.sizes_n2[rows_m]),
        cut_from=cache.fingerprint(cache.slots),
        command=command_line(),
        created=now(),
        versions=versions(),
    )
    held, made_by = _slots_held(targets, cache, bundle), bundle.targets_command(record.teacher)
    need_space(path, len(rows_m) * cache.bytes_per_view * (cache.slots - held))
    with grown_cache(path, targets, made_by) if held else new_cache(path, targets) as out:
        for slot in range(held, cache.slots):
            for name, (shape, dtype) in cache.encoding.arrays(len(rows_m)).items():
                name = f"slots/{slot}/{name}"
                out.write_blocks(name, shape, dtype, cache.read_blocks(name, rows_m))
        if not held:
            out.write("rows", rows_m)
            out.write("labels", cache.read("labels", rows_m))
            for name in (*cache.encoding.arrays(0), "labels") if cache.has_test else ():
                out.write(f"test/{name}", cache.read(f"test/{name}"))
    return path


def _slots_held(wanted: CacheRecord, cache: CacheReader, bundle: Bundle) -> int:
    """How many slots of the targets that are there can stay: all of them where only views are missing, else none."""
    path = bundle.targets_path(wanted.teacher)
    if not path.is_file():
        return 0
    with open_cache(path, bundle.targets_command(wanted.teacher)) as targets:
        found = targets.record
        same = found.identity() == wanted.identity() and found.views == wanted.views[: targets.slots]
        copied = found.cut_from is not None and not _cache_was_remade(targets, cache)
        grows = same and copied and targets.slots < wanted.slots
        return targets.slots if grows and np.array_equal(targets.read("rows"), bundle.rows_m) else 0
