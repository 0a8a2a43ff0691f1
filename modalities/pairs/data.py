"""Open sets of pairs: find, split, read both fields, bring them to vectors, keep on a device.

Shape suffixes: N items of a part, C captions, D numbers of a vector, K clusters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.images.arrays import require_finite
from mmdd.modalities.images.decode import Geometry, choose_geometry
from mmdd.modalities.images.pixels import Pixels, read_all
from mmdd.modalities.pairs import spaces
from mmdd.modalities.pairs.features import ImageModel
from mmdd.modalities.pairs.fields import Field, PairItems, Texts, Vectors
from mmdd.modalities.pairs.memory import PairsInMemory, Side, remember
from mmdd.modalities.pairs.merge import joined
from mmdd.modalities.pairs.options import PairData
from mmdd.modalities.pairs.raw import open_raw
from mmdd.modalities.pairs.spaces import Space
from mmdd.modalities.tables.arrays import Array, spread
from mmdd.modalities.tables.failures import dropped, require_few
from mmdd.modalities.tables.parts import Part, Parts, make_parts
from mmdd.modality import DataInfo, Splits
from mmdd.trees import Tree

ROLES = ("train", "validation", "test")
SAMPLE_HEADERS = 200  # images whose size and colours are looked at
NAMED_FAILURES = 3


@dataclasses.dataclass
class Values:
    """One field of one part.

    Attributes
    ----------
    values: [C] texts, [C, D] vectors, or [N, C, H, W] pixels.
    counts: [N] how many values each item has; 0 where it cannot be used.
    """

    values: Any
    counts: Array

    def kept(self, keep: Array) -> Values:
        """The values of the items in the mask `keep` [N]."""
        rows = np.repeat(keep, self.counts)
        if isinstance(self.values, list):
            found: Any = [value for value, stays in zip(self.values, rows, strict=True) if stays]
        else:
            found = self.values[rows]
        return Values(found, self.counts[keep])


@dataclasses.dataclass
class Opening:
    """A set on its way from parts to data.

    Attributes
    ----------
    values: of both fields, by part.
    """

    parts: Parts[PairItems]
    options: PairData
    notes: list[str]
    failures: list[str] = dataclasses.field(default_factory=list)
    values: dict[str, tuple[Values, Values]] = dataclasses.field(default_factory=dict)


def open_pairs(source: Any, options: PairData, device: torch.device | str = "cpu") -> Splits:
    """Open a set of pairs.

    Parameters
    ----------
    source: what `options.source` may be (a Hub name, a local folder or file), or from Python: a
        ``datasets`` Dataset or DatasetDict, a DataFrame, a tuple (first, second) of N values each,
        a dict of both by field, samples (first, second), or a dict of these by split. Values are
        images, vectors [N, D] or texts; the second field may have several for an item: lists of
        texts, or [N, k, D]. None for `options.source`.
    options: how to read it.
    device: where batches are delivered: ``{first: …, second: …}``, each vectors [n, D],
        pixels [n, C, H, W] or ``{"values": [n, L, h], "mask": [n, L]}``.

    Errors
    ------
    UserError, one line, for anything about the source or the options that cannot be used.
    """
    merges: list[str] = []
    opened = joined(open_raw(source, options), options, merges)
    parts, _, notes = make_parts(opened, options, "pair", fewest=1)
    opening = Opening(parts, options, merges + notes)
    device = torch.device(device)
    model = None if options.image_model is None else ImageModel(options.image_model, device)
    _read(opening, model)
    both = [_space(opening, place, model, device) for place in (0, 1)]
    data, names = _build(opening, both, device)
    digest = _digest(opening, both)
    remember(digest, data["train"])
    info = DataInfo(
        modality="pairs",
        task=options.task or "retrieval",
        source=opened.name,
        shape=tuple(math.prod(space.shape) for space in both),
        classes=len(names),
        names=names,
        fingerprint=digest,
        normalisation=_facts(opening, both, data),
        columns=dict(opened.columns),
        sizes={role: len(data.get(role, ())) for role in ROLES},
        notes=tuple(opening.notes),
        tensors={
            f"{name}.{key}": value
            for name, space in zip(options.names, both, strict=True)
            for key, value in space.tensors.items()
        },
    )
    return Splits(data["train"], data.get("validation"), data.get("test"), info)


# -- reading ---------------------------------------------------------------------------------------


def _read(opening: Opening, model: ImageModel | None) -> None:
    """Read both fields of every part; items of which one is missing are dropped and counted."""
    missing, total = 0, sum(map(len, opening.parts.values()))
    shapes = [_geometry(opening, place, model) for place in (0, 1)]
    for role, part in opening.parts.items():
        fields = (part.items.first, part.items.second)
        found = [
            _values(opening, part, field, shape)
            for field, shape in zip(fields, shapes, strict=True)
        ]
        keep = (found[0].counts > 0) & (found[1].counts > 0)
        missing += int((~keep).sum())
        if not keep.any():
            raise UserError(
                f"no pair of split {part.split!r} is complete",
                got=_lacking(found, opening.options),
                expected="both fields of an item",
            )
        opening.parts[role] = part.take(keep)
        opening.values[role] = (found[0].kept(keep), found[1].kept(keep))
    _require_few_failures(opening, total)
    missing -= len(opening.failures)
    if missing > 0:
        opening.notes.append(f"{missing} of {total} items lack a field and are dropped")


def _lacking(found: Sequence[Values], options: PairData) -> str:
    empty = [
        f"{int((values.counts == 0).sum())} items without {name}"
        for name, values in zip(options.names, found, strict=True)
    ]
    return ", ".join(empty)


def _values(
    opening: Opening, part: Part[PairItems], field: Field, geometry: Geometry | None
) -> Values:
    if isinstance(field, Texts):
        rows = [
            [text.strip() for text in field.values[row] or () if text and text.strip()]
            for row in part.rows
        ]
        counts = np.array([len(row) for row in rows], np.int64)
        return Values([text for row in rows for text in row], counts)
    if isinstance(field, Vectors):
        starts = np.cumsum(field.counts) - field.counts
        places = [np.arange(starts[row], starts[row] + field.counts[row]) for row in part.rows]
        return Values(field.values[np.concatenate(places)], field.counts[part.rows])
    assert geometry is not None
    return _decoded(opening, part, field, geometry)


def _decoded(opening: Opening, part: Part[PairItems], field: Pixels, geometry: Geometry) -> Values:
    images, tally = read_all(field, part.rows, geometry)
    counts = np.ones(len(part), np.int64)
    for place, why in tally.failures:
        counts[place] = 0
        name = field.name(int(part.rows[place]))
        opening.failures.append(f"{part.split} {name}: {why}")
    require_finite(images, part.rows, f" of {part.split}")
    return Values(images[counts > 0], counts)


def _geometry(opening: Opening, place: int, model: ImageModel | None) -> Geometry | None:
    """The shape that images are brought to; None for a field of another kind."""
    part = opening.parts["train"]
    field = (part.items.first, part.items.second)[place]
    if not isinstance(field, Pixels):
        return None
    if model is not None:
        return Geometry(model.channels, *model.size)
    rows = part.rows[spread(len(part), SAMPLE_HEADERS)]
    heads = [head for head in field.headers(rows) if head is not None]
    if not heads:
        raise UserError(
            f"no image of split {part.split!r} can be opened, e.g. {field.name(int(part.rows[0]))}"
        )
    size = opening.options.size
    geometry, notes = choose_geometry(heads, (size, size), None)
    opening.notes += notes
    return geometry


def _require_few_failures(opening: Opening, total: int) -> None:
    """Refuse a set with too many unreadable images."""
    bad = opening.failures
    require_few(bad, total, opening.options.max_corrupt, "images", NAMED_FAILURES)
    opening.notes += dropped(bad, "pairs with unreadable images", NAMED_FAILURES)


# -- spaces and parts ------------------------------------------------------------------------------


def _space(opening: Opening, place: int, model: ImageModel | None, device: torch.device) -> Space:
    options = opening.options
    name = options.names[place]
    values = {role: found[place].values for role, found in opening.values.items()}
    train = opening.parts["train"].items
    field = (train.first, train.second)[place]
    if isinstance(field, Pixels):
        return spaces.of_images(values, model, options, device)
    if isinstance(field, Texts):
        return spaces.of_texts(values, options, device, opening.notes)
    raw = {"image": options.image_space, "text": options.text_space}
    asked = list(raw.values())[place]
    if asked != "features":
        raise UserError(
            f"the field {name!r} holds ready vectors", got=f"{list(raw)[place]}_space={asked}",
            expected="features",
        )  # fmt: skip
    return spaces.of_vectors(values, "ready vectors", device)


def _build(
    opening: Opening, both: Sequence[Space], device: torch.device
) -> tuple[dict[str, PairsInMemory], tuple[str, ...]]:
    """Parts as data, grouped by cluster; the names of the clusters."""
    count = opening.options.clusters
    data = {}
    for role, (_, second) in opening.values.items():
        words = second.values if isinstance(second.values, list) else ()
        owner = torch.repeat_interleave(torch.arange(len(second.counts)), _tensor(second.counts))
        first, second_half = (
            Side(name, space.values[role], space.prepare)
            for name, space in zip(opening.options.names, both, strict=True)
        )
        groups = torch.zeros(len(second.counts), dtype=torch.int64)
        data[role] = PairsInMemory(first, second_half, owner, groups, 1, device=device, words=words)
    _say_gallery(opening, data)
    if count == 1:
        return data, ("all pairs",)
    return clustered(data, count, opening.options.seed), tuple(
        f"cluster {number + 1}" for number in range(count)
    )


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _say_gallery(opening: Opening, data: dict[str, PairsInMemory]) -> None:
    first, second = opening.options.names
    for role in ("validation", "test"):
        if role in data:
            opening.notes.append(
                f"{role} gallery: {len(data[role])} of {first}, {data[role].pairs} of {second}"
            )


def clustered(data: dict[str, PairsInMemory], count: int, seed: int) -> dict[str, PairsInMemory]:
    """The same parts, grouped by k-means clusters of the training pairs.

    A pair is described by both of its halves, each to length 1, the mean of its captions as second.

    Errors: UserError when there are fewer training pairs than clusters.
    """
    from sklearn.cluster import KMeans

    if count > len(data["train"]):
        raise UserError(
            "data.clusters is above the number of training pairs",
            got=count,
            expected=f"at most {len(data['train'])}",
        )
    described = {role: _described(part) for role, part in data.items()}
    found = KMeans(count, n_init=1, random_state=seed % 2**31).fit(described["train"])
    made = {}
    for role, part in data.items():
        groups = torch.from_numpy(found.predict(described[role])).long()
        made[role] = PairsInMemory(
            part.first,
            part.second,
            part.owner,
            groups,
            count,
            device=part.device,
            words=part.words,
        )
    return made


def _described(part: PairsInMemory) -> Array:
    """[N, D] float64 both halves of every item."""
    first = torch.cat([flat(part.first.read(rows)) for rows in _rows(part, len(part))])
    second = torch.cat([flat(part.second.read(rows)) for rows in _rows(part, part.pairs)])
    mean = torch.zeros(len(part), second.shape[1], device=second.device)
    mean = mean.index_add(0, part.owner.to(second.device), second)
    parts = [torch.nn.functional.normalize(half.double(), dim=1) for half in (first, mean)]
    return torch.cat(parts, dim=1).cpu().numpy()


def _rows(part: PairsInMemory, count: int) -> Sequence[Tensor]:
    return torch.arange(count, device=part.device).split(1024)


def flat(inputs: Tree) -> Tensor:
    """[n, D] one vector per value: itself, the mean of its tokens, or its pixels in 8x8."""
    if isinstance(inputs, dict):
        mask = inputs["mask"].unsqueeze(-1).to(inputs["values"].dtype)
        return (inputs["values"] * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
    if inputs.ndim == 4:
        return torch.nn.functional.adaptive_avg_pool2d(inputs, 8).flatten(1)
    found: Tensor = inputs
    return found


def _facts(
    opening: Opening, both: Sequence[Space], data: dict[str, PairsInMemory]
) -> dict[str, Any]:
    names = opening.options.names
    return {
        "fields": {
            name: {**space.facts, "shape": list(space.shape)}
            for name, space in zip(names, both, strict=True)
        },
        "gallery": {role: [len(part), part.pairs] for role, part in data.items()},
    }


def _digest(opening: Opening, both: Sequence[Space]) -> str:
    """Fingerprint of both fields, of which values belong together, and of the clusters."""
    options = opening.options
    hasher = hashlib.sha256(repr((options.names, options.clusters, options.seed)).encode())
    for space in both:
        hasher.update(repr((space.shape, space.facts["kind"])).encode())
        hasher.update(space.key)
    for role, (_, second) in opening.values.items():
        hasher.update(repr((role, len(second.counts))).encode())
        hasher.update(np.ascontiguousarray(second.counts).data)
    return hasher.hexdigest()


__all__ = ["clustered", "flat", "open_pairs"]
