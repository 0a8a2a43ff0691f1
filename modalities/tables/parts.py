"""The three parts of a set: which rows of which split, under which class numbers.

Shape suffixes: N items of a part, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Generic

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.items import I, Opened, RawSplit
from mmdd.modalities.tables.labels import MISSING, Labels
from mmdd.modalities.tables.options import TableData
from mmdd.modalities.tables.splits import choose_roles, hold_out
from mmdd.real import RealData, ResidentData
from mmdd.trees import Tree


@dataclasses.dataclass(frozen=True)
class Part(Generic[I]):
    """Training, validation or test items.

    Attributes
    ----------
    split: the split of the source that they come from.
    items: the items of that split.
    rows: [N] int64 the rows of that split.
    codes: [N] int64 their classes.
    labels: of all rows of that split, as read.
    """

    split: str
    items: I
    rows: Array
    codes: Array
    labels: Labels

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Array) -> Part[I]:
        """Keep the items at `places`, positions or a mask."""
        return dataclasses.replace(self, rows=self.rows[places], codes=self.codes[places])


Parts = dict[str, Part[I]]
"""``train``, and ``validation`` and ``test`` where there are any."""


def make_parts(
    opened: Opened[I], options: TableData, one: str = "item", fewest: int = 2
) -> tuple[Parts[I], tuple[str, ...], list[str]]:
    """Choose splits, drop what has no usable label, and hold out what has no split of its own.

    Parameters
    ----------
    opened: every split with its labels.
    options: the user's choices.
    one: what messages call an item.
    fewest: classes that make sense; 1 where the labels are but strata.

    Returns
    -------
    The parts, the names of the K classes, and a sentence for every decision.

    Errors: UserError when nothing, or a single class, is left to train on.
    """
    known = {key: 0 if s.labels is None else s.labels.known for key, s in opened.splits.items()}
    roles = choose_roles(known, options)
    notes = list(roles.notes)
    parts = {"train": _labelled(opened.splits, roles.train, None, notes)}
    names = _labels(opened.splits[roles.train]).names
    parts, names = keep_trained(parts, names, notes, one)
    if len(names) < fewest:
        raise UserError(
            f"split {roles.train!r} has a single class, {names[0]!r}", expected="two or more"
        )
    for role, split in (("validation", roles.validation), ("test", roles.test)):
        if split is not None:
            parts[role] = _labelled(opened.splits, split, names, notes)
    if roles.test is None:
        _carve(parts, "test", round(options.test * len(parts["train"])), options, notes)
    if roles.validation is None:
        count = _validation_size(parts["train"], options)
        _carve(parts, "validation", count, options, notes)
    return parts, names, notes


def resident(
    parts: Parts[I],
    read: dict[str, Array],
    classes: int,
    prepare: Callable[[Tree], Tree],
    device: torch.device | str,
) -> dict[str, RealData]:
    """All parts as sets in the memory of the device; `read` holds their items [N, ...] by role.

    It is emptied on the way, so that a GPU's copy is the only one left.
    """
    data: dict[str, RealData] = {}
    for role in list(read):
        codes = torch.from_numpy(parts[role].codes)
        items = torch.from_numpy(read.pop(role))
        data[role] = ResidentData(items, codes, codes, classes, prepare=prepare, device=device)
    return data


def keep_trained(
    parts: Parts[I], names: tuple[str, ...], notes: list[str], one: str = "item"
) -> tuple[Parts[I], tuple[str, ...]]:
    """Renumber the classes to those that occur in training; items of others are dropped."""
    sizes = np.bincount(parts["train"].codes, minlength=len(names))
    present = np.flatnonzero(sizes)
    if len(present) == len(names):
        return parts, names
    gone = [names[code] for code in np.flatnonzero(sizes == 0)[:5]]
    notes.append(
        f"{len(names) - len(present)} of {len(names)} classes have no training {one} and are "
        f"left out ({', '.join(gone)}{', ...' if len(names) - len(present) > 5 else ''})"
    )
    table = np.full(len(names), MISSING)
    table[present] = np.arange(len(present))
    renumbered = {}
    for role, part in parts.items():
        codes = table[part.codes]
        kept = codes != MISSING
        renumbered[role] = dataclasses.replace(part, rows=part.rows[kept], codes=codes[kept])
    return renumbered, tuple(names[code] for code in present)


def _labels(split: RawSplit[I]) -> Labels:
    assert split.labels is not None, "choose_roles gives no part to a split without labels"
    return split.labels


def _labelled(
    splits: Mapping[str, RawSplit[I]], name: str, names: tuple[str, ...] | None, notes: list[str]
) -> Part[I]:
    """Take the items of a split that have a label, and one of `names` where these are given."""
    split = splits[name]
    labels = _labels(split)
    if labels.known < len(labels.codes):
        notes.append(f"{len(labels.codes) - labels.known} items of {name!r} without label dropped")
    codes = labels.codes if names is None else labels.in_terms_of(names).codes
    rows = np.flatnonzero(codes != MISSING)
    if len(rows) < labels.known:
        unseen = np.unique(labels.codes[(codes == MISSING) & (labels.codes != MISSING)])
        shown = ", ".join(labels.names[code] for code in unseen[:5])
        notes.append(
            f"{labels.known - len(rows)} items of {name!r} dropped, as their classes do not occur "
            f"in training ({shown}{', ...' if len(unseen) > 5 else ''})"
        )
    if not len(rows):
        raise UserError(f"no class of split {name!r} occurs in the training split")
    return Part(name, split.items, rows, codes[rows], labels)


def _validation_size(train: Part[I], options: TableData) -> int:
    if isinstance(options.validation, float):
        return min(round(options.validation * len(train)), options.max_validation)
    room = len(train) - len(np.unique(train.codes))
    if options.validation > room:
        raise UserError(
            "data.validation holds out too many of the training items",
            got=options.validation,
            expected=f"at most {room}, which leaves one item of every class",
        )
    return options.validation


def _carve(parts: Parts[I], role: str, count: int, options: TableData, notes: list[str]) -> None:
    """Hold `count` training items out, class by class."""
    train = parts["train"]
    if count == 0:
        return
    kept, held = hold_out(train.codes, count, options.seed, role, options.hold_out)
    if not len(held):
        notes.append(f"no {role} items: no class has two training items")
        return
    parts["train"], parts[role] = train.take(kept), train.take(held)
    which = "the last " if options.hold_out == "last" else ""
    notes.append(
        f"{which}{len(held)} of {len(train)} items of {train.split!r} held out for {role}, class by"
        " class"
    )
