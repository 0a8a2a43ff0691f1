"""Options of the audio encoders and augmentations, as recipes write them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmdd.modalities.nets.options import (
    EncoderOptions,
    NoAugmentation,
    NormKind,
    NotNegative,
    Positive,
    require_operations,
)

Share = Annotated[float, Field(ge=0, le=1)]


class ConvNet(EncoderOptions):
    """The field's ConvNet on log-mel spectra."""

    encoder: Literal["convnet"] = "convnet"
    width: Positive = 128
    depth: Positive | None = Field(
        None, description="by default 3 or more by size, so that the last maps keep 2x2 numbers"
    )
    norm: NormKind = "instance"
    pooling: Literal["avg", "max"] = "avg"


class M5(EncoderOptions):
    """Four 1-D convolutions on waveforms, the first one long."""

    encoder: Literal["m5"] = "m5"
    width: Positive = 64
    kernel: Positive = Field(80, description="samples that the first convolution sees")
    stride: Positive = Field(4, description="of the first convolution")
    norm: Literal["instance", "none"] = "instance"


class CRNN(EncoderOptions):
    """Convolutions on log-mel spectra, then a GRU along time."""

    encoder: Literal["crnn"] = "crnn"
    width: Positive = 64
    depth: Positive = 2
    hidden: Positive = 64
    norm: NormKind = "instance"


class Transformer(EncoderOptions):
    """A small transformer whose tokens are frames of a log-mel spectrum."""

    encoder: Literal["transformer"] = "transformer"
    patch: Positive = Field(2, description="frames of a token")
    dim: Positive = 64
    depth: Positive = 2
    heads: Positive = 4
    mlp_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0


class MLP(EncoderOptions):
    """Fully connected layers on the numbers of either space."""

    encoder: Literal["mlp"] = "mlp"
    width: Positive = 128
    depth: Positive = 2


class Linear(EncoderOptions):
    """One linear layer on the numbers of either space."""

    encoder: Literal["linear"] = "linear"


AUGMENTATION_OPS = ("gain", "shift", "noise", "time", "frequency")
SPECTRAL_OPS = ("frequency",)


class Siamese(BaseModel):
    """One draw of gain, shift, noise and masks for the real and the synthetic batch."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["siamese"] = "siamese"
    strategy: str | None = Field(
        None,
        description="operations joined by '_' of gain, shift, noise, time and frequency (masks; "
        "SpecAugment); by default all that the space knows",
    )
    mode: Literal["one", "all"] = Field(
        "one", description="'one': each draw picks one operation; 'all': all are applied"
    )
    gain: NotNegative = Field(6.0, description="largest change of loudness either way, in dB")
    shift: Share = Field(0.1, description="largest move in time, as a share of the clip")
    noise: NotNegative = Field(
        0.1, description="largest deviation of added noise, in units of the normalised inputs"
    )
    time: Share = Field(0.2, description="widest mask in time, as a share of the clip")
    frequency: Share = Field(0.2, description="widest mask in frequency, as a share of the bands")

    @field_validator("strategy")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        require_operations(value, AUGMENTATION_OPS)
        return value


ENCODERS: dict[str, type[BaseModel]] = {
    "convnet": ConvNet,
    "m5": M5,
    "crnn": CRNN,
    "transformer": Transformer,
    "mlp": MLP,
    "linear": Linear,
}
AUGMENTATIONS: dict[str, type[BaseModel]] = {"siamese": Siamese, "none": NoAugmentation}
