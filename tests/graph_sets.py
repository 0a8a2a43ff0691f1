"""Small graphs for the tests, and plain formulas to compare with."""

import numpy as np
import torch

from mmdd.modalities.graphs.data import open_graphs
from mmdd.modalities.graphs.data_options import GraphData

KEEP_ALL = {"validation": 0, "test": 0.0, "normalise": "none"}


def random_graph(nodes=40, edges=90, features=5, classes=3, seed=0, masks=True):
    """An undirected random graph as a dict of arrays; each edge is given in both directions."""
    rng = np.random.default_rng(seed)
    pairs = np.unique(np.sort(rng.integers(0, nodes, (edges, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    made = {
        "edge_index": np.concatenate([pairs, pairs[:, ::-1]]).T,
        "x": rng.normal(size=(nodes, features)).astype(np.float32),
        "y": np.arange(nodes) % classes,
    }
    if masks:
        part = rng.permutation(nodes) * 4 // nodes
        made |= {f"{name}_mask": part == place for place, name in enumerate(("train", "val"))}
        made["test_mask"] = part >= 2
    return made


def random_graphs(count=12, features=4, seed=0):
    """Whole graphs of 2 to 7 nodes as a dict of arrays; their label is their number's parity."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 8, count)
    starts = np.cumsum(sizes) - sizes
    edges = []
    for size, start in zip(sizes, starts, strict=True):
        one = np.triu(rng.random((size, size)) < 0.5, 1)
        edges.append(np.argwhere(one | one.T).T + start)
    return {
        "edge_index": np.concatenate(edges, axis=1),
        "x": rng.normal(size=(int(sizes.sum()), features)).astype(np.float32),
        "y": np.arange(count) % 2,
        "sizes": sizes,
    }


def opened(source, **options):
    return open_graphs(source, GraphData(**options), torch.device("cpu"))


def dense(inputs):
    """[N, N] float64 adjacency with the target as row."""
    count = len(inputs["x"])
    made = torch.zeros(count, count, dtype=torch.float64)
    source, target = inputs["edge_index"]
    return made.index_put_((target, source), inputs["edge_weight"].double(), accumulate=True)


def normalised(inputs):
    """[N, N] float64 D^-1/2 (A + I) D^-1/2, with the degrees of the whole graph where given."""
    adjacency = dense(inputs)
    own = inputs["degree"].double() if "degree" in inputs else adjacency.sum(dim=1)
    scale = (own + 1).rsqrt()
    return scale[:, None] * (adjacency + torch.eye(len(adjacency))) * scale
