"""What one step of any method sees: a net, the synthetic set, real items and one augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdd.batch import Batch
from mmdd.learner import Learner
from mmdd.modality import Augmentation
from mmdd.real import RealData
from mmdd.rng import generator
from mmdd.sources import Drawn
from mmdd.synthetic import SyntheticSet
from mmdd.views import augmented, told_apart, views_of

Selector = Callable[["Step"], Tensor]
"""Chooses the real items of a step: returns their indices."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One comparison of synthetic with real items.

    Attributes
    ----------
    drawn: what the parameter source drew.
    per_group: real items per group.
    synthetic_per_group: decoded synthetic items per group at most; None: all.
    generator: the stream that real items are drawn from.
    seed: the run's, for `random`.
    augmentation, draw: one draw per group, shared by the real and the synthetic batch (siamese).
        Where it gives several views, a group comes once for each of them.
    groups: the groups to compare, or None for all of them.
    """

    number: int
    learner: Learner
    drawn: Drawn
    synthetic: SyntheticSet
    real: RealData
    per_group: int
    generator: torch.Generator
    seed: int = 0
    augmentation: Augmentation | None = None
    draw: Any = None
    groups: Tensor | None = None
    selector: Selector | None = None
    synthetic_per_group: int | None = None

    def real_batch(self) -> Batch:
        """Real items of the groups, augmented by the shared draw."""
        if self.selector is None:
            index = self.real.draw_index(self.per_group, self.generator, self.groups)
        else:
            index = self.selector(self)
        return self._augmented(self.real.select(index))

    def synthetic_batch(self) -> Batch:
        """Synthetic items of the groups, augmented by the same draw.

        All of them, or for every objective and net of the step the same few.
        """
        if self.synthetic_per_group is None:
            return self._augmented(self.synthetic.batch(groups=self.groups))
        stream = self.random("synthetic")
        index = self.synthetic.sample(self.synthetic_per_group, stream, self.groups)
        return self._augmented(self.synthetic.batch(index))

    def _augmented(self, batch: Batch) -> Batch:
        made = augmented(batch, self.augmentation, self.draw, batch.groups)
        return told_apart(made, views_of(self.augmentation))

    def random(self, purpose: str) -> torch.Generator:
        """Numbers for one purpose of this step: the same at every pass and after a resume."""
        return generator(self.seed, f"{purpose}/{self.number}")

    def of_net(self, drawn: Drawn) -> Step:
        """The same comparison at another net."""
        return dataclasses.replace(self, drawn=drawn)

    def of_groups(self, groups: Tensor) -> Step:
        """The same comparison restricted to some groups (draw and net unchanged)."""
        return dataclasses.replace(self, groups=groups)


class Objective:
    """A scalar to minimise.

    `by_group` is True when the objective is a sum over groups, so that a step may be computed
    some groups at a time with the same gradient in less memory. `stacks` is True when it compares
    at stacked nets in one go; others are called once per net.
    """

    by_group: bool = False
    stacks: bool = False

    def __call__(self, step: Step) -> Tensor:
        """Scalar loss, differentiable in the leaves of ``step.synthetic``.

        A loss without a graph means: nothing to learn from this step.
        """
        raise AssertionError("an objective defines __call__")


class WeightedSum(Objective):
    """Several objectives with their weights; mean over the nets where several were drawn."""

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        self.terms = list(terms)
        self.by_group = all(objective.by_group for _, objective in terms)
        self.stacks = True

    def __call__(self, step: Step) -> Tensor:
        """Weighted sum of the terms."""
        parts = [weight * self._mean(objective, step) for weight, objective in self.terms]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    @staticmethod
    def _mean(objective: Objective, step: Step) -> Tensor:
        if objective.stacks:
            return objective(step)
        losses = [objective(step.of_net(drawn)) for drawn in step.drawn.each()]
        return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


def with_gradient(value: Tensor, gradients: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """A scalar worth `value` whose backward pass hands each tensor the gradient that is known.

    `gradients` are pairs of a tensor with a graph and the derivative of `value` with respect to
    it. Lets compiled or memory-saving derivatives join the graph of decode and augmentation.
    """
    pairs = [(tensor, gradient.detach().to(tensor.dtype)) for tensor, gradient in gradients]
    if not pairs:
        return value.detach()
    tensors, known = zip(*pairs, strict=True)
    found: Tensor = _Known.apply(value.detach(), known, *tensors)
    return found


class _Known(torch.autograd.Function):
    """A value whose derivatives are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, known: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*known)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return (
            None,
            None,
            *((gradient * slope).to(gradient.dtype) for gradient in ctx.saved_tensors),
        )
