"""How an image folder is packed, as data: the command's options, the record's words and the hints to pack it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from toolkit.core.errors import UsageError, unknown_name

FAMILIES = ("resized-crop", "resized-crop-flip")
WRITE_MODES = ("jpg", "raw", "smart")
ON_BAD = ("fail", "skip")

_MOST_RESOLUTION = 8192


@dataclass(frozen=True)
class FolderSettings:
    """How a folder's images are packed: `max_resolution` is the longer side's, `size` the network's input, `least_area`
    in percent. Raises UsageError, naming the option, for what can't be."""

    max_resolution: int = 500
    write_mode: str = "jpg"
    jpeg_quality: int = 90
    size: int = 224
    family: str = "resized-crop-flip"
    least_area: int = 8
    on_bad: str = "fail"

    def __post_init__(self) -> None:
        for name, known in (("write_mode", WRITE_MODES), ("family", FAMILIES), ("on_bad", ON_BAD)):
            if getattr(self, name) not in known:
                raise unknown_name(option(name), getattr(self, name), list(known))
        ranges = {"max_resolution": (2, _MOST_RESOLUTION), "jpeg_quality": (1, 100)}
        for name, (least, most) in {**ranges, "size": (1, _MOST_RESOLUTION), "least_area": (1, 100)}.items():
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"{option(name)} must be {least} to {most:,}, got {getattr(self, name)}")

    @property
    def stored_quality(self) -> int | None:
        """What raw pixels have none of."""
        return None if self.write_mode == "raw" else self.jpeg_quality

    @property
    def recorded(self) -> dict[str, Any]:
        """What the record of packed data says of these: all that changes a pixel or a view."""
        decides = {name: value for name, value in asdict(self).items() if name != "on_bad"}
        return {**decides, "jpeg_quality": self.stored_quality}


FOLDER_OPTIONS = tuple(field.name for field in fields(FolderSettings))


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
