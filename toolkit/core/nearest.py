"""Each row's nearest other rows, exactly, in bounded memory.

Shapes: n rows, d features, k neighbours; b rows and m rows of one tile, s candidates of a row.

Squared distances come from |y|² − 2 x·y of centred rows, one matrix product a tile, and a few more than k candidates
are kept. Their distances are computed again from the differences. Where the product's rounding could have hidden a
nearer row, the row is searched again in float64; where even that could, by its differences from all rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from toolkit.core.memory import left_bytes

if TYPE_CHECKING:
    import torch

COLUMNS = 8192  # of a tile: with 256 rows 8 MiB in float32, which stays in the cache of a CPU while it is searched
SPARE = 6  # candidates beyond k, so that rounding seldom reaches past the last of them
HELD_BYTES = 2**30  # features up to this size are converted to float32 once, larger ones tile by tile
_SHARE = 0.25  # of what --memory-limit leaves, at most


def nearest(
    features_nd: np.ndarray, k: int, device: str | torch.device = "cpu", block: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other rows of every row: Euclidean distances (n, k) float32, and positions (n, k) int64.

    `features_nd` (n, d) of any float type, perhaps mapped from disk; it is read as float32. A row is never its own
    neighbour, but a row equal to it is one. Nearest first. `block` is how many rows are searched at once. k is cut to
    n − 1. Raises ValueError for k below 1 or features that are not a table.
    """
    if k < 1:
        raise ValueError(f"k, the number of neighbours, must be at least 1, got {k}")
    if features_nd.ndim != 2:
        raise ValueError(f"features must have shape (rows, features), got {features_nd.shape}")
    rows = _Rows(features_nd, device)
    k = min(k, max(len(features_nd) - 1, 0))
    distances_nk = np.zeros((len(features_nd), k), np.float32)
    indices_nk = np.zeros((len(features_nd), k), np.int64)
    if k == 0:
        return distances_nk, indices_nk
    for start in range(0, len(features_nd), block):
        positions_b = np.arange(start, min(start + block, len(features_nd)))
        distances_bk, indices_bk, sure_b = _search(rows, positions_b, k, double=False)
        unsure = np.flatnonzero(~sure_b)
        if len(unsure):
            distances_bk[unsure], indices_bk[unsure], sure_u = _search(rows, positions_b[unsure], k, double=True)
            unsure = unsure[~sure_u]
        if len(unsure):
            distances_bk[unsure], indices_bk[unsure] = _search_differences(rows, positions_b[unsure], k)
        distances_nk[positions_b], indices_nk[positions_b] = distances_bk, indices_bk
    return distances_nk, indices_nk


class _Rows:
    """The features as float32 on the device, whole or in parts, and their mean."""

    def __init__(self, features_nd: np.ndarray, device: str | torch.device):
        import torch

        self.device = torch.device(device)
        self.features_nd = features_nd
        most = min(HELD_BYTES, int(_SHARE * left_bytes())) if self.device.type == "cpu" else HELD_BYTES
        held = features_nd.shape[0] * features_nd.shape[1] * 4 <= most
        self.held_nd = self._send(features_nd) if held else None
        total_d = torch.zeros(features_nd.shape[1], dtype=torch.float64, device=self.device)
        for start in range(0, len(features_nd), COLUMNS):
            total_d += self[start : start + COLUMNS].double().sum(dim=0)
        self.mean_d = (total_d / max(len(features_nd), 1)).float()

    def __len__(self) -> int:
        return len(self.features_nd)

    def __getitem__(self, rows: slice | np.ndarray) -> torch.Tensor:
        """(m, d) float32."""
        if self.held_nd is None:
            return self._send(self.features_nd[rows])
        return self.held_nd[rows]

    def _send(self, features_md: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.array(features_md, np.float32)).to(self.device)


def _search(rows: _Rows, positions_b: np.ndarray, k: int, double: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances (b, k), positions (b, k), and whether no other row can be nearer (b,)."""
    import torch

    dtype = torch.float64 if double else torch.float32
    raw_bd = rows[positions_b]
    mean_d = rows.mean_d.to(dtype)
    centred_bd = raw_bd.to(dtype) - mean_d
    own_b = torch.from_numpy(positions_b).to(rows.device)
    values, indices, largest = [], [], torch.zeros((), dtype=dtype, device=rows.device)
    for start in range(0, len(rows), COLUMNS):
        centred_md = rows[start : start + COLUMNS].to(dtype) - mean_d
        squared_m = (centred_md**2).sum(dim=1)
        largest = torch.maximum(largest, squared_m.max())
        tile_bm = torch.addmm(squared_m[None], centred_bd, centred_md.T, alpha=-2)
        inside = (own_b >= start) & (own_b < start + len(squared_m))
        tile_bm[inside.nonzero()[:, 0], own_b[inside] - start] = math.inf
        value_bs, index_bs = tile_bm.topk(min(k + SPARE, len(squared_m)), dim=1, largest=False)
        values.append(value_bs)
        indices.append(index_bs + start)
    value_bs, at_bs = torch.cat(values, dim=1).topk(min(k + SPARE, len(rows) - 1), dim=1, largest=False)
    index_bs = torch.cat(indices, dim=1).gather(1, at_bs).sort(dim=1).values  # equal distances: lower positions first
    candidates_bsd = rows[index_bs.flatten().cpu().numpy()].view(*index_bs.shape, -1)
    exact_bs = ((candidates_bsd.double() - raw_bd[:, None].double()) ** 2).sum(dim=2)
    exact_bk, order_bk = (part[:, :k] for part in exact_bs.sort(dim=1, stable=True))
    own_squared_b = (centred_bd.double() ** 2).sum(dim=1)
    error_b = _unit(double) * (own_squared_b.sqrt() * largest.double().sqrt() + largest.double()) * 8
    error_b *= math.sqrt(raw_bd.shape[1] + 1)
    unseen_b = value_bs[:, -1].double() + own_squared_b - error_b  # no row but the candidates can be nearer than this
    sure_b = (exact_bk[:, -1] <= unseen_b.clamp(min=0)) | (index_bs.shape[1] == len(rows) - 1)
    return exact_bk.sqrt().float().cpu().numpy(), index_bs.gather(1, order_bk).cpu().numpy(), sure_b.cpu().numpy()


def _search_differences(rows: _Rows, positions_b: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (b, k) and positions (b, k) by the differences from every other row, in float64: slow and sure."""
    import torch

    own_bd, own_b = rows[positions_b].double(), torch.from_numpy(positions_b).to(rows.device)
    best_bk = torch.empty((len(own_b), 0), dtype=torch.float64, device=rows.device)
    index_bk = torch.empty((len(own_b), 0), dtype=torch.int64, device=rows.device)
    for start in range(0, len(rows), COLUMNS):
        tile_md = rows[start : start + COLUMNS].double()
        tile_bm = torch.cdist(own_bd, tile_md, compute_mode="donot_use_mm_for_euclid_dist")
        at_m = torch.arange(start, start + len(tile_md), device=rows.device)
        tile_bm[own_b[:, None] == at_m] = math.inf
        index_bm = torch.cat([index_bk, at_m.expand_as(tile_bm)], dim=1)
        best_bm, order_bm = torch.cat([best_bk, tile_bm], dim=1).sort(dim=1, stable=True)
        best_bk, index_bk = best_bm[:, :k], index_bm.gather(1, order_bm[:, :k])
    return best_bk.float().cpu().numpy(), index_bk.cpu().numpy()


def _unit(double: bool) -> float:
    """The relative rounding of one product. A sum of d of them errs by a small multiple of √d of it (Higham and Mary,
    A New Approach to Probabilistic Rounding Error Analysis, 2019)."""
    import torch

    if double:
        return 2.0**-53
    return 2.0**-24 if torch.get_float32_matmul_precision() == "highest" else 2.0**-8
