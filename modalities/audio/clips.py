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
from mmdd.modalities.tables.stored import ColumnItems, StoredItems


class Clips(StoredItems):
    """The clips of one split, of any rate, length and number of channels."""

    @abc.abstractmethod
    def headers(self, rows: Array) -> list[Header | None]:
        """Rates and lengths of the clips `rows` [n]; None for one that cannot be opened."""

    @abc.abstractmethod
    def read(self, rows: Array) -> Iterator[tuple[Array, int] | Exception]:
        """Yield float32 [t, c] and the rate of every clip of `rows`, or what reading it raised."""


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


class ColumnClips(ColumnItems, Clips):
    """A column of encoded clips, of file names, or (with `rate`) of lists of numbers.

    Parameters
    ----------
    dataset, column, root: see `ColumnItems`.
    rate: samples per second of a column of numbers; None for encoded clips.
    """

    def __init__(
        self, dataset: datasets.Dataset, column: str, root: str = "", rate: int | None = None
    ) -> None:
        super().__init__(dataset, column, root)
        self.rate = rate

    def headers(self, rows: Array) -> list[Header | None]:
        """Open every clip without decoding it."""
        return [self._try_header(value) for value in self.values(rows)]

    def _try_header(self, value: Any) -> Header | None:
        try:
            if self.rate is not None:
                return None if value is None else Header(self.rate, len(value))
            return header(value)
        except (OSError, RuntimeError, ValueError, TypeError):
            return None  # what is wrong is said when it is decoded

    def read(self, rows: Array) -> Iterator[tuple[Array, int] | Exception]:
        """Decode one after the other."""
        for value in self.values(rows):
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

    def rooted(self, value: Any) -> Any:
        """A file name, alone or in a dict, from the folder `root`; anything else as it is."""
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            return {**value, "path": self.rooted(value["path"])}
        return super().rooted(value)
