"""Outer optimisers: whose options a leaf takes, its rate over time, and its updates by hand."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmdd.optimise import OuterOptimiser, options_for, schedule_factor
from mmdd.recipe import Leaf

START = torch.tensor([1.0, -2.0, 0.5])
GRADIENTS = [
    torch.tensor(values) for values in ([3.0, 4.0, 0.0], [-1.0, 0.5, 2.0], [0.1, 0.0, 9.0])
]


def stepped(options, gradients=GRADIENTS, steps=None):
    """Values of one leaf after every gradient."""
    leaf = nn.Parameter(START.clone())
    outer = OuterOptimiser({"inputs": leaf}, {"inputs": options}, steps or len(gradients))
    found = []
    for number, gradient in enumerate(gradients):
        outer.zero_grad()
        leaf.grad = gradient.clone()
        outer.step(number)
        found.append(leaf.detach().clone())
    return found


# -- whose options ---------------------------------------------------------------------------------


def test_the_longest_prefix_wins():
    options = {"inputs": "a", "inputs.image": "b", "inputs.image.high": "c", "labels": "d"}
    assert options_for("inputs", options) == "a"
    assert options_for("inputs.text", options) == "a"
    assert options_for("inputs.image", options) == "b"
    assert options_for("inputs.image.low", options) == "b"
    assert options_for("inputs.image.high", options) == "c"
    assert options_for("labels.targets", options) == "d"


def test_prefixes_end_at_dots():
    with pytest.raises(KeyError, match=r"no optimiser options for leaf 'inputs\.image'"):
        options_for("inputs.image", {"inputs.im": 1, "input": 2})


def test_a_leaf_without_options_is_an_error():
    with pytest.raises(KeyError, match="decoder"):
        OuterOptimiser({"decoder": nn.Parameter(START)}, {"inputs": Leaf()}, 10)


def test_every_leaf_has_its_own_optimiser():
    leaves = {name: nn.Parameter(START.clone()) for name in ("inputs.image", "inputs.text")}
    rates = {"inputs": Leaf(lr=0.1, momentum=0.0), "inputs.text": Leaf(lr=2.0, momentum=0.0)}
    outer = OuterOptimiser(leaves, rates, 1)
    for leaf in leaves.values():
        leaf.grad = GRADIENTS[0].clone()
    outer.step(0)
    torch.testing.assert_close(leaves["inputs.image"].detach(), START - 0.1 * GRADIENTS[0])
    torch.testing.assert_close(leaves["inputs.text"].detach(), START - 2.0 * GRADIENTS[0])


def test_a_leaf_without_a_gradient_stays():
    leaves = {name: nn.Parameter(START.clone()) for name in ("inputs", "labels")}
    outer = OuterOptimiser(leaves, {"inputs": Leaf(weight_decay=0.1), "labels": Leaf()}, 1)
    leaves["labels"].grad = GRADIENTS[0].clone()
    outer.step(0)
    assert torch.equal(leaves["inputs"].detach(), START)
    assert not torch.equal(leaves["labels"].detach(), START)
    outer.zero_grad()
    assert leaves["labels"].grad is None


# -- schedules -------------------------------------------------------------------------------------


def test_a_constant_rate_is_constant():
    assert [schedule_factor(Leaf(), step, 10) for step in (0, 5, 9)] == [1.0] * 3


def test_a_linear_rate_falls_by_equal_parts():
    options = Leaf(schedule="linear", final=0.2)
    found = [schedule_factor(options, step, 4) for step in range(5)]
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_a_cosine_rate_is_half_way_in_the_middle():
    options = Leaf(schedule="cosine", final=0.1)
    assert schedule_factor(options, 0, 100) == pytest.approx(1.0)
    assert schedule_factor(options, 50, 100) == pytest.approx(0.55)
    assert schedule_factor(options, 25, 100) == pytest.approx(
        0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    )
    assert schedule_factor(options, 100, 100) == pytest.approx(0.1)


def test_warm_up_rises_to_the_full_rate_and_the_decay_starts_there():
    options = Leaf(schedule="linear", warmup=0.1)
    found = [schedule_factor(options, step, 100) for step in range(100)]
    assert found[0] == pytest.approx(1 / 11)
    assert found[9] == pytest.approx(10 / 11)
    assert found[10] == pytest.approx(1.0)
    assert found[55] == pytest.approx(0.5)
    assert all(a < b for a, b in itertools.pairwise(found[:11]))
    assert all(a > b for a, b in itertools.pairwise(found[10:]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from(["constant", "cosine", "linear"]),
    st.floats(0, 0.99),
    st.floats(0, 1),
    st.integers(1, 300),
    st.data(),
)
def test_a_rate_is_never_negative_nor_above_its_base(schedule, warmup, final, steps, data):
    options = Leaf(schedule=schedule, warmup=warmup, final=final)
    step = data.draw(st.integers(0, steps))
    factor = schedule_factor(options, step, steps)
    assert -1e-12 <= factor <= 1 + 1e-12
    if step < steps:
        assert factor > 0 or final == 0


def test_a_run_without_steps_does_not_divide_by_zero():
    assert schedule_factor(Leaf(schedule="cosine", warmup=0.5), 0, 0) > 0


# -- updates ---------------------------------------------------------------------------------------


def test_sgd_by_hand():
    options = Leaf(lr=0.1, momentum=0.5, weight_decay=0.01)
    value, velocity, expected = START.clone(), torch.zeros(3), []
    for gradient in GRADIENTS:
        velocity = 0.5 * velocity + gradient + 0.01 * value
        value = value - 0.1 * velocity
        expected.append(value)
    torch.testing.assert_close(stepped(options), expected)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adam_by_hand(kind):
    options = Leaf(optimiser=kind, lr=0.1, momentum=0.9, weight_decay=0.1)
    value, first, second, expected = START.clone(), torch.zeros(3), torch.zeros(3), []
    for t, raw in enumerate(GRADIENTS, start=1):
        gradient = raw + 0.1 * value if kind == "adam" else raw
        if kind == "adamw":
            value = value - 0.1 * 0.1 * value
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        root = (second / (1 - 0.999**t)).sqrt() + 1e-8
        value = value - 0.1 * (first / (1 - 0.9**t)) / root
        expected.append(value)
    torch.testing.assert_close(stepped(options), expected)


def test_the_schedule_sets_the_rate_of_every_step():
    options = Leaf(lr=0.4, momentum=0.0, schedule="linear")
    value, expected = START.clone(), []
    for number, gradient in enumerate(GRADIENTS):
        value = value - 0.4 * (1 - number / 3) * gradient
        expected.append(value)
    torch.testing.assert_close(stepped(options), expected)


def test_a_long_gradient_is_clipped_and_a_short_one_is_not():
    options = Leaf(lr=1.0, momentum=0.0, clip=2.5)
    after = stepped(options, [torch.tensor([3.0, 4.0, 0.0])])[0]
    torch.testing.assert_close(after, START - torch.tensor([1.5, 2.0, 0.0]), atol=1e-5, rtol=0)
    short = torch.tensor([0.3, 0.4, 0.0])
    torch.testing.assert_close(stepped(options, [short])[0], START - short)


def test_leaves_are_clipped_one_by_one():
    leaves = {name: nn.Parameter(START.clone()) for name in ("inputs", "labels")}
    rates = {"inputs": Leaf(lr=1.0, momentum=0.0, clip=1.0), "labels": Leaf(lr=1.0, momentum=0.0)}
    outer = OuterOptimiser(leaves, rates, 1)
    for leaf in leaves.values():
        leaf.grad = torch.tensor([0.0, 10.0, 0.0])
    outer.step(0)
    assert (START - leaves["inputs"].detach()).norm() == pytest.approx(1.0, abs=1e-5)
    assert (START - leaves["labels"].detach()).norm() == pytest.approx(10.0)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_stored_state_continues_with_the_same_bits(kind):
    options = Leaf(optimiser=kind, lr=0.1, momentum=0.9, schedule="cosine", clip=3.0)
    whole = stepped(options)

    leaf = nn.Parameter(START.clone())
    early = OuterOptimiser({"inputs": leaf}, {"inputs": options}, 3)
    for number in range(2):
        leaf.grad = GRADIENTS[number].clone()
        early.step(number)
    state = copy.deepcopy(early.state_dict())

    again = nn.Parameter(leaf.detach().clone())
    late = OuterOptimiser({"inputs": again}, {"inputs": options}, 3)
    late.load_state_dict(state)
    again.grad = GRADIENTS[2].clone()
    late.step(2)
    assert torch.equal(again.detach(), whole[2])
