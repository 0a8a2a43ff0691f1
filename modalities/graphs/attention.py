"""Attention over weighted neighbours (GAT), of dense, sparse and absent adjacency alike.

Source: Velickovic et al. 2018, "Neighbours Attention Networks", eq. 1-5. Weights enter as

    alpha_ij = w_ij exp(s_ij) / sum_k w_ik exp(s_ik),    s_ij = LeakyReLU(a_i + b_j),    w_ii = 1,

the softmax of ``s_ij + log w_ij``: weights of 1 and 0 give GAT as published, and it stays
differentiable where a weight is 0.

Shape suffixes in this file: n nodes, H heads, D features of a head, E edges.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdd.modalities.graphs.propagate import Dense, Neighbours, Sparse, product, with_loops

CAP = 60.0
"""Scores of edges with weight 0 may lie above those of all others; exp of the difference is cut
here, so that it stays finite. It only shows in the derivative by such a weight."""

Drop = Callable[[Tensor], Tensor]


def attend(graph: Neighbours, h: Tensor, a: Tensor, b: Tensor, slope: float, drop: Drop) -> Tensor:
    """[..., n, H, D] mean of the states `h` of each node and its neighbours, by attention.

    Parameters
    ----------
    h: [..., n, H, D].
    a, b: [..., n, H] scores of a node as a target and as a source.
    slope: LeakyReLU's, for negative scores.
    drop: dropout of the coefficients.
    """
    if isinstance(graph, Dense):
        return _dense(graph, h, a, b, slope, drop)
    own = F.leaky_relu(a + b, slope)
    if isinstance(graph, Sparse):
        return _sparse(graph, h, a, b, own, slope, drop)
    # A node's own share is all there is: 1, with a gradient of 0.
    share = (own - own.detach()).exp()
    return drop(share / share).unsqueeze(-1) * h


def _dense(graph: Dense, h: Tensor, a: Tensor, b: Tensor, slope: float, drop: Drop) -> Tensor:
    weights = with_loops(graph.adjacency).unsqueeze(-3)
    scores = F.leaky_relu(a.mT.unsqueeze(-1) + b.mT.unsqueeze(-2), slope)
    top = scores.detach().masked_fill(weights.detach() == 0, -torch.inf).amax(-1, keepdim=True)
    shares = weights * (scores - top).clamp_max(CAP).exp()
    alpha = drop(shares / shares.sum(dim=-1, keepdim=True))
    return (alpha @ h.transpose(-2, -3)).transpose(-2, -3)


def _sparse(
    graph: Sparse, h: Tensor, a: Tensor, b: Tensor, own: Tensor, slope: float, drop: Drop
) -> Tensor:
    source, target = graph.edge_index
    weight = graph.weight.unsqueeze(-1)
    scores = F.leaky_relu(a[target] + b[source], slope)
    top = _largest(own.detach(), scores.detach(), weight.detach(), target)
    shares = weight * (scores - top[target]).clamp_max(CAP).exp()
    self_share = (own - top).exp()
    total = self_share.index_add(0, target, shares)
    alpha, self_alpha = drop(shares / total[target]), drop(self_share / total)
    # Head by head: side by side they would take E x H x D numbers.
    sums = [product(graph.structure, alpha[:, k], h[:, k]) for k in range(h.shape[1])]
    return torch.stack(sums, dim=1) + self_alpha.unsqueeze(-1) * h


def _largest(own: Tensor, scores: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """[n, H] largest score at each node, its own included, of edges whose weight is not 0."""
    alive = scores.masked_fill(weight == 0, -torch.inf)
    return own.scatter_reduce(0, target.unsqueeze(-1).expand_as(alive), alive, "amax")
