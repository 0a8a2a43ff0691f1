"""What all image encoders share: blocks, features, the final layer, and the arithmetic of sizes.

Shape suffixes in this file: n items, D features. A size is (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from mmdd.errors import UserError, unknown_name
from mmdd.modalities.nets.chain import outputs_of
from mmdd.modalities.nets.checks import require_at_least

Size = tuple[int, int]


class ImageEncoder(nn.Module):
    """A chain of blocks and a linear classifier on the flattened output of the last block.

    Attributes
    ----------
    blocks: the chain; the output of each is one entry of `layers`.
    classifier: the final linear layer, [n, D] -> [n, classes].
    mixes_items: True when an item's output depends on the other items of its batch (batch norm).
    """

    mixes_items: bool = False

    def __init__(self, blocks: Sequence[nn.Module], feature_size: int, classes: int) -> None:
        super().__init__()
        require_at_least("classes", classes, 1)
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(feature_size, classes)

    def features(self, x: Tensor) -> Tensor:
        """Input of the classifier, [n, channels, height, width] -> [n, D]."""
        for block in self.blocks:
            x = block(x)
        return x.flatten(1)

    def layers(self, x: Tensor) -> list[Tensor]:
        """Output of every block, each flattened to [n, D_l]; the last is `features(x)`."""
        return [output.flatten(1) for output in outputs_of(self.blocks, x)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [n, channels, height, width] -> [n, classes]."""
        return self.classifier(self.features(x))


def require_one_of(option: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a word that is not among `allowed`, naming them all."""
    names = tuple(allowed)
    if value not in names:
        raise unknown_name(option, value, names)


def require_image(name: str, channels: int, size: Size, smallest: int) -> None:
    """Refuse images without channels, or with a side below `smallest` pixels."""
    require_at_least("channels", channels, 1)
    if min(size) < smallest:
        raise UserError(
            f"the encoder {name!r} cannot read images this small",
            got=size,
            expected=f"at least {smallest} pixels on each side",
            hint="Resize the images, or choose the encoder 'mlp'.",
        )


def digit_padding(channels: int, size: Size) -> int:
    """Pixels to add to the first convolution's padding: 2 for 1x28x28 images, else 0.

    The field's nets turn digits of 28 pixels into maps of 32, so that halving stays exact and the
    parameter counts match the published ones. Published code does so for any image of one channel,
    which at other sizes only adds an empty border.
    """
    return 2 if channels == 1 and size == (28, 28) else 0


def window(size: Size, kernel: int, stride: int = 1, padding: int = 0) -> Size:
    """Size of the map after a convolution or a pooling."""
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    return height, width


def halvings(size: Size) -> int:
    """How often a map can be halved (rounding down) before a side would fall below one pixel."""
    return min(size).bit_length() - 1


def keep_last(total: int, possible: int) -> list[bool]:
    """Which of `total` halvings to do when only `possible` fit: the last ones.

    Dropping the first ones keeps the maps of the middle layers above one pixel, where instance
    norm would return a constant.
    """
    return [place >= total - possible for place in range(total)]
