"""Computed spectra on disk, found again by the fingerprint of the clips and the options.

One safetensors file per set and choice of options, in the folder ``audio`` of the cache. Nothing
is pickled; a file that cannot be read is made again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdd import files
from mmdd.cache import cache_folder
from mmdd.errors import UserError
from mmdd.modalities.audio.clips import Clips
from mmdd.modalities.audio.decode import Framing, Tally
from mmdd.modalities.audio.options import AudioData
from mmdd.modalities.audio.reading import Read
from mmdd.modalities.audio.spectra import LogMel
from mmdd.modalities.tables.parts import Parts

VERSION = 1
DECIDING = ("rate", "array_rate", "length", "crop", "trim", "n_fft", "hop", "mels", "floor")
ARRAYS = ("values", "lengths", "digests", "kept")


@dataclasses.dataclass
class Prepared:
    """All parts as read, and how: `spectrum` is None for waveforms."""

    framing: Framing
    spectrum: LogMel | None
    reads: dict[str, Read]


def place_of(parts: Parts[Clips], options: AudioData) -> Path:
    """The file for these clips under these options."""
    hasher = hashlib.sha256(repr(VERSION).encode())
    chosen = options.model_dump(include=set(DECIDING))
    hasher.update(json.dumps(chosen, sort_keys=True).encode())
    for role, part in parts.items():
        hasher.update(repr((role, len(part), part.items.token())).encode())
        hasher.update(np.ascontiguousarray(part.rows).data)
    return cache_folder() / "audio" / f"{hasher.hexdigest()[:32]}.safetensors"


def load(place: Path) -> Prepared | None:
    """What `save` wrote, or None where there is nothing that can be read."""
    if not place.is_file():
        return None
    try:
        tensors, metadata = files.load_tensors(place)
        about = json.loads(metadata["mmdd"])
        reads = {}
        for role, tally in about["tally"].items():
            arrays = {name: tensors[f"{role}.{name}"].numpy() for name in ARRAYS}
            reads[role] = Read(**arrays, tally=_tally(tally))
        spectrum = LogMel(**about["spectrum"])
        return Prepared(Framing(**about["framing"]), spectrum, reads)
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _tally(about: Mapping[str, Any]) -> Tally:
    counts = {name: about[name] for name in ("mixed", "cropped", "silent")}
    resampled = collections.Counter({int(rate): n for rate, n in about["resampled"].items()})
    failures = [(int(place), str(why)) for place, why in about["failures"]]
    return Tally(failures, resampled, **counts)


def save(place: Path, prepared: Prepared) -> None:
    """Write the spectra; a full or read-only disk only costs the next run their computation."""
    assert prepared.spectrum is not None, "waveforms are read again, not kept"
    tensors = {
        f"{role}.{name}": torch.from_numpy(getattr(read, name))
        for role, read in prepared.reads.items()
        for name in ARRAYS
    }
    about = {
        "framing": dataclasses.asdict(prepared.framing),
        "spectrum": dataclasses.asdict(prepared.spectrum),
        "tally": {role: dict(vars(read.tally)) for role, read in prepared.reads.items()},
    }
    with contextlib.suppress(OSError, UserError):
        place.parent.mkdir(parents=True, exist_ok=True)
        files.save_tensors(place, tensors, {"mmdd": json.dumps(about)})
