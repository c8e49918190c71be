"""Packing an image folder: in parts, each a whole file, so that a killed pack goes on; then joined.

A single black pixel stands in for an image that can't be read, and joining leaves it out: no good one is that small.
Why it can't be is asked of the image itself, by every call; where it now can, its part is made again.

Beside D, the data's folder, under its name:

    .D.parts/<fingerprint>.beton         each part, until its split is joined: for that long, twice the disk
    .D.parts/<split>.beton .json         each split, until all are there
    D.bad-files.txt                      path and reason of all files that stopped a pack

Shapes: n files of a split, m chosen of them.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, remove_folder, whole_file, write_json
from toolkit.core.folder_settings import FolderSettings
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, Tick, silent
from toolkit.data.folder_plan import Bad, FolderPlan, FolderSplit
from toolkit.data.folders import MEAN, STD
from toolkit.formats.beton import join, open_beton
from toolkit.formats.dataset import SPLITS, DataRecord, data_key

BAD_FILES = "bad-files.json"  # in the data's folder, of those that were skipped

_SHOWN = 3  # bad files named in the error itself
_AGAIN = "the same command again, once that file is deleted"


def pack_folder(plan: FolderPlan, folder: Path, workers: int, progress: Progress = silent) -> DataRecord:
    """Leaves what `take_packed` gives to `folder`, and returns its record. What an earlier call did of the same is
    not done again.

    Raises FailureError for bad files (`on_bad` fail) once all have been looked at, and for a class that loses all its
    images.
    """
    parts, splits, settings = _parts_folder(folder), plan.splits, plan.settings
    joined = {split: record for split, of in splits.items() if (record := _joined_before(parts / split, of))}
    bad = {split: record["bad"] for split, record in joined.items()}
    apart = {split: of for split, of in splits.items() if split not in joined}
    bad |= _looked_at(apart, plan, parts, workers, progress)
    _refuse_bad(splits, bad, folder, settings.on_bad)
    for split, of in apart.items():
        joined[split] = _join(of, bad[split], parts / split)
    by_name = {split: _by_name(of, bad[split]) for split, of in splits.items() if bad[split]}
    if by_name:
        write_json(parts / BAD_FILES, by_name)
    kept = {split: len(of.rows_m) - len(bad[split]) for split, of in splits.items()}
    class_names = splits["train"].listing.class_names
    decided = settings.recorded
    size = decided.pop("size")
    return DataRecord(
        dataset=plan.dataset,
        classes=len(class_names),
        class_names=list(class_names),
        height=size,
        width=size,
        padding=0,
        mean=list(MEAN),
        std=list(STD),
        train_rows=kept["train"],
        test_rows=kept["test"],
        train_fingerprint=joined["train"]["content"],
        test_fingerprint=joined["test"]["content"],
        limit=plan.limit,
        source=data_key(plan.dataset, plan.limit),
        listing=plan.listing,
        skipped=sum(len(found) for found in bad.values()),
        **decided,
    )


def take_packed(folder: Path, into: Path) -> None:
    """Gives what `pack_folder` left for `folder` a second name in `into`: killed now, nothing is lost."""
    for found in [*_parts_folder(folder).glob("*.beton"), _parts_folder(folder) / BAD_FILES]:
        if found.is_file():
            try:
                os.link(found, into / found.name)
            except OSError:  # a file system without second names
                found.replace(into / found.name)


def discard_parts(folder: Path) -> None:
    """Once the data are in `folder`."""
    _list_of_bad(folder).unlink(missing_ok=True)
    remove_folder(_parts_folder(folder))


def discard_packed_parts(folder: Path, record: DataRecord) -> None:
    """What a pack that was ended after its last step but this left beside the data: not what another one, still to go
    on, has there."""
    records = [_parts_folder(folder) / f"{split}.json" for split in SPLITS]
    if all(path.is_file() for path in records):
        contents = [read_json(path, _AGAIN).get("content") for path in records]
        if contents == [record.train_fingerprint, record.test_fingerprint]:
            # another process may be at it, or the workspace not be ours to write: nothing depends on it
            with suppress(FailureError), only_writer(folder):
                discard_parts(folder)


def _parts_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.parts")


def _list_of_bad(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.bad-files.txt")


def _bad_in(part: Path, of: FolderSplit, rows_m: np.ndarray) -> Bad | None:
    """What is bad in a part. None where that is not there, or holds a stand-in for an image that can be read."""
    if not part.is_file():
        return None
    stand_in_m = (open_beton(part, _AGAIN).sizes_n2 == 1).all(axis=1)
    return of.still_bad(rows_m[stand_in_m].tolist())


def _joined_before(path: Path, of: FolderSplit) -> dict[str, Any] | None:
    """What `_join` wrote beside the whole split: `content`, its fingerprint, and `bad`. None as of a part."""
    record = path.with_suffix(".json")
    if not (record.is_file() and path.with_suffix(".beton").is_file()):
        return None
    found = read_json(record, _AGAIN)
    still = found.get("of") == of.name and of.still_bad([row for row, _ in found["bad"]]) is not None
    return found if still else None


def _looked_at(
    splits: dict[str, FolderSplit], plan: FolderPlan, parts: Path, workers: int, progress: Progress
) -> dict[str, Bad]:
    """Makes the parts of these splits that are missing, and gives what is bad in each split. Every other file goes but
    whole splits."""
    found = {
        name: _bad_in(parts / f"{name}.beton", of, rows_m) for of in splits.values() for name, rows_m in of.parts()
    }
    stand = {*(plan.splits.keys() - splits.keys()), *(name for name, bad in found.items() if bad is not None)}
    for path in parts.glob("*"):  # of other files or settings, or left by a killed process
        if path.name.partition(".")[0] not in stand:
            path.unlink()
    missing = [(of, name, rows_m) for of in splits.values() for name, rows_m in of.parts() if found[name] is None]
    with progress("pack", sum(len(rows_m) for _, _, rows_m in missing), "img") as tick:
        for of, name, rows_m in missing:
            found[name] = write_part(parts / f"{name}.beton", of, rows_m, plan.settings, workers, _ticking(tick))
    return {split: [bad for name in of.names for bad in found[name] or ()] for split, of in splits.items()}


class _Pictures:
    """The images of a part, read where FFCV's worker asks for them, or their stand-ins."""

    def __init__(self, of: FolderSplit, rows_m: np.ndarray) -> None:
        self.of, self.rows_m = of, rows_m

    def __len__(self) -> int:
        return len(self.rows_m)

    def __getitem__(self, at: int) -> tuple[np.ndarray, int]:
        from toolkit.data.pictures import BadPicture

        row = int(self.rows_m[at])
        try:
            pixels = self.of.pixels(row)
        except BadPicture:
            pixels = np.zeros((1, 1, 3), dtype=np.uint8)
        return pixels, int(self.of.listing.labels_n[row])


