"""Experts in training: one net or several stacked ones, their batches, and flat trajectories.

Sources: Cazenavette et al. 2022, "Dataset Distillation by Matching Training Trajectories" (CVPR);
flat trajectories: Du et al. 2023, "Minimizing the Accumulated Trajectory Error" (FTD, CVPR), which
trains the experts by GSAM (Zhuang et al. 2022, "Surrogate Gap Minimization", ICLR).

Shape suffixes: N items of the set, b items of a mini-batch, K experts trained at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.evaluate import STACKED_ELEMENTS
from mmdd.expert_options import Recording
from mmdd.learner import Learner, Params
from mmdd.machine import flops_per_item
from mmdd.modality import Augmentation
from mmdd.real import RealData
from mmdd.rng import draws_noise, generator
from mmdd.streamed import StreamedData
from mmdd.task import weighted_mean
from mmdd.training import Student
from mmdd.trees import tree_cat, tree_leaves, tree_map
from mmdd.views import augmented

STACK = 8
"""Experts trained at once where steps are small: more fill the memory and gain little."""
STACKED_FLOPS = 2e7
"""On a CPU stacking pays while the forward pass of a mini-batch is at most this many operations:
there the calls cost more than the arithmetic. Beyond it grouped kernels are no faster, or slower
(ConvNet at 8x8 pixels: width 32, 8 items 2 times faster, 256 items equal; width 128 slower)."""


# -- flat trajectories -----------------------------------------------------------------------------


def climb(params: Params, grads: Params, rho: float, *, stacked: bool = False) -> Params:
    """Steps to the worst nearby parameters: ``rho * w^2 * g / || |w| g ||`` (adaptive SAM).

    The norm is over all parameters of one net. `stacked`: tensors lead with [K], a net each.
    Source: FTD's ``perturb_weights``, with its 1e-12 against a division by zero.
    """
    scaled = {name: params[name] * grad for name, grad in grads.items()}
    scale = rho / (_dot(scaled, scaled, stacked).sqrt() + 1e-12)
    return {
        name: params[name].square() * grad * _spread(scale, grad, stacked)
        for name, grad in grads.items()
    }


def flatten(old: Params, new: Params, alpha: float, *, stacked: bool = False) -> Params:
    """GSAM's gradient: `new` less `alpha` times the part of `old` that is orthogonal to it.

    `old` is the gradient at the parameters, `new` the one at the perturbed parameters.
    Source: Zhuang et al. 2022, algorithm 1; FTD's ``gradient_decompose``.
    """
    old_norm, new_norm = (_dot(g, g, stacked).sqrt() for g in (old, new))
    cosine = _dot(old, new, stacked) / (old_norm * new_norm + 1e-12)
    along = cosine * old_norm / (new_norm + 1e-12)
    return {
        name: grad - alpha * (old[name] - _spread(along, grad, stacked) * grad)
        for name, grad in new.items()
    }


def _dot(a: Params, b: Params, stacked: bool) -> Tensor:
    """Inner product over all parameters: a number, or [K]."""
    products = [a[name] * b[name] for name in a]
    if stacked:
        return torch.stack([p.reshape(len(p), -1).sum(dim=1) for p in products]).sum(dim=0)
    return torch.stack([p.sum() for p in products]).sum()


def _spread(factor: Tensor, like: Tensor, stacked: bool) -> Tensor:
    """Shape [K] factors to multiply [K, ...] tensors."""
    return factor.reshape(-1, *[1] * (like.ndim - 1)) if stacked else factor


# -- training --------------------------------------------------------------------------------------


class Cohort(Student):
    """One expert in training, or K stacked along a leading axis of every parameter.

    Parameters
    ----------
    length: steps of the whole training, along which the rate falls where it does.

    Attributes
    ----------
    losses: [K] mean loss of the latest step's batch, at the parameters before the step.
    """

    losses: Tensor

    def __init__(
        self, learner: Learner, recording: Recording, draws: list[Params], length: int = 1
    ) -> None:
        self.length = length
        self.recording, self.size, self.stacked = recording, len(draws), len(draws) > 1
        start = draws[0]
        if self.stacked:
            start = {name: torch.stack([draw[name] for draw in draws]) for name in start}
        names = ("lr", "momentum", "weight_decay", "optimiser")
        super().__init__(learner, start, **{name: getattr(recording, name) for name in names})
        self._average = None if recording.average is None else self.snapshot()

    @property
    def kept(self) -> Params:
        """What a snapshot is of: the parameters, or their average. They change with `step`."""
        return self.params if self._average is None else self._average

    def step(self, batch: Batch) -> Tensor:
        """One step of every expert on `batch`: [K * b] items, expert after expert.

        Returns the outputs that it was taken at.
        """
        self._optimiser.zero_grad(set_to_none=True)
        losses, outputs = self._losses(self._params, batch)
        # a sum over experts: each one's gradient is what it would be alone
        losses.sum().backward()
        self.losses = losses.detach()
        if self.recording.sharpness:
            self._flatten(batch)
        for group in self._optimiser.param_groups:
            group["lr"] = self.recording.rate(self.steps / self.length)
        self._optimiser.step()
        self.steps += 1
        self._add_to_average()
        return tree_map(torch.Tensor.detach, outputs)

    @torch.no_grad()
    def _add_to_average(self) -> None:
        if self._average is None:
            return
        share = self.recording.weight_of_latest(self.steps)
        for name, value in self._average.items():
            if value.is_floating_point():
                value.lerp_(self._params[name], share)
            else:
                value.copy_(self._params[name])

    def state_dict(self) -> dict[str, Any]:
        """As of a student, with the average."""
        found = super().state_dict()
        if self._average is not None:
            found["average"] = {name: value.clone() for name, value in self._average.items()}
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        super().load_state_dict(state)
        if self._average is not None:
            for name, value in self._average.items():
                value.copy_(state["average"][name])

    def _losses(self, params: Params, batch: Batch) -> tuple[Tensor, Any]:
        task = self.learner.task
        if not self.stacked:
            outputs = self.learner.outputs(params, batch)
            losses = task.item_losses(outputs, batch.targets)
            return weighted_mean(losses, batch.weights).reshape(1), outputs
        inputs = tree_map(lambda leaf: leaf.unflatten(0, (self.size, -1)), batch.inputs)
        outputs = self.learner.stacked_outputs(params, inputs)
        flat = tree_map(lambda leaf: leaf.flatten(0, 1), outputs)
        losses = task.item_losses(flat, batch.targets)
        return losses.unflatten(0, (self.size, -1)).mean(dim=1), flat

    def _flatten(self, batch: Batch) -> None:
        """Replace the leaves' gradients by GSAM's."""
        recording, stacked = self.recording, self.stacked
        leaves = self.learner.trainable(self._params)
        old = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        # copies of the buffers too: running statistics are updated once a step
        moved = self.snapshot()
        with torch.no_grad():
            for name, upward in climb(leaves, old, recording.rho, stacked=stacked).items():
                moved[name] += upward
        tops = [moved[name].requires_grad_() for name in old]
        grads = torch.autograd.grad(self._losses(moved, batch)[0].sum(), tops)
        new = dict(zip(old, grads, strict=True))
        for name, grad in flatten(old, new, recording.alpha, stacked=stacked).items():
            leaves[name].grad = grad.to(leaves[name].dtype)


def stack_size(learner: Learner, example: Batch, batch_size: int, asked: int | None = None) -> int:
    """How many experts to train at once on mini-batches of items like `example` (one item).

    Raises `UserError` if more than one is asked for where they cannot be stacked.
    """
    coupled = learner.mixes_items or learner.task.coupled or example.joint
    if asked is not None:
        if asked > 1 and coupled:
            raise UserError("these experts cannot be trained stacked", got=asked, expected="1")
        return max(1, asked)
    # dropout draws from one stream, which stacked experts would share
    if coupled or draws_noise(learner.encoder) or learner.compiled:
        return 1
    if sum(leaf.numel() for leaf in tree_leaves(example.inputs)) > STACKED_ELEMENTS:
        return 1
    if learner.device.type == "cpu":
        flops = batch_size * flops_per_item(learner.encoder, example.inputs)
        return STACK if flops <= STACKED_FLOPS else 1
    return STACK


class Schedule:
    """The batches of every expert and epoch.

    They depend on the seed, the expert's number and the epoch alone: a resumed recording needs no
    saved stream.
    """

    def __init__(
        self,
        data: RealData,
        recording: Recording,
        seed: int,
        augmentation: Augmentation | None,
        joint: bool,
    ) -> None:
        self.data, self.recording, self.seed = data, recording, seed
        self.augmentation = augmentation if recording.augment else None
        self.whole = data.select(torch.arange(len(data))) if joint else None
        self._hardness = self._order() if recording.curriculum is not None else None
        self.per_pass = 1 if joint else math.ceil(len(data) / recording.batch_size)
        self.steps = recording.epoch_steps or self.per_pass

    def stream(self, expert: int, purpose: str, number: int) -> torch.Generator:
        """The random numbers of one expert for one purpose in one epoch or pass."""
        return generator(self.seed, f"expert/{expert}/{purpose}/{number}")

    def epoch(self, members: list[int], epoch: int) -> Iterator[Batch]:
        """Batches of [K * b] items, expert after expert."""
        streams = [self.stream(expert, "augment", epoch) for expert in members]
        if self.whole is not None:
            batches = iter([self._easy(self.whole, epoch)] * self.steps)
        else:
            batches = self._batches(members, epoch * self.steps, (epoch + 1) * self.steps)
        for batch in batches:
            yield self._augmented(batch, streams)

    def _order(self) -> Tensor:
        """Rows of the whole structure that are training items, from easy to hard."""
        difficulty = self.data.difficulty()
        if difficulty is None or self.whole is None:
            raise UserError(
                "these data know no difficulty of their items to make a curriculum of",
                got=f"experts.curriculum={self.recording.curriculum}",
                expected="nodes of a graph",
            )
        return self.data.rows(torch.argsort(difficulty, stable=True))

    def _easy(self, whole: Batch, epoch: int) -> Batch:
        """The structure with weight on the items that this epoch trains on."""
        if self._hardness is None:
            return whole
        count = max(1, round(self.recording.share(epoch) * len(self._hardness)))
        return whole.select(self._hardness[:count].to(whole.groups.device))

    def _batches(self, members: list[int], start: int, stop: int) -> Iterator[Batch]:
        """Steps `start` to `stop` of an endless stream of shuffled passes."""
        size = self.recording.batch_size
        while start < stop:
            number, first = divmod(start, self.per_pass)
            last = min(self.per_pass, first + stop - start)
            streams = [self.stream(expert, "order", number) for expert in members]
            orders = [self.data.permutation(stream) for stream in streams]
            parts = [order.split(size)[first:last] for order in orders]
            yield from self._read([torch.cat(step) for step in zip(*parts, strict=True)])
            start += last - first

    def _read(self, steps: list[Tensor]) -> Iterator[Batch]:
        if isinstance(self.data, StreamedData):
            # as one pass over a set of its own, so that the workers read ahead
            yield from self.data.subset(torch.cat(steps)).batches(len(steps[0]))
            return
        for index in steps:
            yield self.data.select(index)

    def _augmented(self, batch: Batch, streams: list[torch.Generator]) -> Batch:
        if self.augmentation is None:
            return batch
        each = len(batch) // len(streams)
        draws = [self.augmentation.draw(each, stream, shared_op=True) for stream in streams]
        draw = draws[0] if len(draws) == 1 else tree_cat(draws)
        return augmented(batch, self.augmentation, draw)
