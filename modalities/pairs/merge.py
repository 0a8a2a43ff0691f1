"""Rows that repeat an image, one for each of its captions, become one item with several captions.

Apart, every other caption of an image would count as a wrong answer, and a hold-out would put the
same image into two parts.

Shape suffixes: N rows, I items.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmdd.modalities.images.decode import Geometry, Header, Tally
from mmdd.modalities.images.pixels import ArrayPixels, ColumnPixels, Pixels
from mmdd.modalities.pairs.fields import Field, PairItems, Texts, Vectors
from mmdd.modalities.pairs.options import PairData
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.items import Opened, RawSplit
from mmdd.modalities.tables.labels import Labels

BLOCK = 256  # rows of a table that are looked at together
Key = Any
"""What tells an item: a value of a column, the digest of an image. None tells nothing."""


def joined(opened: Opened[PairItems], options: PairData, notes: list[str]) -> Opened[PairItems]:
    """Merge the rows of every split that are of one item, and say so in `notes`.

    Rows are of one item where the column ``data.group`` has the same value, or else where the first
    field does. Items keep the order of their first rows, captions that of their rows. Rows whose
    key is missing stay apart.
    """
    if not options.merge:
        return opened
    splits, told, differ = {}, [], 0
    for name, split in opened.splits.items():
        made, unlike = merged(split.items)
        splits[name] = dataclasses.replace(split, items=made, labels=_fewer(split, len(made)))
        differ += unlike
        if len(made) < len(split.items):
            told.append(f"{name} {len(split.items)} to {len(made)}")
    first, second = options.names
    if told:
        same = f"the same {first}" if options.group is None else f"one {options.group!r}"
        notes.append(
            f"rows with {same} are merged into one item with every {second} of theirs:"
            f" {', '.join(told)} (data.merge=false keeps rows apart)"
        )
    if differ:
        notes.append(
            f"{differ} items by {options.group!r} have rows whose {first} differs: the first one"
            " stands for all"
        )
    return dataclasses.replace(opened, splits=splits)


def _fewer(split: RawSplit[PairItems], count: int) -> Labels | None:
    """Labels of `count` items: pairs are all of one stratum."""
    labels = split.labels
    return None if labels is None else dataclasses.replace(labels, codes=labels.codes[:count])


def merged(items: PairItems) -> tuple[PairItems, int]:
    """One item for each key; also how many items have rows with different first fields.

    An item has the first field of its first row that has one.
    """
    if isinstance(items.second, Pixels):
        # several images on the second side are not read
        return items, 0
    own = list(keys_of(items.first))
    number = numbered(own if items.keys is None else items.keys)
    count = int(number.max()) + 1 if len(number) else 0
    if count == len(number):
        return items, 0
    known = np.array([key is not None for key in own])
    places = np.lexsort((np.arange(len(number)), ~known, number))
    firsts = places[np.searchsorted(number[places], np.arange(count))]
    halves = {(at, key) for at, key in zip(number.tolist(), own, strict=True) if key is not None}
    unlike = np.bincount(np.array([at for at, _ in halves], np.int64), minlength=count) > 1
    order = np.argsort(number, kind="stable")
    second = _gathered(items.second, number, order, count)
    return PairItems(_chosen(items.first, firsts), second), int(unlike.sum())


def numbered(keys: Sequence[Key]) -> Array:
    """[N] int64 numbers of the items in order of their first rows; equal keys are one item."""
    known: dict[Key, int] = {}
    found = np.empty(len(keys), np.int64)
    for place, key in enumerate(keys):
        own = (place,) if key is None or key == "" else key
        found[place] = known.setdefault(own, len(known))
    return found


def keys_of(field: Field) -> Iterator[Key]:
    """Yield for every row what is equal where the field is; None where it is missing."""
    if isinstance(field, Texts):
        yield from (tuple(texts) if texts and any(texts) else None for texts in field.values)
    elif isinstance(field, Vectors):
        starts = np.cumsum(field.counts) - field.counts
        for start, count in zip(starts, field.counts, strict=True):
            yield _digest(field.values[start : start + count]) if count else None
    elif isinstance(field, ColumnPixels):
        yield from _of_column(field)
    else:
        assert isinstance(field, ArrayPixels), "pixels are of a column or in memory"
        yield from map(_digest, field.arrays)


def _of_column(pixels: ColumnPixels) -> Iterator[Key]:
    for low in range(0, len(pixels), BLOCK):
        column = pixels.dataset[low : low + BLOCK].column(pixels.column).combine_chunks()
        for place, value in enumerate(column):
            if not value.is_valid:
                yield None
            elif pixels.to_array is not None:
                yield _digest(pixels.to_array(column.slice(place, 1))[0])
            else:
                yield _of_encoded(value)


def _of_encoded(value: Any) -> Key:
    """Digest of the bytes of an image, or the name of its file."""
    if isinstance(value, pa.StructScalar):
        names = [name for name in ("bytes", "path") if name in value and value[name].is_valid]
        return _of_encoded(value[names[0]]) if names else None
    buffer = value.as_buffer()
    return hashlib.blake2b(buffer, digest_size=16).digest()


def _digest(values: Array) -> bytes:
    hasher = hashlib.blake2b(repr((values.shape, values.dtype.str)).encode(), digest_size=16)
    hasher.update(np.ascontiguousarray(values).data)
    return hasher.digest()


# -- fields of fewer items -------------------------------------------------------------------------


class ChosenPixels(Pixels):
    """Some of the images of another object.

    Parameters
    ----------
    rows: [I] which of them.
    """

    def __init__(self, pixels: Pixels, rows: Array) -> None:
        self.pixels, self.rows = pixels, rows
        self.dtype, self.in_memory = pixels.dtype, pixels.in_memory

    def __len__(self) -> int:
        return len(self.rows)

    def headers(self, rows: Array) -> list[Header | None]:
        """Sizes and colours."""
        return self.pixels.headers(self.rows[rows])

    def fill(self, rows: Array, out: Array, geometry: Geometry) -> Tally:
        """Write the images `rows` into `out`."""
        return self.pixels.fill(self.rows[rows], out, geometry)

    def token(self) -> str:
        """Digest of the images and of the choice."""
        chosen = hashlib.sha256(self.rows.tobytes()).hexdigest()
        return f"{self.pixels.token()}/{chosen}"

    def name(self, row: int) -> str:
        """What the whole object calls the image: its row in the source."""
        return self.pixels.name(int(self.rows[row]))


def _chosen(field: Field, rows: Array) -> Field:
    """The items `rows` [I] of a field."""
    if isinstance(field, Pixels):
        return ChosenPixels(field, rows)
    if isinstance(field, Texts):
        return Texts([field.values[row] for row in rows])
    starts = np.cumsum(field.counts) - field.counts
    places = [np.arange(starts[row], starts[row] + field.counts[row]) for row in rows]
    return Vectors(field.values[np.concatenate(places)], field.counts[rows])


def _gathered(field: Texts | Vectors, number: Array, order: Array, count: int) -> Field:
    """All values of every item: rows `order` [N] are sorted by the item `number` [N] of theirs."""
    if isinstance(field, Texts):
        lists: list[list[str | None]] = [[] for _ in range(count)]
        for row in order:
            lists[number[row]] += field.values[row] or ()
        return Texts(lists)
    found = _chosen(field, order)
    assert isinstance(found, Vectors)
    counts = np.bincount(number, weights=field.counts, minlength=count).astype(np.int64)
    return Vectors(found.values, counts)
