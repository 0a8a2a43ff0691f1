"""Classes of items: which column of a table holds them, and their numbers and names."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array, to_numpy
from mmdd.modalities.tables.columns import (
    ambiguous,
    choose_with,
    flat,
    is_binary,
    is_text,
    one_line,
    require_column,
    stored,
)
from mmdd.modalities.tables.words import Words

LABEL_NAMES = (
    "label", "labels", "class", "classes", "target", "targets", "category", "cls", "y",
    "fine_label", "coarse_label", "class_id", "class_name", "label_id", "category_id",
)  # fmt: skip
MISSING = -1
NEARLY_ALL = 0.9  # a column with more distinct values than this share of its rows is no label
FEW_ROWS = 20  # with fewer rows, every item may be a class of its own


@dataclasses.dataclass(frozen=True)
class Labels:
    """The classes of one split.

    Attributes
    ----------
    codes: [N] int64 position in `names`, or -1 where the label is missing.
    names: of the classes, in label order.
    """

    codes: Array
    names: tuple[str, ...]

    @property
    def known(self) -> int:
        """Number of labelled items."""
        return int((self.codes != MISSING).sum())

    def in_terms_of(self, names: Sequence[str]) -> Labels:
        """Number the classes as in `names`; a class that is not among them becomes missing."""
        if tuple(names) == self.names:
            return self
        place = {name: number for number, name in enumerate(names)}
        table = np.array([place.get(name, MISSING) for name in self.names] + [MISSING])
        return Labels(table[self.codes], tuple(names))  # code -1 takes the last entry


class Targets(Protocol):
    """How what is to be predicted is found and read. `Classes` is the one of classification.

    Another kind (numbers, several labels of one item) returns a `Labels` of its own whose codes
    are the strata that hold-outs and matching keep apart, and which carries the values besides.
    """

    def find(
        self, dataset: datasets.Dataset, given: str | None, taken: Collection[str], words: Words
    ) -> str:
        """Name the column: `given`, or the one that is clear; those `taken` hold the items."""

    def read(self, dataset: datasets.Dataset, name: str) -> Labels | None:
        """Read the column of one split, or None when the split has no such column."""

    def of_values(self, values: Any, words: Words) -> Labels:
        """Take what came from Python."""


class Classes:
    """One class per item."""

    def find(
        self, dataset: datasets.Dataset, given: str | None, taken: Collection[str], words: Words
    ) -> str:
        """Name the label column of a table; see `find_label`."""
        return find_label(dataset, given, taken, words)

    def read(self, dataset: datasets.Dataset, name: str) -> Labels | None:
        """Number the classes of one split, or None when it has no such column."""
        features = flat(dataset.features)
        if name not in features:
            return None
        return encode(stored(dataset, name), features[name], name)

    def of_values(self, values: Any, words: Words) -> Labels:
        """Number N labels from Python."""
        return labels_of(values, words)


CLASSES = Classes()


def find_label(
    dataset: datasets.Dataset, given: str | None, taken: Collection[str], words: Words
) -> str:
    """Choose the label column of a table.

    Parameters
    ----------
    dataset: the training split; at least one row.
    given: the name that the user gave, or None.
    taken: columns that hold the items.

    Errors: UserError when `given` is unknown or unfit, when nothing fits, or when several do.
    """
    features = flat(dataset.features)
    if given is not None:
        require_column(given, features, "label column")
        if not isinstance(features[given], (datasets.ClassLabel, datasets.Value)):
            raise UserError(
                f"label column {given!r} does not hold one class per {words.one}",
                got=str(features[given]),
                expected="whole numbers, strings or ClassLabel",
            )
        return given
    free = [name for name in features if name not in taken]
    named = [name for name in free if looks_like_label(name, features[name])]
    exact = [name for name in named if name.rsplit(".", 1)[-1] == "label"]
    found = named if len(exact) != 1 else exact
    if not found:
        found = [name for name in free if few_strings(dataset, name)]
    if len(found) > 1:
        raise ambiguous("label", found)
    if found:
        return found[0]
    hint = words.unlabelled if len(features) == 1 else choose_with("label")
    raise UserError("no column holds class labels", got=[*features], hint=hint)


def looks_like_label(name: str, feature: Any) -> bool:
    """Tell a column of labels by its type or its name."""
    if isinstance(feature, datasets.ClassLabel):
        return True
    last = name.rsplit(".", 1)[-1].lower()
    return isinstance(feature, datasets.Value) and last in LABEL_NAMES and not is_binary(feature)


def few_strings(dataset: datasets.Dataset, name: str) -> bool:
    """Tell whether a column of strings has 2 classes or more, each twice or more on average."""
    feature = flat(dataset.features)[name]
    if not is_text(feature) or name.startswith("__"):  # webdataset's own columns
        return False
    return bool(2 <= pc.count_distinct(stored(dataset, name)).as_py() <= len(dataset) / 2)


def labels_of(labels: Any, words: Words) -> Labels:
    """Turn N labels (numbers, strings, None) into classes.

    Errors: UserError when they are not one per item, or not of one type.
    """
    if hasattr(labels, "shape"):
        labels = to_numpy(labels)
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.ndim != 1:
            raise UserError(
                f"labels are not one class per {words.one}",
                got=labels.shape,
                expected="[N] class numbers or names",
                hint="One-hot labels: pass labels.argmax(1)",
            )
    else:
        labels = [label.item() if hasattr(label, "item") else label for label in labels]
    try:
        column = pa.chunked_array([pa.array(labels)])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"labels are not of one type: {one_line(error)}") from error
    return encode(column, None, "labels")


def encode(column: pa.ChunkedArray, feature: Any, name: str) -> Labels:
    """Turn a column of labels into class numbers.

    Parameters
    ----------
    column: whole numbers (floats that are whole included), booleans or strings, and nulls.
    feature: a ClassLabel gives the names; otherwise they are the distinct values, sorted.
    name: of the column, for messages.

    Errors: UserError when the values are no classes: fractions, or nearly all different.
    """
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        codes = pc.fill_null(column.cast(pa.int64()), MISSING).to_numpy()
        require_codes(codes, len(feature.names), name)
        return Labels(np.where(codes < 0, MISSING, codes), tuple(feature.names))
    kind = column.type
    if pa.types.is_floating(kind):
        column = _whole(column, name)
    elif not (_is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        if column.null_count == len(column):
            return Labels(np.full(len(column), MISSING), ())
        raise UserError(f"label column {name!r} holds {kind}", expected="numbers or strings")
    coded = column.combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    codes = pc.fill_null(coded.indices, MISSING).to_numpy(zero_copy_only=False).astype(np.int64)
    if len(values) > NEARLY_ALL * len(column) and len(column) > FEW_ROWS:
        raise UserError(
            f"label column {name!r} is no label: {len(values)} of {len(column)} values differ",
            hint=choose_with("label"),
        )
    return _sorted_labels(codes, values)


def require_codes(codes: Array, classes: int, name: str) -> None:
    """Refuse class numbers beyond the declared names."""
    if len(codes) and codes.max() >= classes:
        raise UserError(
            f"label column {name!r} has a class without a name",
            got=int(codes.max()),
            expected=f"0..{classes - 1}",
        )


def _sorted_labels(codes: Array, values: list[Any]) -> Labels:
    """Number the distinct values in sorted order; -1 is missing, unless +1 is its only company."""
    absent = -1 if -1 in values and set(values) != {-1, 1} else None
    kept = sorted(value for value in values if value != absent or isinstance(value, str))
    place = {value: number for number, value in enumerate(kept)}
    table = np.array([place.get(value, MISSING) for value in values] + [MISSING], dtype=np.int64)
    return Labels(table[codes], tuple(str(value) for value in kept))


def _whole(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Turn 0.0, 1.0, NaN into whole numbers and nulls: a table that had gaps was read as floats."""
    column = pc.if_else(pc.is_nan(column), None, column)
    if not pc.all(pc.equal(column, pc.round(column))).as_py():
        raise UserError(
            f"label column {name!r} holds fractions", expected="classes: numbers or strings"
        )
    return column.cast(pa.int64())


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
