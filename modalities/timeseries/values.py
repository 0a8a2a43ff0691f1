"""Numbers to be predicted: which column of a table holds them, and their groups.

Shape suffixes: N items, K numbers of each, G groups.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array, to_numpy
from mmdd.modalities.tables.columns import ambiguous, choose_with, flat, require_column, stored
from mmdd.modalities.tables.labels import LABEL_NAMES, MISSING, Labels
from mmdd.modalities.tables.words import Words


@dataclasses.dataclass(frozen=True)
class Values(Labels):
    """Labels of one stratum that carry numbers.

    Attributes
    ----------
    values: [N, K] float64; NaN where the code is -1.
    """

    values: Array


def values_of(values: Any, what: str) -> Values:
    """[N] or [N, K] numbers as `Values`; an item without all of its numbers counts as unlabelled.

    Errors: UserError when they are no numbers, or infinite.
    """
    try:
        array = to_numpy(values).astype(np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{what} are no numbers", expected="one number per series") from None
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise UserError(f"{what} are not one row per series", got=array.shape, expected="[N, K]")
    if np.isinf(array).any():
        row = int(np.flatnonzero(np.isinf(array).any(axis=1))[0])
        raise UserError(f"{what} are infinite, the first in row {row}")
    known = np.isfinite(array).all(axis=1)
    return Values(np.where(known, 0, MISSING), ("all",), array)


class Numbers:
    """One number per item (several from Python)."""

    def find(
        self, dataset: datasets.Dataset, given: str | None, taken: Collection[str], words: Words
    ) -> str:
        """The column named, else the one of a label's name, else the only one of fractions."""
        features = flat(dataset.features)
        numbers = [name for name, feature in features.items() if _is_number(feature)]
        if given is not None:
            require_column(given, features, "target column")
            if given not in numbers:
                raise UserError(
                    f"target column {given!r} does not hold one number per {words.one}",
                    got=str(features[given]),
                )
            return given
        free = [name for name in numbers if name not in taken]
        named = [name for name in free if name.rsplit(".", 1)[-1].lower() in LABEL_NAMES]
        found = named or [n for n in free if features[n].dtype.startswith("float")]
        if len(found) > 1:
            raise ambiguous("label", found)
        if not found:
            hint = choose_with("label")
            raise UserError("no column holds numbers to predict", got=[*features], hint=hint)
        return found[0]

    def read(self, dataset: datasets.Dataset, name: str) -> Values | None:
        """The numbers of one split, or None when it has no such column."""
        if name not in flat(dataset.features):
            return None
        column = stored(dataset, name).cast(pa.float64())
        return values_of(column.to_numpy(), f"numbers of column {name!r}")

    def of_values(self, values: Any, words: Words) -> Values:
        """Take N numbers, or [N, K], from Python."""
        if isinstance(values, (list, tuple)):
            values = [v.tolist() if hasattr(v, "tolist") else v for v in values]
        return values_of(values, f"targets of {words.many}")


def _is_number(feature: Any) -> bool:
    kinds = ("int", "uint", "float")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


class Bins:
    """Groups of values by the quantiles of the training ones: neighbours are matched together.

    Several numbers of an item are averaged, normalised, and the average decides.

    Parameters
    ----------
    train: [N, K] the training values, normalised.
    count: bins wanted; equal values can leave fewer.
    """

    def __init__(self, train: Array, count: int) -> None:
        key = train.mean(axis=1)
        inner = np.quantile(key, np.linspace(0, 1, count + 1)[1:-1])
        edges = np.unique(inner)
        place = np.searchsorted(edges, key, side="right")
        # bins that stay empty (equal values) are none
        used = np.unique(place)
        self.edges = edges[used[1:] - 1]

    def __call__(self, values: Array) -> Array:
        """[N, K] normalised values -> [N] int64 bins."""
        return np.searchsorted(self.edges, values.mean(axis=1), side="right").astype(np.int64)

    def names(self, mean: float, std: float) -> tuple[str, ...]:
        """The range of every bin, in the units of the source."""
        told = [f"{edge * std + mean:.4g}" for edge in self.edges]
        if not told:
            return ("all",)
        middle = [f"{low} to {high}" for low, high in itertools.pairwise(told)]
        return (f"below {told[0]}", *middle, f"{told[-1]} or more")
