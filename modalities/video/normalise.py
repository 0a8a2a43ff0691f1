"""Normalisation of clips: that of images, over all pixels of all frames.

Shape suffixes: n clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmdd.modalities.images.normalise import Normalise


class NormaliseClips:
    """Turns stored pixels [n, C, T, H, W] into (value - mean) / std, uint8 being read as [0, 1].

    Parameters
    ----------
    mean, std: one number per channel: in units of [0, 1] for uint8, else of the stored floats.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.of_images = Normalise(mean, std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise to float32; frames below each other are one tall picture."""
        return self.of_images(pixels.flatten(2, 3)).unflatten(2, pixels.shape[2:4])

    def inverse(self, inputs: Tensor) -> Tensor:
        """Turn normalised inputs [n, C, T, H, W] back into the units of the source."""
        return self.of_images.inverse(inputs.flatten(2, 3)).unflatten(2, inputs.shape[2:4])
