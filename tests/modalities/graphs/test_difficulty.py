"""How hard the nodes of a graph are."""

from __future__ import annotations

import torch

from mmdd.modalities.graphs.aggregate import guessed
from mmdd.modalities.graphs.data import open_graphs
from mmdd.modalities.graphs.options import GraphData


def path():
    """0-1-2-3 of two classes, 4-5 of the second, all but 5 labelled."""
    from torch_geometric.data import Data

    edges = torch.tensor([[0, 1, 2, 4], [1, 2, 3, 5]])
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1]])
    mask = torch.tensor([True, True, True, True, True, False])
    nothing = torch.zeros(6, dtype=torch.bool)
    test = nothing.clone()
    test[5] = True
    return Data(
        x=x,
        edge_index=torch.cat([edges, edges.flip(0)], dim=1),
        y=torch.tensor([0, 0, 1, 1, 1, 1]),
        train_mask=mask,
        val_mask=nothing,
        test_mask=test,
    )


def test_nodes_beside_another_class_are_hard():
    train = open_graphs(path(), GraphData(normalise="none", validation=0)).train
    entropy = train.difficulty()
    mixed = -(2 / 3) * torch.tensor(2 / 3).log() - (1 / 3) * torch.tensor(1 / 3).log()
    torch.testing.assert_close(entropy, torch.tensor([0.0, mixed, mixed, 0.0, 0.0]))


def test_unlabelled_nodes_are_guessed_and_labelled_ones_believed():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    found = guessed([x], torch.tensor([0, 1, 4]), torch.tensor([0, 1, 0]), 2)
    assert found.tolist() == [0, 1, 0, 1, 0]
    wrong = guessed([x], torch.tensor([0, 1, 4, 2]), torch.tensor([0, 1, 0, 1]), 2)
    assert wrong.tolist() == [0, 1, 1, 1, 0]
