"""What cache-teacher, its --dry-run and verify-cache are asked for: a teacher, data, views, and the file they go to.

Shapes: n rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np
import torch

from toolkit.core import defaults
from toolkit.core.errors import UsageError
from toolkit.core.processes import ALONE, Processes
from toolkit.core.progress import Progress, silent
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.cache import CacheReader, CacheRecord, open_cache
from toolkit.formats.checkpoint import Checkpoint
from toolkit.formats.dataset import SPLITS, PackedData, cache_command
from toolkit.formats.encodings import Encoding, default_encoding
from toolkit.formats.workspace import Workspace
from toolkit.models.pretrained import pretrained_teacher
from toolkit.models.zoo import FeatureReader, head_of
from toolkit.pipeline.data import bundle_and_data
from toolkit.pipeline.imported_teachers import refuse_imported, refuse_replacing
from toolkit.pipeline.known_teachers import find_teacher, is_file_name, is_of_library
from toolkit.pipeline.library_teachers import LibraryAsked, Note, network_asked_for
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.teacher.caching import TeacherPass
from toolkit.views.plan import Plan

_VIEWS = 2  # by default


def slots_for(views: str | int | None, plan: Plan) -> int:
    """The number of slots `--views` asks for: a number, `all`, or `epochs:E`; without it two, where there are as many.
    Raises UsageError for anything else."""
    if views is None:
        return min(_VIEWS, plan.size)
    views = str(views)
    kind, _, number = views.partition(":")
    if views == "all":
        if not plan.finite:
            raise UsageError(f"--views all: there is no end to the views of {plan.family}. Use epochs:E")
        return plan.size
    if kind == "epochs" and number.isdecimal() and int(number) > 0:
        return min(int(number), plan.size)  # past the family's size, its members come round again
    if not views.isdecimal() or not 1 <= int(views) <= plan.size:
        raise UsageError(f"--views must be 1 to {plan.size} on this data set, 'all', or 'epochs:E', got '{views}'")
    return int(views)


@dataclass(frozen=True)
class Request:
    """One cache: of all rows, or of a bundle's. `locked` is what only one command may write at a time, `record` what
    the finished cache would say of itself, and `made_by` the command that makes it again."""

    path: Path
    locked: Path
    rows_n: np.ndarray
    made_by: str
    data: PackedData
    record: CacheRecord
    model: torch.nn.Module
    teacher: TeacherPass

    @property
    def encoding(self) -> Encoding:
        return Encoding.parse(self.record.encoding, self.record.classes)

    @property
    def feature_width(self) -> int:
        """Features of each row that the cache will hold: the logits' own where they stand for features."""
        head = head_of(self.model)
        return self.record.classes if head is None else head.in_features

    def differences(self, cache: CacheReader) -> list[str]:
        """How a cache that is there differs from the one asked for, other than in how many views it holds."""
        found, wanted = cache.record.identity(), self.record.identity()
        different = [f"{name} {found[name]} → {wanted[name]}" for name in wanted if found[name] != wanted[name]]
        return different if np.array_equal(cache.read("rows"), self.rows_n) else [*different, "rows"]


def open_request(
    workspace: Workspace,
    dataset: str = defaults.DATASET,
    teacher: str | None = None,
    arch: str | None = None,
    width: int | None = None,
    views: str | int | None = None,
    encoding: str = defaults.ENCODING,
    subset: str | None = None,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    device: str = defaults.DEVICE,
    precision: str = defaults.PRECISION,
    threads: int | None = None,
    fresh: bool = False,
    class_map: Path | None = None,
    download: bool = True,
    processes: Processes = ALONE,
    progress: Progress = silent,
    on_note: Note = lambda line: None,
) -> Request:
    """Finds (or packs) the data, and loads the teacher. Raises UsageError or FailureError; writes no cache.

    `arch` and `width` tell of what network a plain state_dict is, and `arch` of a checkpoint of one's own network that
    its code may run. `class_map` says which classes of a library's teacher the data's are, where their names don't;
    without `download` its weights must be there; `on_note` is told what is special about it. `encoding` "auto" is that
    of the cache which is there, unless a `fresh` one is wanted, else the default.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {batch_size}")
    compute = compute_on(device, precision, threads, processes)
    if teacher is not None and is_of_library(teacher):
        pretrained_teacher(teacher)  # refused, if it is, before minutes of packing
    elif teacher is not None and subset is None and (is_file_name(teacher) or not workspace.teacher(teacher).is_dir()):
        find_teacher(workspace, teacher, dataset)  # and so is a name that nothing has
    bundle, data = processes.first_before(
        lambda: bundle_and_data(workspace, subset, dataset, data_dir, limit, progress)
    )
    for split in SPLITS:
        data.split(split)  # a damaged one is refused before anything is compared with it
    refuse_imported(workspace, bundle, teacher, data.record.limit)
    name, file, library = find_teacher(workspace, teacher, data.record.dataset)
    named = teacher if teacher is not None and Path(teacher).is_file() else library.reference if library else name
    slots = slots_for(views, data.record.plan)
    if bundle is None:
        kind, path, made_by = "cache", workspace.cache(name, data.record.limit), cache_command(data.record, named)
        rows_n, locked = np.arange(data.record.train_rows), path
    else:
        kind, path, made_by = "targets", bundle.targets_path(name), bundle.targets_command(named)
        rows_n, locked = bundle.rows_of(data.record), bundle.folder
    refuse_replacing(path)
    options = {"arch": arch, "width": width, "class-map": class_map}
    made_by += "".join(f" --{option} {quote(str(said))}" for option, said in options.items() if said is not None)
    if encoding == "auto":
        encoding = _usual_encoding(None if fresh else path, made_by, data.record.classes)
    Encoding.parse(encoding, data.record.classes)
    asked = LibraryAsked(class_map, download, progress, on_note)
    checkpoint, model, about = network_asked_for(library, file, name, data.record, compute, asked, arch, width)
    teacher_pass = TeacherPass(
        FeatureReader(model),
        checkpoint.mean,
        checkpoint.std,
        compute.device,
        compute.dtype,
        compute.precision,
        batch_size or (1024 if compute.device.type == "cuda" else 128),
        workers=compute.threads,
    )
    record = replace(_record(kind, name, checkpoint, data, compute, encoding, slots), teacher_weights=about)
    if head_of(model) is None:
        record = replace(record, features_are="logits")
    return Request(path, locked, rows_n, made_by, data, record, model, teacher_pass)


def _usual_encoding(path: Path | None, made_by: str, classes: int) -> str:
    if path is None or not path.is_file():
        return default_encoding(classes)
    with open_cache(path, made_by) as cache:
        return cache.record.encoding


def _record(
    kind: str, name: str, checkpoint: Checkpoint, data: PackedData, compute: Compute, encoding: str, slots: int
) -> CacheRecord:
    return CacheRecord(
        kind=kind,
        dataset=data.record.dataset,
        data_fingerprint=data.record.train_fingerprint,
        test_fingerprint=data.record.test_fingerprint,
        limit=data.record.limit,
        teacher=name,
        teacher_fingerprint=checkpoint.fingerprint,
        teacher_arch=checkpoint.arch,
        classes=checkpoint.classes,
        mean=checkpoint.mean,
        std=checkpoint.std,
        plan=data.record.plan.to_record(),
        precision=compute.precision,
        encoding=encoding,
        slots=slots,
        views=[],
        teacher_top1=float("nan"),
        teacher_images=0,
        command=command_line(),
        created=now(),
        versions=versions(),
    )
