"""Recurrent series encoders.

PyTorch's own layers, so that the core knows them: it takes cuDNN, which has no second derivatives,
out where it needs these.

Shape suffixes in this file: n items, C channels, T time steps, W states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdd.modalities.timeseries.base import Mask, SeriesEncoder, Spec


class Recurrent(SeriesEncoder):
    """`depth` recurrent layers of `width` states; the head reads the last state of the last one.

    The last state is that of the last step which the mask shows: later ones cannot reach it.
    """

    kind: Any = nn.LSTM

    def __init__(self, spec: Spec, *, width: int = 64, depth: int = 1) -> None:
        sizes = [spec.channels, *[width] * depth]
        made = [self.kind(size, width, batch_first=True) for size in sizes[:-1]]
        super().__init__(spec, made, width)

    def outputs_of_blocks(self, x: Tensor, mask: Mask) -> list[Tensor]:
        """The last state of every layer, [n, W] each."""
        states, found = x.transpose(1, 2), []
        for block in self.blocks:
            states, _ = block(states)
            found.append(last_shown(states, mask))
        return found


def last_shown(states: Tensor, mask: Mask) -> Tensor:
    """[n, T, W] -> [n, W]: the state at the last step that there is."""
    if mask is None:
        return states[:, -1]
    place = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(dim=1)
    return states[torch.arange(len(states), device=states.device), place]


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997)."""

    kind = nn.LSTM


class GRU(Recurrent):
    """Gated recurrent units (Cho et al. 2014)."""

    kind = nn.GRU
