"""From an encoded clip to samples of one rate: decoding, channels, resampling, trimming, fitting.

Shape suffixes: t samples of a clip, c channels, T samples that every clip is brought to.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import io
import math
from typing import Any

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.columns import one_line

FULL_SCALE = {"int16": 2.0**15, "int32": 2.0**31}
MOST_CHANNELS = 8


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of a clip before it is decoded: samples per second, and samples."""

    rate: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Framing:
    """How clips become equal.

    Attributes
    ----------
    rate: samples per second.
    samples: T.
    crop: ``centre`` or ``start``: which part of a longer clip is kept.
    trim: dB below the peak under which the ends of a clip are silence, or None.
    """

    rate: int
    samples: int
    crop: str
    trim: float | None


@dataclasses.dataclass
class Tally:
    """What happened to the clips of one read, and which of them could not be read.

    `resampled` counts clips by the rate that they had.
    """

    failures: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    resampled: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    mixed: int = 0
    cropped: int = 0
    silent: int = 0

    def add(self, other: Tally) -> None:
        """Count another read too."""
        self.failures.extend(other.failures)
        self.resampled.update(other.resampled)
        self.mixed += other.mixed
        self.cropped += other.cropped
        self.silent += other.silent


def soundfile() -> Any:
    """The package that reads and writes audio files; `UserError` where it is missing."""
    return _package("soundfile", "audio files need the package soundfile")


def transforms() -> Any:
    """``torchaudio.transforms``; `UserError` where it is missing or does not fit torch."""
    return _package("torchaudio.transforms", "resampling and spectra need the package torchaudio")


def _package(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # OSError: without its library
        hint = f"pip install {name.partition('.')[0]}"
        raise UserError(
            f"{what}, which cannot be imported: {one_line(error)}", hint=hint
        ) from error


def opened(value: Any) -> Any:
    """What `soundfile` may open: a path, or a file in memory.

    Parameters
    ----------
    value: bytes, a path or URL, or a dict with ``bytes`` or ``path`` (the ``datasets`` storage).

    Errors
    ------
    ValueError when there is nothing to open; what reading a URL raises.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None or value in (b"", ""):
        raise ValueError("no audio")
    if isinstance(value, str) and "://" in value:  # inside an archive, or remote
        from datasets.utils.file_utils import xopen

        with xopen(value, "rb") as file:
            value = file.read()
    return value if isinstance(value, str) else io.BytesIO(value)


def header(value: Any) -> Header:
    """Read rate and length of an encoded clip without decoding it."""
    found = soundfile().info(opened(value))
    return Header(int(found.samplerate), int(found.frames))


def decode(value: Any) -> tuple[Array, int]:
    """Decode one clip: float32 [t, c] in [-1, 1] (or the range of a float file), and its rate.

    Errors: what libsndfile raises on bytes that it cannot read.
    """
    samples, rate = soundfile().read(opened(value), dtype="float32", always_2d=True)
    return samples, int(rate)


def checked(samples: Array) -> Array:
    """Refuse an empty clip and one that holds NaN or infinity (ValueError)."""
    if samples.size == 0:
        raise ValueError("the clip is empty")
    if not np.isfinite(samples).all():
        raise ValueError("samples are not finite (NaN or infinity)")
    return samples


def mono(samples: Array, tally: Tally) -> Array:
    """[t, c] -> [t]: the mean of the channels."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    tally.mixed += 1
    return samples.mean(axis=1, dtype=np.float32)


def resampled(samples: Array, rate: int, wanted: int, tally: Tally) -> Array:
    """[t] at `rate` -> [ceil(t x wanted / rate)] at `wanted`, band-limited (torchaudio)."""
    if rate == wanted:
        return samples
    tally.resampled[rate] += 1
    with torch.no_grad():
        turned = _resampler(rate, wanted)(torch.from_numpy(np.ascontiguousarray(samples)))
    return np.asarray(turned.numpy())


@functools.lru_cache(maxsize=32)
def _resampler(rate: int, wanted: int) -> Any:
    """`torchaudio.functional.resample`, with its kernel kept."""
    return transforms().Resample(rate, wanted)


def trimmed(samples: Array, decibels: float) -> Array:
    """Cut what lies `decibels` below the peak off both ends; a silent clip stays as it is."""
    loud = np.abs(samples)
    peak = float(loud.max())
    if peak == 0.0:
        return samples
    places = np.flatnonzero(loud >= peak * 10 ** (-decibels / 20))
    return samples[places[0] : places[-1] + 1]


def even(samples: Array, rate: int, framing: Framing, tally: Tally) -> Array:
    """Samples [t, c] of any rate -> [t'] mono, at the framing's rate, trimmed.

    Errors: ValueError for an empty clip and samples that are not finite.
    """
    found = resampled(mono(checked(samples), tally), rate, framing.rate, tally)
    if not found.any():
        tally.silent += 1
    return found if framing.trim is None else trimmed(found, framing.trim)


def fit(samples: Array, out: Array, framing: Framing, tally: Tally) -> int:
    """Write [t] into `out` [T], cropped or filled up with zeros; return how many are the clip's."""
    room = len(out)
    if len(samples) > room:
        tally.cropped += 1
        start = (len(samples) - room) // 2 if framing.crop == "centre" else 0
        samples = samples[start : start + room]
    out[: len(samples)] = samples
    out[len(samples) :] = 0.0
    return len(samples)


def after(header: Header, rate: int) -> int:
    """Samples of a clip once it is at `rate`."""
    return math.ceil(header.samples * rate / header.rate)


def to_samples(values: Array) -> Array:
    """An array from Python as float32 [t, c]: [t], or one of [c, t] and [t, c] with few channels.

    Whole numbers are scaled by their type's range; floats stay as they are.

    Errors: UserError for other shapes and types.
    """
    kind = str(values.dtype)
    if kind == "uint8":  # 8-bit PCM has its zero in the middle
        values = (values.astype(np.float32) - 128.0) / 128.0
    elif kind in FULL_SCALE:
        values = (values / FULL_SCALE[kind]).astype(np.float32)
    elif values.dtype.kind == "f":
        values = values.astype(np.float32)
    else:
        raise UserError("samples of this type", got=kind, expected="floats, uint8, int16 or int32")
    if values.ndim == 2 and values.shape[0] <= min(MOST_CHANNELS, values.shape[1]):
        values = values.T
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] > MOST_CHANNELS:
        raise UserError(
            "this is no clip",
            got=f"shape {values.shape}",
            expected=f"[samples], or [channels, samples] with at most {MOST_CHANNELS} channels",
        )
    return np.ascontiguousarray(values)
