"""Gradient matching without synthetic gradients, for nets whose matched layers are linear.

What a mean loss of items teaches a linear layer is a product of two thin matrices (backpropagation,
Rumelhart et al. 1986): with the layer's inputs X [m, I] and the derivatives E [m, O] of the mean
loss with respect to its outputs, the gradient is E^T X for the weight and the sum of the rows of E
for the bias. Items do not meet in such a net, so that one pass forth and back serves all groups.
How two such gradients are compared without forming them: `mmdd.objectives.products`.

Shape suffixes: B groups and m items of each in a block, O outputs and I inputs of a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.learner import Learner, Params
from mmdd.objectives.batch_norm import frozen_statistics, widened
from mmdd.objectives.distances import Distance
from mmdd.objectives.inner import differentiable_twice, filled
from mmdd.objectives.linear_layers import Layers, Seen, formed, noted
from mmdd.objectives.pairs import Pair, block
from mmdd.objectives.products import Real, Slopes, compared, compared_formed
from mmdd.trees import Tree, tree_map, tree_take

BLOCK = 2**23
"""Numbers, about, that the real gradients and the activations of groups compared at once hold."""
GRAPH = 4
"""Times that gradients are held where synthetic ones are formed, and differentiated."""
HALF_WORK = 1e8
"""Multiply-adds x 2 from which on products in half precision are worth the casts."""


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
        parts = (values.split(at_once) for values in (pair.common, factors))
        with frozen_statistics(self.learner):
            for groups, factor in zip(*parts, strict=True):
                target = self._real(params, pair.real, groups, narrow, pair.largest[1])
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
            own, targets = _rows((real.inputs, real.targets), rows)
            inputs = tree_map(lambda leaf: widened(leaf, dtype), own)
            seen = self._seen(params, (inputs, targets), share, dtype)
            for name, slope in formed(seen, self.layers.without(kept)).items():
                slope = slope.to(self.wide)
                total[name] = total[name].add_(slope) if name in total else slope
        # a layer that reads the items themselves has them as they were before they were rounded
        exact = {
            layer: own.unflatten(0, share.shape)
            for layer in kept
            if isinstance(own, Tensor) and seen[layer].inputs.data_ptr() == inputs.data_ptr()
        }
        return Real(total, {layer: seen[layer] for layer in kept}, exact)

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
        if self._forms(index.shape[1]):
            value, ends = compared_formed(self.distance, target.formed, seen, self.layers, factor)
        else:
            value, ends = compared(self.distance, target, seen, self.layers, factor)
        slopes = _chained(seen, ends, own) if own else ()
        for gradient, slope in zip(gradients, slopes, strict=True):
            there = present.flatten()
            if bool(there.all()):
                gradient.index_copy_(0, index.flatten(), slope.to(gradient.dtype))
            else:
                gradient[index.flatten()[there]] = slope[there].to(gradient.dtype)
        return value

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


def _chained(seen: dict[str, Seen], ends: dict[str, Slopes], own: list[Tensor]) -> list[Tensor]:
    """Derivatives with respect to `own`, from those with respect to what was seen."""
    pairs = [
        (leaf, slope)
        for layer, found in seen.items()
        for leaf, slope in zip(found, ends[layer], strict=True)
        if slope is not None and leaf.requires_grad
    ]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in own]
    leaves, slopes = zip(*pairs, strict=True)
    return list(torch.autograd.grad(leaves, own, slopes, materialize_grads=True))


def _rows(tree: Tree, index: Tensor) -> Tree:
    """[B m, ...] the rows `index` [B, m] of all leaves."""
    return tree_take(tree, index.flatten())
