"""Reading numbered clips: frames as sampled, and what is done about those that cannot be read.

Shape suffixes: n clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.images.decode import Geometry, Tally
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.failures import why
from mmdd.modalities.tables.streaming import NumberedReader
from mmdd.modalities.video.clips import Clips
from mmdd.modalities.video.sample import Sampling

Outcome = tuple[Tally, str | None, int]
"""What was done to the frames, why the clip cannot be read, and how many frames it has."""

REPEATED = ("hold", "loop")
"""What can be done with short clips without leaving them out."""


def read_clip(
    clips: Clips, row: int, sampling: Sampling, geometry: Geometry, out: Array
) -> Outcome:
    """Write the sampled frames of one clip into `out` [C, T, H, W].

    One that is too short stays unwritten, unless its frames are repeated.
    """
    tally = Tally()
    try:
        footage = clips.open(row)
        length = len(footage)
        if length == 0:
            return tally, "no frames", 0
        if length >= sampling.needs or sampling.short in REPEATED:
            footage.fill(sampling.places(length), out, geometry, tally)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a decoder raises whatever broken bytes lead it to
        return tally, why(error), 0
    return tally, None, length


@dataclasses.dataclass(kw_only=True)
class ClipReader(NumberedReader[Clips]):
    """Reads numbered clips of several splits; one that is too short is an error.

    Attributes
    ----------
    geometry: the shape of all frames.
    sampling: which frames are read.
    blank: [C] what an unreadable clip is filled with; zero once normalised.
    """

    one = "clip"
    geometry: Geometry
    sampling: Sampling
    blank: Sequence[float]

    def __call__(self, rows: list[int]) -> Tensor:
        """Read the clips numbered `rows` into [n, C, T, H, W]."""
        channels, *size = self.geometry.shape
        shape = (len(rows), channels, self.sampling.frames, *size)
        out = np.empty(shape, self.parts[0].dtype)
        for place, number in enumerate(rows):
            self._read(number, out[place])
        return torch.from_numpy(out)

    def _read(self, number: int, out: Array) -> None:
        clips, row = self.find(number)
        _, problem, length = read_clip(clips, row, self.sampling, self.geometry, out)
        if problem is None and length < self.sampling.needs and self.sampling.short not in REPEATED:
            raise UserError(
                f"clip {clips.name(row)} has fewer frames than asked for",
                got=length,
                expected=f"at least {self.sampling.needs} frames",
                hint="Lower data.frames, or set data.short to hold or loop.",
            )
        if problem is None and out.dtype.kind == "f" and not np.isfinite(out).all():
            problem = "NaN or infinite pixels"
        if problem is not None:
            out[:] = np.asarray(self.blank, out.dtype)[:, None, None, None]
            self.report(number, clips.name(row), problem)
