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

    def layers(self, inputs: Tree) -> list[Tensor]:
        """Forecasts of the average alone, and of both: [n, C x H] each."""
        average = self.moving_average(inputs)
        of_trend = self.trend(average)
        return [of_trend.flatten(1), (of_trend + self.rest(inputs - average)).flatten(1)]

    def features(self, inputs: Tree) -> Tensor:
        """The forecasts, [n, C x H]."""
        return self.layers(inputs)[-1]

    def forward(self, inputs: Tree) -> Tensor:
        """Forecasts [n, C, H]."""
        return self.features(inputs).unflatten(1, (inputs.shape[1], -1))
