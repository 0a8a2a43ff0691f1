"""Labels of synthetic items: their probabilities, their learning, and packed items' shares."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import CASES, labels, noise, seeded

from mmdd.labels import DerivedLabels, HardLabels, SoftLabels
from mmdd.packed import Packed
from mmdd.representations import Direct
from mmdd.synthetic import StepSize, SyntheticSet

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])


def targets_of(made, index=None, expand=1):
    decoded = noise(2 * expand, 3)
    inputs, targets = made.attach(index, decoded, expand)
    assert inputs is decoded
    return targets


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("learned", [True, False])
def test_soft_labels_are_probabilities(temperature, learned):
    found = targets_of(SoftLabels(LOGITS, temperature=temperature, learned=learned)).tolist()
    for row, logits in zip(found, LOGITS.tolist(), strict=True):
        powers = [math.exp(value / temperature) for value in logits]
        assert row == pytest.approx([power / sum(powers) for power in powers])


def test_a_higher_temperature_is_flatter():
    found = [targets_of(SoftLabels(LOGITS, temperature=t)) for t in (0.1, 1.0, 10.0)]
    peaks = [float(targets[0, 0].detach()) for targets in found]
    assert peaks[0] > peaks[1] > peaks[2] > 1 / 3


def test_chosen_items_and_parts_of_items_get_their_own_row():
    made = SoftLabels(LOGITS)
    whole = targets_of(made)
    assert torch.equal(targets_of(made, torch.tensor([1, 0])), whole[[1, 0]])
    assert torch.equal(targets_of(made, expand=3), whole[[0, 0, 0, 1, 1, 1]])
    assert torch.equal(targets_of(made, torch.tensor([1]), expand=2), whole[[1, 1]])
    hard = HardLabels(torch.tensor([4, 7]))
    assert targets_of(hard, torch.tensor([1, 0]), expand=2).tolist() == [7, 7, 4, 4]


def test_only_learned_labels_are_leaves_and_both_are_stored():
    for learned, kind in ((True, "soft"), (False, "teacher")):
        made = SoftLabels(LOGITS, learned=learned)
        assert made.kind == kind
        synthetic = SyntheticSet(Direct(noise(2, 3)), made, labels(2), 3)
        assert ("labels.logits" in synthetic.leaves()) == learned
        assert synthetic.batch().targets.requires_grad == learned
        # items, logits and the groups, which logits do not tell
        assert synthetic.nbytes == 2 * 3 * 4 + 2 * 3 * 4 + 2 * 8


def test_the_logits_are_a_copy():
    given = LOGITS.clone().requires_grad_()
    made = SoftLabels(given)
    made.logits.data.zero_()
    assert torch.equal(given.detach(), LOGITS)


def test_learning_a_label_moves_it_towards_what_the_net_says():
    case = CASES["separable"]()
    learner = case.learner()
    params = learner.init(seeded(0))
    synthetic = SyntheticSet(Direct(noise(4, 6)), SoftLabels(torch.zeros(4, 3)), labels(4), 3)
    logits = synthetic.leaves()["labels.logits"]
    says = learner.outputs(params, synthetic.batch()).detach()
    learner.loss(params, synthetic.batch()).backward()
    # d/dl of the mean of -sum_c softmax(l)_c log p_c, by hand at uniform labels
    log_p = says.log_softmax(dim=1)
    expected = -(log_p - log_p.mean(dim=1, keepdim=True)) / 3 / 4
    torch.testing.assert_close(logits.grad, expected)


def test_parts_of_a_packed_item_share_its_label():
    packed = Packed.of_items(noise(8, 1, 4, 4), factor=2)
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    synthetic = SyntheticSet(packed, SoftLabels(logits), torch.tensor([0, 1]), 2)
    batch = synthetic.batch()
    assert batch.groups.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(batch.targets, logits.softmax(dim=1).repeat_interleave(4, dim=0))
    second = synthetic.batch(groups=torch.tensor([1]))
    assert torch.equal(second.targets, batch.targets[4:])
    batch.targets[:, 0].sum().backward()
    slope = synthetic.leaves()["labels.logits"].grad
    p = logits.softmax(dim=1)[:, 0]
    torch.testing.assert_close(slope[:, 0], 4 * p * (1 - p))


def test_derived_labels_are_what_the_representation_says():
    parts = {"inputs": noise(2, 3), "targets": noise(2, 1)}
    inputs, targets = DerivedLabels().attach(None, parts, 1)
    assert inputs is parts["inputs"]
    assert targets is parts["targets"]
    fields = {"image": noise(2, 3), "text": noise(2, 4)}
    assert DerivedLabels().attach(None, fields, 1) == (fields, None)


# -- rates of inner training -----------------------------------------------------------------------


def test_rates_start_where_asked_and_stay_positive():
    made = StepSize(0.02, groups=3)
    torch.testing.assert_close(made.values(), torch.full((3,), 0.02))
    made.log.data -= 30.0
    assert (made.values() > 0).all()


def test_a_step_on_the_logarithm_is_a_scaled_step_on_the_rate():
    made, rate = StepSize(0.5), 1e-4
    before = made.values()
    (3.0 * before).sum().backward()
    with torch.no_grad():
        made.log -= rate * made.log.grad
    torch.testing.assert_close(
        made.values(), before.detach() - rate * 0.5**2 * 3.0, rtol=0, atol=1e-7
    )


def test_rates_are_a_leaf_and_part_of_the_set():
    synthetic = CASES["coupled"]().begin(0.05)
    assert tuple(synthetic.leaves())[-1] == "step_size"
    assert synthetic.leaves()["step_size"].shape == (2,)
    assert synthetic.nbytes == CASES["coupled"]().nbytes + 2 * 4
    again = CASES["coupled"]().begin(0.5)
    again.load_state_dict(synthetic.state_dict())
    torch.testing.assert_close(again.step_size.values(), torch.full((2,), 0.05))
