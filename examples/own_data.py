"""A data set of one's own: a function of the split that returns a torch Dataset of (image, label).

Run: kdtool train-teacher --dataset examples.own_data:digits --arch resnet8 --epochs 30 --name on-own-data

So it is named to every command that takes --dataset. Images are PIL's, uint8 arrays or uint8 tensors, before
ToTensor(): kdtool packs them once, and normalises by the training split's mean and deviation. From then on the module
is not needed.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset


class Digits(Dataset):
    """scikit-learn's digits, twice as large; every fifth is kept for the test split."""

    classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    family = "pad-crop"  # shifted, but never mirrored, as "pad-crop-flip" would
    padding = 2

    def __init__(self, split: str) -> None:
        found = load_digits()
        kept = (np.arange(len(found.target)) % 5 == 4) == (split == "test")
        self.images, self.labels = found.images[kept], found.target[kept]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        pixels = np.rint(self.images[row] * (255 / 16)).astype(np.uint8)
        return Image.fromarray(pixels).resize((16, 16)), int(self.labels[row])


def digits(split: str) -> Dataset:
    return Digits(split)
