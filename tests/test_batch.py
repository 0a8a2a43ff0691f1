"""Batches: choosing, grouping and averaging, for separable and for joint inputs."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdd.batch import Batch
from mmdd.trees import named_leaves, tree_bytes, tree_cat, tree_leaves, tree_map, tree_take

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


def batch(groups=(0, 2, 0, 1, 2), weights=None, joint=False):
    groups = torch.tensor(groups)
    n = len(groups)
    fields = {"values": torch.arange(2.0 * n).reshape(n, 2), "mask": torch.arange(n) % 2 == 0}
    weights = None if weights is None else torch.tensor(weights)
    return Batch(fields, torch.arange(n), groups, weights, joint)


def test_select_slices_every_field_of_separable_items():
    chosen = batch(weights=[1.0, 0.0, 0.5, 1.0, 2.0]).select(torch.tensor([4, 2]))
    assert chosen.inputs["values"].tolist() == [[8.0, 9.0], [4.0, 5.0]]
    assert chosen.inputs["mask"].tolist() == [True, True]
    assert chosen.targets.tolist() == [4, 2]
    assert chosen.groups.tolist() == [2, 0]
    assert chosen.weights.tolist() == [2.0, 0.5]
    assert len(chosen) == 2


def test_select_reweights_joint_items():
    whole = batch(weights=[1.0, 0.0, 0.5, 1.0, 2.0], joint=True)
    chosen = whole.select(torch.tensor([1, 2, 4]))
    assert chosen.inputs is whole.inputs
    assert chosen.targets is whole.targets
    assert chosen.weights.tolist() == [0.0, 0.0, 0.5, 0.0, 2.0]
    assert chosen.joint
    # choosing again only takes away
    assert chosen.select(torch.tensor([0, 2])).weights.tolist() == [0.0, 0.0, 0.5, 0.0, 0.0]
    assert whole.weights.tolist() == [1.0, 0.0, 0.5, 1.0, 2.0]


def test_targets_may_be_missing():
    pairs = dataclasses.replace(batch(), targets=None)
    assert pairs.select(torch.tensor([0, 3])).targets is None
    assert [part.targets for _, part in pairs.by_group()] == [None] * 3


def test_by_group_of_separable_items():
    parts = dict(batch().by_group())
    assert list(parts) == [0, 1, 2]
    assert parts[0].targets.tolist() == [0, 2]
    assert parts[1].targets.tolist() == [3]
    assert parts[2].targets.tolist() == [1, 4]


def test_by_group_of_joint_items_forwards_the_whole_every_time():
    whole = batch(joint=True)
    parts = dict(whole.by_group())
    assert list(parts) == [0, 1, 2]
    assert all(part.inputs is whole.inputs for part in parts.values())
    assert parts[2].weights.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("joint", [False, True])
def test_items_of_weight_zero_and_their_groups_are_left_out(joint):
    parts = dict(batch(weights=[1.0, 1.0, 0.0, 0.0, 3.0], joint=joint).by_group())
    assert list(parts) == [0, 2]
    assert float(parts[0].item_weights.sum()) == 1.0
    assert float(parts[2].item_weights.sum()) == 4.0
    if not joint:
        assert len(parts[0]) == 1


def test_no_item_left_means_no_group():
    assert list(batch(weights=[0.0] * 5).by_group()) == []
    assert not batch(weights=[0.0] * 5).present(3).any()


def test_present_and_weights_of_absent_groups():
    some = batch(weights=[1.0, 1.0, 0.0, 0.0, 3.0])
    assert some.present(5).tolist() == [True, False, True, False, False]
    rows = some.group_weights(5)
    torch.testing.assert_close(rows.sum(dim=1), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]))
    assert rows[2].tolist() == [0.0, 0.25, 0.0, 0.0, 0.75]


def test_group_means_keep_the_dtype_and_carry_a_gradient():
    values = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    means = batch().group_means(values, 4)
    assert means.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda v: batch().group_means(v, 4), values)
    assert means[3].tolist() == [0.0, 0.0, 0.0]


@st.composite
def grouped(draw):
    count = draw(st.integers(1, 5))
    n = draw(st.integers(1, 20))
    groups = draw(st.lists(st.integers(0, count - 1), min_size=n, max_size=n))
    weight = st.sampled_from([0.0, 0.25, 1.0, 3.0])
    weights = draw(st.none() | st.lists(weight, min_size=n, max_size=n))
    number = st.floats(-1e3, 1e3, width=32)
    values = draw(st.lists(st.tuples(number, number), min_size=n, max_size=n))
    return count, groups, weights, values


@SETTINGS
@given(grouped(), st.booleans())
def test_group_means_equal_a_plain_loop(made, joint):
    count, groups, weights, values = made
    made_batch = Batch(
        torch.tensor(values),
        None,
        torch.tensor(groups),
        None if weights is None else torch.tensor(weights),
        joint,
    )
    means = made_batch.group_means(torch.tensor(values, dtype=torch.float64), count)
    weights = weights or [1.0] * len(groups)
    for group in range(count):
        total, sums = 0.0, [0.0, 0.0]
        for member, weight, row in zip(groups, weights, values, strict=True):
            if member == group:
                total += weight
                sums = [s + weight * v for s, v in zip(sums, row, strict=True)]
        expected = [s / total for s in sums] if total else [0.0, 0.0]
        assert means[group].tolist() == pytest.approx(expected, abs=1e-9)
        assert bool(made_batch.present(count)[group]) == (total > 0)


@SETTINGS
@given(grouped())
def test_groups_are_a_partition_of_the_living_items(made):
    _, groups, weights, values = made
    kept = None if weights is None else torch.tensor(weights)
    places = torch.arange(len(groups))
    separable = Batch(torch.tensor(values), places, torch.tensor(groups), kept)
    found = [place for _, part in separable.by_group() for place in part.targets.tolist()]
    alive = [i for i in range(len(groups)) if weights is None or weights[i]]
    assert sorted(found) == alive
    for group, part in separable.by_group():
        assert set(part.groups.tolist()) == {group}
    joint = dataclasses.replace(separable, joint=True)
    total = sum((part.item_weights for _, part in joint.by_group()), torch.zeros(len(groups)))
    assert torch.equal(total, separable.item_weights)


@SETTINGS
@given(grouped())
def test_joint_and_separable_items_have_the_same_means_by_group(made):
    count, groups, weights, values = made
    kept = None if weights is None else torch.tensor(weights)
    features = torch.tensor(values, dtype=torch.float64)
    separable = Batch(features, features, torch.tensor(groups), kept)
    joint = dataclasses.replace(separable, joint=True)
    for (group, part), (same, whole) in zip(separable.by_group(), joint.by_group(), strict=True):
        assert group == same
        sliced = part.group_means(part.inputs, count)
        torch.testing.assert_close(sliced, whole.group_means(features, count))


def test_moving_and_other_inputs_keep_the_rest():
    some = batch(weights=[1.0] * 5, joint=True)
    moved = some.to("cpu")
    assert moved.joint
    assert torch.equal(moved.weights, some.weights)
    other = some.with_inputs(torch.zeros(5, 1))
    assert other.targets is some.targets
    assert other.joint
    assert other.inputs.shape == (5, 1)


# -- trees -----------------------------------------------------------------------------------------


def test_trees_of_every_kind_keep_their_structure():
    tree = {"a": torch.ones(2), "b": (torch.zeros(1), [torch.ones(1)], "word"), "c": batch()}
    doubled = tree_map(lambda leaf: leaf + 1, tree)
    assert doubled["a"].tolist() == [2.0, 2.0]
    assert isinstance(doubled["b"], tuple)
    assert isinstance(doubled["b"][1], list)
    assert doubled["b"][2] == "word"
    assert isinstance(doubled["c"], Batch)
    assert len(tree_leaves(tree)) == 3 + 4
    assert tree_bytes({"a": torch.ones(2), "m": torch.ones(3, dtype=torch.bool)}) == 8 + 3


def test_cut_and_joined_trees_are_the_same():
    whole = batch(weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    parts = [whole.select(torch.arange(start, min(start + 2, 5))) for start in (0, 2, 4)]
    back = tree_cat(parts)
    assert isinstance(back, Batch)
    for a, b in zip(tree_leaves(back), tree_leaves(whole), strict=True):
        assert torch.equal(a, b)


def test_taking_from_a_tree_takes_from_every_leaf():
    tree = {"a": torch.arange(4), "b": [torch.arange(8).reshape(4, 2)], "c": None}
    taken = tree_take(tree, torch.tensor([3, 0]))
    assert taken["a"].tolist() == [3, 0]
    assert taken["b"][0].tolist() == [[6, 7], [0, 1]]
    assert taken["c"] is None
    assert tree_take(tree, slice(1, 3))["a"].tolist() == [1, 2]
    assert tree_take(tree, 2)["b"][0].tolist() == [4, 5]


class Named(NamedTuple):
    image: torch.Tensor
    text: torch.Tensor


def test_named_tuples_are_trees_too():
    tree = Named(torch.ones(2), torch.zeros(3))
    assert tree_cat([tree, tree]).text.shape == (6,)
    assert tree_map(lambda leaf: leaf + 1, tree).image.tolist() == [2.0, 2.0]


@dataclasses.dataclass
class Checked:
    """A structure that looks at itself, as a modality's own inputs may."""

    values: torch.Tensor

    def __post_init__(self):
        assert isinstance(self.values, torch.Tensor)


def test_looking_at_leaves_builds_no_structure():
    assert len(tree_leaves({"graph": Checked(torch.ones(2))})) == 1


def test_names_of_nested_leaves():
    tree = {"image": torch.ones(1), "text": {"ids": torch.ones(1), "note": "word"}}
    assert list(named_leaves(tree, "inputs")) == ["inputs.image", "inputs.text.ids"]
    assert list(named_leaves(torch.ones(1), "inputs")) == ["inputs"]
