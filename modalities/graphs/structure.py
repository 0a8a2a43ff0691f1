"""One structure in memory, and what is derived from it once: propagated features, reach, rows.

Shape suffixes: N nodes, E edges, d features, n chosen nodes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

FAR = torch.iinfo(torch.int64).max


class Structure:
    """A graph as encoders read it, kept on the CPU and, once asked for, on the device.

    Parameters
    ----------
    x: [N, d] float32.
    edge_index: [2, E] int64, sorted by (target, source), without self-loops.
    edge_weight: [E] float32.
    degree: [N] float32 weighted in-degrees in the whole graph, where this is a part of one.
    device: where `inputs` lies.
    """

    def __init__(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor,
        *,
        degree: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.x, self.edge_index, self.edge_weight = x, edge_index, edge_weight
        self.given_degree = degree
        self.device = torch.device(device)
        self._propagated: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.x.shape[0]

    @functools.cached_property
    def inputs(self) -> dict[str, Tensor]:
        """What an encoder reads, on the device."""
        fields = {"x": self.x, "edge_index": self.edge_index, "edge_weight": self.edge_weight}
        if self.given_degree is not None:
            fields["degree"] = self.given_degree
        return {name: values.to(self.device) for name, values in fields.items()}

    @functools.cached_property
    def degree(self) -> Tensor:
        """[N] float32 weighted in-degree in the whole graph, without self-loops."""
        if self.given_degree is not None:
            return self.given_degree
        total = torch.zeros(len(self), dtype=torch.float64)
        return total.index_add_(0, self.edge_index[1], self.edge_weight.double()).float()

    @functools.cached_property
    def starts(self) -> Tensor:
        """[N + 1] int64: the edges that end at node i are ``starts[i]`` to ``starts[i + 1]``."""
        counts = torch.bincount(self.edge_index[1], minlength=len(self))
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def propagated(self, hops: int) -> Tensor:
        """[N, d] float32 on the CPU: A_hat^hops X with A_hat = D^-1/2 (A + I) D^-1/2.

        D holds the in-degrees of A + I (Kipf and Welling 2017; Wu et al. 2019, equation 8). Every
        power that is asked for is kept, and a higher one starts from it.
        """
        if hops == 0:
            return self.x
        if hops not in self._propagated:
            nearest = max((k for k in self._propagated if k < hops), default=0)
            values = self.propagated(nearest)
            for _ in range(hops - nearest):
                values = self._hop(values)
            self._propagated[hops] = values
        return self._propagated[hops]

    def _hop(self, values: Tensor) -> Tensor:
        scale = (self.degree + 1).rsqrt()[:, None]
        scaled = values * scale
        summed: Tensor = torch.sparse.mm(self._adjacency, scaled)
        return summed.add_(scaled).mul_(scale)

    @functools.cached_property
    def _adjacency(self) -> Tensor:
        """[N, N] sparse, row = target; the edges are sorted as the format wants them."""
        shape = (len(self), len(self))
        return torch.sparse_coo_tensor(
            self.edge_index.flip(0),
            self.edge_weight,
            shape,
            is_coalesced=True,
            check_invariants=False,
        )

    def distances(self, nodes: Tensor, hops: int) -> Tensor:
        """[N] int64: steps from which each node reaches one of `nodes` [n]; `FAR` beyond `hops`.

        Time is O(hops * E).
        """
        source, target = self.edge_index
        steps = torch.full((len(self),), FAR)
        steps[nodes] = 0
        for step in range(1, hops + 1):
            reached = source[steps[target] == step - 1]
            steps[reached[steps[reached] == FAR]] = step
        return steps

    def within(self, nodes: Tensor, hops: int) -> tuple[Structure, Tensor]:
        """The part that nets of `hops` layers read for `nodes` [n], exactly.

        That is: all nodes within `hops` steps, and the edges that end at most ``hops - 1`` steps
        away, with the degrees of the whole graph. What the farthest nodes themselves give out is
        wrong, and never reaches `nodes`.

        Returns
        -------
        The part, and [k] int64 the nodes it holds, ascending: its node j is node ``kept[j]`` here.
        """
        steps = self.distances(nodes, hops)
        kept = torch.nonzero(steps <= hops).flatten()
        place = torch.full((len(self),), -1)
        place[kept] = torch.arange(len(kept))
        edges = steps[self.edge_index[1]] < hops
        part = Structure(
            self.x[kept],
            place[self.edge_index[:, edges]],
            self.edge_weight[edges],
            degree=self.degree[kept],
            device=self.device,
        )
        return part, kept

    def among(self, nodes: Tensor) -> dict[str, Tensor]:
        """Inputs of the sub-graph induced by `nodes` [n] distinct, in that order, on the device."""
        place = torch.full((len(self),), -1)
        place[nodes] = torch.arange(len(nodes))
        ends = place[self.edge_index]
        inner = (ends >= 0).all(dim=0)
        edges, weights = sort_edges(ends[:, inner], self.edge_weight[inner], len(nodes))
        fields = {"x": self.x[nodes], "edge_index": edges, "edge_weight": weights}
        return {name: values.to(self.device) for name, values in fields.items()}


def sort_edges(edges: Tensor, weights: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Order edges [2, E] and their weights by (target, source)."""
    order = torch.argsort(edges[1] * nodes + edges[0])
    return edges[:, order], weights[order]
