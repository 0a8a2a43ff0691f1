"""What all audio encoders share: the spaces they read, masks, features and the final layer.

Shape suffixes in this file: n items, M mel bands, F frames, T samples, L places in time (frames or
samples), D features.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmdd.modalities.audio.space import LOG_MEL, WAVEFORM, audio_of
from mmdd.modalities.images.convnet import FewChannels
from mmdd.modalities.nets.checks import require_at_least
from mmdd.trees import Tree

SPACES = (LOG_MEL, WAVEFORM)


class AudioEncoder(nn.Module):
    """An encoder with a linear classifier on its features.

    Inputs are [n, 1, M, F] or [n, 1, T], or a dict of them as ``audio`` and a ``mask`` [n, L], true
    where the clip sounds. What a mask hides is zero for every net (the mean of the inputs), so that
    no gradient reaches it, and is left out wherever a net takes a mean over time.

    Attributes
    ----------
    spaces: what the encoder can read.
    classifier: the final linear layer, [n, D] -> [n, classes].
    mixes_items: True when an item's output depends on the other items of its batch (batch norm).
    """

    spaces: ClassVar[tuple[str, ...]] = SPACES
    mixes_items: bool = False

    def __init__(self, feature_size: int, classes: int) -> None:
        super().__init__()
        require_at_least("classes", classes, 1)
        self.classifier = nn.Linear(feature_size, classes)

    def stages(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Output of every stage, each [n, ...]; the last one holds the features."""
        raise AssertionError("an encoder defines stages")

    def layers(self, inputs: Tree) -> list[Tensor]:
        """Output of every stage, each flattened to [n, D_l]; the last is `features(inputs)`."""
        x, mask = audio_of(inputs)
        if mask is not None:
            x = x.masked_fill(~mask.reshape(len(mask), *(1,) * (x.ndim - 2), -1), 0.0)
        return [stage.flatten(1) for stage in self.stages(x, mask)]

    def features(self, inputs: Tree) -> Tensor:
        """Input of the classifier, [n, D]."""
        return self.layers(inputs)[-1]

    def forward(self, inputs: Tree) -> Tensor:
        """Logits, [n, classes]."""
        return self.classifier(self.features(inputs))


def convolution(place: int, width: int) -> nn.Conv2d:
    """A 3x3 convolution to `width` channels; the first one, at `place` 0, reads a spectrum."""
    if place == 0:
        return FewChannels(1, width, 3, padding=1)
    return nn.Conv2d(width, width, 3, padding=1)


def coarser(mask: Tensor | None, places: int) -> Tensor | None:
    """[n, L] mask -> [n, `places`] of a map that was pooled along time.

    A place sounds if any of the ``L // places`` that it stands for does.
    """
    if mask is None:
        return None
    factor = mask.shape[-1] // places
    pooled = nn.functional.max_pool1d(mask[:, None].float(), factor)
    return pooled[:, 0, :places] > 0


def mean_in_time(x: Tensor, mask: Tensor | None) -> Tensor:
    """[n, ..., L] -> [n, ...]: mean over the places that sound (over all, where none does)."""
    if mask is None:
        return x.mean(dim=-1)
    shown = torch.where(mask.any(dim=-1, keepdim=True), mask, True).to(x.dtype)
    shown = shown.reshape(len(mask), *(1,) * (x.ndim - 2), -1)
    return (x * shown).sum(dim=-1) / shown.sum(dim=-1)
