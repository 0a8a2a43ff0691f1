"""Gradient matching against a plainly written per-class loop, and against finite differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes import ALL, CASES, CLASSES, Case, Chain, labels, noise, points, seeded
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmdd.errors import UserError
from mmdd.labels import HardLabels, SoftLabels
from mmdd.learner import Learner, can_compile
from mmdd.objectives import gradient as module
from mmdd.objectives.batch_norm import STATISTICS
from mmdd.objectives.distances import DISTANCES
from mmdd.objectives.gradient import GradientMatching
from mmdd.objectives.pairs import piece_size, rounded
from mmdd.packed import Packed
from mmdd.real import JointData, ResidentData
from mmdd.representations import Direct, Representation
from mmdd.sources import Drawn
from mmdd.step import Step
from mmdd.synthetic import SyntheticSet
from mmdd.tasks.classification import Classification
from mmdd.trees import tree_leaves, tree_map, tree_take

PARAMETERS = ("all", "weights", "convolutions", "head")
LAST = {"coupled": "text.head"}
"""The layer that a forward pass ends with, where it is not called ``head``."""


class Pictures(nn.Module):
    """Two convolutions; the head is defined first and called last."""

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.head = nn.Linear(5 * (size - 4) ** 2, CLASSES)
        self.blocks = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).flatten(1))


class Normed(nn.Module):
    """Batch norm between two layers."""

    mixes_items = True

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh())
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


class Attentive(nn.Module):
    """Attention whose fast kernels have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.unflatten(1, (3, 2)))
        h = nn.functional.scaled_dot_product_attention(h, h, h)
        return self.head(h.mean(dim=1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(2, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.unflatten(1, (3, 2)))[0].mean(dim=1))


class Dropping(Chain):
    def read(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs, 0.5, self.training)


NETS: dict[str, Callable[[], nn.Module]] = {
    "attention": Attentive,
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
}


def pictures() -> Case:
    """Images of 6x6 pixels, unequally many of each class."""
    groups = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])

    def data(count: int, seed: int) -> ResidentData:
        items = points(count, seed, 36).view(count, 1, 6, 6)
        return ResidentData(items, labels(count), labels(count), CLASSES)

    def start() -> SyntheticSet:
        return SyntheticSet(Direct(noise(8, 1, 6, 6)), HardLabels(groups), groups, CLASSES)

    separable = CASES["separable"]()
    return dataclasses.replace(
        separable, name="pictures", net=Pictures, train=data(36, 1), test=data(30, 2), start=start
    )


ALL_CASES = {**CASES, "pictures": pictures}


@pytest.fixture(params=ALL_CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return ALL_CASES[request.param]()


def wide(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)


def step_of(case: Case, synthetic: SyntheticSet | None = None, **more: Any) -> Step:
    """All real items against a set in float64."""
    learner = more.pop("learner", None) or case.learner(precision="float64")
    synthetic = case.start() if synthetic is None else synthetic
    return case.step(learner, synthetic.double(), **more)


def differentiated(step: Step, **options: Any) -> tuple[float, dict[str, Tensor]]:
    """Value, and the gradient of every leaf of the set."""
    return by_leaf(step, GradientMatching(**options)(step))


def by_leaf(step: Step, loss: Tensor) -> tuple[float, dict[str, Tensor]]:
    leaves = step.synthetic.leaves()
    found = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), dict(zip(leaves, found, strict=True))


