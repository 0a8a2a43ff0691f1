"""What a recipe may say about clips. Imports nothing heavy: recipes are checked with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmdd.modalities.nets.options import Positive
from mmdd.modalities.tables.options import (
    GIB,
    DecodedBytes,
    DecodedStore,
    TableData,
    Tolerated,
    Workers,
)
from mmdd.modalities.video.encoder_options import AUGMENTATIONS, ENCODERS

USUAL_FRAMES = 16
"""Frames of a clip where nothing else is said, as C3D reads them."""


class VideoData(TableData):
    """The ``data:`` section of a recipe whose modality is video."""

    source: str | None = Field(
        None,
        description="a name on the Hugging Face Hub, or a local folder or file: a table, "
        "train/<class>/*.mp4 (or .gif), or train/<class>/<clip>/*.png. A local path wins",
    )
    video: str | None = Field(None, description="column of the clips; found when there is only one")
    frames: Positive | None = Field(
        None, description="frames of a clip; by default 16, or as many as the shortest clip has"
    )
    sample: Literal["uniform", "start", "centre"] = Field(
        "uniform",
        description="'uniform': evenly over the clip; 'start', 'centre': every `stride`-th frame "
        "from the start, or around the middle",
    )
    stride: Positive = Field(1, description="frames from one to the next, unless uniform")
    short: Literal["refuse", "hold", "loop", "drop"] = Field(
        "refuse",
        description="clips with too few frames: an error, their last frame is held, they start "
        "again, or they are left out",
    )
    size: Positive | tuple[Positive, Positive] | None = Field(
        None, description="pixels per side, or [height, width]; by default what the clips share"
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 (grey) or 3 (RGB); by default 1 only when all clips are grey"
    )
    store: DecodedStore = "auto"
    max_resident_bytes: DecodedBytes = 4 * GIB
    workers: Workers = None
    max_corrupt: Tolerated = Field(
        0.01, description="unreadable clips to tolerate: a fraction (a float) or a number (an int)"
    )

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` as (height, width), or None when it is left to the clips."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


DATA = VideoData
"""The model of the ``data:`` section, under the name that every modality gives it."""

HINTS = {"encoders": "cnn-gru,frame-mean", "export": "gif my_clips"}
"""Words for the commands that are proposed after a run."""

__all__ = ["AUGMENTATIONS", "DATA", "ENCODERS", "HINTS", "VideoData"]
