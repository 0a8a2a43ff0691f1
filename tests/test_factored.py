"""Gradients kept as factors, against the gradients that they are factors of."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fakes import ALL, CASES, CLASSES, Case, Chain, labels, noise, points, seeded
from torch import Tensor, nn

from mmdd import machine
from mmdd.batch import Batch
from mmdd.labels import HardLabels, SoftLabels
from mmdd.learner import Learner
from mmdd.objectives import factored, linear_layers, products
from mmdd.objectives import gradient as module
from mmdd.objectives.distances import DISTANCES
from mmdd.objectives.factored import Factored
from mmdd.objectives.gradient import GradientMatching
from mmdd.objectives.pairs import block, members
from mmdd.real import ResidentData
from mmdd.recipe import Run
from mmdd.representations import Direct
from mmdd.sources import Drawn
from mmdd.step import Step
from mmdd.synthetic import SyntheticSet
from mmdd.tasks.classification import Classification

UNEQUAL = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
Found = tuple[float, dict[str, Tensor]]


class Line(nn.Module):
    """A linear classifier."""

    def __init__(self, size: int = 6, classes: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def chain() -> Chain:
    return Chain(6, 16, 12, outputs=CLASSES)


def wide() -> Chain:
    """Its second layer is so large that real gradients need not be formed either."""
    return Chain(6, 60, 50, outputs=CLASSES)


NETS = {"linear": Line, "mlp": chain, "wide mlp": wide}


class Weighted(ResidentData):
    """Items count not at all, once or twice."""

    def select(self, index: Tensor) -> Batch:
        return dataclasses.replace(super().select(index), weights=(index % 3).float())


def case_of(net: Any, *, weighted: bool = False) -> Case:
    kind = Weighted if weighted else ResidentData
    groups = labels(36).roll(1).clone()
    groups[:4] = 0
    train = kind(points(36, 1), labels(36), groups, CLASSES)
    return dataclasses.replace(CASES["separable"](), net=net, train=train)


def step_of(net: Any, *, soft: bool = False, weighted: bool = False, **more: Any) -> Step:
    """All real items against unequally many synthetic ones, in float64."""
    case = case_of(net, weighted=weighted)
    made = HardLabels(UNEQUAL) if not soft else SoftLabels(noise(8, CLASSES, seed=3))
    synthetic = SyntheticSet(Direct(noise(8, 6)), made, UNEQUAL, CLASSES).double()
    learner = more.pop("learner", None) or case.learner(precision="float64")
    return case.step(learner, synthetic, **more)


def found_by(objective: GradientMatching, step: Step) -> Found:
    loss, leaves = objective(step), step.synthetic.leaves()
    slopes = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), dict(zip(leaves, slopes, strict=True))


def factored_of(step: Step, **options: Any) -> Found:
    objective = GradientMatching(**options)
    found = found_by(objective, step)
    assert isinstance(objective._comparison, Factored)
    return found


def formed_of(step: Step, **options: Any) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "linear_layers", lambda *_: None)
        return found_by(GradientMatching(**options), step)


def assert_same(found: Found, expected: Found, tolerance: float = 1e-9) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    for name, value in expected[1].items():
        assert value.norm() > 0, name
        assert float((found[1][name] - value).norm() / value.norm()) < tolerance, name


def takes_factors(step: Step, **options: Any) -> bool:
    objective = GradientMatching(**options)
    objective(step)
    return isinstance(objective._comparison, Factored)


# -- the same numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_factors_give_what_gradients_give(distance, net, soft, weighted):
    step = step_of(NETS[net], soft=soft, weighted=weighted)
    for by_size in (False, True):
        options = {"distance": distance, "by_size": by_size}
        assert_same(factored_of(step, **options), formed_of(step, **options))


@pytest.mark.parametrize("parameters", ["all", "weights", "head"])
@pytest.mark.parametrize("distance", ["layerwise-cosine", "cosine", "mse"])
def test_the_parameters_asked_for_are_compared(distance, parameters):
    step = step_of(chain, soft=True)
    options = {"distance": distance, "parameters": parameters}
    assert_same(factored_of(step, **options), formed_of(step, **options))


@pytest.mark.parametrize("distance", DISTANCES)
def test_products_and_gradients_may_stand_side_by_side(distance):
    """Five items are few for a layer of 40 x 6 numbers and many for one of 3 x 40."""
    step = step_of(lambda: Chain(6, 40, outputs=CLASSES), soft=True)
    objective = GradientMatching(distance=distance)
    found = found_by(objective, step)
    layers = objective._comparison.layers
    assert {layers.short(name, 5) for name in layers.shapes} == {False, True}
    assert_same(found, formed_of(step, distance=distance))


@pytest.mark.parametrize("distance", DISTANCES)
def test_all_items_as_one_group_and_groups_that_are_absent(distance):
    step = step_of(chain)
    options = {"distance": distance, "per_group": False}
    assert_same(factored_of(step, **options), formed_of(step, **options))
    two = dataclasses.replace(
        step, real=step.real.subset(torch.nonzero(step.real.groups).flatten())
    )
    value, found = factored_of(two, distance=distance)
    assert value == pytest.approx(formed_of(two, distance=distance)[0], rel=1e-9)
    assert (found["inputs"][UNEQUAL == 0] == 0).all()
    none = dataclasses.replace(step, real=step.real.subset(torch.arange(0)))
    assert GradientMatching(distance=distance)(none).item() == 0


def test_several_nets_give_the_mean():
    step = step_of(chain)
    several = dataclasses.replace(step, drawn=Drawn(step.learner.init(seeded(5), 3), stacked=3))
    assert_same(factored_of(several), formed_of(several))


def test_only_what_is_learned_gets_a_gradient():
    step = step_of(chain, soft=True)
    step.synthetic.representation.inputs.requires_grad_(False)
    leaf = step.synthetic.leaves()["labels.logits"]
    (found,) = torch.autograd.grad(GradientMatching()(step), leaf)
    step.synthetic.representation.inputs.requires_grad_()
    expected = formed_of(step)[1]["labels.logits"]
    assert torch.allclose(found, expected, rtol=1e-9)
    for one in step.synthetic.parameters():
        one.requires_grad_(False)
    assert not GradientMatching()(step).requires_grad


def test_a_head_behind_layers_of_another_kind():
    class Pictures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv1d(1, 4, 3), nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x[:, None]).relu().flatten(1))

    step = step_of(Pictures, soft=True)
    assert_same(factored_of(step, parameters="head"), formed_of(step, parameters="head"))
    assert not takes_factors(step)


@pytest.mark.parametrize("distance", ["layerwise-cosine", "cosine", "mse", "relative-mse"])
def test_float32_is_as_good_as_gradients_in_float32(distance):
    """A class of many numbers, as sentence vectors have them."""
    count, size, classes = 160, 96, 10
    groups = torch.arange(count) % classes
    data = ResidentData(noise(count, size, seed=1), groups, groups, classes)
    made = SyntheticSet(
        Direct(noise(30, size, seed=2)), HardLabels(groups[:30]), groups[:30], classes
    )
    learner = Learner(Line(size, classes), Classification())
    params = learner.init(seeded(0))
    step = Step(0, learner, Drawn(params), made, data, ALL, seeded(1))
    assert_same(factored_of(step, distance=distance), formed_of(step, distance=distance), 1e-5)


def test_gradients_that_are_zero_are_finite():
    """Behind a head of zeros no other layer has a gradient."""
    step = step_of(chain)
    params = {
        name: torch.zeros_like(value) if name.startswith("head") else value
        for name, value in step.drawn.params.items()
    }
    step = dataclasses.replace(step, drawn=Drawn(params))
    for distance in DISTANCES:
        value, found = factored_of(step, distance=distance)
        assert value == pytest.approx(formed_of(step, distance=distance)[0], rel=1e-9)
        assert torch.isfinite(found["inputs"]).all()


def test_items_that_cancel_out_leave_a_distance_that_is_bounded():
    """All but equal items with opposite labels: what rounding leaves of lengths is no length."""
    classes, size = 2, 64
    groups = torch.zeros(20, dtype=torch.int64)
    data = ResidentData(1 + 1e-5 * noise(20, size), torch.arange(20) % 2, groups, classes)
    items = 1 + 1e-5 * noise(2, size, seed=1)
    made = SyntheticSet(Direct(items), HardLabels(torch.arange(2)), groups[:2], classes)
    learner = Learner(Line(size, classes), Classification())
    params = {name: torch.zeros_like(value) for name, value in learner.init(seeded(0)).items()}
    step = Step(0, learner, Drawn(params), made, data, ALL, seeded(1))
    value, found = factored_of(step)
    assert abs(value) <= 3 * classes
    assert torch.isfinite(found["inputs"]).all()


def test_equal_gradients_have_no_negative_distance():
    step = step_of(Line)
    same = SyntheticSet(Direct(step.real.values), HardLabels(labels(36)), step.real.groups, CLASSES)
    learner = case_of(Line).learner()
    step = dataclasses.replace(
        step, synthetic=same, learner=learner, drawn=Drawn(learner.init(seeded(0)))
    )
    assert 0 <= GradientMatching(distance="mse")(step).item() < 1e-5


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradient_equals_finite_differences(distance):
    step = step_of(chain, soft=True)
    _, found = factored_of(step, distance=distance)
    for place, (name, leaf) in enumerate(step.synthetic.leaves().items()):
        direction = noise(*leaf.shape, seed=place).double()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * 1e-5 * direction)
            ends.append(GradientMatching(distance=distance)(step).item())
            with torch.no_grad():
                leaf.sub_(sign * 1e-5 * direction)
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float((found[name] * direction).sum()), rel=1e-5)


# -- which nets ------------------------------------------------------------------------------------


class Twice(Line):
    """The layer is called twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + self.head(x.tanh())