def assert_same(
    found: tuple[float, dict[str, Tensor]],
    expected: tuple[float, dict[str, Tensor]],
    tolerance: float = 1e-8,
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert value.norm() > 0, name
        assert float((found[1][name] - value).norm() / value.norm()) < tolerance, name


# -- the same numbers, written plainly -------------------------------------------------------------


def plain_names(case: Case, net: nn.Module, parameters: str) -> list[str]:
    names = [name for name, _ in net.named_parameters()]
    if parameters == "weights":
        return [name for name in names if name.endswith("weight")]
    if parameters == "convolutions":
        return ["blocks.0.weight", "blocks.2.weight"]
    if parameters == "head":
        last = LAST.get(case.name, "head")
        return [f"{last}.weight", f"{last}.bias"]
    return names


def plain_losses(
    case: Case, net: nn.Module, inputs: Any, targets: Any, rows: Tensor, joint: bool
) -> Tensor:
    """Losses of the items `rows`: forwarded alone, or as a part of their structure."""
    if joint:
        return case.task.item_losses(net(inputs), targets)[rows]
    return case.task.item_losses(net(tree_take(inputs, rows)), tree_take(targets, rows))


def plain(
    case: Case,
    step: Step,
    distance: str = "layerwise-cosine",
    parameters: str = "all",
    net: nn.Module | None = None,
) -> Tensor:
    """The papers' loop: for every class, the gradients of the two mean losses."""
    if net is None:
        net = case.net().double()
        net.load_state_dict(step.drawn.params)
    weights = dict(net.named_parameters())
    names = plain_names(case, net, parameters)
    data, made = step.real, step.synthetic.batch()
    joint = isinstance(data, JointData)
    inputs = data.structure if joint else data.values
    targets = data.all_targets if joint else data.targets
    inputs, targets = wide(inputs), wide(targets)
    total = torch.zeros((), dtype=torch.float64)
    for group in sorted(set(data.groups.tolist()) & set(made.groups.tolist())):
        real_rows = torch.nonzero(data.groups == group).flatten()
        real_rows = data.index[real_rows] if joint else real_rows
        rows = torch.nonzero(made.groups == group).flatten()
        real = plain_losses(case, net, inputs, targets, real_rows, joint).mean()
        synthetic = plain_losses(case, net, made.inputs, made.targets, rows, joint).mean()
        used = [weights[name] for name in names]
        a = torch.autograd.grad(real, used)
        b = torch.autograd.grad(synthetic, used, create_graph=True)
        total = total + plain_distance(distance, a, b)
    return total


def plain_distance(kind: str, real: tuple[Tensor, ...], synthetic: tuple[Tensor, ...]) -> Tensor:
    if kind == "layerwise-cosine":
        rows = [
            (x, y)
            for a, b in zip(real, synthetic, strict=True)
            if a.ndim > 1
            for x, y in zip(a.flatten(1), b.flatten(1), strict=True)
        ]
        return sum(1 - x @ y / (x.norm() * y.norm() + 1e-6) for x, y in rows)
    x, y = (torch.cat([g.flatten() for g in side]) for side in (real, synthetic))
    if kind == "cosine":
        return 1 - x @ y / (x.norm() * y.norm() + 1e-6)
    if kind == "relative-mse":
        return (x - y).square().sum() / x.square().sum()
    return (x - y).abs().sum() if kind == "l1" else (x - y).square().sum()


@pytest.mark.parametrize("distance", DISTANCES)
def test_value_and_gradient_equal_a_plain_loop(case, distance):
    step = step_of(case)
    found = differentiated(step, distance=distance)
    assert_same(found, by_leaf(step, plain(case, step, distance)))


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("distance", ["layerwise-cosine", "mse"])
@pytest.mark.parametrize("name", ["pictures", "masked", "coupled"])
def test_the_parameters_asked_for_are_compared(name, distance, parameters):
    case = ALL_CASES[name]()
    step = step_of(case)
    if parameters == "convolutions" and name != "pictures":
        with pytest.raises(UserError, match=r"(?s)'convolutions'.*objective\.parameters=weights"):
            differentiated(step, distance=distance, parameters=parameters)
        return
    found = differentiated(step, distance=distance, parameters=parameters)
    assert_same(found, by_leaf(step, plain(case, step, distance, parameters)))


@pytest.mark.parametrize("name", NETS)
def test_nets_whose_fast_kernels_have_no_second_derivative(name):
    case = dataclasses.replace(CASES["separable"](), net=NETS[name])
    step = step_of(case)
    with sdpa_kernel(SDPBackend.MATH):
        expected = by_leaf(step, plain(case, step))
    assert_same(differentiated(step), expected)


def test_all_items_as_one_group():
    case = CASES["separable"]()
    step = step_of(case)
    data = ResidentData(case.train.values, case.train.targets, torch.zeros(36), 1)
    made = case.start().double()
    made.groups.zero_()
    as_one = step_of(case, made, real=data)
    found = differentiated(step, per_group=False, distance="mse")
    assert_same(found, by_leaf(as_one, plain(case, as_one, "mse")))
    assert not GradientMatching(per_group=False).by_group


# -- derivatives -----------------------------------------------------------------------------------


class Given(Representation):
    """Hands out the tensors that it was given, so that a function of them can be checked."""

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.inputs = inputs

    def decode(self, index: Tensor | None) -> Any:
        return self.inputs


@pytest.mark.parametrize("name", [*CASES, "pictures"])
def test_gradient_equals_finite_differences(name):
    case = ALL_CASES[name]()
    step = step_of(case)
    leaves = step.synthetic.leaves()

    def value() -> float:
        return GradientMatching(distance="cosine")(step).item()

    _, found = differentiated(step, distance="cosine")
    for place, (leaf_name, leaf) in enumerate(leaves.items()):
        direction = noise(*leaf.shape, seed=place).double()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * 1e-5 * direction)
            ends.append(value())
            with torch.no_grad():
                leaf.sub_(sign * 1e-5 * direction)
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float((found[leaf_name] * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["separable", "joint"])
def test_learned_labels_get_their_gradient(name):
    case = CASES[name]()
    start = case.start()
    soft = SoftLabels(noise(len(start), CLASSES, seed=3))
    made = SyntheticSet(start.representation, soft, start.groups, CLASSES, joint=start.joint)
    step = step_of(case, made)
    found = differentiated(step)
    assert found[1]["labels.logits"].abs().sum() > 0
    assert_same(found, by_leaf(step, plain(case, step)))


def test_packed_items_get_the_gradient_of_all_their_parts():
    items = Packed.of_items(noise(12, 1, 6, 6), factor=2)
    made = SyntheticSet(items, HardLabels(labels(3)), labels(3), CLASSES)
    case = pictures()
    step = step_of(case, made)
    assert_same(differentiated(step), by_leaf(step, plain(case, step)))


def test_nothing_to_learn_gives_no_graph():
    case = CASES["separable"]()
    made = SyntheticSet(Given(noise(6, 6).double()), HardLabels(labels(6)), labels(6), CLASSES)
    step = step_of(case, made)
    loss = GradientMatching()(step)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(plain(case, step).item())


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["separable", "joint"])
def test_gradients_that_are_zero_are_finite(name, distance):
    """Behind a head of zeros no other layer has a gradient."""
    case = CASES[name]()
    step = step_of(case)
    params = {
        key: torch.zeros_like(value) if key.startswith("head") else value
        for key, value in step.drawn.params.items()
    }
    step = dataclasses.replace(step, drawn=Drawn(params))
    value, found = differentiated(step, distance=distance)
    assert value == pytest.approx(plain(case, step, distance).item())
    assert all(torch.isfinite(leaf).all() for leaf in found.values())


