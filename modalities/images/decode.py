"""From an encoded image to pixels of one shape: modes, alpha, depth, orientation and size.

Shape suffixes: C channels (1 grey or 3 RGB), H height, W width.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange height and width
WHITE = (255, 255, 255, 255)
ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The shape that every image of a set is brought to."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded, in the position it is shown in."""

    channels: int
    height: int
    width: int


@dataclasses.dataclass
class Tally:
    """What happened to the images of one read, and which rows could not be read."""

    failures: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    resized: int = 0
    greyed: int = 0
    flattened: int = 0

    def add(self, other: Tally) -> None:
        """Count another read too."""
        self.failures.extend(other.failures)
        self.resized += other.resized
        self.greyed += other.greyed
        self.flattened += other.flattened


def open_encoded(value: Any) -> Image.Image:
    """Open an image without decoding it.

    Parameters
    ----------
    value: bytes, a path or URL, or a dict with ``bytes`` or ``path`` (the ``datasets`` storage).

    Errors
    ------
    Whatever the file system or PIL raises; ValueError when there is nothing to open.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ValueError("no image")
    if isinstance(value, str) and "://" in value:  # inside an archive, or remote
        return datasets.Image().decode_example({"path": value, "bytes": None})
    return Image.open(value if isinstance(value, str) else io.BytesIO(value))


def header(value: Any) -> Header:
    """Read the size and the colours of an encoded image, as cheaply as its format allows."""
    with open_encoded(value) as image:
        width, height = image.size
        if _orientation(image) in TURNED:
            width, height = height, width
        return Header(1 if is_grey(image) else 3, height, width)


def is_grey(image: Image.Image) -> bool:
    """True when the mode, or every entry of the palette, is grey."""
    if image.mode != "P":
        return image.mode in GREY_MODES
    palette = np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def decode(value: Any, out: Array, tally: Tally) -> None:
    """Decode one encoded image into `out`, uint8 [C, H, W]; `tally` counts what was done to it.

    Errors: what PIL raises on bytes that it cannot read.
    """
    channels, height, width = out.shape
    with open_encoded(value) as image:
        if image.size != (width, height):
            # A JPEG is decoded at a fraction of its size when that is still twice the target.
            image.draft(None, (2 * max(height, width), 2 * max(height, width)))
        out[:] = to_pixels(upright(image), channels, (height, width), tally)


def to_pixels(
    image: Image.Image, channels: int, size: tuple[int, int] | None, tally: Tally
) -> Array:
    """Return uint8 [C, H, W] of a PIL image; [1, H, W] for a grey one whatever `channels` is.

    `size` is (H, W), or None to keep the image's own.
    """
    image = plain(image, tally)
    if channels == 1 and image.mode != "L":
        image = image.convert("L")
        tally.greyed += 1
    if size is not None and image.size != size[::-1]:
        image = ImageOps.fit(image, size[::-1], method=Image.Resampling.BILINEAR)
        tally.resized += 1
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """Turn a photograph as its EXIF orientation says."""
    if _orientation(image) in (None, 1):
        return image
    return ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int | None:
    # Parsing EXIF costs as much as decoding a small image, and small images have none.
    if "exif" not in image.info and image.format not in ("TIFF", "MPO"):
        return None
    orientation = image.getexif().get(ORIENTATION)
    return int(orientation) if orientation is not None else None


def plain(image: Image.Image, tally: Tally) -> Image.Image:
    """Bring any mode to "L" or "RGB": alpha over white, 16 bits scaled to 8."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode in DEEP_MODES:
        # PIL's own conversion clips at 255 instead of scaling.
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(_floats_to_bytes(np.asarray(image)))
    grey = is_grey(image)
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture)
        tally.flattened += 1
    return image.convert("L" if grey else "RGB")


def _floats_to_bytes(pixels: Array) -> Array:
    """Float TIFFs hold either [0, 1] or [0, 255]."""
    if not np.isfinite(pixels).all():
        raise ValueError("pixels are not finite")
    scale = 255 if pixels.max() <= 1 else 1
    return np.rint(pixels * scale).clip(0, 255).astype(np.uint8)


def fit_array(pixels: Array, geometry: Geometry, tally: Tally) -> Array:
    """Bring an array [c, h, w], uint8 or float32, to the geometry; [1, H, W] may stand for grey."""
    if pixels.dtype == np.uint8 and pixels.shape[0] in (1, 3, 4):
        size = (geometry.height, geometry.width)
        picture = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
        image = Image.fromarray(np.ascontiguousarray(picture))
        return to_pixels(image, geometry.channels, size, tally)
    if pixels.shape[0] == 3 and geometry.channels == 1:
        weights = np.array([0.299, 0.587, 0.114], dtype=pixels.dtype)
        pixels = np.tensordot(weights, pixels, axes=1)[None]
        tally.greyed += 1
    if pixels.shape[1:] != (geometry.height, geometry.width):
        pixels = _cover(pixels, geometry.height, geometry.width)
        tally.resized += 1
    return pixels


def _cover(pixels: Array, height: int, width: int) -> Array:
    """Resize [C, h, w] bilinearly, antialiased, until it covers the target; crop the centre."""
    scale = max(height / pixels.shape[1], width / pixels.shape[2])
    size = [max(height, round(pixels.shape[1] * scale)), max(width, round(pixels.shape[2] * scale))]
    values = torch.from_numpy(pixels.astype(np.float32))[None]
    values = functional.interpolate(values, size, mode="bilinear", antialias=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    values = values[:, top : top + height, left : left + width]
    if pixels.dtype == np.uint8:
        values = values.round().clamp(0, 255)
    return values.numpy().astype(pixels.dtype)


def choose_geometry(
    headers: Sequence[Header], size: tuple[int, int] | None, channels: int | None
) -> tuple[Geometry, list[str]]:
    """Choose the shape of a set from a sample of its images.

    Parameters
    ----------
    headers: of the sampled images that can be read; at least one.
    size: (H, W) that the user asked for, or None.
    channels: 1 or 3 that the user asked for, or None.

    Returns
    -------
    The geometry, and a sentence for everything that was not obvious.

    Errors: UserError when the numbers of channels cannot be reconciled.
    """
    chosen, notes = _choose_size(headers, size)
    found = {head.channels for head in headers}
    if not found <= {1, 3} and (len(found) > 1 or channels is not None):
        raise UserError(
            "images with so many channels cannot be converted",
            got=sorted(found),
            expected="1 or 3 channels, or the same number everywhere and `data.channels` unset",
        )
    if channels is None and len(found) > 1:
        grey = sum(head.channels == 1 for head in headers) / len(headers)
        notes.append(f"grey and colour images are mixed ({grey:.0%} grey): all are read as RGB")
    return Geometry(channels or max(found), *chosen), notes


def _choose_size(
    headers: Sequence[Header], size: tuple[int, int] | None
) -> tuple[tuple[int, int], list[str]]:
    sizes = np.array([(head.height, head.width) for head in headers])
    distinct, counts = np.unique(sizes, axis=0, return_counts=True)
    common = (int(distinct[counts.argmax()][0]), int(distinct[counts.argmax()][1]))
    if len(distinct) == 1 and size in (None, common):
        return common, []
    if size is None and 2 * counts.max() > len(headers):
        size = common
    if size is None:
        side = round(float(np.median(sizes.min(axis=1))))
        size = (side, side)
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    had = f"{low[0]}x{low[1]}" if len(distinct) == 1 else f"{low[0]}-{high[0]}x{low[1]}-{high[1]}"
    note = f"images of {had} (height x width) are resized and cropped to {size[0]}x{size[1]}"
    return size, [note]
