"""Options of the image encoders and augmentations, as recipes write them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmdd.modalities.nets.options import (
    EncoderOptions,
    NoAugmentation,
    NormKind,
    Positive,
    require_operations,
)


class ConvNet(EncoderOptions):
    """The field's default: `depth` blocks of convolution, norm, activation and pooling."""

    encoder: Literal["convnet"] = "convnet"
    width: Positive = 128
    depth: Positive | None = Field(None, description="3 up to 48 px, 4 up to 96, 5 up to 160, 6")
    norm: NormKind = "instance"
    activation: Literal["relu", "leakyrelu", "sigmoid", "softplus"] = "relu"
    pooling: Literal["avg", "max", "none"] = "avg"


class MLP(EncoderOptions):
    """Fully connected layers on the pixels."""

    encoder: Literal["mlp"] = "mlp"
    width: Positive = 128
    depth: Positive = 2


class LeNet(EncoderOptions):
    """Two 5x5 convolutions and three linear layers."""

    encoder: Literal["lenet"] = "lenet"


class AlexNet(EncoderOptions):
    """Five convolutions without norm."""

    encoder: Literal["alexnet"] = "alexnet"


class VGG11(EncoderOptions):
    """Eight convolutions with norm."""

    encoder: Literal["vgg11"] = "vgg11"
    norm: NormKind = "instance"


class ResNet18(EncoderOptions):
    """Residual net of 18 layers, CIFAR or ImageNet stem by size."""

    encoder: Literal["resnet18"] = "resnet18"
    norm: NormKind = "instance"
    stem: Literal["cifar", "imagenet"] | None = None
    downsample: Literal["stride", "avgpool"] = "stride"


class ViT(EncoderOptions):
    """A small vision transformer."""

    encoder: Literal["vit"] = "vit"
    patch: Positive | None = None
    dim: Positive = 128
    depth: Positive = 4
    heads: Positive = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0


AUGMENTATION_OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")


class DSA(BaseModel):
    """Differentiable siamese augmentation: one draw for the real and the synthetic batch."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["dsa"] = "dsa"
    strategy: str = Field(
        "color_crop_cutout_flip_scale_rotate",
        description="operations joined by '_'; leave flip out where mirroring changes the class",
    )
    mode: Literal["one", "all"] = Field(
        "one",
        description="'one': each draw picks one operation (DSA); 'all': colour, flip and cutout "
        "are all applied, and one of crop, scale and rotate is picked (IDC)",
    )

    @field_validator("strategy")
    @classmethod
    def _known(cls, value: str) -> str:
        require_operations(value, AUGMENTATION_OPS)
        return value


ENCODERS: dict[str, type[BaseModel]] = {
    "convnet": ConvNet,
    "mlp": MLP,
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "vit": ViT,
}
AUGMENTATIONS: dict[str, type[BaseModel]] = {"dsa": DSA, "none": NoAugmentation}
