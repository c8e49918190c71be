"""What a cache is written from, whoever computed it: a network's pass here (cache_join), or arrays from outside
(import_logits).

Shapes: n rows, m test rows, v views, c classes, d features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.cache import CacheRecord
from toolkit.formats.cache_writing import CacheWriter, new_cache
from toolkit.formats.encodings import Arrays, Encoding, FullLogits
from toolkit.scores import SCORES, compute_scores, possible_scores
from toolkit.scores.from_pass import PassArrays


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


def write_cache(
    path: Path,
    record: CacheRecord,
    content: CacheContent,
    rows_n: np.ndarray,
    labels_n: np.ndarray,
    test_arrays: Arrays | None,
    test_labels_m: np.ndarray,
) -> None:
    """Writes the file whole, with all the scores that the content allows where it is a cache. `test_arrays` are what
    the teacher says of the test split, encoded, or None: `teacher_top1` follows from them."""
    top1 = None
    if test_arrays is not None:
        top1 = 100 * float((content.encoding.top_class(test_arrays) == test_labels_m).mean())
    with new_cache(path, replace(record, teacher_top1=top1)) as out:
        out.write("rows", rows_n.astype(np.int64))
        out.write("labels", labels_n)
        for slot in range(record.slots):
            content.write_slot(out, slot)
        if test_arrays is not None:
            for name, array in test_arrays.items():
                out.write(f"test/{name}", array)
            out.write("test/labels", test_labels_m.astype(np.int64))
        if record.kind == "cache":
            _write_features(out, content)
            scores = _scores_of_the_image(content, labels_n) | scores_of_views(content, record.slots, labels_n)
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


def _scores_of_the_image(content: CacheContent, labels_n: np.ndarray) -> dict[str, np.ndarray]:
    names = [name for name, score in SCORES.items() if score.needs_views == 1]
    return _by_blocks(content, names, labels_n, lambda number: content.canonical(number)[None])


def scores_of_views(content: CacheContent, slots: int, labels_n: np.ndarray) -> dict[str, np.ndarray]:
    """From what is stored, of old slots and new: what grew equals what was cached at once."""

    def logits_vnc(number: int) -> np.ndarray:
        stored = (content.encoded(slot, number) for slot in range(slots))
        full = isinstance(content.encoding, FullLogits)
        return np.stack([arrays["logits"] if full else content.encoding.dense(arrays) for arrays in stored])

    names = [name for name, score in SCORES.items() if 1 < score.needs_views <= slots]
    return _by_blocks(content, names, labels_n, logits_vnc) if names else {}


def _by_blocks(
    content: CacheContent, names: list[str], labels_n: np.ndarray, logits_vnc: Callable[[int], np.ndarray]
) -> dict[str, np.ndarray]:
    """Block by block, so that no more than one block of all views is held."""
    views = max(SCORES[name].needs_views for name in names)
    possible = possible_scores(views, content.features(0) is not None)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names if name in possible}
    for number in content.numbers:
        labels_b = labels_n[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
        arrays = PassArrays(logits_vnc(number), content.features(number), labels_b)
        for name, values_b in compute_scores(arrays, found).items():
            found[name].append(values_b)
    return {name: np.concatenate(values) for name, values in found.items()}
