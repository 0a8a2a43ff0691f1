"""Dropout of whole features and of edges, its random draw kept apart from its application.

Sources: masked features, Zhu et al. 2020, "Deep Graph Contrastive Representation Learning" (GRACE,
sec. 3.2); left-out edges, Rong et al. 2020, "DropEdge: Towards Deep Graph Convolutional Networks on
Node Classification" (eq. 2), without a correction of the weights that stay.

A graph is one structure: its nodes cannot be augmented class by class. One draw therefore leaves
out the same features of all nodes, real and synthetic ones, which makes it siamese: a mask of whole
features commutes with propagation and sampling. Edges of two graphs have nothing in common; each
graph loses edges of its own.

Shape suffixes in this file: n items, d features, m nodes of a padded graph, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.rng import generator as stream

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)  # eq: comparing tensors gives tensors, not a bool
class Draw:
    """K draws, which are one and the same, on the CPU.

    Attributes
    ----------
    seeds: [K] int64, what masks of any size are made from; draws of several learners may be joined.
    """

    seeds: Tensor


class GraphDropout:
    """Leaves out features and edges.

    Parameters
    ----------
    features: share of features set to 0 for all nodes; the others are divided by the share that
        stays, as in dropout, so that learners meet features of the same mean without it.
    edges: share of edges left out, both directions together. Nodes without a graph, and features
        that have been propagated before, keep theirs.
    """

    def __init__(self, features: float = 0.2, edges: float = 0.2) -> None:
        for name, share in (("features", features), ("edges", edges)):
            if not 0 <= share < 1:
                raise UserError(
                    f"the share of {name} to leave out is out of range",
                    got=share,
                    expected="0 or more, below 1",
                )
        self.features, self.edges = features, edges

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Draw:
        """One draw for all of `count` items or groups, from a CPU generator."""
        seed = torch.randint(2**62, (1,), generator=generator)
        return Draw(seed.repeat(count))

    def __call__(self, inputs: Inputs, draw: Draw, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Apply a draw to inputs of any form that encoders read; they are not changed.

        Separable items (nodes alone, padded graphs) use the draw of their row: row i, or
        ``rows[i]``. A structure that holds all items uses the first.
        """
        x, adjacency = inputs["x"], inputs.get("adjacency")
        joint = "edge_index" in inputs or (adjacency is not None and adjacency.ndim == 2)
        if joint:
            seeds, owner = draw.seeds[:1], torch.zeros(1, dtype=torch.int64)
        else:
            own = draw.seeds if rows is None else draw.seeds[rows.cpu()]
            seeds, owner = own.unique(return_inverse=True)
        kept = torch.stack([self._features(int(seed), x.shape[-1]) for seed in seeds])[owner]
        shape = [*kept.shape[:1], *[1] * (x.ndim - 2), x.shape[-1]]
        made = {**inputs, "x": x * kept.view(shape).to(x)}
        if not self.edges:
            return made
        if "edge_index" in inputs:
            return {**made, **self._sparse(inputs, int(seeds[0]))}
        if adjacency is not None:
            stays = self._dense(adjacency, seeds, owner)
            made["adjacency"] = adjacency * stays.to(adjacency)
        return made

    def _features(self, seed: int, count: int) -> Tensor:
        """[d] factors on features."""
        kept = torch.rand(count, generator=stream(seed, "features")) >= self.features
        return kept / (1 - self.features)

    def _dense(self, adjacency: Tensor, seeds: Tensor, owner: Tensor) -> Tensor:
        """Which places of [m, m] or [n, m, m] stay: symmetric, drawn anew for every graph."""
        size = adjacency.shape[-1]
        found = torch.empty(len(owner), size, size)
        for place, seed in enumerate(seeds.tolist()):
            chosen = owner == place
            shape = (int(chosen.sum()), size, size)
            upper = torch.rand(shape, generator=stream(seed, "edges")).triu()
            found[chosen] = upper + upper.triu(1).mT
        return (found >= self.edges).view(adjacency.shape)

    def _sparse(self, inputs: Inputs, seed: int) -> dict[str, Tensor]:
        """Weights of 0 for edges that are left out, and the degrees without them.

        Of a part of a larger graph, only edges within the part are left out.
        """
        edge_index, weight, degree = (inputs.get(key) for key in _SPARSE)
        assert edge_index is not None
        assert weight is not None
        low, high = edge_index.min(dim=0).values, edge_index.max(dim=0).values
        pairs, pair = (low * len(inputs["x"]) + high).unique(return_inverse=True)
        numbers = torch.rand(len(pairs), generator=stream(seed, "edges"))
        stays = (numbers >= self.edges).to(weight)[pair]
        made = {"edge_weight": weight * stays}
        if degree is not None:
            lost = torch.zeros_like(degree).index_add(0, edge_index[1], weight * (1 - stays))
            # rounding must not leave a degree below 0 where all edges are gone
            made["degree"] = (degree - lost).clamp_min(0)
        return made


_SPARSE = ("edge_index", "edge_weight", "degree")
