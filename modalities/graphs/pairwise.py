"""An adjacency that a small net makes from the features of every pair of nodes (GCond).

Shape suffixes: M nodes, d features, h hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.graphs.representations import ADJACENCY, Linked, X, mirrored, of_pairs
from mmdd.trees import Tree

EPSILON = 1e-5
"""Added to variances, as by PyTorch's batch norm."""


class Pairwise(Linked):
    """Features, and A_ij = sigmoid((f(x_i, x_j) + f(x_j, x_i)) / 2), A_ii = 0.

    Jin et al. 2022 (GCond): f is a net of three linear layers, batch norm and ReLU after the
    first two. Batch norm takes the statistics of all M^2 pairs, always: there is no running state.
    The derivative with respect to the features passes through the adjacency as well.

    The first two layers have no bias, since the batch norm behind them would take it away. Leaves
    under ``inputs.adjacency``: ``first`` [h, 2d], ``first_scale`` and ``first_shift`` [h],
    ``second`` [h, h], ``second_scale`` and ``second_shift`` [h], ``last`` [1, h], ``last_bias``
    [1]; they start as PyTorch's layers do.

    A finished set can be settled: the dense [M, M] adjacency takes the place of the net.

    Parameters
    ----------
    width: h, 128 in the paper (256 for its largest graphs).
    """

    def __init__(self, example: Tree, *, width: int = 128) -> None:
        super().__init__(example)
        if not self.joint:
            raise UserError(
                "a pairwise adjacency joins the nodes of one graph",
                got="whole graphs",
                expected="nodes",
                hint="Use representation 'bernoulli' or 'low-rank' for whole graphs.",
            )
        if width < 1:
            raise UserError("width counts the hidden units", got=width, expected="1 or more")
        self.width = width

    def _net_shapes(self) -> dict[str, tuple[int, ...]]:
        h = self.width
        return {
            "first": (h, 2 * self.features),
            "first_scale": (h,),
            "first_shift": (h,),
            "second": (h, h),
            "second_scale": (h,),
            "second_shift": (h,),
            "last": (1, h),
            "last_bias": (1,),
        }

    def _note_form(self, stored: dict[str, Tensor]) -> None:
        self.settled = ADJACENCY in stored
        if self.settled:
            self._fixed.add(ADJACENCY)

    def _edge_names(self) -> list[str]:
        return [ADJACENCY] if self.settled else [_named(part) for part in self._net_shapes()]

    def _edge_shapes(self) -> dict[str, tuple[int, ...]]:
        if self.settled:
            return {ADJACENCY: (self.nodes, self.nodes)}
        return {_named(part): shape for part, shape in self._net_shapes().items()}

    def _start(self, values: Tree, generator: torch.Generator) -> dict[str, Tensor]:
        """PyTorch's rule: weights and bias uniform below 1 / sqrt(inputs), scale 1, shift 0."""
        started = {}
        for part, shape in self._net_shapes().items():
            if part.endswith("_scale"):
                value = torch.ones(shape)
            elif part.endswith("_shift"):
                value = torch.zeros(shape)
            else:
                inputs = self.width if part == "last_bias" else shape[-1]
                value = (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(inputs)
            started[_named(part)] = value.to(values["x"])
        return started

    def _adjacency(self, index: Tensor | None) -> Tensor:
        if self.settled:
            settled: Tensor = getattr(self, ADJACENCY)
            return settled
        net = {part: getattr(self, _named(part)) for part in self._net_shapes()}
        return pairwise_adjacency(getattr(self, X), net)

    @torch.no_grad()
    def settle(self) -> dict[str, Tensor]:
        """Features and the dense adjacency ``inputs/adjacency`` [M, M] in place of the net."""
        return {X: getattr(self, X).clone(), ADJACENCY: self._adjacency(None).clone()}


def _named(part: str) -> str:
    return f"{ADJACENCY}/{part}"


def pairwise_adjacency(x: Tensor, net: Mapping[str, Tensor]) -> Tensor:
    """[M, d] features and the tensors of f, by the names of `Pairwise` -> [M, M].

    f is never given the [M^2, 2d] matrix of pairs. Its first layer is a sum of two terms of one
    node each, W [x_i; x_j] = V x_i + U x_j; over all pairs the two are uncorrelated, so that mean
    and variance of the sum are sums of theirs and the batch norm is applied to the nodes. The
    largest tensors are [M, M, h]. A pure function of its arguments.
    """
    if len(x) == 1:
        return x.new_zeros(1, 1)
    one, other = (x @ half.T for half in net["first"].chunk(2, dim=1))
    variance = one.var(dim=0, correction=0) + other.var(dim=0, correction=0)
    scale = net["first_scale"] / torch.sqrt(variance + EPSILON)
    one, other = ((part - part.mean(dim=0)) * scale for part in (one, other))
    hidden = F.relu(one[:, None] + (other + net["first_shift"]))
    hidden = F.linear(hidden.flatten(0, 1), net["second"])
    shift = net["second_shift"]
    hidden = F.batch_norm(
        hidden, None, None, net["second_scale"], shift, training=True, eps=EPSILON
    )
    score = F.linear(F.relu(hidden), net["last"], net["last_bias"]).view(len(x), len(x))
    return mirrored(torch.sigmoid(of_pairs((score + score.T) / 2)), len(x))
