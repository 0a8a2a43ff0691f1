"""Open sets of clips: find, split, sample frames, decode, measure, and keep on a device.

Shape suffixes: N items of a part, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.images.decode import Geometry, Header, Tally, choose_geometry
from mmdd.modalities.images.normalise import Moments
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.columns import one_line
from mmdd.modalities.tables.parts import Part, Parts, keep_trained, make_parts
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.video.clips import ArrayClips, Clips
from mmdd.modalities.video.normalise import NormaliseClips
from mmdd.modalities.video.options import USUAL_FRAMES, VideoData
from mmdd.modalities.video.raw import RawClips
from mmdd.modalities.video.sample import Sampling
from mmdd.modality import DataInfo, Splits
from mmdd.progress import for_terminal
from mmdd.real import ResidentData

SAMPLE = 200  # clips whose length, size and colours are looked at
MANY = 2000  # clips whose decoding deserves a bar
MOST_THREADS = 8
NAMED = 3  # clips that a message names


@dataclasses.dataclass
class Opening:
    """A set on its way from parts to data.

    Attributes
    ----------
    parts: train, and validation and test where there are any.
    names: of the classes.
    geometry: the shape of all frames.
    sampling: which frames are read.
    notes: sentences for the user.
    tally: what decoding did to single frames.
    failures: clips that cannot be read, and why.
    short: clips with too few frames, and how many they have.
    """

    parts: Parts[Clips]
    names: tuple[str, ...]
    geometry: Geometry
    sampling: Sampling
    notes: list[str]
    tally: Tally = dataclasses.field(default_factory=Tally)
    failures: list[str] = dataclasses.field(default_factory=list)
    short: list[str] = dataclasses.field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, T, H, W)."""
        channels, height, width = self.geometry.shape
        return channels, self.sampling.frames, height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels as kept."""
        return self.parts["train"].items.dtype


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
    opening = _prepare(parts, names, notes, options)
    _require_room(opening, options)
    clips = {role: _decode(opening, role) for role in opening.parts}
    _settle(opening, clips, options)
    moments = Moments(opening.shape[0])
    moments.add(clips["train"].reshape(len(clips["train"]), opening.shape[0], -1, 1))
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
        fingerprint=_digest(opening, clips),
        normalisation={"mean": mean, "std": std, "range": [low, high]},
        columns=dict(opened.columns),
        sizes={role: len(clips.get(role, ())) for role in ("train", "validation", "test")},
        notes=tuple(opening.notes),
    )
    prepare = NormaliseClips(mean, std)
    data = _resident(opening, clips, prepare, torch.device(device))
    return Splits(data["train"], data.get("validation"), data.get("test"), info)


def _resident(
    opening: Opening, clips: dict[str, Array], prepare: NormaliseClips, device: torch.device
) -> dict[str, ResidentData]:
    data = {}
    for role in list(clips):
        codes = torch.from_numpy(opening.parts[role].codes)
        pixels = torch.from_numpy(clips.pop(role))  # so that a GPU's copy is the only one left
        data[role] = ResidentData(
            pixels, codes, codes, len(opening.names), prepare=prepare, device=device
        )
    return data


# -- shape -----------------------------------------------------------------------------------------


def _prepare(
    parts: Parts[Clips], names: tuple[str, ...], notes: list[str], options: VideoData
) -> Opening:
    """Choose the shape that the clips are brought to, by a sample of those of training."""
    train = parts["train"]
    kinds = {role: str(part.items.dtype) for role, part in parts.items()}
    if len(set(kinds.values())) > 1:
        raise UserError("the splits differ in type", got=kinds, expected="all bytes or all floats")
    counts, headers = _looked_at(train)
    geometry, found = choose_geometry(headers, options.height_width, options.channels)
    found = [note.replace("images", "frames") for note in found]
    frames = options.frames or _usual_frames(train, counts, found)
    sampling = Sampling.of(options, frames)
    low, high = min(counts.values()), max(counts.values())
    if (low, high) != (frames, frames):
        had = f"{low}" if low == high else f"{low} to {high}"
        found.append(f"{frames} frames of every clip are read ({options.sample}); they have {had}")
    return Opening(parts, names, geometry, sampling, [*notes, *found])


def _looked_at(train: Part[Clips]) -> tuple[dict[int, int], list[Header]]:
    """Lengths of some clips by row, and headers of those that can be opened."""
    places = np.unique(np.linspace(0, len(train) - 1, min(len(train), SAMPLE)).astype(np.int64))
    counts: dict[int, int] = {}
    headers = []
    problem = "they have no frames"
    for row in train.rows[places].tolist():
        try:
            footage = train.items.open(row)
            if len(footage):
                headers.append(footage.header())
                counts[row] = len(footage)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a decoder raises whatever broken bytes lead it to
            problem = one_line(error)
    if not headers:
        first = train.items.name(int(train.rows[0]))
        raise UserError(f"no clip of split {train.split!r} can be opened, e.g. {first}: {problem}")
    return counts, headers


def _usual_frames(train: Part[Clips], counts: dict[int, int], notes: list[str]) -> int:
    """`USUAL_FRAMES`, or as many as the shortest clip that was looked at has."""
    row, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest == 1:
        raise UserError(
            f"clip {train.items.name(row)} has a single frame",
            expected="clips that move",
            hint="Still pictures are the modality images; data.frames with data.short=hold repeats "
            "them.",
        )
    return min(USUAL_FRAMES, fewest)


def _require_room(opening: Opening, options: VideoData) -> None:
    items = sum(len(part) for part in opening.parts.values())
    nbytes = items * int(np.prod(opening.shape)) * opening.dtype.itemsize
    if nbytes > options.max_resident_bytes:
        raise UserError(
            "the decoded clips do not fit into data.max_resident_bytes",
            got=nbytes,
            expected=f"at most {options.max_resident_bytes}",
            hint="Lower data.frames or data.size, or raise the limit.",
        )


# -- decoding --------------------------------------------------------------------------------------


def _decode(opening: Opening, role: str) -> Array:
    """Decode one part, [N, C, T, H, W]; clips that are left out are noted and taken out."""
    part = opening.parts[role]
    out = np.zeros((len(part), *opening.shape), opening.dtype)
    kept = np.ones(len(part), bool)
    work = _reader(opening, part, out)
    threads = 1 if isinstance(part.items, ArrayClips) else min(MOST_THREADS, os.cpu_count() or 1)
    quiet = len(part) < MANY or not sys.stderr.isatty()
    with (
        for_terminal(quiet).task(f"decoding {role} clips", len(part)) as update,
        ThreadPoolExecutor(threads) as pool,
    ):
        for place, (tally, problem, length) in enumerate(pool.map(work, range(len(part)))):
            opening.tally.add(tally)
            kept[place] = _noted(opening, part, place, problem, length)
            update(place + 1)
    if opening.dtype.kind == "f":
        _require_finite(out, part)
    opening.parts[role] = part.take(kept)
    return out if kept.all() else out[kept]


Outcome = tuple[Tally, str | None, int]
"""What was done to the frames, why the clip cannot be read, and how many frames it has."""


def _reader(opening: Opening, part: Part[Clips], out: Array) -> Callable[[int], Outcome]:
    sampling = opening.sampling

    def work(place: int) -> Outcome:
        tally = Tally()
        try:
            footage = part.items.open(int(part.rows[place]))
            length = len(footage)
            if length == 0:
                return tally, "no frames", 0
            if length >= sampling.needs or sampling.short in ("hold", "loop"):
                footage.fill(sampling.places(length), out[place], opening.geometry, tally)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a decoder raises whatever broken bytes lead it to
            return tally, one_line(error), 0
        return tally, None, length

    return work


def _noted(
    opening: Opening, part: Part[Clips], place: int, problem: str | None, length: int
) -> bool:
    """Remember what is wrong with a clip; True when it stays."""
    if problem is None and length >= opening.sampling.needs:
        return True
    name = f"{part.split} {part.items.name(int(part.rows[place]))}"
    if problem is not None:
        opening.failures.append(f"{name}: {problem}")
        return False
    opening.short.append(f"{name} ({length} frames)")
    return opening.sampling.short in ("hold", "loop")


def _require_finite(clips: Array, part: Part[Clips]) -> None:
    for place, clip in enumerate(clips):
        bad = int((~np.isfinite(clip)).sum())
        if bad:
            raise UserError(
                f"{bad} pixels of clip {part.items.name(int(part.rows[place]))} of "
                f"{part.split!r} are NaN or infinite",
                expected="finite pixels",
            )


def _settle(opening: Opening, clips: dict[str, Array], options: VideoData) -> None:
    """Refuse a set with too many bad clips, drop what cannot be trained on, and say so."""
    bad, short, sampling = opening.failures, opening.short, opening.sampling
    total = sum(len(part) for part in opening.parts.values()) + len(bad)
    limit = options.max_corrupt
    allowed = limit if isinstance(limit, int) else int(limit * total)
    if len(bad) > allowed:
        raise UserError(
            f"{len(bad)} of {total} clips cannot be read: {_shown(bad)}",
            expected=f"at most {allowed}",
            hint="Repair the set, or allow more with data.max_corrupt",
        )
    if short and sampling.short == "refuse":
        raise UserError(
            f"{len(short)} clips have fewer frames than asked for: {_shown(short)}",
            expected=f"at least {sampling.needs} frames",
            hint="Lower data.frames, or set data.short to hold, loop or drop.",
        )
    before = opening.parts
    opening.parts, opening.names = keep_trained(before, opening.names, opening.notes, "clip")
    for role, part in opening.parts.items():
        if len(part) < len(before[role]):
            clips[role] = clips[role][np.isin(before[role].rows, part.rows)]
    opening.notes += _decoding_notes(opening)


def _decoding_notes(opening: Opening) -> list[str]:
    tally, notes = opening.tally, []
    if opening.failures:
        bad = opening.failures
        notes.append(f"{len(bad)} unreadable clips dropped: {_shown(bad)}")
    if opening.short:
        done = {"hold": "hold their last frame", "loop": "start again", "drop": "are left out"}
        notes.append(f"{len(opening.short)} short clips {done[opening.sampling.short]}")
    if tally.flattened:
        notes.append(f"{tally.flattened} frames with transparency were put on white")
    if tally.greyed:
        notes.append(f"{tally.greyed} colour frames were turned grey")
    if tally.resized and not any("resized" in note for note in opening.notes):
        height, width = opening.geometry.height, opening.geometry.width
        notes.append(f"{tally.resized} frames of another size were fitted to {height}x{width}")
    return notes


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _digest(opening: Opening, clips: dict[str, Array]) -> str:
    """Fingerprint of shapes, names, labels and pixels."""
    hasher = hashlib.sha256()
    hasher.update(repr((opening.shape, str(opening.dtype), opening.names)).encode())
    for role, part in opening.parts.items():
        hasher.update(repr((role, len(part))).encode())
        hasher.update(np.ascontiguousarray(part.codes).data)
        hasher.update(np.ascontiguousarray(clips[role]).data)
    return hasher.hexdigest()
