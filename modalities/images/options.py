"""What a recipe may say about image data. Imports nothing heavy: recipes are checked with it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmdd.modalities.images.encoder_options import AUGMENTATIONS, ENCODERS

Pixels = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
GIB = 2**30


class ImageData(BaseModel):
    """The ``data:`` section of a recipe whose modality is images."""

    model_config = ConfigDict(extra="forbid")

    source: str | None = Field(
        None,
        description="'digits', a name on the Hugging Face Hub, or a local folder or file. A local "
        "path wins over a Hub name; './digits' is a folder, 'digits' the built-in set",
    )
    config: str | None = Field(None, description="configuration of a set that has several")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub set")
    train_split: str = Field("train", description="split to distil")
    test_split: str | None = Field(
        None, description="split to score on; by default 'test', else a labelled validation split"
    )
    validation_split: str | None = Field(
        None, description="split to tune on; by default a labelled one that is not the test set"
    )
    image: str | None = Field(None, description="image column; found when there is only one")
    label: str | None = Field(
        None, description="label column, 'json.label' for a field of a struct; found when clear"
    )
    size: Pixels | tuple[Pixels, Pixels] | None = Field(
        None, description="pixels per side, or [height, width]; by default what the images share"
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 (grey) or 3 (RGB); by default 1 only when all images are grey"
    )
    validation: Count | Share = Field(
        0.1,
        description="fraction (below 1) or number of training items held out, class by class, "
        "when no validation split exists; 0 for none",
    )
    max_validation: int = Field(
        5000, ge=1, description="most items that a fraction of `validation` holds out"
    )
    test: Share = Field(
        0.2,
        description="fraction of training items held out, class by class, when no other split "
        "has labels to score on; 0 for none",
    )
    store: Literal["auto", "device", "disk"] = Field(
        "auto",
        description="'device': decoded once, kept on the device; 'disk': decoded at every read "
        "by worker processes; 'auto': by `max_resident_bytes`",
    )
    max_resident_bytes: int = Field(
        4 * GIB, ge=0, description="largest decoded set, in bytes, that 'auto' keeps on the device"
    )
    workers: Count | None = Field(
        None, description="reading processes; by default one less than the cores, at most 8"
    )
    max_corrupt: Count | Annotated[float, Field(ge=0, le=1)] = Field(
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
    seed: int = Field(0, ge=0, description="seed of the hold-outs, and of nothing else")

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        chosen = [self.train_split, self.test_split, self.validation_split]
        named = [name for name in chosen if name is not None]
        if len(set(named)) < len(named):
            raise ValueError("train_split, test_split and validation_split must be different")
        return self

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` as (height, width), or None when it is left to the images."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


DATA = ImageData
"""The model of the ``data:`` section, under the name that every modality gives it."""

__all__ = ["AUGMENTATIONS", "DATA", "ENCODERS", "ImageData"]
