"""From a recipe and an opened data set to the parts of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mmdd import catalog, machine
from mmdd.distiller import Distiller
from mmdd.errors import UserError
from mmdd.evaluate import Trainer
from mmdd.labels import HardLabels
from mmdd.learner import Learner
from mmdd.modality import Augmentation, DataInfo, Modality, Splits
from mmdd.optimise import OuterOptimiser
from mmdd.real import RealData
from mmdd.recipe import Protocol, Recipe
from mmdd.representations import Direct
from mmdd.rng import Streams, generator
from mmdd.selection import select
from mmdd.step import Objective
from mmdd.synthetic import SyntheticSet
from mmdd.task import Task
from mmdd.trees import Tree


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a recipe's names stand for, for one opened data set."""

    recipe: Recipe
    info: DataInfo
    modality: Modality
    task: Task
    device: torch.device

    def learner(self, items: float, encoder: str | None = None) -> Learner:
        """Build a learner for `items` forward passes of one item in all.

        `encoder` names another encoder than the recipe's, with its default options.
        """
        options = self.recipe.learner
        if encoder is not None and encoder != options.encoder:
            options = catalog.options(self.recipe.modality).ENCODERS[encoder]()
        module = self.modality.encoder(options, self.info)
        example = self.modality.example(self.info)
        how = machine.execution(self.recipe.run, self.device, module, example, items)
        return Learner(module, self.task, device=self.device, **how)

    def augmentation(self) -> Augmentation | None:
        """The recipe's augmentation."""
        return self.modality.augmentation(self.recipe.augment, self.info)

    def trainer(
        self, learner: Learner, protocol: Protocol, validation: RealData | None, **more: Any
    ) -> Trainer:
        """A trainer whose randomness depends on the run's seed alone."""
        if protocol.selection == "validation" and validation is None:
            raise UserError(
                "selection by validation needs a validation split",
                hint="Set data.validation to a share above 0, or evaluate.selection=last.",
            )
        seed = self.recipe.run.seed
        return Trainer(learner, protocol, seed, self.augmentation(), validation, **more)


def parts(recipe: Recipe, info: DataInfo, device: torch.device) -> Parts:
    """Look the recipe's names up."""
    modality = catalog.load("modality", recipe.modality, catalog.MODALITIES)
    task = catalog.load("task", recipe.task, catalog.TASKS)()
    return Parts(recipe, info, modality, task, device)


def open_data(recipe: Recipe, source: Any, device: torch.device) -> Splits:
    """Open the recipe's data; `source` is a Python object or None for ``data.source``."""
    modality = catalog.load("modality", recipe.modality, catalog.MODALITIES)
    wanted = recipe.data.source if source is None else source
    if wanted is None:
        raise UserError(
            "no data named",
            expected="a data set: 'digits', a folder or file, or a Hub name (owner/name)",
            hint="Give it on the command line or as data.source in the recipe.",
        )
    return modality.open(wanted, recipe.data, device)


def budget(recipe: Recipe, sizes: Tensor, names: tuple[str, ...]) -> Tensor:
    """[G] int64 stored items per class.

    `items` and `fraction` are shared out in proportion to the class sizes, at least one each.

    Raises `UserError` when a class has fewer real items than asked for.
    """
    wanted, total = recipe.synthetic, int(sizes.sum())
    present = sizes > 0
    if wanted.per_class is not None:
        counts = torch.where(present, wanted.per_class, 0)
    else:
        items = wanted.items or max(1, round((wanted.fraction or 0) * total))
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
    if int(counts.sum()) >= total:
        raise UserError(
            "the synthetic set would not be smaller than the training set",
            got=int(counts.sum()),
            expected=f"fewer than {total} items",
        )
    return counts


def share_out(items: int, sizes: Tensor) -> Tensor:
    """Share `items` among the classes in proportion to `sizes` (largest remainder, at least 1)."""
    present = sizes > 0
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
        share = sizes.double() * (room > 0)
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
    return select(choose, data, counts, stream, learner=learner, params=params)


def synthetic_set(parts: Parts, data: RealData, counts: Tensor) -> SyntheticSet:
    """Build the synthetic set at its start."""
    how = parts.recipe.synthetic.initialise
    seed = parts.recipe.run.seed
    groups = torch.repeat_interleave(torch.arange(len(counts)), counts)
    if how == "noise":
        stream = generator(seed, "initialise")
        values: Tree = parts.modality.noise(len(groups), parts.info, stream)
    else:
        name = "random" if how == "real" else how
        values = data.select(chosen_items(parts, name, data, counts, seed)).inputs
    return assemble(parts, values, groups, groups)


def assemble(parts: Parts, values: Tree, targets: Tensor, groups: Tensor) -> SyntheticSet:
    """Put values and labels together as the recipe says."""
    bounds = parts.modality.bounds(parts.info) if parts.recipe.synthetic.clamp else None
    representation = Direct(values, bounds=bounds)
    made = SyntheticSet(representation, HardLabels(targets), groups, parts.info.classes)
    return made.to(parts.device)


def restore(parts: Parts, tensors: dict[str, Tensor]) -> SyntheticSet:
    """Build the synthetic set that `tensors` (its state dict) describe."""
    values: Tree = {}
    for name, tensor in tensors.items():
        if name.startswith("representation."):
            _put(values, name.removeprefix("representation.").split("/"), tensor)
    made = assemble(parts, values["inputs"], tensors["labels.targets"], tensors["groups"])
    made.load_state_dict(tensors)
    return made


def _put(tree: dict[str, Any], path: list[str], leaf: Tensor) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = leaf


def objective(recipe: Recipe) -> Objective:
    """Build the objective from its options."""
    options = recipe.objective.model_dump()
    return catalog.load("objective", options.pop("kind"), catalog.OBJECTIVES)(**options)


def distiller(parts: Parts, splits: Splits) -> Distiller:
    """Build the parts of a run at step 0."""
    recipe = parts.recipe
    counts = budget(recipe, splits.train.group_sizes, parts.info.names)
    synthetic = synthetic_set(parts, splits.train, counts)
    streams = Streams(recipe.run.seed)
    per_step = recipe.real.per_group * parts.info.classes + 3 * len(synthetic)
    learner = parts.learner(items=float(recipe.optimise.steps) * per_step)
    source_options = recipe.source.model_dump()
    source = catalog.load("source", source_options.pop("kind"), catalog.SOURCES)
    rates = recipe.optimise.by_leaf()
    return Distiller(
        synthetic=synthetic,
        real=splits.train,
        learner=learner,
        source=source(learner, streams, **source_options),
        objective=objective(recipe),
        optimiser=OuterOptimiser(synthetic.leaves(), rates, recipe.optimise.steps),
        streams=streams,
        augmentation=parts.augmentation(),
        per_group=recipe.real.per_group,
        pass_items=recipe.real.pass_items,
    )
