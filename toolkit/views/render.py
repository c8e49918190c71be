"""Drawing views: one tensor operation for a whole batch, on the device that holds the images.

Shapes: n rows held, b batch, h and w height and width (H and W with the border), c channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.views.plan import Plan


class Renderer:
    """Holds n uint8 images with their black border and draws any view of any of them."""

    def __init__(self, images_nhwc: Tensor, plan: Plan) -> None:
        if tuple(images_nhwc.shape[1:3]) != (plan.height, plan.width):
            raise ValueError(f"images are {tuple(images_nhwc.shape)}, the plan is for {plan.height} × {plan.width}")
        border = plan.padding
        self.plan = plan
        self.bordered_nHWc = F.pad(images_nhwc, (0, 0, border, border, border, border))
        self._y_h = torch.arange(plan.height, device=images_nhwc.device)
        self._x_w = torch.arange(plan.width, device=images_nhwc.device)

    def draw(self, rows_b: Tensor, dy_b: Tensor, dx_b: Tensor, mirrored_b: Tensor) -> Tensor:
        """The views (dy, dx, mirrored) of the rows at positions `rows_b`: (b, h, w, 3) uint8.

        The image is shifted first, then mirrored, as torchvision's RandomCrop and RandomHorizontalFlip do in turn.
        """
        border, width = self.plan.padding, self.plan.width
        _, H, W, channels = self.bordered_nHWc.shape
        y_bh = self._y_h + (dy_b + border)[:, None]
        x_bw = torch.where(mirrored_b[:, None], width - 1 - self._x_w, self._x_w) + (dx_b + border)[:, None]
        pixel_bhw = (rows_b[:, None] * H + y_bh)[:, :, None] * W + x_bw[:, None, :]
        flat = self.bordered_nHWc.view(-1, channels).index_select(0, pixel_bhw.flatten())
        return flat.view(*pixel_bhw.shape, channels)


def normalise(images_bhwc: Tensor, mean_c: Tensor, std_c: Tensor) -> Tensor:
    """uint8 pixels to the network's input: (b, c, h, w) in the dtype of `mean_c`, channels last in memory.

    `mean_c` and `std_c` are in units of 0 … 1 pixel values.
    """
    scaled_bhwc = (images_bhwc.to(mean_c.dtype) - 255 * mean_c) / (255 * std_c)
    return scaled_bhwc.permute(0, 3, 1, 2)
