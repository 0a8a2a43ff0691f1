"""One graph, or several as a disjoint union: the plain record, and the cleaning of its edges.

Shape suffixes: N nodes, E edges, G graphs, M items (nodes or graphs), d features, S splits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mmdd.errors import UserError

ROLES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Graph:
    """One graph whose items are its nodes, or a union of graphs that are the items.

    Attributes
    ----------
    nodes: N.
    edge_index: [2, E] int64, source above target.
    edge_weight: [E] float32.
    weighted: False where the weights are ones because none were given.
    x: [N, d] float32, or None where there are no features.
    y: [M] int64 class numbers; -1 where unlabelled.
    masks: [M] or [M, S] bool, by role, where the set has official parts.
    sizes: [G] int64 nodes of each graph, nodes of graph 0 first; None for one graph.
    names: of the classes, or None.
    """

    nodes: int
    edge_index: Tensor
    edge_weight: Tensor
    weighted: bool
    x: Tensor | None
    y: Tensor
    masks: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    sizes: Tensor | None = None
    names: tuple[str, ...] | None = None

    @property
    def level(self) -> Literal["node", "graph"]:
        """What an item is."""
        return "node" if self.sizes is None else "graph"

    @property
    def owner(self) -> Tensor:
        """[N] int64: the graph of each node."""
        if self.sizes is None:
            return torch.zeros(self.nodes, dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(self.sizes)), self.sizes)

    @property
    def in_degrees(self) -> Tensor:
        """[N] int64 edges that end at each node."""
        return torch.bincount(self.edge_index[1], minlength=self.nodes)

    def induced(self, nodes: Tensor) -> Graph:
        """The sub-graph of `nodes` [k], ascending, renumbered 0..k-1; its masks are left out.

        The order of the edges stays. Time and memory are O(N + E).
        """
        place = torch.full((self.nodes,), -1)
        place[nodes] = torch.arange(len(nodes))
        ends = place[self.edge_index]
        kept = (ends >= 0).all(dim=0)
        return dataclasses.replace(
            self,
            nodes=len(nodes),
            edge_index=ends[:, kept],
            edge_weight=self.edge_weight[kept],
            x=None if self.x is None else self.x[nodes],
            y=self.y[nodes],
            masks={},
        )


def clean_edges(graph: Graph, undirected: bool | Literal["auto"], notes: list[str]) -> Graph:
    """Check the edges and bring them to the form that encoders read.

    That is: sorted by (target, source), each pair once, no self-loops, no zero weights, and both
    directions unless `undirected` is False. Every change is said in `notes`.

    Weights of repeated edges add up (as in a sparse matrix); where none were given a repeated edge
    counts once. An edge without an opposite gets one, and of two different weights the larger
    stands for both: A = max(A, A^T), the convention of GCN's released code.

    Errors: UserError for ends that are no nodes, for edges between two graphs, and for weights
    that are negative or not finite.
    """
    _require_ends(graph)
    _require_weights(graph.edge_weight)
    edges, weights = _without_loops(graph.edge_index, graph.edge_weight, notes)
    keys, weights = _merged(edges[1] * graph.nodes + edges[0], weights, graph.weighted, notes)
    keys, weights = _directions(keys, weights, graph.nodes, undirected, notes)
    target = torch.div(keys, graph.nodes, rounding_mode="floor")
    index = torch.stack([keys - target * graph.nodes, target])
    cleaned = dataclasses.replace(graph, edge_index=index, edge_weight=weights)
    _note_isolated(cleaned, notes)
    return cleaned


def _require_ends(graph: Graph) -> None:
    ends = graph.edge_index
    if not ends.numel():
        return
    low, high = int(ends.min()), int(ends.max())
    if low < 0 or high >= graph.nodes:
        wrong = int(((ends < 0) | (ends >= graph.nodes)).any(dim=0).sum())
        raise UserError(
            f"{wrong} edges end at nodes that do not exist",
            got=low if low < 0 else high,
            expected=f"node numbers 0 to {graph.nodes - 1}",
        )
    if graph.sizes is not None:
        owner = graph.owner[ends]
        crossing = int((owner[0] != owner[1]).sum())
        if crossing:
            raise UserError(
                f"{crossing} edges join nodes of two graphs",
                hint="Number the nodes through all graphs, and give their numbers as 'sizes'",
            )


def _require_weights(weights: Tensor) -> None:
    wrong = ~(torch.isfinite(weights) & (weights >= 0))
    if wrong.any():
        first = int(torch.nonzero(wrong)[0])
        raise UserError(
            f"{int(wrong.sum())} edge weights cannot be used, the first of edge {first}",
            got=float(weights[first]),
            expected="finite weights of at least 0",
        )


def _without_loops(edges: Tensor, weights: Tensor, notes: list[str]) -> tuple[Tensor, Tensor]:
    loops = edges[0] == edges[1]
    empty = ~loops & (weights == 0)
    if loops.any():
        notes.append(f"{int(loops.sum())} self-loops removed: encoders add their own")
    if empty.any():
        notes.append(f"{int(empty.sum())} edges of weight 0 removed")
    kept = ~(loops | empty)
    return edges[:, kept], weights[kept]


def _merged(
    keys: Tensor, weights: Tensor, weighted: bool, notes: list[str]
) -> tuple[Tensor, Tensor]:
    """Sort the edges by key and make each pair one edge."""
    found, place = torch.unique(keys, return_inverse=True)
    repeated = len(keys) - len(found)
    if not weighted:
        if repeated:
            notes.append(f"{repeated} repeated edges removed")
        return found, torch.ones(len(found))
    if repeated:
        notes.append(f"{repeated} repeated edges merged: their weights add up")
    # in double precision, so that the order of the sum does not show
    total = torch.zeros(len(found), dtype=torch.float64).index_add_(0, place, weights.double())
    return found, total.float()


def _directions(
    keys: Tensor,
    weights: Tensor,
    nodes: int,
    undirected: bool | Literal["auto"],
    notes: list[str],
) -> tuple[Tensor, Tensor]:
    """Give every edge its opposite, or say that directions count."""
    target = torch.div(keys, nodes, rounding_mode="floor")
    opposite, order = torch.sort((keys - target * nodes) * nodes + target)
    if torch.equal(opposite, keys) and torch.equal(weights[order], weights):
        return keys, weights
    if undirected is False:
        notes.append("the graph is directed: a node reads the sources of the edges that end at it")
        return keys, weights
    both, place = torch.unique(torch.cat([keys, opposite]), return_inverse=True)
    values = torch.cat([weights, weights[order]])
    largest = torch.zeros(len(both)).scatter_reduce_(0, place, values, "amax")
    added = len(both) - len(keys)
    notes.append(
        f"directed edges made undirected: {added} opposites added to {len(keys)} edges"
        if added
        else "the two directions of an edge had different weights: the larger stands for both"
    )
    return both, largest


def _note_isolated(graph: Graph, notes: list[str]) -> None:
    joined = torch.zeros(graph.nodes, dtype=torch.bool)
    joined[graph.edge_index.flatten()] = True
    alone = graph.nodes - int(joined.sum())
    if alone:
        notes.append(f"{alone} of {graph.nodes} nodes are isolated: they read their own features")
