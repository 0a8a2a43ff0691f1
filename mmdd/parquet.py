"""One parquet file of a finished set, as ``datasets`` writes and reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Columns = tuple[dict[str, list[Any]], Mapping[str, Any]]
"""Columns of the parquet file and their ``datasets`` features."""


def write_parquet(path: Path, columns: Columns) -> dict[str, Any]:
    """Write `columns` into a new folder; return the manifest's entry: features, number, bytes."""
    import datasets

    values, features = columns
    path.parent.mkdir(parents=True)
    with quiet():
        made = datasets.Dataset.from_dict(values, features=datasets.Features(features))
        size = made.to_parquet(str(path))
    return {"features": made.features.to_dict(), "examples": len(made), "bytes": int(size)}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ``datasets`` from drawing progress bars, as long as this lasts."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def read_parquet(path: Path) -> Any:
    """Return the ``datasets.Dataset`` of a file, in memory, images as encoded bytes."""
    import datasets
    from pyarrow.parquet import ParquetFile

    # not load_dataset, which copies into the user's cache
    table = datasets.Dataset(datasets.table.InMemoryTable(ParquetFile(path).read()))
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table
