"""Distribution matching against plainly written loops, and its gradient against differences."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from fakes import ALL, CASES, Case, labels, noise, seeded

from mmdd.labels import HardLabels
from mmdd.objectives.distribution import DistributionMatching, central_moments, squared_mmd
from mmdd.real import JointData, ResidentData
from mmdd.representations import Direct, Representation
from mmdd.sources import Drawn
from mmdd.step import Step
from mmdd.synthetic import SyntheticSet
from mmdd.trees import tree_map

OPTIONS = {
    "mean": {},
    "layers": {"features": "all"},
    "moments": {"moments": 4, "moment_weights": [1.0, 0.5, 2.0, 0.1]},
    "moments-layers": {"moments": 2, "features": "all"},
    "linear": {"kernel": "linear"},
    "polynomial": {"kernel": "polynomial"},
    "gaussian": {"kernel": "gaussian"},
    "gaussian-layers": {"kernel": "gaussian", "features": "all", "bandwidths": [0.3, 2.0]},
}
GROUPED = ("separable", "joint", "masked")


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


@pytest.fixture(params=GROUPED)
def case(request) -> Case:
    return CASES[request.param]()


# -- the same numbers, written plainly -------------------------------------------------------------


def plain_moments(real, synthetic, weights):
    """Sum over moments of the squared difference; [n, D] and [m, D] of one group."""

    def moment(values, order):
        mean = sum(values) / len(values)
        return mean if order == 1 else sum((row - mean) ** order for row in values) / len(values)

    return sum(
        weight * ((moment(real, order) - moment(synthetic, order)) ** 2).sum()
        for order, weight in enumerate(weights, start=1)
    )


def plain_kernel(name, real, bandwidths):
    if name == "linear":
        return lambda x, y: float(np.dot(x, y))
    if name == "polynomial":
        return lambda x, y: (float(np.dot(x, y)) / len(x) + 1.0) ** 2
    squares = sorted(float(((x - y) ** 2).sum()) for x, y in itertools.combinations(real, 2))
    median = squares[(len(squares) - 1) // 2]
    return lambda x, y: float(
        np.mean([np.exp(-((x - y) ** 2).sum() / (2 * width**2 * median)) for width in bandwidths])
    )


def plain_mmd(real, synthetic, name, bandwidths):
    kernel = plain_kernel(name, real, bandwidths)

    def mean(a, b):
        return np.mean([[kernel(x, y) for y in b] for x in a])

    return mean(real, real) + mean(synthetic, synthetic) - 2 * mean(real, synthetic)


def plain_objective(real_layers, real_groups, synthetic_layers, synthetic_groups, options):
    """The whole objective from lists of [n, D_l] arrays and the group of every row."""
    weights = options.get("moment_weights") or [1.0] * options.get("moments", 1)
    if options.get("features", "last") == "last":
        real_layers, synthetic_layers = real_layers[-1:], synthetic_layers[-1:]
    total = 0.0
    for real, synthetic in zip(real_layers, synthetic_layers, strict=True):
        scale = real_layers[-1].shape[1] / real.shape[1]
        for group in sorted(set(real_groups) & set(synthetic_groups)):
            a = [row for row, g in zip(real, real_groups, strict=True) if g == group]
            b = [row for row, g in zip(synthetic, synthetic_groups, strict=True) if g == group]
            if options.get("kernel"):
                widths = options.get("bandwidths", [0.5, 1.0, 2.0])
                total += scale * plain_mmd(a, b, options["kernel"], widths)
            else:
                total += scale * plain_moments(a, b, weights)
    return total


def plain_layers(case, params, inputs):
    """Every block's output by an ordinary module that holds the parameters itself."""
    net = case.net().double()
    net.load_state_dict(params)
    wide = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, inputs)
    with torch.no_grad():
        return [layer.numpy() for layer in net.layers(wide)]


def plain_value(case, params, synthetic, options):
    if isinstance(case.train, JointData):
        rows = case.train.index.numpy()
        real = [layer[rows] for layer in plain_layers(case, params, case.train.structure)]
    else:
        real = plain_layers(case, params, case.train.values)
    made = plain_layers(case, params, synthetic.batch().inputs)
    return plain_objective(
        real, case.train.groups.tolist(), made, synthetic.groups.tolist(), options
    )


