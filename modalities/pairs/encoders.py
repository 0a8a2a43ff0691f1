"""Encoders of pairs by name: two towers into one space.

Every encoder is built as ``build(options, info)`` and offers ``forward`` (``{first: [n, W],
second: [n, W]}``, whose dot products are cosines over the temperature), ``features`` (both
projections side by side, [n, 2 W]) and ``layers``. A tower is any encoder of images or texts whose
classifier is the projection.

Shape suffixes: n items, W numbers of the shared space, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.errors import UserError, unknown_name
from mmdd.modalities.images.classic import MLP as PixelMLP
from mmdd.modalities.images.convnet import ConvNet
from mmdd.modalities.pairs.options import ENCODERS
from mmdd.modalities.text import nets
from mmdd.modality import DataInfo

HOTTEST = math.log(100.0)
"""Largest logarithm of 1 / temperature that is learned (CLIP, Radford et al. 2021)."""


class Scale(nn.Module):
    """1 / temperature, learned as its logarithm."""

    log: nn.Parameter

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.start = -math.log(temperature)
        self.log = nn.Parameter(torch.tensor(self.start))

    def reset_parameters(self) -> None:
        """Begin again."""
        with torch.no_grad():
            self.log.fill_(self.start)

    def forward(self) -> Tensor:
        """The factor of cosines."""
        return self.log.clamp(max=HOTTEST).exp()

    def extra_repr(self) -> str:
        """What the parameter starts at."""
        return f"start={self.start:g}"


class PairEncoder(nn.Module):
    """Two towers with projections of equal length; each is a group of parameters.

    So trajectories are normalised, and steps are taken, tower by tower (MTT-VL, Wu et al. 2024). A
    learned temperature belongs to the second one.
    """

    def __init__(
        self,
        towers: Mapping[str, nn.Module],
        *,
        temperature: float = 0.07,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.temperature = temperature
        self.scale = Scale(temperature) if learn_temperature else None
        first, second = self.towers
        self.parameter_groups: dict[str, list[str]] = {first: [], second: []}
        for name, _ in self.named_parameters():
            owner = first if name.startswith(f"towers.{first}.") else second
            self.parameter_groups[owner].append(name)
        self.mixes_items = any(getattr(tower, "mixes_items", False) for tower in towers.values())

    def projections(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """[n, W] of each field, of any length."""
        return {name: tower(inputs[name]) for name, tower in self.towers.items()}

    def features(self, inputs: Mapping[str, Any]) -> Tensor:
        """[n, 2 W] both projections: their covariance holds that between the fields too."""
        return torch.cat(list(self.projections(inputs).values()), dim=1)

    def layers(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Outputs of the blocks of both towers, and then `features`."""
        found: list[Tensor] = []
        for name, own in self.towers.items():
            read: Any = own
            found += read.layers(inputs[name])
        return [*found, self.features(inputs)]

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """[n, W] of each field, all of the length sqrt(1 / temperature)."""
        scale = 1 / self.temperature if self.scale is None else self.scale()
        length = scale**0.5
        return {
            name: length * F.normalize(found, dim=1)
            for name, found in self.projections(inputs).items()
        }

    def extra_repr(self) -> str:
        """What the layers do not show: recorded experts are told apart by what a net says."""
        return f"temperature={self.temperature:g}"


def build(options: Any, info: DataInfo) -> nn.Module:
    """Build the encoder that the options name, for pairs of the set's fields."""
    if options.encoder not in ENCODERS:
        raise unknown_name("encoder", options.encoder, ENCODERS)
    towers = {
        name: tower(name, facts["kind"], tuple(facts["shape"]), options)
        for name, facts in info.normalisation["fields"].items()
    }
    return PairEncoder(
        towers, temperature=options.temperature, learn_temperature=options.learn_temperature
    )


def tower(name: str, kind: str, shape: tuple[int, ...], options: Any) -> nn.Module:
    """Build the encoder of one field, whose "classes" are the numbers of the shared space.

    Errors: UserError for a linear projection of pixels.
    """
    width = options.width
    if options.encoder == "mlp" and kind == "pixels":
        return PixelMLP(*_sides(shape), width, width=options.hidden, depth=options.depth)
    if options.encoder == "mlp":
        return nets.MLP(shape, width, width=options.hidden, depth=options.depth)
    if kind == "pixels" and options.encoder == "linear":
        raise UserError(
            f"the field {name!r} holds pixels, of which no linear projection is taken",
            expected="encoder auto (a ConvNet) or mlp",
            hint="Set learner.encoder=auto, or data.image_space=features.",
        )
    if kind == "vectors" or options.encoder == "linear":
        return nets.Linear(shape, width)
    if kind == "pixels":
        return ConvNet(*_sides(shape), width, width=options.filters, depth=options.depth)
    return nets.TextCNN(shape, width, width=options.filters)


def _sides(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width
