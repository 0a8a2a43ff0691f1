"""Columns of a table by name: finding them, reading them, and what to say when they do not fit."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from mmdd.errors import UserError, nearest

FIRST_ROWS = 20  # looked at to tell a column of file names


def is_binary(feature: Any) -> bool:
    """True for a column of bytes."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def is_text(feature: Any) -> bool:
    """True for a column of strings."""
    return isinstance(feature, datasets.Value) and feature.dtype.endswith("string")


def is_file(feature: Any) -> bool:
    """True for a struct of encoded bytes, and a path perhaps: an image, a clip, undecoded."""
    return isinstance(feature, dict) and "bytes" in feature and is_binary(feature["bytes"])


def is_vector(feature: Any) -> bool:
    """True for a column of lists of floats."""
    if not isinstance(feature, (datasets.List, datasets.LargeList)):
        return False
    inner = feature.feature
    return isinstance(inner, datasets.Value) and inner.dtype.startswith(("float", "double"))


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


@dataclasses.dataclass(frozen=True)
class OneColumn(abc.ABC):
    """The chosen column of items that lie in one.

    Attributes
    ----------
    field: what the items are called in recipes, e.g. ``image``.
    column: its name.
    """

    field: ClassVar[str]
    column: str

    @property
    def names(self) -> Mapping[str, str]:
        """The column under the field's name."""
        return {self.field: self.column}

    def require(self, dataset: datasets.Dataset, split: str) -> None:
        """Refuse a split that lacks the column."""
        what = f"{self.field} column in split {split!r}"
        require_column(self.column, dataset.column_names, what)


def kinds_of(
    dataset: datasets.Dataset, kind_of: Callable[[Any], str | None], endings: tuple[str, ...]
) -> dict[str, str | None]:
    """How every column can be read, in a word; None for not at all.

    Parameters
    ----------
    kind_of: tells it by the type of a column.
    endings: of the file names that make a column of strings a ``file``.
    """
    kinds = {name: kind_of(feature) for name, feature in dataset.features.items()}
    return {
        name: "file" if kind is None and holds_files(dataset, name, endings) else kind
        for name, kind in kinds.items()
    }


def holds_files(dataset: datasets.Dataset, name: str, endings: tuple[str, ...]) -> bool:
    """True for a column of strings whose first rows all end so."""
    if not is_text(dataset.features[name]):
        return False
    first = stored(dataset.take(min(FIRST_ROWS, len(dataset))), name).to_pylist()
    return all(isinstance(value, str) and value.lower().endswith(endings) for value in first)


def given_column(
    dataset: datasets.Dataset,
    name: str,
    kinds: Mapping[str, str | None],
    field: str,
    *,
    many: str,
    fit: str,
) -> str:
    """The kind of the column that the user named.

    `many` is what messages call the items, and `fit` says which columns would do.

    Errors: UserError when it is unknown or unfit.
    """
    require_column(name, dataset.column_names, f"{field} column")
    kind = kinds[name]
    if kind is None:
        raise UserError(
            f"column {name!r} holds no {many}",
            got=str(dataset.features[name]),
            expected=listed(other for other in kinds if kinds[other]) or fit,
        )
    return kind


def only_column(
    kinds: Mapping[str, str | None], order: Sequence[str], field: str
) -> tuple[str, str] | None:
    """Name and kind of the one column of the surest kind in `order`; None where there is none.

    Errors: UserError when there are several of a kind.
    """
    for kind in order:
        found = [name for name in kinds if kinds[name] == kind]
        if len(found) > 1:
            raise ambiguous(field, found)
        if found:
            return found[0], kind
    return None


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
