"""Measured mean and standard deviation of a set, and the step that applies them.

Shape suffixes: n images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdd.modalities.tables.arrays import Array
from mmdd.modality import DataInfo

BLOCK_VALUES = 2**21  # pixels converted at once: the sums need wider numbers than the images


class Normalise:
    """Turns stored pixels [n, C, H, W] into (value - mean) / std, uint8 being read as [0, 1].

    Parameters
    ----------
    mean, std: one number per channel: in units of [0, 1] for uint8, else of the stored floats.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self._constants: dict[tuple[torch.device, bool], tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 or float pixels to float32; the input is left as it is."""
        scale, shift = self._on(pixels.device, pixels.dtype == torch.uint8)
        return torch.mul(pixels, scale).add_(shift)

    def inverse(self, inputs: Tensor) -> Tensor:
        """Turn normalised inputs [n, C, H, W] back into [0, 1], or the units of a float source."""
        scale, shift = self._on(inputs.device, False)
        return (inputs - shift) / scale

    def affine(self, is_bytes: bool) -> tuple[Tensor, Tensor]:
        """Scale and shift, float64 [C, 1, 1] on the CPU: the result is stored * scale + shift."""
        mean = torch.tensor(self.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64).view(-1, 1, 1)
        return 1 / (255 * std) if is_bytes else 1 / std, -mean / std

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tensors, which may be on a device."""
        return {"mean": self.mean, "std": self.std}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _on(self, device: torch.device, is_bytes: bool) -> tuple[Tensor, Tensor]:
        key = (device, is_bytes)
        if key not in self._constants:
            scale, shift = self.affine(is_bytes)
            self._constants[key] = (scale.float().to(device), shift.float().to(device))
        return self._constants[key]


class Moments:
    """Mean, standard deviation and range per channel of images that come in blocks.

    Bytes are counted, so that the result is exact and does not depend on the blocks. Floats are
    merged block by block in float64 (Chan, Golub and LeVeque 1979).
    """

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((channels, 256), np.int64)
        self.number = 0
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)
        self.low, self.high = math.inf, -math.inf

    def add(self, images: Array) -> None:
        """Take images [n, C, H, W], uint8 or float."""
        step = max(1, BLOCK_VALUES // max(1, images[:1].size))
        for start in range(0, len(images), step):
            block = images[start : start + step]
            if block.dtype == np.uint8:
                self._count(block)
            else:
                self._merge(block.swapaxes(0, 1).reshape(block.shape[1], -1).astype(np.float64))

    def _count(self, block: Array) -> None:
        for channel, counts in enumerate(self.counts):
            counts += np.bincount(block[:, channel].ravel(), minlength=256)

    def _merge(self, values: Array) -> None:
        number = self.number + values.shape[1]
        mean = values.mean(axis=1)
        gap = mean - self.mean
        self.squares += values.var(axis=1) * values.shape[1]
        self.squares += gap**2 * (self.number * values.shape[1] / number)
        self.mean += gap * (values.shape[1] / number)
        self.number = number
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())

    def result(self) -> tuple[list[float], list[float], tuple[float, float]]:
        """Mean and std per channel, and the range; a constant channel gets std 1."""
        mean, variance, limits = self.mean, self.squares / max(1, self.number), (0.0, 1.0)
        if self.counts.any():
            values = np.arange(256) / 255
            share = self.counts / self.counts.sum(axis=1, keepdims=True)
            mean = share @ values
            variance = (share * (values - mean[:, None]) ** 2).sum(axis=1)
        elif self.low < 0 or self.high > 1:
            limits = (float(self.low), float(self.high))
        std = np.sqrt(variance)
        # Rounding leaves a trace of variance in a constant float channel.
        std[std <= 1e-7 * np.maximum(1, np.abs(mean))] = 1.0
        return mean.tolist(), std.tolist(), limits


def bounds_of(info: DataInfo) -> tuple[Tensor, Tensor]:
    """Black and white, or the range of float sources, normalised; [C, 1, ...] like an item each."""
    places = [1] * (len(info.shape) - 1)
    mean = torch.tensor(info.normalisation["mean"]).view(-1, *places)
    std = torch.tensor(info.normalisation["std"]).view(-1, *places)
    low, high = info.normalisation["range"]
    return (low - mean) / std, (high - mean) / std