class Positions(nn.Module):
    """A layer that reads several rows of an item."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x.unflatten(1, (3, 2))).tanh().mean(dim=1))


class Rows(Positions):
    """The same with the positions of all items in a row."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x.reshape(-1, 2)).tanh().unflatten(0, (-1, 3)).mean(dim=1))


class ReadElsewhere(Line):
    """The weight is more than the layer's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + (x @ self.head.weight.T).tanh()


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()))


class Upside(Line):
    """Rows in another order than the items."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flip(0)).flip(0)


class Mixing(Line):
    """Items see each other, and the net does not say so."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(dim=0))


class Dropping(Chain):
    def read(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs, 0.5, self.training)


class Overwriting(Line):
    """The layer's outputs are changed where they lie."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).tanh_()


class Scaled(nn.Linear):
    """Linear in name alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class OwnLayer(Line):
    def __init__(self) -> None:
        super().__init__()
        self.head = Scaled(6, CLASSES)


class Normed(nn.Module):
    """A parameter that is no linear layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


@pytest.mark.parametrize(
    "net", [Twice, Positions, Rows, ReadElsewhere, Tied, Upside, Mixing, Overwriting, OwnLayer]
)
def test_other_nets_have_their_gradients_formed(net):
    step = step_of(net)
    assert not takes_factors(step)
    assert not takes_factors(step, distance="mse")
    assert not any(part._forward_hooks for part in step.learner.encoder.modules())


