"""Networks and data sets of one's own, as a user would write them, for tests: `--arch tests.own_things:plain`."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """conv-relu-conv-relu-pool-linear, without BatchNorm: float64 as well as float32, and no state but weights."""

    def __init__(self, classes: int, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.fc = nn.Linear(2 * channels, classes)

    def features(self, x_bchw: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x_bchw)))).mean(dim=(2, 3))

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.fc(self.features(x_bchw))


class Normed(Plain):
    """With BatchNorm, whose buffers a look at the network must leave alone."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.bn = nn.BatchNorm2d(16)

    def features(self, x_bchw: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv2(F.relu(self.conv1(x_bchw))))).mean(dim=(2, 3))


class Scaled(Plain):
    """A learned scale after the linear layer: 1 at first, so that only watching tells."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.scale * super().forward(x_bchw)


class ChangedInPlace(Scaled):
    def forward(self, x_bchw: Tensor) -> Tensor:
        return Plain.forward(self, x_bchw).mul_(self.scale)


class Remembering(Plain):
    """With extra state that grows, and is no weight."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.seen: list[float] = []

    def forward(self, x_bchw: Tensor) -> Tensor:
        if self.training:
            self.seen.append(float(len(x_bchw)))
        return super().forward(x_bchw)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.seen)

    def set_extra_state(self, state: Tensor) -> None:
        self.seen = state.tolist()


class LinearFirst(Plain):
    """Linear layers defined last and used first: the last one in definition order makes no logits."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.colours = nn.Linear(3, 3)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return super().forward(self.colours(x_bchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class ConvHead(nn.Module):
    """A 1 × 1 convolution makes the logits: there is no linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, classes, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x_bchw))).mean(dim=(2, 3))


class Wrapped(nn.Module):
    """One of kdtool's inside: its images must not be counted twice."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from toolkit.models.zoo import build_model

        self.inner = build_model("resnet8", classes, width=2)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.inner(x_bchw)


class Returning(Plain):
    """What a forward pass returns instead of logits (b, classes)."""

    def __init__(self, classes: int, change: Any) -> None:
        super().__init__(classes)
        self.change = change

    def forward(self, x_bchw: Tensor) -> Any:
        return self.change(self, super().forward(x_bchw))


def parallel(classes: int) -> nn.Module:
    return nn.DataParallel(Plain(classes))


def drawn(classes: int) -> nn.Module:
    return Normed(classes)


class Unused(Plain):
    """A layer that no forward pass uses has no gradient: nothing may move it, weight decay neither."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.unused = nn.Linear(3, 3)


class NormedAtOnce(Normed):
    """Normalised when there is one number of each image: of a single image that can't be."""

    def features(self, x_bchw: Tensor) -> Tensor:
        return self.bn(super(Normed, self).features(x_bchw)[:, :, None, None])[:, :, 0, 0]


class Slow(Plain):
    """Steps of most of a second."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            time.sleep(0.8)
        return super().forward(x_bchw)


plain, scaled, in_place, linear_first, conv_head, wrapped = (
    Plain,
    Scaled,
    ChangedInPlace,
    LinearFirst,
    ConvHead,
    Wrapped,
)

_SHARED = Plain(10)


def shared(classes: int) -> nn.Module:
    return _SHARED


def failing(classes: int) -> nn.Module:
    raise RuntimeError(f"no network of {classes} classes\nfor anyone")


def no_module(classes: int) -> str:
    return "a network"


def empty(classes: int) -> nn.Module:
    return nn.Flatten()


def lazy(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


class Noting(Plain):
    def get_extra_state(self) -> dict[str, str]:
        return {"notes": "of any kind"}


def transposed(classes: int) -> nn.Module:
    return Returning(classes, lambda model, logits_bc: logits_bc.T)


def with_auxiliary(classes: int) -> nn.Module:
    return Returning(classes, lambda model, logits_bc: (logits_bc, logits_bc) if model.training else logits_bc)


def infinite(classes: int) -> nn.Module:
    return Returning(classes, lambda model, logits_bc: logits_bc / 0)


def of_one_size(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, classes))


def of_8(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))


class Viewing(Plain):
    """As networks are written for images that lie channels first."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        read_bd = F.relu(self.conv2(F.relu(self.conv1(x_bchw))))
        return self.fc(read_bd.view(len(x_bchw), -1).view(len(x_bchw), 16, -1).mean(dim=2))


class NeverInitialised(nn.Module):
    def __init__(self, classes: int) -> None:
        self.classes = classes


class Talking(Plain):
    def forward(self, x_bchw: Tensor) -> Tensor:
        print("forward")
        return super().forward(x_bchw)


viewing, never_initialised, talking = Viewing, NeverInitialised, Talking


def exiting(classes: int) -> nn.Module:
    raise SystemExit(0)


def exiting_forward(classes: int) -> nn.Module:
    return Returning(classes, lambda model, logits_bc: exiting(classes))


def frozen(classes: int) -> nn.Module:
    return Plain(classes).requires_grad_(False)


def detached(classes: int) -> nn.Module:
    return Returning(classes, lambda model, logits_bc: logits_bc.detach())


def probabilities(classes: int) -> nn.Module:
    return Returning(classes, lambda model, logits_bc: logits_bc.softmax(dim=1))


def meta(classes: int) -> nn.Module:
    return Plain(classes).to("meta")


def scripted(classes: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        return torch.jit.trace(Plain(classes), torch.rand(2, 3, 8, 8))


not_callable = 3


class Digits:
    """scikit-learn's real digits: 8 × 8 grey arrays, every fifth row to test."""

    def __init__(self, split: str, rows: int | None = None) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        chosen = (np.arange(len(digits.target)) % 5 == 4) == (split == "test")
        self.images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)[:rows]
        self.labels = digits.target[chosen][:rows]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> Any:
        return self.images[row]

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.image(row), int(self.labels[row])


digits = Digits


class Pictures(Digits):
    """PIL images of three kinds, one after another."""

    def image(self, row: int) -> Any:
        from PIL import Image

        return Image.fromarray(self.images[row]).convert(("L", "RGB", "RGBA")[row % 3])


class Tensors(torch.utils.data.Dataset):
    """A torch Dataset of uint8 tensors (1, h, w) and labels as tensors."""

    def __init__(self, split: str) -> None:
        self.of = Digits(split)

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.of.images[row])[None], torch.tensor(self.of.labels[row])


class Sizes(Digits):
    """Images of several sizes, of which resized crops are cut."""

    family, size, least_area = "resized-crop", 8, 50

    def image(self, row: int) -> Any:
        return np.pad(self.images[row], ((0, row % 3), (1, row % 2)))


class Floats(Digits):
    def image(self, row: int) -> Any:
        return torch.from_numpy(self.images[row] / 255)[None]
