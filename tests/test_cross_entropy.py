"""The task's loss at a net that knows the real items, against a plainly written sum."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from fakes import CASES, labels, noise, seeded, taught

from mmdd.errors import UserError
from mmdd.labels import HardLabels, SoftLabels
from mmdd.objectives.cross_entropy import CrossEntropy
from mmdd.representations import Direct
from mmdd.sources import Drawn
from mmdd.synthetic import SyntheticSet

GROUPED = ("separable", "joint", "masked")


def uneven(case):
    """The case's set with groups of unequal size: a sum over groups is not a sum over items."""
    made = case.start()
    groups = torch.tensor([0, 0, 0, 0, 1, 2])
    return SyntheticSet(made.representation, HardLabels(groups), groups, 3, joint=made.joint)


def step_of(name, **more):
    case = CASES[name]()
    learner = case.learner(precision="float64")
    params = learner.init(seeded(0))
    drawn = taught(learner, params, case.train)
    return case.step(learner, uneven(case), drawn=drawn, **more)


def plain(step, params, groups):
    """Every group's mean of -log p(truth), summed."""
    batch, total = step.synthetic.batch(), 0.0
    logits = step.learner.outputs(params, batch)
    for group in groups:
        rows = torch.nonzero(step.synthetic.groups == group).flatten().tolist()
        losses = [-logits[row].log_softmax(dim=0)[int(batch.targets[row])] for row in rows]
        total = total + sum(losses) / len(losses)
    return total


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("at", ["trained", "drawn"])
def test_the_value_is_a_sum_over_groups(name, at):
    step = step_of(name)
    params = step.drawn.trained if at == "trained" else step.drawn.params
    torch.testing.assert_close(CrossEntropy(at)(step), plain(step, params, [0, 1, 2]))


@pytest.mark.parametrize("name", GROUPED)
def test_passes_add_up(name):
    step, objective = step_of(name), CrossEntropy()
    whole = objective(step)
    parts = [objective(step.of_groups(torch.tensor(groups))) for groups in ([0], [1, 2])]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    torch.testing.assert_close(parts[1], plain(step, step.drawn.trained, [1, 2]))


def test_the_gradient_is_exact():
    step = step_of("separable")
    leaf = step.synthetic.leaves()["inputs"]
    leaf.data = leaf.data.double()
    CrossEntropy()(step).backward()
    exact, small = leaf.grad, 1e-6
    for place in ((0, 0), (3, 2), (5, 5)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf[place] += sign * small
                values.append(CrossEntropy()(step))
                leaf[place] -= sign * small
        slope = (values[0] - values[1]) / (2 * small)
        torch.testing.assert_close(exact[place], slope, rtol=1e-6, atol=1e-9)


def test_soft_labels_are_read_as_probabilities():
    case = CASES["separable"]()
    learner = case.learner()
    made = SoftLabels(noise(3, 3, seed=3))
    synthetic = SyntheticSet(Direct(noise(3, 6)), made, labels(3), 3)
    step = case.step(learner, synthetic, related=True)
    found = CrossEntropy()(step)
    logits = learner.outputs(step.drawn.trained, synthetic.batch())
    expected = -(made.logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum()
    torch.testing.assert_close(found, expected)
    found.backward()
    assert made.logits.grad.abs().sum() > 0


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 1.0])
def test_by_accuracy_weighs_with_percent(accuracy):
    step = step_of("separable")
    step = step.of_net(dataclasses.replace(step.drawn, accuracy=accuracy))
    plainly, weighted = CrossEntropy()(step), CrossEntropy(by_accuracy=True)(step)
    torch.testing.assert_close(weighted, 100 * accuracy * plainly)


def test_augmented_items_are_what_counts():
    class Double:
        def draw(self, count, generator, *, shared_op=False):
            return torch.full((count,), 2.0)

        def __call__(self, inputs, draw, rows=None):
            return inputs * draw[rows][:, None]

    step = step_of("separable", augmentation=Double(), draw=torch.full((3,), 2.0))
    batch = step.synthetic.batch()
    logits = step.learner.outputs(step.drawn.params, batch.with_inputs(2 * batch.inputs))
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    expected = losses[:4].mean() + losses[4] + losses[5]
    torch.testing.assert_close(CrossEntropy("drawn")(step), expected)


def test_nets_that_a_source_lacks_are_asked_for_in_one_line():
    step = step_of("separable")
    bare = step.of_net(Drawn(step.drawn.params))
    with pytest.raises(UserError, match="needs a source that has one") as caught:
        CrossEntropy()(bare)
    assert "'drawn'" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="expected source pool"):
        CrossEntropy("drawn", by_accuracy=True)(bare)