def test_parameters_that_are_not_matched_may_be_of_any_layer():
    step = step_of(Normed)
    assert not takes_factors(step, distance="cosine")
    assert_same(*(way(step, distance="layerwise-cosine") for way in (factored_of, formed_of)))


def test_dropout_is_drawn_from_the_step_alone():
    def value(**more: Any) -> float:
        return factored_of(step_of(lambda: Dropping(6, 16, 12, outputs=CLASSES), **more))[0]

    before = torch.get_rng_state()
    first = value(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert value(seed=1) == first
    assert value(number=1) != value(number=2)


@pytest.mark.parametrize("name", ["joint", "masked", "coupled", "forecasting"])
def test_of_other_structures_only_rows_factor(name):
    case = CASES[name]()
    step = case.step(case.learner(precision="float64"), case.start().double())
    assert takes_factors(step) is (name == "forecasting")


def test_what_is_compiled_stays_so():
    step = step_of(Line)
    step.learner.compiled = True
    layers = linear_layers.linear_layers(
        step.learner, step.drawn.params, step.synthetic_batch(), ["head.weight"]
    )
    assert layers is None


# -- ways to run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["layerwise-cosine", "l1"])
def test_blocks_are_small_and_add_up(monkeypatch, distance):
    step = step_of(chain, soft=True, weighted=True)
    whole = factored_of(step, distance=distance)
    sizes: list[int] = []

    run = Factored._seen

    def watched(self: Factored, params: Any, tree: Any, shares: Tensor, *rest: Any, **how: Any):
        sizes.append(shares.numel())
        return run(self, params, tree, shares, *rest, **how)

    monkeypatch.setattr(Factored, "_seen", watched)
    for limit in (2000, 300, 1):
        monkeypatch.setattr(factored, "BLOCK", limit)
        sizes.clear()
        assert_same(factored_of(step, distance=distance), whole)
        if limit == 1:
            # real items one by one, the synthetic ones of a group together
            assert max(sizes) == 5
            assert len(sizes) > 24
    one = {"distance": distance, "per_group": False}
    found = factored_of(step, **one)
    monkeypatch.setattr(factored, "BLOCK", 2**23)
    assert_same(found, factored_of(step, **one))


@pytest.mark.parametrize(("distance", "calls"), [("layerwise-cosine", 0), ("l1", 8)])
def test_gradients_of_a_thousand_classes_are_not_formed_at_once(monkeypatch, distance, calls):
    classes, size = 1000, 384
    groups = torch.arange(classes)
    data = ResidentData(noise(classes, size), groups, groups, classes)
    made = SyntheticSet(Direct(noise(classes, size, seed=1)), HardLabels(groups), groups, classes)
    learner = Learner(Line(size, classes), Classification())
    step = Step(0, learner, Drawn(learner.init(seeded(0))), made, data, 1, seeded(1))
    formed: list[int] = []
    form = linear_layers.formed

    def watched(*arguments: Any) -> Any:
        found = form(*arguments)
        formed.extend(slope.numel() for slope in found.values())
        return found

    monkeypatch.setattr(factored, "formed", watched)
    monkeypatch.setattr(products, "formed", watched)
    assert takes_factors(step.of_groups(torch.arange(20)), distance=distance, parameters="weights")
    assert len(formed) == calls
    assert max(formed, default=0) <= factored.BLOCK / 2


def test_the_same_step_gives_the_same_bits():
    case = case_of(chain)
    runs = [case.distiller(GradientMatching(), steps=4) for _ in range(3)]
    for _ in range(4):
        runs[0].step()
    for _ in range(2):
        runs[1].step()
    runs[2].load_state_dict(runs[1].state_dict())
    for _ in range(2):
        runs[2].step()
    ends = [run.synthetic.leaves()["inputs"] for run in (runs[0], runs[2])]
    assert torch.equal(*ends)


def test_blocks_hold_the_members_of_their_groups():
    groups = torch.tensor([2, 0, 2, 1, 0, 2])
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 0.5])
    batch = Batch(noise(6, 2), None, groups, weights)
    index, shares, present = block(batch, torch.tensor([2, 1]), lambda most: most + 1)
    assert index.tolist() == [[0, 5, 5], [3, 3, 3]]
    assert present.tolist() == [[True, True, False], [True, False, False]]
    assert shares.tolist() == [[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]]
    assert members(batch, 2).tolist() == [0, 5]


