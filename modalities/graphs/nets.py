"""What all graph encoders share.

An encoder reads the dicts that `propagate.read` takes and gives one row per item: per node, or per
graph, whose nodes are pooled. Dropout acts between layers and not on the features that are read,
as in the field's evaluation (GCond). Parameters are drawn as PyTorch Geometric draws them.

Shape suffixes in this file: n items, d features; node states of padded graphs lead with [n, m].
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from mmdd.errors import UserError, unknown_name
from mmdd.modalities.graphs.pooling import POOLS, Pool, pooled
from mmdd.modalities.graphs.propagate import Neighbours, read

Level = Literal["node", "graph"]
LEVELS: tuple[Level, ...] = ("node", "graph")
Inputs = Mapping[str, Tensor]


class GraphEncoder(nn.Module, abc.ABC):
    """Layers of node states, and what turns the last of them into logits.

    Attributes
    ----------
    level: what an item is, a ``node`` or a whole ``graph``.
    hops: how far away a node may be that a node's logits depend on.
    linear_hops: K, where the graph is only used to propagate the features K times before anything
        else, so that ``A_hat^K x`` may be handed over in their place, without edges; else None.
    classifier: at level ``graph`` the linear layer on the pooled states, else None.
    """

    mixes_items = False

    def __init__(self, level: Level, hops: int, dropout: float, pool: Pool) -> None:
        super().__init__()
        if level not in LEVELS:
            raise unknown_name("level", level, LEVELS)
        if pool not in POOLS:
            raise unknown_name("pool", pool, POOLS)
        if not 0 <= dropout < 1:
            raise UserError("dropout is out of range", got=dropout, expected="0 or more, below 1")
        self.level, self.hops, self.pool = level, hops, pool
        self.linear_hops: int | None = None
        self.dropout = nn.Dropout(dropout)
        self.classifier: nn.Module | None = None

    def extra_repr(self) -> str:
        """What decides the results beside the layers: experts are kept by an encoder's `repr`."""
        pool = f", pool={self.pool}" if self.level == "graph" else ""
        return f"level={self.level}, hops={self.hops}{pool}"

    @abc.abstractmethod
    def weighted(self, edges: Neighbours) -> Neighbours:
        """The normalised weights that all layers sum with."""

    @abc.abstractmethod
    def states(self, x: Tensor, edges: Neighbours) -> list[Tensor]:
        """Node states after every layer but the last, which reads the last ones of them.

        A net of one layer has none: the only entry is what its layer reads.
        """

    @abc.abstractmethod
    def predict(self, x: Tensor, edges: Neighbours) -> Tensor:
        """Logits [n, classes] of nodes with the features `x`."""

    def layers(self, inputs: Inputs) -> list[Tensor]:
        """Hidden states of every layer, each [n, D_l]; the last ones are `features`."""
        x, edges = read(inputs)
        found = self.states(x, self.weighted(edges))
        return found if self.level == "node" else [pooled(h, inputs, self.pool) for h in found]

    def features(self, inputs: Inputs) -> Tensor:
        """[n, D] what the last layer reads, before dropout."""
        x, edges = read(inputs)
        last = self.states(x, self.weighted(edges))[-1]
        return last if self.level == "node" else pooled(last, inputs, self.pool)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits [n, classes]."""
        if self.classifier is not None:
            found: Tensor = self.classifier(self.dropout(self.features(inputs)))
            return found
        x, edges = read(inputs)
        return self.predict(x, self.weighted(edges))


def require_sizes(**sizes: int) -> None:
    """Refuse sizes below 1, by name."""
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} is too small", got=size, expected="at least 1")
