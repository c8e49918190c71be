"""The streaming source: FFCV's Loader decodes, and the same views, order and targets follow as from the resident one.

Shapes: n rows, b batch, c classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from toolkit.core.errors import UsageError
from toolkit.formats.beton import Beton
from toolkit.training.showing import Batch, Showing
from toolkit.training.targets import Targets
from toolkit.views.plan import Plan
from toolkit.views.render import Renderer, normalise

_CPU = torch.device("cpu")


class StreamSource:
    """Batches of any epoch through an FFCV Loader (`loader`) over the rows of `images` at `indices_n`, increasing.

    Pad-crops are drawn in torch on `device`, resized crops in the decoder. Iterating over the source itself gives one
    epoch after the other. Other parameters as in ResidentSource.
    """

    def __init__(
        self,
        images: Beton,
        indices_n: np.ndarray,
        plan: Plan,
        mean: list[float],
        std: list[float],
        batch_size: int,
        seed: int,
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
        targets: Targets | None = None,
        workers: int = 2,
    ) -> None:
        from toolkit.formats.ffcv_loader import open_loader

        self.batch_size, self._device = batch_size, device
        self.showing = Showing(images.rows_n[indices_n], plan, seed, targets, images.sizes_n2[indices_n])
        self._indices_n = np.asarray(indices_n, dtype=np.uint64)
        self._mean_c = torch.tensor(mean, dtype=dtype, device=device)
        self._std_c = torch.tensor(std, dtype=dtype, device=device)
        self._targets = targets.table(device, dtype, held_on=_CPU) if targets is not None else None
        self._next_epoch, self._begun = 0, 0
        self._boxes_n5 = None  # of every row of the file: FFCV's decoder looks them up
        decoder = None
        if not plan.finite:
            from toolkit.formats.ffcv_boxes import BoxDecoder

            self._boxes_n5 = np.zeros((len(images), 5), dtype=np.int32)
            decoder = BoxDecoder(self._boxes_n5, plan.height, plan.width)
        self.loader = open_loader(images.path, batch_size, self._indices_n, workers=workers, decoder=decoder)
        # FFCV refuses an order of one's own at construction (it checks the wrong thing), but asks for it each epoch
        self.loader.traversal_order = self

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

        self._begun += 1
        begun = self._begun
        view_n, slot_n = self.showing.views(epoch)
        geometry_ng = self.showing.geometry(view_n)
        if self._boxes_n5 is not None:
            self._boxes_n5[self._indices_n] = geometry_ng
        self.loader.next_epoch = epoch
        with one_epoch(self.loader) as batches:
            for images_bhwc, labels_b1, rows_b1 in batches:
                if begun != self._begun:
                    raise UsageError("this loader has begun another epoch: one at a time, or open a second loader")
                rows_b = rows_b1[:, 0]
                at = np.searchsorted(self.showing.rows_n, rows_b.numpy())
                drawn_bhwc = images_bhwc.to(self._device)
                if self._boxes_n5 is None:
                    views_b3 = torch.from_numpy(geometry_ng[at]).to(self._device)
                    renderer = Renderer(drawn_bhwc, self.showing.plan)
                    drawn_bhwc = renderer.draw(torch.arange(len(at), device=self._device), views_b3)
                logits_bc = None
                if self._targets is not None:
                    logits_bc = self._targets.gather(torch.from_numpy(slot_n[at] * len(self) + at))
                images_bchw = normalise(drawn_bhwc, self._mean_c, self._std_c)
                yield Batch(images_bchw, labels_b1[:, 0].to(self._device), rows_b.to(self._device), logits_bc)
