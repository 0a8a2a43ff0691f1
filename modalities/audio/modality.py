"""Audio as a modality: the room's doors in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdd.modalities.audio import encoders, export, show
from mmdd.modalities.audio.augment import AudioAugment
from mmdd.modalities.audio.data import open_audio
from mmdd.modalities.audio.space import WAVEFORM, normalisation_of
from mmdd.modality import DataInfo, Mixer, Splits
from mmdd.trees import Tree


class Audio:
    """Inputs are log-mel spectra [n, 1, bands, frames] or waveforms [n, 1, samples], normalised.

    With ``data.mask`` they are a dict of these as ``audio`` and of a ``mask`` [n, frames or
    samples], true where the clip sounds.
    """

    name = "audio"

    def __init__(self) -> None:
        self.mixers: Mapping[str, Mixer] = {}

    def open(self, source: Any, options: Any, device: torch.device) -> Splits:
        """Open a source; see `open_audio`."""
        return open_audio(source, options, device)

    def encoder(self, options: Any, info: DataInfo) -> nn.Module:
        """Build the encoder that the options name, if it reads the set's space."""
        chosen = options.model_dump()
        name, space = chosen.pop("encoder"), info.normalisation["space"]
        return encoders.build(name, info.shape, info.classes, space, chosen)

    def example(self, info: DataInfo) -> Tree:
        """One blank clip, with an axis of length 1 in front."""
        return _with_mask(torch.zeros(1, *info.shape), info)

    def augmentation(self, options: Any, info: DataInfo) -> AudioAugment | None:
        """Siamese augmentation, or None."""
        return AudioAugment(options, info) if options.kind == "siamese" else None

    def noise(self, count: int, info: DataInfo, generator: torch.Generator) -> Tree:
        """`count` items of standard normal numbers; they sound from end to end."""
        return _with_mask(torch.randn(count, *info.shape, generator=generator), info)

    def bounds(self, info: DataInfo) -> tuple[Tree, Tree]:
        """Lowest and highest number of the training clips, normalised."""
        low, high = normalisation_of(info).bounds(len(info.shape))
        if info.normalisation["space"] == WAVEFORM:
            # sound swings both ways: neither end may be nearer than the other
            high = torch.maximum(high, -low)
            low = -high
        return ({"audio": low}, {"audio": high}) if info.normalisation["mask"] else (low, high)

    def to_columns(
        self, inputs: Tree, targets: Tensor, info: DataInfo
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """WAV files in an Audio column, and class labels."""
        return export.to_columns(inputs, targets, info)

    def picture(self, inputs: Tree, targets: Tensor, info: DataInfo, path: Path) -> None:
        """A grid of spectrograms or waveforms, one row per class."""
        show.picture(inputs, targets, info, path)


def _with_mask(values: Tensor, info: DataInfo) -> Tree:
    if not info.normalisation["mask"]:
        return values
    mask = torch.ones(len(values), values.shape[-1], dtype=torch.bool)
    return {"audio": values, "mask": mask}


AUDIO = Audio()
