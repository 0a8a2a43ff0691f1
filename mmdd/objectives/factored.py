"""Gradient matching without synthetic gradients, for nets whose matched layers are linear.

What a mean loss of items teaches a linear layer is a product of two thin matrices (backpropagation,
Rumelhart et al. 1986): with the layer's inputs X [m, I] and the derivatives E [m, O] of the mean
loss with respect to its outputs, the gradient is E^T X for the weight and the sum of the rows of E
for the bias. Items do not meet in such a net, so that one pass forth and back serves all groups.
With e_i, column i of E, the products that distances between a real gradient a and a synthetic one b
are made of need no b,

    <a_i, b_i> = sum_j E_ji <a_i, x_j>,    |b_i|^2 = e_i^T (X X^T) e_i,

which is less work as long as a group has few synthetic items.

Shape suffixes: B groups and m items of each in a block, O outputs and I inputs of a layer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.learner import Learner, Params
from mmdd.objectives.batch_norm import frozen_statistics, widened
from mmdd.objectives.distances import DISTANCES, EPS, Distance
from mmdd.objectives.inner import differentiable_twice, filled
from mmdd.objectives.linear_layers import Layers, Seen, formed, noted
from mmdd.objectives.pairs import Pair, block
from mmdd.trees import Tree, tree_map, tree_take

BLOCK = 2**23
"""Numbers, about, that the real gradients and the activations of groups compared at once hold."""
GRAPH = 4
"""Times that gradients are held where synthetic ones are formed, and differentiated."""
HALF_WORK = 1e8
"""Multiply-adds x 2 from which on products in half precision are worth the casts."""


class Products(NamedTuple):
    """Of the real gradients a and the synthetic ones b of every output unit, [B, O] each."""

    ab: Tensor
    aa: Tensor
    bb: Tensor


class Real(NamedTuple):
    """Gradients of real groups: [B, O, I] or [B, O] by name, or factors by the name of a layer."""

    formed: Params
    factors: dict[str, Seen]


# -- distances -------------------------------------------------------------------------------------


def products(real: Real, seen: dict[str, Seen], layers: Layers) -> dict[str, Products]:
    """Products of real and synthetic gradients, by name."""
    found = {}
    for name, layer, kind in layers.names():
        errors, inputs = seen[layer]
        if kind == "bias":
            a, b = real.formed[name], errors.sum(dim=1)
            found[name] = Products(a * b, a.square(), b.square())
        elif not layers.short(layer, errors.shape[1]):
            a, b = real.formed[name], torch.bmm(errors.mT, inputs)
            found[name] = Products(*((x * y).sum(dim=2) for x, y in ((a, b), (a, a), (b, b))))
        else:
            if layer in real.factors:
                aa, onto = _with_factors(real.factors[layer], inputs)
            else:
                a = real.formed[name]
                aa, onto = torch.linalg.vector_norm(a, dim=2).square(), torch.bmm(inputs, a.mT)
            bb = errors * torch.bmm(torch.bmm(inputs, inputs.mT), errors)
            found[name] = Products((errors * onto).sum(dim=1), aa, bb.sum(dim=1))
    return found


def _with_factors(real: Seen, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """|a_i|^2 [B, O] and <a_i, x_j> [B, m, O] of a real gradient that is not formed."""
    errors = real.errors.to(inputs.dtype)
    aa = errors * torch.bmm(torch.bmm(real.inputs, real.inputs.mT), real.errors)
    return aa.sum(dim=1), torch.bmm(torch.bmm(inputs, real.inputs.to(inputs.dtype).mT), errors)


def distance_of(kind: Distance, found: dict[str, Products]) -> Tensor:
    """[B] the distances of `mmdd.objectives.distances`, but l1, from products.

    Squared distances are differences of nearly equal numbers where a and b are: in float32 they
    are as good as 1e-7 times the squared lengths, and never below zero.
    """
    if kind == "layerwise-cosine":
        rows = [_gap(*parts) for name, parts in found.items() if name.endswith("weight")]
        return torch.cat(rows, dim=1).sum(dim=1)
    ab, aa, bb = (torch.cat(parts, dim=1).sum(dim=1) for parts in zip(*found.values(), strict=True))
    if kind == "cosine":
        return _gap(ab, aa, bb)
    apart = (aa + bb - 2 * ab).clamp_min(0)
    return apart if kind == "mse" else apart / aa.clamp_min(torch.finfo(aa.dtype).tiny)


def _gap(ab: Tensor, aa: Tensor, bb: Tensor) -> Tensor:
    """One minus the cosine; lengths are held away from zero, where a root has no derivative."""
    tiny = torch.finfo(aa.dtype).tiny
    lengths = aa.clamp_min(tiny).sqrt() * bb.clamp_min(tiny).sqrt()
    # Where items cancel out, little but rounding may be left of a length: no cosine is beyond 2.
    lengths = torch.maximum(lengths, ab.detach().abs() / 2)
    return 1 - ab / (lengths + EPS)


# -- at one net ------------------------------------------------------------------------------------


class Factored:
    """Compares real with synthetic gradients at one net, a block of groups at a time."""

    def __init__(self, learner: Learner, layers: Layers, distance: Distance) -> None:
        self.learner, self.layers, self.distance = learner, layers, distance
        self.wide = torch.float64 if learner.dtype == torch.float64 else torch.float32
        # a net whose other layers are not linear keeps the learner's precision
        held = {name.rpartition(".")[0] for name in learner.trainable_names}
        self.rounds = learner.rounds and held <= layers.matched.keys()

    def __call__(self, net: Params, pair: Pair, by_size: bool) -> tuple[Tensor, list[Tensor]]:
        """Value, and its derivatives with respect to the leaves that ask for them."""
        params = {name: widened(value.detach(), self.wide) for name, value in net.items()}
        gradients = [torch.zeros_like(leaf) for leaf in pair.learned()]
        total = torch.zeros((), dtype=self.wide, device=self.learner.device)
        if not len(pair.common):
            return total, gradients
        factors = (pair.sizes() if by_size else torch.ones_like(pair.common)).to(self.wide)
        at_once, narrow = self._at_once(pair), self._precision(pair.real)
        # cast here, so that few numbers are moved when groups are picked out
        inputs = tree_map(lambda leaf: widened(leaf, narrow), pair.real.inputs)
        real = pair.real.with_inputs(inputs)
        parts = (values.split(at_once) for values in (pair.common, factors))
        with frozen_statistics(self.learner):
            for groups, factor in zip(*parts, strict=True):
                target = self._real(params, real, groups, narrow, pair.largest[1])
                total += self._compare(params, pair, groups, factor, target, gradients)
        return total, gradients

    def _at_once(self, pair: Pair) -> int:
        """Groups per block, evened out."""
        held = GRAPH if self._forms(pair.largest[1]) else 1
        each = held * self.layers.formed + max(pair.largest) * self.layers.width
        blocks = math.ceil(len(pair.common) * each / BLOCK)
        return math.ceil(len(pair.common) / blocks)

    def _precision(self, real: Batch) -> torch.dtype:
        """Of the pass over real items."""
        half = self.rounds and 2 * len(real) * self.layers.formed > HALF_WORK
        return torch.bfloat16 if half else self.learner.dtype

    def _real(
        self, params: Params, real: Batch, groups: Tensor, dtype: torch.dtype, synthetic: int
    ) -> Real:
        """Gradients of the mean losses of real groups; `synthetic` items are the others' most."""
        index, weights, _ = block(real, groups, lambda most: most)
        shares = weights.to(self.wide) / weights.sum(dim=1, keepdim=True)
        m, piece = index.shape[1], max(1, BLOCK // (len(groups) * self.layers.width))
        # Pieces of a group are added up, and so are formed; l1 is of differences.
        kept = [
            layer
            for layer in self.layers.weighed()
            if piece >= m and self.distance != "l1" and self.layers.short(layer, max(m, synthetic))
        ]
        total: Params = {}
        for rows, share in zip(*(t.split(piece, dim=1) for t in (index, shares)), strict=True):
            seen = self._seen(params, _rows((real.inputs, real.targets), rows), share, dtype)
            for name, slope in formed(seen, self.layers.without(kept)).items():
                slope = slope.to(self.wide)
                total[name] = total[name].add_(slope) if name in total else slope
        return Real(total, {layer: seen[layer] for layer in kept})

    def _compare(
        self,
        params: Params,
        pair: Pair,
        groups: Tensor,
        factor: Tensor,
        target: Real,
        gradients: list[Tensor],
    ) -> Tensor:
        """Sum of the distances of a block of groups; fills in its part of `gradients`."""
        batch = pair.synthetic
        index, weights, present = block(batch, groups, lambda most: most)
        shares = weights.to(self.wide) / weights.sum(dim=1, keepdim=True)
        tree = _rows((batch.inputs, batch.targets), index)
        own = [leaf.requires_grad_() for leaf in _rows(pair.learned(), index)]
        with torch.enable_grad(), differentiable_twice(self.learner):
            tree = filled(tree, pair.mask, own)
            seen = self._seen(params, tree, shares, self.wide, graph=True)
            value = (self._distances(target, seen) * factor).sum()
            slopes = torch.autograd.grad(value, own, materialize_grads=True) if own else ()
        for gradient, slope in zip(gradients, slopes, strict=True):
            gradient[index[present]] = slope[present.flatten()].to(gradient.dtype)
        return value.detach()

    def _distances(self, real: Real, seen: dict[str, Seen]) -> Tensor:
        """[B] distances of the synthetic gradients from the real ones."""
        if self._forms(next(iter(seen.values())).errors.shape[1]):
            return DISTANCES[self.distance](real.formed, formed(seen, self.layers.matched))
        return distance_of(self.distance, products(real, seen, self.layers))

    def _forms(self, m: int) -> bool:
        """True where the synthetic gradients of `m` items are formed all the same."""
        return self.distance == "l1" or not any(
            self.layers.short(layer, m) for layer in self.layers.matched
        )

    def _seen(
        self, params: Params, tree: Tree, shares: Tensor, dtype: torch.dtype, *, graph: bool = False
    ) -> dict[str, Seen]:
        """Inputs and errors of every layer; `shares` [B, m] weigh the items [B m, ...]."""
        inputs, targets = tree
        with torch.enable_grad(), noted(self.learner, self.layers.matched) as calls:
            mean = self.learner.pure_loss(params, inputs, targets, shares.flatten(), dtype=dtype)
            outputs = [found[0][1] for found in calls.values()]
            errors = torch.autograd.grad(mean * shares.sum(), outputs, create_graph=graph)
        found = {}
        for layer, error in zip(calls, errors, strict=True):
            rows = calls[layer][0][0] if graph else calls[layer][0][0].detach()
            found[layer] = Seen(*(leaf.unflatten(0, shares.shape) for leaf in (error, rows)))
        return found


def _rows(tree: Tree, index: Tensor) -> Tree:
    """[B m, ...] the rows `index` [B, m] of all leaves."""
    return tree_take(tree, index.flatten())
