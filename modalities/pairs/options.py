"""What a recipe may say about pairs. Imports nothing heavy: recipes are checked with it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmdd.modalities.nets.options import Chance, NoAugmentation, Positive
from mmdd.modalities.tables.options import TableData, Tolerated

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PairData(TableData):
    """The ``data:`` section of a recipe whose modality is pairs."""

    task: Literal["retrieval", "retrieval-wbce"] | None = Field(
        None, description="filled in by the recipe's task"
    )
    names: tuple[str, str] = Field(
        ("image", "text"), description="what the two fields are called: of leaves, towers, columns"
    )
    image: str | None = Field(
        None, description="column of the first field: images or ready vectors; found when clear"
    )
    text: str | None = Field(
        None,
        description="column of the second field: a caption, a list of captions, or ready vectors",
    )
    group: str | None = Field(
        None,
        description="column that tells which rows are of one item, e.g. its file name or number; "
        "by default rows with the same image are",
    )
    merge: bool = Field(
        True,
        description="make the rows of one item one, with all of their captions; false keeps every "
        "row apart, so that other captions of an image count as wrong",
    )
    image_space: Literal["features", "pixels"] = Field(
        "features", description="of images: vectors of a frozen encoder, or the pixels themselves"
    )
    text_space: Literal["features", "tokens"] = Field(
        "features", description="of texts: frozen vectors, or the embeddings of all tokens"
    )
    image_model: str | None = Field(
        None,
        description="a transformers image encoder, folder or Hub name; by default filters that are "
        "clustered from patches of the training images",
    )
    text_model: str | None = Field(
        None,
        description="a transformers text encoder, folder or Hub name; by default latent semantic "
        "analysis of the training texts",
    )
    size: Annotated[int, Field(ge=8)] = Field(
        64, description="pixels per side that images are brought to, where no model says"
    )
    filters: Positive = Field(192, description="clusters of patches, without image_model")
    image_width: Positive = Field(
        64, description="most numbers of an image's vector, without image_model"
    )
    text_width: Positive = Field(
        256, description="most numbers of a text's vector, without text_model"
    )
    vocabulary: Positive = Field(
        4000, ge=260, description="most pieces of the tokenizer of text_space=tokens"
    )
    hidden: Positive = Field(64, description="numbers per token of text_space=tokens")
    length: Positive | None = Field(
        None, description="most tokens of a text; by default what 95% need, 128 at most"
    )
    clusters: Positive = Field(
        1, description="k-means clusters of the training pairs that are matched apart"
    )
    max_corrupt: Tolerated = Field(
        0.01, description="unreadable images to tolerate: a fraction (a float) or a number (an int)"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.label is not None:
            raise ValueError("pairs have no label column: leave data.label out")
        if len(set(self.names)) < 2 or not all(name.isidentifier() for name in self.names):
            raise ValueError("data.names must be two different plain words")
        if self.image is not None and self.image == self.text:
            raise ValueError("data.image and data.text name the same column")
        if self.group is not None and not self.merge:
            raise ValueError("data.group says which rows to merge, data.merge=false to merge none")
        if self.group is not None and self.group == self.text:
            raise ValueError("data.group and data.text name the same column")
        if self.image_model is not None and self.image_space == "pixels":
            raise ValueError("data.image_model makes features: image_space=pixels reads no model")
        if self.text_model is not None and self.text_space == "tokens":
            raise ValueError("data.text_model makes features: text_space=tokens reads no model")
        return self


class EncoderOptions(BaseModel):
    """Two towers into one space, whose cosines over the temperature are the logits."""

    model_config = ConfigDict(extra="forbid")
    width: Positive = Field(128, description="numbers of the shared space")
    temperature: Temperature = 0.07
    learn_temperature: bool = Field(
        False, description="train it with the second tower; down to 0.01 (CLIP)"
    )


class Auto(EncoderOptions):
    """A linear projection of vectors, a ConvNet of pixels, a TextCNN of tokens."""

    encoder: Literal["auto"] = "auto"
    filters: Positive = Field(32, description="channels of the ConvNet and of each kernel")
    depth: Positive | None = Field(None, description="blocks of the ConvNet; by default by size")


class Linear(EncoderOptions):
    """Linear projections of vectors (of tokens: of their mean)."""

    encoder: Literal["linear"] = "linear"


class MLP(EncoderOptions):
    """Projections with hidden layers."""

    encoder: Literal["mlp"] = "mlp"
    hidden: Positive = 256
    depth: Positive = 1


class PairAugment(BaseModel):
    """Dropout of dimensions, masking of tokens, DSA of pixels; one draw for both sides' batches."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["pairs"] = "pairs"
    dropout: Chance = Field(0.1, description="share of dimensions of vectors that are set to 0")
    mask: Chance = Field(0.1, description="share of tokens whose embedding is set to 0")
    strategy: str = Field(
        "color_crop_cutout_scale_rotate", description="of pixels; no flip: captions tell sides"
    )


ENCODERS: dict[str, type[BaseModel]] = {"auto": Auto, "linear": Linear, "mlp": MLP}
AUGMENTATIONS: dict[str, type[BaseModel]] = {"none": NoAugmentation, "pairs": PairAugment}

CAPTION_NAMES = (
    "captions", "caption", "sentences", "sentence", "texts", "text", "description", "descriptions",
    "alt_text", "title", "raw",
)  # fmt: skip
"""What columns of captions are called."""

DATA = PairData
"""The model of the ``data:`` section, under the name that every modality gives it."""

TASK = "retrieval"
"""The task where a recipe names none."""

HINTS = {"encoders": "linear,mlp", "export": "parquet my_pairs"}
"""Words for the commands that are suggested after a run."""

__all__ = ["AUGMENTATIONS", "CAPTION_NAMES", "DATA", "ENCODERS", "HINTS", "TASK", "PairData"]
