"""Open image sets: find, split, decode, measure, and keep on a device or on disk.

Shape suffixes: N items of a part, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.images.arrays import require_finite
from mmdd.modalities.images.decode import Geometry, Tally, choose_geometry
from mmdd.modalities.images.normalise import Normalise
from mmdd.modalities.images.options import ImageData
from mmdd.modalities.images.pixels import ImageReader, Pixels, read_all
from mmdd.modalities.images.raw import RawImages
from mmdd.modalities.images.space import MOST_WHITENED, Measures, Space, at_random
from mmdd.modalities.images.whiten import require_small
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.parts import Parts, keep_trained, make_parts
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.tables.streaming import reading_processes, told
from mmdd.modality import DataInfo, Splits
from mmdd.progress import for_terminal
from mmdd.real import RealData, ResidentData
from mmdd.streamed import StreamedData, WorkerPool

__all__ = ["Normalise", "open_images"]

SAMPLE_HEADERS = 1000  # images whose size and colours are looked at
SAMPLE_DISK = 10_000  # images of a disk set that are measured (unless whitened) and checked
SAMPLE_BYTES = 2**26  # decoded at once while a disk set is measured
MANY = 20_000  # images whose decoding deserves a bar
NAMED_FAILURES = 5


@dataclasses.dataclass
class Opening:
    """A set on its way from parts to data.

    Attributes
    ----------
    parts: train, and validation and test where there are any.
    names: of the classes.
    geometry: the shape of all images.
    dtype: of the pixels as kept.
    notes: sentences for the user.
    tally: what decoding did; failures carry their description instead of a position.
    """

    parts: Parts[Pixels]
    names: tuple[str, ...]
    geometry: Geometry
    dtype: np.dtype[Any]
    notes: list[str]
    tally: Tally = dataclasses.field(default_factory=Tally)
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Size of all parts once decoded."""
        items = sum(len(part) for part in self.parts.values())
        return items * int(np.prod(self.geometry.shape)) * self.dtype.itemsize


def open_images(source: Any, options: ImageData, device: torch.device | str = "cpu") -> Splits:
    """Open a set of labelled images.

    Parameters
    ----------
    source: what `options.source` may be (the built-in "digits", a Hub name, a local folder or
        file), or from Python: a ``datasets`` Dataset or DatasetDict, a map-style torch Dataset of
        (image, label), a pair (images, labels), or a dict of these by split. None for
        `options.source`.
    options: how to read it.
    device: where batches are delivered, [n, C, H, W] float32, normalised by the measured mean and
        std of the training part, and whitened if so chosen. Sources of floats keep their range;
        other pixels are [0, 1] before they are normalised.

    Errors
    ------
    UserError, one line, for anything about the source or the options that cannot be used.
    """
    opened = open_source(source, options, RawImages(options))
    parts, names, notes = make_parts(opened, options, "image")
    opening = _prepare(parts, names, notes, options)
    if options.whiten == "zca":
        require_small(opening.geometry.shape)
    resident = options.store == "device" or (
        options.store == "auto" and opening.nbytes <= options.max_resident_bytes
    )
    build = _resident if resident else _streamed
    data, space, digest = build(opening, options, torch.device(device))
    opening.notes += _decoding_notes(opening)
    info = DataInfo(
        modality="images",
        task="classification",
        source=opened.name,
        shape=opening.geometry.shape,
        classes=len(opening.names),
        names=opening.names,
        fingerprint=digest,
        normalisation=space.normalisation,
        columns=dict(opened.columns),
        sizes={role: len(data.get(role, ())) for role in ("train", "validation", "test")},
        notes=tuple(opening.notes),
        tensors=space.tensors,
    )
    return Splits(data["train"], data.get("validation"), data.get("test"), info)


def _prepare(
    parts: Parts[Pixels], names: tuple[str, ...], notes: list[str], options: ImageData
) -> Opening:
    """Choose the shape that the images are brought to."""
    train = parts["train"]
    rows = train.rows[_spread(len(train), SAMPLE_HEADERS)]
    headers = [head for head in train.items.headers(rows) if head is not None]
    if not headers:
        raise UserError(
            f"no image of split {train.split!r} can be opened, e.g. {train.items.name(rows[0])}"
        )
    geometry, found = choose_geometry(headers, options.height_width, options.channels)
    kinds = {role: part.items.dtype for role, part in parts.items()}
    if len(set(kinds.values())) > 1:
        shown = {role: str(kind) for role, kind in kinds.items()}
        raise UserError("the splits differ in type", got=shown, expected="all bytes or all floats")
    return Opening(parts, names, geometry, train.items.dtype, [*notes, *found])


