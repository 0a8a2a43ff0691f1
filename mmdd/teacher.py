"""Teachers: trained nets whose outputs are labels, or where learned labels start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.labels import SoftLabels
from mmdd.learner import Learner, Params
from mmdd.synthetic import SyntheticSet
from mmdd.task import has_sets

if TYPE_CHECKING:
    from mmdd.experts import Experts


class Teacher:
    """The mean output of recorded experts at the end of their training.

    Parameters
    ----------
    every: steps between two renewals of the labels of a synthetic set.
    most: experts asked; more cost time and say little else.
    """

    def __init__(
        self, learner: Learner, experts: Experts, *, every: int = 50, most: int = 10
    ) -> None:
        self.learner, self.experts = learner, experts
        self.every = every
        self.count = min(most, experts.count)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """[E, n, C] logits of every expert."""
        ends = (self._end(expert) for expert in range(self.count))
        return torch.stack([self.learner.outputs(end, batch, train=False) for end in ends])

    @torch.no_grad()
    def attention(self, batch: Batch) -> Tensor:
        """[n, H, L] what the experts attend to, on average."""
        ends = (self._end(expert) for expert in range(self.count))
        said = [self.learner.attended(end, batch, train=False)["attention"] for end in ends]
        return torch.stack(said).mean(dim=0)

    def _end(self, expert: int) -> Params:
        return self.experts.params(expert, self.experts.epochs, self.learner.device)

    def start(self, batch: Batch, margin: float) -> Tensor:
        """[n, C] first logits of learned labels: the mean of the experts that are right (DATM).

        Items that none gets right start with `margin` at their class and zero elsewhere. Where an
        item has any number of classes, an expert is right class by class.
        """
        logits = self.logits(batch)
        if has_sets(self.learner.task):
            right = ((logits > 0) == batch.targets).to(logits.dtype)
        else:
            right = (logits.argmax(dim=2) == batch.groups).to(logits.dtype)[..., None]
        mean = (logits * right).sum(dim=0) / right.sum(dim=0).clamp_min(1)
        return torch.where(right.sum(dim=0) > 0, mean, wanted_logits(batch, mean.shape[1], margin))

    def after_step(self, synthetic: SyntheticSet, number: int) -> None:
        """Renew the labels when step `number` (0-based) was a multiple of `every`."""
        if (number + 1) % self.every == 0:
            self.renew(synthetic)

    @torch.no_grad()
    def renew(self, synthetic: SyntheticSet) -> None:
        """Write the teacher's logits of the items as they are; a packed item gets its parts' mean.

        Labels that are learned are left alone.
        """
        labels, batch = synthetic.labels, synthetic.batch()
        if isinstance(labels, SoftLabels) and labels.kind == "teacher":
            labels.logits.copy_(per_stored_item(self.logits(batch).mean(dim=0), synthetic))


def per_stored_item(values: Tensor, synthetic: SyntheticSet) -> Tensor:
    """[M * expand, C] -> [M, C] mean over the parts of every stored item."""
    expand = synthetic.representation.expand
    return values.unflatten(0, (-1, expand)).mean(dim=1)


def wanted_logits(batch: Batch, count: int, margin: float) -> Tensor:
    """[n, C] logits with `margin` at the classes of each item.

    Zero elsewhere; where an item has any number of classes (bools [n, C]), -`margin`.
    """
    if isinstance(batch.targets, Tensor) and batch.targets.dtype == torch.bool:
        return margin * (2 * batch.targets.float() - 1)
    return class_logits(batch.groups, count, margin)


def class_logits(classes: Tensor, count: int, margin: float) -> Tensor:
    """[n, C] logits with `margin` at each item's class."""
    return margin * torch.nn.functional.one_hot(classes, count).float()
