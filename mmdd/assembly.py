"""A synthetic set from its parts: the representation and labels that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmdd import catalog
from mmdd.first_labels import restored
from mmdd.labels import Labels
from mmdd.learner import Learner
from mmdd.modality import DataInfo
from mmdd.parts import Parts
from mmdd.recipe import Recipe
from mmdd.representations import Representation
from mmdd.synthetic import StepSize, SyntheticSet
from mmdd.trees import Tree


def has_values(task: Any) -> bool:
    """True where targets are numbers of the items' own, stored and decoded with their inputs."""
    return "values" in task.label_kinds


def with_targets(modality: Any, task: str, info: DataInfo) -> Tree:
    """One blank item [1, ...]: the inputs, or inputs and targets where these are values."""
    example = modality.example(info)
    if not has_values(catalog.load("task", task, catalog.TASKS)):
        return example
    return {"inputs": example, "targets": modality.blank_targets(info)}


def kind_of(recipe: Recipe) -> type[Representation]:
    """The class of the representation that the recipe names."""
    name = str(recipe.synthetic.representation.kind)
    kind: type[Representation] = catalog.load("representation", name, catalog.REPRESENTATIONS)
    return kind


def representation_of(parts: Parts) -> tuple[type[Representation], dict[str, Any]]:
    """The class that the recipe names, and its options."""
    synthetic = parts.recipe.synthetic
    kind = kind_of(parts.recipe)
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


def tensors_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one part of a set, by the names that they have there."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def restore(parts: Parts, tensors: dict[str, Tensor]) -> SyntheticSet:
    """Build the synthetic set that `tensors` (its state dict) describe."""
    kind, options = representation_of(parts)
    own = tensors_of(tensors, "representation")
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
