"""Images handed over from Python: arrays, PIL images, and data sets of PyTorch; and the digits.

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mmdd.errors import UserError
from mmdd.modalities.images.arrays import (
    as_pixels,
    channels_first,
    order_of_axes,
    require_finite,
    to_numpy,
)
from mmdd.modalities.images.columns import Labels, encode
from mmdd.modalities.images.decode import Array, Tally, to_pixels, upright
from mmdd.modalities.images.options import ImageData
from mmdd.modalities.images.pixels import ArrayPixels, Pixels
from mmdd.modalities.images.splits import hold_out
from mmdd.progress import for_terminal

MANY = 5000  # items whose reading deserves processes and a bar
DIGITS_TEST = 0.2


@dataclasses.dataclass(frozen=True)
class RawSplit:
    """One split of a source; `labels` is None when it has none at all."""

    pixels: Pixels
    labels: Labels | None


def is_pair(source: Any) -> bool:
    """True for (images, labels); a list of two (image, label) items is none."""
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        return False
    images = source[0]
    return (hasattr(images, "shape") and hasattr(images, "dtype")) or isinstance(images, list)


def from_pair(images: Any, labels: Any) -> RawSplit:
    """Take (images, labels).

    Parameters
    ----------
    images: [N, H, W], [N, C, H, W] or [N, H, W, C] of uint8 or floats, or a list of images.
    labels: N class numbers or names.

    Errors: UserError when lengths differ, axes are unclear or pixels are not finite.
    """
    if len(images) != len(labels):
        raise UserError(
            "images and labels differ in number", got=(len(images), len(labels)), expected="equal"
        )
    if isinstance(images, list):
        pixels = ArrayPixels(_same_type([to_array(image) for image in images]))
    else:
        array = to_numpy(images)
        order = order_of_axes(array.shape[1:])
        require_finite(array)
        pixels = ArrayPixels(as_pixels(channels_first(array, order)))
    return RawSplit(pixels, labels_of(labels))


def labels_of(labels: Any) -> Labels:
    """Turn N labels (numbers, strings, None) into classes."""
    if hasattr(labels, "shape"):
        labels = to_numpy(labels)
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.ndim != 1:
            raise UserError(
                "labels are not one class per image",
                got=labels.shape,
                expected="[N] class numbers or names",
                hint="One-hot labels: pass labels.argmax(1)",
            )
    else:
        labels = [label.item() if hasattr(label, "item") else label for label in labels]
    try:
        column = pa.chunked_array([pa.array(labels)])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"labels are not of one type: {_line(error)}") from error
    return encode(column, None, "labels")


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


def _same_type(images: list[Array]) -> list[Array]:
    kinds = sorted({str(image.dtype) for image in images})
    if len(kinds) > 1:
        raise UserError("some images hold bytes and some floats", got=kinds, expected="one type")
    return images


def from_torch(dataset: Any, options: ImageData) -> RawSplit:
    """Read a map-style data set of (image, label) once; random transforms are frozen by that.

    Errors: UserError naming the first item that cannot be read.
    """
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return from_pair(*dataset.tensors)
    count = len(dataset)
    loader: DataLoader[Any] = DataLoader(
        _Items(dataset, options.image or "image", options.label or "label"),
        batch_size=64,
        collate_fn=list,
        num_workers=_workers(count, options.workers),
    )
    images, labels = [], []
    quiet = count <= MANY or not sys.stderr.isatty()
    with for_terminal(quiet).task("reading images", count) as update:
        for batch in loader:
            for image, label in batch:
                if isinstance(image, str):
                    raise UserError(image)
                images.append(image)
                labels.append(label)
            update(len(images))
    return RawSplit(ArrayPixels(_same_type(images)), _named(labels_of(labels), dataset))


def _named(labels: Labels, dataset: Any) -> Labels:
    """Use the names of a torchvision set's `classes`, where its labels are numbers of these."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)) or len(set(map(str, names))) < len(names):
        return labels
    places = [str(number) for number in range(len(names))]
    if not set(labels.names) <= set(places):
        return labels
    return Labels(labels.in_terms_of(places).codes, tuple(map(str, names)))


def _workers(count: int, given: int | None) -> int:
    if given is not None:
        return given
    spare = (os.cpu_count() or 1) - 1
    # One process would only add the cost of sending the images back.
    return min(spare, 8) if count > MANY and spare > 1 else 0


class _Items(Dataset[tuple[Any, Any]]):
    """Items as ([C, H, W], label); or (what is wrong, None), since workers garble exceptions."""

    def __init__(self, dataset: Any, image: str, label: str) -> None:
        self.dataset, self.image, self.label = dataset, image, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        try:
            image, label = self._parts(self.dataset[number])
            return to_array(image), label.item() if hasattr(label, "item") else label
        except Exception as error:  # the user's code may raise anything
            return f"item {number} of the data set cannot be read: {_line(error)}", None

    def _parts(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, dict):
            return item[self.image], item[self.label]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise TypeError(f"expected (image, label), got {type(item).__name__}")
        return item[0], item[1]


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, UserError):
        return text[0]
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def digits() -> dict[str, RawSplit]:
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
