"""Writing a bundle from chosen rows, and its targets from a cache. Shapes: m rows kept, m2 test rows, c classes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.files import need_space, whole_folder
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.beton import Beton, cut
from toolkit.formats.bundle import Bundle, SubsetRecord, open_bundle, write_bundle_records
from toolkit.formats.cache import CacheReader, new_cache


def cut_bundle(
    train: Beton, rows_m: np.ndarray, record: SubsetRecord, folder: Path, caches: Iterable[CacheReader]
) -> SubsetRecord:
    """Writes the bundle to `folder`, with targets from the caches, whole or not at all; returns its record with the
    bytes its images took."""
    with whole_folder(folder) as temporary:
        if record.index_only:
            file, indices_m = os.path.relpath(train.path, folder), rows_m
        else:
            file, indices_m = "images.beton", np.arange(len(rows_m))
            cut(train, rows_m, temporary / file)
            record = replace(record, bytes=(temporary / file).stat().st_size)
        write_bundle_records(temporary, record, file, indices_m, rows_m)
        for cache in caches:
            cut_targets(cache, open_bundle(temporary))
    return record


def cut_targets(cache: CacheReader, bundle: Bundle) -> Path:
    """Writes targets/<teacher>.h5 from the cache's rows. Raises FailureError when the cache is of other data."""
    record = cache.record
    if record.data_fingerprint != bundle.data.train_fingerprint:
        raise FailureError(
            f"{cache.path}: made from {record.dataset} ({record.data_fingerprint}), but the subset is of "
            f"{bundle.data.key} ({bundle.data.train_fingerprint}). Re-run: kdtool cache-teacher --force"
        )
    rows_m = bundle.rows_m
    path = bundle.targets_path(record.teacher)
    need_space(path, len(rows_m) * cache.bytes_per_view * cache.slots)
    targets = replace(record, kind="targets", command=command_line(), created=now(), versions=versions())
    with new_cache(path, targets) as out:
        out.write("rows", rows_m)
        out.write("labels", cache.read("labels", rows_m))
        for slot in range(cache.slots):
            name = f"slots/{slot}/logits"
            out.write_blocks(name, (len(rows_m), record.classes), record.dtype, cache.read_blocks(name, rows_m))
        for name in ("test/logits", "test/labels"):
            out.write(name, cache.read(name))
    return path
