"""What joint data add to the core: budgets of nodes, turns of leaves, easy items first, noise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fakes import Chain, joint, seeded, separable
from torch import nn

from mmdd.budget import budget, share_out, told_budget
from mmdd.cohort import Schedule
from mmdd.compose import compose
from mmdd.errors import UserError
from mmdd.expert_options import Recording
from mmdd.modality import DataInfo
from mmdd.optimise import OuterOptimiser
from mmdd.real import JointData
from mmdd.recipe import Leaf
from mmdd.rng import draws_noise
from mmdd.sections import Turn
from mmdd.training import Student

INFO = DataInfo(
    "graphs", "classification", "x", (3,), 3, ("a", "b", "c"), "f", {}, {}, {"nodes": 200}
)


def recipe(**synthetic):
    return compose(method="dm", options={f"synthetic.{k}": v for k, v in synthetic.items()})


def test_a_fraction_is_of_the_labelled_or_of_all_nodes():
    sizes = torch.tensor([20, 10, 10])
    assert budget(recipe(fraction=0.25), sizes, INFO).tolist() == [4, 3, 3]
    of_all = recipe(fraction=0.1, fraction_of="all")
    assert int(budget(of_all, sizes, INFO).sum()) == 20
    told = told_budget(torch.tensor([10, 5, 5]), sizes, INFO)
    assert (
        told
        == "20 synthetic items: 5 to 10 per class, 0.5 of the training items, 0.1 of all 200 nodes"
    )


def test_as_many_nodes_as_labelled_ones_are_fewer_than_the_graph_has():
    sizes = torch.tensor([20, 20, 20])
    assert int(budget(recipe(per_class=20), sizes, INFO).sum()) == 60
    alone = dataclasses.replace(INFO, sizes={})
    with pytest.raises(UserError, match="smaller than the training set"):
        budget(recipe(per_class=20), sizes, alone)


def test_a_uniform_budget_gives_small_classes_as_much_as_large_ones():
    sizes = torch.tensor([90, 8, 2])
    assert budget(recipe(items=9, balance="uniform"), sizes, INFO).tolist() == [4, 3, 2]
    assert budget(recipe(items=9), sizes, INFO).tolist() == [6, 2, 1]
    assert share_out(9, sizes, torch.tensor([1, 1, 1])).tolist() == [4, 3, 2]


def test_leaves_move_in_their_turns():
    leaves = {"inputs.x": nn.Parameter(torch.zeros(1)), "inputs.a": nn.Parameter(torch.zeros(1))}
    options = {
        "inputs.x": Leaf(momentum=0, turn=Turn(first=2, last=5, cycle=5)),
        "inputs.a": Leaf(momentum=0, turn=Turn(last=2, cycle=5)),
    }
    optimiser = OuterOptimiser(leaves, options, 10)
    moved = []
    for step in range(10):
        for leaf in leaves.values():
            leaf.grad = torch.ones(1)
        before = {name: leaf.item() for name, leaf in leaves.items()}
        optimiser.step(step)
        moved.append("".join(n[-1] for n, leaf in leaves.items() if leaf.item() != before[n]))
    assert moved == ["a", "a", "x", "x", "x"] * 2


@pytest.mark.parametrize("wrong", [{"first": 3, "last": 2, "cycle": 5}, {"last": 6, "cycle": 5}])
def test_a_turn_lies_inside_its_cycle(wrong):
    with pytest.raises(UserError, match="first < last <= cycle"):
        compose(method="dm", options={"optimise.inputs.turn": wrong})


class Ranked(JointData):
    """Joint data whose later items are easier."""

    def difficulty(self):
        return -torch.arange(len(self)).float()


def ranked():
    train = joint().train
    parts = (train.structure, train.all_targets, train.all_groups, train.num_groups)
    return Ranked(*parts, index=train.index)


def test_a_curriculum_begins_with_easy_items_and_ends_with_all():
    data = ranked()
    recording = Recording(count=1, epochs=4, epoch_steps=1, curriculum=0.2, curriculum_epochs=2)
    schedule = Schedule(data, recording, 0, None, joint=True)
    shown = [next(iter(schedule.epoch([0], epoch))).item_weights for epoch in range(4)]
    assert [int(w.sum()) for w in shown] == [3, 9, 15, 15]
    assert torch.equal(torch.nonzero(shown[0]).flatten(), data.index[-3:])


def test_a_curriculum_needs_difficulty():
    recording = Recording(count=1, epochs=2, curriculum=0.5)
    with pytest.raises(UserError, match="know no difficulty"):
        Schedule(joint().train, recording, 0, None, joint=True)


class Noisy(Chain):
    def __init__(self):
        super().__init__(6, 16, 12, outputs=3)
        self.drop = nn.Dropout(0.5)

    def read(self, inputs):
        return self.drop(inputs)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_noisy_student_continues_with_the_same_bits(optimiser):
    case = separable()
    from mmdd.learner import Learner

    learner = Learner(Noisy(), case.task)
    assert draws_noise(learner.encoder)
    batch = case.train.select(torch.arange(12))

    def born():
        start = learner.init(seeded(3))
        return Student(learner, start, lr=0.05, momentum=0.9, optimiser=optimiser, noise=7)

    straight, first = born(), born()
    for _ in range(6):
        torch.rand(1)  # what others draw is nothing to it
        straight.step(batch)
    for _ in range(3):
        first.step(batch)
    second = born()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.step(batch)
    for name, value in straight.params.items():
        assert torch.equal(value, second.params[name])


def test_adam_is_pytorchs():
    case = separable()
    learner = case.learner()
    start = learner.init(seeded(3))
    student = Student(learner, start, lr=0.05, optimiser="adam")
    leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
    plain = torch.optim.Adam(leaves.values(), 0.05)
    batch = case.train.select(torch.arange(12))
    for _ in range(3):
        student.step(batch)
        plain.zero_grad()
        learner.loss(leaves, batch).backward()
        plain.step()
    for name, value in student.params.items():
        torch.testing.assert_close(value, leaves[name].detach(), rtol=0, atol=0)


def test_more_items_than_there_are_labelled_ones_are_refused_not_cut():
    with pytest.raises(UserError, match=r"smaller than the training set.*61.*at most 60"):
        budget(recipe(items=61), torch.tensor([20, 20, 20]), INFO)
    assert int(budget(recipe(items=60), torch.tensor([20, 20, 20]), INFO).sum()) == 60
