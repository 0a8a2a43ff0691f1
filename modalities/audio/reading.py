"""Reading whole parts: clips to equal waveforms or spectra, in threads, with what went wrong.

Shape suffixes: N clips of a part, T samples, M mel bands, F frames.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mmdd.modalities.audio.clips import Clips
from mmdd.modalities.audio.decode import Framing, Tally, even, fit
from mmdd.modalities.audio.spectra import LogMel
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.failures import why

CHUNK = 64  # clips of one batch of spectra; always the same, so that the bits are too
MOST_THREADS = 16
DIGEST_BYTES = 16


@dataclasses.dataclass
class Read:
    """The clips of one part.

    Attributes
    ----------
    values: [N, 1, T] waveforms or [N, 1, M, F] log-mel spectra, float32, not normalised.
    lengths: [N] int64, samples or frames that are the clip's own.
    digests: [N, 16] uint8 of what was decoded, before anything was done to it.
    kept: [N] bool, false for a clip that could not be read.
    tally: what was done; its failures are sentences' ends by place.
    """

    values: Array
    lengths: Array
    digests: Array
    kept: Array
    tally: Tally

    def take(self, places: Array) -> Read:
        """Keep the clips at `places`, positions or a mask."""
        return Read(
            self.values[places],
            self.lengths[places],
            self.digests[places],
            self.kept[places],
            self.tally,
        )


def shape_of(framing: Framing, spectrum: LogMel | None) -> tuple[int, ...]:
    """(1, T) of waveforms, or (1, M, F) of spectra."""
    if spectrum is None:
        return (1, framing.samples)
    return (1, spectrum.mels, spectrum.frames(framing.samples))


def blank(count: int, framing: Framing, spectrum: LogMel | None) -> Read:
    """Room for `count` clips."""
    return Read(
        np.zeros((count, *shape_of(framing, spectrum)), np.float32),
        np.zeros(count, np.int64),
        np.zeros((count, DIGEST_BYTES), np.uint8),
        np.ones(count, bool),
        Tally(),
    )


def read_all(
    clips: Clips,
    rows: Array,
    framing: Framing,
    spectrum: LogMel | None,
    update: Callable[[int], None] = lambda done: None,
) -> Read:
    """Read the clips `rows` [N]; `update` is called with the number done.

    A clip that cannot be read is zero, not kept, and among the failures of the tally.
    """
    count = len(rows)
    made = blank(count, framing, spectrum)

    def work(start: int) -> tuple[int, Tally]:
        part = slice(start, min(start + CHUNK, count))
        tally = read_chunk(clips, rows[part], framing, spectrum, made, part)
        return part.stop, tally

    threads = 1 if clips.in_memory else min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for done, tally in pool.map(work, range(0, count, CHUNK)):
            made.tally.add(tally)
            update(done)
    return made


def read_chunk(
    clips: Clips, rows: Array, framing: Framing, spectrum: LogMel | None, made: Read, part: slice
) -> Tally:
    """Read the clips `rows` into the places `part` of `made`."""
    tally = Tally()
    waves = np.zeros((len(rows), framing.samples), np.float32)
    for place, found in enumerate(clips.read(rows)):
        at = part.start + place
        try:
            if isinstance(found, Exception):
                raise found
            samples, rate = found
            wave = even(samples, rate, framing, tally)
            made.lengths[at] = fit(wave, waves[place], framing, tally)
            made.digests[at] = _digest(samples, rate)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            made.kept[at] = False
            tally.failures.append((at, why(error)))
    if spectrum is None:
        made.values[part, 0] = waves
        return tally
    made.values[part, 0] = spectrum(torch.from_numpy(waves)).numpy()
    frames = made.lengths[part] // spectrum.hop + 1
    made.lengths[part] = np.minimum(frames, made.values.shape[-1])
    return tally


def _digest(samples: Array, rate: int) -> Array:
    hasher = hashlib.blake2b(repr((rate, samples.shape)).encode(), digest_size=DIGEST_BYTES)
    hasher.update(np.ascontiguousarray(samples).data)
    return np.frombuffer(hasher.digest(), np.uint8)
