"""What a recipe may say about text data. Imports nothing heavy: recipes are checked with it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mmdd.modalities.nets.options import Positive
from mmdd.modalities.tables.options import TableData
from mmdd.modalities.text.encoder_options import AUGMENTATIONS, ENCODERS, settled


class TextData(TableData):
    """The ``data:`` section of a recipe whose modality is text."""

    text: str | list[str] | None = Field(
        None, description="text column, or several that are joined by the separator token"
    )
    embedding: str | None = Field(
        None, description="column of ready vectors: lists of floats, all of one length"
    )
    space: Literal["auto", "tokens", "sentence", "column"] = Field(
        "auto",
        description="'tokens': embeddings [length, hidden] of every token; 'sentence': one vector "
        "per text by the frozen `model`; 'column': ready vectors; 'auto': ready vectors where "
        "there are some, else 'sentence' with a `model` and 'tokens' without",
    )
    model: str | None = Field(
        None,
        description="a transformers encoder, folder or Hub name: gives tokenizer and token "
        "embeddings ('tokens') or the sentence vectors ('sentence')",
    )
    tokenizer: str | None = Field(
        None,
        description="a transformers tokenizer, folder or Hub name; by default the model's own, or "
        "a sentencepiece model trained on the training texts",
    )
    vocabulary: Positive = Field(
        8000, ge=260, description="most pieces of a trained sentencepiece model"
    )
    table: Literal["ppmi", "random"] = Field(
        "ppmi",
        description="token embeddings where no model gives them, fixed for all learners: of words' "
        "neighbours in the training texts (PPMI and SVD), or random",
    )
    hidden: Positive = Field(64, description="numbers per token of that table")
    length: Positive | None = Field(
        None, description="most tokens of a text; by default what 95% need, 128 at most"
    )
    task: Literal["classification", "multi-label"] | None = Field(
        None, description="the recipe's task; a column of lists of labels makes it multi-label"
    )
    labels: list[str] | None = Field(
        None, min_length=2, description="columns of 0 and 1, one for every label of a text"
    )
    pooling: Literal["mean", "cls"] = Field(
        "mean", description="what of the model's last layer is the sentence vector"
    )
    unit: bool = Field(True, description="bring the model's sentence vectors to length 1")

    @model_validator(mode="after")
    def _space_fits(self) -> Self:
        if self.space == "sentence" and self.model is None:
            raise ValueError("space 'sentence' needs data.model, a transformers encoder")
        if self.embedding is not None and self.space in ("tokens", "sentence"):
            raise ValueError(f"data.embedding gives ready vectors, not space {self.space!r}")
        if self.labels is not None and self.label is not None:
            raise ValueError("data.label names one column, data.labels several: give one of them")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("data.labels names a column twice")
        if self.text == []:
            raise ValueError("data.text names no column")
        return self

    @property
    def text_columns(self) -> list[str] | None:
        """`text` as a list, or None when it is to be found."""
        return [self.text] if isinstance(self.text, str) else self.text


DATA = TextData
"""The model of the ``data:`` section, under the name that every modality gives it."""

HINTS = {"encoders": "linear,mlp", "export": "parquet my_texts"}
"""Words for the commands that are suggested after a run."""

__all__ = ["AUGMENTATIONS", "DATA", "ENCODERS", "HINTS", "TextData", "settled"]
