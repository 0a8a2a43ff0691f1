"""Open audio sets: find, split, decode to one rate and length, measure, and keep.

Shape suffixes: N clips of a part, T samples, M mel bands, F frames.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.audio import cached, streaming
from mmdd.modalities.audio.cached import Prepared
from mmdd.modalities.audio.clips import Clips
from mmdd.modalities.audio.decode import Framing, Header, Tally, after, even, soundfile
from mmdd.modalities.audio.normalise import Normalisation, fit, sounding
from mmdd.modalities.audio.options import AudioData
from mmdd.modalities.audio.raw import RawAudio
from mmdd.modalities.audio.reading import Read, read_all, shape_of
from mmdd.modalities.audio.spectra import LogMel, choose_spectrum
from mmdd.modalities.tables.arrays import spread
from mmdd.modalities.tables.failures import dropped, require_few
from mmdd.modalities.tables.parts import Part, Parts, keep_trained, make_parts
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.tables.stored import hash_parts
from mmdd.modality import DataInfo, Splits
from mmdd.progress import for_terminal
from mmdd.real import RealData, ResidentData
from mmdd.trees import Tree

SAMPLE_HEADERS = 20_000  # clips whose rate and length are looked at
SAMPLE_TRIMMED = 2000  # clips that are decoded to learn how long they are without silence
FITTING_SHARE = 0.95
SHORTEST = 16
MANY = 5000  # clips whose decoding deserves a bar


def open_audio(source: Any, options: AudioData, device: torch.device | str = "cpu") -> Splits:
    """Open a set of labelled clips.

    Parameters
    ----------
    source: what `options.source` may be (a Hub name, a local folder or file), or from Python: a
        ``datasets`` Dataset or DatasetDict, a map-style torch Dataset of (clip, label), a pair
        (clips, labels) where clips are [N, T] or a list of arrays, or a dict of these by split.
        None for `options.source`.
    options: how to read it.
    device: where batches are delivered: [n, 1, M, F] or [n, 1, T] float32, normalised by what was
        measured on the training part; with `options.mask` a dict of them and the mask.

    Errors
    ------
    UserError, one line, for anything about the source or the options that cannot be used.
    """
    soundfile()  # what is distilled in the end is written by it
    opened = open_source(source, options, RawAudio(options))
    parts, names, notes = make_parts(opened, options, "clip")
    prepared = None if options.store == "disk" else _prepared(parts, options)
    resident, seen = prepared is not None, parts
    if prepared is None:
        prepared, seen = _sampled(parts, options)
        notes.append(streaming.note(parts, seen, options))
    notes += _reading_notes(prepared, seen, options)
    parts, names = _without_failures(parts, seen, names, prepared, notes)
    normalisation = _normalise(prepared.reads, options)
    shape = shape_of(prepared.framing, prepared.spectrum)
    info = DataInfo(
        modality="audio",
        task="classification",
        source=opened.name,
        shape=shape,
        classes=len(names),
        names=names,
        fingerprint=_digest(parts, names, prepared, options, resident),
        normalisation=_facts(prepared, normalisation, options),
        columns=dict(opened.columns),
        sizes={role: len(parts.get(role, ())) for role in ("train", "validation", "test")},
        notes=tuple(notes),
    )
    if resident:
        data = {role: _resident(parts[role], prepared, role, info, device) for role in parts}
    else:
        classes = len(names)
        data = streaming.streamed(parts, prepared, normalisation, classes, options, device)
    return Splits(data["train"], data.get("validation"), data.get("test"), info)


# -- reading ---------------------------------------------------------------------------------------


def _prepared(parts: Parts[Clips], options: AudioData) -> Prepared | None:
    """Read all parts, or find their spectra where an earlier run left them; None without room."""
    place = cached.place_of(parts, options) if _cachable(options) else None
    found = None if place is None else cached.load(place)
    if found is None:
        framing, spectrum = _way(parts, options)
        if not _has_room(parts, framing, spectrum, options):
            return None
        reads = {role: _read(part, role, framing, spectrum) for role, part in parts.items()}
        found = Prepared(framing, spectrum, reads)
    elif not _has_room(parts, found.framing, found.spectrum, options):
        return None
    else:
        place = None
    _require_few_failures(parts, found, options)
    if place is not None:
        cached.save(place, found)
    return found


def _way(parts: Parts[Clips], options: AudioData) -> tuple[Framing, LogMel | None]:
    framing = choose_framing(parts["train"], options)
    return framing, choose_spectrum(options, framing) if options.space == "log-mel" else None


def _sampled(parts: Parts[Clips], options: AudioData) -> tuple[Prepared, Parts[Clips]]:
    """Read some clips of every part, evenly spread: those that stay on disk are judged by them."""
    framing, spectrum = _way(parts, options)
    most = streaming.SAMPLE_DISK
    seen = {role: part.take(spread(len(part), most)) for role, part in parts.items()}
    reads = {role: _read(part, role, framing, spectrum) for role, part in seen.items()}
    found = Prepared(framing, spectrum, reads)
    _require_few_failures(seen, found, options)
    return found, seen


def _cachable(options: AudioData) -> bool:
    return options.cache and options.space == "log-mel"


def _read(part: Part[Clips], role: str, framing: Framing, spectrum: LogMel | None) -> Read:
    quiet = len(part) < MANY or not sys.stderr.isatty()
    with for_terminal(quiet).task(f"decoding {role} clips", len(part)) as update:
        return read_all(part.items, part.rows, framing, spectrum, update)


def choose_framing(train: Part[Clips], options: AudioData) -> Framing:
    """Fill in the rate and the length that the options leave open, from the training clips.

    Errors: UserError when no clip can be opened, or when the clips are next to nothing.
    """
    rows = train.rows[spread(len(train), SAMPLE_HEADERS)]
    heads = [head for head in train.items.headers(rows) if head is not None and head.samples]
    if not heads:
        first = int(train.rows[0])
        raise UserError(
            f"no clip of split {train.split!r} can be opened, or all are empty, "
            f"e.g. {train.items.name(first)}",
            hint="Audio files of the formats of libsndfile are read: WAV, FLAC, OGG, MP3",
        )
    counts = collections.Counter(head.rate for head in heads)
    rate = options.rate or max(counts, key=lambda found: (counts[found], found))
    samples = _samples(train, heads, rate, options)
    if samples < SHORTEST:
        raise UserError(
            f"clips of {samples} samples are too short",
            expected=f"at least {SHORTEST} samples at {rate} Hz",
            hint="Set data.length, or data.rate higher",
        )
    return Framing(rate, samples, options.crop, options.trim)


def _samples(train: Part[Clips], heads: Sequence[Header], rate: int, options: AudioData) -> int:
    if isinstance(options.length, int):
        return options.length
    if options.length is not None:
        return round(options.length * rate)
    lengths = [after(head, rate) for head in heads]
    if options.trim is not None:
        lengths = _trimmed_lengths(train, Framing(rate, 1, options.crop, options.trim)) or lengths
    return int(np.quantile(lengths, FITTING_SHARE, method="higher"))


def _trimmed_lengths(train: Part[Clips], framing: Framing) -> list[int]:
    """Samples without silence: only decoding tells."""
    lengths = []
    for found in train.items.read(train.rows[spread(len(train), SAMPLE_TRIMMED)]):
        try:
            if not isinstance(found, Exception):
                lengths.append(len(even(*found, framing, Tally())))
        except ValueError:
            continue  # said when the clip is read
    return lengths


def _has_room(
    parts: Parts[Clips], framing: Framing, spectrum: LogMel | None, options: AudioData
) -> bool:
    need = 4 * sum(map(len, parts.values())) * math.prod(shape_of(framing, spectrum))
    return options.store == "device" or need <= options.max_resident_bytes


# -- what cannot be read ---------------------------------------------------------------------------


def _failures(parts: Parts[Clips], prepared: Prepared) -> list[str]:
    return [
        f"{parts[role].split} {parts[role].items.name(int(parts[role].rows[place]))}: {why}"
        for role, read in prepared.reads.items()
        for place, why in read.tally.failures
    ]


def _require_few_failures(parts: Parts[Clips], prepared: Prepared, options: AudioData) -> None:
    total = sum(map(len, parts.values()))
    require_few(_failures(parts, prepared), total, options.max_corrupt, "clips")


def _without_failures(
    parts: Parts[Clips],
    seen: Parts[Clips],
    names: tuple[str, ...],
    prepared: Prepared,
    notes: list[str],
) -> tuple[Parts[Clips], tuple[str, ...]]:
    """Take unreadable clips out, and classes that have no training clip without them.

    `seen` are the clips that were read: all of `parts`, or a sample of those that stay on disk.
    """
    if seen is not parts:
        bad = {role: part.rows[~prepared.reads[role].kept] for role, part in seen.items()}
        prepared.reads = {role: read.take(read.kept) for role, read in prepared.reads.items()}
        left = {role: part.take(~np.isin(part.rows, bad[role])) for role, part in parts.items()}
        return keep_trained(left, names, notes, "clip")
    readable = {role: part.take(prepared.reads[role].kept) for role, part in parts.items()}
    reads = {role: read.take(read.kept) for role, read in prepared.reads.items()}
    parts, names = keep_trained(readable, names, notes, "clip")
    for role, part in parts.items():
        if len(part) < len(readable[role]):
            reads[role] = reads[role].take(np.isin(readable[role].rows, part.rows))
    prepared.reads = reads
    return parts, names


# -- what the learner reads ------------------------------------------------------------------------


def _normalise(reads: Mapping[str, Read], options: AudioData) -> Normalisation:
    """Measure the training part and normalise all parts in place."""
    train = reads["train"]
    found = fit(train.values, train.lengths if options.mask else None, options.normalise == "bands")
    for read in reads.values():
        found.apply_(read.values)
        if options.mask:  # what fills a clip up is the mean, and hidden
            mask = sounding(read.lengths, read.values.shape[-1])
            read.values *= mask.reshape(len(mask), *(1,) * (read.values.ndim - 2), -1)
    return found


def _resident(
    part: Part[Clips], prepared: Prepared, role: str, info: DataInfo, device: torch.device | str
) -> RealData:
    read = prepared.reads.pop(role)  # so that a GPU's copy is the only one left
    values: Tree = torch.from_numpy(read.values)
    if info.normalisation["mask"]:
        mask: Tensor = torch.from_numpy(sounding(read.lengths, read.values.shape[-1]))
        values = {"audio": values, "mask": mask}
    codes = torch.from_numpy(part.codes)
    return ResidentData(values, codes, codes, info.classes, device=device)


def _facts(prepared: Prepared, normalisation: Normalisation, options: AudioData) -> dict[str, Any]:
    """What an artifact keeps of the space, as plain JSON values."""
    spectrum = {} if prepared.spectrum is None else dataclasses.asdict(prepared.spectrum)
    return {
        "space": options.space,
        "rate": prepared.framing.rate,
        "samples": prepared.framing.samples,
        "mask": options.mask,
        **spectrum,
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
        "range": [normalisation.low, normalisation.high],
        "bounds": [normalisation.lowest, normalisation.highest],
    }


def _digest(
    parts: Parts[Clips],
    names: tuple[str, ...],
    prepared: Prepared,
    options: AudioData,
    resident: bool,
) -> str:
    """Fingerprint what was decoded, its labels, and the way to inputs; on disk, rows and sources.

    Not the inputs: the last bits of a spectrum depend on the processor.
    """
    spectrum = None if prepared.spectrum is None else dataclasses.asdict(prepared.spectrum)
    way = [options.space, options.mask, options.normalise, spectrum]
    hasher = hashlib.sha256(json.dumps([*way, dataclasses.asdict(prepared.framing)]).encode())
    hasher.update(repr(names).encode())
    read = {role: read.digests for role, read in prepared.reads.items()} if resident else None
    hash_parts(hasher, parts, read)
    return hasher.hexdigest()


def _reading_notes(prepared: Prepared, parts: Parts[Clips], options: AudioData) -> list[str]:
    """Say what was decided, and what decoding did to the clips."""
    framing, tally = prepared.framing, Tally()
    for read in prepared.reads.values():
        tally.add(read.tally)
    samples, rate = framing.samples, framing.rate
    note = f"clips are {samples / rate:.3g} s long ({samples:,} samples at {rate:,} Hz)"
    note += ", what 95 % of training fits into" if options.length is None else ""
    kept = "middle" if framing.crop == "centre" else "start"
    cut = f"{tally.cropped:,} longer ones keep their {kept}" if tally.cropped else "none is longer"
    notes = [f"{note}: shorter ones end in silence, {cut}"]
    if prepared.spectrum is not None:
        made = prepared.spectrum
        frames = made.frames(samples)
        notes.append(
            f"log-mel spectra: {made.mels} bands x {frames} frames, windows of {made.n_fft} "
            f"samples every {made.hop}"
        )
    if tally.resampled:
        rates = ", ".join(f"{found:,} Hz" for found in sorted(tally.resampled))
        count = sum(tally.resampled.values())
        notes.append(f"{count:,} clips of other rates ({rates}) were resampled to {rate:,} Hz")
    if tally.mixed:
        notes.append(f"{tally.mixed:,} clips of several channels were mixed to one")
    if tally.silent:
        notes.append(f"{tally.silent:,} clips are silent")
    return notes + dropped(_failures(parts, prepared), "unreadable clips")
