"""Pairs as a modality: the room's doors in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdd.modalities.pairs import augment, encoders, show
from mmdd.modalities.pairs.augment import PairAugment
from mmdd.modalities.pairs.data import open_pairs
from mmdd.modalities.text.space import blank, noise
from mmdd.modality import DataInfo, Mixer, Splits
from mmdd.trees import Tree


class Pairs:
    """Inputs are ``{first: …, second: …}``, fields named by ``data.names`` (image and text).

    A field is vectors [n, D], pixels [n, C, H, W] or token embeddings ``{"values": [n, L, h],
    "mask": [n, L]}``, each scaled to about unit variance by the training part.
    """

    name = "pairs"
    eager = True
    """Projections of vectors are few operations, on batches of changing size."""

    def __init__(self) -> None:
        self.mixers: Mapping[str, Mixer] = {}

    def open(self, source: Any, options: Any, device: torch.device) -> Splits:
        """Open a source; see `open_pairs`."""
        return open_pairs(source, options, device)

    def encoder(self, options: Any, info: DataInfo) -> nn.Module:
        """Build the encoder that the options name; see `encoders.build`."""
        return encoders.build(options, info)

    def example(self, info: DataInfo) -> Tree:
        """One blank pair: zeros, all tokens shown."""
        return {name: blank(facts["shape"]) for name, facts in _fields(info).items()}

    def augmentation(self, options: Any, info: DataInfo) -> PairAugment | None:
        """What the fields know, or None; see `augment.build`."""
        return augment.build(options, info)

    def noise(self, count: int, info: DataInfo, generator: torch.Generator) -> Tree:
        """Standard normal pairs; texts are of the median length of the training texts."""
        fields = _fields(info).items()
        return {name: noise(count, each["shape"], each, generator) for name, each in fields}

    def bounds(self, info: DataInfo) -> None:
        """None: vectors have no box, and pixels stand beside them in one tree."""
        return

    def to_columns(
        self, inputs: Tree, targets: Tree, info: DataInfo
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """Vectors or images, similarities and nearest texts; see `show.to_columns`."""
        return show.to_columns(inputs, targets, info)

    def picture(self, inputs: Tree, targets: Tree, info: DataInfo, path: Path) -> None:
        """Images beside texts, or maps of both fields; see `show.picture`."""
        show.picture(inputs, targets, info, path)


def _fields(info: DataInfo) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = info.normalisation["fields"]
    return found


PAIRS = Pairs()
