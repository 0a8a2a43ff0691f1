"""Graphs that cannot be opened: one clear sentence, before anything else happens."""

import numpy as np
import pytest
import torch
from graph_sets import opened, random_graph, random_graphs
from pydantic import ValidationError
from torch_geometric.data import Data, HeteroData

from mmdd.errors import UserError
from mmdd.modalities.graphs.data_options import GraphData
from mmdd.modalities.graphs.local import save_graph


def changed(base=random_graph, **fields):
    made = base()
    made |= fields
    return {name: value for name, value in made.items() if value is not None}


def with_value(name, place, value, dtype=None):
    made = random_graph()
    made[name] = made[name].astype(dtype or made[name].dtype)
    made[name][place] = value
    return made


TRAIN = random_graph()["train_mask"]
BAD = {
    "no labels": (changed(y=None), "the graph has no labels"),
    "another name": (changed(y=None, y_true=np.zeros(40)), "has no labels.*an array 'y'"),
    "all unlabelled": (changed(y=-np.ones(40, int)), "no node has a label"),
    "single class": (changed(y=np.zeros(40, int)), "single class, '0'"),
    "labels from -1": (changed(y=np.where(np.arange(40) % 2, 1, -1)), "-1 stands for no label"),
    "labels below -1": (with_value("y", 3, -2), "no class numbers; got -2"),
    "wrong number": (changed(y=np.zeros(39, int)), "number of labels differs.*got 39"),
    "float labels": (with_value("y", 3, 0.5, float), "no class numbers; got 0.5"),
    "infinite labels": (with_value("y", 3, np.inf, float), "no class numbers; got inf"),
    "multi-label": (changed(y=np.ones((40, 3))), "not one class per item"),
    "one-hot": (changed(y=np.eye(3)[np.arange(40) % 3]), r"pass y\.argmax\(1\)"),
    "text labels": (changed(y=np.array(["a"] * 40)), "'y' holds no numbers"),
    "few names": (changed(names=["a", "b"]), "fewer names than classes; got 2"),
    "overlap": (changed(val_mask=TRAIN), "train and validation masks overlap; got '10 nodes"),
    "empty train": (changed(train_mask=np.zeros(40, bool)), "training mask is empty"),
    "nothing left": (
        changed(train_mask=None, val_mask=TRAIN, test_mask=~TRAIN),
        "no labelled node is left to train on.*10 in validation",
    ),
    "short mask": (changed(train_mask=TRAIN[:30]), "'train_mask' does not fit the nodes"),
    "mask of numbers": (changed(train_mask=np.arange(40)), "'train_index'"),
    "index out of range": (changed(train_mask=None, train_index=[1, 40]), "from 0 to 39"),
    "too large": (with_value("edge_index", (0, 0), 40), "1 edges end at nodes.*got 40.*0 to 39"),
    "negative": (with_value("edge_index", (1, 5), -1), "do not exist; got -1"),
    "turned": (changed(edge_index=random_graph()["edge_index"].T), "Pass its transpose"),
    "float edges": (changed(edge_index=np.ones((2, 3))), "must hold whole numbers"),
    "no edges": (changed(edge_index=None), "the graph has no edges"),
    "few weights": (changed(edge_weight=np.ones(3)), "one number per edge"),
    "bad weights": (
        changed(edge_weight=-np.ones(random_graph()["edge_index"].shape[1])),
        "edge weights cannot be used",
    ),
    "NaN features": (with_value("x", (7, 2), np.nan), "1 rows of the features.*row 7"),
    "infinite features": (with_value("x", (3, 0), -np.inf), "NaN or infinite.*row 3"),
    "flat features": (changed(x=np.ones(40)), "one row per node"),
    "few features": (changed(x=np.ones((39, 2))), "number of labels differs"),
    "empty": (changed(x=np.ones((0, 2)), y=np.ones(0, int)), "the graph is empty"),
    "broken csr": (
        {
            "adj_data": [1.0],
            "adj_indices": [0],
            "adj_indptr": [0, 2, 1],
            "adj_shape": [2, 2],
            "x": np.eye(2),
            "y": [0, 1],
        },
        "no valid CSR",
    ),
    "csr shape": (
        {
            "data": [1.0],
            "indices": [0],
            "indptr": [0, 1],
            "shape": [1, 1],
            "x": np.eye(2),
            "y": [0, 1],
        },
        "does not fit the nodes",
    ),
    "graph without nodes": (changed(random_graphs, sizes=[0] + [5] * 11), "1 graphs have no nodes"),
    "no graphs": (changed(random_graphs, sizes=np.zeros(0, int)), "all graphs have no nodes"),
    "sizes": (changed(random_graphs, sizes=[1] * 12), "number of features differs"),
    "crossing": (
        changed(random_graphs, edge_index=np.array([[0], [len(random_graphs()["x"]) - 1]])),
        "1 edges join nodes of two graphs",
    ),
    "labels of nodes": (
        changed(random_graphs, y=np.zeros(len(random_graphs()["x"]), int)),
        "number of labels differs from that of graphs",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_graphs(name):
    source, message = BAD[name]
    with pytest.raises(UserError, match=message) as caught:
        opened(source)
    assert "\n" not in str(caught.value)


def one(nodes=3, **fields):
    edges = torch.tensor([[0, 1], [1, 0]])
    return Data(**{"x": torch.ones(nodes, 2), "edge_index": edges, "y": torch.tensor([0])} | fields)


BAD_PYTHON = {
    "a number": (5, "cannot be opened as graphs; got 'int'"),
    "nothing": ([], "holds no graphs"),
    "no graphs": ([1, 2], "not every item of the set is a graph"),
    "hetero": (HeteroData(), "cannot be opened as graphs"),
    "widths": ([one(), one(x=torch.ones(3, 4))], "differ in their x"),
    "some without": ([one(), one(x=None, num_nodes=3)], "differ in their x"),
    "node labels": ([one(y=torch.zeros(3).long())] * 2, r"has 3 labels.*Batch\.from_data_list"),
    "unlabelled": ([one(), one(y=None)], "has no y"),
    "adj_t": (one(edge_index=None, adj_t=torch.eye(3)), "ToSparseTensor"),
}


@pytest.mark.parametrize("name", BAD_PYTHON)
def test_bad_things_from_python(name):
    source, message = BAD_PYTHON[name]
    with pytest.raises(UserError, match=message):
        opened(source)


def test_bad_files(tmp_path):
    for name, content, message in [
        ("graph.pt", b"", "is a pickle.*save_graph"),
        ("graph.csv", b"", "cannot tell what kind of graph"),
        ("graph.npz", b"no zip", "cannot be read|holds Python objects"),
        ("graph.safetensors", b"short", "damaged or truncated"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            opened(tmp_path / name)
    with pytest.raises(UserError, match=r"Did you mean .*graph\.npz"):
        opened(str(tmp_path / "grap.npz"))
    with pytest.raises(UserError, match="holds 2 graphs"):
        opened(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no graphs"):
        opened(tmp_path / "empty")
    np.savez(tmp_path / "objects.npz", y=np.array([{}], dtype=object), x=np.eye(2))
    with pytest.raises(UserError, match="the graph has no labels"):
        opened(tmp_path / "objects.npz")
    whole = (tmp_path / "objects.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        opened(tmp_path / "cut.npz")
    with pytest.raises(UserError, match="cannot be written"):
        save_graph(tmp_path / "graph.pt", random_graph())


def test_bad_options():
    with pytest.raises(UserError, match="no data source"):
        opened(None)
    with pytest.raises(UserError, match=r"data\.split is out of range; got 1"):
        opened(random_graph(), split=1)
    with pytest.raises(UserError, match=r"too large.*800 bytes once dense.*max_feature_bytes"):
        opened(random_graph(), max_feature_bytes=799)
    with pytest.raises(UserError, match="for the nodes of one graph"):
        opened(random_graphs(), neighbours=[3])
    for wrong in ({"neighbours": []}, {"neighbours": [0]}, {"setting": "both"}, {"rot": "x"}):
        with pytest.raises(ValidationError):
            GraphData(**wrong)
    assert GraphData(undirected="false").undirected is False
    assert GraphData().undirected == "auto"


def test_a_graph_without_edges_is_said():
    splits = opened(changed(edge_index=np.zeros((2, 0), int)), normalise="none")
    assert "40 of 40 nodes are isolated: they read their own features" in splits.info.notes
    x = splits.train.graph.x
    assert torch.equal(splits.train.graph.propagated(2), x)
    alone = opened(changed(edge_index=[[], []], x=None))
    assert alone.info.shape == (1,)
