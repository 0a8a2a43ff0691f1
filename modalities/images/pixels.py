"""Where the images of one split are, before they are brought to one shape.

Shape suffixes: N images of the split, n rows of a read, C channels, H height, W width.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.images.arrays import ArrayLayout
from mmdd.modalities.images.decode import (
    Geometry,
    Header,
    Tally,
    decode,
    fit_array,
    header,
)
from mmdd.modalities.tables.arrays import Array

CHUNK = 128  # images fetched together: small enough that a chunk of photographs fits in memory
THREADED_PIXELS = 96 * 96  # smaller images spend their time in Python, where threads only wait
MOST_THREADS = 16

log = logging.getLogger("mmdd")


class Pixels(abc.ABC):
    """The images of one split, in any size and mode.

    Attributes
    ----------
    dtype: uint8, or float32 when the source holds floats.
    in_memory: True when the pixels are held by this object.
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    in_memory = False

    @abc.abstractmethod
    def __len__(self) -> int:
        """N."""

    @abc.abstractmethod
    def headers(self, rows: Array) -> list[Header | None]:
        """Sizes and colours of the images `rows` [n]; None for one that cannot be opened."""

    @abc.abstractmethod
    def fill(self, rows: Array, out: Array, geometry: Geometry) -> Tally:
        """Write the images `rows` [n] into `out` [n, C, H, W]; failed ones are left as they are.

        The failures of the tally are numbered by position in `rows`.
        """

    @abc.abstractmethod
    def token(self) -> str:
        """Digest that changes with the images."""

    def name(self, row: int) -> str:
        """What to call an image in a message."""
        return f"row {row}"


class ArrayPixels(Pixels):
    """Decoded images in memory.

    Parameters
    ----------
    images: [N, C, H, W] uint8 or float32, or a list of N such [C, H, W] of different sizes.
    """

    in_memory = True

    def __init__(self, images: Array | list[Array]) -> None:
        self.images = images
        dtype = images[0].dtype if len(images) else np.uint8
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return len(self.images)

    def headers(self, rows: Array) -> list[Header | None]:
        """Shapes; four channels of bytes are read as RGB with alpha."""
        return [_header_of(self.images[row]) for row in rows]

    def fill(self, rows: Array, out: Array, geometry: Geometry) -> Tally:
        """Copy, and convert where the shape differs."""
        if isinstance(self.images, np.ndarray) and self.images.shape[1:] == out.shape[1:]:
            out[:] = self.images[rows]
            return Tally()
        tally = Tally()
        for place, row in enumerate(rows):
            _write_array(self.images[row], out[place], geometry, tally)
        return tally

    def token(self) -> str:
        """Digest of all shapes and values."""
        hasher = hashlib.sha256()
        for image in self.images:
            hasher.update(repr((image.shape, image.dtype.str)).encode())
            hasher.update(np.ascontiguousarray(image).data)
        return hasher.hexdigest()


def _header_of(image: Array) -> Header:
    channels, height, width = image.shape
    return Header(3 if channels == 4 and image.dtype == np.uint8 else channels, height, width)


def _write_array(image: Array, out: Array, geometry: Geometry, tally: Tally) -> None:
    out[:] = image if image.shape == out.shape else fit_array(image, geometry, tally)


class ColumnPixels(Pixels):
    """A column of a ``datasets.Dataset``; nothing is read before it is asked for.

    Parameters
    ----------
    dataset: any format; it is read as Arrow, so that nothing is decoded on the way.
    column: its name.
    to_array: for a column of arrays, how they are stored; None for a column of encoded images.
    root: folder that relative file names start from.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        column: str,
        to_array: ArrayLayout | None = None,
        root: str = "",
    ) -> None:
        self.dataset = dataset.select_columns([column]).with_format("arrow")
        self.column, self.to_array, self.root = column, to_array, root
        self.fingerprint = dataset._fingerprint
        if to_array is not None:
            self.dtype = to_array.dtype

    def __len__(self) -> int:
        return len(self.dataset)

    def headers(self, rows: Array) -> list[Header | None]:
        """Open every image without decoding it."""
        return [_try_header(value) for value in self._values(rows)]

    def fill(self, rows: Array, out: Array, geometry: Geometry) -> Tally:
        """Decode straight into `out`."""
        tally = Tally()
        for place, value in enumerate(self._values(rows)):
            try:
                if isinstance(value, np.ndarray):
                    _write_array(value, out[place], geometry, tally)
                else:
                    decode(value, out[place], tally)
            except MemoryError:
                raise
            except Exception as error:  # a decoder raises whatever broken bytes lead it to
                tally.failures.append((place, _why(error)))
        return tally

    def token(self) -> str:
        """The library's own fingerprint, which follows files and transformations."""
        return f"{self.fingerprint}/{self.column}"

    def name(self, row: int) -> str:
        """Row number, and the file where there is one."""
        value = next(self._values(np.array([row])))
        path = value.get("path") if isinstance(value, dict) else value
        return f"row {row} ({path})" if isinstance(path, str) else super().name(row)

    def _values(self, rows: Array) -> Iterator[Any]:
        """Yield bytes, a path or the stored dict, or an array [C, H, W]; None where null."""
        if len(rows) == 0:
            return
        column, places = self._fetch(rows)
        if self.to_array is None:
            yield from (self._rooted(column[place].as_py()) for place in places)
            return
        stored = column.combine_chunks()
        if not stored.null_count:
            yield from self.to_array(stored)[places]
            return
        for place in places:
            known = stored[place].is_valid
            yield self.to_array(stored.slice(place, 1))[0] if known else None

    def _rooted(self, value: Any) -> Any:
        return os.path.join(self.root, value) if isinstance(value, str) else value

    def _fetch(self, rows: Array) -> tuple[pa.ChunkedArray, list[int]]:
        """Return a column that holds `rows` [n], and where in it each of them is."""
        low, high = int(rows.min()), int(rows.max()) + 1
        if high - low <= 2 * len(rows):  # a slice is not copied; a gather is one piece a row
            return self.dataset[low:high].column(self.column), (rows - low).tolist()
        return self.dataset[rows.tolist()].column(self.column), list(range(len(rows)))


