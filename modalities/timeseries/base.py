"""What all series encoders share: masks, norms, pooling, and a head for every task.

A mask [n, T] is true where a series has values. Positions that it hides are set to zero on the way
in and after every layer, and are left out of every statistic: they are never read, and get exactly
no gradient.

Shape suffixes in this file: n items, C channels, T time steps, D features, H steps to forecast.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.trees import Tree

Mask = Tensor | None


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an encoder is built for.

    Attributes
    ----------
    channels, steps: C and T of an item.
    outputs: shape of an item's output: (classes,), (numbers,), or (C, H) for forecasts.
    masked: whether items come with a mask.
    """

    channels: int
    steps: int
    outputs: tuple[int, ...]
    masked: bool = False

    @property
    def forecasts(self) -> bool:
        """True where the outputs go on with the inputs."""
        return len(self.outputs) == 2


class Norm(nn.Module):
    """Mean 0 and variance 1 over time (``instance``) or over channels and time (``layer``).

    Plain operations: derivatives of any order, also over stacked parameters.
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        """Scale by one, shift by zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """[n, C, T] -> [n, C, T]; hidden positions do not count and come out as anything."""
        axes = (2,) if self.kind == "instance" else (1, 2)
        if mask is None:
            centred = x - x.mean(dim=axes, keepdim=True)
            variance = centred.square().mean(dim=axes, keepdim=True)
        else:
            shown = mask.unsqueeze(1).to(x.dtype)
            others = x.shape[1] if self.kind == "layer" else 1
            count = others * shown.sum(dim=(1, 2), keepdim=True).clamp_min(1)
            centred = x - (x * shown).sum(dim=axes, keepdim=True) / count
            variance = (centred.square() * shown).sum(dim=axes, keepdim=True) / count
        scaled = centred * torch.rsqrt(variance + 1e-5)
        return scaled * self.weight[:, None] + self.bias[:, None]


def norm_of(kind: str, channels: int) -> Norm | None:
    """The norm called `kind`; None for ``none``."""
    return None if kind == "none" else Norm(channels, kind)


def hidden_to_zero(x: Tensor, mask: Mask) -> Tensor:
    """Set what the mask hides to zero, whatever it was."""
    return x if mask is None else torch.where(mask.unsqueeze(1), x, torch.zeros_like(x))


def halve(x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
    """Means of two steps: T -> T / 2, rounded up; only values that there are enter a mean."""
    if mask is None:
        return F.avg_pool1d(x, 2, ceil_mode=True, count_include_pad=False), None
    shown = mask.unsqueeze(1).to(x.dtype)
    total = F.avg_pool1d(x * shown, 2, ceil_mode=True, count_include_pad=False)
    share = F.avg_pool1d(shown, 2, ceil_mode=True, count_include_pad=False)
    return total / share.clamp_min(0.25), share.squeeze(1) > 0


def mean_over_time(x: Tensor, mask: Mask) -> Tensor:
    """[n, C, T] -> [n, C], over the positions that there are."""
    if mask is None:
        return x.mean(dim=2)
    shown = mask.unsqueeze(1).to(x.dtype)
    return (x * shown).sum(dim=2) / shown.sum(dim=2).clamp_min(1)


def halved(steps: int, times: int) -> int:
    """Steps that are left after `times` halvings."""
    return -(-steps // 2**times)


class Block(nn.Module):
    """A layer of a chain: (x, mask) -> (x, mask)."""

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """Output and the mask of its positions."""
        raise AssertionError("a block defines forward")


class Head(nn.Module):
    """A linear layer to outputs of the spec's shape, [n, D] -> [n, *outputs]."""

    def __init__(self, features: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = outputs
        self.linear = nn.Linear(features, math.prod(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of features."""
        made = self.linear(x)
        return made if len(self.outputs) == 1 else made.unflatten(1, self.outputs)


def taken_apart(inputs: Tree) -> tuple[Tensor, Mask]:
    """Values [n, C, T] and mask of an item that is a tensor, or a dict with both."""
    if isinstance(inputs, dict):
        return inputs["values"], inputs["mask"]
    return inputs, None


class SeriesEncoder(nn.Module):
    """A chain of blocks and a linear head on the flattened output of the last one.

    Forecasts are made of the differences from the last step that is given, which is added to them
    again (NLinear, Zeng et al. 2023): a norm would else forget the level of the series.
    """

    mixes_items: bool = False
    relative: bool = True

    def __init__(self, spec: Spec, blocks: Sequence[nn.Module], features: int) -> None:
        super().__init__()
        self.spec = spec
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(features, spec.outputs)

    def outputs_of_blocks(self, x: Tensor, mask: Mask) -> list[Tensor]:
        """The output of every block, [n, D_l] each."""
        found = []
        for block in self.blocks:
            x, mask = block(x, mask)
            found.append(x.flatten(1))
        return found

    def _read(self, inputs: Tree) -> tuple[Tensor, Mask, Tensor | None]:
        x, mask = taken_apart(inputs)
        x = hidden_to_zero(x, mask)
        level = x[..., -1:] if self.spec.forecasts and self.relative else None
        return (x if level is None else x - level), mask, level

    def layers(self, inputs: Tree) -> list[Tensor]:
        """Output of every block, each flattened to [n, D_l]; the last is `features(inputs)`."""
        x, mask, _ = self._read(inputs)
        return self.outputs_of_blocks(x, mask)

    def features(self, inputs: Tree) -> Tensor:
        """Input of the head, [n, D]."""
        return self.layers(inputs)[-1]

    def forward(self, inputs: Tree) -> Tensor:
        """Class scores [n, K], values [n, K] or forecasts [n, C, H]."""
        x, mask, level = self._read(inputs)
        made = self.head(self.outputs_of_blocks(x, mask)[-1])
        return made if level is None else made + level


class PerChannel(nn.Module):
    """One net for series of one channel, run on every channel on its own.

    Channel independence (Nie et al. 2023, section 3.1): items [n, C, T] are read as [n x C, 1, T].
    """

    mixes_items: bool = False

    encoder: Any

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder, self.channels = encoder, channels

    def _apart(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(0, 1).unsqueeze(1)

    def layers(self, inputs: Tensor) -> list[Tensor]:
        """Outputs of the net's blocks, those of all channels side by side: [n, C x D_l]."""
        found = self.encoder.layers(self._apart(inputs))
        return [layer.unflatten(0, (-1, self.channels)).flatten(1) for layer in found]

    def features(self, inputs: Tensor) -> Tensor:
        """The last of `layers`."""
        return self.layers(inputs)[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Forecasts [n, C, H]."""
        return self.encoder(self._apart(inputs)).squeeze(1).unflatten(0, (-1, self.channels))


def require_unmasked(name: str, spec: Spec) -> None:
    """Refuse series of several lengths, for a net that has no way to leave positions out."""
    if spec.masked:
        raise UserError(
            f"the encoder {name!r} reads series of one length only",
            hint="Set data.ragged=crop or data.length, or choose another encoder.",
        )
