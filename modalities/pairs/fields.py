"""The two fields of the pairs of one split, before they are read.

A field is one of three kinds: images, vectors, or texts. The second one may have several values for
an item (the captions of an image).

Shape suffixes: N items of a split, C values of the second field, D numbers of a vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.images.in_memory import from_values
from mmdd.modalities.images.pixels import Pixels
from mmdd.modalities.tables.arrays import Array, to_numpy
from mmdd.modalities.text.texts import from_vectors


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Ready vectors.

    Attributes
    ----------
    values: [C, D] float16 or float32.
    counts: [N] how many of them each item has, one after the other.
    """

    values: Array
    counts: Array

    def __len__(self) -> int:
        return len(self.counts)


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts: none, one or several for each of N items."""

    values: Sequence[Sequence[str | None] | None]

    def __len__(self) -> int:
        return len(self.values)


Field = Pixels | Vectors | Texts


@dataclasses.dataclass(frozen=True)
class PairItems:
    """Both fields of a split, item by item.

    Attributes
    ----------
    keys: [N] what tells which items are one, None for an item of its own; or None where nothing
        was named: then the first field itself tells.
    """

    first: Field
    second: Field
    keys: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.first)


def of_vectors(values: Array, name: str) -> Vectors:
    """Take [N, D] floats, or [N, k, D]: k vectors for each item.

    Errors: UserError when they are no vectors of floats, or not finite.
    """
    several = values.ndim == 3
    flat = values.reshape(-1, values.shape[-1]) if several else values
    found = from_vectors(flat, name).vectors
    assert found is not None
    counts = np.full(len(values), values.shape[1] if several else 1, np.int64)
    return Vectors(found, counts)


def of_values(values: Any, name: str, *, second: bool) -> Field:
    """Take N values from Python: vectors [N, D], images, or texts.

    Parameters
    ----------
    values: an array, a tensor or a list. The `second` field may be [N, k, D], or lists of texts.
    name: of the field, for messages.

    Errors: UserError for anything else.
    """
    if hasattr(values, "shape") and hasattr(values, "dtype") and not _holds_objects(values):
        array = to_numpy(values)
        vectors = array.ndim == 2 or (second and array.ndim == 3 and array.dtype.kind == "f")
        return of_vectors(array, f"the values of {name!r}") if vectors else from_values(array)
    values = list(values)
    known = next((value for value in values if value is not None), None)
    if isinstance(known, str) or (isinstance(known, (list, tuple)) and _texts(known)):
        return of_texts(values, name, second=second)
    arrays = [to_numpy(value) for value in values] if _is_vector(known) else []
    if arrays:
        sizes = sorted({array.shape for array in arrays})
        if len(sizes) > 1:
            raise UserError(f"the vectors of {name!r} are not all of one length", got=sizes[:3])
        return of_vectors(np.stack(arrays), f"the values of {name!r}")
    return from_values(values)


def of_texts(values: Sequence[Any], name: str, *, second: bool) -> Texts:
    """Take N texts, or lists of texts in the `second` field; None where there is none."""
    rows = []
    for place, value in enumerate(values):
        row = [value] if value is None or isinstance(value, str) else list(value)
        if not _texts(row):
            raise UserError(f"{name} {place} is no text", got=type(row[0] if row else value))
        if len(row) > 1 and not second:
            raise UserError(
                f"{name} {place} has several texts",
                got=len(row),
                expected="one for each item of the first field",
                hint="Put the field with several values second.",
            )
        rows.append(row)
    return Texts(rows)


def _holds_objects(values: Any) -> bool:
    return not isinstance(values, torch.Tensor) and np.asarray(values).dtype.kind in "OU"


def _texts(row: Sequence[Any]) -> bool:
    return all(value is None or isinstance(value, str) for value in row)


def _is_vector(value: Any) -> bool:
    """True for a 1-D array, or a list of numbers."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(number, (int, float)) for number in value)
    return getattr(value, "ndim", None) == 1
