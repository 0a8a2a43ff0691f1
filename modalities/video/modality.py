"""Video as a modality: the room's doors in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdd.modalities.images.encoders import build
from mmdd.modalities.images.normalise import bounds_of
from mmdd.modalities.video import show
from mmdd.modalities.video.augment import ClipDSA, cutmix
from mmdd.modalities.video.data import open_videos
from mmdd.modalities.video.encoders import ENCODERS
from mmdd.modality import DataInfo, Mixer, Splits


class Video:
    """Inputs are [n, C, T, H, W], normalised: (pixel in [0, 1] - mean) / std per channel."""

    name = "video"

    def __init__(self) -> None:
        self.mixers: Mapping[str, Mixer] = {"cutmix": cutmix}

    def open(self, source: Any, options: Any, device: torch.device) -> Splits:
        """Open a source; see `open_videos`."""
        return open_videos(source, options, device)

    def encoder(self, options: Any, info: DataInfo) -> nn.Module:
        """Build the encoder that the options name for clips of the set's shape."""
        return build(ENCODERS, options, info)

    def example(self, info: DataInfo) -> Tensor:
        """One blank item [1, C, T, H, W]."""
        return torch.zeros(1, *info.shape)

    def augmentation(self, options: Any, info: DataInfo) -> ClipDSA | None:
        """DSA of clips, or None."""
        chosen = options.model_dump()
        return ClipDSA(**chosen) if chosen.pop("kind") == "dsa" else None

    def noise(self, count: int, info: DataInfo, generator: torch.Generator) -> Tensor:
        """[count, C, T, H, W] standard normal numbers."""
        return torch.randn(count, *info.shape, generator=generator)

    def bounds(self, info: DataInfo) -> tuple[Tensor, Tensor]:
        """Black and white, or the range of float sources, normalised; [C, 1, 1, 1] each."""
        return bounds_of(info)

    def to_columns(
        self, inputs: Tensor, targets: Tensor, info: DataInfo
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """8-bit frames [T, H, W, C] and class labels."""
        return show.to_columns(inputs, targets, info)

    def picture(self, inputs: Tensor, targets: Tensor, info: DataInfo, path: Path) -> None:
        """Strips of frames, class by class."""
        show.picture(inputs, targets, info, path)


VIDEO = Video()
