"""A network of one's own as student: a function of the number of classes, named on the command line.

First: kdtool cache-teacher --dataset digits, then kdtool build-subset --dataset digits --frac 0.5
Run: kdtool distill --subset digits-random-0.5-s0 --arch examples.own_network:small --epochs 30 --name small
Then: kdtool evaluate kdtool-work/runs/small --arch examples.own_network:small

kdtool looks for the module in the current folder first, and seeds torch before it calls the function. A checkpoint
never chooses which code runs, so evaluate is told the network again.
"""

from __future__ import annotations

from torch import Tensor, nn


class Small(nn.Module):
    """(b, 3, h, w) to logits (b, classes). What its last linear layer reads are the features."""

    def __init__(self, classes: int, channels: int = 32) -> None:
        super().__init__()
        self.stem = block(3, channels, stride=1)
        self.body = nn.Sequential(block(channels, 2 * channels, stride=2), block(2 * channels, 2 * channels, stride=1))
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x_bchw)).mean(dim=(2, 3)))


def block(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


def small(classes: int) -> nn.Module:
    return Small(classes)
