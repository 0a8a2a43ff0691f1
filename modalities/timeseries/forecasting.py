"""Open one long series to forecast: rows in the order of time, borders, windows.

Shape suffixes: N rows, C channels, L steps given, H steps to forecast.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array, to_numpy
from mmdd.modalities.tables.columns import flat, require_column, stored
from mmdd.modalities.tables.items import Reader
from mmdd.modalities.tables.labels import Labels
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.tables.words import Words
from mmdd.modalities.timeseries.arrays import Moments, filled, normalised
from mmdd.modalities.timeseries.columns import depth_of, is_number
from mmdd.modalities.timeseries.options import SeriesData
from mmdd.modalities.timeseries.stamps import find_time, in_order
from mmdd.modalities.timeseries.windows import WindowData, window_count
from mmdd.modality import DataInfo, Splits

WORDS = Words(
    one="row",
    many="rows",
    source="a CSV or parquet file with a column of numbers for every channel",
    folder="CSV or parquet files",
    unlabelled="Forecasting needs no labels",
)
ROLES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a table.

    Attributes
    ----------
    values: [N, C] float64.
    times: [N] time stamps, or None.
    channels: C names.
    """

    values: Array
    times: Array | None
    channels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)


@dataclasses.dataclass(frozen=True)
class RowColumns:
    """The columns of the channels, and that of the time stamps."""

    channels: tuple[str, ...]
    time: str | None

    @property
    def names(self) -> Mapping[str, str]:
        """Columns by field."""
        found = {f"values.{k}": name for k, name in enumerate(self.channels)}
        return MappingProxyType(found if self.time is None else {"time": self.time, **found})

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> Rows:
        """Read one split."""
        for name in self.channels:
            require_column(name, flat(dataset.features), f"column of split {split!r}")
        columns = [np.asarray(stored(dataset, name).to_numpy(), "f8") for name in self.channels]
        times = None if self.time is None else stored(dataset, self.time).to_pandas().to_numpy()
        return Rows(np.stack(columns, axis=1), times, self.channels)


class RowReader(Reader[Rows]):
    """Finds columns of numbers and of time stamps in a table."""

    words = WORDS

    def __init__(self, options: SeriesData) -> None:
        self.options = options

    def find(self, dataset: datasets.Dataset) -> RowColumns:
        """All columns of numbers but the time stamps, or those that the options name."""
        features = flat(dataset.features)
        time = find_time(dataset, self.options.time)
        given = self.options.values
        names = [given] if isinstance(given, str) else given
        if names is None:
            names = [n for n, f in features.items() if is_number(f) and n != time]
        for name in names:
            require_column(name, features, "column of the series")
            if not is_number(features[name]):
                raise UserError(f"column {name!r} holds no numbers", got=str(features[name]))
        if not names:
            lists = [name for name, feature in features.items() if depth_of(feature)]
            hint = "Columns of lists hold many series: task=classification reads them"
            raise UserError(
                "no column of numbers to forecast", got=[*features], hint=hint if lists else None
            )
        return RowColumns(tuple(names), time)

    def of_values(self, values: Any) -> Rows:
        """Refuse pairs: a long series has no labels."""
        raise _not_a_series(values)

    def convert(self, item: Any) -> Any:
        """Refuse data sets of PyTorch."""
        raise _not_a_series(item)

    def collect(self, items: list[Any]) -> Rows:
        """Refuse data sets of PyTorch."""
        raise _not_a_series(items)


class NoTargets:
    """What is to be forecast is in the series: there is no column of labels."""

    def find(
        self, dataset: datasets.Dataset, given: str | None, taken: Collection[str], words: Words
    ) -> str:
        """No column."""
        if given is not None:
            raise UserError(
                "a forecast has no label column", got=given, hint="Leave data.label out."
            )
        return ""

    def read(self, dataset: datasets.Dataset, name: str) -> Labels:
        """One stratum."""
        return Labels(np.zeros(len(dataset), np.int64), ("all",))

    def of_values(self, values: Any, words: Words) -> Labels:
        """Refuse labels from Python."""
        raise _not_a_series(values)


def _not_a_series(value: Any) -> UserError:
    return UserError(
        "this cannot be opened as one long series",
        got=type(value).__name__,
        expected="an array [T] or [T, C], a datasets.Dataset with a column for every channel, a "
        "file or a name",
    )


def open_forecasting(
    source: Any, options: SeriesData, device: torch.device | str = "cpu"
) -> Splits:
    """Open one long series as windows of ``input_length`` steps and the ``horizon`` after them.

    Parameters
    ----------
    source: an array or tensor [T] or [T, C], or a table of a row for every time step; one that has
        splits train, validation and test gives the borders.
    device: where batches are delivered, [n, C, L] and [n, C, H] float32.

    Errors: UserError for anything that cannot be used.
    """
    notes: list[str] = []
    name, rows, columns, given = _opened(source, options, notes)
    borders = _borders(len(rows), options, given)
    channels = [
        filled(rows.values[low:high].T, options.missing, f"rows {low} to {high - 1}")
        for low, high in ((0, borders[0]), (borders[0], borders[1]), (borders[1], borders[2]))
        if high > low
    ]
    series = np.concatenate(channels, axis=1)
    fitted = series if options.leak else series[:, : borders[0]]
    moments = Moments.empty(len(series))
    moments.add(fitted)
    facts: dict[str, Any] = dict(moments.facts(options.normalise == "channel"))
    facts |= {
        "masked": False,
        "channels": list(rows.channels),
        "input_length": options.input_length,
        "horizon": options.horizon,
        "stride": options.stride,
        "season": options.season,
        "borders": list(borders),
        "leak": options.leak,
    }
    values = torch.from_numpy(normalised(series, facts))
    data = _parts(values, borders, options, device)
    notes.append(_told(borders, options))
    info = DataInfo(
        modality="timeseries",
        task="forecasting",
        source=name,
        shape=(len(series), options.input_length),
        classes=1,
        names=("all",),
        fingerprint=_digest(values, facts),
        normalisation=facts,
        columns=columns,
        sizes={**{role: len(data.get(role, ())) for role in ROLES}, "steps": borders[0]},
        notes=tuple(notes),
    )
    return Splits(data["train"], data.get("validation"), data.get("test"), info)


