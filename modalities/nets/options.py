"""Option models of encoders and augmentations that several modalities share. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmdd.errors import nearest

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Chance = Annotated[float, Field(ge=0, lt=1)]
NormKind = Literal["instance", "group", "layer", "batch", "none"]


class EncoderOptions(BaseModel):
    """Options are the keyword arguments of the encoder's class."""

    model_config = ConfigDict(extra="forbid")


class NoAugmentation(BaseModel):
    """Items are compared as they are."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["none"] = "none"


def operations(strategy: str | None) -> tuple[str, ...] | None:
    """Names of a strategy, none for "none"; None where it is left open."""
    if strategy is None:
        return None
    names = tuple(part.strip().lower() for part in strategy.split("_"))
    return () if names in (("",), ("none",)) else names


def require_operations(strategy: str | None, known: Sequence[str]) -> None:
    """Refuse a strategy that names an operation which is not `known`.

    Errors: ValueError, as validators raise it.
    """
    for name in operations(strategy) or ():
        if name not in known:
            close = nearest(name, known)
            raise ValueError(
                f"unknown operation {name!r}, expected some of {', '.join(known)}"
                + (f"; did you mean {close!r}?" if close else "")
            )
