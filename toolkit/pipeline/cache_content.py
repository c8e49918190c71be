"""What a cache is written from, whoever computed it: a network's pass here (cache_join), or arrays from outside
(import_logits).

Shapes: n rows, m test rows, v views, c classes, d features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from toolkit.core.device import free_memory_bytes
from toolkit.core.memory import left_bytes
from toolkit.core.progress import Progress
from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.cache import CacheRecord
from toolkit.formats.cache_writing import CacheWriter, new_cache
from toolkit.formats.encodings import Arrays, Encoding, FullLogits
from toolkit.scores import SCORES, compute_scores, possible_scores
from toolkit.scores.from_pass import PassArrays

FLOAT16, FLOAT32, INT64 = 2, 4, 8  # bytes
_STORED_BYTES = 1 << 28  # of all views of some rows, as they are stored; more where there is room
_STORED_SHARE = 0.25  # of what is free
_DECODED_BYTES = 1 << 24  # of all views of fewer, as scores are computed from them


@dataclass(frozen=True)
class CacheContent(ABC):
    """Every slot's blocks, of BLOCK_ROWS rows each but the last, and the features' where there are any."""

    rows: int
    encoding: Encoding

    @abstractmethod
    def block(self, slot: int, number: int, name: str) -> np.ndarray:
        """One dataset of a slot, as the encoding stores it."""

    @abstractmethod
    def features(self, number: int) -> np.ndarray | None:
        """(b, d) float16 of the canonical view, or None."""

    @abstractmethod
    def canonical(self, number: int) -> np.ndarray:
        """The canonical view's logits of all classes, from which scores are computed: (b, c)."""

    @property
    def numbers(self) -> range:
        return range(-(-self.rows // BLOCK_ROWS))

    def encoded(self, slot: int, number: int) -> Arrays:
        return {name: self.block(slot, number, name) for name in self.encoding.arrays(0)}

    def write_slot(self, out: CacheWriter, slot: int) -> None:
        for name, (shape, dtype) in self.encoding.arrays(self.rows).items():
            blocks = (self.block(slot, number, name) for number in self.numbers)
            out.write_blocks(f"slots/{slot}/{name}", shape, dtype, blocks)


def bytes_beside_logits(kind: str, rows: int, test_rows: int, slots: int, feature_width: int | None) -> int:
    """What a whole file holds beside them: row numbers, labels, and of a cache scores and features, None where it has
    none. HDF5's own tables and checksums are not counted."""
    size = 2 * INT64 * rows + INT64 * test_rows
    if kind == "cache":
        scores = possible_scores(slots, feature_width is not None)
        size += rows * (FLOAT32 * len(scores) + FLOAT16 * (feature_width or 0))
    return size


def write_cache(
    path: Path,
    record: CacheRecord,
    content: CacheContent,
    rows_n: np.ndarray,
    labels_n: np.ndarray,
    test_block: Callable[[int, str], np.ndarray] | None,
    test_labels_m: np.ndarray,
    progress: Progress,
) -> None:
    """Writes the file whole, with all the scores that the content allows where it is a cache. `test_block` gives block
    by block what the teacher says of the test split, encoded, or is None: `teacher_top1` follows from it."""
    names, numbers, top1 = (
        content.encoding.arrays(len(test_labels_m)),
        range(-(-len(test_labels_m) // BLOCK_ROWS)),
        None,
    )
    if test_block is not None:
        said = [content.encoding.top_class({name: test_block(number, name) for name in names}) for number in numbers]
        top1 = 100 * float((np.concatenate(said) == test_labels_m).mean())
    with new_cache(path, replace(record, teacher_top1=top1)) as out:
        out.write("rows", rows_n.astype(np.int64))
        out.write("labels", labels_n)
        for slot in range(record.slots):
            content.write_slot(out, slot)
        if test_block is not None:
            for name, (shape, dtype) in names.items():
                out.write_blocks(f"test/{name}", shape, dtype, (test_block(number, name) for number in numbers))
            out.write("test/labels", test_labels_m.astype(np.int64))
        if record.kind == "cache":
            _write_features(out, content)
            scores = _scores_of_the_image(content, labels_n, progress)
            scores |= scores_of_views(content, record.slots, labels_n, progress)
            for name, values_n in scores.items():
                out.write(f"scores/{name}", values_n, **about_score(name))


def _write_features(out: CacheWriter, content: CacheContent) -> None:
    first = content.features(0)
    if first is not None:
        blocks = (np.asarray(content.features(number)) for number in content.numbers)
        out.write_blocks("features", (content.rows, first.shape[1]), np.float16, blocks)


def about_score(name: str) -> dict[str, str]:
    """What stands beside a score's values."""
    return {"definition": SCORES[name].definition, "paper": SCORES[name].paper, "high": "hard"}


def _scores_of_the_image(content: CacheContent, labels_n: np.ndarray, progress: Progress) -> dict[str, np.ndarray]:
    names = [name for name, score in SCORES.items() if score.needs_views == 1]
    full = FullLogits(content.encoding.classes, "float16")
    return _by_blocks(
        content, names, labels_n, 1, full, lambda slot, number: {"logits": content.canonical(number)}, progress
    )


def scores_of_views(
    content: CacheContent, slots: int, labels_n: np.ndarray, progress: Progress
) -> dict[str, np.ndarray]:
    """From what is stored, of old slots and new: what grew equals what was cached at once."""
    names = [name for name, score in SCORES.items() if 1 < score.needs_views <= slots]
    return _by_blocks(content, names, labels_n, slots, content.encoding, content.encoded, progress) if names else {}


def _by_blocks(
    content: CacheContent,
    names: list[str],
    labels_n: np.ndarray,
    slots: int,
    encoding: Encoding,
    stored: Callable[[int, int], Arrays],
    progress: Progress,
) -> dict[str, np.ndarray]:
    """A few rows of all views at a time, so that neither rows nor views nor classes decide what is held. `stored` gives
    a slot's block, read once where all views of a block fit into what may be held, and else once for each part."""
    possible = possible_scores(max(SCORES[name].needs_views for name in names), content.features(0) is not None)
    found = {name: np.empty(content.rows, dtype=np.float32) for name in names if name in possible}
    look = any(SCORES[name].needs_features for name in found)
    room = int(_STORED_SHARE * min(free_memory_bytes(), left_bytes()))
    with progress("compute scores", content.rows, "rows") as tick:
        for number in content.numbers:
            start, features_bd = number * BLOCK_ROWS, content.features(number) if look else None
            rows = min(BLOCK_ROWS, content.rows - start)
            for some in _parts(0, rows, slots * encoding.bytes_per_view, max(_STORED_BYTES, room)):
                views = [_rows_of(stored(slot, number), some) for slot in range(slots)]
                for few in _parts(some.start, some.stop, slots * encoding.classes * 8, _DECODED_BYTES):
                    at = slice(few.start - some.start, few.stop - some.start)
                    logits_vbc = np.stack([_logits(encoding, _rows_of(arrays, at)) for arrays in views])
                    place = slice(start + few.start, start + few.stop)
                    of_few = PassArrays(logits_vbc, None if features_bd is None else features_bd[few], labels_n[place])
                    for name, values_b in compute_scores(of_few, found).items():
                        found[name][place] = values_b
                    tick(few.stop - few.start)
    return found


def _logits(encoding: Encoding, arrays: Arrays) -> np.ndarray:
    return arrays["logits"] if isinstance(encoding, FullLogits) else encoding.dense(arrays)


def _rows_of(arrays: Arrays, rows: slice) -> Arrays:
    """In memory of their own, so that the others can go."""
    return {name: np.array(array[rows]) for name, array in arrays.items()}


def _parts(start: int, stop: int, row_bytes: int, most_bytes: int) -> list[slice]:
    """Rows start … stop − 1 in even parts of about `most_bytes`, and of two rows at least: of one alone numpy would sum
    in another order."""
    parts = max(1, min(-(-(stop - start) * row_bytes // most_bytes), (stop - start) // 2))
    bounds = np.linspace(start, stop, parts + 1).astype(int).tolist()
    return [slice(first, last) for first, last in pairwise(bounds)]
