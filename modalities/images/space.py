"""The space that learners read: what is measured of the training images, and the way there.

Shape suffixes: n images, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdd.modalities.images.normalise import Moments, Normalise
from mmdd.modalities.images.options import ImageData
from mmdd.modalities.images.whiten import Covariance, Whiten, fit
from mmdd.modalities.tables.arrays import Array, at_random
from mmdd.progress import for_terminal

MOST_WHITENED = 50_000  # images that a covariance is measured on: a random subset of larger sets
MANY_NUMBERS = 1024  # of an image: whitening those deserves a bar


@dataclasses.dataclass(frozen=True)
class Space:
    """How stored pixels become inputs, and what an artifact keeps of it.

    Attributes
    ----------
    prepare: stored pixels [n, C, H, W] -> inputs [n, C, H, W] float32, on any device.
    normalisation: facts, as plain JSON values.
    tensors: by name; see `Whitening`.
    """

    prepare: Normalise | Whiten
    normalisation: dict[str, Any]
    tensors: dict[str, Tensor]


class Measures:
    """Measures training images [n, C, H, W] of one shape, which come in blocks."""

    def __init__(
        self, shape: tuple[int, ...], options: ImageData, device: torch.device | str
    ) -> None:
        self.options = options
        self.moments = Moments(shape[0])
        self.covariance = Covariance(shape, device) if options.whiten == "zca" else None

    @property
    def takes_long(self) -> bool:
        """True when whitening large images: its work grows with the square of their size."""
        return self.covariance is not None and self.covariance.size >= MANY_NUMBERS

    def add(self, images: Array, update: Callable[[int], None] = lambda done: None) -> None:
        """Take images: all of them for mean and std, at most `MOST_WHITENED` for whitening.

        `update` is called with the number of images done, where that takes long.
        """
        self.moments.add(images)
        if self.covariance is not None:
            self.covariance.add(images, at_random(len(images), MOST_WHITENED), update)

    def space(self, notes: list[str]) -> Space:
        """Work out the space; sentences for the user are added to `notes`."""
        mean, std, (low, high) = self.moments.result()
        if (low, high) != (0.0, 1.0):
            notes.append(f"pixels lie in {low:.4g}..{high:.4g}: taken as already scaled")
        normalise = Normalise(mean, std)
        facts: dict[str, Any] = {"mean": mean, "std": std, "range": [low, high]}
        if self.covariance is None:
            return Space(normalise, facts, {})
        eps, items = self.options.zca_eps, self.covariance.number
        quiet = not (self.takes_long and sys.stderr.isatty())
        with for_terminal(quiet).task("working out the whitening", None):
            whitening = fit(*self.covariance.normalised(normalise), eps)
        facts |= {"whiten": "zca", "zca_eps": eps, "zca_items": items}
        notes.append(
            f"images are whitened (ZCA, eps {eps:g}), measured on {items:,} training images"
        )
        return Space(Whiten(normalise, whitening), facts, whitening.tensors())
