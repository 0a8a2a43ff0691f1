"""How images are found in tables and taken from Python: what `modalities.tables` asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from mmdd.modalities.images.columns import ImageColumn, find_images
from mmdd.modalities.images.in_memory import digits, from_arrays, from_values, to_array
from mmdd.modalities.images.options import ImageData
from mmdd.modalities.images.pixels import Pixels
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.items import RawSplit, Reader
from mmdd.modalities.tables.words import Words

WORDS = Words(
    one="image",
    many="images",
    source="a name or path, e.g. digits",
    folder="parquet files, train/<class>/*.png",
    unlabelled="A folder of images needs one folder per class, and two of these or more",
)


class RawImages(Reader[Pixels]):
    """Images of any size and mode, in columns, files and Python objects."""

    words = WORDS
    builders: Mapping[str, str] = {".zip": "imagefolder"}
    built_in = ("digits",)

    def __init__(self, options: ImageData) -> None:
        self.image, self.workers = options.image, options.workers
        self.field = options.image or "image"

    def known(self, name: str) -> Mapping[str, RawSplit[Pixels]] | None:
        """The built-in digits."""
        return digits() if name in self.built_in else None

    def find(self, dataset: datasets.Dataset) -> ImageColumn:
        """Choose the image column; see `find_images`."""
        return find_images(dataset, self.image)

    def of_values(self, values: Any) -> Pixels:
        """Arrays and lists; see `from_values`."""
        return from_values(values)

    def convert(self, item: Any) -> Array:
        """One image as [C, H, W]; see `to_array`."""
        return to_array(item)

    def collect(self, items: list[Any]) -> Pixels:
        """Join what `convert` returned."""
        return from_arrays(items)
