"""What the core asks of a task: a loss per item and a score with a direction."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from mmdd.trees import Tree


class Task(Protocol):
    """One file of ``tasks/``. Outputs come from the learner, targets from the batch.

    Attributes
    ----------
    metric: name of the score, e.g. ``"accuracy"``.
    direction: ``"max"`` when a higher score is better, else ``"min"``.
    coupled: True when the loss of an item depends on the other items of its batch (contrastive).
    label_kinds: kinds of synthetic labels that the loss can read: ``"hard"`` classes, ``"soft"``
        probabilities, ``"values"`` (numbers that belong to the items, kept by labels of kind hard
        and learned by those of kind soft), ``"derived"`` by the representation alone,
        ``"relation"`` similarities of all pairs.

    A task with further metrics offers ``extras(outputs, targets) -> dict[str, float]``.
    """

    name: str
    metric: str
    direction: Literal["max", "min"]
    coupled: bool
    label_kinds: tuple[str, ...]

    def item_losses(self, outputs: Tree, targets: Tree) -> Tensor:
        """[n] loss of every item, differentiable in outputs and targets."""

    def score(self, outputs: Tree, targets: Tree) -> float:
        """The metric over a whole evaluation set, as a fraction or in the task's unit."""


def is_better(task: Task, new: float, old: float | None) -> bool:
    """True when `new` beats `old` in the task's direction (anything beats None)."""
    if old is None:
        return True
    return new > old if task.direction == "max" else new < old


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of [n] losses; items of weight 0 do not count."""
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)
