"""Where the clips of one split are, before they are brought to one rate and length."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdd.modalities.audio.decode import Header, decode, header, to_samples
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.columns import stored


class Clips(abc.ABC):
    """The clips of one split, of any rate, length and number of channels."""

    in_memory = False

    @abc.abstractmethod
    def __len__(self) -> int:
        """N."""

    @abc.abstractmethod
    def headers(self, rows: Array) -> list[Header | None]:
        """Rates and lengths of the clips `rows` [n]; None for one that cannot be opened."""

    @abc.abstractmethod
    def read(self, rows: Array) -> Iterator[tuple[Array, int] | Exception]:
        """Yield float32 [t, c] and the rate of every clip of `rows`, or what reading it raised."""

    @abc.abstractmethod
    def token(self) -> str:
        """Digest that changes with the clips; nothing is decoded for it."""

    def name(self, row: int) -> str:
        """What to call a clip in a message."""
        return f"row {row}"


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip in memory.

    Attributes
    ----------
    samples: float32 [t, c].
    rate: samples per second, or None where nothing tells.
    """

    samples: Array
    rate: int | None


class ArrayClips(Clips):
    """Clips in memory.

    Parameters
    ----------
    clips: N of them.
    rate: of those that do not tell theirs.
    """

    in_memory = True

    def __init__(self, clips: list[Clip], rate: int) -> None:
        self.clips, self.rate = clips, rate

    def __len__(self) -> int:
        return len(self.clips)

    def headers(self, rows: Array) -> list[Header | None]:
        """All are known."""
        chosen = [self.clips[row] for row in rows]
        return [Header(clip.rate or self.rate, len(clip.samples)) for clip in chosen]

    def read(self, rows: Array) -> Iterator[tuple[Array, int] | Exception]:
        """As they are."""
        for row in rows:
            yield self.clips[row].samples, self.clips[row].rate or self.rate

    def token(self) -> str:
        """Digest of all rates and samples."""
        hasher = hashlib.sha256()
        for clip in self.clips:
            hasher.update(repr((clip.rate or self.rate, clip.samples.shape)).encode())
            hasher.update(np.ascontiguousarray(clip.samples).data)
        return hasher.hexdigest()


class ColumnClips(Clips):
    """A column of a ``datasets.Dataset``; nothing is read before it is asked for.

    Parameters
    ----------
    dataset: any format; it is read as Arrow, so that nothing is decoded on the way.
    column: its name: encoded clips, file names, or (with `rate`) lists of numbers.
    root: folder that relative file names start from.
    rate: samples per second of a column of numbers; None for encoded clips.
    """

    def __init__(
        self, dataset: datasets.Dataset, column: str, root: str = "", rate: int | None = None
    ) -> None:
        self.dataset = dataset.select_columns([column]).with_format("arrow")
        self.column, self.root, self.rate = column, root, rate
        self.fingerprint = dataset._fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def headers(self, rows: Array) -> list[Header | None]:
        """Open every clip without decoding it."""
        return [self._try_header(value) for value in self._values(rows)]

    def _try_header(self, value: Any) -> Header | None:
        try:
            if self.rate is not None:
                return None if value is None else Header(self.rate, len(value))
            return header(value)
        except (OSError, RuntimeError, ValueError, TypeError):
            return None  # what is wrong is said when it is decoded

    def read(self, rows: Array) -> Iterator[tuple[Array, int] | Exception]:
        """Decode one after the other."""
        for value in self._values(rows):
            yield self._try_decode(value)

    def _try_decode(self, value: Any) -> tuple[Array, int] | Exception:
        try:
            if self.rate is None:
                return decode(value)
            if value is None:
                return ValueError("no audio")
            return to_samples(np.asarray(value, dtype=np.float32)), self.rate
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            return error

    def token(self) -> str:
        """The library's fingerprint, and the sizes and times of files that it does not hold."""
        hasher = hashlib.sha256(f"{self.fingerprint}/{self.column}/{self.rate}".encode())
        for path in self._outside():
            try:
                found = os.stat(path)
                hasher.update(f"{path}/{found.st_size}/{found.st_mtime_ns}".encode())
            except (OSError, ValueError):
                hasher.update(path.encode(errors="backslashreplace"))
        return hasher.hexdigest()

    def _outside(self) -> list[str]:
        """Paths of the files that are read, where the column does not hold their bytes."""
        values = stored(self.dataset, self.column)
        if pa.types.is_struct(values.type):
            inside = pc.is_valid(pc.struct_field(values, "bytes"))
            values = pc.if_else(inside, None, pc.struct_field(values, "path"))
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            return []
        return [os.path.join(self.root, path) for path in values.to_pylist() if path]

    def name(self, row: int) -> str:
        """Row number, and the file where there is one."""
        value = next(self._values(np.array([row])))
        path = value.get("path") if isinstance(value, dict) else value
        return f"row {row} ({path})" if isinstance(path, str) else super().name(row)

    def _values(self, rows: Array) -> Iterator[Any]:
        """Yield bytes, a path, the stored dict or a list of numbers; None where null."""
        if len(rows) == 0:
            return
        low, high = int(rows.min()), int(rows.max()) + 1
        if high - low <= 2 * len(rows):  # a slice is not copied; a gather is one piece a row
            column, places = self.dataset[low:high].column(self.column), rows - low
        else:
            column = self.dataset[rows.tolist()].column(self.column)
            places = np.arange(len(rows))
        for place in places.tolist():
            yield self._rooted(column[place].as_py())

    def _rooted(self, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            return {**value, "path": self._rooted(value["path"])}
        return os.path.join(self.root, value) if isinstance(value, str) else value
