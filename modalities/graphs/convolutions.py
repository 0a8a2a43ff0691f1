"""Encoders of stacked graph convolutions: GCN, GraphSAGE, ChebNet, GIN, GAT.

The layers of PyTorch Geometric hold the parameters and draw them; what is computed with them is
written here, once for dense, sparse and absent adjacency, since message passing knows no dense
weights, draws normalisations from the edges at hand alone, and in SAGE, GIN and GAT no weights at
all. With weights of 1 and 0 every layer gives what PyTorch Geometric's does.

Shape suffixes in this file: n nodes, d features, H heads; padded graphs lead with one more axis.
"""

from __future__ import annotations

import abc
from functools import partial
from itertools import islice, pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import ChebConv, GATConv, GCNConv, GINConv, SAGEConv

from mmdd.errors import UserError
from mmdd.modalities.graphs.attention import attend
from mmdd.modalities.graphs.nets import GraphEncoder, Level, require_sizes
from mmdd.modalities.graphs.pooling import Pool
from mmdd.modalities.graphs.propagate import Neighbours, in_cheaper_order, mapped


class ConvolutionNet(GraphEncoder):
    """`layers` graph convolutions with ReLU between them.

    At level ``node`` the last one gives the logits. At level ``graph`` ReLU follows the last one
    too, its states are pooled, and a linear layer gives the logits (as DosCond's graph nets do).
    """

    reach = 1
    """Hops of one convolution."""

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
        require_sizes(features=features, classes=classes, width=width, layers=layers)
        super().__init__(level, layers * self.reach, dropout, pool)
        sizes = [features, *[width] * (layers - 1), classes if level == "node" else width]
        hidden = [True] * (layers - 1) + [level == "graph"]
        pairs = zip(pairwise(sizes), hidden, strict=True)
        self.convolutions = nn.ModuleList(self.made(*pair, hidden=kept) for pair, kept in pairs)
        if level == "graph":
            self.classifier = nn.Linear(width, classes)

    @abc.abstractmethod
    def made(self, inputs: int, outputs: int, *, hidden: bool) -> nn.Module:
        """A layer's parameters; `hidden` is False for the one that gives the logits."""

    @abc.abstractmethod
    def convolved(self, layer: Any, x: Tensor, edges: Neighbours) -> Tensor:
        """[..., n, d] -> [..., n, d'] by a layer's parameters."""

    def activated(self, h: Tensor) -> Tensor:
        """What follows a hidden layer."""
        return F.relu(h)

    def weighted(self, edges: Neighbours) -> Neighbours:
        """The weights as they are."""
        return edges

    def states(self, x: Tensor, edges: Neighbours) -> list[Tensor]:
        """Hidden states; of one layer at level ``node``, the features."""
        found: list[Tensor] = []
        count = len(self.convolutions) - (self.level == "node")
        for layer in islice(self.convolutions, count):
            h = self.dropout(found[-1]) if found else x
            found.append(self.activated(self.convolved(layer, h, edges)))
        return found or [x]

    def predict(self, x: Tensor, edges: Neighbours) -> Tensor:
        """The last convolution of the last hidden states."""
        h = self.states(x, edges)[-1]
        if len(self.convolutions) > 1:
            h = self.dropout(h)
        return self.convolved(self.convolutions[-1], h, edges)


class GCN(ConvolutionNet):
    """Kipf & Welling 2017, eq. 2: ``A_hat X W + b``. Without edges A_hat is the identity."""

    def made(self, inputs: int, outputs: int, *, hidden: bool) -> GCNConv:
        """Glorot-uniform weights, biases of 0."""
        return GCNConv(inputs, outputs)

    def weighted(self, edges: Neighbours) -> Neighbours:
        """With loops of weight 1, divided by the roots of both ends' degrees."""
        return edges.symmetric(loops=True)

    def convolved(self, layer: GCNConv, x: Tensor, edges: Neighbours) -> Tensor:
        """Projects before it propagates, unless that makes the states larger."""
        smaller = layer.out_channels < layer.in_channels
        project = partial(mapped, layer.lin)
        return in_cheaper_order(edges.add, project, x, smaller=smaller) + layer.bias


class SAGE(ConvolutionNet):
    """Hamilton et al. 2017, alg. 1 with the mean: ``W_1 mean_j(x_j) + W_2 x_i + b``.

    The mean is weighted by w_ij. For a node without neighbours it is 0, so that without edges
    ``W_2 x_i + b`` is left.
    """

    def made(self, inputs: int, outputs: int, *, hidden: bool) -> SAGEConv:
        """Drawn like `torch.nn.Linear`."""
        return SAGEConv(inputs, outputs)

    def weighted(self, edges: Neighbours) -> Neighbours:
        """Weights that average neighbours."""
        return edges.mean()

    def convolved(self, layer: SAGEConv, x: Tensor, edges: Neighbours) -> Tensor:
        """Of neighbours and of the node itself."""
        smaller = layer.out_channels < layer.in_channels
        # the bias is no part of the mean: it stays where there are no neighbours
        project = partial(F.linear, weight=layer.lin_l.weight)
        mean = in_cheaper_order(edges.add, project, x, smaller=smaller)
        return mean + layer.lin_l.bias + mapped(layer.lin_r, x)


