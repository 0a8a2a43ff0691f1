"""Which column of a table holds the images, and how they are stored in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import datasets
import numpy as np

from mmdd.errors import UserError
from mmdd.modalities.images.arrays import ArrayLayout
from mmdd.modalities.images.pixels import ColumnPixels
from mmdd.modalities.tables.columns import (
    OneColumn,
    choose_with,
    given_column,
    is_binary,
    is_file,
    kinds_of,
    only_column,
    stored,
)

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


@dataclasses.dataclass(frozen=True)
class ImageColumn(OneColumn):
    """The chosen column; `to_array` is None for encoded images."""

    field = "image"
    to_array: ArrayLayout | None

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> ColumnPixels:
        """Return the images of one split."""
        self.require(dataset, split)
        return ColumnPixels(dataset, self.column, self.to_array, root)


def find_images(dataset: datasets.Dataset, image: str | None) -> ImageColumn:
    """Choose the image column of a table.

    Parameters
    ----------
    dataset: the training split; at least one row.
    image: the name that the user gave, or None.

    Errors: UserError when the given name is unknown or unfit, when nothing fits, or several do.
    """
    image, kind = _find_image(dataset, image)
    return ImageColumn(image, _layout(dataset, image) if kind == "array" else None)


def _find_image(dataset: datasets.Dataset, given: str | None) -> tuple[str, str]:
    """Name and kind of the column."""
    kinds = kinds_of(dataset, _image_kind, IMAGE_FILES)
    if given is not None:
        fit = "images, bytes or arrays"
        return given, given_column(dataset, given, kinds, "image", many="images", fit=fit)
    found = only_column(kinds, ("image", "bytes", "array", "file"), "image")
    if found is not None:
        return found
    hint = f"{choose_with('image')}, or say what the data are, e.g. modality=timeseries"
    raise UserError("no column holds images", got=dataset.column_names, hint=hint)


def _image_kind(feature: Any) -> str | None:
    """Say how a column can be read as images: "image", "bytes", "array", or None for not at all."""
    if isinstance(feature, datasets.Image):
        return "image"
    if is_file(feature) or is_binary(feature):
        return "bytes"
    if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
        return "array"
    depth = 0
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature, depth = feature.feature, depth + 1
    kinds = ("uint", "int", "float", "bool")
    numbers = isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)
    return "array" if numbers and depth in (2, 3) else None


def _layout(dataset: datasets.Dataset, column: str) -> ArrayLayout:
    """Read the shape of the first array; the others are compared with it when they are read."""
    feature, shape = dataset.features[column], []
    value = stored(dataset.take(1), column).combine_chunks()[0].as_py()
    while isinstance(value, (list, np.ndarray)):
        shape.append(len(value))
        value = value[0] if len(value) else None
    if value is None:
        raise UserError(f"the first image of column {column!r} is empty or missing")
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature = feature.feature
    floats = feature.dtype.startswith("float")
    return ArrayLayout(tuple(shape), np.dtype(np.float32 if floats else np.uint8))
