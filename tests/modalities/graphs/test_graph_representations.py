"""Learned adjacencies against plainly written formulas, and what every representation keeps to."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmdd.errors import UserError
from mmdd.labels import HardLabels
from mmdd.modalities.graphs.adjacency import FreeAdjacency, LowRank
from mmdd.modalities.graphs.pairwise import Pairwise
from mmdd.modalities.graphs.representations import of_pairs
from mmdd.synthetic import SyntheticSet
from mmdd.trees import tree_leaves, tree_map

NODES, FEATURES = 6, 5
KINDS = {
    "pairwise": (Pairwise, {"width": 7}, "node"),
    "free": (FreeAdjacency, {}, "node"),
    "free-graphs": (FreeAdjacency, {}, "graph"),
    "low-rank": (LowRank, {"rank": 3}, "node"),
    "tied": (LowRank, {"rank": 3, "tied": True}, "node"),
    "low-rank-graphs": (LowRank, {"rank": 3}, "graph"),
}
LEAVES = {
    "pairwise": {
        f"inputs.adjacency.{part}"
        for layer in ("first", "second")
        for part in (layer, f"{layer}_scale", f"{layer}_shift")
    }
    | {"inputs.adjacency.last", "inputs.adjacency.last_bias"},
    "free": {"inputs.adjacency"},
    "free-graphs": {"inputs.adjacency"},
    "low-rank": {f"inputs.adjacency.{part}" for part in ("left", "right", "bias")},
    "tied": {f"inputs.adjacency.{part}" for part in ("left", "bias")},
}
LEAVES["low-rank-graphs"] = LEAVES["low-rank"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def edges(*shape, chance=0.4, seed=0):
    """Symmetric 0/1 adjacencies."""
    upper = (torch.rand(shape, generator=seeded(seed)) < chance).float().triu(1)
    return upper + upper.mT


def graphs(count=4, nodes=NODES, seed=0):
    sizes = torch.tensor([nodes, nodes - 2, nodes - 1, 2])[:count]
    mask = torch.arange(nodes)[None] < sizes[:, None]
    both = mask[:, :, None] & mask[:, None, :]
    return {
        "x": noise(count, nodes, FEATURES, seed=seed) * mask[..., None],
        "adjacency": edges(count, nodes, nodes, seed=seed) * both,
        "mask": mask,
    }


def items(level, seed=0):
    return {"x": noise(NODES, FEATURES, seed=seed)} if level == "node" else graphs(seed=seed)


def blank(level):
    return tree_map(lambda leaf: torch.zeros_like(leaf[:1]), items(level))


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


def start(name, seed=0, dtype=torch.float32, **more):
    kind, options, level = KINDS[name]
    values = tree_map(lambda v: v.to(dtype) if v.is_floating_point() else v, items(level, seed))
    return kind.of_items(values, generator=seeded(seed), **options, **more)


def again(name, tensors):
    kind, options, level = KINDS[name]
    return kind.of_state(tensors, example=blank(level), **options)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# -- what all keep to ------------------------------------------------------------------------------


def test_decoded_adjacencies_are_symmetric_weights_without_loops(name):
    made = start(name)
    made.resample(seeded(3), 50)
    for _ in range(2):
        decoded = made.decode(None)
        adjacency = decoded["adjacency"]
        joint = KINDS[name][2] == "node"
        assert made.joint is joint
        assert adjacency.shape == ((NODES, NODES) if joint else (4, NODES, NODES))
        assert torch.equal(adjacency, adjacency.mT)
        assert adjacency.min() >= 0
        assert adjacency.max() <= 1
        assert not adjacency.diagonal(dim1=-2, dim2=-1).any()
        assert ("mask" in decoded) is not joint
        made.resample(None)


def test_leaves_have_public_names(name):
    made = start(name)
    assert set(made.leaves()) == {"inputs.x"} | LEAVES[name]
    assert torch.equal(made.leaves()["inputs.x"], items(KINDS[name][2])["x"])


def test_the_start_follows_its_generator_and_no_other(name):
    state = torch.get_rng_state()
    first, second, other = start(name), start(name), start(name, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first.state_dict(), second.state_dict())
    assert not torch.equal(
        first.decode(None)["adjacency"], other.decode(None)["adjacency"]
    ) or name in ("free",)
    kind, options, level = KINDS[name]
    unnamed = [kind.of_items(items(level), **options).decode(None) for _ in range(2)]
    assert same(*unnamed)


def test_gradients_of_the_decode_are_right_to_the_second_order(name):
    made = start(name, dtype=torch.float64)
    for leaf in made.parameters():
        leaf.data.add_(0.3 * noise(*leaf.shape, seed=5).double())
    made.resample(seeded(2), 10)
    names = [key for key, _ in made.named_parameters()]
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in made.parameters())
    shape = made.decode(None)["adjacency"].shape
    weight, moved = noise(*shape).double(), noise(*getattr(made, "inputs/x").shape, seed=1)

    def loss(*values):
        given = {f"of.{key}": value for key, value in zip(names, values, strict=True)}
        decoded = torch.func.functional_call(Decode(made), given)
        return (weight * decoded["adjacency"].sin()).sum() + (moved * decoded["x"].sin()).sum()

    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)
    plain = torch.autograd.grad(loss(*leaves), leaves)
    functional = torch.func.grad(loss, argnums=tuple(range(len(leaves))))(*leaves)
    for one, other in zip(plain, functional, strict=True):
        torch.testing.assert_close(one, other)


class Decode(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self):
        return self.of.decode(None)


def test_a_state_comes_back_with_the_same_bits(name):
    made = start(name)
    for leaf in made.leaves().values():
        leaf.data.add_(noise(*leaf.shape, seed=3))
    state = {key: value.clone() for key, value in made.state_dict().items()}
    rebuilt = again(name, state)
    assert same(rebuilt.decode(None), made.decode(None))
    assert list(rebuilt.leaves()) == list(made.leaves())
    # another start, then the state: what a resumed run does
    resumed = start(name, seed=9)
    resumed.load_state_dict(made.state_dict())
    for step in (0, 7):
        for one in (made, resumed):
            one.resample(seeded(100 + step), step)
        assert same(resumed.decode(None), made.decode(None))
        assert same(copy.deepcopy(resumed).decode(None), made.decode(None))
    for value in state.values():
        value.zero_()
    made.resample(None)
    assert same(rebuilt.decode(None), made.decode(None))


def test_a_settled_set_decodes_alike_and_only_its_features_can_be_learned(name):
    made = start(name)
    for leaf in made.leaves().values():
        leaf.data.add_(noise(*leaf.shape, seed=3))
    before = made.decode(None)
    rebuilt = again(name, made.settle())
    assert same(rebuilt.decode(None), before)
    assert same(again(name, rebuilt.settle()).decode(None), before)
    if name in ("pairwise", "free", "free-graphs"):
        assert list(rebuilt.leaves()) == ["inputs.x"]
    made.settle()["inputs/x"].zero_()
    assert same(made.decode(None), before)


def test_bytes_are_those_of_the_stored_tensors(name):
    made = start(name)
    joint, pairs = made.joint, NODES * (NODES - 1) // 2
    stored = 4 if not joint else 1
    features = stored * NODES * FEATURES * 4 + (0 if joint else stored * NODES)
    h = 7
    learned = {
        "pairwise": 4 * (2 * FEATURES * h + h * h + h + 4 * h + 1),
        "free": 4 * pairs,
        "free-graphs": 4 * 4 * pairs,
        "low-rank": 4 * (2 * NODES * 3 + 1),
        "tied": 4 * (NODES * 3 + 1),
        "low-rank-graphs": 4 * 4 * (2 * NODES * 3 + 1),
    }
    settled = {"pairwise": 4 * NODES * NODES, "free": pairs, "free-graphs": 4 * pairs}
    made.resample(seeded(), 0)  # samples are not stored
    for one, edge in ((made, learned[name]), (again(name, made.settle()), settled.get(name))):
        labels = torch.arange(NODES if joint else 4)
        whole = SyntheticSet(one, HardLabels(labels), labels, len(labels), joint=joint)
        assert whole.nbytes == features + (learned[name] if edge is None else edge) + 8 * len(
            labels
        )


def test_a_joint_set_is_reweighted_and_graphs_are_selected(name):
    made = start(name)
    labels = torch.arange(NODES if made.joint else 4) % 2
    whole = SyntheticSet(made, HardLabels(labels), labels, 2, joint=made.joint)
    batch = whole.batch(groups=torch.tensor([1]))
    if made.joint:
        assert batch.weights.tolist() == labels.tolist()
        assert same(batch.inputs, made.decode(None))
    else:
        assert same(batch.inputs, tree_map(lambda leaf: leaf[[1, 3]], made.decode(None)))


def test_features_stay_inside_their_bounds(name):
    kind, options, level = KINDS[name]
    values = items(level)
    low, high = {"x": torch.full((FEATURES,), -0.2)}, {"x": torch.full((FEATURES,), 0.3)}
    made = kind.of_items(values, bounds=(low, high), **options)
    rest = {k: leaf.clone() for k, leaf in made.leaves().items() if k != "inputs.x"}
    made.constrain_()
    assert torch.equal(made.leaves()["inputs.x"], values["x"].clamp(-0.2, 0.3))
    assert same(rest, {k: leaf for k, leaf in made.leaves().items() if k != "inputs.x"})


@pytest.mark.parametrize("wrong", ["surplus", "missing", "features", "shape"])
def test_a_state_of_another_set_is_refused(name, wrong):
    state = start(name).state_dict()
    last = list(state)[-1]
    match = "do not belong"
    if wrong == "surplus":
        state["surplus"] = torch.zeros(1)
    elif wrong == "missing":
        state.pop(last)
    else:
        match = "does not fit the options"
        key = "inputs/x" if wrong == "features" else last
        state[key] = torch.cat([state[key], state[key]], dim=-1) if state[key].ndim else noise(2)
    with pytest.raises(UserError, match=match):
        again(name, state)


def test_items_that_are_no_nodes_or_graphs_are_refused(name):
    kind, options, level = KINDS[name]
    for example in (
        torch.zeros(1, 3, 8, 8),
        {"image": torch.zeros(1, 5)},
        {"x": torch.zeros(1, NODES, FEATURES)},
        {"x": torch.zeros(1, 5), "more": torch.zeros(1, 2)},
    ):
        with pytest.raises(UserError, match="nodes of a graph, or for whole graphs"):
            kind.needs(example, **options)
    assert kind.needs(blank(level), **options) == 1


@pytest.mark.parametrize(
    ("kind", "options", "level", "match"),
    [
        (Pairwise, {}, "graph", "joins the nodes of one graph; got 'whole graphs'"),
        (Pairwise, {"width": 0}, "node", "width .*got 0"),
        (FreeAdjacency, {"nodes": 5}, "node", "nodes .*got 5"),
        (FreeAdjacency, {"nodes": 0}, "graph", "nodes .*got 0"),
        (FreeAdjacency, {"anneal": 0}, "node", "anneal .*got 0"),
        (LowRank, {"rank": 0}, "node", "rank .*got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(kind, options, level, match):
    with pytest.raises(UserError, match=match):
        kind.needs(blank(level), **options)


def test_a_single_node_has_no_edge():
    for kind, options in ((Pairwise, {"width": 3}), (FreeAdjacency, {}), (LowRank, {"rank": 2})):
        made = kind.of_items({"x": noise(1, FEATURES)}, **options)
        assert made.decode(None)["adjacency"].tolist() == [[0.0]]


# -- pairwise --------------------------------------------------------------------------------------


def plain_net(made, dtype):
    """The net as GCond writes it, biases and all, with the weights of a representation."""
    h, d = made.width, made.features
    net = nn.Sequential(
        nn.Linear(2 * d, h), nn.BatchNorm1d(h), nn.ReLU(), nn.Linear(h, h), nn.BatchNorm1d(h),
        nn.ReLU(), nn.Linear(h, 1),
    ).to(dtype)  # fmt: skip
    own = {k.removeprefix("inputs/adjacency/"): v for k, v in made.named_parameters()}
    with torch.no_grad():
        for place, part in ((0, "first"), (3, "second"), (6, "last")):
            net[place].weight.copy_(own[part])
            net[place].bias.copy_(torch.linspace(-1, 1, len(net[place].bias)))  # no effect before
        for place, part in ((1, "first"), (4, "second")):
            net[place].weight.copy_(own[f"{part}_scale"])
            net[place].bias.copy_(own[f"{part}_shift"])
        net[6].bias.copy_(own["last_bias"])
    return net


@pytest.mark.parametrize("nodes", [2, 3, 17])
def test_the_factorised_net_is_the_plain_one_over_all_pairs(nodes):
    x = noise(nodes, FEATURES).double()
    made = Pairwise.of_items({"x": x}, generator=seeded(1), width=9)
    for leaf in made.parameters():
        leaf.data.add_(0.5 * noise(*leaf.shape, seed=4).double())
    x = made.leaves()["inputs.x"]
    net = plain_net(made, torch.float64).train()
    rows = [torch.cat([x[i], x[j]]) for i in range(nodes) for j in range(nodes)]
    score = net(torch.stack(rows)).view(nodes, nodes)
    expected = torch.sigmoid((score + score.T) / 2) * (1 - torch.eye(nodes))
    found = made.decode(None)["adjacency"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    weight = noise(nodes, nodes, seed=7).double()
    (plain,) = torch.autograd.grad((weight * expected).sum(), x)
    (own,) = torch.autograd.grad((weight * found).sum(), x)
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(own, plain, rtol=1e-7, atol=1e-9)


def test_the_net_starts_as_pytorch_starts_its_layers():
    made = Pairwise.of_items({"x": noise(3, 50)}, generator=seeded(), width=128)
    for part, inputs in (("first", 100), ("second", 128), ("last", 128)):
        leaf = made.leaves()[f"inputs.adjacency.{part}"].detach()
        bound = 1 / math.sqrt(inputs)
        assert leaf.abs().max() <= bound
        if leaf.numel() > 1000:
            assert leaf.abs().max() > 0.99 * bound
            assert leaf.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert made.leaves()["inputs.adjacency.last_bias"].abs() <= 1 / math.sqrt(128)
    adjacency = made.decode(None)["adjacency"]
    assert 0.2 < of_pairs(adjacency).mean() < 0.8


class Largest(TorchDispatchMode):
    """The number of values of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in tree_leaves(made)
        ]
        self.values = max([self.values, *sizes])
        return made


def test_the_matrix_of_pairs_is_never_made():
    nodes, wide, h = 20, 300, 8
    made = Pairwise.of_items({"x": noise(nodes, wide)}, width=h)
    with Largest() as seen:
        made.decode(None)["adjacency"].square().sum().backward()
    # parameters [h, 2d] and features [M, d] are larger than [M, M, h] here; pairs would be 240,000
    assert seen.values <= max(nodes * nodes * h, nodes * wide, 2 * wide * h)
    assert made.leaves()["inputs.x"].grad.abs().sum() > 0
