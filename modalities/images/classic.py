"""Older nets that serve to test how a distilled set transfers: MLP, LeNet, AlexNet and VGG11.

Shape suffixes in this file: n items. A size is (height, width) in pixels.
"""

from __future__ import annotations

from torch import nn

from mmdd.modalities.images.base import (
    ImageEncoder,
    digit_padding,
    halvings,
    keep_last,
    require_image,
    window,
)
from mmdd.modalities.images.norm import Norm, NormKind
from mmdd.modalities.nets.checks import require_at_least


class MLP(ImageEncoder):
    """Fully connected net on the pixels: `depth` hidden layers of `width` units with ReLU."""

    def __init__(
        self,
        channels: int,
        height: int,
        width_px: int,
        classes: int,
        *,
        width: int = 128,
        depth: int = 2,
    ) -> None:
        require_image("mlp", channels, (height, width_px), smallest=1)
        require_at_least("width", width, 1)
        require_at_least("depth", depth, 1)
        inputs = [channels * height * width_px] + [width] * (depth - 1)
        blocks = [nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU()) for size in inputs]
        super().__init__(blocks, width, classes)


class LeNet(ImageEncoder):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, as transfer tables use it.

    The first 5x5 convolution is padded by 2 for images of 1x28x28. Below 16 pixels on a side, where
    the second convolution would find no room, both are padded by 2; 4 pixels is the least.
    """

    def __init__(self, channels: int, height: int, width_px: int, classes: int) -> None:
        size = (height, width_px)
        require_image("lenet", channels, size, smallest=4)
        second = 2 if min(size) < 16 else 0
        first = second or digit_padding(channels, size)
        blocks: list[nn.Module] = []
        for inputs, outputs, padding in ((channels, 6, first), (6, 16, second)):
            conv = nn.Conv2d(inputs, outputs, 5, padding=padding)
            blocks.append(nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2)))
            size = window(window(size, kernel=5, padding=padding), kernel=2, stride=2)
        for wide, narrow in ((16 * size[0] * size[1], 120), (120, 84)):
            blocks.append(nn.Sequential(nn.Flatten(), nn.Linear(wide, narrow), nn.ReLU()))
        super().__init__(blocks, 84, classes)


# Output channels, kernel, and whether a pooling follows.
ALEXNET = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))


class AlexNet(ImageEncoder):
    """AlexNet (Krizhevsky et al. 2012) in the small form that distillation papers compare.

    Five padded convolutions without norm, three poolings, no hidden linear layers. Of the poolings,
    those that do not fit the image are dropped, the first ones first.
    """

    def __init__(self, channels: int, height: int, width_px: int, classes: int) -> None:
        size = (height, width_px)
        require_image("alexnet", channels, size, smallest=1)
        extra = digit_padding(channels, size)
        size = window(size, kernel=5, padding=2 + extra)
        pool_now = iter(keep_last(3, halvings(size)))
        blocks, inputs = [], channels
        for outputs, kernel, pooled in ALEXNET:
            conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 + extra)
            parts: list[nn.Module] = [conv, nn.ReLU()]
            if pooled and next(pool_now):
                parts.append(nn.MaxPool2d(2))
                size = window(size, kernel=2, stride=2)
            blocks.append(nn.Sequential(*parts))
            inputs, extra = outputs, 0
        super().__init__(blocks, inputs * size[0] * size[1], classes)


# Output channels of the convolutions of each block; every block ends with a pooling.
VGG11_BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG11(ImageEncoder):
    """VGG11 (Simonyan & Zisserman 2015) with one linear layer, in the form for 32 pixels.

    Eight 3x3 convolutions with norm and ReLU in five blocks, each followed by a 2x2 max pooling, so
    that 32x32 becomes 512 features. Below 32 pixels on a side, the poolings that do not fit are
    dropped, the first ones first: every norm then still sees more than one pixel.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width_px: int,
        classes: int,
        *,
        norm: NormKind = "instance",
    ) -> None:
        size = (height, width_px)
        require_image("vgg11", channels, size, smallest=2)
        extra = digit_padding(channels, size)
        size = window(size, kernel=3, padding=1 + extra)
        pooled = keep_last(len(VGG11_BLOCKS), halvings(size))
        blocks, inputs = [], channels
        for widths, pool in zip(VGG11_BLOCKS, pooled, strict=True):
            parts: list[nn.Module] = []
            for outputs in widths:
                conv = nn.Conv2d(inputs, outputs, 3, padding=1 + extra)
                parts += [conv, Norm(norm, outputs), nn.ReLU()]
                inputs, extra = outputs, 0
            if pool:
                parts.append(nn.MaxPool2d(2))
                size = window(size, kernel=2, stride=2)
            blocks.append(nn.Sequential(*parts))
        super().__init__(blocks, inputs * size[0] * size[1], classes)
        self.mixes_items = norm == "batch"
