"""CIFAR-style residual networks: He et al., Deep Residual Learning for Image Recognition (CVPR 2016), section 4.2.

A 3×3 stem, three stages of n basic blocks with widths (w, 2w, 4w), global average pooling and one linear layer: depth
6n + 2. Where a stage halves the map, the shortcut subsamples and pads channels with zeros (the paper's option A),
so it has no parameters. Any input size works from 8 × 8 up.

Shapes: b batch, c channels, h and w height and width, d features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (8, 14, 20, 32, 44, 56, 110)


class BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.extra_channels = channels_out - channels_in

    def shortcut(self, x_bchw: Tensor) -> Tensor:
        if self.stride == 1 and self.extra_channels == 0:
            return x_bchw
        before = self.extra_channels // 2
        # windows of one pixel subsample as slicing does; unlike slicing's, their gradient stays channels last: adding
        # up two layouts is slow on a CPU
        x_bchw = F.avg_pool2d(x_bchw, kernel_size=1, stride=self.stride)
        return F.pad(x_bchw, (0, 0, 0, 0, before, self.extra_channels - before))

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw = F.relu(self.bn1(self.conv1(x_bchw)))
        return F.relu(self.bn2(self.conv2(y_bchw)) + self.shortcut(x_bchw))


class CifarResNet(nn.Module):
    """`forward(x_bchw) -> logits_bc`. `depth` is 6n + 2; `width` is the first stage's channels (16 in the paper)."""

    def __init__(self, depth: int, classes: int, width: int = 16) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stage1 = self._stage(width, width, blocks, stride=1)
        self.stage2 = self._stage(width, 2 * width, blocks, stride=2)
        self.stage3 = self._stage(2 * width, 4 * width, blocks, stride=2)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels_out, stride)
        return nn.Sequential(first, *[BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)])

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_bchw = F.relu(self.bn1(self.conv1(x_bchw)))
        x_bchw = self.stage3(self.stage2(self.stage1(x_bchw)))
        return self.fc(x_bchw.mean(dim=(2, 3)))