Found = tuple[str, Rows, dict[str, str], list[int] | None]
"""Name of the source, its rows in order, columns by field, and rows per part if it has splits."""


def _opened(source: Any, options: SeriesData, notes: list[str]) -> Found:
    source = options.source if source is None else source
    named = isinstance(source, (str, Path))
    if not named and not isinstance(source, (datasets.Dataset, Mapping)) and source is not None:
        rows = _of_array(source)
        return f"{type(source).__name__} in memory", rows, {}, None
    opened = open_source(source, options, RowReader(options), NoTargets())
    columns = {field: column for field, column in opened.columns.items() if column}
    wanted = [options.train_split, options.validation_split or "validation"]
    wanted.append(options.test_split or "test")
    splits = [opened.splits[name].items for name in wanted if name in opened.splits]
    time = columns.get("time")
    parts = [_sorted(rows, time, notes) for rows in splits]
    if len(parts) == 1:
        return opened.name, parts[0], columns, None
    if len(parts) < 3 or options.train_split not in opened.splits:
        raise UserError(
            "a series in splits needs all three of them",
            got=[name for name in wanted if name in opened.splits],
            expected="train, validation and test, or one split alone",
        )
    notes.append("the splits are taken as parts of one series, one after another")
    whole = Rows(np.concatenate([p.values for p in parts]), None, parts[0].channels)
    return opened.name, whole, columns, [len(part) for part in parts]


def _of_array(source: Any) -> Rows:
    try:
        array = to_numpy(source)
    except (TypeError, ValueError, RuntimeError):
        raise _not_a_series(source) from None
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
        raise UserError(
            "this is no long series",
            got=f"{array.dtype} {list(array.shape)}",
            expected="numbers [T] or [T, C]",
        )
    names = tuple(str(place) for place in range(array.shape[1]))
    return Rows(array.astype(np.float64), None, names)


def _sorted(rows: Rows, time: str | None, notes: list[str]) -> Rows:
    """Rows in the order of their time stamps."""
    if rows.times is None or time is None:
        notes.append("no column of time stamps: rows are taken in the order they stand in")
        return rows
    order = in_order(rows.times, time, notes)
    return rows if order is None else dataclasses.replace(rows, values=rows.values[order])


def _borders(count: int, options: SeriesData, given: Sequence[int] | None) -> tuple[int, int, int]:
    """Ends of training, validation and test in rows.

    Errors: UserError when they do not fit the series, or a part holds no window.
    """
    sizes = list(options.borders if given is None else given)
    if any(isinstance(size, float) for size in sizes):
        sizes = [int(size * count + 1e-9) for size in sizes]
    if sum(sizes) > count:
        raise UserError(
            "data.borders have more rows than the series",
            got=sizes,
            expected=f"at most {count} in all",
        )
    span = options.input_length + options.horizon
    fewest = (span, options.horizon, options.horizon)
    for role, size, least in zip(ROLES, sizes, fewest, strict=True):
        if size < least and (size or role == "train"):
            raise UserError(
                f"the {role} part is shorter than one window",
                got=f"{int(size)} rows",
                expected=f"at least {least}: data.horizon={options.horizon}"
                + (f" after data.input_length={options.input_length}" if role == "train" else ""),
                hint="Shorten the windows, or give this part more rows with data.borders.",
            )
    train, validation, test = (int(size) for size in sizes)
    return train, train + validation, train + validation + test


def _parts(
    values: torch.Tensor,
    borders: tuple[int, int, int],
    options: SeriesData,
    device: torch.device | str,
) -> dict[str, WindowData]:
    """Windows of every part; those of validation and test reach back for what is given."""
    ranges = {"train": (0, borders[0])}
    if borders[1] > borders[0]:
        ranges["validation"] = (borders[0] - options.input_length, borders[1])
    if borders[2] > borders[1]:
        ranges["test"] = (borders[1] - options.input_length, borders[2])
    if options.leak and "test" in ranges:
        ranges["validation"] = ranges["test"]
    made = {}
    for role, (low, high) in ranges.items():
        stride = options.stride if role == "train" else 1
        count = window_count(high - low, options.input_length + options.horizon, stride)
        made[role] = WindowData(
            values[:, low:high],
            stride * torch.arange(count),
            options.input_length,
            options.horizon,
            device=device,
        )
    return made


def _told(borders: tuple[int, int, int], options: SeriesData) -> str:
    train, validation, test = borders
    if options.leak:
        return (
            f"LEAKING protocol of papers: validation is the test part (rows {validation} to "
            f"{test - 1}), and all {test} rows are normalised by their own mean and deviation"
        )
    return (
        f"rows 0 to {train - 1} for training, by which all are normalised, to {validation - 1} for "
        f"validation, to {test - 1} for test; their first windows read earlier rows as input only"
    )


def _digest(values: torch.Tensor, facts: dict[str, Any]) -> str:
    hasher = hashlib.sha256(repr((tuple(values.shape), facts)).encode())
    hasher.update(values.contiguous().numpy().data)
    return hasher.hexdigest()