def write_part(
    path: Path, of: FolderSplit, rows_m: np.ndarray, settings: FolderSettings, workers: int, progress: Progress
) -> Bad:
    """Writes these rows of the listing to `path`, with stand-ins for what is bad; returns that."""
    import toolkit.data.pictures  # noqa: F401 - here once, and not in every worker
    from toolkit.formats.beton_writer import Storage, write_beton

    storage = Storage(settings.write_mode, settings.jpeg_quality, settings.max_resolution)
    write_beton(_Pictures(of, rows_m), path, len(of.listing.class_names), workers, progress, storage)
    bad = _bad_in(path, of, rows_m)
    if bad is None:
        raise FailureError(
            f"{of.listing.folder}: a file there could not be read, and a moment later it could. Run the same command "
            "again, which goes on"
        )
    return bad


def _ticking(tick: Tick) -> Progress:
    """For work that is a part of what `tick` counts."""

    def progress(what: str, total: int, unit: str) -> AbstractContextManager[Tick]:
        return nullcontext(tick)

    return progress


def _refuse_bad(splits: dict[str, FolderSplit], bad: dict[str, Bad], folder: Path, on_bad: str) -> None:
    listed = [(of.listing.path(row), why) for split, of in splits.items() for row, why in bad[split]]
    if listed and on_bad == "fail":
        path = _list_of_bad(folder)
        with whole_file(path) as temporary:
            temporary.write_text("".join(f"{_printable(file)}\t{_printable(why)}\n" for file, why in listed))
        total = sum(len(of.rows_m) for of in splits.values())
        first = [f"{_printable(file)}: {_printable(why)}" for file, why in listed[:_SHOWN]]
        more = " …" if len(listed) > _SHOWN else ""
        raise FailureError(
            f"{len(listed):,} of {total:,} files can't be packed: {'; '.join(first)}{more}. All are in {path}. Mend "
            "them, or take them away, and run the same command again, which goes on; or add --on-bad skip"
        )
    for split, of in splits.items():
        labels_n, classes = of.listing.labels_n, len(of.listing.class_names)
        kept_c = np.bincount(labels_n[of.rows_m], minlength=classes)
        kept_c -= np.bincount(labels_n[[row for row, _ in bad[split]]], minlength=classes)
        if not kept_c.all():
            name = of.listing.class_names[int(np.argmin(kept_c != 0))]
            raise FailureError(
                f"{of.listing.folder / name}: every file that was looked at is bad, so nothing of the class is left. "
                "Put images there, or delete the class"
            )


def _join(of: FolderSplit, bad: Bad, path: Path) -> dict[str, Any]:
    """One .beton of the split's parts, without what is bad; what is written beside it. Then the parts may go."""
    rows = {row for row, _ in bad}
    pieces = [
        (path.with_name(f"{name}.beton"), [at for at, row in enumerate(rows_m.tolist()) if row in rows] if rows else [])
        for name, rows_m in of.parts()
    ]
    record = {"of": of.name, "bad": bad, "content": join(pieces, path.with_suffix(".beton"))}
    write_json(path.with_suffix(".json"), record)
    for piece, _ in pieces:
        piece.unlink()
    return record


def _by_name(of: FolderSplit, bad: Bad) -> list[tuple[str, str]]:
    return [(_printable(of.listing.within(row)), _printable(why)) for row, why in bad]


def _printable(words: object) -> str:
    """On one line, whatever bytes a file is called by."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(words))
