"""Images handed over from Python (arrays, PIL images, tensors), and the digits.

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdd.errors import UserError
from mmdd.modalities.images.arrays import (
    as_pixels,
    channels_first,
    order_of_axes,
    require_finite,
)
from mmdd.modalities.images.decode import Tally, to_pixels, upright
from mmdd.modalities.images.pixels import ArrayPixels, Pixels
from mmdd.modalities.tables.arrays import Array, require_one_type, to_numpy
from mmdd.modalities.tables.items import RawSplit
from mmdd.modalities.tables.labels import Labels
from mmdd.modalities.tables.splits import hold_out

DIGITS_TEST = 0.2


def from_values(images: Any) -> ArrayPixels:
    """Take N images: [N, H, W], [N, C, H, W] or [N, H, W, C] of uint8 or floats, or a list.

    Errors: UserError when axes are unclear or pixels are not finite.
    """
    if isinstance(images, list):
        return from_arrays([to_array(image) for image in images])
    array = to_numpy(images)
    order = order_of_axes(array.shape[1:])
    require_finite(array)
    return ArrayPixels(as_pixels(channels_first(array, order)))


def from_arrays(images: list[Array]) -> ArrayPixels:
    """Take a list of [C, H, W] pixels as `to_array` returns them, all bytes or all floats."""
    require_one_type(images, "images")
    return ArrayPixels(images)


def to_array(image: Any) -> Array:
    """Turn one image (PIL, [C, H, W] tensor, [H, W] or [H, W, C] array) into [C, H, W] pixels.

    Errors: UserError for anything else.
    """
    if isinstance(image, Image.Image):
        return np.ascontiguousarray(to_pixels(upright(image), 3, None, Tally()))
    if not isinstance(image, (torch.Tensor, np.ndarray)):
        raise UserError("this is no image", got=type(image), expected="PIL, a tensor or an array")
    array = to_numpy(image)
    pixels = as_pixels(channels_first(array[None], order_of_axes(array.shape)))[0]
    return np.array(pixels, order="C")  # copied: a data set may reuse its buffer


def digits() -> dict[str, RawSplit[Pixels]]:
    """Scikit-learn's 1,797 grey 8x8 digits, with one fixed fifth of every class as the test set."""
    from sklearn.datasets import load_digits

    table = load_digits()
    images = np.rint(table.images * (255 / 16)).astype(np.uint8)[:, None]
    codes = table.target.astype(np.int64)
    train, test = hold_out(codes, round(DIGITS_TEST * len(codes)), seed=0)
    names = tuple(str(digit) for digit in range(10))
    return {
        "train": RawSplit(ArrayPixels(images[train]), Labels(codes[train], names)),
        "test": RawSplit(ArrayPixels(images[test]), Labels(codes[test], names)),
    }
