"""Which frames of a clip are read.

Shape suffixes: L frames of a clip, T frames that are read.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.video.options import VideoData


@dataclasses.dataclass(frozen=True)
class Sampling:
    """T frames of every clip, chosen without chance.

    Attributes
    ----------
    frames: T.
    sample: ``uniform`` takes the middles of T equal parts (Wang et al. 2016, TSN, in testing);
        ``start`` and ``centre`` every `stride`-th frame.
    short: what is done with a clip that is shorter than `needs`.
    """

    frames: int
    sample: str
    stride: int
    short: str

    @classmethod
    def of(cls, options: VideoData, frames: int) -> Sampling:
        """As the user chose."""
        return cls(frames, options.sample, options.stride, options.short)

    @property
    def needs(self) -> int:
        """The fewest frames of a clip that is not short."""
        return self.frames if self.sample == "uniform" else (self.frames - 1) * self.stride + 1

    def places(self, count: int) -> Array:
        """[T] int64 frames of a clip of L = `count` >= 1 frames; those of a short one repeat."""
        if self.sample == "uniform":
            if count >= self.frames:
                middles = (np.arange(self.frames) + 0.5) * count / self.frames
                return middles.astype(np.int64)
            places = np.arange(self.frames)
        else:
            places = np.arange(self.frames) * self.stride
            if self.sample == "centre":
                places = places + max(0, count - self.needs) // 2
        return places % count if self.short == "loop" else np.minimum(places, count - 1)
