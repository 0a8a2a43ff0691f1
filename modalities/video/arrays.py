"""Clips as arrays: which axis is which, and how tables store them.

Shape suffixes: N clips, T frames, C channels, H height, W width.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from mmdd.errors import UserError
from mmdd.modalities.images.arrays import as_pixels, order_of_axes
from mmdd.modalities.tables.arrays import Array


def order_of_clip(shape: tuple[int, ...]) -> str:
    """Name the axes of one clip: "THW", "THWC", "TCHW" or "CTHW".

    The axis of 1 or 3 (else 4) is the channels'; frames come first where several axes could be.

    Errors: UserError when none could be.
    """
    if len(shape) == 3:
        return "THW"
    if len(shape) == 4:
        for possible in ({1, 3}, {4}):
            if shape[3] in possible:
                return "THWC"
            if shape[1] in possible:
                return "TCHW"
            if shape[0] in possible:
                return "CTHW"
        return f"T{order_of_axes(shape[1:])}"
    raise UserError(
        "cannot tell the axes of the clips",
        got=shape,
        expected="[T, H, W], [T, H, W, C], [T, C, H, W] or [C, T, H, W] for one clip",
    )


def frames_first(clip: Array) -> Array:
    """View one clip as [T, C, H, W], without copying, its pixels uint8 or float32.

    Errors: UserError for axes or numbers that hold no clip.
    """
    order = order_of_clip(clip.shape)
    pixels = as_pixels(clip[..., None] if order == "THW" else clip)
    order = "THWC" if order == "THW" else order
    return pixels.transpose([order.index(axis) for axis in "TCHW"])


def of_lists(stored: pa.Array) -> Array:
    """Turn one stored clip (an array of length 1, of nested lists) into an array [a, b, ...].

    Errors: ValueError when lists of one level differ in length.
    """
    values = stored.storage if isinstance(stored, pa.ExtensionArray) else stored
    shape: list[int] = []
    while pa.types.is_nested(values.type):
        count = len(values)
        values = values.flatten()
        shape.append(len(values) // max(1, count))
        if len(values) != count * shape[-1]:
            raise ValueError("its frames differ in size")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
