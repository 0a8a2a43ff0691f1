"""Columns of a table by name: finding them, reading them, and what to say when they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from mmdd.errors import UserError, nearest


def is_binary(feature: Any) -> bool:
    """True for a column of bytes."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def is_text(feature: Any) -> bool:
    """True for a column of strings."""
    return isinstance(feature, datasets.Value) and feature.dtype.endswith("string")


def is_file(feature: Any) -> bool:
    """True for a struct of encoded bytes, and a path perhaps: an image, a clip, undecoded."""
    return isinstance(feature, dict) and "bytes" in feature and is_binary(feature["bytes"])


def flat(features: datasets.Features) -> dict[str, Any]:
    """Return all columns, and the fields of structs (files apart) as ``column.field``."""
    found = dict(features)
    for name, feature in features.items():
        if isinstance(feature, dict) and not is_file(feature):
            found.update({f"{name}.{field}": inner for field, inner in feature.items()})
    return found


def stored(dataset: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """Return one column, or one field of a struct, as stored."""
    top, _, field = (name, "", "") if name in dataset.features else name.partition(".")
    table = dataset.select_columns([top]).with_format("arrow")[:]
    column = table.column(top)
    return pc.struct_field(column, field) if field else column


def require_column(name: str, known: Sequence[str] | Mapping[str, Any], what: str) -> None:
    """Refuse a column that is not there, with the nearest that is."""
    if name not in known:
        close = nearest(name, known)
        hint = f"Did you mean {close!r}?" if close else None
        raise UserError(f"unknown {what} {name!r}", expected=listed(known), hint=hint)


def ambiguous(field: str, found: list[str]) -> UserError:
    """Build the error for a field that several columns could give."""
    return UserError(f"several columns could be the {field}", got=found, hint=choose_with(field))


def choose_with(field: str) -> str:
    """Say how to name the column of a field."""
    return f"Choose with data.{field}=NAME"


def listed(names: Iterable[str]) -> str:
    """Names in a row."""
    return ", ".join(names)


def one_line(error: Exception) -> str:
    """What an exception says, on one line, after its kind."""
    text = str(error).strip().splitlines()
    if isinstance(error, UserError):
        return text[0]
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
