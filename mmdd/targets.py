"""What the targets of a batch are, and those of them that a learner is trained on."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mmdd.batch import Batch
from mmdd.learner import Learner
from mmdd.task import Task, guided


def label_kind(batch: Batch, task: Task) -> str:
    """``"hard"`` for classes, ``"soft"`` for probabilities, ``"attention"``, else ``"own"``."""
    targets = batch.targets
    if guided(targets):
        return "attention"
    known = "hard" in task.label_kinds or "multi-hot" in task.label_kinds
    if not isinstance(targets, Tensor) or not known:
        return "own"
    if targets.is_floating_point():
        return "soft" if "soft" in task.label_kinds and targets.ndim == 2 else "own"
    return "hard"


def labelled(batch: Batch, task: Task, labels: str) -> Batch:
    """Take `labels`: the set's ``"own"``, or ``"hard"``: its classes where it has probabilities.

    The class of an item is its matching group; where it has any number of classes, they are those
    of a probability of a half or more. Targets that are no classes stay as they are.
    """
    if labels == "own":
        return batch
    if guided(batch.targets):
        batch = dataclasses.replace(batch, targets=batch.targets["classes"])
    if label_kind(batch, task) != "soft":
        return batch
    several = "multi-hot" in task.label_kinds
    return dataclasses.replace(batch, targets=batch.targets >= 0.5 if several else batch.groups)


def readable(batch: Batch, learner: Learner) -> Batch:
    """`batch` without labels of attention where `learner` tells none, or one of another shape."""
    if not guided(batch.targets):
        return batch
    if learner.attention_shape == tuple(batch.targets["attention"].shape[1:]):
        return batch
    return dataclasses.replace(batch, targets=batch.targets["classes"])
