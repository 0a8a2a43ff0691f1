"""Which column of a table holds the images, and how they are stored in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from mmdd.errors import UserError
from mmdd.modalities.images.arrays import ArrayLayout
from mmdd.modalities.images.pixels import ColumnPixels
from mmdd.modalities.tables.columns import (
    ambiguous,
    choose_with,
    is_binary,
    is_file,
    is_text,
    listed,
    require_column,
    stored,
)

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FIRST_ROWS = 20  # looked at to tell a column of file names


@dataclasses.dataclass(frozen=True)
class ImageColumn:
    """The chosen column; `to_array` is None for encoded images."""

    image: str
    to_array: ArrayLayout | None

    @property
    def names(self) -> Mapping[str, str]:
        """The column under the field's name."""
        return {"image": self.image}

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> ColumnPixels:
        """Return the images of one split."""
        require_column(self.image, dataset.column_names, f"image column in split {split!r}")
        return ColumnPixels(dataset, self.image, self.to_array, root)


def find_images(dataset: datasets.Dataset, image: str | None) -> ImageColumn:
    """Choose the image column of a table.

    Parameters
    ----------
    dataset: the training split; at least one row.
    image: the name that the user gave, or None.

    Errors: UserError when the given name is unknown or unfit, when nothing fits, or several do.
    """
    image = _find_image(dataset, image)
    array = _image_kind(dataset.features[image]) == "array"
    return ImageColumn(image, _layout(dataset, image) if array else None)


def _find_image(dataset: datasets.Dataset, given: str | None) -> str:
    kinds = {name: _image_kind(feature) for name, feature in dataset.features.items()}
    for name, feature in dataset.features.items():
        if kinds[name] is None and _holds_file_names(dataset, name, feature):
            kinds[name] = "file"
    if given is not None:
        require_column(given, dataset.column_names, "image column")
        if kinds[given] is None:
            raise UserError(
                f"column {given!r} holds no images",
                got=str(dataset.features[given]),
                expected=listed(name for name in kinds if kinds[name]) or "images, bytes or arrays",
            )
        return given
    for kind in ("image", "bytes", "array", "file"):
        found = [name for name in kinds if kinds[name] == kind]
        if len(found) > 1:
            raise ambiguous("image", found)
        if found:
            return found[0]
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


def _holds_file_names(dataset: datasets.Dataset, name: str, feature: Any) -> bool:
    if not is_text(feature):
        return False
    first = stored(dataset.take(min(FIRST_ROWS, len(dataset))), name).to_pylist()
    return all(isinstance(value, str) and value.lower().endswith(IMAGE_FILES) for value in first)


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
