"""Forecasting: the steps that follow a window of a series, compared on normalised values.

Shape suffixes: n windows, C channels, L steps that are given, H steps to forecast.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.real import RealData


class Forecasting:
    """Outputs and targets are [n, C, H]; the loss of a window is its mean squared error."""

    name = "forecasting"
    metric = "mse"
    direction: Literal["max", "min"] = "min"
    coupled = False
    label_kinds = ("values",)

    def item_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """[n] mean squared errors over channels and steps."""
        return (outputs - targets).square().flatten(1).mean(dim=1)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean squared error over all windows, channels and steps (MSE of the field's tables)."""
        return (outputs - targets).double().square().mean().item()

    def extras(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Mean absolute error, ``mae``."""
        return {"mae": (outputs - targets).double().abs().mean().item()}


def last_value(inputs: Tensor, horizon: int) -> Tensor:
    """Repeat the last step: [n, C, L] -> [n, C, H]."""
    return inputs[..., -1:].expand(*inputs.shape[:-1], horizon)


def seasonal_naive(inputs: Tensor, horizon: int, period: int) -> Tensor:
    """Repeat the last `period` steps as often as needed: [n, C, L] -> [n, C, H].

    Hyndman & Athanasopoulos, "Forecasting: Principles and Practice", section 5.2.

    Raises `UserError` where a window is shorter than the period.
    """
    length = inputs.shape[-1]
    if not 1 <= period <= length:
        raise UserError(
            "a window does not hold one season",
            got=period,
            expected=f"a period of 1 to {length} steps",
            hint="Lengthen data.input_length, or shorten data.season.",
        )
    places = length - period + torch.arange(horizon, device=inputs.device) % period
    return inputs[..., places]


def naive_scores(
    data: RealData, period: int | None = None, size: int = 1024
) -> dict[str, dict[str, float]]:
    """``mse`` and ``mae`` of the forecasts that need no training, over all windows of `data`.

    Parameters
    ----------
    period: steps of a season; without it there is no row ``seasonal-naive``.
    size: windows at a time.

    Returns a dict from ``last-value`` and ``seasonal-naive`` to their scores.
    """
    task = Forecasting()
    totals: dict[str, dict[str, float]] = {}
    for batch in data.batches(size):
        horizon = batch.targets.shape[-1]
        made = {"last-value": last_value(batch.inputs, horizon)}
        if period is not None:
            made["seasonal-naive"] = seasonal_naive(batch.inputs, horizon, period)
        for name, forecast in made.items():
            found = {"mse": task.score(forecast, batch.targets)}
            found |= task.extras(forecast, batch.targets)
            so_far = totals.setdefault(name, dict.fromkeys(found, 0.0))
            for metric, value in found.items():
                so_far[metric] += value * len(batch) / len(data)
    return totals
