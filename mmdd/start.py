"""The synthetic set at its start: how many items, from which real ones, with which labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdd import catalog
from mmdd.errors import UserError
from mmdd.first_labels import chosen, first_relation, of_items, require_attention, restored
from mmdd.labels import Labels
from mmdd.learner import Learner
from mmdd.modality import DataInfo
from mmdd.parts import Parts
from mmdd.real import RealData
from mmdd.recipe import Recipe
from mmdd.representations import Representation
from mmdd.rng import generator
from mmdd.selection import select
from mmdd.synthetic import StepSize, SyntheticSet
from mmdd.task import has_sets
from mmdd.teacher import Teacher
from mmdd.trees import Tree

__all__ = [
    "assemble",
    "bounds_of",
    "budget",
    "chosen_items",
    "first_relation",
    "has_values",
    "items_in_all",
    "representation_of",
    "require_attention",
    "restore",
    "settled",
    "share_out",
    "start_items",
    "start_series",
    "steps_of_series",
    "synthetic_set",
    "told_budget",
    "with_targets",
]


def budget(recipe: Recipe, sizes: Tensor, info: DataInfo) -> Tensor:
    """[G] int64 stored items per class.

    `items` and `fraction` are shared out in proportion to the class sizes, at least one each, or
    evenly where ``synthetic.balance`` says so. Where an item has any number of classes, it counts
    for the one that it is matched by, and `per_class` is the most items of any. A continuous
    representation's budget is one number of time steps; see `steps_of_series`.

    Raises `UserError` when a class has fewer real items than asked for.
    """
    if _kind_of(recipe).continuous:
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
    kind, options = _kind_of(recipe), wanted.representation.model_dump(exclude={"kind"})
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
    if recipe is not None and _kind_of(recipe).continuous:
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


def chosen_items(parts: Parts, how: str, data: RealData, counts: Tensor, seed: int) -> Tensor:
    """Indices of real items chosen by the selector `how`, in features of a fresh net."""
    choose = catalog.load("selector", how, catalog.SELECTORS)
    stream = generator(seed, f"select/{how}")
    if how == "random":
        return select(choose, data, counts, stream)
    learner = parts.learner(items=float(min(len(data), 10_000 * data.num_groups)))
    params = learner.init(generator(seed, "select/net"))
    seen = data.seen_by(learner.encoder)
    return select(choose, seen, counts, stream, learner=learner, params=params)


def start_items(parts: Parts, data: RealData, counts: Tensor) -> Tree:
    """``counts[g]`` items of every group g from which the synthetic set starts, group by group.

    A group with fewer real items gives them in turns (parts of packed items may be alike). Where
    targets are the items' own, they are ``{"inputs": …, "targets": …}``.
    """
    how, seed = parts.recipe.synthetic.initialise, parts.recipe.run.seed
    valued = has_values(parts.task) or has_sets(parts.task)
    if how == "noise" and not valued:
        stream = generator(seed, "initialise")
        return parts.modality.noise(int(counts.sum()), parts.info, stream)
    if how == "aggregate":
        made = data.aggregate(counts, generator(seed, "initialise"))
        return {"inputs": made.inputs, "targets": made.targets} if valued else made.inputs
    name = "random" if how in ("real", "noise") else how
    fit = torch.minimum(counts, data.group_sizes)
    chosen = chosen_items(parts, name, data, fit, seed)
    turns = [
        own[torch.arange(int(count)) % max(1, len(own))]
        for own, count in zip(chosen.split(fit.tolist()), counts, strict=True)
    ]
    index = torch.cat(turns)
    if not valued:
        return data.items(index)
    inputs = data.items(index)
    if how == "noise":
        inputs = parts.modality.noise(len(index), parts.info, generator(seed, "initialise"))
    return {"inputs": inputs, "targets": data.select(index).targets}


def start_series(parts: Parts, data: RealData, steps: int) -> Tensor:
    """[T, C] what a continuous representation starts from: a slice of the real series, or noise."""
    how, seed = parts.recipe.synthetic.initialise, parts.recipe.run.seed
    if how not in ("real", "noise"):
        raise UserError(
            "a synthetic series starts from one slice of the real series, or from noise",
            got=how,
            expected="synthetic.initialise=real or noise",
        )
    series = data.stretch(steps, generator(seed, "select/series"))
    if how == "real":
        return series
    return torch.randn(series.shape, generator=generator(seed, "initialise"))


def has_values(task: Any) -> bool:
    """True where targets are numbers of the items' own, stored and decoded with their inputs."""
    return "values" in task.label_kinds