# -- who counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["separable", "masked", "pictures"])
def test_passes_over_some_groups_add_up(name):
    case = ALL_CASES[name]()
    objective = GradientMatching()
    step = step_of(case)
    whole = by_leaf(step, objective(step))
    parts = [
        by_leaf(step, objective(step.of_groups(torch.tensor(groups)))) for groups in ([2], [0, 1])
    ]
    added = {leaf: sum(part[1][leaf] for part in parts) for leaf in whole[1]}
    assert_same((sum(part[0] for part in parts), added), whole)


@pytest.mark.parametrize("name", ["pictures", "joint"])
def test_groups_count_by_their_share_of_the_synthetic_items(name):
    case = ALL_CASES[name]()
    made = case.start()
    if name == "joint":
        groups = torch.tensor([0, 0, 0, 1, 1, 2])
        representation = made.representation
        made = SyntheticSet(representation, HardLabels(groups), groups, CLASSES, joint=True)
    step, objective = step_of(case, made), GradientMatching(by_size=True)
    sizes = step.synthetic.groups.bincount()
    assert len(set(sizes.tolist())) > 1
    # a step that knows the real items of one group alone compares nothing else
    parts = [
        dataclasses.replace(step, real=step.real.subset(step.real.members(g)))
        for g in range(len(sizes))
    ]
    shares = sizes / sizes.max()
    expected = sum(plain(case, part) * n for part, n in zip(parts, shares, strict=True))
    whole = by_leaf(step, objective(step))
    assert_same(whole, by_leaf(step, expected), 1e-6)
    if name != "joint":  # a structure is never compared a few groups at a time
        cuts = [objective(step.of_groups(torch.tensor([g]))) for g in range(len(sizes))]
        assert_same(by_leaf(step, sum(cuts)), whole)


