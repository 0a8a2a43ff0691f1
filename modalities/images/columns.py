"""Which column of a table holds the images and which the labels, and the labels as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdd.errors import UserError, nearest
from mmdd.modalities.images.arrays import ArrayLayout
from mmdd.modalities.images.decode import Array
from mmdd.modalities.images.pixels import ColumnPixels

LABEL_NAMES = (
    "label", "labels", "class", "classes", "target", "targets", "category", "cls", "y",
    "fine_label", "coarse_label", "class_id", "class_name", "label_id", "category_id",
)  # fmt: skip
IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MISSING = -1
NEARLY_ALL = 0.9  # a column with more distinct values than this share of its rows is no label
FEW_ROWS = 20  # with fewer rows, every image may be a class of its own


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


@dataclasses.dataclass(frozen=True)
class Columns:
    """The chosen columns; `to_array` is None for encoded images."""

    image: str
    label: str
    to_array: ArrayLayout | None

    def pixels(self, dataset: datasets.Dataset, split: str, root: str) -> ColumnPixels:
        """Return the images of one split."""
        require_column(self.image, dataset.column_names, f"image column in split {split!r}")
        return ColumnPixels(dataset, self.image, self.to_array, root)

    def labels(self, dataset: datasets.Dataset) -> Labels | None:
        """Return the labels of one split, or None when it has no such column."""
        features = _flat(dataset.features)
        if self.label not in features:
            return None
        return encode(_column(dataset, self.label), features[self.label], self.label)


def find_columns(dataset: datasets.Dataset, image: str | None, label: str | None) -> Columns:
    """Choose the image and the label column of a table.

    Parameters
    ----------
    dataset: the training split; at least one row.
    image, label: names that the user gave, or None.

    Errors: UserError when a given name is unknown or unfit, when nothing fits, or when several do.
    """
    image = _find_image(dataset, image)
    to_array = None
    if _image_kind(dataset.features[image]) == "array":
        to_array = _layout(dataset, image)
    return Columns(image, _find_label(dataset, label, image), to_array)


def _find_image(dataset: datasets.Dataset, given: str | None) -> str:
    kinds = {name: _image_kind(feature) for name, feature in dataset.features.items()}
    for name, feature in dataset.features.items():
        if kinds[name] is None and _holds_file_names(dataset, name, feature):
            kinds[name] = "file"
    if given is not None:
        require_column(given, dataset.column_names, "image column")
        if kinds[given] is None:
            raise UserError(
                f"column {given!r} holds no images",
                got=str(dataset.features[given]),
                expected=_or(name for name in kinds if kinds[name]) or "images, bytes or arrays",
            )
        return given
    for kind in ("image", "bytes", "array", "file"):
        found = [name for name in kinds if kinds[name] == kind]
        if len(found) > 1:
            raise _ambiguous("image", found)
        if found:
            return found[0]
    raise UserError("no column holds images", got=dataset.column_names, hint=_choose_with("image"))


def _image_kind(feature: Any) -> str | None:
    """Say how a column can be read as images: "image", "bytes", "array", or None for not at all."""
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, dict):
        return "bytes" if "bytes" in feature and _is_binary(feature["bytes"]) else None
    if _is_binary(feature):
        return "bytes"
    if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
        return "array"
    depth = 0
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature, depth = feature.feature, depth + 1
    kinds = ("uint", "int", "float", "bool")
    numbers = isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)
    return "array" if numbers and depth in (2, 3) else None


def _is_binary(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _holds_file_names(dataset: datasets.Dataset, name: str, feature: Any) -> bool:
    if not isinstance(feature, datasets.Value) or not feature.dtype.endswith("string"):
        return False
    first = _column(dataset.take(min(FEW_ROWS, len(dataset))), name).to_pylist()
    return all(isinstance(value, str) and value.lower().endswith(IMAGE_FILES) for value in first)


def _layout(dataset: datasets.Dataset, column: str) -> ArrayLayout:
    """Read the shape of the first array; the others are compared with it when they are read."""
    feature, shape = dataset.features[column], []
    stored = _column(dataset.take(1), column).combine_chunks()
    value = stored[0].as_py()
    while isinstance(value, (list, np.ndarray)):
        shape.append(len(value))
        value = value[0] if len(value) else None
    if value is None:
        raise UserError(f"the first image of column {column!r} is empty or missing")
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature = feature.feature
    floats = feature.dtype.startswith("float")
    return ArrayLayout(tuple(shape), np.dtype(np.float32 if floats else np.uint8))


def _find_label(dataset: datasets.Dataset, given: str | None, image: str) -> str:
    features = _flat(dataset.features)
    if given is not None:
        require_column(given, features, "label column")
        if not isinstance(features[given], (datasets.ClassLabel, datasets.Value)):
            raise UserError(
                f"label column {given!r} does not hold one class per image",
                got=str(features[given]),
                expected="whole numbers, strings or ClassLabel",
            )
        return given
    named = [name for name in features if name != image and _looks_like_label(name, features[name])]
    exact = [name for name in named if name.rsplit(".", 1)[-1] == "label"]
    found = named if len(exact) != 1 else exact
    if not found:
        found = [name for name in features if name != image and _few_strings(dataset, name)]
    if len(found) > 1:
        raise _ambiguous("label", found)
    if found:
        return found[0]
    hint = _choose_with("label")
    if len(features) == 1:
        hint = "A folder of images needs one folder per class, and two of these or more"
    raise UserError("no column holds class labels", got=[*features], hint=hint)


def _looks_like_label(name: str, feature: Any) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    last = name.rsplit(".", 1)[-1].lower()
    return isinstance(feature, datasets.Value) and last in LABEL_NAMES and not _is_binary(feature)


def _few_strings(dataset: datasets.Dataset, name: str) -> bool:
    """Tell whether a column of strings has 2 classes or more, each twice or more on average."""
    feature = _flat(dataset.features)[name]
    text = isinstance(feature, datasets.Value) and feature.dtype.endswith("string")
    if not text or name.startswith("__"):  # webdataset's own columns
        return False
    return 2 <= pc.count_distinct(_column(dataset, name)).as_py() <= len(dataset) / 2


def _flat(features: datasets.Features) -> dict[str, Any]:
    """Return all columns, and the fields of structs as ``column.field``."""
    found = dict(features)
    for name, feature in features.items():
        if isinstance(feature, dict) and _image_kind(feature) is None:
            found.update({f"{name}.{field}": inner for field, inner in feature.items()})
    return found


def _column(dataset: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """Return one column, or one field of a struct, as stored."""
    top, _, field = (name, "", "") if name in dataset.features else name.partition(".")
    table = dataset.select_columns([top]).with_format("arrow")[:]
    column = table.column(top)
    return pc.struct_field(column, field) if field else column


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
    elif not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        if column.null_count == len(column):
            return Labels(np.full(len(column), MISSING), ())
        raise UserError(f"label column {name!r} holds {kind}", expected="numbers or strings")
    coded = column.combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    codes = pc.fill_null(coded.indices, MISSING).to_numpy(zero_copy_only=False).astype(np.int64)
    if len(values) > NEARLY_ALL * len(column) and len(column) > FEW_ROWS:
        raise UserError(
            f"label column {name!r} is no label: {len(values)} of {len(column)} values differ",
            hint=_choose_with("label"),
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


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def require_column(name: str, known: Sequence[str] | dict[str, Any], what: str) -> None:
    """Refuse a column that is not there, with the nearest that is."""
    if name not in known:
        close = nearest(name, known)
        hint = f"Did you mean {close!r}?" if close else None
        raise UserError(f"unknown {what} {name!r}", expected=_or(known), hint=hint)


def _ambiguous(field: str, found: list[str]) -> UserError:
    return UserError(f"several columns could be the {field}", got=found, hint=_choose_with(field))


def _choose_with(field: str) -> str:
    return f"Choose with data.{field}=NAME"


def _or(names: Any) -> str:
    return ", ".join(names)
