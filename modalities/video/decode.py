"""Encoded clips: which program opens them, how many frames they have, and single frames.

Shape suffixes: T frames, C channels, H height, W width.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from datasets.utils.file_utils import xopen
from PIL import Image, ImageSequence

from mmdd.errors import UserError
from mmdd.modalities.images.decode import (
    Geometry,
    Header,
    Tally,
    fit_array,
    header,
    is_grey,
    to_pixels,
)
from mmdd.modalities.images.decode import decode as decode_image
from mmdd.modalities.tables.arrays import Array

Places = Array
"""[n] int64, frames of a clip."""


class Footage(Protocol):
    """One opened clip."""

    def __len__(self) -> int:
        """Number of frames."""

    def header(self) -> Header:
        """Size and colours of the first frame."""

    def fill(self, places: Places, out: Array, geometry: Geometry, tally: Tally) -> None:
        """Write the frames `places` [n] into `out` [C, n, H, W]; a place may stand there twice."""


class ArrayFootage:
    """Frames in memory, [T, C, H, W]."""

    def __init__(self, frames: Array) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def header(self) -> Header:
        """Shape of a frame; four channels of bytes are read as RGB with alpha."""
        channels, height, width = self.frames.shape[1:]
        alpha = channels == 4 and self.frames.dtype == np.uint8
        return Header(3 if alpha else channels, height, width)

    def fill(self, places: Places, out: Array, geometry: Geometry, tally: Tally) -> None:
        """Copy, or convert where the shape differs."""
        if self.frames.shape[1:] == geometry.shape:
            out[:] = self.frames[places].swapaxes(0, 1)
            return
        for at, place in enumerate(places):
            out[:, at] = fit_array(np.ascontiguousarray(self.frames[place]), geometry, tally)


class FrameFootage:
    """Frames that are encoded one by one: bytes, paths, or dicts with either."""

    def __init__(self, frames: list[Any]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def header(self) -> Header:
        """Of the first frame, without decoding it."""
        return header(self.frames[0])

    def fill(self, places: Places, out: Array, geometry: Geometry, tally: Tally) -> None:
        """Decode every frame once."""
        for at, place in enumerate(places):
            if at and place == places[at - 1]:
                out[:, at] = out[:, at - 1]
            else:
                decode_image(self.frames[place], out[:, at], tally)


class AnimatedFootage:
    """An animated picture (GIF, WebP, PNG), decoded whole by PIL."""

    def __init__(self, image: Image.Image) -> None:
        self.frames = [_composed(frame) for frame in ImageSequence.Iterator(image)]

    def __len__(self) -> int:
        return len(self.frames)

    def header(self) -> Header:
        """Grey only if all frames are."""
        width, height = self.frames[0].size
        grey = all(is_grey(frame) for frame in self.frames)
        return Header(1 if grey else 3, height, width)

    def fill(self, places: Places, out: Array, geometry: Geometry, tally: Tally) -> None:
        """Convert the frames."""
        size = (geometry.height, geometry.width)
        for at, place in enumerate(places):
            out[:, at] = to_pixels(self.frames[place], geometry.channels, size, tally)


def _composed(frame: Image.Image) -> Image.Image:
    """A frame as it is shown; those after the first of a grey GIF come as RGB all the same."""
    if is_grey(frame):
        return frame.convert("L") if frame.mode == "P" else frame.copy()
    shown = frame.convert("RGB")
    pixels = np.asarray(shown)
    grey = bool((pixels == pixels[..., :1]).all())
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0])) if grey else shown


# -- video files -----------------------------------------------------------------------------------


class VideoFootage:
    """A video file, through torchcodec or else PyAV."""

    def __init__(self, source: str | bytes) -> None:
        frames, self.count = decoder()(source)
        self.read = frames
        self._first: Array | None = None

    def __len__(self) -> int:
        return self.count

    def header(self) -> Header:
        """Of the first frame; a video whose colours are all grey is still read as RGB."""
        if self._first is None:
            self._first = next(iter(self.read(np.array([0]))))
        height, width = self._first.shape[1:]
        return Header(3, height, width)

    def fill(self, places: Places, out: Array, geometry: Geometry, tally: Tally) -> None:
        """Decode in one pass, and bring every frame to the geometry."""
        for at, frame in enumerate(self.read(places)):
            out[:, at] = fit_array(frame, geometry, tally)


Frames = Callable[[Places], Iterator[Array]]
"""Frames [3, H, W] uint8 at rising places, which may repeat."""
Decoder = Callable[[str | bytes], tuple[Frames, int]]


def with_torchcodec(source: str | bytes) -> tuple[Frames, int]:
    """Open with torchcodec's ``VideoDecoder``."""
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(source)

    def frames(places: Places) -> Iterator[Array]:
        yield from video.get_frames_at(indices=places.tolist()).data.numpy()

    return frames, len(video)


def with_av(source: str | bytes) -> tuple[Frames, int]:
    """Open with PyAV; frames are counted in packets where the container does not say."""
    import av

    def opened() -> Any:
        return av.open(io.BytesIO(source) if isinstance(source, bytes) else source)

    def frames(places: Places) -> Iterator[Array]:
        with opened() as container:
            shown, number = None, -1
            decoded = container.decode(video=0)
            for place in places.tolist():
                while number < place:
                    number, picture = number + 1, next(decoded, None)
                    # a container may promise more frames than it holds
                    shown = shown if picture is None else picture.to_ndarray(format="rgb24")
                if shown is None:
                    raise ValueError("no frame can be decoded")
                yield shown.transpose(2, 0, 1)

    with opened() as container:
        if not container.streams.video:
            raise ValueError("no video in this file")
        stream = container.streams.video[0]
        count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    return frames, int(count)


@functools.cache
def _works(module: str) -> bool:
    """True for a module that can be imported: torchcodec is often there without its FFmpeg."""
    try:
        importlib.import_module(module)
    except Exception:  # a library that is not found raises what its loader likes
        return False
    return True


def decoder() -> Decoder:
    """The program that decodes video files here.

    Errors: UserError, naming what to install, when there is none.
    """
    if _works("torchcodec.decoders"):
        return with_torchcodec
    if _works("av"):
        return with_av
    raise UserError(
        "video files need a decoder, and none is installed",
        expected="PyAV or torchcodec",
        hint="pip install 'mmdd[video]', or give frames: GIFs, folders of pictures, arrays.",
    )


def open_encoded(value: Any) -> Footage:
    """Open an encoded clip: bytes, a path, or a dict with ``bytes`` or ``path``.

    Errors: UserError without a decoder; else what the programs raise on broken files.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ValueError("no clip")
    if isinstance(value, str) and "://" in value:  # inside an archive, or remote
        with xopen(value, "rb") as file:
            value = file.read()
    if len(value) == 0 or (isinstance(value, str) and os.path.getsize(value) == 0):
        raise ValueError("the file is empty")
    if is_picture(value):
        with Image.open(value if isinstance(value, str) else io.BytesIO(value)) as image:
            return AnimatedFootage(image)
    return VideoFootage(value)


PICTURES = (b"GIF8", b"\x89PNG", b"RIFF")
"""First bytes of pictures that may move; WebP is told from AVI by what follows."""


def is_picture(value: str | bytes) -> bool:
    """True for what PIL opens."""
    if isinstance(value, str):
        with open(value, "rb") as file:
            value = file.read(16)
    return value.startswith(PICTURES[:2]) or (value[:4] == PICTURES[2] and value[8:12] == b"WEBP")
