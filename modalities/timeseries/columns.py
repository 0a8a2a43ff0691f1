"""Series in tables: which columns hold them, and their numbers without a loop over rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.columns import ambiguous, choose_with, flat, require_column, stored
from mmdd.modalities.timeseries.arrays import SeriesItems

SERIES_NAMES = ("values", "series", "x", "data", "signal", "timeseries", "time_series")


def is_number(feature: Any) -> bool:
    """True for a column of whole or floating-point numbers."""
    if not isinstance(feature, datasets.Value):
        return False
    return feature.dtype.startswith(("int", "uint", "float", "decimal"))


def depth_of(feature: Any) -> int | None:
    """1 for sequences of numbers, 2 for sequences of these and Array2D, None for anything else."""
    if isinstance(feature, datasets.Array2D):
        return 2
    if not isinstance(feature, (datasets.List, datasets.LargeList)):
        return None
    inner = feature.feature
    if is_number(inner):
        return 1
    return 2 if depth_of(inner) == 1 else None


@dataclasses.dataclass(frozen=True)
class SeriesColumns:
    """The column of the series, or one column for every channel.

    Attributes
    ----------
    chosen: their names.
    """

    chosen: tuple[str, ...]

    @property
    def names(self) -> Mapping[str, str]:
        """``{"values": column}``, or ``values.0`` and so on for several."""
        if len(self.chosen) == 1:
            return MappingProxyType({"values": self.chosen[0]})
        return MappingProxyType({f"values.{k}": name for k, name in enumerate(self.chosen)})

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> SeriesItems:
        """Return the series of one split; several columns become channels [C, T].

        Errors: UserError when the split lacks a column, or a row is empty or uneven.
        """
        found = []
        for name in self.chosen:
            require_column(name, flat(dataset.features), f"series column of split {split!r}")
            depth = depth_of(flat(dataset.features)[name]) or 1
            found.append(arrays_of(stored(dataset, name), depth, name))
        if len(found) == 1:
            return SeriesItems(found[0])
        return SeriesItems([joined(parts, row) for row, parts in enumerate(zip(*found))])  # noqa: B905

    def __len__(self) -> int:
        return len(self.chosen)


def joined(parts: tuple[Array, ...], row: int) -> Array:
    """Channels [T] of one row as [C, T]."""
    lengths = {part.shape for part in parts}
    if len(lengths) > 1:
        raise UserError(
            f"the channels of row {row} differ in length",
            got=sorted(shape[0] for shape in lengths),
            expected="one length",
        )
    return np.stack(parts)


def find_series(dataset: datasets.Dataset, given: str | list[str] | None) -> SeriesColumns:
    """Choose the column(s) of the series in a table.

    Errors: UserError when a named one is absent or unfit, when none is there, or several could be.
    """
    features = flat(dataset.features)
    if given is not None:
        names = [given] if isinstance(given, str) else given
        for name in names:
            require_column(name, features, "series column")
            depth = depth_of(features[name])
            if depth is None or (depth == 2 and len(names) > 1):
                raise UserError(
                    f"column {name!r} does not hold one series per row",
                    got=str(features[name]),
                    expected="a list of numbers" + ("" if len(names) > 1 else " or an Array2D"),
                )
        return SeriesColumns(tuple(names))
    found = [name for name, feature in features.items() if depth_of(feature)]
    named = [name for name in found if name.rsplit(".", 1)[-1].lower() in SERIES_NAMES]
    found = named if len(named) == 1 else found
    if len(found) > 1:
        raise ambiguous("values", found)
    if not found:
        numbers = sum(is_number(feature) for feature in features.values())
        hint = choose_with("values")
        if numbers > 1:
            hint = "One long series in a table of numbers is for task=forecasting"
        raise UserError("no column holds series", got=[*features], hint=hint)
    return SeriesColumns((found[0],))


def arrays_of(column: pa.ChunkedArray, depth: int, name: str) -> list[Array] | Array:
    """Numbers of a column of lists (depth 1) or lists of lists: [N, ...] where shapes agree.

    Errors: UserError for an empty row, and for a row whose inner lists differ in length.
    """
    array = _plain(column)
    _require_rows(array, name)
    outer = _lengths(array)
    inner = array
    if depth == 2:
        inner = _plain(pc.list_flatten(array))
        if inner.null_count:
            raise UserError(f"a series of column {name!r} has a missing channel or time step")
    sizes = _lengths(inner)
    numbers = pc.list_flatten(inner).cast(pa.float32()).to_numpy(zero_copy_only=False)
    if depth == 1:
        return _cut(numbers, [(int(size),) for size in sizes])
    shapes: list[tuple[int, ...]] = []
    place = 0
    for row, count in enumerate(outer):
        own = sizes[place : place + count]
        place += count
        if len(own) and (own != own[0]).any():
            raise UserError(
                f"row {row} of column {name!r} has lists of different lengths",
                got=sorted({int(size) for size in own})[:5],
                expected="one length: time steps of one number of channels, or the other way round",
            )
        shapes.append((int(count), int(own[0]) if len(own) else 0))
    return _cut(numbers, shapes)


def _plain(column: pa.ChunkedArray | pa.Array) -> Any:
    """One array of lists, without the extension types of ``datasets``."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _require_rows(array: Any, name: str) -> None:
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(
            f"{array.null_count} rows of column {name!r} have no series, the first is row {row}",
            hint="Leave these rows out",
        )


def _lengths(array: Any) -> Array:
    return pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)


def _cut(numbers: Array, shapes: list[tuple[int, ...]]) -> list[Array] | Array:
    """Cut numbers in a row into items of these shapes."""
    if len(set(shapes)) == 1:
        return numbers.reshape(len(shapes), *shapes[0])
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(s) for part, s in zip(np.split(numbers, ends[:-1]), shapes, strict=True)]
