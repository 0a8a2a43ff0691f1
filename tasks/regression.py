"""Regression of items: one number, or several, for every item.

Shape suffixes: n items, K numbers of each.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor


class Regression:
    """Outputs and targets are [n, K], normalised by the training items' mean and deviation."""

    name = "regression"
    metric = "mse"
    direction: Literal["max", "min"] = "min"
    coupled = False
    label_kinds = ("values",)

    def item_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """[n] mean squared errors over the numbers of an item."""
        return (outputs - targets).square().mean(dim=1)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean squared error; 1 is that of the training mean."""
        return (outputs - targets).double().square().mean().item()

    def extras(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """``mae``, and ``r2``: 1 - squared errors / squared distances from the mean of `targets`.

        r2 is the mean over the K numbers; one that never changes counts as 0.
        """
        wrong = (outputs - targets).double()
        spread = (targets - targets.mean(dim=0)).double().square().sum(dim=0)
        share = wrong.square().sum(dim=0) / spread.clamp_min(1e-12)
        r2 = (1 - share) * (spread > 1e-12)
        return {"mae": wrong.abs().mean().item(), "r2": r2.mean().item()}
