"""Features that are mostly zero are multiplied as a sparse matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, jacrev

from mmdd.modalities.graphs import propagate
from mmdd.modalities.graphs.encoders import ENCODERS
from mmdd.modalities.graphs.propagate import mapped, sparse_features


def bags(rows=40, words=30, seed=0):
    stream = torch.Generator().manual_seed(seed)
    values = torch.rand(rows, words, generator=stream, dtype=torch.float64)
    return values * (torch.rand(rows, words, generator=stream) < 0.04)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(propagate, "SPARSE_NUMBERS", 100)


def test_a_matrix_is_looked_at_when_it_comes_again():
    x = bags()
    assert sparse_features(x) is None
    structure, values = sparse_features(x)
    dense = torch.zeros(40, 30, dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(40), structure.pointer.diff().long())
    dense[rows, structure.source.long()] = values
    assert torch.equal(dense, x)
    x[0, 0] = 5.0  # another matrix now
    assert sparse_features(x) is None
    assert sparse_features(x)[1].max() == 5.0


@pytest.mark.parametrize(
    "x", [bags().requires_grad_(), torch.rand(40, 30), bags()[:2], bags()[None]]
)
def test_other_features_stay_dense(x):
    for _ in range(3):
        assert sparse_features(x) is None


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_derivatives_are_those_of_the_layer(bias):
    layer, x = nn.Linear(30, 7, bias=bias).double(), bags()
    sparse_features(x)
    torch.testing.assert_close(mapped(layer, x), layer(x))
    names = dict(layer.named_parameters())

    def through(kind):
        def loss(weights):
            held = torch.func.functional_call(Holder(layer, kind), weights, (x,))
            return held.square().mean(dim=1)

        return loss

    weights = {f"layer.{name}": value.detach() for name, value in names.items()}
    for way in (jacrev, lambda f, **_: grad(lambda w: f(w).sum())):
        ours, plain = (way(through(kind))(weights) for kind in ("mapped", "plain"))
        for name, value in plain.items():
            torch.testing.assert_close(ours[name], value)


class Holder(nn.Module):
    def __init__(self, layer, kind):
        super().__init__()
        self.layer, self.kind = layer, kind

    def forward(self, x):
        return mapped(self.layer, x) if self.kind == "mapped" else self.layer(x)


@pytest.mark.parametrize("name", ["gcn", "sage", "gat"])
def test_nets_read_bags_of_words_alike(name):
    x = bags()
    edges = torch.stack([torch.arange(40), (torch.arange(40) + 1) % 40])
    edges = edges[:, edges[1].argsort()]
    inputs = {"x": x, "edge_index": edges, "edge_weight": torch.ones(40, dtype=torch.float64)}
    net = ENCODERS[name](30, 3, "node", width=16, dropout=0.0).double().eval()
    first, second, third = (net(inputs) for _ in range(3))
    assert sparse_features(x) is not None
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, third)
