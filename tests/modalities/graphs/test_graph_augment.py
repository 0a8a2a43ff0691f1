"""Graph dropout: one mask of features for real and synthetic, edges left out in both directions."""

from __future__ import annotations

import pytest
import torch

from mmdd.errors import UserError
from mmdd.modalities.graphs.augment import GraphDropout
from mmdd.modalities.graphs.convolutions import SAGE
from mmdd.modalities.graphs.encoder_options import AUGMENTATIONS
from mmdd.modalities.graphs.propagate import read
from mmdd.trees import tree_cat

NODES, FEATURES = 30, 40


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ring(nodes=NODES):
    """A ring with chords: every node has four neighbours."""
    made = torch.zeros(nodes, nodes)
    for step in (1, 2):
        made += torch.eye(nodes).roll(step, 1) + torch.eye(nodes).roll(-step, 1)
    return made


def sparse(x, adjacency):
    target, source = adjacency.nonzero().T
    edges = torch.stack([source, target])
    return {"x": x, "edge_index": edges, "edge_weight": adjacency[target, source]}


def lost(inputs):
    return (inputs["x"] == 0).all(dim=-2)


def test_the_same_features_of_real_and_synthetic():
    augment = GraphDropout(0.5, 0.0)
    draw = augment.draw(3, seeded())
    groups = torch.arange(NODES) % 3
    real = augment(sparse(torch.ones(NODES, FEATURES), ring()), draw, groups)
    dense = augment({"x": torch.ones(4, FEATURES), "adjacency": torch.ones(4, 4)}, draw, groups[:4])
    alone = augment({"x": torch.ones(5, FEATURES)}, draw, groups[:5])
    whole = augment({"x": torch.ones(2, 3, FEATURES)}, draw, groups[:2])
    assert torch.equal(lost(real), lost(dense))
    assert torch.equal(lost(real), lost(alone))
    assert torch.equal(lost(real), lost(whole)[0])
    assert 8 < lost(real).sum() < 32
    assert torch.equal(real["x"].unique(), torch.tensor([0.0, 2.0]))
    assert torch.equal(real["edge_weight"], torch.ones(4 * NODES))
    again, other = augment.draw(3, seeded()), augment.draw(3, seeded(1))
    assert torch.equal(again.seeds, draw.seeds)
    assert not torch.equal(lost(augment({"x": torch.ones(3, FEATURES)}, other)), lost(alone))


def test_shares():
    augment = GraphDropout(0.2, 0.3)
    adjacency = torch.ones(100, 100).triu(1)
    inputs = {"x": torch.ones(100, 5000), "adjacency": adjacency + adjacency.T}
    made = augment(inputs, augment.draw(1, seeded()))
    assert lost(made).double().mean() == pytest.approx(0.2, abs=0.02)
    assert 1 - made["adjacency"].mean() * 100 / 99 == pytest.approx(0.3, abs=0.02)
    assert torch.equal(made["adjacency"], made["adjacency"].T)
    assert inputs["x"].all()  # not changed in place


def test_masked_features_commute_with_propagation():
    augment = GraphDropout(0.5, 0.0)
    draw = augment.draw(1, seeded()), torch.zeros(NODES, dtype=torch.int64)
    x = torch.randn(NODES, FEATURES, generator=seeded(1))
    edges = read(sparse(x, ring()))[1].symmetric(loops=True)
    after = augment({"x": edges.add(x)}, *draw)["x"]
    torch.testing.assert_close(edges.add(augment({"x": x}, *draw)["x"]), after)


def test_edges_go_in_both_directions_and_out_of_the_degrees():
    augment = GraphDropout(0.0, 0.4)
    x, adjacency = torch.randn(NODES, FEATURES), ring() * torch.rand(NODES, NODES)
    adjacency = adjacency.triu() + adjacency.triu().T
    outside = torch.rand(NODES)
    inputs = {**sparse(x, adjacency), "degree": adjacency.sum(1) + outside}
    made = augment(inputs, augment.draw(4, seeded()))
    left = torch.zeros_like(adjacency)
    left[made["edge_index"][1], made["edge_index"][0]] = made["edge_weight"]
    assert torch.equal(left, left.T)
    assert 0.4 < (left > 0).sum() / (adjacency > 0).sum() < 0.8
    assert torch.equal(left[left > 0], adjacency[left > 0])
    torch.testing.assert_close(made["degree"], left.sum(1) + outside)
    assert torch.equal(made["x"], x)
    # an edge of weight 0 is no edge
    net = SAGE(FEATURES, 2).eval()
    whole = {key: leaf for key, leaf in made.items() if key != "degree"}
    torch.testing.assert_close(net(whole), net(sparse(x, left)))


def test_learners_side_by_side_get_what_they_get_alone():
    augment = GraphDropout(0.3, 0.3)
    draws = [augment.draw(2, seeded(seed), shared_op=True) for seed in (0, 1)]
    x, adjacency = torch.ones(4, 3, FEATURES), torch.ones(4, 3, 3)
    both = augment({"x": x, "adjacency": adjacency}, tree_cat(draws))
    for place, draw in enumerate(draws):
        rows = slice(2 * place, 2 * place + 2)
        own = augment({"x": x[rows], "adjacency": adjacency[rows]}, draw)
        assert torch.equal(both["x"][rows], own["x"])
        assert torch.equal(both["adjacency"][rows], own["adjacency"])
    assert not torch.equal(both["x"][0], both["x"][2])


def test_graphs_of_a_batch_lose_edges_of_their_own_and_derivatives_pass():
    augment = GraphDropout(0.5, 0.5)
    adjacency = torch.ones(2, 8, 8, requires_grad=True)
    x = torch.ones(2, 8, FEATURES, requires_grad=True)
    mask = torch.ones(2, 8, dtype=torch.bool)
    made = augment({"x": x, "adjacency": adjacency, "mask": mask}, augment.draw(2, seeded()))
    assert not torch.equal(made["adjacency"][0], made["adjacency"][1])
    assert made["mask"] is mask
    (made["x"].sum() + made["adjacency"].sum()).backward()
    assert torch.equal(x.grad, made["x"].detach())
    assert torch.equal(adjacency.grad, made["adjacency"].detach())


def test_options():
    assert list(AUGMENTATIONS) == ["none", "graph-dropout"]
    chosen = AUGMENTATIONS["graph-dropout"]().model_dump()
    assert chosen.pop("kind") == "graph-dropout"
    made = GraphDropout(**chosen)
    assert (made.features, made.edges) == (GraphDropout().features, GraphDropout().edges)
    with pytest.raises(UserError, match="the share of edges to leave out is out of range; got 1"):
        GraphDropout(edges=1)
