"""Series as arrays: the order of their axes, missing values, one length for all.

Shape suffixes in this file: N items, C channels, T time steps.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array, to_numpy

Order = Literal["TC", "CT"]
FILL_WITH = "Fill them with data.missing=linear or data.missing=zero, or leave these series out"


@dataclasses.dataclass(frozen=True)
class SeriesItems:
    """The series of one split, as read: each [T] or [A, B] in an order that is not yet decided.

    Attributes
    ----------
    values: N arrays of numbers, or one array of N items of one shape.
    """

    values: Sequence[Array] | Array

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of every item."""
        if isinstance(self.values, np.ndarray):
            return [self.values.shape[1:]] * len(self.values)
        return [value.shape for value in self.values]

    def __getitem__(self, row: int) -> Array:
        return self.values[row]


def to_series(value: Any) -> Array:
    """One series [T] or [A, B] as float32; UserError for anything else."""
    numbers = isinstance(value, (torch.Tensor, np.ndarray, list, tuple))
    try:
        array = to_numpy(value).astype(np.float32) if numbers else None
    except (TypeError, ValueError):
        array = None
    if array is None or array.ndim not in (1, 2):
        raise UserError(
            "this is no series of numbers",
            got=type(value).__name__ if array is None else array.shape,
            expected="[T], [T, C] or [C, T]; all channels of one length",
        )
    return array


def of_values(values: Any) -> SeriesItems:
    """N series from Python: an array [N, T], [N, T, C] or [N, C, T], or a list of series."""
    if isinstance(values, (list, tuple)):
        return SeriesItems([to_series(value) for value in values])
    array = to_numpy(values)
    if array.ndim not in (2, 3) or array.dtype.kind not in "fiub":
        raise UserError(
            "these are no series of numbers",
            got=f"{array.dtype} {list(array.shape)}",
            expected="[N, T], [N, T, C] or [N, C, T]",
        )
    return SeriesItems(array.astype(np.float32))


def order_of(shapes: Sequence[tuple[int, ...]], given: str, notes: list[str]) -> Order:
    """Which axis of items [A, B] is time; see ``data.order``. What is decided is added to `notes`.

    Items of one axis have a single channel.
    """
    flat = [len(shape) == 1 for shape in shapes]
    if all(flat):
        return "TC"
    if any(flat):
        raise UserError("some series have one axis and some have two", expected="one kind")
    first, second = ({shape[axis] for shape in shapes} for axis in (0, 1))
    if given != "auto":
        return "CT" if given == "CT" else "TC"
    chosen: Order
    if len(first) == len(second) == 1:
        chosen = "TC" if min(first) >= min(second) else "CT"
    else:
        chosen = "TC" if len(second) == 1 or len(first) > 1 else "CT"
    time, channels = (first, second) if chosen == "TC" else (second, first)
    length = f"{min(time)}" if len(time) == 1 else f"{min(time)} to {max(time)}"
    other = "CT" if chosen == "TC" else "TC"
    notes.append(
        f"series read as {length} time steps of {min(channels)} channels; data.order={other} swaps"
        " the axes"
    )
    return chosen


def channels_first(item: Array, order: Order) -> Array:
    """[T] or [A, B] -> [C, T]."""
    if item.ndim == 1:
        return item[None]
    return item.T if order == "TC" else item


def require_channels(counts: Sequence[int], where: str) -> int:
    """The number of channels that all items share; UserError naming the first that differs."""
    usual = Counter(counts).most_common(1)[0][0]
    for row, count in enumerate(counts):
        if count != usual:
            raise UserError(
                f"series differ in their number of channels: item {row} of {where}",
                got=count,
                expected=f"{usual}, as most have",
            )
    return usual


def require_steps(lengths: Sequence[int], where: str) -> None:
    """Refuse series without a single step."""
    for row, length in enumerate(lengths):
        if not length:
            raise UserError(
                f"item {row} of {where} has no time step", hint="Leave empty series out"
            )


