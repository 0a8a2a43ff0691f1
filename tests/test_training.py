"""A learner in training, against plainly written SGD."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from fakes import CASES, everything, noise, seeded

from mmdd.batch import Batch
from mmdd.learner import Learner
from mmdd.modalities.images.convnet import ConvNet
from mmdd.tasks.classification import Classification
from mmdd.training import Student
from mmdd.trees import tree_leaves

RATES = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def student_of(case, seed=0, **rates):
    learner = case.learner()
    return Student(learner, learner.init(seeded(seed)), **{**RATES, **rates})


def trained(student, batch, steps):
    for _ in range(steps):
        student.step(batch)
    return student


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_steps_are_plain_sgd(momentum, weight_decay):
    case = CASES["separable"]()
    batch = everything(case.train)
    student = student_of(case, momentum=momentum, weight_decay=weight_decay)
    net = case.net()
    net.load_state_dict(student.snapshot())
    velocity = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    for step in range(6):
        chosen = torch.arange(9) + 3 * step
        student.step(batch.select(chosen))
        net.zero_grad()
        F.cross_entropy(net(batch.inputs[chosen]), batch.targets[chosen]).backward()
        with torch.no_grad():
            for name, value in net.named_parameters():
                gradient = value.grad + weight_decay * value
                velocity[name] = momentum * velocity[name] + gradient
                value -= RATES["lr"] * velocity[name]
    torch.testing.assert_close(student.params, dict(net.named_parameters()), rtol=1e-5, atol=1e-6)
    assert student.steps == 6


@pytest.mark.parametrize("name", CASES)
def test_training_learns_every_kind_of_data(name):
    case = CASES[name]()
    batch = everything(case.train)
    student = student_of(case, lr=0.05, weight_decay=0.0)
    before = float(case.learner().loss(student.snapshot(), batch))
    assert float(case.learner().loss(trained(student, batch, 20).params, batch)) < 0.8 * before


def test_items_of_weight_zero_teach_nothing():
    case = CASES["separable"]()
    batch = everything(case.train)
    kept = torch.tensor([0, 4, 8, 11])
    weights = torch.zeros(len(batch))
    weights[kept] = 1.0
    weighted = trained(student_of(case), dataclasses.replace(batch, weights=weights), 3)
    sliced = trained(student_of(case), batch.select(kept), 3)
    torch.testing.assert_close(weighted.params, sliced.params)


def test_a_step_returns_the_outputs_it_was_taken_at():
    case = CASES["separable"]()
    student, batch = student_of(case), everything(case.train)
    before = case.learner().outputs(student.snapshot(), batch)
    outputs = student.step(batch)
    torch.testing.assert_close(outputs, before, rtol=0, atol=0)
    assert not outputs.requires_grad


@pytest.mark.parametrize("name", CASES)
def test_outputs_of_any_kind_carry_no_graph(name):
    case = CASES[name]()
    outputs = student_of(case).step(everything(case.train))
    assert not any(leaf.requires_grad for leaf in tree_leaves(outputs))


def test_the_callers_parameters_stay_and_snapshots_do_not_move():
    case = CASES["separable"]()
    batch, learner = everything(case.train), case.learner()
    start = learner.init(seeded(0))
    kept = copy.deepcopy(start)
    student = Student(learner, start, **RATES)
    picture, window = student.snapshot(), student.params
    trained(student, batch, 2)
    assert_same_bits(start, kept)
    assert_same_bits(picture, kept)
    # params are the net itself, as said: they are to be used before the next step
    assert_same_bits(window, student.params)
    assert not torch.equal(window["head.weight"], kept["head.weight"])
    assert not any(value.requires_grad for value in {**window, **picture}.values())


@pytest.mark.parametrize("age", [0, 1, 4])
def test_a_revived_student_goes_on_with_the_same_bits(age):
    case = CASES["separable"]()
    batch = everything(case.train)
    student = trained(student_of(case), batch, age)
    state = student.state_dict()
    trained(student, batch, 3)
    # an older student of another net takes everything over, its momentum included
    revived = trained(student_of(case, seed=1), batch, 2)
    revived.load_state_dict(state)
    assert revived.steps == age
    trained(revived, batch, 3)
    assert_same_bits(revived.snapshot(), student.snapshot())
    assert revived.steps == student.steps == age + 3


def batch_norm_student(seed=0):
    with torch.random.fork_rng(devices=[]):
        learner = Learner(ConvNet(1, 8, 8, 3, width=4, depth=1, norm="batch"), Classification())
    return Student(learner, learner.init(seeded(seed)), **RATES)


def test_running_statistics_are_updated_but_not_stepped():
    student = batch_norm_student()
    inputs = 3 + noise(12, 1, 8, 8)
    batch = Batch(inputs, torch.arange(12) % 3, torch.arange(12) % 3)
    before, state = student.snapshot(), student.state_dict()
    buffers = sorted(set(before) - set(student.learner.trainable_names))
    assert len(buffers) == 2
    trained(student, batch, 3)
    # exponential averages of the batch statistics at the net as it then was, by hand for the first
    again = batch_norm_student()
    again.load_state_dict(state)
    maps = F.conv2d(inputs, before["blocks.0.0.weight"], before["blocks.0.0.bias"], padding=1)
    again.step(batch)
    mean = next(name for name in buffers if name.endswith("running_mean"))
    torch.testing.assert_close(again.params[mean], 0.1 * maps.mean(dim=(0, 2, 3)))
    trained(again, batch, 2)
    assert_same_bits(again.snapshot(), student.snapshot())
