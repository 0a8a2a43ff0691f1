"""Open sets of clips: find, split, sample frames, decode, measure, keep on a device or on disk.

Shape suffixes: N items of a part, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.images.normalise import Moments
from mmdd.modalities.tables.arrays import Array, at_random
from mmdd.modalities.tables.failures import allowed
from mmdd.modalities.tables.parts import make_parts, resident
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.tables.stored import hash_parts
from mmdd.modalities.tables.streaming import processes_for, sharing, splits_of, told_of_sample
from mmdd.modalities.video.normalise import NormaliseClips
from mmdd.modalities.video.opening import (
    Opening,
    decode_part,
    prepared,
    read_places,
    settle,
)
from mmdd.modalities.video.options import VideoData
from mmdd.modalities.video.raw import RawClips
from mmdd.modalities.video.reading import ClipReader
from mmdd.modality import DataInfo, Splits
from mmdd.real import RealData

SAMPLE_DISK = 1000  # clips of a disk set that are measured and checked
SAMPLE_BYTES = 2**27  # decoded at once while a disk set is measured


def open_videos(source: Any, options: VideoData, device: torch.device | str = "cpu") -> Splits:
    """Open a set of labelled clips.

    Parameters
    ----------
    source: what `options.source` may be (a Hub name, a local folder or file), or from Python: a
        ``datasets`` Dataset or DatasetDict, a map-style torch Dataset of (clip, label), a pair
        (clips [N, T, H, W, C], labels), or a dict of these by split. None for `options.source`.
    options: how to read it.
    device: where batches are delivered, [n, C, T, H, W] float32, normalised by the measured mean
        and std of the training part. Sources of floats keep their range; other pixels are [0, 1]
        before they are normalised.

    Errors
    ------
    UserError, one line, for anything about the source or the options that cannot be used.
    """
    if options.sample == "uniform" and options.stride != 1:
        raise UserError(
            "data.stride is for clips that are sampled from the start or around the centre",
            got=options.stride,
            hint="Set data.sample=centre, or leave the stride out.",
        )
    opened = open_source(source, options, RawClips(options))
    parts, names, notes = make_parts(opened, options, "clip")
    opening = prepared(parts, names, notes, options)
    fits = options.store == "device" or (
        options.store == "auto" and opening.nbytes <= options.max_resident_bytes
    )
    build = _resident if fits else _streamed
    data, moments, digest = build(opening, options, torch.device(device))
    mean, std, (low, high) = moments.result()
    if (low, high) != (0.0, 1.0):
        opening.notes.append(f"pixels lie in {low:.4g}..{high:.4g}: taken as already scaled")
    info = DataInfo(
        modality="video",
        task="classification",
        source=opened.name,
        shape=opening.shape,
        classes=len(opening.names),
        names=opening.names,
        fingerprint=digest,
        normalisation={"mean": mean, "std": std, "range": [low, high]},
        columns=dict(opened.columns),
        sizes={role: len(data.get(role, ())) for role in ("train", "validation", "test")},
        notes=tuple(opening.notes),
    )
    return Splits(data["train"], data.get("validation"), data.get("test"), info)


Built = tuple[dict[str, RealData], Moments, str]
"""The parts as data, what was measured of training, and the fingerprint."""


def _resident(opening: Opening, options: VideoData, device: torch.device) -> Built:
    """Decode everything once and keep it on the device."""
    clips = {role: decode_part(opening, role) for role in opening.parts}
    settle(opening, clips, options)
    moments = Moments(opening.shape[0])
    _measure(moments, clips["train"])
    digest = _digest(opening, clips)
    prepare = NormaliseClips(*moments.result()[:2])
    data = resident(opening.parts, clips, len(opening.names), prepare, device)
    return data, moments, digest


def _measure(moments: Moments, clips: Array) -> None:
    moments.add(clips.reshape(len(clips), clips.shape[1], -1, 1))


def _streamed(opening: Opening, options: VideoData, device: torch.device) -> Built:
    """Leave the clips where they are; check and measure a sample of them."""
    if options.short == "drop":
        raise UserError(
            "which clips are too short is known once all of them are opened",
            got="data.short=drop for clips that stay on disk",
            expected="data.short=refuse, hold or loop, or data.store=device",
        )
    moments = Moments(opening.shape[0])
    checked = {role: _check_sample(opening, role, moments) for role in opening.parts}
    settle(opening, None, options)
    mean, std, _ = moments.result()
    unit = 255 if opening.dtype == np.uint8 else 1
    reader = ClipReader(
        parts=splits_of(opening.parts),
        limit=allowed(options.max_corrupt, opening.total),
        geometry=opening.geometry,
        sampling=opening.sampling,
        blank=[level * unit for level in mean],
    )
    workers, classes = processes_for(opening.parts, options.workers), len(opening.names)
    opening.notes.append(
        told_of_sample("clips", opening.parts, workers, opening.nbytes, checked["train"])
    )
    prepare = NormaliseClips(mean, std)
    data = sharing(opening.parts, reader, classes, workers, prepare, device)
    return data, moments, _digest(opening, None)


def _check_sample(opening: Opening, role: str, moments: Moments) -> int:
    """Decode up to `SAMPLE_DISK` clips of a part; return how many.

    The unreadable ones are taken out; those of training enter `moments`.
    """
    part = opening.parts[role]
    places = at_random(len(part), SAMPLE_DISK)
    block = max(1, SAMPLE_BYTES // (math.prod(opening.shape) * opening.dtype.itemsize))
    kept = np.ones(len(part), bool)
    for start in range(0, len(places), block):
        some = places[start : start + block]
        clips, kept[some] = read_places(opening, part, some)
        if role == "train":
            _measure(moments, clips[kept[some]])
    opening.parts[role] = part.take(kept)
    return len(places)


def _digest(opening: Opening, clips: dict[str, Array] | None) -> str:
    """Fingerprint of shapes, names, labels and pixels; without `clips`, of rows and sources."""
    hasher = hashlib.sha256()
    hasher.update(repr((opening.shape, str(opening.dtype), opening.names)).encode())
    hash_parts(hasher, opening.parts, clips, f"/{opening.sampling}")
    return hasher.hexdigest()
