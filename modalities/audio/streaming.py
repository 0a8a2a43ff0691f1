"""Clips that stay on disk: decoded and turned into inputs by worker processes at every read.

Shape suffixes: N clips of a part, n of them, T samples, M mel bands, F frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mmdd.modalities.audio.cached import Prepared
from mmdd.modalities.audio.clips import Clips
from mmdd.modalities.audio.decode import Framing
from mmdd.modalities.audio.normalise import Normalisation
from mmdd.modalities.audio.options import AudioData
from mmdd.modalities.audio.reading import blank, read_chunk
from mmdd.modalities.audio.spectra import LogMel
from mmdd.modalities.tables.failures import allowed
from mmdd.modalities.tables.parts import Parts
from mmdd.modalities.tables.streaming import NumberedReader, processes_for, sharing, splits_of, told
from mmdd.real import RealData
from mmdd.trees import Tree

SAMPLE_DISK = 4000  # clips of a disk set that are measured and checked


@dataclasses.dataclass(kw_only=True)
class ClipReader(NumberedReader[Clips]):
    """Reads numbered clips of several splits.

    Attributes
    ----------
    framing, spectrum: how a clip becomes an input; no spectrum for waveforms.
    """

    one, instead = "clip", "silence"
    framing: Framing
    spectrum: LogMel | None

    def __call__(self, rows: list[int]) -> dict[str, Tensor]:
        """Read the clips numbered `rows`: ``audio`` [n, 1, ...], not normalised, ``lengths`` [n].

        One spectrum at a time: those of a batch differ in their last bits by its size.
        """
        made = blank(len(rows), self.framing, self.spectrum)
        for place, number in enumerate(rows):
            clips, row = self.find(number)
            here = slice(place, place + 1)
            one = np.array([row])
            tally = read_chunk(clips, one, self.framing, self.spectrum, made, here)
            for _, why in tally.failures:
                self.report(number, clips.name(row), why)
        return {"audio": torch.from_numpy(made.values), "lengths": torch.from_numpy(made.lengths)}


@dataclasses.dataclass(frozen=True)
class ToInputs:
    """What `ClipReader` read, normalised on the device; with its mask where one is asked for."""

    normalisation: Normalisation
    mask: bool

    def __call__(self, read: Mapping[str, Tensor]) -> Tree:
        """``audio`` [n, 1, ...] and ``lengths`` [n] to inputs."""
        values = self.normalisation(read["audio"])
        if not self.mask:
            return values
        places = torch.arange(values.shape[-1], device=values.device)
        mask = places < read["lengths"][:, None]
        return {"audio": values * mask.view(len(mask), *[1] * (values.ndim - 2), -1), "mask": mask}


def streamed(
    parts: Parts[Clips],
    prepared: Prepared,
    normalisation: Normalisation,
    classes: int,
    options: AudioData,
    device: torch.device | str,
) -> dict[str, RealData]:
    """All parts as sets that share one reader and its processes."""
    reader = ClipReader(
        parts=splits_of(parts),
        limit=allowed(options.max_corrupt, sum(map(len, parts.values()))),
        framing=prepared.framing,
        spectrum=prepared.spectrum,
    )
    prepare, workers = ToInputs(normalisation, options.mask), processes_for(parts, options.workers)
    return sharing(parts, reader, classes, workers, prepare, device)


def note(parts: Parts[Clips], seen: Parts[Clips], options: AudioData) -> str:
    """Say where the clips stay, and what is known of them."""
    said = told("clips", parts, processes_for(parts, options.workers))
    if len(seen["train"]) < len(parts["train"]):
        said += f"; what is said of them comes from {len(seen['train']):,} training clips"
    return said
