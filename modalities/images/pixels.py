"""Where the images of one split are, before they are brought to one shape.

Shape suffixes: N images of the split, n rows of a read, C channels, H height, W width.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

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
from mmdd.modalities.tables.failures import why
from mmdd.modalities.tables.stored import ArrayItems, ColumnItems, StoredItems
from mmdd.modalities.tables.streaming import NumberedReader

CHUNK = 128  # images fetched together: small enough that a chunk of photographs fits in memory
THREADED_PIXELS = 96 * 96  # smaller images spend their time in Python, where threads only wait
MOST_THREADS = 16


class StoredPixels(StoredItems):
    """Pictures of one split, still or moving.

    Attributes
    ----------
    dtype: of the pixels: uint8, or float32 when the source holds floats.
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)


class Pixels(StoredPixels):
    """The images of one split, in any size and mode."""

    @abc.abstractmethod
    def headers(self, rows: Array) -> list[Header | None]:
        """Sizes and colours of the images `rows` [n]; None for one that cannot be opened."""

    @abc.abstractmethod
    def fill(self, rows: Array, out: Array, geometry: Geometry) -> Tally:
        """Write the images `rows` [n] into `out` [n, C, H, W]; failed ones are left as they are.

        The failures of the tally are numbered by position in `rows`.
        """


class ArrayPixels(ArrayItems, Pixels):
    """Decoded images in memory: [N, C, H, W] uint8 or float32, or a list of N such [C, H, W]."""

    def headers(self, rows: Array) -> list[Header | None]:
        """Shapes; four channels of bytes are read as RGB with alpha."""
        return [_header_of(self.arrays[row]) for row in rows]

    def fill(self, rows: Array, out: Array, geometry: Geometry) -> Tally:
        """Copy, and convert where the shape differs."""
        if isinstance(self.arrays, np.ndarray) and self.arrays.shape[1:] == out.shape[1:]:
            out[:] = self.arrays[rows]
            return Tally()
        tally = Tally()
        for place, row in enumerate(rows):
            _write_array(self.arrays[row], out[place], geometry, tally)
        return tally


def _header_of(image: Array) -> Header:
    channels, height, width = image.shape
    return Header(3 if channels == 4 and image.dtype == np.uint8 else channels, height, width)


def _write_array(image: Array, out: Array, geometry: Geometry, tally: Tally) -> None:
    out[:] = image if image.shape == out.shape else fit_array(image, geometry, tally)


class ColumnPixels(ColumnItems, Pixels):
    """A column of images: encoded ones, or (with `to_array`) arrays stored in that way."""

    def __init__(
        self,
        dataset: datasets.Dataset,
        column: str,
        to_array: ArrayLayout | None = None,
        root: str = "",
    ) -> None:
        super().__init__(dataset, column, root)
        self.to_array = to_array
        if to_array is not None:
            self.dtype = to_array.dtype

    def headers(self, rows: Array) -> list[Header | None]:
        """Open every image without decoding it."""
        return [_try_header(value) for value in self.values(rows)]

    def fill(self, rows: Array, out: Array, geometry: Geometry) -> Tally:
        """Decode straight into `out`."""
        tally = Tally()
        for place, value in enumerate(self.values(rows)):
            try:
                if isinstance(value, np.ndarray):
                    _write_array(value, out[place], geometry, tally)
                else:
                    decode(value, out[place], tally)
            except MemoryError:
                raise
            except Exception as error:  # a decoder raises whatever broken bytes lead it to
                tally.failures.append((place, why(error)))
        return tally

    def values(self, rows: Array) -> Iterator[Any]:
        """As stored, or arrays [C, H, W]."""
        if self.to_array is None or len(rows) == 0:
            yield from super().values(rows)
            return
        column, places = self.fetch(rows)
        stored = column.combine_chunks()
        if not stored.null_count:
            yield from self.to_array(stored)[places]
            return
        for place in places:
            known = stored[place].is_valid
            yield self.to_array(stored.slice(place, 1))[0] if known else None


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


@dataclasses.dataclass(kw_only=True)
class ImageReader(NumberedReader[Pixels]):
    """Reads numbered images of several splits.

    Attributes
    ----------
    geometry: the shape of the result.
    blank: [C] what an unreadable image is filled with; zero once normalised.
    """

    one = "image"
    geometry: Geometry
    blank: Sequence[float]

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
        for place, reason in tally.failures:
            target[place] = np.asarray(self.blank, out.dtype)[:, None, None]
            self.report(int(numbers[place]), pixels.name(int(rows[place])), reason)
        if not whole:
            out[places] = target
