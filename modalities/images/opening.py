"""A set of pictures, still or moving, on its way from parts to data.

Shape suffixes: C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Generic, TypeVar

import numpy as np

from mmdd.errors import UserError
from mmdd.modalities.images.decode import Geometry, Tally
from mmdd.modalities.images.pixels import StoredPixels
from mmdd.modalities.tables.parts import Parts

P = TypeVar("P", bound=StoredPixels)


@dataclasses.dataclass(kw_only=True)
class Opening(Generic[P]):
    """What is known of a set while it is opened.

    Attributes
    ----------
    parts: train, and validation and test where there are any.
    names: of the classes.
    geometry: the shape of all pictures.
    notes: sentences for the user.
    tally: what decoding did.
    failures: items that cannot be read, and why.
    """

    parts: Parts[P]
    names: tuple[str, ...]
    geometry: Geometry
    notes: list[str]
    tally: Tally = dataclasses.field(default_factory=Tally)
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an item: (C, H, W)."""
        return self.geometry.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels as kept."""
        return self.parts["train"].items.dtype

    @property
    def total(self) -> int:
        """Items of all parts."""
        return sum(len(part) for part in self.parts.values())

    @property
    def nbytes(self) -> int:
        """Size of all parts once decoded."""
        return self.total * math.prod(self.shape) * self.dtype.itemsize

    def say_altered(self, pictures: str) -> None:
        """Note what decoding did to the `pictures`, beyond what was said of their shape."""
        tally, height, width = self.tally, self.geometry.height, self.geometry.width
        said = any("are resized and cropped" in note for note in self.notes)
        if tally.flattened:
            self.notes.append(f"{tally.flattened} {pictures} with transparency were put on white")
        if tally.greyed:
            self.notes.append(f"{tally.greyed} colour {pictures} were turned grey")
        if tally.resized and not said:
            self.notes.append(
                f"{tally.resized} {pictures} of another size were fitted to {height}x{width}"
            )


def require_one_dtype(parts: Parts[P]) -> None:
    """Refuse splits of which one holds bytes and another floats."""
    kinds = {role: str(part.items.dtype) for role, part in parts.items()}
    if len(set(kinds.values())) > 1:
        raise UserError("the splits differ in type", got=kinds, expected="all bytes or all floats")
