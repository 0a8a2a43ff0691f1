"""What one step of any method sees: a net, the synthetic set, real items and one augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.learner import Learner
from mmdd.modality import Augmentation
from mmdd.real import RealData
from mmdd.synthetic import SyntheticSet

Selector = Callable[["Step"], Tensor]
"""Chooses the real items of a step: returns their indices."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One comparison of synthetic with real items.

    Attributes
    ----------
    drawn: what the parameter source drew, usually `Params`.
    per_group: real items per group.
    generator: the stream that real items are drawn from.
    augmentation, draw: one draw per group, shared by the real and the synthetic batch (siamese).
    groups: the groups to compare, or None for all of them.
    """

    number: int
    learner: Learner
    drawn: Any
    synthetic: SyntheticSet
    real: RealData
    per_group: int
    generator: torch.Generator
    augmentation: Augmentation | None = None
    draw: Any = None
    groups: Tensor | None = None
    selector: Selector | None = None

    def real_batch(self) -> Batch:
        """Real items of the groups, augmented by the shared draw."""
        if self.selector is None:
            index = self.real.draw_index(self.per_group, self.generator, self.groups)
        else:
            index = self.selector(self)
        return self._augmented(self.real.select(index))

    def synthetic_batch(self) -> Batch:
        """All synthetic items of the groups, augmented by the same draw."""
        return self._augmented(self.synthetic.batch(groups=self.groups))

    def _augmented(self, batch: Batch) -> Batch:
        if self.augmentation is None:
            return batch
        return batch.with_inputs(self.augmentation(batch.inputs, self.draw, batch.groups))

    def of_groups(self, groups: Tensor) -> Step:
        """The same comparison restricted to some groups (draw and net unchanged)."""
        return dataclasses.replace(self, groups=groups)


class Objective:
    """A scalar to minimise.

    `by_group` is True when the objective is a sum over groups, so that a step may be computed
    some groups at a time with the same gradient in less memory.
    """

    by_group: bool = False

    def __call__(self, step: Step) -> Tensor:
        """Scalar loss, differentiable in the leaves of ``step.synthetic``."""
        raise AssertionError("an objective defines __call__")