class Cheby(ConvolutionNet):
    """Defferrard et al. 2016, eq. 4: ``sum_k T_k(L) X W_k + b`` for k below `order`.

    Parameters
    ----------
    order: number K of Chebyshev polynomials, T_0 to T_{K-1}; the filter size of the paper.

    L is the normalised Laplacian scaled by a largest eigenvalue of 2, so that it becomes
    ``-D^{-1/2} A D^{-1/2}``. Without edges it is 0: T_0 is the identity, T_1 is 0, T_2 is minus
    the identity.
    """

    def __init__(
        self, features: int, classes: int, level: Level = "node", *, order: int = 2, **shared: Any
    ) -> None:
        require_sizes(order=order)
        self.order, self.reach = order, order - 1
        super().__init__(features, classes, level, **shared)

    def made(self, inputs: int, outputs: int, *, hidden: bool) -> ChebConv:
        """Glorot-uniform weights, biases of 0."""
        return ChebConv(inputs, outputs, self.order)

    def weighted(self, edges: Neighbours) -> Neighbours:
        """Minus the scaled Laplacian."""
        return edges.symmetric(loops=False)

    def convolved(self, layer: ChebConv, x: Tensor, edges: Neighbours) -> Tensor:
        """By Clenshaw's recurrence, which propagates projected features alone.

        ``b_k = X W_k + 2 L b_{k+1} - b_{k+2}``, and the sum is ``X W_0 + L b_1 - b_2``.
        """
        after, later = None, None
        for place in range(self.order - 1, -1, -1):
            term = layer.lins[place](x)
            if after is not None:
                factor = -1.0 if place == 0 else -2.0
                term = term + factor * edges.add(after)
            if later is not None:
                term = term - later
            after, later = term, after
        return after + layer.bias


class GIN(ConvolutionNet):
    """Xu et al. 2019, eq. 4.1: ``MLP((1 + eps) x_i + sum_j w_ij x_j)``, the MLP of two layers.

    Parameters
    ----------
    eps: fixed.

    Without edges the sum is 0. No batch norm, other than in the published nets: the items of a
    batch do not see each other.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        level: Level = "node",
        *,
        eps: float = 0.0,
        width: int = 64,
        layers: int = 3,
        dropout: float = 0.5,
        pool: Pool = "sum",
    ) -> None:
        self.eps, self.width = eps, width
        shared: dict[str, Any] = {"width": width, "layers": layers, "dropout": dropout}
        super().__init__(features, classes, level, pool=pool, **shared)

    def made(self, inputs: int, outputs: int, *, hidden: bool) -> GINConv:
        """Drawn like `torch.nn.Linear`."""
        first, second = nn.Linear(inputs, self.width), nn.Linear(self.width, outputs)
        return GINConv(nn.Sequential(first, nn.ReLU(), second), eps=self.eps)

    def extra_repr(self) -> str:
        """What decides the results beside the layers."""
        return f"{super().extra_repr()}, eps={self.eps}"

    def convolved(self, layer: GINConv, x: Tensor, edges: Neighbours) -> Tensor:
        """The MLP's first layer is linear, so that it may come before the sum."""
        first, activation, second = layer.nn

        def summed(h: Tensor) -> Tensor:
            return (1 + layer.eps) * h + edges.add(h)

        smaller = first.out_features < first.in_features
        project = partial(F.linear, weight=first.weight)
        h = in_cheaper_order(summed, project, x, smaller=smaller) + first.bias
        found: Tensor = second(activation(h))
        return found


class GAT(ConvolutionNet):
    """Velickovic et al. 2018; weighted as in `attention.attend`, ELU between the layers.

    Parameters
    ----------
    width: size of a hidden layer, all heads together.
    heads: of a hidden layer; the last one at level ``node`` has one.

    Dropout also acts on the coefficients. Every node attends to itself with weight 1; without
    edges, to nothing else.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        level: Level = "node",
        *,
        heads: int = 8,
        width: int = 64,
        layers: int = 2,
        dropout: float = 0.5,
        pool: Pool = "mean",
    ) -> None:
        require_sizes(heads=heads)
        if width % heads:
            raise UserError(
                "width is shared out among the heads",
                got=width,
                expected=f"a multiple of heads, {heads}",
            )
        self.heads = heads
        shared: dict[str, Any] = {"width": width, "layers": layers, "dropout": dropout}
        super().__init__(features, classes, level, pool=pool, **shared)

    def made(self, inputs: int, outputs: int, *, hidden: bool) -> GATConv:
        """Glorot-uniform weights and attention vectors, biases of 0."""
        heads = self.heads if hidden else 1
        return GATConv(inputs, outputs // heads, heads)

    def activated(self, h: Tensor) -> Tensor:
        """ELU, as published."""
        return F.elu(h)

    def convolved(self, layer: GATConv, x: Tensor, edges: Neighbours) -> Tensor:
        """Heads side by side."""
        h = mapped(layer.lin, x).unflatten(-1, (layer.heads, -1))
        a, b = (h * layer.att_dst).sum(dim=-1), (h * layer.att_src).sum(dim=-1)
        found = attend(edges, h, a, b, layer.negative_slope, self.dropout)
        return found.flatten(-2) + layer.bias
