"""Which split plays which part, and hold-outs that keep the shares of the classes.

Shape suffixes: N items, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mmdd.errors import UserError, nearest
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.options import HoldOut, TableData

TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
HELD_OUT = {"test": 1, "validation": 2}  # so that the two hold-outs of one seed are independent


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which split is what; None for a part that is held out of the training split."""

    train: str
    validation: str | None
    test: str | None
    notes: tuple[str, ...]


def choose_roles(labelled: Mapping[str, int], options: TableData) -> Roles:
    """Give every part its split.

    Parameters
    ----------
    labelled: the number of labelled items of every split that the source has.
    options: the user's choices.

    Errors: UserError when a named split is absent or has no labels.
    """
    train = require_split(options.train_split, labelled, "train_split")
    if not labelled[train]:
        raise UserError(f"no item of split {train!r} has a label")
    taken = {train, options.test_split, options.validation_split}
    notes: list[str] = []
    validation = options.validation_split
    if validation is not None:
        require_labels(validation, labelled, "validation_split")
    test = options.test_split
    if test is not None:
        require_labels(test, labelled, "test_split")
    else:
        test = _first(TEST_NAMES, labelled, taken, notes)
    spare = _first(VALIDATION_NAMES, labelled, {*taken, test}, notes)
    if test is None and spare is not None:
        notes.append(f"split {spare!r} is the test set, as no labelled test split exists")
        test = spare
    elif validation is None and options.validation:
        validation = spare
    return Roles(train, validation, test, tuple(notes))


def _first(
    names: tuple[str, ...], labelled: Mapping[str, int], taken: set[str | None], notes: list[str]
) -> str | None:
    """Return the first split of these names that has labels."""
    for name in names:
        if name in labelled and name not in taken:
            if labelled[name]:
                return name
            notes.append(f"split {name!r} has no labels and is left out")
    return None


def require_split(name: str, known: Mapping[str, int], option: str) -> str:
    """Refuse a split that is not there."""
    if name not in known:
        close = nearest(name, known)
        hint = f"Did you mean {close!r}? " if close else ""
        raise UserError(
            f"unknown split {name!r}",
            expected=f"one of {', '.join(known)}",
            hint=f"{hint}Choose with data.{option}=NAME",
        )
    return name


def require_labels(name: str, labelled: Mapping[str, int], option: str) -> None:
    """Refuse a split that is not there or that has no labels."""
    if not labelled[require_split(name, labelled, option)]:
        raise UserError(f"no item of split {name!r} has a label", hint=f"Leave data.{option} out")


def hold_out(
    codes: Array, count: int, seed: int, part: str = "test", which: HoldOut = "random"
) -> tuple[Array, Array]:
    """Split items into those kept and `count` held out, each class by its share.

    Every class keeps one item at least, so fewer may be held out. Time is that of one sort.

    Parameters
    ----------
    codes: [N] int64 classes.
    count: how many to hold out.
    seed, part: choose the items; the two parts of one seed are independent.
    which: random ones, or the last ones of every class in the order given.

    Returns
    -------
    Two int64 arrays of positions, ascending.
    """
    rng = np.random.default_rng([HELD_OUT[part], seed])
    sizes = np.bincount(codes)
    quota = _quota(sizes, count, rng)
    places = np.arange(len(codes))
    within = rng.random(len(codes)) if which == "random" else -places
    order = np.lexsort((within, codes))  # class by class, those to be held out first
    starts = np.cumsum(sizes) - sizes
    rank = places - np.repeat(starts, sizes)
    held = rank < np.repeat(quota, sizes)
    return np.sort(order[~held]), np.sort(order[held])


def _quota(sizes: Array, count: int, rng: np.random.Generator) -> Array:
    """[K] items to take of classes of `sizes` [K]: their shares, then the largest remainders."""
    share = sizes * (count / max(1, sizes.sum()))
    quota = np.minimum(np.floor(share).astype(np.int64), np.maximum(sizes - 1, 0))
    order = np.lexsort((rng.random(len(sizes)), -(share - quota)))  # ties at random
    room = order[quota[order] < sizes[order] - 1]
    quota[room[: max(0, count - int(quota.sum()))]] += 1
    return quota