def test_value_equals_a_plain_loop(case, options):
    synthetic = case.start()
    step = case.step(case.learner(precision="float64"), synthetic)
    value = DistributionMatching(**options)(step)
    assert value.dtype == torch.float64
    assert float(value.detach()) == pytest.approx(
        plain_value(case, step.drawn.params, synthetic, options), rel=1e-9
    )


def test_pairs_and_forecasts_have_one_group():
    for name in ("coupled", "forecasting"):
        case = CASES[name]()
        synthetic = case.start()
        step = case.step(case.learner(precision="float64"), synthetic)
        value = float(DistributionMatching()(step).detach())
        expected = plain_value(case, step.drawn.params, synthetic, {})
        assert value == pytest.approx(expected, rel=1e-9)


def test_linear_discrepancy_is_the_squared_difference_of_means(case):
    synthetic = case.start()
    learner = case.learner(precision="float64")
    values = [
        DistributionMatching(**options)(case.step(learner, synthetic))
        for options in (OPTIONS["linear"], OPTIONS["mean"])
    ]
    torch.testing.assert_close(*values)


def test_a_set_equal_to_the_real_one_is_at_distance_zero(options):
    case = CASES["separable"]()
    everything = case.train.select(torch.arange(len(case.train)))
    same = SyntheticSet(
        Direct(everything.inputs), HardLabels(everything.targets), everything.groups, 3
    )
    step = case.step(case.learner(precision="float64"), same)
    loss = DistributionMatching(**options)(step)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    gradient = same.leaves()["inputs"].grad
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) < 1e-6


def test_moments_are_central():
    case = CASES["separable"]()
    batch = case.train.select(torch.arange(30))
    features = noise(30, 4).double()
    found = central_moments(batch, features, 3, 3)
    for group in range(3):
        rows = features[batch.groups == group].numpy()
        mean = rows.mean(axis=0)
        for order, moment in enumerate(found, start=1):
            expected = mean if order == 1 else ((rows - mean) ** order).mean(axis=0)
            np.testing.assert_allclose(moment[group].numpy(), expected, atol=1e-12)


def test_equal_means_but_other_spread_is_seen_by_the_second_moment_alone():
    data = ResidentData(torch.tensor([[-1.0], [1.0]]).repeat(4, 6), *[torch.zeros(8).long()] * 2, 1)
    wide = SyntheticSet(
        Direct(torch.tensor([[-3.0], [3.0]]).repeat(1, 6)),
        HardLabels(torch.zeros(2).long()),
        torch.zeros(2),
        1,
    )

    class Same(torch.nn.Module):
        def features(self, inputs):
            return inputs

    case = CASES["separable"]()
    learner = case.learner()
    learner._module.encoder = Same()

    def value(**options):
        step = Step(0, learner, Drawn({}), wide, data, ALL, seeded(0))
        return float(DistributionMatching(**options)(step).detach())

    assert value() == pytest.approx(0.0, abs=1e-10)
    assert value(moments=2) == pytest.approx(6 * (9.0 - 1.0) ** 2)
    assert value(moments=2, moment_weights=[1.0, 0.5]) == pytest.approx(3 * 8.0**2)


# -- gradients -------------------------------------------------------------------------------------


class Given(Representation):
    """Hands out the tensors that it was given, so that a function of them can be checked."""

    def __init__(self, inputs):
        super().__init__()
        self.inputs = inputs

    def decode(self, index):
        return self.inputs


@pytest.mark.parametrize("name", [*GROUPED, "coupled"])
def test_gradient_equals_finite_differences(name, options):
    case = CASES[name]()
    learner = case.learner(precision="float64")
    start = case.start()
    objective = DistributionMatching(**options)
    fields = start.batch().inputs
    names = [key.removeprefix("inputs.") for key in start.leaves()]

    def loss(*tensors):
        if isinstance(fields, dict):
            inputs = {**fields, **dict(zip(names, tensors, strict=True))}
        else:
            (inputs,) = tensors
        made = SyntheticSet(
            Given(inputs), start.labels, start.groups, start.num_groups, joint=start.joint
        )
        return objective(case.step(learner, made))

    tensors = [leaf.detach().double().requires_grad_() for leaf in start.leaves().values()]
    assert torch.autograd.gradcheck(loss, tensors, eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["linear", "polynomial", "gaussian"])
