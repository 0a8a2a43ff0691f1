"""Where the clips of one split are, before they are brought to one shape.

Shape suffixes: N clips of the split, T frames, C channels, H height, W width.
"""

from __future__ import annotations

import abc
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from mmdd.modalities.images.pixels import StoredPixels
from mmdd.modalities.tables.stored import ArrayItems, ColumnItems
from mmdd.modalities.video.arrays import frames_first, of_lists
from mmdd.modalities.video.decode import ArrayFootage, Footage, FrameFootage, open_encoded


class Clips(StoredPixels):
    """The clips of one split, of any length, size and mode."""

    @abc.abstractmethod
    def open(self, row: int) -> Footage:
        """Open one clip; raises whatever its decoder does on a broken one."""


class ArrayClips(ArrayItems, Clips):
    """Decoded clips in memory: [N, T, C, H, W], or a list of such [T, C, H, W]."""

    def open(self, row: int) -> Footage:
        """A view."""
        return ArrayFootage(self.arrays[row])


class FileClips(Clips):
    """Clips that are folders of frames: for each the sorted paths of its pictures."""

    def __init__(self, folders: Sequence[Sequence[str]]) -> None:
        self.folders = folders

    def __len__(self) -> int:
        return len(self.folders)

    def open(self, row: int) -> Footage:
        """Nothing is read yet."""
        return FrameFootage(list(self.folders[row]))

    def token(self) -> str:
        """Digest of all paths, sizes and times."""
        hasher = hashlib.sha256()
        for path in itertools.chain.from_iterable(self.folders):
            found = os.stat(path)
            hasher.update(f"{path}/{found.st_size}/{found.st_mtime_ns}".encode())
        return hasher.hexdigest()

    def name(self, row: int) -> str:
        """The folder."""
        return os.path.dirname(self.folders[row][0])


class ColumnClips(ColumnItems, Clips):
    """A column of clips.

    Parameters
    ----------
    dataset, column: see `ColumnItems`.
    read: turns a stored clip, an array of length 1, into footage.
    dtype: of the pixels.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        column: str,
        read: Callable[[pa.Array], Footage],
        dtype: np.dtype[Any],
    ) -> None:
        super().__init__(dataset, column)
        self.read, self.dtype = read, dtype

    def open(self, row: int) -> Footage:
        """Read one row."""
        stored = self._stored(row)
        if stored.null_count:
            raise ValueError("no clip")
        return self.read(stored)

    def path(self, row: int) -> str | None:
        """The file name that is stored; the clip itself is left alone."""
        value = self._stored(row)
        if pa.types.is_struct(value.type) and value.type.get_field_index("path") >= 0:
            path = value[0].as_py()["path"]
        else:
            path = value[0].as_py() if pa.types.is_string(value.type) else None
        return path if isinstance(path, str) else None

    def _stored(self, row: int) -> pa.Array:
        return self.fetch(np.array([row]))[0].combine_chunks()


def of_array(stored: pa.Array) -> Footage:
    """A clip stored as nested lists of numbers."""
    return ArrayFootage(frames_first(of_lists(stored)))


class OfFile:
    """Reads clips stored as bytes, paths or structs of both; paths start from `root`."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __call__(self, stored: pa.Array) -> Footage:
        """Open one clip."""
        return open_encoded(rooted(stored[0].as_py(), self.root))


class OfFrames(OfFile):
    """Reads clips stored as lists of encoded frames."""

    def __call__(self, stored: pa.Array) -> Footage:
        """Nothing is decoded yet."""
        return FrameFootage([rooted(frame, self.root) for frame in stored[0].as_py()])


def rooted(value: Any, root: str) -> Any:
    """A path, or that of a struct without bytes, from the folder `root`."""
    if isinstance(value, dict) and value.get("bytes") is None:
        value = value.get("path")
    return os.path.join(root, value) if isinstance(value, str) else value
