"""How series are found in tables and files and taken from Python: what `modalities.tables` asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.items import RawSplit, Reader
from mmdd.modalities.tables.labels import Targets
from mmdd.modalities.tables.words import Words
from mmdd.modalities.timeseries.arrays import SeriesItems, of_values, to_series
from mmdd.modalities.timeseries.columns import SeriesColumns, find_series
from mmdd.modalities.timeseries.options import SeriesData
from mmdd.modalities.timeseries.ts_files import find_files, read_ts

WORDS = Words(
    one="series",
    many="series",
    source="a name or path, e.g. GunPoint_TRAIN.ts",
    folder="parquet files with a column of lists, or NAME_TRAIN.ts and NAME_TEST.ts",
    unlabelled="Add a column of labels; one long series without labels is for task=forecasting",
)


class RawSeries(Reader[SeriesItems]):
    """Series of any length and number of channels, in columns, files and Python objects."""

    words = WORDS

    def __init__(self, options: SeriesData, targets: Targets) -> None:
        self.values, self.targets = options.values, targets
        named = options.values if isinstance(options.values, str) else None
        self.field = named or "values"

    def known(self, name: str) -> Mapping[str, RawSplit[SeriesItems]] | None:
        """UCR/UEA files."""
        files = find_files(name)
        if files is None:
            return None
        made = {}
        for split, path in files.items():
            items, labels = read_ts(path)
            found = None if labels is None else self.targets.of_values(labels, self.words)
            made[split] = RawSplit(items, found)
        return made

    def find(self, dataset: datasets.Dataset) -> SeriesColumns:
        """Choose the column of the series; see `find_series`."""
        return find_series(dataset, self.values)

    def of_values(self, values: Any) -> SeriesItems:
        """Arrays and lists; see `arrays.of_values`."""
        return of_values(values)

    def convert(self, item: Any) -> Array:
        """One series; see `to_series`."""
        return to_series(item).copy()

    def collect(self, items: list[Any]) -> SeriesItems:
        """Join what `convert` returned."""
        return SeriesItems(items)
