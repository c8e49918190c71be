"""Drawing pad-crop views: one tensor operation for a whole batch, on the device that holds the images.

Boxes of resized crops are drawn in FFCV's decoder instead (`formats/ffcv_boxes.py`).

Shapes: n rows held, b batch, h and w height and width (H and W with the border), c channels, r a row's w · c values.
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
        if plan.padding is None:
            raise ValueError(f"a plan of {plan.family} is drawn in FFCV's decoder")
        border = plan.padding
        self.border, self.width = border, plan.width
        self.bordered_nHWc = F.pad(images_nhwc, (0, 0, border, border, border, border))
        self._y_h = torch.arange(plan.height, device=images_nhwc.device)
        self._x_w = torch.arange(plan.width, device=images_nhwc.device)

    def draw(self, rows_b: Tensor, views_b3: Tensor) -> Tensor:
        """The views (dy, dx, mirrored; integers) of the rows at positions `rows_b`: (b, h, w, 3) uint8.

        The image is shifted first, then mirrored, as torchvision's RandomCrop and RandomHorizontalFlip do in turn.
        """
        dy_b1, dx_b1, mirrored_b1 = views_b3.long().split(1, dim=1)
        _, H, W, channels = self.bordered_nHWc.shape
        y_bh = self._y_h + (dy_b1 + self.border)
        x_bw = torch.where(mirrored_b1 == 1, self.width - 1 - self._x_w, self._x_w) + (dx_b1 + self.border)
        pixel_bhw = (rows_b[:, None] * H + y_bh)[:, :, None] * W + x_bw[:, None, :]
        flat = self.bordered_nHWc.view(-1, channels).index_select(0, pixel_bhw.flatten())
        return flat.view(*pixel_bhw.shape, channels)


def normalise(images_bhwc: Tensor, mean_c: Tensor, std_c: Tensor) -> Tensor:
    """uint8 pixels to the network's input: (b, c, h, w) in the dtype of `mean_c`, channels last in memory.

    `mean_c` and `std_c` are in units of 0 … 1 pixel values.
    """
    # a row of pixels at a time: over the three channels alone a CPU's loops are too short, and four times slower
    width = images_bhwc.shape[2]
    shift_r, scale_r = (255 * mean_c).repeat(width), (255 * std_c).repeat(width)
    scaled_bhr = images_bhwc.flatten(2).to(mean_c.dtype).sub_(shift_r).div_(scale_r)
    return scaled_bhr.view(images_bhwc.shape).permute(0, 3, 1, 2)
