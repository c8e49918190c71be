"""Joining the parts of a caching pass into one cache, or adding them to the one that is there.

Shapes: n rows, v views, c classes, d features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from toolkit.formats.beton import Beton
from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.cache import CacheReader, CacheRecord
from toolkit.formats.cache_writing import CacheWriter, grown_cache, new_cache
from toolkit.formats.encodings import Arrays, Encoding, FullLogits
from toolkit.formats.parts import Parts
from toolkit.pipeline.cache_request import Request
from toolkit.scores import SCORES, compute_scores
from toolkit.scores.from_pass import PassArrays
from toolkit.teacher.caching import ALL_CLASSES, parts_of


@dataclass(frozen=True)
class Pieces:
    """Every slot's blocks: of the old cache, or of parts just run. A part is a block: both are of BLOCK_ROWS rows."""

    rows: int
    encoding: Encoding
    old: CacheReader | None
    parts: Parts

    @property
    def numbers(self) -> range:
        return range(-(-self.rows // BLOCK_ROWS))

    def block(self, slot: int, number: int, name: str) -> np.ndarray:
        if self.old is not None and slot < self.old.slots:
            return self.old.block(f"slots/{slot}/{name}", number)
        return self._load(slot, number, name)

    def encoded(self, slot: int, number: int) -> Arrays:
        return {name: self.block(slot, number, name) for name in self.encoding.arrays(0)}

    def _load(self, slot: int, number: int, name: str) -> np.ndarray:
        return self.parts.load(parts_of("train", self.rows, range(slot, slot + 1))[number].key, name)

    def features(self, number: int) -> np.ndarray:
        return self._load(0, number, "features") if self.old is None else self.old.block("features", number)

    def canonical(self, number: int) -> np.ndarray:
        """The canonical view's logits of all classes, from the parts of a new cache: (n, c)."""
        return self._load(0, number, "logits" if isinstance(self.encoding, FullLogits) else ALL_CLASSES)

    def write_slot(self, out: CacheWriter, slot: int) -> None:
        for name, (shape, dtype) in self.encoding.arrays(self.rows).items():
            blocks = (self.block(slot, number, name) for number in self.numbers)
            out.write_blocks(f"slots/{slot}/{name}", shape, dtype, blocks)


def join(request: Request, record: CacheRecord, pieces: Pieces, train: Beton, test: Beton) -> None:
    """Writes a new file of the parts, or adds them to the old one, which is neither moved nor rewritten."""
    labels_n = train.labels_n[request.rows_n].astype(np.int64)
    if pieces.old is None:
        _write(request, record, pieces, labels_n, test)
    else:
        _add(request, record, pieces, labels_n, pieces.old)


def _add(request: Request, record: CacheRecord, pieces: Pieces, labels_n: np.ndarray, old: CacheReader) -> None:
    record = replace(record, teacher_top1=old.record.teacher_top1)
    with grown_cache(request.path, record, request.made_by) as out:
        for slot in range(old.slots, record.slots):
            pieces.write_slot(out, slot)
        if record.kind == "cache":
            for name, values_n in _scores_of_views(pieces, record.slots, labels_n).items():
                (out.replace if name in old.scores else out.write)(f"scores/{name}", values_n, **_told(name))


def _write(request: Request, record: CacheRecord, pieces: Pieces, labels_n: np.ndarray, test: Beton) -> None:
    test_parts = parts_of("test", len(test), range(1))
    test_arrays = {
        name: np.concatenate([pieces.parts.load(part.key, name) for part in test_parts])
        for name in pieces.encoding.arrays(0)
    }
    top1 = 100 * float((pieces.encoding.top_class(test_arrays) == test.labels_n).mean())
    with new_cache(request.path, replace(record, teacher_top1=top1)) as out:
        out.write("rows", request.rows_n.astype(np.int64))
        out.write("labels", labels_n)
        for slot in range(record.slots):
            pieces.write_slot(out, slot)
        for name, array in test_arrays.items():
            out.write(f"test/{name}", array)
        out.write("test/labels", test.labels_n.astype(np.int64))
        if record.kind == "cache":
            width = pieces.features(0).shape[1]
            blocks = (pieces.features(number) for number in pieces.numbers)
            out.write_blocks("features", (pieces.rows, width), np.float16, blocks)
            scores = _scores_of_the_image(pieces, labels_n) | _scores_of_views(pieces, record.slots, labels_n)
            for name, values_n in scores.items():
                out.write(f"scores/{name}", values_n, **_told(name))


def _told(name: str) -> dict[str, str]:
    """What stands beside a score's values."""
    return {"definition": SCORES[name].definition, "paper": SCORES[name].paper, "high": "hard"}


def _scores_of_the_image(pieces: Pieces, labels_n: np.ndarray) -> dict[str, np.ndarray]:
    names = [name for name, score in SCORES.items() if score.needs_views == 1]
    return _by_blocks(pieces, names, labels_n, lambda number: pieces.canonical(number)[None])


def _scores_of_views(pieces: Pieces, slots: int, labels_n: np.ndarray) -> dict[str, np.ndarray]:
    """From what is stored, of old slots and new: what grew equals what was cached at once."""

    def logits_vnc(number: int) -> np.ndarray:
        stored = (pieces.encoded(slot, number) for slot in range(slots))
        full = isinstance(pieces.encoding, FullLogits)
        return np.stack([arrays["logits"] if full else pieces.encoding.dense(arrays) for arrays in stored])

    names = [name for name, score in SCORES.items() if 1 < score.needs_views <= slots]
    return _by_blocks(pieces, names, labels_n, logits_vnc) if names else {}


def _by_blocks(
    pieces: Pieces, names: list[str], labels_n: np.ndarray, logits_vnc: Callable[[int], np.ndarray]
) -> dict[str, np.ndarray]:
    """Block by block, so that no more than one block of all views is held."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for number in pieces.numbers:
        labels_b = labels_n[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
        arrays = PassArrays(logits_vnc(number), pieces.features(number), labels_b)
        for name, values_b in compute_scores(arrays, names).items():
            found[name].append(values_b)
    return {name: np.concatenate(values) for name, values in found.items()}
