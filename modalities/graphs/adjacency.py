"""Free edges: logits of every pair of nodes that are sampled (DosCond), or of low rank.

Shape suffixes: M stored nodes of one graph, or M stored graphs of n nodes; P = n(n-1)/2 pairs; r
rank. Both work on the two kinds of items; what has [...] in front has no such axis for nodes.
"""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.graphs.representations import (
    ADJACENCY,
    MASK,
    Linked,
    X,
    cropped,
    mirrored,
    of_pairs,
    without_loops,
)
from mmdd.trees import Tree

SLOPE, OFFSET = 10.0, 5.0
"""The logit of an edge of weight a starts at 10 a - 5 (DosCond)."""
START = 0.1
"""Probability of every edge at the start where nothing is known of them."""
COOLEST = 0.01
"""Lowest temperature of the relaxed samples."""


class Free(Linked):
    """Base of those whose edges do not depend on the features.

    Parameters
    ----------
    nodes: n of a synthetic graph; by default the n of the start items. Larger start graphs keep
        their n nodes of highest degree. It is no option for the nodes of one graph.
    """

    def __init__(self, example: Tree, *, nodes: int | None = None) -> None:
        super().__init__(example)
        if nodes is not None and (self.joint or nodes < 1):
            raise UserError(
                "nodes is the number of nodes of a synthetic graph",
                got=nodes,
                expected="none for the nodes of one graph" if self.joint else "1 or more",
            )
        self._wanted_nodes = nodes

    def _fitted(self, values: Tree) -> Tree:
        return values if self._wanted_nodes is None else cropped(values, self._wanted_nodes)

    def _leading(self) -> tuple[int, ...]:
        return tuple(getattr(self, X).shape[:-2])