def _one_set_each(parts: Parts, sets: Tensor, count: int) -> Tensor:
    """[M, C] the sets of classes of the stored items, each of which is one item."""
    if len(sets) != count:
        raise UserError(
            "the parts of a packed item would share one set of classes",
            got=f"task {parts.task.name}, representation {_kind_name(parts.recipe)}",
            expected="representation direct",
        )
    return sets


def with_targets(modality: Any, task: str, info: DataInfo) -> Tree:
    """One blank item [1, ...]: the inputs, or inputs and targets where these are values."""
    example = modality.example(info)
    if not has_values(catalog.load("task", task, catalog.TASKS)):
        return example
    return {"inputs": example, "targets": modality.blank_targets(info)}


def _kind_name(recipe: Recipe) -> str:
    return str(recipe.synthetic.representation.kind)


def _kind_of(recipe: Recipe) -> type[Representation]:
    name = _kind_name(recipe)
    kind: type[Representation] = catalog.load("representation", name, catalog.REPRESENTATIONS)
    return kind


def representation_of(parts: Parts) -> tuple[type[Representation], dict[str, Any]]:
    """The class that the recipe names, and its options."""
    synthetic = parts.recipe.synthetic
    kind = _kind_of(parts.recipe)
    options = synthetic.representation.model_dump(exclude={"kind"})
    if "nodes" in options and options["nodes"] is None:
        options["nodes"] = parts.info.normalisation.get("mean_nodes")
    if has_values(parts.task) and synthetic.labels.kind == "hard" and not kind.continuous:
        options["fixed"] = ("targets",)
    return kind, options


def bounds_of(parts: Parts) -> tuple[Tree, Tree] | None:
    """Range of the items' inputs, where they are to stay inside it."""
    found = parts.modality.bounds(parts.info) if parts.recipe.synthetic.clamp else None
    if found is None or not has_values(parts.task):
        return found
    low, high = found
    return {"inputs": low}, {"inputs": high}


def synthetic_set(
    parts: Parts, data: RealData, counts: Tensor, learner: Learner, teacher: Teacher | None = None
) -> SyntheticSet:
    """Build the synthetic set at its start: `counts` [G] stored items per group, or its steps."""
    kind, options = representation_of(parts)
    example = with_targets(parts.modality, parts.task.name, parts.info)
    stored = kind.stored(counts, example, **options)
    groups = torch.repeat_interleave(torch.arange(len(counts)), stored)
    bounds, sets = bounds_of(parts), None
    if kind.continuous:
        series = start_series(parts, data, int(counts.sum()))
        representation = kind.of_series(series, example=example, bounds=bounds, **options)
    else:
        values = start_items(parts, data, counts * kind.needs(example, **options))
        if has_sets(parts.task):
            values, sets = values["inputs"], _one_set_each(parts, values["targets"], len(groups))
        stream = generator(parts.recipe.run.seed, "representation")
        representation = kind.of_items(values, bounds=bounds, generator=stream, **options)
    made = assemble(parts, representation, of_items(parts, groups, sets), groups, learner)
    made.labels = chosen(parts, made, learner, teacher).to(parts.device)
    return made


def assemble(
    parts: Parts,
    representation: Representation,
    labels: Labels,
    groups: Tensor,
    learner: Learner | None = None,
) -> SyntheticSet:
    """Put representation and labels together; `learner` is needed where a step size is learned."""
    rate, step_size = parts.recipe.synthetic.step_size, None
    if rate is not None:
        count = 1 if learner is None else len(learner.groups_of_parameters)
        step_size = StepSize(rate, count)
    made = SyntheticSet(
        representation,
        labels,
        groups,
        parts.info.classes,
        joint=representation.joint,
        step_size=step_size,
    )
    return made.to(parts.device)


def restore(parts: Parts, tensors: dict[str, Tensor]) -> SyntheticSet:
    """Build the synthetic set that `tensors` (its state dict) describe."""
    kind, options = representation_of(parts)
    prefix = "representation."
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    example = with_targets(parts.modality, parts.task.name, parts.info)
    representation = kind.of_state(own, example=example, bounds=bounds_of(parts), **options)
    made = SyntheticSet(
        representation,
        restored(parts, tensors),
        tensors["groups"],
        parts.info.classes,
        joint=representation.joint,
    )
    if "step_size.log" in tensors:
        made.step_size = StepSize(1.0, len(tensors["step_size.log"]))
    made.load_state_dict(tensors)
    return made.to(parts.device)


def settled(parts: Parts, synthetic: SyntheticSet) -> SyntheticSet:
    """The finished set: what only served to learn its items is replaced by what it made of them."""
    kept = synthetic.representation.settle()
    if kept is None:
        return synthetic
    prefix = "representation."
    tensors = {k: v for k, v in synthetic.state_dict().items() if not k.startswith(prefix)}
    return restore(parts, tensors | {f"{prefix}{name}": value for name, value in kept.items()})
