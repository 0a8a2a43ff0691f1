"""How many items a synthetic set has, of which class, and how that is told."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdd import catalog
from mmdd.assembly import kind_of, with_targets
from mmdd.errors import UserError
from mmdd.modality import DataInfo
from mmdd.recipe import Recipe
from mmdd.task import has_sets


def budget(recipe: Recipe, sizes: Tensor, info: DataInfo) -> Tensor:
    """[G] int64 stored items per class.

    `items` and `fraction` are shared out in proportion to the class sizes, at least one each, or
    evenly where ``synthetic.balance`` says so. Where an item has any number of classes, it counts
    for the one that it is matched by, and `per_class` is the most items of any. A continuous
    representation's budget is one number of time steps; see `steps_of_series`.

    Raises `UserError` when a class has fewer real items than asked for.
    """
    if kind_of(recipe).continuous:
        return steps_of_series(recipe, info)
    wanted, total, names = recipe.synthetic, int(sizes.sum()), info.names
    present = sizes > 0
    if wanted.per_class is not None:
        counts = torch.where(present, wanted.per_class, 0)
        if has_sets(catalog.load("task", recipe.task, catalog.TASKS)):
            # a common class may never be the one that its items are matched by
            counts = torch.minimum(counts, sizes)
    else:
        whole = total if wanted.fraction_of == "train" else items_in_all(info, total)
        items = wanted.items or max(1, round((wanted.fraction or 0) * whole))
        if items > total:
            raise _too_many(items, total, info)
        if wanted.balance == "uniform":
            counts = share_out(items, sizes, present.long() * total)
        else:
            counts = share_out(items, sizes)
    short = torch.nonzero(counts > sizes).flatten()
    if len(short):
        first = int(short[0])
        raise UserError(
            f"class {names[first]!r} has fewer training items than asked for"
            + (f" (and {len(short) - 1} more classes)" if len(short) > 1 else ""),
            got=int(counts[first]),
            expected=f"at most {int(sizes[first])}",
            hint="Lower --per-class, or give --items, which is shared out by class size.",
        )
    # a few labelled nodes stand in a large graph: as many synthetic ones are still far smaller
    if int(counts.sum()) > _most(total, info):
        raise _too_many(int(counts.sum()), total, info)
    return counts


def _most(total: int, info: DataInfo) -> int:
    return total if items_in_all(info, total) > total else total - 1


def _too_many(items: int, total: int, info: DataInfo) -> UserError:
    return UserError(
        "the synthetic set would not be smaller than the training set",
        got=items,
        expected=f"at most {_most(total, info)} items",
    )


def steps_of_series(recipe: Recipe, info: DataInfo) -> Tensor:
    """[1] int64 time steps of a synthetic series: ``synthetic.items``, or ``fraction`` of training.

    Raises `UserError` when it would hold no window, or be as long as the real one.
    """
    wanted, real = recipe.synthetic, info.sizes.get("steps", 0)
    if wanted.per_class is not None:
        raise UserError(
            "a synthetic series has a length, not items per class",
            got=f"per_class={wanted.per_class}",
            expected="synthetic.items, the number of its time steps",
            hint="Give --items, e.g. --items 384, or --fraction of the training steps.",
        )
    steps = wanted.items or max(1, round((wanted.fraction or 0) * real))
    counts = torch.tensor([steps])
    kind, options = kind_of(recipe), wanted.representation.model_dump(exclude={"kind"})
    modality = catalog.load("modality", recipe.modality, catalog.MODALITIES)
    kind.stored(counts, with_targets(modality, recipe.task, info), **options)
    if steps >= real:
        raise UserError(
            "the synthetic series would not be shorter than the training series",
            got=f"{steps} steps (synthetic.items)",
            expected=f"fewer than {real}",
        )
    return counts


def items_in_all(info: DataInfo, labelled: int) -> int:
    """How many items there are, unlabelled ones and those of other splits included, if known."""
    return max(labelled, info.sizes.get("nodes", 0))


def told_budget(counts: Tensor, sizes: Tensor, info: DataInfo, recipe: Recipe | None = None) -> str:
    """The budget in every unit that a table may use."""
    if recipe is not None and kind_of(recipe).continuous:
        steps, real = int(counts.sum()), info.sizes["steps"]
        return f"a synthetic series of {steps} time steps, {steps / real:.3g} of the training steps"
    made, total = int(counts.sum()), int(sizes.sum())
    low, high = int(counts[counts > 0].min()), int(counts.max())
    each = f"{low}" if low == high else f"{low} to {high}"
    # data without classes are one group, of which "per class" is the number of all
    split = f": {each} per class" if len(counts) > 1 else ""
    told = f"{made} synthetic items{split}, {made / total:.3g} of the training items"
    if recipe is not None and has_sets(catalog.load("task", recipe.task, catalog.TASKS)):
        told += " (an item counts for its rarest class)"
    whole = items_in_all(info, total)
    return told + (f", {made / whole:.3g} of all {whole} nodes" if "nodes" in info.sizes else "")


def share_out(items: int, sizes: Tensor, shares: Tensor | None = None) -> Tensor:
    """Share `items` among the classes in proportion to `shares` (largest remainder, at least 1).

    No class gets more than its `sizes`, which are also the shares if none are given.
    """
    present = sizes > 0
    shares = sizes if shares is None else shares
    if items < int(present.sum()):
        raise UserError(
            "fewer synthetic items than classes",
            got=items,
            expected=f"at least {int(present.sum())}",
        )
    counts = present.long()
    while (left := min(items, int(sizes.sum())) - int(counts.sum())) > 0:
        # in rounds: what a small class cannot take is shared out among the others
        room = sizes - counts
        share = shares.double() * (room > 0)
        ideal = left * share / share.sum()
        whole = ideal.floor().long()
        counts += torch.minimum(whole, room)
        if bool((whole <= room).all()):
            order = torch.argsort(ideal - whole, descending=True, stable=True)
            order = order[counts[order] < sizes[order]]
            counts[order[: left - int(whole.sum())]] += 1
    return counts
