"""The plan: which view is slot k of row r. A small record, and a pure function of it.

Slots of a pad-crop family walk through all of it without repeating: first the image itself. Slot k of a resized-crop
family is the row's k-th box. Where a family has mirrors they alternate, so that any two neighbouring slots show both.

Shapes: n rows, k slots, s shifts; g what a renderer is told of a view, 2 is (height, width) of an image.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import fingerprint, mix
from toolkit.views.families import PadCrop, ResizedCrop, family_named

# Who draws the views: torch draws pad-crops on the device, FFCV's decoder cuts and scales boxes.
_RENDERERS = {PadCrop: "pad-crop/1", ResizedCrop: "resized-crop/1"}
_ROWS_AT_A_TIME = 8192
_CHECKED_ROWS = 4096
_SALT = 0x51075


@dataclass(frozen=True)
class Plan:
    """`family` and its geometry, the seed, and the name and version of the renderer that draws it.

    `height` and `width` are the network's input, `padding` in pixels belongs to pad-crops, `least_area` in percent to
    resized crops.
    """

    family: str
    height: int
    width: int
    padding: int | None = None
    seed: int = 0
    renderer: str | None = None
    least_area: int | None = None

    def __post_init__(self) -> None:
        draws = _RENDERERS[type(self._family)]  # an unknown family is refused here
        if self.renderer not in (None, draws):
            raise FailureError(
                f"view plan: drawn by renderer {self.renderer}, this kdtool draws {draws}. "
                "Run kdtool cache-teacher again with this version"
            )
        object.__setattr__(self, "renderer", draws)

    @cached_property
    def _family(self) -> PadCrop | ResizedCrop:
        return family_named(self.family, self.padding, self.least_area)

    @property
    def finite(self) -> bool:
        """Whether all views can be cached; where not, FFCV's decoder draws them."""
        return isinstance(self._family, PadCrop)

    @property
    def size(self) -> int:
        """The number of distinct views, hence the largest number of slots."""
        return self._family.size

    def views(self, rows_n: np.ndarray, slots: int) -> np.ndarray:
        """The views of the first `slots` slots of each row: (n, slots) int16. Column 0 is view 0."""
        if not 1 <= slots <= self.size:
            raise UsageError(f"--views must be 1 to {self.size} for {self.geometry_in_words}, got {slots}")
        if isinstance(self._family, ResizedCrop):
            return np.broadcast_to(np.arange(slots, dtype=np.int16), (len(rows_n), slots))
        views_nk = np.empty((len(rows_n), slots), dtype=np.int16)
        for start in range(0, len(rows_n), _ROWS_AT_A_TIME):
            block = slice(start, start + _ROWS_AT_A_TIME)
            views_nk[block] = self._permuted(self._family, np.asarray(rows_n[block]), slots)
        return views_nk

    def views_in(self, rows_n: np.ndarray, slots_n: np.ndarray) -> np.ndarray:
        """The view of each row's slot in `slots_n`, `views(rows_n, …)[n, slots_n[n]]`, holding no other: (n,) int16."""
        rows_n, slots_n = np.asarray(rows_n), np.asarray(slots_n)
        if isinstance(self._family, ResizedCrop):
            return slots_n.astype(np.int16)
        views_n = np.empty(len(rows_n), dtype=np.int16)
        for start in range(0, len(rows_n), _ROWS_AT_A_TIME):
            block = slice(start, start + _ROWS_AT_A_TIME)
            views_n[block] = self._picked(self._family, rows_n[block], slots_n[block])
        return views_n

    def _picked(self, family: PadCrop, rows_n: np.ndarray, slots_n: np.ndarray) -> np.ndarray:
        place_n, mirror_n = slots_n // family.mirrors, slots_n % family.mirrors
        shuffled_ns = np.argsort(self._keys(family, mirror_n[:, None], rows_n), axis=1, kind="stable")
        return shuffled_ns[np.arange(len(rows_n)), place_n] + mirror_n * family.shifts

    def _keys(self, family: PadCrop, mirror: int | np.ndarray, rows_n: np.ndarray) -> np.ndarray:
        """What sorts the shifts of each row, unmirrored or mirrored: (n, s) uint64."""
        keys_ns = mix(self.seed, _SALT, mirror, rows_n[:, None], np.arange(family.shifts)[None, :])
        keys_ns[:, 0] = np.where(np.ravel(mirror) == 0, 0, keys_ns[:, 0])  # the image itself comes first
        return keys_ns

    def _permuted(self, family: PadCrop, rows_n: np.ndarray, slots: int) -> np.ndarray:
        views_nk = np.empty((len(rows_n), slots), dtype=np.int16)
        for mirror in range(min(family.mirrors, slots)):
            shuffled_ns = np.argsort(self._keys(family, mirror, rows_n), axis=1, kind="stable")
            columns = len(range(mirror, slots, family.mirrors))
            views_nk[:, mirror :: family.mirrors] = shuffled_ns[:, :columns] + mirror * family.shifts
        return views_nk

    def geometry(self, rows_n: np.ndarray, views_n: np.ndarray, sizes_n2: np.ndarray) -> np.ndarray:
        """What the renderer is told of each view, int32: (n, 3) of dy, dx and mirrored for pad-crops, else (n, 5) of
        top, left, height, width and mirrored. `sizes_n2` are the images' own sizes."""
        if isinstance(self._family, PadCrop):
            return np.stack(self._family.decode(views_n), axis=1).astype(np.int32)
        return self._family.boxes(self.seed, rows_n, views_n, sizes_n2)

    def checksums(self, rows_n: np.ndarray, slots: int, sizes_n2: np.ndarray) -> list[int]:
        """CRC-32 of each slot's geometry: views are computed again and not stored, and this tells if they changed.

        Of thousands of rows spread evenly where there are more: a plan that drew otherwise would do so for all.
        """
        some = slice(None, None, -(-len(rows_n) // _CHECKED_ROWS) or 1)
        rows_n, sizes_n2 = rows_n[some], sizes_n2[some]
        views_nk = self.views(rows_n, slots)
        geometries = (self.geometry(rows_n, views_nk[:, slot], sizes_n2) for slot in range(slots))
        return [zlib.crc32(geometry_ng.astype("<i4").tobytes()) for geometry_ng in geometries]

    @property
    def geometry_in_words(self) -> str:
        detail = f"padding {self.padding}" if self.finite else f"at least {self.least_area} % of the area"
        return f"{self.family} with {detail}"

    def to_record(self) -> dict[str, Any]:
        """Its fields, without those that the family has no use for."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_record(cls, record: dict[str, Any], source: str) -> Plan:
        """Raises FailureError naming `source` when the record is not a plan's."""
        try:
            return cls(**record)
        except TypeError as error:
            raise FailureError(f"{source}: its view plan is not readable ({error}). Make the file again") from error

    @property
    def fingerprint(self) -> str:
        return fingerprint(*(f"{name}={value};" for name, value in sorted(self.to_record().items())))
