"""Time stamps of rows: which column holds them, and the order they ask for.

Shape suffix: N rows.
"""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.columns import flat, require_column

TIME_NAMES = ("date", "time", "timestamp", "datetime", "ds", "date_time", "utc", "timestamps")


def find_time(dataset: datasets.Dataset, given: str | None) -> str | None:
    """The column of the time stamps: `given`, or the one that type or name tell; None without."""
    features = flat(dataset.features)
    if given is not None:
        require_column(given, features, "time column")
        return given
    found = [name for name, feature in features.items() if _is_time(feature)]
    named = [
        name
        for name, feature in features.items()
        if name.lower() in TIME_NAMES and isinstance(feature, datasets.Value)
    ]
    found = found or named
    if len(found) > 1:
        raise UserError(
            "several columns could be the time stamps",
            got=found,
            hint="Choose with data.time=NAME",
        )
    return found[0] if found else None


def _is_time(feature: Any) -> bool:
    kinds = ("timestamp", "date", "time64", "time32")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def parsed(times: Array, name: str) -> Array:
    """[N] stamps as numbers or datetime64; UserError naming the first that is none."""
    if times.dtype.kind in "iuf":
        bad = ~np.isfinite(times.astype(np.float64))
        made = times
    else:
        import pandas

        stamps = pandas.to_datetime(pandas.Series(times), errors="coerce", utc=True)
        made = stamps.dt.tz_localize(None).to_numpy()
        bad = np.isnat(made)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{int(bad.sum())} time stamps of column {name!r} cannot be read, the first in row "
            f"{row}",
            got=str(times[row]),
            expected="dates such as 2016-07-01 00:00:00, or numbers",
        )
    return made


def in_order(times: Array, name: str, notes: list[str]) -> Array | None:
    """[N] places that sort the rows; None where they are sorted. What is found goes to `notes`.

    Errors: UserError for stamps that cannot be read, or that two rows share.
    """
    made = parsed(times, name)
    order = np.argsort(made, kind="stable")
    steps = np.diff(made[order])
    zero = np.zeros((), steps.dtype)
    same = np.flatnonzero(steps == zero)
    if len(same):
        first = made[order][same[0]]
        raise UserError(
            f"{len(same)} rows repeat the time stamp of another in column {name!r}",
            got=str(first),
            expected="one row for every time step",
            hint="Keep one of them, or one series of the table (data.values)",
        )
    usual = np.sort(steps)[len(steps) // 2] if len(steps) else zero
    uneven = int((steps != usual).sum())
    if uneven:
        notes.append(
            f"{uneven} of {len(steps)} time steps in column {name!r} are not the usual "
            f"{_told(usual)}: rows are taken as evenly spaced"
        )
    if (order == np.arange(len(order))).all():
        return None
    notes.append(f"rows were sorted by their time stamps in column {name!r}")
    return order


def _told(step: Any) -> str:
    if np.issubdtype(step.dtype, np.timedelta64):
        return f"{step / np.timedelta64(1, 's'):g} seconds"
    return f"{step}"
