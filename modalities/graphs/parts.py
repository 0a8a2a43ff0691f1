"""The three parts of a set: which nodes or graphs, under which class numbers.

Shape suffixes: M items (nodes or graphs), K classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.graphs.arrays import UNLABELLED
from mmdd.modalities.graphs.data_options import GraphData
from mmdd.modalities.graphs.graph import ROLES, Graph
from mmdd.modalities.tables.splits import hold_out

Array = npt.NDArray[Any]
Masks = dict[str, Array]
SPARE = "unassigned"  # labelled items in no mask


@dataclasses.dataclass(frozen=True)
class Parts:
    """Which items are trained on, tuned on and scored.

    Attributes
    ----------
    rows: by role, [k] int64 items, ascending; every one has a class. No entry where there are none.
    members: by role, [k'] int64 nodes of the official part, those without a class included.
    codes: [M] int64 classes 0..K-1; -1 for items without one.
    names: [K] of the classes.
    """

    rows: dict[str, Array]
    members: dict[str, Array]
    codes: Array
    names: tuple[str, ...]


def make_parts(graph: Graph, options: GraphData, notes: list[str]) -> Parts:
    """Read the masks or hold parts out, and drop what has no usable label.

    Without a training mask, training gets the labelled items that are in no other mask. With one,
    these are the test set where that is missing, and else may give validation items. What is still
    missing is held out of training. Hold-outs are class by class. Classes without a training item
    are dropped from all parts.

    Errors: UserError for masks that overlap or leave nothing to train on, and for a single class.
    """
    unit, labels = graph.level, graph.y.numpy()
    known = labels != UNLABELLED
    if not known.any():
        raise UserError(f"no {unit} has a label")
    masks = _chosen_masks(graph, options, notes)
    _require_disjoint(masks, unit)
    if not known.all():
        use = "context only" if unit == "node" else "left out"
        notes.append(f"{int((~known).sum())} of {len(known)} {unit}s have no label: {use}")
    if "train" not in masks:
        masks["train"] = _free(masks, known)
        if len(masks) > 1:
            notes.append(
                f"no train mask: the {int(masks['train'].sum())} {unit}s in no other mask are train"
            )
    rows = {role: np.flatnonzero(mask & known) for role, mask in masks.items()}
    if not len(rows["train"]):
        raise UserError(
            f"no labelled {unit} is left to train on",
            got=", ".join(f"{len(part)} in {role}" for role, part in rows.items()),
        )
    codes, names = _classes(graph, rows["train"], notes)
    rows |= {SPARE: np.flatnonzero(_free(masks, known))}
    rows = {role: part[codes[part] != UNLABELLED] for role, part in rows.items()}
    members = {role: np.flatnonzero(mask) for role, mask in masks.items()}
    parts = Parts(rows, members, codes, names)
    _complete(parts, options, unit, notes)
    return dataclasses.replace(
        parts,
        rows={role: rows[role] for role in ROLES if len(rows.get(role, ()))},
        members={role: members[role] for role in ROLES if len(rows.get(role, ()))},
    )


def _free(masks: Masks, known: Array) -> Array:
    """Labelled items in no mask."""
    taken: Array = np.any([np.zeros_like(known), *masks.values()], axis=0)
    return known & ~taken


def _chosen_masks(graph: Graph, options: GraphData, notes: list[str]) -> Masks:
    """The masks of one split; those that are false everywhere count as missing."""
    columns = [mask.shape[1] for mask in graph.masks.values() if mask.ndim == 2]
    several = max(columns, default=1)
    if options.split >= min(columns, default=1):
        raise UserError(
            "data.split is out of range",
            got=options.split,
            expected=f"0 to {min(columns, default=1) - 1}, a column of the masks",
        )
    if several > 1:
        notes.append(f"split {options.split} of {several} (data.split)")
    masks = {role: _column(mask, options.split) for role, mask in graph.masks.items()}
    if "train" in masks and not masks["train"].any():
        raise UserError(f"the training mask is empty: it holds no {graph.level}")
    return {role: mask for role, mask in masks.items() if mask.any()}


def _column(mask: Tensor, split: int) -> Array:
    """One split of a mask; one without columns serves all splits."""
    chosen: Array = (mask if mask.ndim == 1 else mask[:, split]).numpy()
    return chosen


def _require_disjoint(masks: Masks, unit: str) -> None:
    given = [role for role in ROLES if role in masks]
    for place, one in enumerate(given):
        for two in given[place + 1 :]:
            shared = int((masks[one] & masks[two]).sum())
            if shared:
                raise UserError(
                    f"the {one} and {two} masks overlap",
                    got=f"{shared} {unit}s in both",
                    expected="none",
                )


def _classes(graph: Graph, train: Array, notes: list[str]) -> tuple[Array, tuple[str, ...]]:
    """Renumber the classes to those that occur in training."""
    labels = graph.y.numpy()
    present = np.unique(labels[train])
    everywhere = np.unique(labels[labels != UNLABELLED])
    names = _names(graph, present)
    if len(present) < 2:
        partly = bool((labels == UNLABELLED).any())
        raise UserError(
            f"the training {graph.level}s have a single class, {names[0]!r}",
            expected="two or more",
            hint="-1 stands for no label: number the classes from 0" if partly else None,
        )
    place = np.searchsorted(present, labels).clip(max=len(present) - 1)
    codes = np.where(present[place] == labels, place, UNLABELLED)
    gone = np.setdiff1d(everywhere, present)
    if len(gone):
        items = int(np.isin(labels, gone).sum())
        notes.append(
            f"{len(gone)} of {len(everywhere)} classes have no training {graph.level}: their "
            f"{items} {graph.level}s are in no part ({_some(_names(graph, gone))})"
        )
    return codes, names


def _names(graph: Graph, classes: Array) -> tuple[str, ...]:
    given = graph.names
    if given is not None and int(graph.y.max()) >= len(given):
        raise UserError(
            "there are fewer names than classes",
            got=len(given),
            expected=f"{int(graph.y.max()) + 1}, one for each class",
        )
    return tuple(str(code) if given is None else given[code] for code in classes.tolist())


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _complete(parts: Parts, options: GraphData, unit: str, notes: list[str]) -> None:
    """Give the missing parts their items: spare ones first, so that official parts stay whole."""
    rows, source = parts.rows, SPARE if len(parts.rows[SPARE]) else "train"
    if not len(rows.get("test", ())):
        if source == SPARE:
            rows["test"] = parts.members["test"] = rows[SPARE]
            notes.append(f"no test mask: the {len(rows[SPARE])} {unit}s in no other mask are test")
            source = "test"
        else:
            count = round(options.test * len(rows["train"]))
            _carve(parts, "test", count, "train", options, unit, notes)
    if not len(rows.get("validation", ())):
        count = _validation_size(parts, source, options)
        _carve(parts, "validation", count, source, options, unit, notes)


def _carve(
    parts: Parts,
    role: str,
    count: int,
    source: str,
    options: GraphData,
    unit: str,
    notes: list[str],
) -> None:
    """Hold `count` items of the part `source` out, class by class."""
    pool = parts.rows[source]
    if count == 0:
        return
    kept, held = hold_out(parts.codes[pool], count, options.seed, role)
    if not len(held):
        notes.append(f"no {role} {unit}s: no class has two {source} {unit}s")
        return
    parts.rows[source], parts.rows[role] = pool[kept], pool[held]
    if source in parts.members:
        parts.members[source] = np.setdiff1d(parts.members[source], pool[held])
    parts.members[role] = pool[held]
    notes.append(f"{len(held)} of {len(pool)} {source} {unit}s held out for {role}, class by class")


def _validation_size(parts: Parts, source: str, options: GraphData) -> int:
    pool = parts.rows[source]
    if isinstance(options.validation, float):
        return round(options.validation * len(pool))
    room = len(pool) - len(np.unique(parts.codes[pool]))
    if options.validation > room:
        raise UserError(
            f"data.validation holds out too many of the {source} items",
            got=options.validation,
            expected=f"at most {room}, which leaves one item of every class",
        )
    return options.validation
