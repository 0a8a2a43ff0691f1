"""The synthetic set at its start: how many items, from which real ones, with which labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdd import catalog
from mmdd.errors import UserError
from mmdd.labels import DerivedLabels, HardLabels, Labels, RelationLabels, SoftLabels
from mmdd.learner import Learner
from mmdd.modality import DataInfo
from mmdd.parts import Parts
from mmdd.real import RealData
from mmdd.recipe import Recipe
from mmdd.representations import Representation
from mmdd.rng import generator
from mmdd.sections import Relation
from mmdd.selection import select
from mmdd.synthetic import StepSize, SyntheticSet
from mmdd.teacher import Teacher, class_logits, per_stored_item
from mmdd.trees import Tree


def budget(recipe: Recipe, sizes: Tensor, info: DataInfo) -> Tensor:
    """[G] int64 stored items per class.

    `items` and `fraction` are shared out in proportion to the class sizes, at least one each, or
    evenly where ``synthetic.balance`` says so. A continuous representation's budget is one number
    of time steps; see `steps_of_series`.

    Raises `UserError` when a class has fewer real items than asked for.
    """
    if _kind_of(recipe).continuous:
        return steps_of_series(recipe, info)
    wanted, total, names = recipe.synthetic, int(sizes.sum()), info.names
    present = sizes > 0
    if wanted.per_class is not None:
        counts = torch.where(present, wanted.per_class, 0)
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
    told = f"{made} synthetic items: {each} per class, {made / total:.3g} of the training items"
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

    A group with fewer real items gives them in turns (parts of packed items may be alike).
    """
    how, seed = parts.recipe.synthetic.initialise, parts.recipe.run.seed
    valued = has_values(parts.task)
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


def with_targets(modality: Any, task: str, info: DataInfo) -> Tree:
    """One blank item [1, ...]: the inputs, or inputs and targets where these are values."""
    example = modality.example(info)
    if not has_values(catalog.load("task", task, catalog.TASKS)):
        return example
    return {"inputs": example, "targets": modality.blank_targets(info)}


def _kind_of(recipe: Recipe) -> type[Representation]:
    name = recipe.synthetic.representation.kind
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
    bounds = bounds_of(parts)
    if kind.continuous:
        series = start_series(parts, data, int(counts.sum()))
        representation = kind.of_series(series, example=example, bounds=bounds, **options)
    else:
        values = start_items(parts, data, counts * kind.needs(example, **options))
        stream = generator(parts.recipe.run.seed, "representation")
        representation = kind.of_items(values, bounds=bounds, generator=stream, **options)
    classes = "hard" in parts.task.label_kinds
    labels = HardLabels(groups) if classes else DerivedLabels()
    made = assemble(parts, representation, labels, groups, learner)
    if parts.recipe.synthetic.labels.kind == "relation":
        made.labels = first_relation(parts, made).to(parts.device)
    elif parts.recipe.synthetic.labels.kind != "hard" and classes:
        made.labels = first_labels(parts, made, teacher).to(parts.device)
    return made


def first_relation(parts: Parts, made: SyntheticSet) -> Labels:
    """Similarities at their start, of which every stored item has a row and a column.

    Raises `UserError` where a stored item is several, or where the rank is above their number.
    """
    options, count = parts.recipe.synthetic.labels, len(made)
    assert isinstance(options, Relation)
    if made.representation.expand > 1:
        raise UserError(
            "relation labels are between stored items, of which each is one pair",
            got=f"representation {parts.recipe.synthetic.representation.kind}",
            expected="representation direct",
        )
    if options.rank is not None and options.rank > count:
        raise UserError(
            "the rank of the similarities is above the number of pairs",
            got=options.rank,
            expected=f"at most {count}, or null for the whole matrix",
            hint="Set synthetic.labels.rank.",
        )
    stream = generator(parts.recipe.run.seed, "relation")
    return RelationLabels.start(count, options.rank, stream, alpha=options.alpha)


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


@torch.no_grad()
def first_labels(parts: Parts, made: SyntheticSet, teacher: Teacher | None) -> Labels:
    """Learned or teacher's labels of the items of `made` as they are."""
    options = parts.recipe.synthetic.labels.model_dump()
    learned = options["kind"] == "soft"
    batch = made.batch()
    # the experts that a source follows are at hand even where labels are to start without them
    if teacher is None or options.get("initialise") == "classes":
        logits = class_logits(batch.groups, parts.info.classes, options["margin"])
    elif learned:
        logits = teacher.start(batch, options["margin"])
    else:
        logits = teacher.logits(batch).mean(dim=0)
    logits = per_stored_item(logits, made)
    return SoftLabels(logits, temperature=options["temperature"], learned=learned)


def restore(parts: Parts, tensors: dict[str, Tensor]) -> SyntheticSet:
    """Build the synthetic set that `tensors` (its state dict) describe."""
    kind, options = representation_of(parts)
    prefix = "representation."
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    example = with_targets(parts.modality, parts.task.name, parts.info)
    representation = kind.of_state(own, example=example, bounds=bounds_of(parts), **options)
    labels = _restored_labels(parts, tensors)
    made = SyntheticSet(
        representation,
        labels,
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


def _restored_labels(parts: Parts, tensors: dict[str, Tensor]) -> Labels:
    options = parts.recipe.synthetic.labels.model_dump()
    if options["kind"] == "relation":
        own = {k.removeprefix("labels."): v for k, v in tensors.items() if k.startswith("labels.")}
        return RelationLabels(own, alpha=options["alpha"])
    if "labels.targets" in tensors:
        return HardLabels(tensors["labels.targets"])
    if "hard" not in parts.task.label_kinds:
        return DerivedLabels()
    return SoftLabels(
        tensors["labels.logits"],
        temperature=options["temperature"],
        learned=options["kind"] == "soft",
    )
