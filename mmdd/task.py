"""What the core asks of a task: a loss per item and a score with a direction."""

from __future__ import annotations

from collections.abc import Callable
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
        ``"relation"`` similarities of all pairs, ``"multi-hot"`` any number of classes per item
        (bools [n, C]), ``"attention"`` beside classes where a learner is to look (`guided`).

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


def has_sets(task: Task | type[Task]) -> bool:
    """True where an item has any number of classes: targets are bools, or probabilities, [n, C]."""
    return "multi-hot" in task.label_kinds


ATTENTION_FLOOR = 1e-12
"""Added to shares of attention under a logarithm (Maekawa et al. 2023, released code)."""


def guided(targets: Tree) -> bool:
    """True for targets that say where a learner is to look, beside what an item is.

    They are ``{"classes", "attention" [n, H, L], "weight" [n]}`` (`mmdd.labels.AttentionLabels`);
    outputs that they are compared with are ``{"logits", "attention" [n, H, L]}``.
    """
    return isinstance(targets, dict) and "attention" in targets


def unguided(outputs: Tree, targets: Tree) -> tuple[Tree, Tree]:
    """Outputs and targets without what they say of attention."""
    return (
        outputs["logits"] if guided(outputs) else outputs,
        targets["classes"] if guided(targets) else targets,
    )


def guided_losses(own: Callable[[Tree, Tree], Tensor], outputs: Tree, targets: Tree) -> Tensor:
    r"""[n] the task's `own` losses, plus the divergence of the learner's attention from its label.

    :math:`l_i + \frac{\lambda_i}{H} \sum_h \mathrm{KL}(a_{ih} \| \hat a_{ih})`, summed over the
    positions (Maekawa et al. 2023, as released: the mean over heads, lambda = 1). A position whose
    label is zero adds nothing.
    """
    label, said = (side["attention"] + ATTENTION_FLOOR for side in (targets, outputs))
    apart = (targets["attention"] * (label.log() - said.log())).sum(dim=-1).mean(dim=-1)
    return own(*unguided(outputs, targets)) + targets["weight"] * apart


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of [n] losses; items of weight 0 do not count."""
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)
