"""Train fresh learners on a set and score them on real data that the set never saw.

Shape suffixes: n items, b items of a mini-batch, K learners.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdd.batch import Batch
from mmdd.errors import NonFiniteError, UserError
from mmdd.learner import Learner, Params
from mmdd.modality import Augmentation, Mixer
from mmdd.protocols import Protocol
from mmdd.real import RealData
from mmdd.rng import derive, draws_noise, generator, lent_generators
from mmdd.targets import readable
from mmdd.task import is_better, weighted_mean
from mmdd.trees import Tree, tree_cat, tree_leaves, tree_map, tree_take
from mmdd.views import augmented

STACKED_ELEMENTS = 1024
"""Learners are trained stacked when one item has at most this many numbers: there the cost of a
step is the calls, not the arithmetic. Larger inputs are faster one learner after the other."""


@dataclasses.dataclass
class Trainer:
    """Trains learners by one protocol.

    `seed` and a learner's place decide its initial parameters, order and augmentation, so that the
    same learner sees the same numbers whether it is trained alone or stacked.

    Raises `UserError` for a protocol that asks for what is not there: a learned step size that
    nobody resolved, or a mixing that the modality or the task does not know.
    """

    learner: Learner
    protocol: Protocol
    seed: int
    augmentation: Augmentation | None = None
    validation: RealData | None = None
    on_epoch: Callable[[int, int], None] = lambda done, total: None
    """Called with (epochs done, epochs in all) summed over learners."""
    mixers: Mapping[str, Mixer] = dataclasses.field(default_factory=dict)
    """The modality's ways to mix two items, beside `mixup`."""
    rates: Sequence[float] | None = None
    """One rate per group of the learner's parameters, in place of the protocol's one."""

    def __post_init__(self) -> None:
        if self.protocol.lr == "learned":
            raise no_step_size()
        groups = self.learner.groups_of_parameters
        if self.rates is not None:
            assert len(self.rates) == len(groups), "one rate per group of parameters"
            named = sorted(name for names in groups.values() for name in names)
            assert named == sorted(self.learner.trainable_names), "groups hold every parameter once"
        self.mixer = self._chosen_mixer()

    def _chosen_mixer(self) -> Mixer | None:
        name, known = self.protocol.mix, {"mixup": mixup, **self.mixers}
        if name == "none":
            return None
        hint = "Set evaluate.mix=none."
        if self.learner.task.coupled:
            task = self.learner.task.name
            raise UserError(f"{name} mixes items one by one; {task!r} compares them", hint=hint)
        if name not in known:
            raise UserError(
                "the protocol mixes items in a way that this modality does not offer",
                got=name,
                expected=f"one of {', '.join(sorted(known))}, none",
                hint=hint,
            )
        return known[name]

    def train(self, sets: Sequence[Batch | RealData], purpose: str = "learner") -> list[Params]:
        """Train one learner on each of `sets`; the same set may be given several times.

        Labels that the learner cannot read are left out; see `readable`.
        """
        sets = [readable(data, self.learner) if isinstance(data, Batch) else data for data in sets]
        if self.mixer is not None:
            for data in {id(data): data for data in sets}.values():
                self._require_mixable(data)
        names = [f"{purpose}/{place}" for place in range(len(sets))]
        if self._stackable(sets):
            run = _Run(self, names, [s for s in sets if isinstance(s, Batch)])
            return run.finish(self.on_epoch, 0, len(sets))
        trained: list[Params] = []
        for place, (name, data) in enumerate(zip(names, sets, strict=True)):
            trained += _Run(self, [name], [data]).finish(self.on_epoch, place, len(sets))
        return trained

    def _require_mixable(self, data: Batch | RealData) -> None:
        probe = data if isinstance(data, Batch) else data.select(torch.arange(1))
        if probe.joint:
            what = "the items are one structure, which cannot be mixed in pairs"
        elif not any(leaf.is_floating_point() for leaf in tree_leaves(probe.inputs)):
            what = "mixing interpolates floating-point inputs; these have none"
        else:
            return
        raise UserError(what, got=self.protocol.mix, hint="Set evaluate.mix=none.")

    def _stackable(self, sets: Sequence[Batch | RealData]) -> bool:
        batches = [data for data in sets if isinstance(data, Batch)]
        if len(sets) < 2 or len(batches) < len(sets) or self.learner.mixes_items:
            return False
        if self.learner.task.coupled or self.protocol.selection == "validation":
            return False
        if any(isinstance(module, nn.RNNBase) for module in self.learner.encoder.modules()):
            # vmap knows no recurrent layers
            return False
        if draws_noise(self.learner.encoder):
            return False
        if self.mixer is not None:
            # a learner has its own pairs and its own share at every step
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
        batches = [data for data in sets if isinstance(data, Batch)]
        self.whole: Batch | None = None
        if batches and (batches[0].joint or len(batches[0]) <= trainer.protocol.batch_size):
            # the order of items in the only mini-batch of an epoch is nothing to a learner
            self.whole = batches[0] if len(batches) == 1 else tree_cat(batches)

    def finish(self, on_epoch: Callable[[int, int], None], place: int, of: int) -> list[Params]:
        """Train to the end of the protocol and return one parameter dict per learner."""
        learner = self.t.learner
        if not draws_noise(learner.encoder):
            return self._finish(on_epoch, place, of)
        with lent_generators(derive(self.t.seed, f"{self.names[0]}/noise"), learner.device):
            return self._finish(on_epoch, place, of)

    def _finish(self, on_epoch: Callable[[int, int], None], place: int, of: int) -> list[Params]:
        protocol = self.t.protocol
        epochs = protocol.epochs
        optimiser = self._optimiser()
        checks = {math.ceil(epochs * k / protocol.checks) for k in range(1, protocol.checks + 1)}
        for epoch in range(epochs):
            if protocol.schedule == "dc" and epoch == epochs // 2 + 1:
                # the published code makes a new optimiser here, which forgets the momentum
                optimiser = self._optimiser(0.1)
            self._epoch(optimiser, epoch)
            if protocol.selection == "validation" and epoch + 1 in checks:
                self._check()
            on_epoch(place * epochs + (epoch + 1) * len(self.names), of * epochs)
        return self._results()

    def _optimiser(self, factor: float = 1.0) -> torch.optim.Optimizer:
        p = self.t.protocol
        groups: list[dict[str, Any]] = [
            {"params": leaves, "lr": factor * rate, "base": rate} for rate, leaves in self._rated()
        ]
        if p.optimiser == "adam":
            return torch.optim.Adam(groups, weight_decay=p.weight_decay)
        assert not isinstance(p.momentum, str), "a learned rate's momentum is resolved before"
        return torch.optim.SGD(groups, momentum=p.momentum, weight_decay=p.weight_decay)

    def _rated(self) -> list[tuple[float, list[Tensor]]]:
        """Rates and the leaves that they are for."""
        learner, lr = self.t.learner, self.t.protocol.lr
        leaves = learner.trainable(self.params)
        if self.t.rates is None:
            assert not isinstance(lr, str), "a learned step size is resolved before"
            return [(lr, list(leaves.values()))]
        groups = learner.groups_of_parameters.values()
        return [
            (rate, [leaves[name] for name in names])
            for rate, names in zip(self.t.rates, groups, strict=True)
        ]

    def _epoch(self, optimiser: torch.optim.Optimizer, epoch: int) -> None:
        steps = math.ceil(len(self.sets[0]) / self.t.protocol.batch_size)
        for step, batch in enumerate(self._batches()):
            factor = rate_factor(self.t.protocol, epoch + step / steps)
            if factor is not None:
                for group in optimiser.param_groups:
                    group["lr"] = group["base"] * factor
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
        if self.stacked:
            return self._stacked_loss(batch)
        mixer, stream = self.t.mixer, self.streams[0]
        chance = self.t.protocol.mix_probability
        if mixer is None or float(torch.rand((), generator=stream)) >= chance:
            return self.t.learner.loss(self.params, batch)
        return self._mixed_loss(batch, mixer, stream)

    def _mixed_loss(self, batch: Batch, mixer: Mixer, stream: torch.Generator) -> Tensor:
        """Mix pairs and, as Yun et al. 2019, their losses: any kind of target can be mixed so."""
        learner = self.t.learner
        order = torch.randperm(len(batch), generator=stream)
        partner = batch.select(order.to(batch.groups.device))
        inputs, kept = mixer(batch.inputs, partner.inputs, stream)
        outputs = learner.outputs(self.params, batch.with_inputs(inputs))
        own, others = (
            weighted_mean(learner.task.item_losses(outputs, of.targets), of.weights)
            for of in (batch, partner)
        )
        return kept * own + (1 - kept) * others

    def _stacked_loss(self, batch: Batch) -> Tensor:
        learner, count = self.t.learner, len(self.names)
        inputs = tree_map(lambda leaf: leaf.unflatten(0, (count, -1)), batch.inputs)
        outputs = learner.stacked_outputs(self.params, inputs, batch.targets)
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
        if self.whole is not None:
            yield self._augmented(self.whole)
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
        return augmented(batch, augmentation, draw)

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
    if protocol.schedule == "idc":
        # in whole epochs, as the published code counts: Kim et al. 2022, `train.py`
        drops = (2 * protocol.epochs // 3, 5 * protocol.epochs // 6)
        return 0.2 ** sum(epoch >= drop for drop in drops)
    return None


def mixup(inputs: Tree, partner: Tree, generator: torch.Generator) -> tuple[Tree, float]:
    """Interpolate the items at a share drawn from Beta(1, 1) (Zhang et al. 2018, eq. 1).

    Fields that are not floating-point (masks, positions) stay those of `inputs`.
    """
    kept = float(torch.rand((), generator=generator))  # Beta(1, 1) is uniform
    others = iter(tree_leaves(partner))

    def interpolated(leaf: Tensor) -> Tensor:
        other = next(others)
        return kept * leaf + (1 - kept) * other if leaf.is_floating_point() else leaf

    return tree_map(interpolated, inputs), kept


def no_step_size() -> UserError:
    """Build the error for a learned rate that no set brings along."""
    return UserError(
        "protocol asks for a learned step size, the set has none",
        hint="Give a rate, e.g. evaluate.lr=0.01.",
    )


def score(learner: Learner, params: Params, data: RealData, size: int = 1024) -> float:
    """Score `params` on the whole of `data` by the task's metric."""
    return learner.task.score(*predictions(learner, params, data, size))


@torch.no_grad()
def predictions(
    learner: Learner, params: Params, data: RealData, size: int = 1024
) -> tuple[Tree, Tree]:
    """Outputs and targets of the whole of `data`, `size` items at a time."""
    outputs, targets = [], []
    for batch in [data.select(torch.arange(len(data)))] if data.joint else data.batches(size):
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
    return everything, tree_cat(targets)
