"""The synthetic set at its start: from which real items, with which labels."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdd import catalog
from mmdd.assembly import assemble, bounds_of, has_values, representation_of, with_targets
from mmdd.earlier import earlier
from mmdd.errors import UserError
from mmdd.first_labels import chosen, of_items
from mmdd.learner import Learner
from mmdd.parts import Parts
from mmdd.real import RealData
from mmdd.rng import generator
from mmdd.selection import select
from mmdd.synthetic import SyntheticSet
from mmdd.task import has_sets
from mmdd.teacher import Teacher
from mmdd.trees import Tree


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


def _one_set_each(parts: Parts, sets: Tensor, count: int) -> Tensor:
    """[M, C] the sets of classes of the stored items, each of which is one item."""
    if len(sets) != count:
        kind = parts.recipe.synthetic.representation.kind
        raise UserError(
            "the parts of a packed item would share one set of classes",
            got=f"task {parts.task.name}, representation {kind}",
            expected="representation direct",
        )
    return sets


def synthetic_set(
    parts: Parts, data: RealData, counts: Tensor, learner: Learner, teacher: Teacher | None = None
) -> SyntheticSet:
    """Build the synthetic set at its start: `counts` [G] stored items per group, or its steps."""
    kind, options = representation_of(parts)
    example = with_targets(parts.modality, parts.task.name, parts.info)
    stored = kind.stored(counts, example, **options)
    groups = torch.repeat_interleave(torch.arange(len(counts)), stored)
    bounds, sets, begun = bounds_of(parts), None, earlier(parts)
    if begun is not None:
        representation, sets = begun.representation(stored)
    elif kind.continuous:
        series = start_series(parts, data, int(counts.sum()))
        representation = kind.of_series(series, example=example, bounds=bounds, **options)
    else:
        values = start_items(parts, data, counts * kind.needs(example, **options))
        if has_sets(parts.task):
            values, sets = values["inputs"], _one_set_each(parts, values["targets"], len(groups))
        stream = generator(parts.recipe.run.seed, "representation")
        representation = kind.of_items(values, bounds=bounds, generator=stream, **options)
    made = assemble(parts, representation, of_items(parts, groups, sets), groups, learner)
    labels = begun.labels() if begun is not None else None
    made.labels = (labels or chosen(parts, made, learner, teacher)).to(parts.device)
    if begun is not None:
        begun.continue_rates(made)
    return made
