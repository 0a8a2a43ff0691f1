"""A set of clips on its way: the shape of all, frames decoded, what cannot be read taken out.

Shape suffixes: N items of a part, n of them, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mmdd.errors import UserError
from mmdd.modalities.images import opening as images
from mmdd.modalities.images.decode import Header, choose_geometry
from mmdd.modalities.tables.arrays import Array, spread
from mmdd.modalities.tables.failures import dropped, require_few, shown, why
from mmdd.modalities.tables.parts import Part, Parts, keep_trained
from mmdd.modalities.video.clips import Clips
from mmdd.modalities.video.options import USUAL_FRAMES, VideoData
from mmdd.modalities.video.reading import REPEATED, Outcome, read_clip
from mmdd.modalities.video.sample import Sampling
from mmdd.progress import for_terminal

SAMPLE = 200  # clips whose length, size and colours are looked at
MANY = 2000  # clips whose decoding deserves a bar
MOST_THREADS = 8
NAMED = 3  # clips that a message names


@dataclasses.dataclass(kw_only=True)
class Opening(images.Opening[Clips]):
    """What is known of a set of clips while it is opened.

    Attributes
    ----------
    sampling: which frames are read.
    short: clips with too few frames, and how many they have.
    """

    sampling: Sampling
    short: list[str] = dataclasses.field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, T, H, W)."""
        channels, height, width = self.geometry.shape
        return channels, self.sampling.frames, height, width


# -- shape -----------------------------------------------------------------------------------------


def prepared(
    parts: Parts[Clips], names: tuple[str, ...], notes: list[str], options: VideoData
) -> Opening:
    """Choose the shape that the clips are brought to, by a sample of those of training."""
    train = parts["train"]
    images.require_one_dtype(parts)
    counts, headers = _looked_at(train)
    geometry, found = choose_geometry(headers, options.height_width, options.channels)
    found = [note.replace("images", "frames") for note in found]
    frames = options.frames or _usual_frames(train, counts, found)
    sampling = Sampling.of(options, frames)
    low, high = min(counts.values()), max(counts.values())
    if (low, high) != (frames, frames):
        had = f"{low}" if low == high else f"{low} to {high}"
        found.append(f"{frames} frames of every clip are read ({options.sample}); they have {had}")
    return Opening(
        parts=parts, names=names, geometry=geometry, notes=[*notes, *found], sampling=sampling
    )


def _looked_at(train: Part[Clips]) -> tuple[dict[int, int], list[Header]]:
    """Lengths of some clips by row, and headers of those that can be opened."""
    counts: dict[int, int] = {}
    headers = []
    problem = "they have no frames"
    for row in train.rows[spread(len(train), SAMPLE)].tolist():
        try:
            footage = train.items.open(row)
            if len(footage):
                headers.append(footage.header())
                counts[row] = len(footage)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a decoder raises whatever broken bytes lead it to
            problem = why(error)
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


# -- decoding --------------------------------------------------------------------------------------


def decode_part(opening: Opening, role: str) -> Array:
    """Decode one part, [N, C, T, H, W]; clips that are left out are noted and taken out."""
    part = opening.parts[role]
    quiet = len(part) < MANY or not sys.stderr.isatty()
    with for_terminal(quiet).task(f"decoding {role} clips", len(part)) as update:
        out, kept = read_places(opening, part, np.arange(len(part)), update)
    opening.parts[role] = part.take(kept)
    return out if kept.all() else out[kept]


def read_places(
    opening: Opening,
    part: Part[Clips],
    places: Array,
    update: Callable[[int], None] = lambda done: None,
) -> tuple[Array, Array]:
    """Decode the clips at `places` [n] of a part: [n, C, T, H, W], and which of them stay."""
    out = np.zeros((len(places), *opening.shape), opening.dtype)
    kept = np.ones(len(places), bool)

    def work(at: int) -> Outcome:
        row = int(part.rows[places[at]])
        return read_clip(part.items, row, opening.sampling, opening.geometry, out[at])

    threads = 1 if part.items.in_memory else min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for at, (tally, problem, length) in enumerate(pool.map(work, range(len(places)))):
            opening.tally.add(tally)
            kept[at] = _noted(opening, part, int(places[at]), problem, length)
            update(at + 1)
    if opening.dtype.kind == "f":
        _require_finite(out, part, places)
    return out, kept


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
    return opening.sampling.short in REPEATED


def _require_finite(clips: Array, part: Part[Clips], places: Array) -> None:
    for place, clip in zip(places, clips, strict=True):
        bad = int((~np.isfinite(clip)).sum())
        if bad:
            raise UserError(
                f"{bad} pixels of clip {part.items.name(int(part.rows[place]))} of "
                f"{part.split!r} are NaN or infinite",
                expected="finite pixels",
            )


def settle(opening: Opening, clips: dict[str, Array] | None, options: VideoData) -> None:
    """Refuse a set with too many bad clips, drop what cannot be trained on, and say so."""
    bad, short, sampling = opening.failures, opening.short, opening.sampling
    require_few(bad, opening.total + len(bad), options.max_corrupt, "clips", NAMED)
    if short and sampling.short == "refuse":
        raise UserError(
            f"{len(short)} clips have fewer frames than asked for: {shown(short, NAMED)}",
            expected=f"at least {sampling.needs} frames",
            hint="Lower data.frames, or set data.short to hold, loop or drop.",
        )
    before = opening.parts
    opening.parts, opening.names = keep_trained(before, opening.names, opening.notes, "clip")
    for role, part in opening.parts.items():
        if clips is not None and len(part) < len(before[role]):
            clips[role] = clips[role][np.isin(before[role].rows, part.rows)]
    opening.notes += dropped(bad, "unreadable clips", NAMED)
    if short:
        done = {"hold": "hold their last frame", "loop": "start again", "drop": "are left out"}
        opening.notes.append(f"{len(short)} short clips {done[sampling.short]}")
    opening.say_altered("frames")
