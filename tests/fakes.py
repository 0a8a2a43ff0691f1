"""Tiny modalities made of the core's public parts alone.

Vectors (separable), the nodes of a graph (joint), sequences with a mask, pairs under a contrastive
loss, and forecasts whose targets are part of what is learned. If a method works on these five, it
needs no second core for a graph, a sentence, a pair or a series.

Shape suffixes: n items, D features, L positions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd import catalog
from mmdd.batch import Batch
from mmdd.distiller import Distiller
from mmdd.expert_options import Recording
from mmdd.experts import Experts
from mmdd.labels import DerivedLabels, HardLabels
from mmdd.learner import Learner, Params
from mmdd.modality import Augmentation
from mmdd.optimise import OuterOptimiser
from mmdd.real import JointData, RealData, ResidentData
from mmdd.recipe import Leaf
from mmdd.recording import record
from mmdd.representations import Direct, Representation
from mmdd.rng import Streams
from mmdd.run import Run
from mmdd.sources import Drawn, Fresh, Surroundings
from mmdd.step import Objective, Step
from mmdd.synthetic import StepSize, SyntheticSet
from mmdd.task import Task
from mmdd.tasks.classification import Classification
from mmdd.training import Student

ALL = 10**6
"""More real items per group than any fake has: every step sees them all."""

RATES = {
    "inputs": Leaf(lr=0.1, momentum=0.5),
    "labels": Leaf(lr=0.1, momentum=0.5),
    "step_size": Leaf(lr=0.01, momentum=0.5),
}
TINY_EXPERTS = Recording(count=3, epochs=4, batch_size=8, lr=0.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def everything(data: RealData) -> Batch:
    return data.select(torch.arange(len(data)))


def taught(learner: Learner, params: Params, real: RealData) -> Drawn:
    """A net, and where a little training on the real items takes it: both trained and target."""
    student = Student(learner, params, lr=0.1, momentum=0.5)
    for _ in range(5):
        student.step(everything(real))
    end = student.snapshot()
    return Drawn(params, trained=end, target=end, accuracy=0.5)


class Taught(Fresh):
    """Fresh nets that come with a trained net and a target; for objectives that need those."""

    def __init__(self, around: Surroundings, every: int = 1) -> None:
        super().__init__(around, every)
        self.real = around.real
        self._last: tuple[Params, Drawn] | None = None

    def draw(self, step: int) -> Drawn:
        params = super().draw(step).params
        if self._last is None or self._last[0] is not params:
            self._last = (params, taught(self.learner, params, self.real))
        return self._last[1]


class Shift:
    """An augmentation: every item is moved by the number that was drawn for its row."""

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Tensor:
        return torch.randn(count, generator=generator)

    def __call__(self, inputs: Tensor, draw: Tensor, rows: Tensor | None = None) -> Tensor:
        moved = draw if rows is None else draw[rows]
        return inputs + 0.3 * moved.view(-1, *[1] * (inputs.ndim - 1))


@dataclasses.dataclass(frozen=True)
class Case:
    """One fake modality: data, a net, a task and a synthetic set to start from.

    `nbytes` is what the synthetic set stores, counted by hand.
    """

    name: str
    net: Callable[[], nn.Module]
    task: Task
    train: RealData
    test: RealData
    start: Callable[[], SyntheticSet]
    leaves: tuple[str, ...]
    nbytes: int

    def learner(self, **how: Any) -> Learner:
        # building a net reads the global generator; the tests must not depend on it
        with torch.random.fork_rng(devices=[]):
            return Learner(self.net(), self.task, **how)

    def begin(self, step_size: float | None = None) -> SyntheticSet:
        """The synthetic set at its start, with rates of inner training where they are asked for."""
        made = self.start()
        if step_size is not None:
            made.step_size = StepSize(step_size, len(self.learner().groups_of_parameters))
        return made

    def step(
        self,
        learner: Learner,
        synthetic: SyntheticSet,
        seed: int = 0,
        *,
        related: bool = False,
        **more: Any,
    ) -> Step:
        """One comparison with all real items at the net that `seed` draws.

        `related`: the draw comes with a trained net and a target.
        """
        params = learner.init(seeded(seed))
        values = {
            "number": 0,
            "learner": learner,
            "drawn": taught(learner, params, self.train) if related else Drawn(params),
            "synthetic": synthetic,
            "real": self.train,
            "per_group": ALL,
            "generator": seeded(seed + 1),
        }
        return Step(**{**values, **more})

    def distiller(
        self,
        objective: Objective,
        *,
        source: str = "fresh",
        seed: int = 0,
        steps: int = 30,
        rates: Mapping[str, Leaf] | None = None,
        per_group: int = 8,
        pass_items: int = 8192,
        synthetic: SyntheticSet | None = None,
        experts: Experts | None = None,
        augmentation: Augmentation | None = None,
        **source_options: Any,
    ) -> Distiller:
        """A whole run at step 0."""
        learner, streams = self.learner(), Streams(seed)
        synthetic = self.start() if synthetic is None else synthetic
        around = Surroundings(learner, streams, synthetic, self.train, augmentation, experts)
        return Distiller(
            synthetic=synthetic,
            real=self.train,
            learner=learner,
            source=source_type(source)(around, **source_options),
            objective=objective,
            optimiser=OuterOptimiser(synthetic.leaves(), {**RATES, **(rates or {})}, steps),
            streams=streams,
            augmentation=augmentation,
            per_group=per_group,
            pass_items=pass_items,
        )

    def record(self, folder: Path, recording: Recording = TINY_EXPERTS, **more: Any) -> Experts:
        """Experts of this case, recorded into `folder`."""
        more = {"seed": 5, "fingerprint": "abc", "about": {}, **more}
        return record(folder, self.learner(), self.train, recording, **more)


def source_type(name: str) -> Any:
    """A source of the catalog, or the one that is for tests alone."""
    return Taught if name == "taught" else catalog.load("source", name, catalog.SOURCES)


class Chain(nn.Module):
    """Smooth blocks and a linear head; `read` turns the inputs into what the first block sees."""

    def __init__(self, *sizes: int, outputs: int) -> None:
        super().__init__()
        pairs = itertools.pairwise(sizes)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairs)
        self.head = nn.Linear(sizes[-1], outputs)

    def read(self, inputs: Any) -> Tensor:
        return inputs

    def layers(self, inputs: Any) -> list[Tensor]:
        found = []
        x = self.read(inputs)
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found

    def features(self, inputs: Any) -> Tensor:
        return self.layers(inputs)[-1]

    def forward(self, inputs: Any) -> Any:
        return self.head(self.features(inputs))


class GraphNet(Chain):
    """Every block reads the neighbours' mean: the items cannot be cut apart."""

    def layers(self, inputs: Any) -> list[Tensor]:
        found = []
        x = inputs["x"]
        for block in self.blocks:
            x = block(inputs["adjacency"] @ x)
            found.append(x)
        return found


