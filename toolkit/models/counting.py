"""How many images went forward, through each network and through all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class _Ledger:
    """Images that went forward, through any network counted here, in this process."""

    images = 0


_COUNTING: WeakKeyDictionary[nn.Module, RemovableHandle] = WeakKeyDictionary()


def counted(model: nn.Module) -> nn.Module:
    """The network, counting at itself every image that goes forward through it; parts of it count no more."""
    for part in model.modules():
        if part in _COUNTING:
            _COUNTING.pop(part).remove()

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        _Ledger.images += args[0].shape[0]
        module.images_seen += args[0].shape[0]  # type: ignore[operator,assignment]

    model.images_seen = 0  # type: ignore[assignment]
    _COUNTING[model] = model.register_forward_pre_hook(count)
    return model


def images_seen(model: nn.Module | None = None) -> int:
    """How many images went forward through `model`, or through every network counted in this process."""
    return _Ledger.images if model is None else int(model.images_seen)  # type: ignore[arg-type]


@contextmanager
def uncounted(model: nn.Module) -> Iterator[None]:
    """What goes forward through `model` meanwhile is only asked to know the network, and does not count."""
    in_all, seen = _Ledger.images, getattr(model, "images_seen", None)
    try:
        yield
    finally:
        _Ledger.images = in_all
        if seen is not None:
            model.images_seen = seen  # type: ignore[assignment]
