"""Video encoders by name.

Every encoder is built as ``ENCODERS[name](channels, frames, height, width_px, classes, **options)``
and offers ``forward`` (logits [n, classes]), ``features`` ([n, D], the classifier's input),
``layers`` (a list of [n, D_l]), ``classifier`` and ``mixes_items``. They read [n, C, T, H, W].

To add one: subclass `ImageEncoder`, pass it a list of blocks, see that every parameter belongs to a
module with `reset_parameters`, and add a line below.

Shape suffixes in this file: n clips. A size is (frames, height, width).
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from torch import nn

from mmdd.errors import UserError
from mmdd.modalities.images.base import (
    ImageEncoder,
    require_one_of,
)
from mmdd.modalities.images.classic import MLP as ImageMLP
from mmdd.modalities.images.convnet import (
    ACTIVATIONS,
    POOLINGS,
    Activation,
    require_depth,
    usual_depth,
)
from mmdd.modalities.images.norm import NormKind
from mmdd.modalities.nets.checks import require_at_least
from mmdd.modalities.video.layers import (
    ClipNorm,
    GRUOverTime,
    MeanOverTime,
    PerFrame,
    Pool,
    Size,
    Sum,
    convolution,
)

CLIP_POOLINGS = ("avg", "max")
STEM_FROM = 32
"""Shorter side, in pixels, from which the first filters move by two: a quarter of the arithmetic
of all that follows."""


def require_clip(name: str, channels: int, size: Size, smallest: int) -> None:
    """Refuse clips without channels or frames, or with a side below `smallest` pixels."""
    require_at_least("channels", channels, 1)
    require_at_least("frames", size[0], 1)
    if min(size[1:]) < smallest:
        raise UserError(
            f"the encoder {name!r} cannot read frames this small",
            got=size[1:],
            expected=f"at least {smallest} pixels on each side",
            hint="Resize the frames, or choose the encoder 'mlp'.",
        )


def stem_of(stem: int | None, size: Size) -> int:
    """The stride of the first filters: as given, else 2 from `STEM_FROM` pixels on."""
    return stem or (2 if min(size[1:]) >= STEM_FROM else 1)


def strided(size: Size, stride: Size) -> Size:
    """Size of the maps after a padded convolution."""
    frames, height, width = (-(-side // step) for side, step in zip(size, stride, strict=True))
    return frames, height, width


class ConvNet3D(ImageEncoder):
    """The ConvNet of dataset condensation in three dimensions, after C3D (Tran et al. 2015).

    Each of `depth` blocks is a 3x3x3 convolution to `width` channels with bias, a norm, an
    activation and a pooling that halves height and width, and the frames as long as there are two.
    C3D's first pooling leaves the frames alone (``pool_frames="later"``), at twice the arithmetic.
    The first convolution moves by `stem` pixels.
    """

    def __init__(
        self,
        channels: int,
        frames: int,
        height: int,
        width_px: int,
        classes: int,
        *,
        width: int = 32,
        depth: int | None = None,
        stem: int | None = None,
        pool_frames: str = "all",
        norm: NormKind = "instance",
        activation: Activation = "relu",
        pooling: str = "avg",
    ) -> None:
        size = (frames, height, width_px)
        require_clip("convnet", channels, size, smallest=2)
        require_at_least("width", width, 1)
        require_one_of("activation", activation, ACTIVATIONS)
        require_one_of("pooling", pooling, CLIP_POOLINGS)
        require_one_of("pool_frames", pool_frames, ("all", "later"))
        first = stem_of(stem, size)
        size = strided(size, (1, first, first))
        depth = usual_depth(size[1:]) if depth is None else depth
        require_depth(depth, size[1:], pooling)
        blocks = []
        for place in range(depth):
            inputs, step = (channels, first) if place == 0 else (width, 1)
            still = size[0] == 1 or (place == 0 and pool_frames == "later")
            parts = [
                convolution(inputs, width, (3, 3, 3), (1, step, step)),
                ClipNorm(norm, width),
                ACTIVATIONS[activation](),
                Pool(pooling, frames=not still),
            ]
            blocks.append(nn.Sequential(*parts))
            size = (size[0] if still else size[0] // 2, size[1] // 2, size[2] // 2)
        super().__init__(blocks, width * size[0] * size[1] * size[2], classes)
        self.mixes_items = norm == "batch"


def factored(inputs: int, outputs: int, stride: int, norm: NormKind) -> nn.Sequential:
    """A 3x3x3 convolution as 1x3x3, norm, ReLU and 3x1x1 (Tran et al. 2018, section 3.5).

    The channels in between are as many as leave the number of weights as it is.
    """
    between = max(1, 27 * inputs * outputs // (9 * inputs + 3 * outputs))
    return nn.Sequential(
        convolution(inputs, between, (1, 3, 3), (1, stride, stride)),
        ClipNorm(norm, between),
        nn.ReLU(),
        convolution(between, outputs, (3, 1, 1), (stride, 1, 1)),
    )


class R2Plus1D(ImageEncoder):
    """A small R(2+1)D (Tran et al. 2018): a stem and `stages` residual blocks, widths doubling.

    The stem is 1x3x3 and 3x1x1 to `width` channels. Every block halves frames, height and width
    while there are more than one; the features are the means of the last maps.
    """

    def __init__(
        self,
        channels: int,
        frames: int,
        height: int,
        width_px: int,
        classes: int,
        *,
        width: int = 16,
        stages: int = 2,
        norm: NormKind = "instance",
    ) -> None:
        size = (frames, height, width_px)
        require_clip("r2plus1d", channels, size, smallest=4)
        require_at_least("width", width, 1)
        require_at_least("stages", stages, 1)
        first = stem_of(None, size)
        size = strided(size, (1, first, first))
        stem = nn.Sequential(
            convolution(channels, width, (1, 3, 3), (1, first, first)),
            ClipNorm(norm, width),
            nn.ReLU(),
            convolution(width, width, (3, 1, 1)),
            ClipNorm(norm, width),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = [stem]
        for place in range(stages):
            inputs, outputs = width * 2**place, width * 2 ** (place + 1)
            # below four pixels an instance norm of halved maps would see hardly anything
            stride = 2 if min(size[1:]) >= 4 else 1
            blocks.append(_residual(inputs, outputs, stride, norm))
            size = strided(size, (stride, stride, stride))
        blocks[-1] = nn.Sequential(blocks[-1], nn.AdaptiveAvgPool3d(1))
        super().__init__(blocks, width * 2**stages, classes)
        self.mixes_items = norm == "batch"


def _residual(inputs: int, outputs: int, stride: int, norm: NormKind) -> Sum:
    branch = nn.Sequential(
        factored(inputs, outputs, stride, norm),
        ClipNorm(norm, outputs),
        nn.ReLU(),
        factored(outputs, outputs, 1, norm),
        ClipNorm(norm, outputs),
    )
    shortcut = nn.Sequential(
        convolution(inputs, outputs, (1, 1, 1), (stride, stride, stride), bias=False),
        ClipNorm(norm, outputs),
    )
    return Sum(branch, shortcut)


class FrameNet(ImageEncoder, abc.ABC):
    """A 2-D ConvNet on every frame, and what makes one vector of its maps.

    Attributes
    ----------
    name: of the net, in messages.
    """

    name: ClassVar[str]

    def __init__(
        self,
        channels: int,
        frames: int,
        height: int,
        width_px: int,
        classes: int,
        *,
        width: int = 32,
        depth: int | None = None,
        stem: int | None = None,
        norm: NormKind = "instance",
        activation: Activation = "relu",
        pooling: str = "avg",
    ) -> None:
        size = (frames, height, width_px)
        require_clip(self.name, channels, size, smallest=2)
        require_at_least("width", width, 1)
        require_one_of("activation", activation, ACTIVATIONS)
        require_one_of("pooling", pooling, CLIP_POOLINGS)
        first = stem_of(stem, size)
        maps = strided(size, (1, first, first))[1:]
        depth = usual_depth(maps) if depth is None else depth
        require_depth(depth, maps, pooling)
        blocks: list[nn.Module] = []
        for place in range(depth):
            inputs, step = (channels, first) if place == 0 else (width, 1)
            conv = convolution(inputs, width, (1, 3, 3), (1, step, step))
            parts = [ClipNorm(norm, width), ACTIVATIONS[activation](), POOLINGS[pooling]()]
            blocks.append(nn.Sequential(conv, PerFrame(nn.Sequential(*parts))))
            maps = (maps[0] // 2, maps[1] // 2)
        ending, features = self.ending(width * maps[0] * maps[1])
        super().__init__([*blocks, ending], features, classes)
        self.mixes_items = norm == "batch"

    @abc.abstractmethod
    def ending(self, size: int) -> tuple[nn.Module, int]:
        """The last block, which reads `size` numbers of every frame, and how many it gives."""


class ConvGRU(FrameNet):
    """A 2-D ConvNet on every frame, and a GRU of `hidden` units over its features.

    The features are the mean state. The net by which video sets are tested across architectures.
    """

    name = "cnn-gru"

    def __init__(self, *shape: int, hidden: int = 64, **shared: Any) -> None:
        require_at_least("hidden", hidden, 1)
        self.hidden = hidden
        super().__init__(*shape, **shared)

    def ending(self, size: int) -> tuple[nn.Module, int]:
        """A GRU."""
        return GRUOverTime(size, self.hidden), self.hidden


class FrameMean(FrameNet):
    """The mean over the frames of a 2-D ConvNet's features: what stills alone tell.

    It reads no order of frames, so that a net that beats it has seen motion.
    """

    name = "frame-mean"

    def ending(self, size: int) -> tuple[nn.Module, int]:
        """An average."""
        return MeanOverTime(), size


class MLP(ImageMLP):
    """Fully connected net on all pixels: `depth` hidden layers of `width` units with ReLU."""

    def __init__(
        self,
        channels: int,
        frames: int,
        height: int,
        width_px: int,
        classes: int,
        *,
        width: int = 128,
        depth: int = 2,
    ) -> None:
        require_clip("mlp", channels, (frames, height, width_px), smallest=1)
        super().__init__(channels * frames, height, width_px, classes, width=width, depth=depth)


class Linear(ImageEncoder):
    """Logistic regression on all pixels; the features are the pixels."""

    def __init__(
        self, channels: int, frames: int, height: int, width_px: int, classes: int
    ) -> None:
        require_clip("linear", channels, (frames, height, width_px), smallest=1)
        super().__init__([nn.Flatten()], channels * frames * height * width_px, classes)


ENCODERS: dict[str, type[nn.Module]] = {
    "convnet": ConvNet3D,
    "r2plus1d": R2Plus1D,
    "cnn-gru": ConvGRU,
    "frame-mean": FrameMean,
    "mlp": MLP,
    "linear": Linear,
}
