"""Labels of a synthetic set at their start, and as a stored set has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdd import sections
from mmdd.errors import UserError
from mmdd.labels import (
    AttentionLabels,
    DerivedLabels,
    HardLabels,
    Labels,
    RelationLabels,
    SoftLabels,
)
from mmdd.learner import Learner
from mmdd.parts import Parts
from mmdd.rng import generator
from mmdd.synthetic import SyntheticSet
from mmdd.task import ATTENTION_FLOOR, has_sets
from mmdd.teacher import Teacher, per_stored_item, wanted_logits


def of_items(parts: Parts, groups: Tensor, sets: Tensor | None) -> Labels:
    """Fixed labels of the stored items: their groups, their `sets` of classes, or none apart."""
    if sets is not None:
        return HardLabels(sets)
    return HardLabels(groups) if "hard" in parts.task.label_kinds else DerivedLabels()


def chosen(
    parts: Parts, made: SyntheticSet, learner: Learner, teacher: Teacher | None = None
) -> Labels:
    """The labels that the recipe names, for the items of `made`, whose own are `of_items`.

    `teacher` is at hand where experts are.
    """
    options = parts.recipe.synthetic.labels
    if isinstance(options, sections.Relation):
        return first_relation(parts, made)
    if isinstance(made.labels, DerivedLabels):
        return made.labels
    if isinstance(options, sections.Attention):
        classes = _of_classes(options.classes, parts, made, teacher)
        return first_attention(options, classes, parts, made, learner, teacher)
    return _of_classes(options, parts, made, teacher)


@torch.no_grad()
def _of_classes(options: Any, parts: Parts, made: SyntheticSet, teacher: Teacher | None) -> Labels:
    """Fixed, learned or teacher's labels of the items as they are."""
    if options.kind == "hard":
        return made.labels
    batch, several = made.batch(), has_sets(parts.task)
    learned = options.kind == "soft"
    # the experts that a source follows are at hand even where labels are to start without them
    if teacher is None or getattr(options, "initialise", None) == "classes":
        logits = wanted_logits(batch, parts.info.classes, options.margin)
    elif learned:
        logits = teacher.start(batch, options.margin)
    else:
        logits = teacher.logits(batch).mean(dim=0)
    logits = per_stored_item(logits, made)
    temperature = options.temperature
    return SoftLabels(logits, temperature=temperature, learned=learned, independent=several)


def first_relation(parts: Parts, made: SyntheticSet) -> Labels:
    """Similarities at their start, of which every stored item has a row and a column.

    Raises `UserError` where a stored item is several, or where the rank is above their number.
    """
    options, count = parts.recipe.synthetic.labels, len(made)
    assert isinstance(options, sections.Relation)
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


def require_attention(parts: Parts) -> None:
    """Refuse labels of attention where the recipe's net tells none; before any work.

    Raises `UserError`.
    """
    if parts.recipe.synthetic.labels.kind != "attention":
        return
    encoder = parts.modality.encoder(parts.recipe.learner, parts.info)
    if getattr(encoder, "attention_shape", None) is None:
        raise UserError(
            "labels of attention need a net that tells how it attends to the positions of an item",
            got=f"{type(encoder).__name__} on items of shape {tuple(parts.info.shape)}",
            expected="learner.encoder=transformer, or transformers with learner.model, on tokens",
        )


@torch.no_grad()
def first_attention(
    options: sections.Attention,
    classes: Labels,
    parts: Parts,
    made: SyntheticSet,
    learner: Learner,
    teacher: Teacher | None = None,
) -> Labels:
    """Logits of attention at their start: what a net, or the mean of the experts, attends to.

    Raises `UserError` where a stored item is several.
    """
    shape = learner.attention_shape
    assert shape is not None, "refused before the work"
    if made.representation.expand > 1:
        raise UserError(
            "labels of attention are of stored items, of which each is one item",
            got=f"representation {parts.recipe.synthetic.representation.kind}",
            expected="representation direct",
        )
    stream = generator(parts.recipe.run.seed, "labels/attention")
    if options.initialise == "noise":
        logits = torch.randn(len(made), *shape, generator=stream)
    elif teacher is not None:
        logits = (teacher.attention(made.batch()) + ATTENTION_FLOOR).log()
    else:
        said = learner.attended(learner.init(stream), made.batch(), train=False)
        logits = (said["attention"] + ATTENTION_FLOOR).log()
    return AttentionLabels(classes, logits, weight=options.weight)


def restored(parts: Parts, tensors: Mapping[str, Tensor]) -> Labels:
    """The labels whose stored tensors are those of `tensors` that begin with ``labels.``."""
    own = {k.removeprefix("labels."): v for k, v in tensors.items() if k.startswith("labels.")}
    options = parts.recipe.synthetic.labels
    if isinstance(options, sections.Relation):
        return RelationLabels(own, alpha=options.alpha)
    if isinstance(options, sections.Attention):
        of_classes = {
            k.removeprefix("classes."): v for k, v in own.items() if k.startswith("classes.")
        }
        classes = _restored_classes(options.classes, of_classes, parts)
        return AttentionLabels(classes, own["attention"], weight=options.weight)
    return _restored_classes(options, own, parts)


def _restored_classes(options: Any, own: Mapping[str, Tensor], parts: Parts) -> Labels:
    if "targets" in own:
        return HardLabels(own["targets"])
    if "logits" not in own:
        return DerivedLabels()
    return SoftLabels(
        own["logits"],
        temperature=options.temperature,
        learned=options.kind == "soft",
        independent=has_sets(parts.task),
    )
