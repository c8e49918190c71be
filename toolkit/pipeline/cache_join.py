"""Joining the parts of a caching pass into one cache, or adding them to the one that is there.

Shapes: n rows, c classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from toolkit.core.progress import Progress
from toolkit.formats.beton import Beton
from toolkit.formats.cache import CacheReader, CacheRecord
from toolkit.formats.cache_writing import grown_cache
from toolkit.formats.encodings import FullLogits
from toolkit.formats.parts import Parts
from toolkit.pipeline.cache_content import CacheContent, about_score, scores_of_views, write_cache
from toolkit.pipeline.cache_request import Request
from toolkit.teacher.caching import ALL_CLASSES, parts_of


@dataclass(frozen=True)
class Pieces(CacheContent):
    """Every slot's blocks: of the old cache, or of parts just run. A part is a block: both are of BLOCK_ROWS rows."""

    old: CacheReader | None
    parts: Parts

    def block(self, slot: int, number: int, name: str) -> np.ndarray:
        if self.old is not None and slot < self.old.slots:
            return self.old.block(f"slots/{slot}/{name}", number)
        return self._load(slot, number, name)

    def _load(self, slot: int, number: int, name: str) -> np.ndarray:
        return self.parts.load(parts_of("train", self.rows, range(slot, slot + 1))[number].key, name)

    def features(self, number: int) -> np.ndarray:
        return self._load(0, number, "features") if self.old is None else self.old.block("features", number)

    def canonical(self, number: int) -> np.ndarray:
        """From the parts of a new cache."""
        return self._load(0, number, "logits" if isinstance(self.encoding, FullLogits) else ALL_CLASSES)


def join(request: Request, record: CacheRecord, pieces: Pieces, train: Beton, test: Beton, progress: Progress) -> None:
    """Writes a new file of the parts, or adds them to the old one, which is neither moved nor rewritten."""
    labels_n = train.labels_n[request.rows_n].astype(np.int64)
    if pieces.old is None:
        _write(request, record, pieces, labels_n, test, progress)
    else:
        _add(request, record, pieces, labels_n, pieces.old, progress)


def _add(
    request: Request,
    record: CacheRecord,
    pieces: Pieces,
    labels_n: np.ndarray,
    old: CacheReader,
    progress: Progress,
) -> None:
    record = replace(record, teacher_top1=old.record.teacher_top1)
    with grown_cache(request.path, record, request.made_by) as out:
        for slot in range(old.slots, record.slots):
            pieces.write_slot(out, slot)
        if record.kind == "cache":
            for name, values_n in scores_of_views(pieces, record.slots, labels_n, progress).items():
                (out.replace if name in old.scores else out.write)(f"scores/{name}", values_n, **about_score(name))


def _write(
    request: Request, record: CacheRecord, pieces: Pieces, labels_n: np.ndarray, test: Beton, progress: Progress
) -> None:
    keys = [part.key for part in parts_of("test", len(test), range(1))]

    def test_block(number: int, name: str) -> np.ndarray:
        return pieces.parts.load(keys[number], name)

    write_cache(request.path, record, pieces, request.rows_n, labels_n, test_block, test.labels_n, progress)