@pytest.mark.parametrize("kept", [[0, 2], [1]])
def test_groups_absent_from_either_side_do_not_count(kept):
    case = CASES["separable"]()
    real = case.train.subset(torch.cat([case.train.members(group) for group in (0, 2)]))
    groups = torch.tensor([0, 1, 1, 0])
    groups = groups if kept == [0, 2] else torch.tensor([1, 1, 1, 1])
    made = SyntheticSet(Direct(noise(4, 6)), HardLabels(groups), groups, CLASSES)
    step = step_of(case, made, real=real)
    value, found = differentiated(step)
    assert value == pytest.approx(plain(case, step).item())
    assert (found["inputs"][groups == 1] == 0).all()
    assert bool((found["inputs"][groups == 0] != 0).all())


def test_absent_groups_of_a_structure_do_not_count():
    case = CASES["joint"]()
    real = case.train.subset(torch.cat([case.train.members(group) for group in (0, 2)]))
    step = step_of(case, real=real)
    assert_same(differentiated(step), by_leaf(step, plain(case, step)))


class Weighted(ResidentData):
    """Items count not at all, once or twice."""

    def select(self, index):
        return dataclasses.replace(super().select(index), weights=(index % 3).float())


@pytest.mark.parametrize("work", [0, 1e6, None])
def test_weighted_items_count_as_often(monkeypatch, work):
    if work is not None:
        monkeypatch.setattr(module, "linear_layers", lambda *_: None)
        monkeypatch.setattr(module, "SMALL_WORK", work)
    case = CASES["separable"]()
    data = Weighted(case.train.values, case.train.targets, labels(36).roll(1), CLASSES)
    index = torch.arange(36)
    repeated = torch.cat([index[index % 3 > 0], index[index % 3 > 1]])
    plain_data = ResidentData(
        data.values[repeated], data.targets[repeated], data.groups[repeated], CLASSES
    )
    made = SyntheticSet(Direct(noise(6, 6)), HardLabels(labels(6)), labels(6), CLASSES)
    learner = case.learner(precision="float64", chunk=5)
    found = differentiated(step_of(case, made, real=data, learner=learner), distance="mse")
    expected = plain(case, step_of(case, made, real=plain_data), "mse")
    assert_same(found, by_leaf(step_of(case, made), expected))


# -- ways to run -----------------------------------------------------------------------------------


@pytest.fixture
def formed(monkeypatch):
    """No net's gradients are taken for products of factors."""
    monkeypatch.setattr(module, "linear_layers", lambda *_: None)


@pytest.mark.usefixtures("formed")
@pytest.mark.parametrize("name", ["separable", "masked", "forecasting"])
def test_groups_side_by_side_and_one_by_one_agree(monkeypatch, name):
    case = CASES[name]()
    ways = []
    for work in (1e6, 0):
        monkeypatch.setattr(module, "SMALL_WORK", work)
        step = step_of(case, learner=case.learner(precision="float64", chunk=5))
        objective = GradientMatching()
        ways.append(by_leaf(step, objective(step)))
        assert objective._comparison.at_once == (1 if work == 0 else module.SIDE_BY_SIDE)
    assert_same(*ways)


