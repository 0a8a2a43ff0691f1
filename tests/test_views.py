"""Several views of every item: losses and objectives are sums over them, written out plainly."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fakes import CASES, Shift, everything, seeded
from torch import Tensor
from torch.func import functional_call

from mmdd.batch import Batch
from mmdd.evaluate import Trainer
from mmdd.objectives.cross_entropy import CrossEntropy
from mmdd.objectives.distribution import DistributionMatching
from mmdd.objectives.gradient import GradientMatching
from mmdd.objectives.trajectory import TrajectoryMatching
from mmdd.protocols import PROTOCOLS
from mmdd.trees import tree_cat
from mmdd.views import Views, augmented, told_apart

VIEWS = 3


class Times:
    """A view without chance: every item times a number."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Tensor:
        return torch.zeros(count)

    def __call__(self, inputs: Tensor, draw: Any, rows: Tensor | None = None) -> Tensor:
        return self.factor * inputs


def views() -> Views:
    return Views([Shift() for _ in range(VIEWS)])


def test_an_items_views_stay_together_with_what_belongs_to_it():
    made = Views([Times(1.0), Times(-2.0)])
    x = torch.randn(3, 4, generator=seeded())
    batch = Batch({"a": x}, torch.tensor([2, 0, 1]), torch.tensor([5, 0, 5]), torch.rand(3))
    field = Views([lambda tree, *_, f=f: {"a": f * tree["a"]} for f in (1.0, -2.0)])
    found = augmented(batch, field, [None, None])
    expected = torch.stack([x[0], -2 * x[0], x[1], -2 * x[1], x[2], -2 * x[2]])
    assert torch.equal(found.inputs["a"], expected)
    assert found.targets.tolist() == [2, 2, 0, 0, 1, 1]
    assert found.groups.tolist() == [5, 5, 0, 0, 5, 5]
    assert torch.equal(found.weights, batch.weights.repeat_interleave(2))
    assert told_apart(found, made.views).groups.tolist() == [10, 11, 0, 1, 10, 11]


def test_draws_are_of_every_view_and_join():
    made, x = views(), torch.randn(4, 2, generator=seeded())
    draw = made.draw(4, seeded(1))
    assert not torch.equal(draw[0], draw[1])
    parts = [made.draw(2, seeded(2)), made.draw(2, seeded(3))]
    apart = torch.cat([made(x[:2], parts[0]), made(x[2:], parts[1])])
    assert torch.equal(made(x, tree_cat(parts)), apart)
    rows = torch.tensor([3, 3, 0, 1])
    assert torch.equal(made(x, draw, rows)[1::VIEWS], Shift()(x, draw[1], rows))


OBJECTIVES = [
    DistributionMatching(),
    DistributionMatching(kernel="gaussian"),
    GradientMatching(),
    GradientMatching(distance="mse"),
    CrossEntropy(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_an_objective_is_the_sum_over_the_views(objective):
    case = CASES["separable"]()
    synthetic, made = case.start(), views()
    draw = made.draw(case.train.num_groups, seeded(4))
    step = case.step(case.learner(), synthetic, related=True, augmentation=made, draw=draw)
    alone = [dataclasses.replace(step, augmentation=Shift(), draw=own) for own in draw]
    leaf = synthetic.leaves()["inputs"]
    found = objective(step)
    plain = torch.stack([objective(one) for one in alone]).sum()
    torch.testing.assert_close(found, plain)
    gradients = [torch.autograd.grad(value, leaf)[0] for value in (found, plain)]
    assert gradients[1].norm() > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_passes_over_some_groups_add_up():
    case = CASES["separable"]()
    losses, states = [], []
    for items in (10**6, 8):
        run = case.distiller(DistributionMatching(), augmentation=views(), pass_items=items)
        # all real items: which ones a pass draws does not depend on how many passes there are
        run.per_group = int(case.train.group_sizes.max())
        losses.append(run.step())
        states.append(run.synthetic.leaves()["inputs"].detach().clone())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("memory", ["exact", "unrolled"])
def test_an_inner_step_follows_the_mean_gradient_of_all_views(memory):
    factors, rate, steps = (1.0, 0.5, -1.5), 0.3, 3
    case = CASES["separable"]()
    learner = case.learner(precision="float64")
    synthetic = case.begin(rate).to(torch.float64)
    step = case.step(
        learner, synthetic, related=True, augmentation=Views(list(map(Times, factors)))
    )
    start = {k: v.double() for k, v in step.drawn.params.items()}
    target = {k: v.double() for k, v in step.drawn.target.items()}
    step = dataclasses.replace(
        step, drawn=dataclasses.replace(step.drawn, params=start, target=target)
    )
    leaf = synthetic.leaves()["inputs"]
    found = TrajectoryMatching(steps=steps, memory=memory)(step)

    batch, theta = synthetic.batch(), {k: v.clone().requires_grad_() for k, v in start.items()}
    for _ in range(steps):
        losses = [
            torch.nn.functional.cross_entropy(
                functional_call(learner.encoder, theta, (factor * batch.inputs,)), batch.targets
            )
            for factor in factors
        ]
        total = torch.stack(losses).sum()
        slopes = torch.autograd.grad(total, list(theta.values()), create_graph=True)
        moved = zip(theta.items(), slopes, strict=True)
        theta = {name: value - rate / len(factors) * slope for (name, value), slope in moved}
    far, whole = (
        torch.stack([(a[name] - target[name]).square().sum() for name in target]).sum()
        for a in (theta, start)
    )
    torch.testing.assert_close(found, far / whole)
    gradients = [torch.autograd.grad(value, leaf)[0] for value in (found, far / whole)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)


def test_stacked_learners_see_the_views_that_each_sees_alone():
    case = CASES["separable"]()
    protocol = PROTOCOLS["quick"].model_copy(update={"epochs": 3})
    trainer = Trainer(case.learner(), protocol, 0, augmentation=views())
    data = everything(case.train)
    together = trainer.train([data, data])
    assert not torch.equal(together[0]["head.weight"], together[1]["head.weight"])
    alone = trainer.train([data])
    for name, value in alone[0].items():
        torch.testing.assert_close(together[0][name], value, rtol=1e-4, atol=1e-6)
