"""Choosing real items against brute force, and sharing a budget out among classes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from fakes import CASES, noise, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdd.budget import share_out
from mmdd.errors import UserError
from mmdd.files import load_tree, save_tree
from mmdd.objectives.distribution import DistributionMatching
from mmdd.real import ResidentData
from mmdd.selection import (
    RealSelector,
    group_features,
    herding,
    k_center,
    k_means,
    random,
    select,
)

CHOICES = {"random": random, "herding": herding, "k-center": k_center, "k-means": k_means}
SETTINGS = settings(max_examples=50, deadline=None, derandomize=True)


def features(count=25, size=4, seed=0):
    return noise(count, size, seed=seed).double()


# -- brute force -----------------------------------------------------------------------------------


def plain_herding(rows, count):
    """Try every free item: which one brings the mean of the chosen closest to the mean of all?"""
    mean = rows.mean(dim=0)
    chosen = []
    for _ in range(count):
        errors = {
            i: float((rows[[*chosen, i]].mean(dim=0) - mean).norm())
            for i in range(len(rows))
            if i not in chosen
        }
        chosen.append(min(errors, key=errors.__getitem__))
    return chosen


def plain_k_center(rows, count):
    """Always take the item that is farthest from all the chosen ones."""
    mean = rows.mean(dim=0)
    chosen = [min(range(len(rows)), key=lambda i: float((rows[i] - mean).norm()))]
    while len(chosen) < count:
        nearest = {
            i: min(float((rows[i] - rows[c]).norm()) for c in chosen)
            for i in range(len(rows))
            if i not in chosen
        }
        chosen.append(max(nearest, key=nearest.__getitem__))
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 7, 25])
def test_herding_equals_brute_force(seed, count):
    rows = features(seed=seed)
    assert herding(rows, count, seeded(0)).tolist() == plain_herding(rows, count)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 7, 25])
def test_k_center_equals_brute_force(seed, count):
    rows = features(seed=seed)
    assert k_center(rows, count, seeded(0)).tolist() == plain_k_center(rows, count)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("count", [1, 10, 25])
def test_no_item_is_chosen_twice(name, count):
    chosen = CHOICES[name](features(), count, seeded(1)).tolist()
    assert len(chosen) == count == len(set(chosen))
    assert set(chosen) <= set(range(25))


@pytest.mark.parametrize("name", CHOICES)
def test_equal_items_are_still_different_items(name):
    chosen = CHOICES[name](torch.ones(6, 3), 6, seeded(1)).tolist()
    assert sorted(chosen) == list(range(6))


def test_random_choice_follows_the_seed_and_reaches_every_item():
    rows = features()
    assert torch.equal(random(rows, 9, seeded(3)), random(rows, 9, seeded(3)))
    stream = seeded(0)
    reached = {i for _ in range(60) for i in random(rows, 3, stream).tolist()}
    assert reached == set(range(25))


def test_herding_comes_closer_to_the_mean_than_chance():
    rows = features(80, 8)

    def error(chosen):
        return float((rows[chosen].mean(dim=0) - rows.mean(dim=0)).norm())

    stream = seeded(0)
    for count in (2, 5, 20):
        by_chance = [error(random(rows, count, stream)) for _ in range(20)]
        assert error(herding(rows, count, stream)) < sum(by_chance) / len(by_chance)


def test_k_center_covers_better_than_chance():
    rows = features(80, 3)

    def radius(chosen):
        return float(torch.cdist(rows, rows[chosen]).min(dim=1).values.max())

    stream = seeded(0)
    by_chance = [radius(random(rows, 8, stream)) for _ in range(20)]
    assert radius(k_center(rows, 8, stream)) < sum(by_chance) / len(by_chance)


# -- k-means ---------------------------------------------------------------------------------------


def clusters(*sizes, seed=0):
    """Tight clusters far apart, one after another."""
    centres = 50 * torch.eye(len(sizes), 6)
    parts = [centre.expand(size, 6) for centre, size in zip(centres, sizes, strict=True)]
    return torch.cat(parts) + 0.1 * noise(sum(sizes), 6, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_k_means_takes_the_item_nearest_to_every_centre(seed):
    sizes = (20, 5, 9)
    rows = clusters(*sizes)
    chosen = k_means(rows, 3, seeded(seed)).tolist()
    nearest, first = set(), 0
    for size in sizes:
        own = rows[first : first + size]
        nearest.add(first + int((own - own.mean(dim=0)).norm(dim=1).argmin()))
        first += size
    assert set(chosen) == nearest


def test_k_means_follows_its_generator_alone():
    rows = features(60, 3).float()
    first = k_means(rows, 7, seeded(3))
    torch.rand(5)
    assert torch.equal(first, k_means(rows, 7, seeded(3)))
    draws = {tuple(k_means(rows, 7, seeded(seed)).tolist()) for seed in range(6)}
    assert len(draws) > 1


@pytest.mark.parametrize("count", [6, 9])
def test_k_means_of_no_more_items_than_asked_for_takes_all(count):
    assert sorted(k_means(features(6), count, seeded(0)).tolist()) == list(range(6))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_k_means_takes_repeated_items_once_each():
    rows = noise(3, 4).repeat(4, 1)
    chosen = k_means(rows, 7, seeded(0)).tolist()
    assert len(set(chosen)) == 7
    assert {place % 3 for place in chosen} == {0, 1, 2}


def test_k_means_covers_better_than_chance():
    rows = features(80, 3)

    def error(chosen):
        return float(torch.cdist(rows, rows[chosen]).min(dim=1).values.square().mean())

    stream = seeded(0)
    by_chance = [error(random(rows, 8, stream)) for _ in range(20)]
    assert error(k_means(rows, 8, stream)) < 0.8 * sum(by_chance) / len(by_chance)


# -- of every group --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_every_group_gets_its_number(name):
    case = CASES["separable"]()
    learner = case.learner()
    counts = torch.tensor([3, 0, 5])
    chosen = select(
        CHOICES[name],
        case.train,
        counts,
        seeded(0),
        learner=learner,
        params=learner.init(seeded(1)),
    )
    assert case.train.groups[chosen].tolist() == [0] * 3 + [2] * 5
    assert len(set(chosen.tolist())) == 8


def test_groups_are_chosen_in_the_nets_features():
    case = CASES["separable"]()
    learner = case.learner(precision="float64")
    params = learner.init(seeded(1))
    chosen = select(
        herding, case.train, torch.tensor([4, 4, 4]), seeded(0), learner=learner, params=params
    )
    for group, part in enumerate(chosen.split(4)):
        members = case.train.members(group)
        rows = learner.features(params, case.train.select(members))
        assert part.tolist() == members[plain_herding(rows, 4)].tolist()


def test_features_of_a_group_do_not_depend_on_how_they_are_cut():
    for name in ("separable", "joint"):
        case = CASES[name]()
        learner = case.learner()
        params, members = learner.init(seeded(1)), case.train.members(1)
        whole = group_features(learner, params, case.train, members)
        cut = group_features(learner, params, case.train, members, size=2)
        torch.testing.assert_close(cut, whole)
        assert whole.shape == (len(members), 12)
        assert not whole.requires_grad


def test_nodes_are_chosen_by_their_own_features():
    case = CASES["joint"]()
    learner = case.learner()
    params = learner.init(seeded(1))
    # the training part of another order, so that its places are not the rows of the graph
    data = case.train.subset(torch.arange(len(case.train)).flip(0))
    everything = learner.features(params, data.select(torch.arange(len(data))))
    members = data.members(2)
    found = group_features(learner, params, data, members)
    torch.testing.assert_close(found, everything[data.index[members]])


def test_large_groups_are_sampled_first():
    data = ResidentData(noise(40, 2), torch.zeros(40).long(), torch.zeros(40).long(), 1)
    seen = []

    def watched(rows, count, generator):
        seen.append(len(rows))
        return random(rows, count, generator)

    chosen = select(watched, data, torch.tensor([4]), seeded(0), pool=10)
    assert seen == [10]
    assert len(set(chosen.tolist())) == 4


@pytest.mark.parametrize("name", CHOICES)
def test_a_group_larger_than_the_pool_still_gives_its_number(name):
    data = ResidentData(noise(40, 2), torch.zeros(40).long(), torch.zeros(40).long(), 1)
    chosen = select(CHOICES[name], data, torch.tensor([15]), seeded(0), pool=10).tolist()
    assert len(set(chosen)) == 15


# -- at a step -------------------------------------------------------------------------------------


def steps_of(name="separable", per_group=4):
    """A step at a net of its own for every number."""
    case = CASES[name]()
    learner, synthetic = case.learner(), case.start()

    def step(number, **more):
        made = case.step(learner, synthetic, seed=number, per_group=per_group)
        return dataclasses.replace(made, number=number, **more)

    return step


def test_real_items_are_kept_and_then_chosen_anew():
    step, selector = steps_of(), RealSelector(k_means, every=3)
    chosen = [selector(step(number)).tolist() for number in range(8)]
    assert chosen[0] == chosen[1] == chosen[2] != chosen[3]
    assert chosen[3] == chosen[4] == chosen[5] != chosen[6]
    assert chosen[6] == chosen[7]


def test_real_items_are_chosen_in_features_of_the_present_net():
    step, selector = steps_of(), RealSelector(herding, every=2)
    selector(step(0))
    at = step(2)
    found = selector(at)
    expected = select(
        herding,
        at.real,
        torch.full((3,), 4),
        seeded(0),
        learner=at.learner,
        params=at.drawn.params,
    )
    assert torch.equal(found, expected)
    assert at.real.groups[found].tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("name", ["separable", "joint"])
@pytest.mark.parametrize("rule", ["random", "k-means"])
def test_passes_over_groups_choose_the_same_items(name, rule):
    step = steps_of(name)
    whole, cut = (RealSelector(CHOICES[rule], every=2, pool=8) for _ in range(2))
    for number in (0, 1, 2):
        at = step(number)
        parts = [cut(at.of_groups(torch.tensor(groups))) for groups in ([1], [0, 2])]
        found = whole(at)
        assert torch.equal(torch.cat([parts[1][:4], parts[0], parts[1][4:]]), found)


def test_small_groups_give_what_they_have():
    groups = torch.tensor([0] * 3 + [1] * 20)
    data = ResidentData(noise(23, 6), groups, groups, 3)
    step = dataclasses.replace(steps_of(per_group=5)(0), real=data)
    found = RealSelector(k_means)(step)
    assert data.groups[found].tolist() == [0] * 3 + [1] * 5
    assert len(set(found.tolist())) == 8


@pytest.mark.parametrize("age", [0, 1, 3, 5])
def test_a_selectors_state_comes_back_from_the_disk(age, tmp_path):
    step, selector = steps_of(), RealSelector(k_means, every=3)
    for number in range(age):
        selector(step(number))
    save_tree(tmp_path / "state", selector.state_dict())
    revived = RealSelector(k_means, every=3)
    revived.load_state_dict(load_tree(tmp_path / "state"))
    for number in range(age, age + 4):
        # chosen at the net of an earlier step, which the present one could not give back
        assert torch.equal(revived(step(number)), selector(step(number)))


def test_a_run_with_a_selector_resumes_with_the_same_bits():
    def begun():
        run = CASES["separable"]().distiller(DistributionMatching(), per_group=3)
        run.selector = RealSelector(k_means, every=2)
        return run

    whole, early, late = begun(), begun(), begun()
    losses = [whole.step() for _ in range(5)]
    for _ in range(3):
        early.step()
    late.load_state_dict(early.state_dict())
    assert [late.step() for _ in range(2)] == losses[3:]


# -- sharing a budget out --------------------------------------------------------------------------


@st.composite
def budgets(draw):
    sizes = draw(st.lists(st.integers(0, 300), min_size=1, max_size=12).filter(any))
    present = sum(size > 0 for size in sizes)
    items = draw(st.integers(present, max(present, sum(sizes) - 1)))
    return items, sizes


@SETTINGS
@given(budgets())
def test_shares_add_up_and_leave_no_class_out(made):
    items, sizes = made
    counts = share_out(items, torch.tensor(sizes)).tolist()
    assert sum(counts) == items
    assert all((count >= 1) == (size > 0) for count, size in zip(counts, sizes, strict=True))


@SETTINGS
@given(budgets())
def test_no_class_gets_more_than_it_has_nor_less_than_a_smaller_one(made):
    items, sizes = made
    counts = share_out(items, torch.tensor(sizes)).tolist()
    assert all(count <= size for count, size in zip(counts, sizes, strict=True))
    by_size = sorted(zip(sizes, counts, strict=True))
    assert all(a[1] <= b[1] + 1 for a, b in itertools.pairwise(by_size))


@SETTINGS
@given(st.lists(st.integers(50, 900), min_size=1, max_size=12), st.integers(12, 50))
def test_shares_follow_the_sizes_where_no_class_runs_out(sizes, items):
    counts = share_out(items, torch.tensor(sizes)).tolist()
    for count, size in zip(counts, sizes, strict=True):
        assert abs(count - 1 - (items - len(sizes)) * size / sum(sizes)) < 1


def test_equal_classes_share_alike():
    assert share_out(30, torch.tensor([100] * 10)).tolist() == [3] * 10


def test_fewer_items_than_classes_are_refused():
    with pytest.raises(UserError, match="fewer synthetic items than classes; got 2"):
        share_out(2, torch.tensor([5, 5, 0, 5]))


@pytest.mark.parametrize(
    ("items", "sizes"), [(30, [1] * 10 + [90]), (600, [1, 1000]), (8, [1, 9])], ids=str
)
def test_no_class_is_asked_for_more_than_it_has(items, sizes):
    counts = share_out(items, torch.tensor(sizes)).tolist()
    assert sum(counts) == items
    assert all(count <= size for count, size in zip(counts, sizes, strict=True))