def _spread(count: int, most: int) -> Array:
    """Up to `most` positions of `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


Built = tuple[dict[str, RealData], Space, str]
"""The parts as data, the space of their inputs, and the fingerprint."""


def _resident(opening: Opening, options: ImageData, device: torch.device) -> Built:
    """Decode everything once and keep it on the device."""
    images = {role: _decode(opening, role) for role in opening.parts}
    _require_few_failures(opening, options)
    _drop_untrained(opening, images)
    measures = Measures(opening.geometry.shape, options, device)
    quiet = not (measures.takes_long and sys.stderr.isatty())
    with for_terminal(quiet).task("measuring train images", len(images["train"])) as update:
        measures.add(images["train"], update)
    space = measures.space(opening.notes)
    digest = _digest(opening, images, options)
    data: dict[str, RealData] = {}
    for role in list(images):
        codes = torch.from_numpy(opening.parts[role].codes)
        pixels = torch.from_numpy(images.pop(role))  # so that a GPU's copy is the only one left
        data[role] = ResidentData(
            pixels, codes, codes, len(opening.names), prepare=space.prepare, device=device
        )
    return data, space, digest


def _decode(opening: Opening, role: str) -> Array:
    """Decode one part, [N, C, H, W]; unreadable images are noted and taken out."""
    part = opening.parts[role]
    quiet = len(part) < MANY or not sys.stderr.isatty()
    with for_terminal(quiet).task(f"decoding {role} images", len(part)) as update:
        images, tally = read_all(part.items, part.rows, opening.geometry, update=update)
    kept = _note_failures(opening, role, tally)
    require_finite(images, part.rows, f" of {part.split}")
    if not kept.all():
        opening.parts[role] = part.take(kept)
        images = _keep(images, np.flatnonzero(kept))
    return images


def _note_failures(opening: Opening, role: str, tally: Tally, places: Array | None = None) -> Array:
    """Remember the failures of one part, read at `places` (all); return the mask of the others."""
    part = opening.parts[role]
    kept = np.ones(len(part), bool)
    for position, why in tally.failures:
        place = position if places is None else places[position]
        kept[place] = False
        name = part.items.name(int(part.rows[place]))
        opening.failures.append(f"{part.split} {name}: {why}")
    opening.tally.add(dataclasses.replace(tally, failures=[]))
    return kept


def _keep(images: Array, places: Array) -> Array:
    """Move the images at the ascending `places` to the front, block by block, in place."""
    for start in range(0, len(places), 1024):
        block = places[start : start + 1024]
        images[start : start + len(block)] = images[block]
    return images[: len(places)]


def _allowed(options: ImageData, total: int) -> int:
    limit = options.max_corrupt
    return limit if isinstance(limit, int) else int(limit * total)


def _require_few_failures(opening: Opening, options: ImageData) -> None:
    """Refuse a set with too many unreadable images."""
    bad = opening.failures
    total = sum(len(part) for part in opening.parts.values()) + len(bad)
    if len(bad) > _allowed(options, total):
        raise UserError(
            f"{len(bad)} of {total} images cannot be read: {_shown(bad)}",
            expected=f"at most {_allowed(options, total)}",
            hint="Repair the set, or allow more with data.max_corrupt",
        )


def _shown(failures: Sequence[str]) -> str:
    more = ", ..." if len(failures) > NAMED_FAILURES else ""
    return ", ".join(failures[:NAMED_FAILURES]) + more


def _drop_untrained(opening: Opening, images: dict[str, Array]) -> None:
    """Drop classes whose only training images were unreadable, from all parts."""
    before = opening.parts
    opening.parts, opening.names = keep_trained(before, opening.names, opening.notes, "image")
    for role, part in opening.parts.items():
        if len(part) < len(before[role]):
            places = np.flatnonzero(np.isin(before[role].rows, part.rows))
            images[role] = _keep(images[role], places)


def _digest(opening: Opening, images: dict[str, Array] | None, options: ImageData) -> str:
    """Fingerprint shapes, names, labels and pixels; without `images`, rows and what pixels are.

    Whitened images are other items, though the pixels are the same.
    """
    hasher = hashlib.sha256()
    if options.whiten != "none":
        hasher.update(repr((options.whiten, options.zca_eps)).encode())
    hasher.update(repr((opening.geometry.shape, str(opening.dtype), opening.names)).encode())
    for role, part in opening.parts.items():
        hasher.update(repr((role, len(part))).encode())
        hasher.update(np.ascontiguousarray(part.codes).data)
        if images is not None:
            hasher.update(np.ascontiguousarray(images[role]).data)
        else:
            hasher.update(part.items.token().encode())
            hasher.update(np.ascontiguousarray(part.rows).data)
    return hasher.hexdigest()


def _streamed(opening: Opening, options: ImageData, device: torch.device) -> Built:
    """Leave the images where they are; check and measure a sample of them."""
    measures = Measures(opening.geometry.shape, options, device)
    checked = {role: _check_sample(opening, role, measures) for role in opening.parts}
    _require_few_failures(opening, options)
    opening.parts, opening.names = keep_trained(
        opening.parts, opening.names, opening.notes, "image"
    )
    space = measures.space(opening.notes)
    splits = list({id(part.items): part.items for part in opening.parts.values()}.values())
    unit = 255 if opening.dtype == np.uint8 else 1
    total = sum(len(part) for part in opening.parts.values())
    blank = [mean * unit for mean in space.normalisation["mean"]]
    reader = ImageReader(splits, opening.geometry, blank, _allowed(options, total))
    inside = all(split.in_memory for split in splits)
    pool = WorkerPool(reader, reading_processes(options.workers, in_memory=inside))
    opening.notes.append(_streaming_note(opening, checked["train"], pool.workers))
    data: dict[str, RealData] = {}
    for role, part in opening.parts.items():
        codes = torch.from_numpy(part.codes)
        first = reader.offsets[[split is part.items for split in splits].index(True)]
        rows = torch.from_numpy(part.rows + first)
        data[role] = StreamedData(
            pool, codes, codes, len(opening.names), prepare=space.prepare, device=device, rows=rows
        )
    return data, space, _digest(opening, None, options)


def _check_sample(opening: Opening, role: str, measures: Measures) -> int:
    """Decode up to `SAMPLE_DISK` images of a part, more to whiten by them; return how many.

    The unreadable ones are taken out; those of training enter `measures`.
    """
    part, shape = opening.parts[role], opening.geometry.shape
    whitened = role == "train" and measures.covariance is not None
    places = at_random(len(part), MOST_WHITENED if whitened else SAMPLE_DISK)
    block = max(1, SAMPLE_BYTES // (int(np.prod(shape)) * opening.dtype.itemsize))
    kept = np.ones(len(part), bool)
    quiet = len(places) * int(np.prod(shape)) < SAMPLE_BYTES or not sys.stderr.isatty()
    with for_terminal(quiet).task(f"measuring {role} images", len(places)) as update:
        for start in range(0, len(places), block):
            some = places[start : start + block]
            images, tally = read_all(part.items, part.rows[some], opening.geometry)
            kept &= _note_failures(opening, role, tally, some)
            require_finite(images, part.rows[some], f" of {part.split}")
            if role == "train":
                measures.add(images[kept[some]])
            update(start + len(some))
    opening.parts[role] = part.take(kept)
    return len(places)


def _streaming_note(opening: Opening, checked: int, workers: int) -> str:
    part = opening.parts["train"]
    inside = part.items.in_memory
    return told("images", opening.nbytes, workers, in_memory=inside, checked=checked, of=len(part))


def _decoding_notes(opening: Opening) -> list[str]:
    """Say what decoding did to the images, beyond what was said when the shape was chosen."""
    tally, bad, notes = opening.tally, opening.failures, []
    if bad:
        notes.append(f"{len(bad)} unreadable images dropped: {_shown(bad)}")
    if tally.flattened:
        notes.append(f"{tally.flattened} images with transparency were put on white")
    if tally.greyed:
        notes.append(f"{tally.greyed} colour images were turned grey")
    if tally.resized and not any("resized" in note for note in opening.notes):
        height, width = opening.geometry.height, opening.geometry.width
        notes.append(f"{tally.resized} images of another size were fitted to {height}x{width}")
    return notes
