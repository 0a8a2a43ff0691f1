"""What a recipe may say about image data. Imports nothing heavy: recipes are checked with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmdd.modalities.images.encoder_options import AUGMENTATIONS, ENCODERS
from mmdd.modalities.nets.options import Positive
from mmdd.modalities.tables.options import (
    GIB,
    DecodedBytes,
    DecodedStore,
    TableData,
    Tolerated,
    Workers,
)


class ImageData(TableData):
    """The ``data:`` section of a recipe whose modality is images."""

    source: str | None = Field(
        None,
        description="'digits', a name on the Hugging Face Hub, or a local folder or file. A local "
        "path wins over a Hub name; './digits' is a folder, 'digits' the built-in set",
    )
    image: str | None = Field(None, description="image column; found when there is only one")
    size: Positive | tuple[Positive, Positive] | None = Field(
        None, description="pixels per side, or [height, width]; by default what the images share"
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 (grey) or 3 (RGB); by default 1 only when all images are grey"
    )
    store: DecodedStore = "auto"
    max_resident_bytes: DecodedBytes = 4 * GIB
    workers: Workers = None
    max_corrupt: Tolerated = Field(
        0.01, description="unreadable images to tolerate: a fraction (a float) or a number (an int)"
    )
    whiten: Literal["none", "zca"] = Field(
        "none",
        description="'zca': normalised images are decorrelated by one matrix, fitted on training; "
        "up to 64x64 pixels in colour",
    )
    zca_eps: float = Field(
        0.1, gt=0, allow_inf_nan=False, description="added to the variances that ZCA divides by"
    )

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` as (height, width), or None when it is left to the images."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


DATA = ImageData
"""The model of the ``data:`` section, under the name that every modality gives it."""

HINTS = {"encoders": "mlp,lenet", "export": "imagefolder my_images"}
"""Words for the commands that are proposed after a run."""

__all__ = ["AUGMENTATIONS", "DATA", "ENCODERS", "HINTS", "ImageData"]