# -- half precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("width", [None, 64, 256])
def test_real_gradients_in_half_precision_keep_the_direction(monkeypatch, width, distance):
    count, size, classes = 600, 96, 20
    groups = torch.arange(count) % classes
    centres = noise(classes, size, seed=4)
    data = ResidentData(centres[groups] + noise(count, size, seed=1), groups, groups, classes)
    items = centres[groups[:40]] + noise(40, size, seed=2)
    made = SyntheticSet(Direct(items), HardLabels(groups[:40]), groups[:40], classes)

    def net() -> nn.Module:
        return Line(size, classes) if width is None else Chain(size, width, outputs=classes)

    found = []
    monkeypatch.setattr(factored, "HALF_WORK", 1e6)
    for rounds in (False, True):
        learner = Learner(net(), Classification(), rounds=rounds)
        step = Step(0, learner, Drawn(learner.init(seeded(0))), made, data, ALL, seeded(1))
        objective = GradientMatching(distance=distance)
        found.append(found_by(objective, step)[1]["inputs"].flatten())
        half = objective._comparison._precision(step.real_batch()) == torch.bfloat16
        assert half is rounds
    assert not torch.equal(*found)
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.999


def test_who_asks_for_a_precision_gets_it(monkeypatch):
    monkeypatch.setattr(machine, "native_bfloat16", lambda _: True)
    cpu, example = torch.device("cpu"), torch.zeros(1, 6)

    def rounds(precision: str) -> bool:
        run = Run(precision=precision)
        return machine.execution(run, cpu, chain(), example, 1.0, eager=True)["rounds"]

    assert rounds("auto")
    assert not rounds("float32")
    assert not Learner(chain(), Classification(), precision="float64", rounds=True).rounds


def test_small_products_and_other_layers_keep_their_precision():
    learner = case_of(chain).learner(rounds=True)
    step = step_of(chain, learner=learner)
    objective = GradientMatching()
    objective(dataclasses.replace(step, synthetic=step.synthetic.float()))
    assert objective._comparison.rounds
    assert objective._comparison._precision(step.real_batch()) == torch.float32
    head = GradientMatching(parameters="head")
    head(step)
    assert not head._comparison.rounds
