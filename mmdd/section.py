"""The base of every recipe section, and the number types that they share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mmdd import catalog

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

Momentum = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a recipe: unknown keys and wrong types stop at once."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


def named(value: Any) -> Any:
    """Allow ``kind`` alone as a short form: ``representation: direct``."""
    return {"kind": value} if isinstance(value, str) else value


def of_family(name: str, entries: dict[str, catalog.Entry]) -> BeforeValidator:
    """Read a section whose ``kind`` must be listed in the catalog; names the nearest otherwise.

    Without a kind it is the first one's. `name` says what one of the family is called.
    """

    def check(value: Any) -> Any:
        value = named(value)
        if not isinstance(value, dict):
            return value
        value = {"kind": next(iter(entries)), **value}
        catalog.require(name, value["kind"], entries)
        return value

    return BeforeValidator(check)
