"""What a step is made of: sums of objectives, known gradients, random numbers of its own."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from fakes import ALL, CASES, Shift, labels, seeded

from mmdd.objectives.cross_entropy import CrossEntropy
from mmdd.objectives.distribution import DistributionMatching
from mmdd.rng import generator
from mmdd.sources import Drawn
from mmdd.step import Objective, WeightedSum, with_gradient


def step_of(name="separable", **more):
    case = CASES[name]()
    return case.step(case.learner(), case.start(), **more)


class Weight(Objective):
    """A term whose value is known: the mean of one weight of the net."""

    def __init__(self, by_group=False, stacks=False):
        self.by_group, self.stacks = by_group, stacks
        self.calls = []

    def __call__(self, step):
        self.calls.append(step.drawn)
        return step.drawn.params["head.bias"].mean()


# -- sums of objectives ----------------------------------------------------------------------------


def test_a_sum_is_weighted():
    step = step_of(related=True)
    matching, calibration = DistributionMatching(), CrossEntropy("trained")
    found = WeightedSum([(2.0, matching), (0.25, calibration)])(step)
    torch.testing.assert_close(found, 2.0 * matching(step) + 0.25 * calibration(step))
    leaf = step.synthetic.leaves()["inputs"]
    gradients = [
        torch.autograd.grad(value, leaf)[0] for value in (found, matching(step), calibration(step))
    ]
    torch.testing.assert_close(gradients[0], 2.0 * gradients[1] + 0.25 * gradients[2])


def test_a_sum_of_one_is_that_one():
    step = step_of()
    whole = WeightedSum([(1.0, DistributionMatching())])(step)
    assert torch.equal(whole, DistributionMatching()(step))
    half = WeightedSum([(0.5, DistributionMatching())])(step)
    torch.testing.assert_close(half, 0.5 * DistributionMatching()(step))


@pytest.mark.parametrize("flags", [*itertools.product([True, False], repeat=2)])
def test_a_sum_is_by_group_where_all_its_terms_are(flags):
    terms = [(1.0, Weight(by_group=flag)) for flag in flags]
    assert WeightedSum(terms).by_group == all(flags)


def test_the_mean_over_several_nets():
    step = step_of()
    stacked = step.learner.init(seeded(3), 4)
    several = step.of_net(Drawn(stacked, stacked=4))
    objective = DistributionMatching()
    single = [objective(step.of_net(net)) for net in several.drawn.each()]
    assert len({float(value.detach()) for value in single}) == 4
    torch.testing.assert_close(WeightedSum([(3.0, objective)])(several), 3.0 * sum(single) / 4)
    # one that takes them all at once is asked once
    at_once, one_by_one = Weight(stacks=True), Weight()
    found = WeightedSum([(1.0, at_once), (2.0, one_by_one)])(several)
    torch.testing.assert_close(found, 3.0 * stacked["head.bias"].mean())
    assert [drawn.stacked for drawn in at_once.calls] == [4]
    assert [drawn.stacked for drawn in one_by_one.calls] == [None] * 4


def test_several_nets_in_a_run_resume_with_the_same_bits():
    def begun():
        objective = WeightedSum([(1.0, DistributionMatching())])
        return CASES["separable"]().distiller(objective, nets=3, every=2)

    whole, early, late = begun(), begun(), begun()
    losses = [whole.step() for _ in range(4)]
    early.step()
    late.load_state_dict(early.state_dict())
    assert [late.step() for _ in range(3)] == losses[1:]
    ends = [run.synthetic.leaves()["inputs"].detach() for run in (whole, late)]
    assert torch.equal(*ends)


def test_a_sum_is_cut_into_passes_only_where_every_term_allows_it():
    case = CASES["separable"]()
    for objective, passes in ((CrossEntropy("drawn"), 3), (Weight(), 1)):
        seen = []

        class Watch(Weight):
            def __call__(self, step, seen=seen):
                seen.append(step.groups)
                return super().__call__(step)

        terms = [(1.0, objective), (1.0, Watch(by_group=True))]
        case.distiller(WeightedSum(terms), per_group=4, pass_items=4).step()
        assert len(seen) == passes


# -- known gradients -------------------------------------------------------------------------------


def test_a_known_gradient_takes_the_place_of_the_graph():
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def decode(leaf):
        return leaf.sin() * 3, leaf.exp()

    def value_of(a, b):
        return (a * b).sum() + a.square().sum()

    exact = torch.autograd.grad(value_of(*decode(x)), x)[0]
    a, b = decode(x)
    with torch.no_grad():
        value = value_of(a, b)
        known = [(a, b + 2 * a), (b, a.clone())]
    found = with_gradient(value, known)
    assert found.item() == value.item()
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], exact)


def test_a_known_gradient_is_scaled_by_what_follows():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    found = with_gradient(torch.tensor(7.0), [(x, torch.tensor([3.0, -1.0]))])
    (0.5 * found + 1.0).backward()
    assert found.item() == 7.0
    assert x.grad.tolist() == [1.5, -0.5]


def test_the_value_is_exact_whatever_the_gradients():
    x = torch.tensor([1e6, -3e5], requires_grad=True)
    value = torch.tensor(0.1)
    assert float(with_gradient(value, [(x, torch.tensor([1e3, 7.0]))]).detach()) == float(value)


def test_no_gradient_means_nothing_to_learn():
    case = CASES["separable"]()
    found = with_gradient(torch.tensor(2.0, requires_grad=True), [])
    assert not found.requires_grad
    run = case.distiller(lambda step: found)
    run.objective.by_group = False
    before = run.synthetic.leaves()["inputs"].detach().clone()
    assert run.step() == 2.0
    assert torch.equal(run.synthetic.leaves()["inputs"], before)
    assert run.number == 1


# -- a step ----------------------------------------------------------------------------------------


def test_random_numbers_belong_to_purpose_step_and_seed():
    step = dataclasses.replace(step_of(), number=3, seed=5)

    def draw(of, purpose="frequencies"):
        return torch.rand(4, generator=of.random(purpose)).tolist()

    assert draw(step) == draw(step) == draw(step.of_groups(torch.tensor([1])))
    assert draw(step) == torch.rand(4, generator=generator(5, "frequencies/3")).tolist()
    others = [
        draw(dataclasses.replace(step, number=4)),
        draw(dataclasses.replace(step, seed=6)),
        draw(step, "order"),
    ]
    assert draw(step) not in others


def test_a_run_hands_its_seed_and_number_on():
    seen = []

    def objective(step):
        seen.append((step.seed, step.number, torch.rand((), generator=step.random("x")).item()))
        return step.synthetic_batch().inputs.sum()

    objective.by_group = False
    for seed in (4, 4, 9):
        run = CASES["separable"]().distiller(objective, seed=seed)
        run.step()
        run.step()
    assert [place[:2] for place in seen] == [(4, 0), (4, 1)] * 2 + [(9, 0), (9, 1)]
    assert seen[:2] == seen[2:4]
    assert len({place[2] for place in seen}) == 4


def test_one_draw_moves_real_and_synthetic_items_of_a_group_alike():
    augmentation = Shift()
    draw = torch.tensor([1.0, -2.0, 0.5])
    step = step_of(augmentation=augmentation, draw=draw)
    synthetic = step.synthetic_batch()
    moved = synthetic.inputs - step.synthetic.batch().inputs
    torch.testing.assert_close(moved, (0.3 * draw[synthetic.groups])[:, None].expand(6, 6))
    plain = dataclasses.replace(step, augmentation=None, generator=seeded(1))
    real = dataclasses.replace(step, generator=seeded(1)).real_batch()
    moved = real.inputs - plain.real_batch().inputs
    torch.testing.assert_close(moved, (0.3 * draw[real.groups])[:, None].expand(36, 6))


def test_a_step_of_some_groups_reads_those_alone():
    step = step_of().of_groups(torch.tensor([2, 0]))
    assert set(step.real_batch().groups.tolist()) == {0, 2}
    assert set(step.synthetic_batch().groups.tolist()) == {0, 2}
    assert len(step.synthetic_batch()) == 4


def test_a_selector_decides_about_the_real_items():
    asked = []

    def selector(step):
        asked.append(step)
        return torch.tensor([7, 3])

    step = step_of(selector=selector)
    batch = step.real_batch()
    assert torch.equal(batch.inputs, step.real.select(torch.tensor([7, 3])).inputs)
    assert asked == [step]
    assert len(step_of(per_group=ALL).real_batch()) == len(labels(36))


# -- some of the synthetic items -------------------------------------------------------------------


def test_a_step_sees_at_most_so_many_items_of_a_group_and_always_the_same():
    step = step_of(synthetic_per_group=1)
    groups = step.synthetic.groups
    batch = step.synthetic_batch()
    assert sorted(batch.groups.tolist()) == sorted(set(groups.tolist()))
    assert torch.equal(batch.inputs, step.synthetic_batch().inputs)
    whole = step_of(synthetic_per_group=len(groups)).synthetic_batch()
    assert torch.equal(whole.inputs, step_of().synthetic_batch().inputs)


def test_all_items_have_their_turn_and_a_pass_over_some_groups_sees_the_same_ones():
    step = step_of(synthetic_per_group=1)
    synthetic = step.synthetic
    seen = set()
    for number in range(40):
        one = dataclasses.replace(step, number=number)
        index = synthetic.sample(1, one.random("synthetic"))
        parts = [
            synthetic.sample(1, one.random("synthetic"), torch.tensor([group]))
            for group in torch.unique(synthetic.groups).tolist()
        ]
        assert torch.equal(index, torch.cat(parts).sort().values)
        seen |= set(index.tolist())
    assert seen == set(range(len(synthetic)))


def test_items_that_a_step_does_not_see_have_no_gradient():
    step = step_of(synthetic_per_group=1)
    DistributionMatching()(step).backward()
    index = step.synthetic.sample(1, step.random("synthetic"))
    moved = step.synthetic.leaves()["inputs"].grad.flatten(1).abs().sum(dim=1) > 0
    assert torch.equal(torch.nonzero(moved).flatten(), index)