class FreeAdjacency(Free):
    """Features, and a Bernoulli variable with a free logit for every pair of nodes.

    Jin et al. 2022 (DosCond). During distillation the edges are relaxed samples,
    sigmoid((logit + log u - log(1 - u)) / t), u uniform, one for both directions; otherwise they
    are those with probability above one half. The logits are the leaf ``inputs.adjacency``
    [..., P]: those of the pairs i < j, row by row, so that they are symmetric and no number is
    stored twice.

    `resample` draws u. Nothing of it is stored: a run that draws it for every step from a stream
    named by the number of the step resumes with the same bits.

    Parameters
    ----------
    nodes: see `Free`.
    anneal: steps in which the temperature t falls from 1 to 0.01, geometrically.
    """

    _noise: Tensor | None

    def __init__(self, example: Tree, *, nodes: int | None = None, anneal: int = 200) -> None:
        super().__init__(example, nodes=nodes)
        if anneal < 1:
            raise UserError("anneal counts steps", got=anneal, expected="1 or more")
        self.anneal, self._temperature = anneal, 1.0
        self.register_buffer("_noise", None, persistent=False)

    def _note_form(self, stored: dict[str, Tensor]) -> None:
        self.settled = ADJACENCY in stored and stored[ADJACENCY].dtype == torch.bool

    def _ready(self, stored: dict[str, Tensor], bounds: tuple[Tree, Tree] | None) -> Self:
        made = super()._ready(stored, bounds)
        self._first_density = float(self.density().detach())
        return made

    def _edge_names(self) -> list[str]:
        return [ADJACENCY]

    def _edge_shapes(self) -> dict[str, tuple[int, ...]]:
        return {ADJACENCY: (*self._leading(), self.nodes * (self.nodes - 1) // 2)}

    def _start(self, values: Tree, generator: torch.Generator) -> dict[str, Tensor]:
        x = values["x"]
        if "adjacency" in values:
            return {ADJACENCY: of_pairs(start_logits(values)).to(x)}
        pairs = len(x) * (len(x) - 1) // 2
        return {ADJACENCY: torch.full((pairs,), logit(START)).to(x)}

    def resample(self, generator: torch.Generator | None, step: int = 0) -> None:
        """Draw the edges of step number `step`; None: the edges of the finished set from now on.

        The numbers are drawn on the CPU and do not depend on the device.
        """
        logits = getattr(self, ADJACENCY)
        if generator is None or self.settled:
            self._noise = None
            return
        # open at both ends: neither logarithm may be infinite
        u = torch.rand(logits.shape, generator=generator).clamp_min(torch.finfo().tiny)
        self._noise = (u.log() - (-u).log1p()).to(logits)
        self._temperature = temperature(step, self.anneal)

    def _adjacency(self, index: Tensor | None) -> Tensor:
        logits, noise = self._rows(ADJACENCY, index), self._noise
        dtype = getattr(self, X).dtype
        if noise is None:
            edges = logits if self.settled else logits > 0
            return mirrored(edges.to(dtype), self.nodes)
        noise = noise if index is None else noise[index]
        return mirrored(torch.sigmoid((logits + noise) / self._temperature), self.nodes)

    def density(self) -> Tensor:
        """Mean probability of an edge, over all pairs of unmasked nodes."""
        logits = getattr(self, ADJACENCY)
        chance = logits.float() if self.settled else torch.sigmoid(logits)
        mask = getattr(self, MASK, None)
        real = torch.ones_like(chance) if mask is None else _pairs_of(mask).to(chance)
        return (chance * real).sum() / real.sum().clamp_min(1.0)

    def penalty(self) -> Tensor:
        """By how much `density` is above that of the start, or 0: DosCond's sparsity term."""
        return F.relu(self.density() - self._first_density)

    def settle(self) -> dict[str, Tensor]:
        """The edges of the finished set as booleans [..., P] in place of the logits."""
        stored = super().settle()
        return {**stored, ADJACENCY: stored[ADJACENCY] > 0} if not self.settled else stored


class LowRank(Free):
    """Features, and A = sigmoid((U V^T + V U^T) / 2 + b) with U and V [..., n, r], A_ii = 0.

    With `tied`, V is U. Leaves ``inputs.adjacency.left`` (U), ``.right`` (V), ``.bias`` [...]. The
    decode has no randomness and every edge has a weight. Low-rank adjacencies of graphs to learn
    from are in Xu et al. 2023 (KiDD).

    A start adjacency gives the best approximation of its logits around their mean. Without one,
    U and V are drawn so that logits have about unit variance around that of probability 0.1.

    Parameters
    ----------
    rank: r; graphs of fewer nodes have as many columns as nodes.
    nodes: see `Free`.
    tied: U U^T, whose logits are positive semi-definite up to the bias.
    """

    def __init__(
        self, example: Tree, *, rank: int = 16, nodes: int | None = None, tied: bool = False
    ) -> None:
        super().__init__(example, nodes=nodes)
        if rank < 1:
            raise UserError("rank counts columns", got=rank, expected="1 or more")
        self.rank, self.tied = rank, tied

    def _edge_names(self) -> list[str]:
        factors = ["left"] if self.tied else ["left", "right"]
        return [f"{ADJACENCY}/{part}" for part in (*factors, "bias")]

    def _edge_shapes(self) -> dict[str, tuple[int, ...]]:
        *factors, bias = self._edge_names()
        shape = (*self._leading(), self.nodes, min(self.rank, self.nodes))
        return {**dict.fromkeys(factors, shape), bias: self._leading()}

    def _start(self, values: Tree, generator: torch.Generator) -> dict[str, Tensor]:
        x = values["x"]
        rank = min(self.rank, x.shape[-2])
        if "adjacency" in values:
            left, right, bias = factors_of(values, rank, tied=self.tied)
        else:
            drawn = torch.randn(2, len(x), rank, generator=generator)
            # the sum of r products of two such numbers has unit variance
            left, right = (drawn / rank**0.25).unbind(0)
            bias = torch.tensor(logit(START))
        parts = (left, bias) if self.tied else (left, right, bias)
        return {name: part.to(x) for name, part in zip(self._edge_names(), parts, strict=True)}

    def _adjacency(self, index: Tensor | None) -> Tensor:
        *factors, bias = (self._rows(name, index) for name in self._edge_names())
        product = factors[0] @ factors[-1].mT
        logits = (product + product.mT) / 2 + bias[..., None, None]
        return mirrored(torch.sigmoid(of_pairs(logits)), self.nodes)


# -- logits ----------------------------------------------------------------------------------------


def logit(probability: float) -> float:
    """log(p / (1 - p))."""
    return math.log(probability / (1 - probability))


def temperature(step: int, anneal: int = 200) -> float:
    """0.01^(k / anneal), at least 0.01: the schedule of DosCond."""
    return max(COOLEST, COOLEST ** (step / anneal))


def start_logits(values: Tree) -> Tensor:
    """10 A - 5 [..., n, n]; a pair that is joined in one direction is joined."""
    adjacency: Tensor = values["adjacency"]
    return SLOPE * torch.maximum(adjacency, adjacency.mT) - OFFSET


def factors_of(values: Tree, rank: int, *, tied: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Factors [..., n, r] (two) and bias [...] that come closest to the start logits.

    The bias is their mean over the pairs; the factors are the eigenvectors of the rest with the
    eigenvalues of largest modulus, or the largest positive ones if both are to be the same.
    """
    logits = start_logits(values).double()
    mask = values.get("mask")
    if mask is None:
        mask = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    real = without_loops((mask[..., None] & mask[..., None, :]).double())
    bias = (logits * real).sum(dim=(-2, -1)) / real.sum(dim=(-2, -1)).clamp_min(1.0)
    found = torch.linalg.eigh((logits - bias[..., None, None]) * real)
    spectrum, vectors = found.eigenvalues, found.eigenvectors
    weight = spectrum.clamp_min(0.0) if tied else spectrum.abs()
    order = weight.argsort(dim=-1, descending=True)[..., :rank]
    columns = vectors.gather(-1, order[..., None, :].expand(*vectors.shape[:-1], rank))
    root = weight.gather(-1, order).sqrt()[..., None, :]
    sign = spectrum.gather(-1, order).sign()[..., None, :]
    return columns * root, columns * root * sign, bias


def _pairs_of(mask: Tensor) -> Tensor:
    """[..., n] -> [..., P]: both nodes are unmasked."""
    return of_pairs(mask[..., :, None] & mask[..., None, :])
