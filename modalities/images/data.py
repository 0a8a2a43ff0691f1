"""Open image sets: find, split, decode, measure, and keep on a device or on disk.

Shape suffixes: N items of a part, C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from typing import Any

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.images.arrays import require_finite
from mmdd.modalities.images.decode import Tally, choose_geometry
from mmdd.modalities.images.normalise import Normalise
from mmdd.modalities.images.opening import Opening, require_one_dtype
from mmdd.modalities.images.options import ImageData
from mmdd.modalities.images.pixels import ImageReader, Pixels, read_all
from mmdd.modalities.images.raw import RawImages
from mmdd.modalities.images.space import MOST_WHITENED, Measures, Space
from mmdd.modalities.images.whiten import require_small
from mmdd.modalities.tables.arrays import Array, at_random, spread
from mmdd.modalities.tables.failures import allowed, dropped, require_few
from mmdd.modalities.tables.parts import Parts, keep_trained, make_parts, resident
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.tables.stored import hash_parts
from mmdd.modalities.tables.streaming import processes_for, sharing, splits_of, told_of_sample
from mmdd.modality import DataInfo, Splits
from mmdd.progress import for_terminal
from mmdd.real import RealData

__all__ = ["Normalise", "open_images"]

SAMPLE_HEADERS = 1000  # images whose size and colours are looked at
SAMPLE_DISK = 10_000  # images of a disk set that are measured (unless whitened) and checked
SAMPLE_BYTES = 2**26  # decoded at once while a disk set is measured
MANY = 20_000  # images whose decoding deserves a bar


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
    fits = options.store == "device" or (
        options.store == "auto" and opening.nbytes <= options.max_resident_bytes
    )
    build = _resident if fits else _streamed
    data, space, digest = build(opening, options, torch.device(device))
    opening.notes += dropped(opening.failures, "unreadable images")
    opening.say_altered("images")
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
) -> Opening[Pixels]:
    """Choose the shape that the images are brought to."""
    train = parts["train"]
    rows = train.rows[spread(len(train), SAMPLE_HEADERS)]
    headers = [head for head in train.items.headers(rows) if head is not None]
    if not headers:
        raise UserError(
            f"no image of split {train.split!r} can be opened, e.g. {train.items.name(rows[0])}"
        )
    geometry, found = choose_geometry(headers, options.height_width, options.channels)
    require_one_dtype(parts)
    return Opening(parts=parts, names=names, geometry=geometry, notes=[*notes, *found])


Built = tuple[dict[str, RealData], Space, str]
"""The parts as data, the space of their inputs, and the fingerprint."""


def _resident(opening: Opening[Pixels], options: ImageData, device: torch.device) -> Built:
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
    data = resident(opening.parts, images, len(opening.names), space.prepare, device)
    return data, space, digest


def _decode(opening: Opening[Pixels], role: str) -> Array:
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


def _note_failures(
    opening: Opening[Pixels], role: str, tally: Tally, places: Array | None = None
) -> Array:
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


def _require_few_failures(opening: Opening[Pixels], options: ImageData) -> None:
    """Refuse a set with too many unreadable images."""
    bad = opening.failures
    require_few(bad, opening.total + len(bad), options.max_corrupt, "images")


def _drop_untrained(opening: Opening[Pixels], images: dict[str, Array]) -> None:
    """Drop classes whose only training images were unreadable, from all parts."""
    before = opening.parts
    opening.parts, opening.names = keep_trained(before, opening.names, opening.notes, "image")
    for role, part in opening.parts.items():
        if len(part) < len(before[role]):
            places = np.flatnonzero(np.isin(before[role].rows, part.rows))
            images[role] = _keep(images[role], places)


def _digest(opening: Opening[Pixels], images: dict[str, Array] | None, options: ImageData) -> str:
    """Fingerprint shapes, names, labels and pixels; without `images`, rows and what pixels are.

    Whitened images are other items, though the pixels are the same.
    """
    hasher = hashlib.sha256()
    if options.whiten != "none":
        hasher.update(repr((options.whiten, options.zca_eps)).encode())
    hasher.update(repr((opening.geometry.shape, str(opening.dtype), opening.names)).encode())
    hash_parts(hasher, opening.parts, images)
    return hasher.hexdigest()


def _streamed(opening: Opening[Pixels], options: ImageData, device: torch.device) -> Built:
    """Leave the images where they are; check and measure a sample of them."""
    measures = Measures(opening.geometry.shape, options, device)
    checked = {role: _check_sample(opening, role, measures) for role in opening.parts}
    _require_few_failures(opening, options)
    opening.parts, opening.names = keep_trained(
        opening.parts, opening.names, opening.notes, "image"
    )
    space = measures.space(opening.notes)
    unit = 255 if opening.dtype == np.uint8 else 1
    reader = ImageReader(
        parts=splits_of(opening.parts),
        limit=allowed(options.max_corrupt, opening.total),
        geometry=opening.geometry,
        blank=[mean * unit for mean in space.normalisation["mean"]],
    )
    workers, classes = processes_for(opening.parts, options.workers), len(opening.names)
    opening.notes.append(
        told_of_sample("images", opening.parts, workers, opening.nbytes, checked["train"])
    )
    data = sharing(opening.parts, reader, classes, workers, space.prepare, device)
    return data, space, _digest(opening, None, options)


def _check_sample(opening: Opening[Pixels], role: str, measures: Measures) -> int:
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
