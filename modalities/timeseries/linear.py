"""Linear and fully connected series encoders.

Shape suffixes in this file: n items, C channels, L = T time steps, H steps to forecast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.timeseries.base import Block, Mask, SeriesEncoder, Spec, hidden_to_zero
from mmdd.trees import Tree


class Flat(Block):
    """All values of an item in a row, [n, C, T] -> [n, C x T]."""

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """Flatten; what is hidden is zero."""
        return hidden_to_zero(x, mask).flatten(1), None


class Hidden(Block):
    """A linear layer and ReLU, [n, D] -> [n, width]."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, width)

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """Flatten where need be."""
        return F.relu(self.linear(hidden_to_zero(x, mask).flatten(1))), None


class Linear(SeriesEncoder):
    """One linear layer on all values; its features are the values themselves."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, [Flat()], spec.channels * spec.steps)


class MLP(SeriesEncoder):
    """`depth` hidden layers of `width` units."""

    def __init__(self, spec: Spec, *, width: int = 128, depth: int = 2) -> None:
        sizes = [spec.channels * spec.steps, *[width] * depth]
        blocks = [Hidden(sizes[place], width) for place in range(depth)]
        super().__init__(spec, blocks, width)


class DLinear(nn.Module):
    """Forecasts of a moving average and of what is left, summed (Zeng et al. 2023).

    The two linear maps from L to H steps are shared by all channels. The average is taken over
    `average` steps with the ends repeated. Features are the forecasts, as CondTSF matches them.

    The average is itself linear, x -> x A, so that a forecast is one product of the items with
    A W_t + (1 - A) W_r instead of an average and two products.
    """

    mixes_items: bool = False

    def __init__(self, spec: Spec, *, average: int = 25) -> None:
        super().__init__()
        if not spec.forecasts:
            raise UserError(
                "the encoder 'dlinear' makes forecasts",
                got=f"outputs of shape {spec.outputs}",
                hint="Choose learner.encoder=linear, or task=forecasting.",
            )
        self.average = average + 1 - average % 2
        self.trend = nn.Linear(spec.steps, spec.outputs[1])
        self.rest = nn.Linear(spec.steps, spec.outputs[1])

    def moving_average(self, x: Tensor) -> Tensor:
        """[n, C, L] -> [n, C, L]."""
        reach = self.average // 2
        first = x[..., :1].expand(*x.shape[:-1], reach)
        last = x[..., -1:].expand(*x.shape[:-1], reach)
        return F.avg_pool1d(torch.cat([first, x, last], dim=-1), self.average, stride=1)

    def maps(self) -> tuple[Tensor, Tensor]:
        """[H, L] weights from the items to the forecasts of the average alone, and of both."""
        rest = self.rest.weight
        # row t of A is what step t adds to all averages
        average = self.moving_average(
            torch.eye(rest.shape[1], dtype=rest.dtype, device=rest.device)
        )
        of_trend = F.linear(self.trend.weight, average)
        return of_trend, of_trend + rest - F.linear(rest, average)

    def layers(self, inputs: Tree) -> list[Tensor]:
        """Forecasts of the average alone, and of both: [n, C x H] each."""
        of_trend, _ = self.maps()
        trend = F.linear(inputs, of_trend, self.trend.bias)
        return [trend.flatten(1), self.features(inputs)]

    def features(self, inputs: Tree) -> Tensor:
        """The forecasts, [n, C x H]."""
        return F.linear(inputs, self.maps()[1], self.trend.bias + self.rest.bias).flatten(1)

    def forward(self, inputs: Tree) -> Tensor:
        """Forecasts [n, C, H]."""
        return self.features(inputs).unflatten(1, (inputs.shape[1], -1))
