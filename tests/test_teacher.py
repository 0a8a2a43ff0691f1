"""Teachers: the mean of experts, where labels start, and when they are renewed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fakes import CASES, CLASSES, TINY_EXPERTS, everything, labels, noise

from mmdd.labels import HardLabels, SoftLabels
from mmdd.objectives.cross_entropy import CrossEntropy
from mmdd.packed import Packed
from mmdd.representations import Direct
from mmdd.synthetic import SyntheticSet
from mmdd.teacher import Teacher, class_logits, per_stored_item


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return CASES["separable"]().record(tmp_path_factory.mktemp("experts"))


def teacher_of(experts, **options):
    return Teacher(CASES["separable"]().learner(), experts, **options)


def plain_logits(experts, inputs):
    """[E, n, C] of modules at the end of every expert's training."""
    net, found = CASES["separable"]().net(), []
    for expert in range(experts.count):
        net.load_state_dict(experts.last(expert))
        found.append(net(inputs).detach())
    return torch.stack(found)


def set_of(made, count=6):
    return SyntheticSet(Direct(noise(count, 6)), made, labels(count), CLASSES)


def test_logits_are_those_of_trained_experts(experts):
    batch = everything(CASES["separable"]().test)
    found = teacher_of(experts).logits(batch)
    torch.testing.assert_close(found, plain_logits(experts, batch.inputs))
    assert not found.requires_grad
    # they know something: chance is a third
    assert (found.mean(dim=0).argmax(dim=1) == batch.targets).float().mean() > 0.6


def test_no_more_experts_are_asked_than_said(experts):
    batch = everything(CASES["separable"]().test)
    found = teacher_of(experts, most=2).logits(batch)
    torch.testing.assert_close(found, plain_logits(experts, batch.inputs)[:2])
    assert teacher_of(experts, most=99).count == 3


def test_labels_start_at_the_mean_of_the_experts_that_are_right(experts):
    # far from the centres, so that experts disagree
    batch = set_of(HardLabels(labels(60)), 60).batch()
    all_logits = plain_logits(experts, batch.inputs)
    found = teacher_of(experts).start(batch, margin=5.0)
    numbers_right = set()
    for item, truth in enumerate(batch.groups.tolist()):
        right = [row[item] for row in all_logits if int(row[item].argmax()) == truth]
        numbers_right.add(len(right))
        expected = sum(right) / len(right) if right else torch.zeros(CLASSES)
        if not right:
            expected[truth] = 5.0
        torch.testing.assert_close(found[item], expected)
        assert int(found[item].argmax()) == truth
    assert numbers_right == {0, 1, 2, 3}


def test_class_logits():
    found = class_logits(torch.tensor([2, 0]), 3, margin=1.5)
    assert found.tolist() == [[0.0, 0.0, 1.5], [1.5, 0.0, 0.0]]


def test_only_a_teachers_labels_are_renewed(experts):
    start = noise(6, CLASSES)
    for made in (SoftLabels(start), SoftLabels(start, learned=False), HardLabels(labels(6))):
        synthetic = set_of(made)
        before = synthetic.batch().targets.detach().clone()
        teacher_of(experts).renew(synthetic)
        after = synthetic.batch().targets.detach()
        if made.kind != "teacher":
            assert torch.equal(after, before)
            continue
        expected = plain_logits(experts, synthetic.batch().inputs).mean(dim=0).softmax(dim=1)
        torch.testing.assert_close(after, expected.detach())


def test_labels_follow_the_items_as_they_change(experts):
    synthetic, teacher = set_of(SoftLabels(noise(6, CLASSES), learned=False)), teacher_of(experts)
    teacher.renew(synthetic)
    before = synthetic.labels.logits.clone()
    synthetic.leaves()["inputs"].data += 2.0
    teacher.renew(synthetic)
    assert not torch.equal(synthetic.labels.logits, before)
    inputs = synthetic.leaves()["inputs"].detach()
    torch.testing.assert_close(synthetic.labels.logits, plain_logits(experts, inputs).mean(dim=0))


def test_labels_are_renewed_every_so_many_steps_of_a_run(experts):
    case, renewed = CASES["separable"](), []
    synthetic = set_of(SoftLabels(noise(6, CLASSES), learned=False))
    run = case.distiller(CrossEntropy("drawn"), synthetic=synthetic)
    run.teacher = teacher_of(experts, every=3)
    for _ in range(7):
        before = synthetic.labels.logits.clone()
        run.step()
        if not torch.equal(before, synthetic.labels.logits):
            renewed.append(run.number)
            # of the items after this step, not before it
            inputs = synthetic.leaves()["inputs"].detach()
            expected = plain_logits(experts, inputs).mean(dim=0)
            torch.testing.assert_close(synthetic.labels.logits, expected)
    assert renewed == [3, 6]


def test_a_run_with_a_teacher_resumes_with_the_same_bits(experts):
    def begun():
        synthetic = set_of(SoftLabels(torch.zeros(6, CLASSES), learned=False))
        run = CASES["separable"]().distiller(CrossEntropy("drawn"), synthetic=synthetic)
        run.teacher = teacher_of(experts, every=2)
        return run

    whole, early, late = begun(), begun(), begun()
    losses = [whole.step() for _ in range(5)]
    for _ in range(3):
        early.step()
    late.load_state_dict(early.state_dict())
    assert [late.step() for _ in range(2)] == losses[3:]
    for name, value in whole.synthetic.state_dict().items():
        assert torch.equal(value, late.synthetic.state_dict()[name]), name


def test_a_packed_item_gets_the_mean_of_its_parts(tmp_path):
    from mmdd.learner import Learner
    from mmdd.modalities.images.convnet import ConvNet
    from mmdd.real import ResidentData
    from mmdd.recording import record
    from mmdd.tasks.classification import Classification

    with torch.random.fork_rng(devices=[]):
        net = ConvNet(1, 8, 8, 2, width=4, depth=1)
    learner = Learner(net, Classification())
    data = ResidentData(noise(16, 1, 8, 8), torch.arange(16) % 2, torch.arange(16) % 2, 2)
    options = dataclasses.replace(TINY_EXPERTS, count=2, epochs=1)
    found = record(tmp_path, learner, data, options, seed=0, fingerprint="", about={})
    packed = Packed.of_items(noise(12, 1, 8, 8), factor=2)
    made = SoftLabels(torch.zeros(3, 2), learned=False)
    synthetic = SyntheticSet(packed, made, torch.tensor([0, 0, 1]), 2)
    Teacher(learner, found).renew(synthetic)
    parts = Teacher(learner, found).logits(synthetic.batch()).mean(dim=0)
    assert parts.shape == (12, 2)
    for item in range(3):
        torch.testing.assert_close(made.logits[item], parts[4 * item : 4 * item + 4].mean(dim=0))


def test_per_stored_item():
    synthetic = set_of(HardLabels(labels(2)), 2)
    assert torch.equal(per_stored_item(torch.eye(2), synthetic), torch.eye(2))
    synthetic.representation.expand = 2
    values = torch.tensor([[1.0], [3.0], [0.0], [10.0]])
    assert per_stored_item(values, synthetic).tolist() == [[2.0], [5.0]]
