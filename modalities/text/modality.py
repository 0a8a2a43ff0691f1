"""Text as a modality: the room's doors in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdd.modalities.text import show
from mmdd.modalities.text.augment import TextAugment
from mmdd.modalities.text.data import open_text
from mmdd.modalities.text.encoders import build
from mmdd.modalities.text.space import blank, noise
from mmdd.modality import DataInfo, Mixer, Splits
from mmdd.trees import Tree


class Text:
    """Inputs are token embeddings with a mask, or vectors, both scaled to about unit variance.

    Token space: ``{"values": [n, L, h], "mask": [n, L] bool}``, values zero where the mask is
    False. Vector space: [n, D].
    """

    name = "text"
    eager = True
    """Short sentences are few operations, and libraries' encoders do not compile throughout."""

    def __init__(self) -> None:
        self.mixers: Mapping[str, Mixer] = {}

    def open(self, source: Any, options: Any, device: torch.device) -> Splits:
        """Open a source; see `open_text`."""
        return open_text(source, options, device)

    def encoder(self, options: Any, info: DataInfo) -> nn.Module:
        """Build the encoder that the options name; see `encoders.build`."""
        return build(options, info)

    def example(self, info: DataInfo) -> Tree:
        """One blank item: zeros, all positions shown."""
        return blank(info.shape)

    def augmentation(self, options: Any, info: DataInfo) -> TextAugment | None:
        """Dropout, masking and mixing of embeddings, or None."""
        if options.kind != "text":
            return None
        return TextAugment(info.shape, dropout=options.dropout, mask=options.mask, mix=options.mix)

    def noise(self, count: int, info: DataInfo, generator: torch.Generator) -> Tree:
        """Standard normal items; sentences are of the median length of the training texts."""
        return noise(count, info.shape, info.normalisation, generator)

    def bounds(self, info: DataInfo) -> None:
        """None: embeddings have no box."""
        return

    def to_columns(
        self, inputs: Tree, targets: Tree, info: DataInfo
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """Vectors, labels and nearest texts; see `show.to_columns`."""
        return show.to_columns(inputs, targets, info)

    def picture(self, inputs: Tree, targets: Tree, info: DataInfo, path: Path) -> None:
        """A map of real and synthetic items, and the nearest texts; see `show.picture`."""
        show.picture(inputs, targets, info, path)


TEXT = Text()
