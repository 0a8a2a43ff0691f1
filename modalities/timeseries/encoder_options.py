"""Options of the series encoders and augmentations, as recipes write them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmdd.modalities.nets import options
from mmdd.modalities.nets.options import (
    NoAugmentation,
    NotNegative,
    Positive,
    require_operations,
)

Share = Annotated[float, Field(gt=0, le=1)]
NormKind = Literal["instance", "layer", "none"]


class EncoderOptions(options.EncoderOptions):
    """Options are the keyword arguments of the encoder's class."""

    model_config = ConfigDict(validate_default=True)

    per_channel: bool = Field(
        False,
        description="one net reads every channel on its own (channel independence, forecasting)",
    )


class ConvNet(EncoderOptions):
    """The field's default in one dimension: convolution, norm, ReLU and pooling, `depth` times."""

    encoder: Literal["convnet"] = "convnet"
    width: Positive = 128
    depth: Positive | None = Field(None, description="3, or as often as the length can be halved")
    kernel: Positive = 5
    norm: NormKind = Field("instance", description="'layer' keeps how channels differ in level")
    head: Literal["flatten", "mean"] = "flatten"


class FCN(EncoderOptions):
    """Three convolutions and the mean over time (Wang et al. 2017)."""

    encoder: Literal["fcn"] = "fcn"
    width: Positive = 128
    norm: NormKind = "layer"


class ResNet(EncoderOptions):
    """Residual blocks of three convolutions and the mean over time (Wang et al. 2017)."""

    encoder: Literal["resnet"] = "resnet"
    width: Positive = 64
    depth: Positive = 3
    norm: NormKind = "layer"


class Inception(EncoderOptions):
    """Convolutions of three lengths side by side (InceptionTime, Ismail Fawaz et al. 2020)."""

    encoder: Literal["inception"] = "inception"
    width: Positive = Field(32, description="channels of each of the four branches")
    depth: Positive = 6
    kernel: Positive = Field(40, description="longest kernel; the others have 1/2 and 1/4 of it")
    norm: NormKind = "layer"


class Dual(EncoderOptions):
    """Two ConvNets: one reads the series, one its spectrum (CondTSC)."""

    encoder: Literal["dual"] = "dual"
    width: Positive = 64
    depth: Positive | None = None
    kernel: Positive = 5
    norm: NormKind = "layer"


class LSTM(EncoderOptions):
    """A long short-term memory; its last state is read."""

    encoder: Literal["lstm"] = "lstm"
    width: Positive = 64
    depth: Positive = 1


class GRU(EncoderOptions):
    """A gated recurrent net; its last state is read."""

    encoder: Literal["gru"] = "gru"
    width: Positive = 64
    depth: Positive = 1


class DLinear(EncoderOptions):
    """Linear forecasts of a moving average and of the rest (Zeng et al. 2023)."""

    encoder: Literal["dlinear"] = "dlinear"
    average: Positive = Field(25, description="steps of the moving average; made odd")


class PatchTransformer(EncoderOptions):
    """A small transformer over pieces of the series (PatchTST, Nie et al. 2023)."""

    encoder: Literal["patchtransformer"] = "patchtransformer"
    patch: Positive | None = Field(None, description="time steps of a token; 16 where that fits")
    dim: Positive = 64
    depth: Positive = 2
    heads: Positive = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0


class Linear(EncoderOptions):
    """One linear layer on all values."""

    encoder: Literal["linear"] = "linear"


class MLP(EncoderOptions):
    """Fully connected layers on all values."""

    encoder: Literal["mlp"] = "mlp"
    width: Positive = 128
    depth: Positive = 2


AUGMENTATION_OPS = (
    "jitter", "scale", "lowpass", "phase", "amplitude", "shift", "crop", "raw",
)  # fmt: skip


class DSA(BaseModel):
    """Differentiable siamese augmentation: one draw for the real and the synthetic batch."""

    model_config = ConfigDict(extra="forbid", validate_default=True)
    kind: Literal["dsa"] = "dsa"
    strategy: str | None = Field(
        None,
        description="operations joined by '_'; by default jitter_scale_lowpass_phase_amplitude_"
        "shift_crop, and for forecasts jitter, which leaves the horizon true",
    )
    mode: Literal["one", "all", "views"] = Field(
        "one",
        description="'one': each draw picks one operation; 'all': every one, in the order named; "
        "'views': each makes a view of its own of all items, and their losses are summed (CondTSC)",
    )
    jitter: NotNegative = Field(0.05, description="deviation of the noise, in normalised units")
    scale: NotNegative = Field(0.1, description="deviation of each channel's factor from 1")
    lowpass: Share = Field(0.5, description="share of the frequencies that is kept, the lowest")
    phase: NotNegative = Field(0.785, description="largest turn of a frequency, in radians")
    amplitude: NotNegative = Field(0.01, description="deviation, in mean amplitudes")
    shift: Annotated[float, Field(ge=0, le=1)] = Field(0.125, description="largest, of the length")
    crop: Share = Field(0.8, description="smallest part of the length that is stretched to it")

    @field_validator("strategy")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        require_operations(value, AUGMENTATION_OPS)
        return value


ENCODERS: dict[str, type[BaseModel]] = {
    "convnet": ConvNet,
    "fcn": FCN,
    "resnet": ResNet,
    "inception": Inception,
    "dual": Dual,
    "lstm": LSTM,
    "gru": GRU,
    "dlinear": DLinear,
    "patchtransformer": PatchTransformer,
    "linear": Linear,
    "mlp": MLP,
}
AUGMENTATIONS: dict[str, type[BaseModel]] = {"dsa": DSA, "none": NoAugmentation}
