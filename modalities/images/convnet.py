"""The ConvNet on which nearly all distillation of images is compared.

Shape suffixes in this file: n items. A size is (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.images.base import (
    ImageEncoder,
    Size,
    digit_padding,
    halvings,
    require_image,
    require_one_of,
    window,
)
from mmdd.modalities.images.norm import Norm, NormKind
from mmdd.modalities.nets.checks import require_at_least

Activation = Literal["relu", "leakyrelu", "sigmoid", "softplus"]
Pooling = Literal["avg", "max", "none"]

# Nothing works in place: higher derivatives and vmap need the inputs as they were.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}
POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: nn.AvgPool2d(2),
    "max": lambda: nn.MaxPool2d(2),
    "none": nn.Identity,
}
DEPTH_UP_TO = ((48, 3), (96, 4), (160, 5))
DEPTH_ABOVE = 6


class FewChannels(nn.Conv2d):
    """A 3x3 convolution of one to four channels, on CPUs as a product of patches with weights.

    The processor's convolution kernels are made for many channels: for one they need five times as
    long as this product, forward and backward. Same parameters, same result up to rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, out, H', W'] in channels-last memory."""
        if x.is_cuda:
            return super().forward(x)
        side = int(self.padding[0])
        x = F.pad(x, (side, side, side, side))
        height, width = x.shape[2] - 2, x.shape[3] - 2
        # Shifted slices rather than `unfold`: every derivative is slices again, and they fuse.
        shifts = [x[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches = torch.stack(shifts, dim=-1).permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)
        # One product per image: the weights' gradient, summed over the pixels of all images, is a
        # long and narrow product otherwise, ten times slower in float32.
        weight = self.weight.flatten(1).t().expand(len(x), -1, -1)
        made = torch.bmm(patches, weight)
        made = made if self.bias is None else made + self.bias
        return made.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def usual_depth(size: Size) -> int:
    """Blocks that the field uses: 3 up to 48 pixels, 4 up to 96, 5 up to 160, 6 above.

    The shorter side decides. Tiny images get fewer blocks, so that the last maps keep 2x2 pixels:
    on digits of 8 pixels, two blocks distil to 92 % where three reach 82 %.
    """
    side = min(size)
    usual = next((depth for limit, depth in DEPTH_UP_TO if side <= limit), DEPTH_ABOVE)
    return max(1, min(usual, halvings(size) - 1))


def require_depth(depth: int, size: Size, pooling: str) -> None:
    """Refuse a depth whose poolings would shrink maps of this size below one pixel."""
    require_at_least("depth", depth, 1)
    if pooling != "none" and depth > halvings(size):
        raise UserError(
            f"depth halves maps of {size[0]}x{size[1]} pixels below one pixel",
            got=depth,
            expected=f"at most {halvings(size)}",
            hint=f"Set depth to {halvings(size)} or less, or pooling to 'none'.",
        )


class ConvNet(ImageEncoder):
    """ConvNet of Gidaris & Komodakis (2018) as used by dataset condensation (Zhao et al. 2021).

    Each of `depth` blocks is a 3x3 convolution to `width` channels with bias, a norm, an activation
    and a 2x2 pooling. Images of 1x28x28 are padded to 32x32 by the first convolution. `depth` None
    follows `usual_depth`.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width_px: int,
        classes: int,
        *,
        width: int = 128,
        depth: int | None = None,
        norm: NormKind = "instance",
        activation: Activation = "relu",
        pooling: Pooling = "avg",
    ) -> None:
        size = (height, width_px)
        require_image("convnet", channels, size, smallest=2)
        require_at_least("width", width, 1)
        require_one_of("activation", activation, ACTIVATIONS)
        require_one_of("pooling", pooling, POOLINGS)
        depth = usual_depth(size) if depth is None else depth
        extra = digit_padding(channels, size)
        size = window(size, kernel=3, padding=1 + extra)
        require_depth(depth, size, pooling)
        blocks = []
        for place in range(depth):
            inputs, padding = (channels, 1 + extra) if place == 0 else (width, 1)
            convolution = FewChannels if inputs <= 4 else nn.Conv2d
            parts = [convolution(inputs, width, 3, padding=padding), Norm(norm, width)]
            blocks.append(nn.Sequential(*parts, ACTIVATIONS[activation](), POOLINGS[pooling]()))
            size = size if pooling == "none" else window(size, kernel=2, stride=2)
        super().__init__(blocks, width * size[0] * size[1], classes)
        self.mixes_items = norm == "batch"
