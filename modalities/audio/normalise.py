"""Mean, deviation and range of the training clips, and the step that applies them.

Shape suffixes: N clips, M mel bands, F frames, T samples.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from mmdd.modalities.tables.arrays import Array

BLOCK_VALUES = 2**21  # numbers converted at once: sums need wider ones than the clips
LEAST_SHARE = 0.05
"""Least deviation of a band, as a share of that of all numbers: a band that training never uses
would otherwise make noise the loudest thing of an input."""


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """(value - mean) / std.

    Attributes
    ----------
    mean, std: one number, or one per mel band.
    low, high: of the training clips, before.
    lowest, highest: of the training clips, normalised; over all bands, so that what is moved from
        one band to another stays valid.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: float
    high: float
    lowest: float
    highest: float

    def apply_(self, values: Array) -> None:
        """Normalise [N, 1, ...] float32 in place."""
        mean, std = (self._column(numbers, values.ndim - 1).numpy() for numbers in self._pair())
        values -= mean
        values /= std

    def __call__(self, values: Tensor) -> Tensor:
        """[n, 1, ...] as read -> normalised, on the same device."""
        pair = (self._column(numbers, values.ndim - 1) for numbers in self._pair())
        mean, std = (column.to(values.device) for column in pair)
        return (values - mean) / std

    def undo(self, inputs: Tensor) -> Tensor:
        """[n, 1, ...] inputs -> float32 on the CPU in the units of the source."""
        mean, std = (self._column(numbers, inputs.ndim - 1) for numbers in self._pair())
        return inputs.detach().cpu().float() * std + mean

    def bounds(self, axes: int) -> tuple[Tensor, Tensor]:
        """`lowest` and `highest` as [1, ...] of an item of `axes` axes."""
        one = torch.ones((1,) * axes)
        return one * self.lowest, one * self.highest

    def silence(self, axes: int) -> Tensor:
        """`low`, normalised: it differs from band to band. Broadcasts on an item."""
        mean, std = (self._column(numbers, axes) for numbers in self._pair())
        return (self.low - mean) / std

    def _pair(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.mean, self.std

    def _column(self, numbers: tuple[float, ...], axes: int) -> Tensor:
        """[1, M, 1] of an item of three axes, [1, 1] of one of two."""
        shape = (1, -1, 1) if axes == 3 else (1,) * axes
        return torch.tensor(numbers, dtype=torch.float32).view(shape)


def fit(values: Array, lengths: Array | None, per_band: bool) -> Normalisation:
    """Measure training clips [N, 1, M, F] or waveforms [N, 1, T].

    Parameters
    ----------
    lengths: [N] frames or samples that count; None for all of them.
    per_band: one mean and deviation for every mel band.

    The mean of waveforms is taken to be zero, so that silence stays zero.
    """
    spectra = values.ndim == 4
    bands = values.shape[2] if spectra else 1
    total, squares, count = np.zeros(bands), np.zeros(bands), 0.0
    low, high = np.full(bands, np.inf), np.full(bands, -np.inf)
    step = max(1, BLOCK_VALUES // max(1, values[0].size))
    for start in range(0, len(values), step):
        block = values[start : start + step].astype(np.float64)
        counted = _counted(lengths, start, block)
        axes = (0, 1, 3) if spectra else (0, 1, 2)
        low = np.minimum(low, np.where(counted, block, np.inf).min(axis=axes))
        high = np.maximum(high, np.where(counted, block, -np.inf).max(axis=axes))
        block = np.where(counted, block, 0.0)
        total += block.sum(axis=axes)
        squares += np.square(block).sum(axis=axes)
        count += float(counted.sum()) if lengths is not None else block.size / bands
    mean = total / count if spectra else np.zeros(1)
    overall = float(np.sqrt(max(0.0, squares.sum() / count / bands - mean.mean() ** 2)))
    if not per_band:
        mean, squares = mean.mean(keepdims=True), squares.mean(keepdims=True)
    std = np.sqrt(np.maximum(0.0, squares / count - mean**2))
    std = np.maximum(std, LEAST_SHARE * overall)
    std[std <= 1e-7 * np.maximum(1.0, np.abs(mean))] = 1.0  # all clips are the same number
    lowest, highest = ((low - mean) / std).min(), ((high - mean) / std).max()
    limits = (float(limit) for limit in (low.min(), high.max(), lowest, highest))
    return Normalisation(tuple(mean.tolist()), tuple(std.tolist()), *limits)


def _counted(lengths: Array | None, start: int, block: Array) -> Array:
    """True where a number belongs to its clip; broadcasts against `block`."""
    if lengths is None:
        return np.ones((1,) * block.ndim, bool)
    mask = sounding(lengths[start : start + len(block)], block.shape[-1])
    return mask.reshape(len(block), *(1,) * (block.ndim - 2), -1)


def sounding(lengths: Array, places: int) -> Array:
    """[N, F or T] bool: true in the first ``lengths[i]`` places of clip i."""
    return np.arange(places) < lengths[:, None]
