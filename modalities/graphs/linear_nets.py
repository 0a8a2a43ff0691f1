"""Encoders whose layers are linear maps, with propagations before or behind them: SGC, MLP, APPNP.

Parameters are drawn as `torch.nn.Linear` draws them, which is what PyTorch Geometric's SGConv and
MLP do.

Shape suffixes in this file: n nodes, d features; padded graphs lead with one more axis.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.graphs.nets import GraphEncoder, Level, require_sizes
from mmdd.modalities.graphs.pooling import Pool
from mmdd.modalities.graphs.propagate import Neighbours, in_cheaper_order


class Propagated(nn.Linear):
    """``A^K x W^T + b``: a linear layer behind K propagations, in the cheaper order."""

    def forward(self, x: Tensor, edges: Neighbours | None = None, hops: int = 0) -> Tensor:
        """[..., n, d] -> [..., n, d']."""
        if edges is None or not hops:
            return F.linear(x, self.weight, self.bias)
        smaller = self.out_features < self.in_features
        spread = partial(propagated, edges=edges, hops=hops)
        project = partial(F.linear, weight=self.weight)
        return in_cheaper_order(spread, project, x, smaller=smaller) + self.bias


def propagated(x: Tensor, edges: Neighbours, hops: int) -> Tensor:
    """``A^hops x``, [..., n, d]."""
    for _ in range(hops):
        x = edges.add(x)
    return x


class LinearNet(GraphEncoder):
    """`layers` linear maps with ReLU between them, the first behind `before` propagations.

    At level ``graph`` the last map reads the pooled states.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        level: Level,
        *,
        width: int,
        layers: int,
        dropout: float,
        pool: Pool,
        before: int = 0,
    ) -> None:
        require_sizes(features=features, classes=classes, width=width, layers=layers)
        super().__init__(level, before, dropout, pool)
        self.before = before
        sizes = [features, *[width] * (layers - 1)]
        self.hidden = nn.ModuleList(Propagated(*pair) for pair in pairwise(sizes))
        if level == "graph":
            self.classifier = nn.Linear(sizes[-1], classes)
        else:
            self.last = Propagated(sizes[-1], classes)

    def weighted(self, edges: Neighbours) -> Neighbours:
        """GCN's normalisation, where the graph is used."""
        return edges.symmetric(loops=True) if self.hops else edges

    def states(self, x: Tensor, edges: Neighbours) -> list[Tensor]:
        """Hidden states; of one layer, the propagated features."""
        return self.hidden_states(x, edges) or [propagated(x, edges, self.before)]

    def predict(self, x: Tensor, edges: Neighbours) -> Tensor:
        """The last map of the hidden states."""
        found: Tensor
        if not self.hidden:
            found = self.last(x, edges, self.before)
            return found
        found = self.last(self.dropout(self.hidden_states(x, edges)[-1]))
        return found

    def hidden_states(self, x: Tensor, edges: Neighbours) -> list[Tensor]:
        """What every map but the last gives, after ReLU."""
        found: list[Tensor] = []
        for layer in self.hidden:
            h = layer(self.dropout(found[-1])) if found else layer(x, edges, self.before)
            found.append(F.relu(h))
        return found


class SGC(LinearNet):
    """Simplified graph convolution (Wu et al. 2019, eq. 8): ``A_hat^K X W``, here with a bias.

    Parameters
    ----------
    hops: K.
    layers: linear maps of the propagated features: 1 is the published net.

    A_hat is GCN's. Without edges it is the identity.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        level: Level = "node",
        *,
        hops: int = 2,
        width: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
        pool: Pool = "mean",
    ) -> None:
        require_sizes(hops=hops)
        shared: dict[str, Any] = {"width": width, "layers": layers, "dropout": dropout}
        super().__init__(features, classes, level, before=hops, pool=pool, **shared)
        if level == "node":
            self.linear_hops = hops


class MLP(LinearNet):
    """Linear maps of each node's own features, with ReLU between them; edges are not looked at."""

    def __init__(
        self,
        features: int,
        classes: int,
        level: Level = "node",
        *,
        width: int = 256,
        layers: int = 2,
        dropout: float = 0.5,
        pool: Pool = "mean",
    ) -> None:
        shared: dict[str, Any] = {"width": width, "layers": layers, "dropout": dropout}
        super().__init__(features, classes, level, pool=pool, **shared)
        if level == "node":
            self.linear_hops = 0


class APPNP(LinearNet):
    """An MLP whose outputs spread by personalised PageRank (Gasteiger et al. 2019, eq. 4).

    Parameters
    ----------
    hops: K steps of ``Z <- (1 - alpha) A_hat Z + alpha Z_0``, Z_0 the outputs of the MLP.
    alpha: probability of a jump back, from 0 to 1.

    At level ``graph`` the last hidden states spread, and are pooled. A_hat is GCN's; without edges
    it is the identity, and the net an MLP.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        level: Level = "node",
        *,
        hops: int = 10,
        alpha: float = 0.1,
        width: int = 256,
        layers: int = 2,
        dropout: float = 0.5,
        pool: Pool = "mean",
    ) -> None:
        require_sizes(hops=hops)
        if not 0 <= alpha <= 1:
            raise UserError("alpha is out of range", got=alpha, expected="a number from 0 to 1")
        shared: dict[str, Any] = {"width": width, "layers": layers, "dropout": dropout}
        super().__init__(features, classes, level, pool=pool, **shared)
        self.hops, self.alpha = hops, alpha

    def extra_repr(self) -> str:
        """What decides the results beside the layers."""
        return f"{super().extra_repr()}, alpha={self.alpha}"

    def states(self, x: Tensor, edges: Neighbours) -> list[Tensor]:
        """Hidden states of the MLP; those that will be pooled have spread."""
        found = super().states(x, edges)
        if self.level == "graph":
            found[-1] = self._spread(found[-1], edges)
        return found

    def predict(self, x: Tensor, edges: Neighbours) -> Tensor:
        """The outputs of the MLP, spread."""
        return self._spread(super().predict(x, edges), edges)

    def _spread(self, start: Tensor, edges: Neighbours) -> Tensor:
        z = start
        for _ in range(self.hops):
            z = (1 - self.alpha) * edges.add(z) + self.alpha * start
        return z
