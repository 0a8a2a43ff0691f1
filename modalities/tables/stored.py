"""Where the items of one split are, until they are read and brought to one shape.

Shape suffixes: N items of the split, n rows of a read.
"""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import datasets
import numpy as np
import pyarrow as pa

from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.parts import Parts


class StoredItems(abc.ABC):
    """The items of one split, of any size.

    Attributes
    ----------
    in_memory: true where nothing is read or decoded.
    """

    in_memory = False

    @abc.abstractmethod
    def __len__(self) -> int:
        """N."""

    @abc.abstractmethod
    def token(self) -> str:
        """Digest that changes with the items; nothing is decoded for it."""

    def path(self, row: int) -> str | None:
        """The file of an item, where there is one."""
        return None

    def name(self, row: int) -> str:
        """What to call an item in a message: row number, and the file where there is one."""
        path = self.path(row)
        return f"row {row}" if path is None else f"row {row} ({path})"


class ArrayItems(StoredItems):
    """Decoded items in memory.

    Parameters
    ----------
    arrays: N of them as one array, or a list of arrays of different shapes but one type.
    """

    in_memory = True

    def __init__(self, arrays: Array | Sequence[Array]) -> None:
        self.arrays = arrays
        self.dtype: np.dtype[Any] = np.dtype(arrays[0].dtype if len(arrays) else np.uint8)

    def __len__(self) -> int:
        return len(self.arrays)

    def token(self) -> str:
        """Digest of all shapes and values."""
        hasher = hashlib.sha256()
        for array in self.arrays:
            hasher.update(repr((array.shape, array.dtype.str)).encode())
            hasher.update(np.ascontiguousarray(array).data)
        return hasher.hexdigest()


class ColumnItems(StoredItems):
    """A column of a ``datasets.Dataset``; nothing is read before it is asked for.

    Parameters
    ----------
    dataset: any format; it is read as Arrow, so that nothing is decoded on the way.
    column: its name.
    root: folder that relative file names start from.
    """

    def __init__(self, dataset: datasets.Dataset, column: str, root: str = "") -> None:
        self.dataset = dataset.select_columns([column]).with_format("arrow")
        self.column, self.root = column, root
        self.fingerprint = dataset._fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def token(self) -> str:
        """The library's own fingerprint, which follows files and transformations."""
        return f"{self.fingerprint}/{self.column}"

    def path(self, row: int) -> str | None:
        """The file name that is stored, alone or beside the bytes of the item."""
        value = next(self.values(np.array([row])))
        path = value.get("path") if isinstance(value, dict) else value
        return path if isinstance(path, str) else None

    def values(self, rows: Array) -> Iterator[Any]:
        """Yield what is stored of every row: bytes, a path, a dict or a list; None where null."""
        if len(rows) == 0:
            return
        column, places = self.fetch(rows)
        for place in places:
            yield self.rooted(column[place].as_py())

    def rooted(self, value: Any) -> Any:
        """A file name from the folder `root`; anything else as it is."""
        return os.path.join(self.root, value) if isinstance(value, str) else value

    def fetch(self, rows: Array) -> tuple[pa.ChunkedArray, list[int]]:
        """Return a column that holds `rows` [n >= 1], and where in it each of them is."""
        low, high = int(rows.min()), int(rows.max()) + 1
        if high - low <= 2 * len(rows):  # a slice is not copied; a gather is one piece a row
            return self.dataset[low:high].column(self.column), (rows - low).tolist()
        return self.dataset[rows.tolist()].column(self.column), list(range(len(rows)))


class Hasher(Protocol):
    """A digest of ``hashlib`` in the making."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes."""


S = TypeVar("S", bound=StoredItems)


def hash_parts(
    hasher: Hasher, parts: Parts[S], read: Mapping[str, Array] | None, way: str = ""
) -> None:
    """Add every part to a digest: its labels and what was `read` of it, by role.

    Where nothing was, as the items stay on disk: rows, sources, and the `way` they will be read.
    """
    for role, part in parts.items():
        hasher.update(repr((role, len(part))).encode())
        hasher.update(np.ascontiguousarray(part.codes).data)
        if read is not None:
            hasher.update(np.ascontiguousarray(read[role]).data)
        else:
            hasher.update(f"{part.items.token()}{way}".encode())
            hasher.update(np.ascontiguousarray(part.rows).data)
