"""The schedule: which slot row r shows in epoch e, and which cached slot serves as its target.

Each row walks round its slots from a start of its own, so that any `slots` consecutive epochs show every slot once,
whatever the batch size, the order or the other rows.

Shapes: n rows, b rows of a block, k cached slots, g what a renderer is told of a view (Plan.geometry).
"""

from __future__ import annotations

import numpy as np

from toolkit.core.hashing import mix
from toolkit.views.plan import Plan

_SALT = 0x5C4ED
_DISTANCES_AT_A_TIME = 1_000_000


def slots_shown(rows_n: np.ndarray, epoch: int, slots: int, seed: int) -> np.ndarray:
    """The slot each row shows in `epoch` (from 0): (n,) int64 in 0 … slots − 1."""
    start_n = mix(seed, _SALT, rows_n) % np.uint64(slots)
    return (start_n.astype(np.int64) + epoch) % slots


def geometry_of_slots(plan: Plan, rows_n: np.ndarray, views_nk: np.ndarray, sizes_n2: np.ndarray) -> np.ndarray:
    """Plan.geometry of every slot: (n, k, g) uint16 or, for shifts, int16."""
    slots = [plan.geometry(rows_n, views_n, sizes_n2) for views_n in views_nk.T]
    return np.stack(slots, axis=1).astype(np.int16 if plan.finite else np.uint16)  # sides are at most 65,535


def nearest_slots(shown_ng: np.ndarray, cached_nkg: np.ndarray) -> np.ndarray:
    """For each row, the slot whose cached view lies nearest to the one it shows: (n,) int64. Both by their geometry.

    Nearest by the squared distance of the corners, in pixels. Only slots with the same mirroring compete where the row
    has one (it has, from two slots on); equal distances go to the lowest slot.
    """
    nearest_n = np.empty(len(shown_ng), dtype=np.int64)
    rows_at_a_time = max(1, _DISTANCES_AT_A_TIME // cached_nkg.shape[1])
    for start in range(0, len(shown_ng), rows_at_a_time):
        block = slice(start, start + rows_at_a_time)
        corners_b, mirrored_b = _corners(shown_ng[block])
        corners_bk, mirrored_bk = _corners(cached_nkg[block])
        distance_bk = ((corners_bk - corners_b[:, None]) ** 2).sum(axis=2)
        farther_than_any = 1 << 40
        distance_bk += farther_than_any * (mirrored_bk != mirrored_b[:, None])
        nearest_n[block] = distance_bk.argmin(axis=1)
    return nearest_n


def _corners(geometry_g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the view's upper left and, where it has its own size, lower right corner (…, 2 or 4), mirrored (…))."""
    place_g = geometry_g[..., :-1].astype(np.int64)
    if place_g.shape[-1] == 4:
        place_g[..., 2:] += place_g[..., :2]
    return place_g, geometry_g[..., -1]
