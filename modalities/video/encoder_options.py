"""Options of the video encoders and augmentations, as recipes write them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mmdd.modalities.images import encoder_options as images
from mmdd.modalities.nets.options import EncoderOptions, NoAugmentation, NormKind, Positive

Activation = Literal["relu", "leakyrelu", "sigmoid", "softplus"]
Pooling = Literal["avg", "max"]


class ConvNet3D(EncoderOptions):
    """The default: `depth` blocks of 3-D convolution, norm, activation and pooling (C3D)."""

    encoder: Literal["convnet"] = "convnet"
    width: Positive = 32
    depth: Positive | None = Field(None, description="by default as many as the frame's size takes")
    stem: Literal[1, 2] | None = Field(
        None, description="pixels from one position of the first filters to the next; 2 from 32 px"
    )
    pool_frames: Literal["all", "later"] = Field(
        "all", description="poolings that also halve the frames: all, or all but the first (C3D)"
    )
    norm: NormKind = "instance"
    activation: Activation = "relu"
    pooling: Pooling = "avg"


class R2Plus1D(EncoderOptions):
    """Residual blocks of a convolution within frames and one along time."""

    encoder: Literal["r2plus1d"] = "r2plus1d"
    width: Positive = 16
    stages: Positive = 2
    norm: NormKind = "instance"


class _PerFrame(EncoderOptions):
    """Nets that read every frame with the same 2-D ConvNet."""

    width: Positive = 32
    depth: Positive | None = None
    stem: Literal[1, 2] | None = None
    norm: NormKind = "instance"
    activation: Activation = "relu"
    pooling: Pooling = "avg"


class ConvGRU(_PerFrame):
    """A 2-D ConvNet on every frame and a GRU over time."""

    encoder: Literal["cnn-gru"] = "cnn-gru"
    hidden: Positive = 64


class FrameMean(_PerFrame):
    """The mean of a 2-D ConvNet's features over the frames, blind to their order."""

    encoder: Literal["frame-mean"] = "frame-mean"


class MLP(images.MLP):
    """Fully connected layers on all pixels of all frames."""


class Linear(EncoderOptions):
    """One linear layer on all pixels of all frames."""

    encoder: Literal["linear"] = "linear"


class ClipDSA(images.DSA):
    """One draw of an image's augmentation for all frames of a clip, and of one in time."""

    shift: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.125, description="largest shift in time either way, as a share of the frames"
    )
    speed: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        1.0, description="largest factor of time lapse; the smallest is its inverse"
    )


ENCODERS: dict[str, type[BaseModel]] = {
    "convnet": ConvNet3D,
    "r2plus1d": R2Plus1D,
    "cnn-gru": ConvGRU,
    "frame-mean": FrameMean,
    "mlp": MLP,
    "linear": Linear,
}
AUGMENTATIONS: dict[str, type[BaseModel]] = {"dsa": ClipDSA, "none": NoAugmentation}
