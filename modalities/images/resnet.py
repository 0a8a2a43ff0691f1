"""ResNet18 for small and for large images.

Shape suffixes in this file: n items, C channels, H and W pixels. A size is (height, width).
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.images.base import ImageEncoder, Size, require_image, require_one_of, window
from mmdd.modalities.images.norm import Norm, NormKind

Stem = Literal["cifar", "imagenet"]
Downsample = Literal["stride", "avgpool"]

PLANES = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2
IMAGENET_STEM_FROM = 96
"""Shorter side in pixels from which the 7x7 stem with max pooling is the default."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Build a padded convolution; it has no bias, since a norm follows."""
    padding = kernel // 2
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, [n, C, H, W] -> [n, planes, H', W'].

    `halve` halves the map: the first convolution strides, or an average pooling follows it.
    """

    def __init__(
        self, inputs: int, planes: int, *, halve: bool, norm: NormKind, downsample: Downsample
    ) -> None:
        super().__init__()
        stride = 2 if halve and downsample == "stride" else 1
        pool = halve and downsample == "avgpool"
        self.body = nn.Sequential(
            convolution(inputs, planes, 3, stride),
            Norm(norm, planes),
            nn.ReLU(),
            nn.AvgPool2d(2) if pool else nn.Identity(),
            convolution(planes, planes, 3),
            Norm(norm, planes),
        )
        self.shortcut: nn.Module = nn.Identity()
        if halve or inputs != planes:
            # Pooling before a 1x1 convolution equals pooling after it, at a quarter of the work.
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(2) if pool else nn.Identity(),
                convolution(inputs, planes, 1, stride),
                Norm(norm, planes),
            )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the body's output to the shortcut's."""
        return self.activation(self.body(x) + self.shortcut(x))


class GlobalAverage(nn.Module):
    """Mean over the pixels, [n, C, H, W] -> [n, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """Average the maps x."""
        return x.mean(dim=(2, 3))


def build_stem(stem: Stem, channels: int, norm: NormKind) -> nn.Sequential:
    """First block: 3x3 at full size, or 7x7 with stride 2 and a max pooling with stride 2."""
    kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
    parts: list[nn.Module] = [convolution(channels, PLANES[0], kernel, stride)]
    parts += [Norm(norm, PLANES[0]), nn.ReLU()]
    if stem == "imagenet":
        parts.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*parts)


def stem_size(stem: Stem, size: Size) -> Size:
    """Size of the map that the stem returns; refuse images that the stem leaves too small."""
    if stem == "cifar":
        return size
    if min(size) < 8:
        raise UserError(
            "the 'imagenet' stem quarters the image",
            got=size,
            expected="at least 8 pixels on each side",
            hint="Choose stem 'cifar'.",
        )
    return window(window(size, kernel=7, stride=2, padding=3), kernel=3, stride=2, padding=1)


def stage_halvings(size: Size, downsample: Downsample) -> list[bool]:
    """Which of the four stages halve: 2 to 4, as long as at least 2 pixels remain on each side.

    On maps of one pixel instance norm returns a constant, and the net would not see its input.
    """
    halve, side = [False], min(size)
    for _ in PLANES[1:]:
        after = (side + 1) // 2 if downsample == "stride" else side // 2
        halve.append(after >= 2)
        side = after if after >= 2 else side
    return halve


class ResNet18(ImageEncoder):
    """ResNet18 (He et al. 2016), global average pooling, 512 features.

    `stem` "cifar" is a 3x3 convolution at full size, "imagenet" a 7x7 one with stride 2 and a max
    pooling; None takes "imagenet" from 96 pixels. `downsample` "avgpool" replaces the strides by
    average pooling (the ResNet-AP of distillation papers, here with the same global pooling). A
    stage does not halve where fewer than 2 pixels would remain for the norms, as at 8x8 pixels.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width_px: int,
        classes: int,
        *,
        norm: NormKind = "instance",
        stem: Stem | None = None,
        downsample: Downsample = "stride",
    ) -> None:
        size = (height, width_px)
        require_image("resnet18", channels, size, smallest=2)
        if stem is None:
            stem = "imagenet" if min(size) >= IMAGENET_STEM_FROM else "cifar"
        require_one_of("stem", stem, get_args(Stem))
        require_one_of("downsample", downsample, get_args(Downsample))
        halve = stage_halvings(stem_size(stem, size), downsample)
        blocks, inputs = [build_stem(stem, channels, norm)], PLANES[0]
        for planes, first in zip(PLANES, halve, strict=True):
            stage = nn.Sequential()
            for halves in [first] + [False] * (BLOCKS_PER_STAGE - 1):
                block = BasicBlock(inputs, planes, halve=halves, norm=norm, downsample=downsample)
                stage.append(block)
                inputs = planes
            blocks.append(stage)
        blocks[-1].append(GlobalAverage())
        super().__init__(blocks, inputs, classes)
        self.mixes_items = norm == "batch"