class Filled(Learner):
    """Fills blocks up as a compiled learner does, and notes the shapes that it would compile."""

    def __init__(self, *parts: Any, **how: Any) -> None:
        super().__init__(*parts, **how)
        self.compiled = True
        self.shapes: set[tuple[torch.Size, ...]] = set()

    def transform(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            self.shapes.add(tuple(leaf.shape for leaf in tree_leaves(arguments)))
            return fn(*arguments)

        return watched


@pytest.mark.parametrize(("work", "shapes"), [(0, 1 + 3), (1e6, 1 + 1)])
@pytest.mark.parametrize("chunk", [None, 5])
def test_filling_groups_up_changes_nothing(monkeypatch, work, shapes, chunk):
    monkeypatch.setattr(module, "SMALL_WORK", work)
    groups = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    soft = SoftLabels(noise(8, CLASSES, seed=3))
    made = SyntheticSet(Direct(noise(8, 6)), soft, groups, CLASSES)
    case = CASES["separable"]()
    real = case.train.subset(torch.arange(31))
    step = step_of(case, made, real=real)
    expected = by_leaf(step, plain(case, step))
    net = Chain(6, 16, 12, outputs=CLASSES)
    learner = Filled(net, Classification(), precision="float64", chunk=chunk)
    assert_same(differentiated(dataclasses.replace(step, learner=learner)), expected)
    # 11, 10 and 10 real items, in equal pieces; 5, 2 and 1 synthetic ones
    assert len(learner.shapes) == shapes


def test_few_sizes_occur():
    assert [rounded(count, 10) for count in range(1, 11)] == [1, 2, 3, 5, 5] + [10] * 5
    assert [rounded(count, 10) for count in (11, 20, 21)] == [20, 20, 30]
    assert [piece_size(largest, 32) for largest in (5, 32, 33, 100, 256)] == [5, 32, 17, 25, 32]
    assert piece_size(100, None) == 100


def test_stacked_nets_give_the_mean():
    case = CASES["separable"]()
    learner = case.learner(precision="float64")
    stacked = Drawn(learner.init(seeded(5), 3), stacked=3)
    step = step_of(case, learner=learner, drawn=stacked)
    found = differentiated(step)
    single = [differentiated(step.of_net(net)) for net in stacked.each()]
    mean = sum(value for value, _ in single) / 3
    assert_same(found, (mean, {"inputs": sum(leaf["inputs"] for _, leaf in single) / 3}))


def test_dropout_is_drawn_from_the_step_alone():
    net = lambda: Dropping(6, 16, 12, outputs=CLASSES)  # noqa: E731
    case = dataclasses.replace(CASES["separable"](), net=net)

    def value(**more: Any) -> float:
        return differentiated(step_of(case, **more))[0]

    before = torch.get_rng_state()
    first = value(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert value(seed=1) == first
    assert value(number=1) != value(number=2)


def test_batch_norm_keeps_the_statistics_of_real_items():
    case = dataclasses.replace(CASES["separable"](), net=Normed)
    step = step_of(case)
    before = {name: value.clone() for name, value in step.drawn.params.items()}
    found = differentiated(step)
    for name, value in before.items():
        assert torch.equal(step.drawn.params[name], value), name
    net = Normed().double()
    net.load_state_dict(step.drawn.params, strict=False)
    hidden = net.blocks[0](case.train.values.double()).detach()
    assert (case.train.group_sizes <= STATISTICS).all()
    net.blocks[1].running_mean.copy_(hidden.mean(dim=0))
    net.blocks[1].running_var.copy_(hidden.var(dim=0))
    net.eval()
    assert_same(found, by_leaf(step, plain(case, step, net=net)))
    assert all(part.training for part in step.learner.encoder.modules())


def test_every_real_item_counts_once():
    """More items than a step asks for, and fewer, in pieces of a learner's chunk."""
    case = CASES["separable"]()
    learner = case.learner(precision="float64", chunk=5)
    drawn = step_of(case, learner=learner, per_group=7, real=case.train)
    seen: list[Tensor] = []
    read = case.train.select

    class Watched(ResidentData):
        def select(self, index):
            seen.append(index)
            return read(index)

    data = Watched(case.train.values, case.train.targets, case.train.groups, CLASSES)
    found = differentiated(dataclasses.replace(drawn, real=data, generator=seeded(4)))
    (index,) = seen
    assert torch.bincount(case.train.groups[index]).tolist() == [7, 7, 7]
    chosen = dataclasses.replace(drawn, real=case.train.subset(index), per_group=ALL)
    assert_same(found, by_leaf(chosen, plain(case, chosen)))


# -- compiled --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile does not work here")
@pytest.mark.parametrize("name", ["pictures", "separable", "joint", "coupled"])
def test_compiled_equals_eager(name):
    case = ALL_CASES[name]()
    start = case.start()
    if name == "pictures":
        soft = SoftLabels(noise(len(start), CLASSES, seed=3))
        start = SyntheticSet(start.representation, soft, start.groups, CLASSES)
    eager, compiled = (case.learner(compiled=compiled, chunk=8) for compiled in (False, True))
    step = case.step(eager, start)
    expected = differentiated(step, distance="cosine")
    found = differentiated(dataclasses.replace(step, learner=compiled), distance="cosine")
    assert_same(found, expected, tolerance=1e-3)