def test_discrepancy_has_the_right_gradient_where_items_coincide(kernel):
    real = noise(6, 3).double()
    made = torch.cat([real[:2], real[:1]]).clone().requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda m: squared_mmd(real, m, kernel, (0.5, 1.0, 2.0)), made, atol=1e-6)


@pytest.mark.parametrize("real", [torch.zeros(4, 3), torch.eye(3)[[0, 0, 0, 0, 1]]])
def test_repeated_real_features_still_attract(real):
    made = torch.ones(2, 3, requires_grad=True)
    squared_mmd(real, made, "gaussian", (0.5, 1.0, 2.0)).backward()
    assert made.grad.abs().sum() > 0


def test_a_single_real_item_has_a_bandwidth():
    made = torch.ones(2, 3, requires_grad=True)
    squared_mmd(torch.zeros(1, 3), made, "gaussian", (0.5, 1.0, 2.0)).backward()
    assert torch.isfinite(made.grad).all()
    assert made.grad.abs().sum() > 0


# -- who counts ------------------------------------------------------------------------------------


def subset_of(case: Case, groups: list[int]) -> SyntheticSet:
    kept = torch.tensor(groups)
    return SyntheticSet(Direct(noise(len(kept), 6)), HardLabels(kept), kept, case.train.num_groups)


def test_groups_absent_from_either_side_do_not_count(options):
    case = CASES["separable"]()
    learner = case.learner(precision="float64")
    members = torch.cat([case.train.members(0), case.train.members(2)])
    without_one = case.train.subset(members)
    synthetic = subset_of(case, [0, 1, 1, 0])
    step = case.step(learner, synthetic, real=without_one)
    loss = DistributionMatching(**options)(step)
    only_zero = case.train.subset(case.train.members(0))
    expected = DistributionMatching(**options)(
        case.step(learner, subset_of(case, [0, 1, 1, 0]), real=only_zero)
    )
    torch.testing.assert_close(loss, expected)
    made = plain_layers(case, step.drawn.params, synthetic.batch().inputs)
    real = plain_layers(case, step.drawn.params, case.train.values[members])
    plain = plain_objective(real, without_one.groups.tolist(), made, [0, 1, 1, 0], options)
    assert float(loss.detach()) == pytest.approx(plain, rel=1e-9)
    loss.backward()
    gradient = synthetic.leaves()["inputs"].grad
    assert torch.isfinite(gradient).all()
    assert (gradient[1:3] == 0).all()
    assert (gradient[[0, 3]] != 0).any()


def test_items_of_weight_zero_do_not_count(options):
    case = CASES["joint"]()
    learner = case.learner(precision="float64")
    objective = DistributionMatching(**options)
    alone = torch.eye(24)

    def value(outside: float) -> float:
        # without edges, a node's features are its own: those outside must not matter
        x = noise(24, 6, seed=3).clone()
        x[15:] = outside
        structure = {"x": x, "adjacency": alone}
        data = JointData(structure, labels(24), labels(24), 3, index=torch.arange(15))
        return float(objective(case.step(learner, case.start(), real=data)).detach())

    assert value(0.0) == pytest.approx(value(50.0), rel=1e-12)


class Weighted(ResidentData):
    """Items count once or twice."""

    def select(self, index):
        return dataclasses.replace(super().select(index), weights=1.0 + index % 2)


def test_weights_that_are_not_zero_count_alike_in_means_and_kernels():
    case = CASES["separable"]()
    data = Weighted(case.train.values, case.train.targets, case.train.groups, 3)
    learner = case.learner(precision="float64")
    values = [
        DistributionMatching(**options)(case.step(learner, case.start(), real=data))
        for options in (OPTIONS["linear"], OPTIONS["mean"])
    ]
    torch.testing.assert_close(*values)


def test_the_real_side_carries_no_graph():
    case = CASES["separable"]()
    learner = case.learner()
    params = {name: value.requires_grad_() for name, value in learner.init(seeded(0)).items()}
    frozen = SyntheticSet(
        Given(noise(3, 6)), HardLabels(torch.arange(3)), torch.arange(3), num_groups=3
    )
    seen = []
    original = learner.features

    def watched(*words, **more):
        found = original(*words, **more)
        seen.append(found.requires_grad)
        return found

    learner.features = watched
    DistributionMatching()(case.step(learner, frozen, drawn=Drawn(params)))
    assert seen == [False, True]
