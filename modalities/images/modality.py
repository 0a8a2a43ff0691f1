"""Images as a modality: the room's doors in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdd.modalities.images import show
from mmdd.modalities.images.augment import DSA
from mmdd.modalities.images.data import open_images
from mmdd.modalities.images.encoders import ENCODERS, build
from mmdd.modalities.images.mixing import cutmix
from mmdd.modalities.images.normalise import bounds_of
from mmdd.modalities.images.whiten import is_whitened
from mmdd.modality import DataInfo, Mixer, Splits


class Images:
    """Inputs are [n, C, H, W] in normalised space: (pixel in [0, 1] - mean) / std per channel.

    With ``data.whiten: zca`` they are whitened after that, and augmented in whitened space, as MTT
    does.
    """

    name = "images"

    def __init__(self) -> None:
        self.mixers: Mapping[str, Mixer] = {"cutmix": cutmix}

    def open(self, source: Any, options: Any, device: torch.device) -> Splits:
        """Open a source; see `open_images`."""
        return open_images(source, options, device)

    def encoder(self, options: Any, info: DataInfo) -> nn.Module:
        """Build the encoder that the options name for images of the set's shape."""
        return build(ENCODERS, options, info)

    def example(self, info: DataInfo) -> Tensor:
        """One blank item [1, C, H, W]."""
        return torch.zeros(1, *info.shape)

    def augmentation(self, options: Any, info: DataInfo) -> DSA | None:
        """DSA, or None."""
        return DSA(options.strategy, mode=options.mode) if options.kind == "dsa" else None

    def noise(self, count: int, info: DataInfo, generator: torch.Generator) -> Tensor:
        """[count, C, H, W] standard normal numbers: DC's initial images."""
        return torch.randn(count, *info.shape, generator=generator)

    def bounds(self, info: DataInfo) -> tuple[Tensor, Tensor] | None:
        """Black and white (or the range of float sources) in normalised space, [C, 1, 1] each.

        None for whitened images: every number mixes all pixels there, so that the range of the
        pixels is no box.
        """
        if is_whitened(info):
            return None
        return bounds_of(info)

    def to_columns(
        self, inputs: Tensor, targets: Tensor, info: DataInfo
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """8-bit images and class labels."""
        return show.to_columns(inputs, targets, info)

    def picture(self, inputs: Tensor, targets: Tensor, info: DataInfo, path: Path) -> None:
        """A grid of images, one row per class."""
        show.picture(inputs, targets, info, path)


IMAGES = Images()
