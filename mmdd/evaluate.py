"""Train fresh learners on a set and score them on real data that the set never saw.

Shape suffixes: n items, b items of a mini-batch, K learners.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.errors import NonFiniteError
from mmdd.learner import Learner, Params
from mmdd.modality import Augmentation
from mmdd.real import RealData
from mmdd.recipe import Protocol
from mmdd.rng import generator
from mmdd.task import is_better
from mmdd.trees import tree_cat, tree_leaves, tree_map, tree_take

STACKED_ELEMENTS = 1024
"""Learners are trained stacked when one item has at most this many numbers: there the cost of a
step is the calls, not the arithmetic. Larger inputs are faster one learner after the other."""


@dataclasses.dataclass
class Trainer:
    """Trains learners by one protocol.

    `seed` and a learner's place decide its initial parameters, order and augmentation, so that the
    same learner sees the same numbers whether it is trained alone or stacked.
    """

    learner: Learner
    protocol: Protocol
    seed: int
    augmentation: Augmentation | None = None
    validation: RealData | None = None
    on_epoch: Callable[[int, int], None] = lambda done, total: None
    """Called with (epochs done, epochs in all) summed over learners."""

    def train(self, sets: Sequence[Batch | RealData], purpose: str = "learner") -> list[Params]:
        """Train one learner on each of `sets`; the same set may be given several times."""
        names = [f"{purpose}/{place}" for place in range(len(sets))]
        if self._stackable(sets):
            run = _Run(self, names, [s for s in sets if isinstance(s, Batch)])
            return run.finish(self.on_epoch, 0, len(sets))
        trained = []
        for place, (name, data) in enumerate(zip(names, sets, strict=True)):
            trained += _Run(self, [name], [data]).finish(self.on_epoch, place, len(sets))
        return trained

    def _stackable(self, sets: Sequence[Batch | RealData]) -> bool:
        batches = [data for data in sets if isinstance(data, Batch)]
        if len(sets) < 2 or len(batches) < len(sets) or self.learner.mixes_items:
            return False
        if self.learner.task.coupled or self.protocol.selection == "validation":
            return False
        alike = all(len(b) == len(batches[0]) and not b.joint for b in batches)
        items = len(batches[0])
        numbers = sum(leaf.numel() for leaf in tree_leaves(batches[0].inputs)) / max(items, 1)
        return alike and not self.learner.compiled and numbers <= STACKED_ELEMENTS


class _Run:
    """K learners in training: one, or several stacked along a leading axis of every parameter."""

    def __init__(
        self, trainer: Trainer, names: list[str], sets: Sequence[Batch | RealData]
    ) -> None:
        self.t = trainer
        self.names = names
        self.sets = sets
        self.stacked = len(names) > 1
        learner, seed = trainer.learner, trainer.seed
        draws = [learner.init(generator(seed, f"{name}/init")) for name in names]
        self.streams = [generator(seed, f"{name}/data") for name in names]
        state = draws[0]
        if self.stacked:
            state = {key: torch.stack([draw[key] for draw in draws]) for key in draws[0]}
        trainable = learner.trainable(state)
        self.params = {
            name: value.requires_grad_() if name in trainable else value
            for name, value in state.items()
        }
        self.best: Params | None = None
        self.best_score: float | None = None
        self.done = 0

    def finish(self, on_epoch: Callable[[int, int], None], place: int, of: int) -> list[Params]:
        """Train to the end of the protocol and return one parameter dict per learner."""
        protocol = self.t.protocol
        epochs = protocol.epochs
        optimiser = self._optimiser()
        checks = {math.ceil(epochs * k / protocol.checks) for k in range(1, protocol.checks + 1)}
        for epoch in range(epochs):
            if protocol.schedule == "dc" and epoch == epochs // 2 + 1:
                # the published code makes a new optimiser here, which forgets the momentum
                optimiser = self._optimiser(0.1 * protocol.lr)
            self._epoch(optimiser, epoch)
            if protocol.selection == "validation" and epoch + 1 in checks:
                self._check()
            on_epoch(place * epochs + (epoch + 1) * len(self.names), of * epochs)
        return self._results()

    def _optimiser(self, lr: float | None = None) -> torch.optim.Optimizer:
        p = self.t.protocol
        leaves = list(self.t.learner.trainable(self.params).values())
        if p.optimiser == "adam":
            return torch.optim.Adam(leaves, lr or p.lr, weight_decay=p.weight_decay)
        return torch.optim.SGD(leaves, lr or p.lr, p.momentum, weight_decay=p.weight_decay)

    def _epoch(self, optimiser: torch.optim.Optimizer, epoch: int) -> None:
        steps = math.ceil(len(self.sets[0]) / self.t.protocol.batch_size)
        for step, batch in enumerate(self._batches()):
            factor = rate_factor(self.t.protocol, epoch + step / steps)
            if factor is not None:
                for group in optimiser.param_groups:
                    group["lr"] = self.t.protocol.lr * factor
            optimiser.zero_grad(set_to_none=True)
            loss = self._loss(batch)
            loss.backward()
            optimiser.step()
        # one look an epoch: a comparison at every step would stall a GPU
        if not bool(torch.isfinite(loss.detach())):
            raise NonFiniteError(
                f"the loss of a learner became {loss.item()} in epoch {epoch + 1} of its training;"
                " lower evaluate.lr"
            )

    def _loss(self, batch: Batch) -> Tensor:
        learner = self.t.learner
        if not self.stacked:
            return learner.loss(self.params, batch)
        count = len(self.names)
        inputs = tree_map(lambda leaf: leaf.unflatten(0, (count, -1)), batch.inputs)
        outputs = learner.stacked_outputs(self.params, inputs)
        flat = tree_map(lambda leaf: leaf.flatten(0, 1), outputs)
        losses = learner.task.item_losses(flat, batch.targets).unflatten(0, (count, -1))
        weights = batch.item_weights.unflatten(0, (count, -1))
        # a sum over learners: each one's gradient is what it would be alone
        tiny = torch.finfo(losses.dtype).tiny
        return ((losses * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(tiny)).sum()

    def _batches(self) -> Iterator[Batch]:
        size = self.t.protocol.batch_size
        data = self.sets[0]
        if isinstance(data, RealData):
            for batch in data.batches(size, self.streams[0]):
                yield self._augmented(batch)
            return
        if data.joint:
            yield self._augmented(data)
            return
        orders = [torch.randperm(len(data), generator=stream) for stream in self.streams]
        for start in range(0, len(data), size):
            parts = [
                batch.select(order[start : start + size].to(batch.groups.device))
                for batch, order in zip(self.sets, orders, strict=True)
                if isinstance(batch, Batch)
            ]
            yield self._augmented(parts[0] if len(parts) == 1 else tree_cat(parts))

    def _augmented(self, batch: Batch) -> Batch:
        augmentation = self.t.augmentation
        if augmentation is None or not self.t.protocol.augment:
            return batch
        each = len(batch) // len(self.streams)
        draws = [augmentation.draw(each, stream, shared_op=True) for stream in self.streams]
        draw = draws[0] if len(draws) == 1 else tree_cat(draws)
        return batch.with_inputs(augmentation(batch.inputs, draw))

    def _check(self) -> None:
        validation = self.t.validation
        assert validation is not None, "selection by validation was refused without a split"
        value = score(self.t.learner, self.params, validation)
        if is_better(self.t.learner.task, value, self.best_score):
            self.best_score = value
            self.best = {name: leaf.detach().clone() for name, leaf in self.params.items()}

    def _results(self) -> list[Params]:
        final = {name: leaf.detach() for name, leaf in (self.best or self.params).items()}
        if not all(bool(torch.isfinite(leaf).all()) for leaf in final.values()):
            raise NonFiniteError("a trained learner has non-finite parameters; lower evaluate.lr")
        if not self.stacked:
            return [final]
        return [{name: leaf[k] for name, leaf in final.items()} for k in range(len(self.names))]


def rate_factor(protocol: Protocol, epoch: float) -> float | None:
    """Multiple of the base rate at a (fractional) epoch; None where the optimiser holds its own."""
    done = min(1.0, epoch / protocol.epochs)
    if protocol.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if protocol.schedule == "onecycle":
        peak = 0.25
        if done < peak:
            return max(done / peak, 0.02)
        return 0.5 * (1 + math.cos(math.pi * (done - peak) / (1 - peak)))
    return None


@torch.no_grad()
def score(learner: Learner, params: Params, data: RealData, size: int = 1024) -> float:
    """Score `params` on the whole of `data` by the task's metric."""
    outputs, targets = [], []
    for batch in [data.select(torch.arange(len(data)))] if _is_joint(data) else data.batches(size):
        result: Any = learner.outputs(params, batch, train=False)
        truth = batch.targets
        if batch.joint:
            rows = torch.nonzero(batch.item_weights != 0).flatten()
            result, truth = tree_take(result, rows), tree_take(truth, rows)
        outputs.append(result)
        targets.append(truth)
    everything = tree_cat(outputs)
    if not all(bool(torch.isfinite(leaf).all()) for leaf in tree_leaves(everything)):
        raise NonFiniteError("a trained learner gives non-finite outputs; lower evaluate.lr")
    return learner.task.score(everything, tree_cat(targets))


def _is_joint(data: RealData) -> bool:
    return data.select(torch.arange(1)).joint


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of several learners: mean, sample standard deviation (n - 1) and their number."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return sum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation; 0 for a single learner."""
        if len(self.values) < 2:
            return 0.0
        mean = self.mean
        return math.sqrt(sum((v - mean) ** 2 for v in self.values) / (len(self.values) - 1))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"mean": self.mean, "std": self.std, "n": len(self.values), "values": self.values}