class MaskedNet(Chain):
    """Embeds every position and pools those that the mask shows."""

    def __init__(self, size: int, *sizes: int, outputs: int) -> None:
        super().__init__(*sizes, outputs=outputs)
        self.embed = nn.Linear(size, sizes[0])

    def read(self, inputs: Any) -> Tensor:
        hidden = torch.tanh(self.embed(inputs["values"]))
        shown = inputs["mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1)


class PairNet(nn.Module):
    """Two towers with projections into one space; each is a group of parameters."""

    def __init__(self, image: int, text: int, shared: int) -> None:
        super().__init__()
        self.image = Chain(image, 16, 12, outputs=shared)
        self.text = Chain(text, 16, 12, outputs=shared)
        names = [name for name, _ in self.named_parameters()]
        self.parameter_groups = {
            tower: [name for name in names if name.startswith(tower)] for tower in ("image", "text")
        }

    def layers(self, inputs: Any) -> list[Tensor]:
        both = (self.image.layers(inputs["image"]), self.text.layers(inputs["text"]))
        return [torch.cat(pair, dim=1) for pair in zip(*both, strict=True)]

    def features(self, inputs: Any) -> Tensor:
        return self.layers(inputs)[-1]

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        return {
            "image": F.normalize(self.image(inputs["image"]), dim=1),
            "text": F.normalize(self.text(inputs["text"]), dim=1),
        }


class ForecastNet(Chain):
    """Past [n, L, D] -> future [n, horizon, D]."""

    def __init__(self, past: int, horizon: int, size: int) -> None:
        super().__init__(past * size, 16, 12, outputs=horizon * size)
        self.horizon = horizon

    def read(self, inputs: Any) -> Tensor:
        return inputs.flatten(1)

    def forward(self, inputs: Any) -> Tensor:
        return self.head(self.features(inputs)).unflatten(1, (self.horizon, -1))


class Contrastive:
    """InfoNCE between the two sides of the pairs of a batch; recall at 1, image to text."""

    name, metric, direction, coupled, label_kinds = "pairs", "recall@1", "max", True, ("derived",)

    def item_losses(self, outputs: Any, targets: None) -> Tensor:
        logits = outputs["image"] @ outputs["text"].T / 0.1
        own = torch.arange(len(logits))
        sides = [F.cross_entropy(side, own, reduction="none") for side in (logits, logits.T)]
        return (sides[0] + sides[1]) / 2

    def score(self, outputs: Any, targets: None) -> float:
        best = (outputs["image"] @ outputs["text"].T).argmax(dim=1)
        return (best == torch.arange(len(best))).double().mean().item()


class Forecasting:
    """Mean squared error, to be small."""

    name, metric, direction, coupled = "forecasting", "mse", "min", False
    label_kinds = ("derived",)

    def item_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().flatten(1).mean(dim=1)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return self.item_losses(outputs, targets).mean().item()


class Series(Representation):
    """One continuous series [T, D]: inputs and targets are windows, views of the same leaf."""

    def __init__(self, values: Tensor, past: int, horizon: int) -> None:
        super().__init__()
        self.inputs = nn.Parameter(values.clone())
        self.past, self.length = past, past + horizon

    def decode(self, index: Tensor | None) -> dict[str, Tensor]:
        windows = self.inputs.unfold(0, self.length, 1).transpose(1, 2)
        windows = windows if index is None else windows[index]
        return {"inputs": windows[:, : self.past], "targets": windows[:, self.past :]}


CLASSES = 3


def labels(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def points(count: int, seed: int, size: int = 6) -> Tensor:
    """[count, size] around one centre per class; the classes take turns."""
    centres = 2 * torch.randn(CLASSES, size, generator=seeded(99))
    return centres[labels(count)] + 0.5 * torch.randn(count, size, generator=seeded(seed))


def noise(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


@functools.cache
def separable() -> Case:
    def data(count: int, seed: int) -> ResidentData:
        return ResidentData(points(count, seed), labels(count), labels(count), CLASSES)

    def start() -> SyntheticSet:
        return SyntheticSet(Direct(noise(6, 6)), HardLabels(labels(6)), labels(6), CLASSES)

    return Case(
        name="separable",
        net=lambda: Chain(6, 16, 12, outputs=CLASSES),
        task=Classification(),
        train=data(36, 1),
        test=data(30, 2),
        start=start,
        leaves=("inputs",),
        nbytes=6 * 6 * 4 + 6 * 8,
    )


def neighbours(count: int, seed: int) -> Tensor:
    """[count, count] row-normalised adjacency: mostly edges inside a class, and self-loops."""
    same = labels(count)[:, None] == labels(count)[None, :]
    chance = torch.where(same, 0.6, 0.1)
    edges = torch.rand(count, count, generator=seeded(seed)) < chance
    edges = (edges | edges.T | torch.eye(count, dtype=torch.bool)).float()
    return edges / edges.sum(dim=1, keepdim=True)


@functools.cache
def joint() -> Case:
    count, train = 24, torch.arange(24) < 15
    structure = {"x": points(count, 3), "adjacency": neighbours(count, 4)}
    whole = JointData(structure, labels(count), labels(count), CLASSES)

    def start() -> SyntheticSet:
        values = {"x": points(6, 8) + 0.5 * noise(6, 6), "adjacency": neighbours(6, 5) + 0.05}
        made = (Direct(values), HardLabels(labels(6)), labels(6))
        return SyntheticSet(*made, CLASSES, joint=True)

    return Case(
        name="joint",
        net=lambda: GraphNet(6, 16, 12, outputs=CLASSES),
        task=Classification(),
        train=whole.subset(torch.nonzero(train).flatten()),
        test=whole.subset(torch.nonzero(~train).flatten()),
        start=start,
        leaves=("inputs.x", "inputs.adjacency"),
        nbytes=6 * 6 * 4 + 6 * 6 * 4 + 6 * 8,
    )


def sequences(count: int, seed: int) -> dict[str, Tensor]:
    """Values [count, 5, 4] and a mask [count, 5] that shows the first two to five positions."""
    values = points(count, seed, size=4)[:, None, :] + 0.5 * noise(count, 5, 4, seed=seed)
    lengths = 2 + torch.arange(count) % 4
    return {"values": values, "mask": torch.arange(5)[None, :] < lengths[:, None]}


@functools.cache
def masked() -> Case:
    def data(count: int, seed: int) -> ResidentData:
        return ResidentData(sequences(count, seed), labels(count), labels(count), CLASSES)

    def start() -> SyntheticSet:
        values = {"values": noise(6, 5, 4), "mask": sequences(6, 0)["mask"]}
        return SyntheticSet(Direct(values), HardLabels(labels(6)), labels(6), CLASSES)

    return Case(
        name="masked",
        net=lambda: MaskedNet(4, 16, 16, 12, outputs=CLASSES),
        task=Classification(),
        train=data(36, 1),
        test=data(30, 2),
        start=start,
        leaves=("inputs.values",),
        nbytes=6 * 5 * 4 * 4 + 6 * 5 + 6 * 8,
    )


@functools.cache
def coupled() -> Case:
    mix = {"image": noise(4, 6, seed=11), "text": noise(4, 8, seed=12)}

    def data(count: int, seed: int) -> ResidentData:
        hidden = noise(count, 4, seed=seed)
        pairs = {side: hidden @ matrix for side, matrix in mix.items()}
        return ResidentData(pairs, None, torch.zeros(count), 1)

    def start() -> SyntheticSet:
        values = {"image": noise(6, 6, seed=13), "text": noise(6, 8, seed=14)}
        return SyntheticSet(Direct(values), DerivedLabels(), torch.zeros(6), 1)

    return Case(
        name="coupled",
        net=lambda: PairNet(6, 8, shared=8),
        task=Contrastive(),
        train=data(48, 1),
        test=data(20, 2),
        start=start,
        leaves=("inputs.image", "inputs.text"),
        nbytes=6 * 6 * 4 + 6 * 8 * 4 + 6 * 8,
    )


PAST, HORIZON = 6, 2


@functools.cache
def forecasting() -> Case:
    def data(start: int, stop: int) -> ResidentData:
        time = torch.arange(start, stop)[:, None] * torch.tensor([[0.5, 0.8]])
        windows = torch.sin(time).unfold(0, PAST + HORIZON, 1).transpose(1, 2)
        past, future = windows[:, :PAST], windows[:, PAST:]
        return ResidentData(past, future, torch.zeros(len(windows)), 1)

    def start() -> SyntheticSet:
        series = Series(noise(15, 2), PAST, HORIZON)
        return SyntheticSet(series, DerivedLabels(), torch.zeros(8), 1)

    return Case(
        name="forecasting",
        net=lambda: ForecastNet(PAST, HORIZON, 2),
        task=Forecasting(),
        train=data(0, 60),
        test=data(60, 90),
        start=start,
        leaves=("inputs",),
        nbytes=15 * 2 * 4 + 8 * 8,
    )


CASES: dict[str, Callable[[], Case]] = {
    "separable": separable,
    "joint": joint,
    "masked": masked,
    "coupled": coupled,
    "forecasting": forecasting,
}


# -- runs ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """A run begun inside ends after `steps` steps as by a second Ctrl-C, its state saved."""

    def stop(self: Run, *args: Any) -> None:
        if self.distiller.number == steps:
            self.save()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_after", stop)
        with pytest.raises(KeyboardInterrupt):
            yield