def _why(error: Exception) -> str:
    """One line; PIL's own for an unknown format names a buffer by its address."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _try_header(value: Any) -> Header | None:
    try:
        return _header_of(value) if isinstance(value, np.ndarray) else header(value)
    except MemoryError:
        raise
    except Exception:  # as above; what is wrong is said when it is decoded
        return None


def read_all(
    pixels: Pixels,
    rows: Array,
    geometry: Geometry,
    update: Callable[[int], None] = lambda done: None,
) -> tuple[Array, Tally]:
    """Decode the images `rows` [n] into one array [n, C, H, W], in threads where that pays.

    `update` is called with the number of images done. Failures are numbered by position in `rows`,
    in order.
    """
    out = np.zeros((len(rows), *geometry.shape), pixels.dtype)
    starts = range(0, len(rows), CHUNK)

    def work(start: int) -> tuple[int, Tally]:
        part = slice(start, start + CHUNK)
        return start, pixels.fill(rows[part], out[part], geometry)

    total = Tally()
    with ThreadPoolExecutor(threads_for(pixels, rows)) as pool:
        for start, tally in pool.map(work, starts):
            tally.failures = [(start + place, why) for place, why in tally.failures]
            total.add(tally)
            update(min(start + CHUNK, len(rows)))
    return out, total


def threads_for(pixels: Pixels, rows: Array) -> int:
    """One for small images and arrays, else the cores."""
    if pixels.in_memory or not len(rows):
        return 1
    known = [head for head in pixels.headers(rows[:16]) if head is not None]
    large = [head.height * head.width > THREADED_PIXELS for head in known]
    return min(MOST_THREADS, os.cpu_count() or 1) if sum(large) * 2 > len(large) else 1


@dataclasses.dataclass
class ImageReader:
    """Reads numbered images of several splits: what the workers of a `StreamedData` hold.

    Images were checked by sample only, so one may turn out unreadable here. It is then replaced
    by `blank`, which is zero once normalised, and said once; too many are an error.

    Attributes
    ----------
    parts: the splits; row r of part k is number ``offsets[k] + r``.
    geometry: the shape of the result.
    blank: [C] what an unreadable image is filled with.
    limit: unreadable images that one process tolerates.
    """

    parts: Sequence[Pixels]
    geometry: Geometry
    blank: Sequence[float]
    limit: int
    _bad: set[int] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.offsets = np.cumsum([0, *(len(part) for part in self.parts)])

    def __call__(self, rows: list[int]) -> Tensor:
        """Read the images numbered `rows` into [n, C, H, W]."""
        numbers = np.asarray(rows, dtype=np.int64)
        owner = np.searchsorted(self.offsets, numbers, side="right") - 1
        dtype = self.parts[0].dtype
        out = np.empty((len(rows), *self.geometry.shape), dtype)
        for part in np.unique(owner):
            places = np.flatnonzero(owner == part)
            self._read_part(int(part), numbers[places], out, places)
        return torch.from_numpy(out)

    def _read_part(self, part: int, numbers: Array, out: Array, places: Array) -> None:
        pixels = self.parts[part]
        rows = numbers - self.offsets[part]
        whole = len(places) == len(out)
        target = out if whole else np.empty((len(places), *out.shape[1:]), out.dtype)
        tally = pixels.fill(rows, target, self.geometry)
        for place, why in tally.failures:
            target[place] = np.asarray(self.blank, out.dtype)[:, None, None]
            self._report(int(numbers[place]), pixels.name(int(rows[place])), why)
        if not whole:
            out[places] = target

    def _report(self, number: int, name: str, why: str) -> None:
        if number in self._bad:
            return
        self._bad.add(number)
        log.warning("image %s cannot be read (%s); a blank one takes its place", name, why)
        if len(self._bad) > self.limit:
            raise UserError(
                f"more than {self.limit} images cannot be read, the last one {name}: {why}",
                hint="Repair the set, or allow more with data.max_corrupt",
            )
