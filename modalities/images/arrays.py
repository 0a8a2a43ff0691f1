"""Images that come as numbers: which axis is which, and which type they are kept in.

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array

MOST_CHANNELS = 16  # an axis longer than this is not taken for channels
BLOCK_BYTES = 2**25  # arrays are checked in blocks, not to be copied whole


def order_of_axes(shape: tuple[int, ...]) -> str:
    """Say which axis of one image holds the channels: "HW", "CHW" or "HWC".

    Channels come first where both ends could be channels, as everywhere in PyTorch.

    Errors: UserError when neither end could be.
    """
    if len(shape) == 2:
        return "HW"
    if len(shape) == 3:
        first, last = shape[0], shape[2]
        for possible in ({1, 3}, {4}, set(range(2, MOST_CHANNELS + 1))):
            if first in possible:
                return "CHW"
            if last in possible:
                return "HWC"
    raise UserError(
        "cannot tell the channels of the images",
        got=shape,
        expected="[H, W], [C, H, W] or [H, W, C] for one image, C being 1 or 3",
    )


def channels_first(images: Array, order: str) -> Array:
    """View images [N, ...] of the given order as [N, C, H, W], without copying."""
    if order == "HW":
        return images[:, None]
    return np.moveaxis(images, -1, 1) if order == "HWC" else images


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """How the arrays of an Arrow column are stored.

    Attributes
    ----------
    shape: of one stored array.
    dtype: what the pixels become, uint8 or float32.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __call__(self, stored: pa.Array) -> Array:
        """Turn n stored arrays without nulls into [n, C, H, W], without copying 8-bit ones.

        Errors: UserError when the arrays are not of one shape, or hold no pixels (`as_pixels`).
        """
        values = stored.storage if isinstance(stored, pa.ExtensionArray) else stored
        for length in self.shape:
            if not _all_of_length(values, length):
                raise UserError(
                    f"image arrays are not all of shape {self.shape}",
                    hint="Store them as encoded images (datasets.Image), which may differ in size",
                )
            values = values.flatten()
        images = values.to_numpy(zero_copy_only=False).reshape(len(stored), *self.shape)
        return as_pixels(channels_first(images, order_of_axes(self.shape)))


def _all_of_length(lists: pa.Array, length: int) -> bool:
    if pa.types.is_fixed_size_list(lists.type):
        return bool(lists.type.list_size == length)
    lengths = lists.value_lengths()
    return bool((lengths.to_numpy(zero_copy_only=False) == length).all())


def as_pixels(images: Array) -> Array:
    """Bring numbers to uint8 or float32: whole numbers are 8-bit (or uint16, scaled), floats stay.

    Errors: UserError for whole numbers outside 0..255, and for other types.
    """
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype == np.uint16:
        return ((images.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if images.dtype.kind in "iu":
        return _whole_to_bytes(images)
    if images.dtype.kind == "f":
        return images.astype(np.float32, copy=False)
    raise UserError("pixels of this type", got=str(images.dtype), expected="uint8 or float32")


def _whole_to_bytes(images: Array) -> Array:
    low, high = (int(images.min()), int(images.max())) if images.size else (0, 0)
    if low < 0 or high > 255:
        raise UserError(
            "whole-numbered pixels are out of range",
            got=(low, high),
            expected="0..255",
            hint="Convert them to float, which may have any range",
        )
    return images.astype(np.uint8)


def require_finite(images: Array, rows: Array | None = None, where: str = "") -> None:
    """Refuse NaN and infinity in images [N, ...], saying how many and where the first is.

    `rows` [N] are the numbers that the images have in the source, `where` is its split.
    """
    if images.dtype.kind != "f":
        return
    step = max(1, BLOCK_BYTES // max(1, images[:1].nbytes))
    bad, first = 0, None
    for start in range(0, len(images), step):
        block = images[start : start + step]
        wrong = ~np.isfinite(block).reshape(len(block), -1)
        count = int(wrong.sum())
        if count and first is None:
            first = start + int(wrong.any(axis=1).argmax())
        bad += count
    if first is not None:
        number = first if rows is None else int(rows[first])
        raise UserError(
            f"{bad} pixels are NaN or infinite, the first in image {number}{where}",
            expected="finite pixels",
        )
