"""The streaming source: FFCV's Loader decodes, and the same views, order and targets follow as from the resident one.

Shapes: n rows, b batch, c classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from toolkit.training.showing import Batch, Showing, Targets
from toolkit.views.plan import Plan
from toolkit.views.render import Renderer, normalise


class StreamSource:
    """Batches of any epoch through `loader`, an FFCV Loader of the fields image, label and row.

    `indices_n` are the rows' positions in the loader's file and `rows_n` their numbers in the packed data set, both
    increasing. Iterating over the source itself gives one epoch after the other. Parameters as in ResidentSource.
    """

    def __init__(
        self,
        loader: Any,
        indices_n: np.ndarray,
        rows_n: np.ndarray,
        plan: Plan,
        mean: list[float],
        std: list[float],
        seed: int,
        dtype: torch.dtype = torch.float32,
        targets: Targets | None = None,
    ) -> None:
        self.loader, self.batch_size, self._dtype = loader, loader.batch_size, dtype
        self.showing = Showing(rows_n, plan, seed, targets)
        self._indices_n = np.asarray(indices_n, dtype=np.uint64)
        self._mean_c, self._std_c = torch.tensor(mean, dtype=dtype), torch.tensor(std, dtype=dtype)
        self._logits_knc = None if targets is None else targets.table()
        self._next_epoch = 0
        # FFCV refuses an order of one's own at construction (it checks the wrong thing), but asks for it each epoch
        loader.traversal_order = self

    def __len__(self) -> int:
        return len(self.showing)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self) // self.batch_size)

    def sample_order(self, epoch: int) -> np.ndarray:
        """FFCV asks for the order of `epoch`: positions in the file, uint64."""
        return self._indices_n[self.showing.order(epoch)]

    def __iter__(self) -> Iterator[Batch]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.batches(epoch)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of `epoch` (from 0); the last may be smaller. Leaving early leaves no thread behind."""
        from toolkit.formats.ffcv_loader import one_epoch

        view_n, slot_n = self.showing.views(epoch)
        dy_n, dx_n, mirrored_n = (torch.from_numpy(values) for values in self.showing.plan.decode(view_n))
        self.loader.next_epoch = epoch
        with one_epoch(self.loader) as batches:
            for images_bhwc, labels_b1, rows_b1 in batches:
                rows_b = rows_b1[:, 0]
                at = np.searchsorted(self.showing.rows_n, rows_b.numpy())
                at_b = torch.from_numpy(at)
                renderer = Renderer(images_bhwc, self.showing.plan)
                drawn_bhwc = renderer.draw(torch.arange(len(at_b)), dy_n[at_b], dx_n[at_b], mirrored_n[at_b])
                logits_bc = None
                if self._logits_knc is not None:
                    logits_bc = torch.from_numpy(self._logits_knc[slot_n[at], at]).to(self._dtype)
                yield Batch(normalise(drawn_bhwc, self._mean_c, self._std_c), labels_b1[:, 0], rows_b, logits_bc)