def filled(item: Array, missing: str, where: str) -> Array:
    """[C, T] without NaN: refused, left for the mean of their channel, or interpolated in time.

    Beyond the first and the last value they are repeated. With ``zero`` NaN stay for the caller,
    who knows the mean. An infinity is always refused.

    Errors: UserError with their number and the first place.
    """
    finite = np.isfinite(item)
    if finite.all():
        return item
    bad = np.argwhere(~finite)
    channel, step = (int(place) for place in bad[0])
    infinite = np.isinf(item).any()
    if missing == "error" or infinite:
        kind = "infinite" if infinite else "missing (NaN)"
        raise UserError(
            f"{len(bad)} of {item.size} values of {where} are {kind}, the first in channel "
            f"{channel} at time step {step}",
            hint=None if infinite else FILL_WITH,
        )
    return item if missing == "zero" else _interpolated(item, finite)


def _interpolated(item: Array, finite: Array) -> Array:
    made, time = item.copy(), np.arange(item.shape[1])
    for channel, known in enumerate(finite):
        if known.any() and not known.all():
            made[channel] = np.interp(time, time[known], item[channel, known])
    return made


@dataclasses.dataclass
class Moments:
    """Mean, deviation and range per channel of what training has; NaN do not count."""

    total: Array
    squares: Array
    number: Array
    low: Array
    high: Array

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """Of no values."""
        zeros = np.zeros(channels)
        return cls(zeros.copy(), zeros.copy(), zeros.copy(), zeros + np.inf, zeros - np.inf)

    def add(self, values: Array) -> None:
        """Take [C, T] values; merged in float64 (Chan, Golub and LeVeque 1979)."""
        wide = values.astype(np.float64)
        known = np.isfinite(wide)
        count = known.sum(axis=1)
        safe = np.maximum(count, 1)
        mean = np.where(known, wide, 0).sum(axis=1) / safe
        squares = (np.where(known, wide - mean[:, None], 0) ** 2).sum(axis=1)
        together = np.maximum(self.number + count, 1)
        gap = mean - self.total / np.maximum(self.number, 1)
        self.squares += squares + gap**2 * self.number * count / together
        self.total += mean * count
        self.number += count
        self.low = np.minimum(self.low, np.where(known, wide, np.inf).min(axis=1))
        self.high = np.maximum(self.high, np.where(known, wide, -np.inf).max(axis=1))

    def facts(self, normalise: bool) -> dict[str, list[float]]:
        """``mean`` and ``std`` that are applied (0 and 1 unless `normalise`), ``low``, ``high``.

        A constant channel gets deviation 1.
        """
        safe = np.maximum(self.number, 1)
        mean, std = self.total / safe, np.sqrt(self.squares / safe)
        # rounding leaves a trace of variance in a constant channel
        std[std <= 1e-7 * np.maximum(1, np.abs(mean))] = 1.0
        if not normalise:
            mean, std = np.zeros_like(mean), np.ones_like(std)
        known = self.number > 0
        return {
            "mean": mean.tolist(),
            "std": std.tolist(),
            "low": np.where(known, self.low, 0.0).tolist(),
            "high": np.where(known, self.high, 0.0).tolist(),
        }


def normalised(values: Array, facts: dict[str, Any]) -> Array:
    """[..., C, T] in the units of the source -> float32 normalised; NaN become the mean, 0."""
    mean = np.asarray(facts["mean"])[:, None]
    std = np.asarray(facts["std"])[:, None]
    made = ((values - mean) / std).astype(np.float32)
    return np.nan_to_num(made, copy=False, nan=0.0)


def stacked(items: Sequence[Array], steps: int, facts: dict[str, Any]) -> tuple[Array, Array]:
    """Normalise N series [C, T_i] and cut or pad them to `steps`.

    Returns values [N, C, steps] float32, zero beyond a series' end, and a mask [N, steps] of what
    there is.
    """
    channels = len(facts["mean"])
    values = np.zeros((len(items), channels, steps), np.float32)
    mask = np.zeros((len(items), steps), bool)
    for row, item in enumerate(items):
        length = min(steps, item.shape[1])
        values[row, :, :length] = normalised(item[:, :length], facts)
        mask[row, :length] = True
    return values, mask
