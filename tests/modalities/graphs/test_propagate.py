"""Sparse products, normalisations and pooling against plainly written matrices."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.func import jacrev, vmap

from mmdd.modalities.graphs.pooling import POOLS, pooled
from mmdd.modalities.graphs.propagate import (
    _STRUCTURES,
    Dense,
    Edgeless,
    Structure,
    product,
    read,
    structure_of,
)

NODES = 6


def weights(seed=0, nodes=NODES, symmetric=False):
    """[n, n] weights, half of them 0; the last node is isolated."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(nodes, nodes, generator=generator, dtype=torch.float64)
    made = made * (torch.rand(nodes, nodes, generator=generator) < 0.5)
    made = made.triu(1) + made.triu(1).T if symmetric else made
    made[-1] = made[:, -1] = 0
    return made.fill_diagonal_(0)


def sparse_of(adjacency):
    target, source = adjacency.nonzero().T
    return torch.stack([source, target]), adjacency[target, source]


def normal(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_product_is_the_matrix_product():
    adjacency = weights()
    edge_index, value = sparse_of(adjacency)
    structure, h = structure_of(edge_index, NODES), normal(NODES, 3)
    torch.testing.assert_close(product(structure, value, h), adjacency @ h)
    back, order = structure.reversed
    torch.testing.assert_close(product(back, value[order], h), adjacency.T @ h)


def test_product_has_derivatives_of_both_orders():
    edge_index, value = sparse_of(weights())
    structure, h = structure_of(edge_index, NODES), normal(NODES, 3).requires_grad_()
    value.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, h: product(structure, v, h), (value, h))
    assert torch.autograd.gradgradcheck(lambda v, h: product(structure, v, h), (value, h))


def test_product_under_vmap():
    edge_index, value = sparse_of(weights())
    structure, values, states = structure_of(edge_index, NODES), normal(4, len(value)), None
    states = normal(4, NODES, 3)
    for axes, arguments in (
        ((None, 0), (value, states)),
        ((0, None), (values, states[0])),
        ((0, 0), (values, states)),
    ):
        got = vmap(lambda v, h: product(structure, v, h), axes)(*arguments)
        pairs = [
            [a if axis is None else a[i] for a, axis in zip(arguments, axes, strict=True)]
            for i in range(4)
        ]
        torch.testing.assert_close(got, torch.stack([product(structure, *p) for p in pairs]))


@pytest.mark.parametrize("chunk", [1, None])
def test_product_under_jacrev_of_many_losses(chunk):
    adjacency = weights()
    edge_index, value = sparse_of(adjacency)
    structure, x, rows = structure_of(edge_index, NODES), normal(NODES, 3), normal(2, NODES)

    def slopes(add):
        def losses(weight):
            h = add(torch.relu(add(x @ weight)))
            return vmap(lambda row: (row * h.square().sum(1)).sum())(rows)

        return jacrev(losses, chunk_size=chunk)(normal(3, 4, seed=2))

    expected = slopes(lambda h: adjacency @ h)
    torch.testing.assert_close(slopes(lambda h: product(structure, value, h)), expected)


def test_product_without_edges():
    structure = Structure(*torch.zeros(2, 0, dtype=torch.int64), NODES)
    h = normal(NODES, 3).requires_grad_()
    found = product(structure, torch.zeros(0, dtype=torch.float64), h)
    assert not found.any()
    assert not torch.autograd.grad(found.sum(), h)[0].any()


def test_structure_is_made_once_and_forgotten_with_its_tensor():
    edge_index, _ = sparse_of(weights())
    gc.collect()  # what other tests left behind
    before = len(_STRUCTURES)
    first = structure_of(edge_index, NODES)
    assert structure_of(edge_index, NODES) is first
    assert structure_of(edge_index, NODES + 1).count == NODES + 1
    first = structure_of(edge_index, NODES)
    edge_index[:, -2:] = NODES - 1  # another graph in the same place
    assert structure_of(edge_index, NODES).target[-1] == NODES - 1
    del edge_index
    gc.collect()
    assert len(_STRUCTURES) == before


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_normalisations(form):
    adjacency, h = weights(), normal(NODES, 3)
    inputs = {"x": h, "adjacency": adjacency}
    if form == "sparse":
        edge_index, value = sparse_of(adjacency)
        inputs = {"x": h, "edge_index": edge_index, "edge_weight": value}
    edges = read(inputs)[1]
    degree, eye = adjacency.sum(1), torch.eye(NODES, dtype=torch.float64)
    root = torch.diag((degree + 1) ** -0.5)
    torch.testing.assert_close(
        edges.symmetric(loops=True).add(h), root @ (adjacency + eye) @ root @ h
    )
    root = torch.diag(torch.where(degree > 0, degree**-0.5, 0))
    torch.testing.assert_close(edges.symmetric(loops=False).add(h), root @ adjacency @ root @ h)
    mean = torch.diag(torch.where(degree > 0, 1 / degree, 0)) @ adjacency
    torch.testing.assert_close(edges.mean().add(h), mean @ h)
    assert (mean.sum(1) == 0).any()


def test_a_node_without_neighbours_has_finite_derivatives():
    adjacency = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    h = normal(3, 2)
    for edges in (Dense(adjacency).symmetric(loops=False), Dense(adjacency).mean()):
        (slope,) = torch.autograd.grad(edges.add(h).square().sum() + edges.add(h).sum(), adjacency)
        assert slope.isfinite().all()


def test_edgeless():
    h = normal(NODES, 3)
    assert not Edgeless().add(h).any()
    assert not Edgeless().mean().add(h).any()
    assert not Edgeless().symmetric(loops=False).add(h).any()
    assert torch.equal(Edgeless().symmetric(loops=True).add(h), h)


def test_degree_of_the_whole_graph_wins():
    edge_index, value = sparse_of(weights())
    degree = torch.arange(1.0, NODES + 1, dtype=torch.float64)
    inputs = {"x": normal(NODES, 3), "edge_index": edge_index, "edge_weight": value}
    edges = read({**inputs, "degree": degree})[1].symmetric(loops=True)
    source, target = edge_index
    expected = value * ((degree[source] + 1) * (degree[target] + 1)) ** -0.5
    torch.testing.assert_close(edges.weight, expected)
    torch.testing.assert_close(edges.loop, 1 / (degree + 1))


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_of_unions_and_of_padded_graphs(pool):
    sizes = [3, 0, 2]
    h = normal(5, 4)
    padded, mask = normal(3, 3, 4, seed=5), torch.zeros(3, 3, dtype=torch.bool)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for place, part in enumerate(h.split(sizes)):
        mask[place, : len(part)] = True
        padded[place, : len(part)] = part
        if len(part):
            most = part.max(dim=0).values
            expected[place] = {"mean": part.mean(0), "sum": part.sum(0), "max": most}[pool]
    union = {"sizes": torch.tensor(sizes)}
    torch.testing.assert_close(pooled(h, union, pool), expected)
    torch.testing.assert_close(pooled(padded, {"mask": mask}, pool), expected)
    torch.testing.assert_close(pooled(padded[:1], {}, pool), expected[:1])
    h.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda h: pooled(h, union, pool).square(), (h,))
    padded.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda h: pooled(h, {"mask": mask}, pool).square(), (padded,)
    )
