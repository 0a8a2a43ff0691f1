"""Whole graphs as a large set: any of them side by side, or padded.

Shape suffixes: G graphs of the set, N nodes and E edges of all, n graphs of a batch, m nodes of the
largest of these.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.modalities.graphs.graph import Graph
from mmdd.real import RealData


@dataclasses.dataclass(frozen=True)
class Union:
    """All graphs of a set on the device, and where each one lies (on the CPU).

    Attributes
    ----------
    x: [N, d] float32.
    edge_index: [2, E] int64, numbered through all graphs, graph after graph.
    edge_weight: [E] float32.
    sizes, edges: [G] int64 nodes and edges of each graph.
    """

    x: Tensor
    edge_index: Tensor
    edge_weight: Tensor
    sizes: Tensor
    edges: Tensor

    @classmethod
    def of(cls, graph: Graph, x: Tensor, device: torch.device | str) -> Union:
        """Take the graphs of a cleaned `graph`, whose edges are sorted by target."""
        assert graph.sizes is not None, "whole graphs know their sizes"
        edges = torch.bincount(graph.owner[graph.edge_index[1]], minlength=len(graph.sizes))
        return cls(
            x.to(device),
            graph.edge_index.to(device),
            graph.edge_weight.to(device),
            graph.sizes,
            edges,
        )

    def take(self, graphs: Tensor) -> dict[str, Tensor]:
        """The `graphs` [n] side by side, in that order: ``x``, edges, and ``sizes`` [n]."""
        device = self.x.device
        nodes = ranges(self.sizes, graphs).to(device)
        edges = ranges(self.edges, graphs).to(device)
        sizes = self.sizes[graphs]
        old = (self.sizes.cumsum(0) - self.sizes)[graphs]
        shift = torch.repeat_interleave(sizes.cumsum(0) - sizes - old, self.edges[graphs])
        return {
            "x": self.x[nodes],
            "edge_index": self.edge_index[:, edges] + shift.to(device),
            "edge_weight": self.edge_weight[edges],
            "sizes": sizes.to(device),
        }


def ranges(lengths: Tensor, chosen: Tensor) -> Tensor:
    """Concatenate the ranges of the `chosen` blocks [n], where block i has ``lengths[i]`` rows."""
    starts = lengths.cumsum(0) - lengths
    taken = lengths[chosen]
    first = starts[chosen] - (taken.cumsum(0) - taken)
    return torch.repeat_interleave(first, taken) + torch.arange(int(taken.sum()))


def padded(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Graphs side by side as dense blocks: ``x`` [n, m, d], ``adjacency`` [n, m, m], ``mask``.

    ``adjacency[i, s, t]`` is the weight of the edge from node t to node s of graph i; ``mask``
    [n, m] is False for the rows that are filling, which are zero.
    """
    x, sizes, edges = inputs["x"], inputs["sizes"], inputs["edge_index"]
    count, most = len(sizes), int(sizes.max())
    owner = torch.repeat_interleave(torch.arange(count, device=x.device), sizes)
    place = torch.arange(len(x), device=x.device) - (sizes.cumsum(0) - sizes)[owner]
    features = x.new_zeros(count, most, x.shape[1])
    features[owner, place] = x
    adjacency = x.new_zeros(count, most, most)
    adjacency[owner[edges[1]], place[edges[1]], place[edges[0]]] = inputs["edge_weight"]
    mask = torch.arange(most, device=x.device) < sizes[:, None]
    return {"x": features, "adjacency": adjacency, "mask": mask}


class WholeGraphs(RealData):
    """Labelled graphs of one split; a batch is the union of just the graphs that it names.

    Parameters
    ----------
    union: all graphs of the set, shared by its splits.
    index: [k] int64 the graphs that are items.
    codes: [k] int64 their classes.
    """

    joint = True

    def __init__(
        self,
        union: Union,
        index: Tensor,
        codes: Tensor,
        num_groups: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(codes, codes, num_groups, device)
        self.union, self.index, self.codes = union, index, codes

    def read(self, index: Tensor) -> dict[str, Tensor]:
        """Return the graphs `index` side by side, as form 4."""
        return self.union.take(self.index[index.cpu()])

    def select(self, index: Tensor) -> Batch:
        """Return the graphs `index` [n] as one joint batch of n items."""
        codes = self.codes[index.cpu()].to(self.device)
        return Batch(self.read(index), codes, codes, joint=True)

    def items(self, index: Tensor) -> dict[str, Tensor]:
        """The graphs `index` padded to the largest of them; see `padded`."""
        return padded(self.read(index))

    def subset(self, index: Tensor) -> WholeGraphs:
        """Return the set restricted to the graphs `index`."""
        index = index.cpu()
        return WholeGraphs(
            self.union, self.index[index], self.codes[index], self.num_groups, device=self.device
        )
