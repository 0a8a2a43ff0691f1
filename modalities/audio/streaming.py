"""Clips that stay on disk: decoded and turned into inputs by worker processes at every read.

Shape suffixes: N clips of a part, n of them, T samples, M mel bands, F frames.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.audio.cached import Prepared
from mmdd.modalities.audio.clips import Clips
from mmdd.modalities.audio.decode import Framing
from mmdd.modalities.audio.normalise import Normalisation
from mmdd.modalities.audio.options import AudioData
from mmdd.modalities.audio.reading import blank, read_chunk
from mmdd.modalities.audio.spectra import LogMel
from mmdd.modalities.tables.parts import Parts
from mmdd.modalities.tables.streaming import reading_processes
from mmdd.real import RealData
from mmdd.streamed import StreamedData, WorkerPool
from mmdd.trees import Tree

SAMPLE_DISK = 4000  # clips of a disk set that are measured and checked

log = logging.getLogger(__name__)


@dataclasses.dataclass
class ClipReader:
    """Reads numbered clips of several splits: what the workers of a `StreamedData` hold.

    Clips were checked by sample only, so one may turn out unreadable here. Silence takes its place
    then, and it is said once; too many are an error.

    Attributes
    ----------
    parts: the splits; row r of part k is number ``offsets[k] + r``.
    framing, spectrum: how a clip becomes an input; no spectrum for waveforms.
    limit: unreadable clips that one process tolerates.
    """

    parts: Sequence[Clips]
    framing: Framing
    spectrum: LogMel | None
    limit: int
    _bad: set[int] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.offsets = np.cumsum([0, *(len(part) for part in self.parts)])

    def __call__(self, rows: list[int]) -> dict[str, Tensor]:
        """Read the clips numbered `rows`: ``audio`` [n, 1, ...], not normalised, ``lengths`` [n].

        One spectrum at a time: those of a batch differ in their last bits by its size.
        """
        made = blank(len(rows), self.framing, self.spectrum)
        for place, number in enumerate(rows):
            owner = int(np.searchsorted(self.offsets, number, side="right")) - 1
            clips, row = self.parts[owner], np.array([number - self.offsets[owner]])
            here = slice(place, place + 1)
            tally = read_chunk(clips, row, self.framing, self.spectrum, made, here)
            for _, why in tally.failures:
                self._report(number, clips.name(int(row[0])), why)
        return {"audio": torch.from_numpy(made.values), "lengths": torch.from_numpy(made.lengths)}

    def _report(self, number: int, name: str, why: str) -> None:
        if number in self._bad:
            return
        self._bad.add(number)
        log.warning("clip %s cannot be read (%s); silence takes its place", name, why)
        if len(self._bad) > self.limit:
            raise UserError(
                f"more than {self.limit} clips cannot be read, the last one {name}: {why}",
                hint="Repair the set, or allow more with data.max_corrupt",
            )


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
    splits = list({id(part.items): part.items for part in parts.values()}.values())
    limit = options.max_corrupt
    total = sum(map(len, parts.values()))
    allowed = limit if isinstance(limit, int) else int(limit * total)
    reader = ClipReader(splits, prepared.framing, prepared.spectrum, allowed)
    pool, prepare = (
        WorkerPool(reader, workers(parts, options)),
        ToInputs(normalisation, options.mask),
    )
    data: dict[str, RealData] = {}
    for role, part in parts.items():
        codes = torch.from_numpy(part.codes)
        first = reader.offsets[[split is part.items for split in splits].index(True)]
        rows = torch.from_numpy(part.rows + first)
        data[role] = StreamedData(
            pool, codes, codes, classes, prepare=prepare, device=device, rows=rows
        )
    return data


def workers(parts: Parts[Clips], options: AudioData) -> int:
    """Processes that read the parts; see `reading_processes`."""
    inside = all(part.items.in_memory for part in parts.values())
    return reading_processes(options.workers, in_memory=inside)


def note(parts: Parts[Clips], seen: Parts[Clips], options: AudioData) -> str:
    """Say where the clips stay, and what is known of them."""
    inside, count = parts["train"].items.in_memory, workers(parts, options)
    told = f"clips stay {'in main memory' if inside else 'on disk'}, read by "
    told += f"{count} processes" if count else "this process"
    if len(seen["train"]) < len(parts["train"]):
        told += f"; what is said of them comes from {len(seen['train']):,} training clips"
    return told
