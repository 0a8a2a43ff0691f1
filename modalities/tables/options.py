"""What a recipe may say about a labelled table of anything. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Tolerated = Count | Annotated[float, Field(ge=0, le=1)]
"""Items that may be unreadable: a number (an int), or a share of all (a float)."""

Workers = Annotated[
    Count | None,
    Field(description="reading processes; by default one less than the cores, at most 8"),
]
GIB = 2**30
Store = Literal["auto", "device", "disk"]
DecodedStore = Annotated[
    Store,
    Field(
        description="'device': decoded once, kept on the device; 'disk': decoded at every read "
        "by worker processes; 'auto': by `max_resident_bytes`"
    ),
]
DecodedBytes = Annotated[
    int,
    Field(ge=0, description="largest decoded set, in bytes, that 'auto' keeps on the device"),
]
HoldOut = Literal["random", "last"]


class TableData(BaseModel):
    """The part of a ``data:`` section that does not depend on what the items are."""

    model_config = ConfigDict(extra="forbid")

    source: str | None = Field(
        None,
        description="a name on the Hugging Face Hub, or a local folder or file. A local path wins "
        "over a Hub name",
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
    label: str | None = Field(
        None, description="label column, 'json.label' for a field of a struct; found when clear"
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
    hold_out: HoldOut = Field(
        "random",
        description="which items of a class are held out: last ones in the order of the data where "
        "neighbours are alike, like overlapping windows of one recording",
    )
    seed: int = Field(0, ge=0, description="seed of the hold-outs, and of nothing else")

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        chosen = [self.train_split, self.test_split, self.validation_split]
        named = [name for name in chosen if name is not None]
        if len(set(named)) < len(named):
            raise ValueError("train_split, test_split and validation_split must be different")
        return self
