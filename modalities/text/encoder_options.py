"""Options of the text encoders and augmentations, as recipes write them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmdd.modalities.nets.options import Chance, EncoderOptions, NoAugmentation, Positive


class Auto(EncoderOptions):
    """TextCNN on tokens, an MLP on vectors, with their defaults."""

    encoder: Literal["auto"] = "auto"


class TextCNN(EncoderOptions):
    """Convolutions of several widths over the tokens and their largest values (Kim 2014)."""

    encoder: Literal["textcnn"] = "textcnn"
    width: Positive = Field(128, description="filters of each kernel")
    kernels: list[Positive] = Field([2, 3], min_length=1, description="tokens under a filter")


class GRU(EncoderOptions):
    """A gated recurrent net, read both ways; the mean of its states."""

    encoder: Literal["gru"] = "gru"
    width: Positive = 64
    bidirectional: bool = True


class Transformer(EncoderOptions):
    """A small transformer from scratch; the mean of its last layer."""

    encoder: Literal["transformer"] = "transformer"
    width: Positive = 64
    depth: Positive = 2
    heads: Positive = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class MLP(EncoderOptions):
    """Fully connected layers on the vector, or on the mean of the token embeddings."""

    encoder: Literal["mlp"] = "mlp"
    width: Positive = 128
    depth: Positive = 1


class Linear(EncoderOptions):
    """A linear classifier on the vector, or on the mean of the token embeddings."""

    encoder: Literal["linear"] = "linear"


class Pretrained(EncoderOptions):
    """An encoder of transformers, fed with token embeddings, under a fresh head."""

    encoder: Literal["transformers"] = "transformers"
    model: str | None = Field(None, description="folder or Hub name; by default data.model")
    tuning: Literal["all", "head", "last", "lora"] = Field(
        "all", description="what is trained and matched: everything, the head, the last layers "
        "and the head, or low-rank updates (needs peft) and the head",
    )  # fmt: skip
    layers: Positive = Field(2, description="how many last layers tuning=last means")
    rank: Positive = Field(8, description="rank of the updates of tuning=lora")
    pooling: Literal["mean", "cls"] = "mean"
    fresh: bool = Field(False, description="draw the weights anew for every learner")

    @model_validator(mode="after")
    def _fresh_fits(self) -> Self:
        if self.fresh and self.tuning != "all":
            raise ValueError(f"weights drawn anew are all trained: tuning={self.tuning} does not")
        return self


class TextAugment(BaseModel):
    """Dropout of embedding dimensions, masking of tokens and mixing within a class.

    One draw per class is shared by the real and the synthetic batch (siamese).
    """

    model_config = ConfigDict(extra="forbid")
    kind: Literal["text"] = "text"
    dropout: Chance = Field(0.1, description="share of dimensions set to 0, the same everywhere")
    mask: Chance = Field(0.1, description="share of positions whose embedding is set to 0")
    mix: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="largest share of the next item of its class in an item"
    )


ENCODERS: dict[str, type[BaseModel]] = {
    "auto": Auto,
    "textcnn": TextCNN,
    "gru": GRU,
    "transformer": Transformer,
    "mlp": MLP,
    "linear": Linear,
    "transformers": Pretrained,
}
AUGMENTATIONS: dict[str, type[BaseModel]] = {"none": NoAugmentation, "text": TextAugment}


def settled(learner: BaseModel, shape: tuple[int, ...]) -> BaseModel:
    """The encoder that ``auto`` stands for: a TextCNN of tokens [L, D], an MLP of vectors [D]."""
    if not isinstance(learner, Auto):
        return learner
    return TextCNN() if len(shape) == 2 else MLP()
