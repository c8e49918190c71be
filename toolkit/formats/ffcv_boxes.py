"""Drawing resized crops in FFCV's decoder: a row's box comes from a table, so the same integers give the same pixels.

FFCV's own random crops cannot be seeded. Here the box of a row is looked up in compiled code, in a table that is filled
before an epoch begins; threads, order and batch size have no part in it. Importing this module imports FFCV.

Shapes: n rows of the file, h and w height and width of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.formats.ffcv_guard import torch_threads_kept

with torch_threads_kept():
    from ffcv.fields.rgb_image import IMAGE_MODES, ResizedCropRGBImageDecoder
    from ffcv.libffcv import ctypes_imdecode, ctypes_memcopy, ctypes_resize
    from ffcv.pipeline.compiler import Compiler

_NUMBERS = 5  # top, left, height, width, mirrored


def no_boxes(rows: int) -> np.ndarray:
    """A table to be filled: (n, 5) uint16, as sides are at most 65,535 pixels."""
    return np.zeros((rows, _NUMBERS), dtype=np.uint16)


class BoxDecoder(ResizedCropRGBImageDecoder):
    """Cuts each row's box out of its raw or JPEG frame, scales it to (h, w) by area averaging as FFCV does, and mirrors
    it where the table says so.

    `boxes_n5` is uint16, of all rows of the file; change it in place between epochs, never within one.
    """

    def __init__(self, boxes_n5: np.ndarray, height: int, width: int) -> None:
        super().__init__((height, width))
        if boxes_n5.dtype != np.uint16 or boxes_n5.shape[1:] != (_NUMBERS,) or not boxes_n5.flags.c_contiguous:
            found = f"{boxes_n5.dtype} {boxes_n5.shape}"
            raise ValueError(f"boxes must be (n, {_NUMBERS}) uint16 in one piece, got {found}")
        self.boxes_n5 = boxes_n5

    @property
    def get_crop_generator(self) -> Any:
        raise NotImplementedError  # FFCV asks its own crop decoders; this one looks boxes up

    def generate_code(self) -> Callable[..., Any]:
        jpeg = IMAGE_MODES["jpg"]
        read, batch_range = self.memory_read, Compiler.get_iterator()
        # FFCV's C functions themselves: Numba loses track of FFCV's Python wrappers when a second loader is compiled
        decode_jpeg, resize, copy = ctypes_imdecode, ctypes_resize, ctypes_memcopy
        # Numba freezes an array it closes over into the code; an address stays an address
        table, box_bytes = np.uint64(self.boxes_n5.ctypes.data), np.uint64(self.boxes_n5.strides[0])

        def decode(batch_indices, my_storage, metadata, storage_state):  # type: ignore[no-untyped-def]
            destination, scratch = my_storage
            for at in batch_range(len(batch_indices)):
                row = np.uint64(batch_indices[at])
                field = metadata[row]
                frame = read(field["data_ptr"], storage_state)
                height, width = np.int64(field["height"]), np.int64(field["width"])
                if field["mode"] == jpeg:
                    stored, frame = frame, scratch[at]
                    no = height == 0
                    decode_jpeg(
                        stored.ctypes.data, stored.size, height, width, frame.ctypes.data,
                        height, width, 0, 0, 1, 1, no, no,
                    )  # fmt: skip
                box = np.empty(5, np.uint16)
                copy(table + box_bytes * row, box.ctypes.data, box_bytes)
                top, left, drawn = np.int64(box[0]), np.int64(box[1]), destination[at]
                bottom, right = top + np.int64(box[2]), left + np.int64(box[3])
                resize(
                    0, frame.ctypes.data, height, width, top, bottom, left, right,
                    drawn.ctypes.data, drawn.shape[0], drawn.shape[1],
                )  # fmt: skip
                if box[4] == 1:
                    last = drawn.shape[1] - 1
                    for y in range(drawn.shape[0]):
                        for x in range(drawn.shape[1] // 2):
                            for channel in range(3):
                                swapped = drawn[y, x, channel]
                                drawn[y, x, channel] = drawn[y, last - x, channel]
                                drawn[y, last - x, channel] = swapped
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode
