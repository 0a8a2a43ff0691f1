"""Gradient matching: the synthetic items of a group are to teach a net what its real items teach.

Sources: Zhao et al. 2021, "Dataset Condensation with Gradient Matching" (DC); Zhao & Bilen 2021,
"Dataset Condensation with Differentiable Siamese Augmentation" (DSA); Kim et al. 2022, "Dataset
Condensation via Efficient Synthetic-Data Parameterization" (IDC).

Shape suffixes: n items of a batch, G groups, B groups and m items of each in a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value, jacrev, vmap
from torch.utils.flop_counter import FlopCounterMode

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.learner import Learner, Params
from mmdd.objectives.batch_norm import frozen_statistics, widened, with_statistics
from mmdd.objectives.distances import DISTANCES, Distance
from mmdd.objectives.factored import Factored
from mmdd.objectives.inner import differentiable_twice, filled
from mmdd.objectives.linear_layers import linear_layers
from mmdd.objectives.pairs import Pair, block, piece_size, rounded, taken
from mmdd.rng import lent_generators
from mmdd.step import Objective, Step, with_gradient
from mmdd.trees import Tree, tree_map, tree_take

Matched = Literal["all", "weights", "convolutions", "head"]

HALF_SUFFICES = ("cosine", "mse", "l1")
"""Distances whose second derivative may be taken in the half precision of a compiled learner. On a
ConvNet-D3 with Fashion-MNIST the images' gradient keeps a cosine of 0.99 with float32; with the
layer-wise cosine, which weighs units with the smallest gradients like others, it falls to 0.86."""
SMALL_WORK = 1e6
"""Multiply-adds x 2 of one item's forward pass below which calls, not arithmetic, cost the time:
groups are compared side by side there."""
SIDE_BY_SIDE = 16
"""Groups that are compared side by side at most; each holds two gradients."""


class GradientMatching(Objective):
    r"""DC (Zhao et al. 2021, eq. 9): :math:`\sum_g D(\nabla_\theta L^{real}_g, \nabla_\theta
    L^{syn}_g)`, L the mean loss of the items of a group.

    Parameters
    ----------
    distance: D; see `mmdd.objectives.distances`.
    parameters: whose gradients are compared: ``all``; ``weights``, those with more than one axis;
        ``convolutions`` (IDC); ``head``, the layer that a forward pass ends with.
    per_group: compare once per group, or once for all items together.
    by_size: weigh the distance of a group by its synthetic items, over those of the largest group
        (GCond, Jin et al. 2022): for classes of unequal budgets.

    The gradient of items and learned labels is a derivative of a derivative, compiled where the
    learner is. Real gradients are in the learner's precision, synthetic ones in float32 where half
    is too coarse (`HALF_SUFFICES`). Batch norm takes its statistics from real items and keeps them
    on both sides: an affine layer, as in the published code (which moves the initial statistics a
    tenth of the way only). Several nets give the mean. Gradients of linear layers are compared as
    products (`Factored`), where the learner is not compiled.

    Raises `UserError` when the encoder has no parameters of the kind asked for.
    """  # noqa: D205

    stacks = True

    def __init__(
        self,
        distance: Distance = "layerwise-cosine",
        parameters: Matched = "all",
        per_group: bool = True,
        by_size: bool = False,
    ) -> None:
        self.distance, self.parameters, self.by_size = distance, parameters, by_size
        self.by_group = per_group
        self._comparison: _Comparison | Factored | None = None

    def __call__(self, step: Step) -> Tensor:
        """Sum over groups; groups absent from either batch do not count."""
        with torch.no_grad():
            real = step.real_batch()
        synthetic = step.synthetic_batch()
        pair = Pair.of(step, real, synthetic, self.by_group)
        nets = step.drawn.each()
        comparison = self._of(step.learner, nets[0].params, pair)
        seed = int(torch.randint(2**62, (1,), generator=step.random("gradient")))
        with torch.no_grad(), lent_generators(seed, step.learner.device):
            value, gradients = comparison(nets[0].params, pair, self.by_size)
            for net in nets[1:]:
                found, slopes = comparison(net.params, pair, self.by_size)
                value += found
                for total, slope in zip(gradients, slopes, strict=True):
                    total += slope
            if len(nets) > 1:
                value /= len(nets)
                for total in gradients:
                    total /= len(nets)
        return with_gradient(value, zip(taken(synthetic, pair.mask), gradients, strict=True))

    def _of(self, learner: Learner, params: Params, pair: Pair) -> _Comparison | Factored:
        """What compares at nets of a learner, made when it is first seen."""
        if self._comparison is None or self._comparison.learner is not learner:
            example = pair.synthetic
            names = matched_names(learner, params, example, self.parameters, self.distance)
            layers = None if pair.real.joint else linear_layers(learner, params, example, names)
            if layers is not None:
                self._comparison = Factored(learner, layers, self.distance)
            else:
                at_once = SIDE_BY_SIDE if _side_by_side(learner, params, example) else 1
                self._comparison = _Comparison(learner, names, self.distance, at_once)
        return self._comparison


# -- whose gradients -------------------------------------------------------------------------------


def matched_names(
    learner: Learner, params: Params, example: Batch, kind: Matched, distance: Distance
) -> list[str]:
    """Names of the parameters to compare, in the order of the encoder.

    The layer-wise cosine knows parameters with more than one axis alone.
    """
    names = learner.trainable_names
    if kind == "head":
        last = _last_layer(learner, params, example)
        names = [name for name in names if name.rpartition(".")[0] == last]
    axes = {"weights": 2, "convolutions": 3}.get(kind, 2 if distance == "layerwise-cosine" else 0)
    names = [name for name in names if params[name].ndim >= axes]
    if kind == "convolutions":
        names = [name for name in names if name.rpartition(".")[2].startswith("weight")]
    if not names:
        raise UserError(
            f"{type(learner.encoder).__name__} has no parameters of the kind to be matched",
            got=kind,
            hint="Set objective.parameters=weights.",
        )
    return names


def _last_layer(learner: Learner, params: Params, example: Batch) -> str:
    """Name of the layer that is called last: the order of definition may be another."""
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in learner.encoder.named_modules()
        if not any(module.children()) and any(True for _ in module.parameters())
    ]
    learner.encoder.eval()
    with torch.no_grad():
        learner.pure_loss(params, example.inputs, example.targets)
    for handle in handles:
        handle.remove()
    return called[-1]


# -- at one net ------------------------------------------------------------------------------------


class _Comparison:
    """Compares real with synthetic gradients at one net of a learner.

    Few groups are compared at a time, so that few gradients are held. What is compiled sees blocks
    [B, m, ...] of few shapes.
    """

    def __init__(
        self, learner: Learner, names: Sequence[str], distance: Distance, at_once: int
    ) -> None:
        self.learner, self.names, self.at_once = learner, list(names), at_once
        self.distance = DISTANCES[distance]
        self.wide = torch.float64 if learner.dtype == torch.float64 else torch.float32
        half = learner.compiled and distance in HALF_SUFFICES
        self.narrow = learner.dtype if half else self.wide
        self.whole = learner.mixes_items or learner.task.coupled
        self._slopes = self._over_groups(grad(self._loss), (None, None, 0, 0))
        self._separate = self._over_groups(
            grad_and_value(self._of_group), (0, None, 0, 0, None, None, 0)
        )
        self._joint = learner.transform(grad_and_value(self._of_structure))

    def __call__(self, net: Params, pair: Pair, by_size: bool) -> tuple[Tensor, list[Tensor]]:
        """Value, and its derivatives with respect to the leaves that ask for them."""
        params = {name: widened(value.detach(), self.wide) for name, value in net.items()}
        if self.learner.mixes_items:
            params = with_statistics(self.learner, params, pair.real)
        matched = {name: params[name] for name in self.names}
        fixed = {name: value for name, value in params.items() if name not in matched}
        joint = pair.real.joint or pair.synthetic.joint
        if not len(pair.common):
            nothing = torch.zeros((), dtype=self.wide, device=pair.common.device)
            return nothing, [torch.zeros_like(leaf) for leaf in pair.learned()]
        factors = (pair.sizes() if by_size else torch.ones_like(pair.common)).to(self.wide)
        with frozen_statistics(self.learner):
            return (self._jointly if joint else self._separately)(matched, fixed, pair, factors)

    def _loss(
        self,
        matched: Params,
        fixed: Params,
        tree: Tree,
        weights: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        inputs, targets = tree
        params = {**fixed, **matched}
        return self.learner.pure_loss(params, inputs, targets, weights, dtype=dtype)

    # -- separable batches ------------------------------------------------------------------------

    def _over_groups(
        self, fn: Callable[..., Any], axes: tuple[int | None, ...]
    ) -> Callable[..., Any]:
        """`fn` for a block of groups, compiled; `axes` tells which arguments lead with [B]."""
        if self.at_once > 1:
            return self.learner.transform(vmap(fn, axes, randomness="different"))

        def of_one(*arguments: Any) -> Any:
            pairs = zip(arguments, axes, strict=True)
            found = fn(*(a if axis is None else tree_take(a, 0) for a, axis in pairs))
            return tree_map(lambda leaf: leaf.unsqueeze(0), found)

        return self.learner.transform(of_one)

    def _separately(
        self, matched: Params, fixed: Params, pair: Pair, factors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        total = torch.zeros((), dtype=self.wide, device=pair.common.device)
        learned = pair.learned()
        gradients = [torch.zeros_like(leaf) for leaf in learned]
        parts = (values.split(self.at_once) for values in (pair.common, factors))
        for groups, factor in zip(*parts, strict=True):
            target = self._real_slopes(matched, fixed, pair.real, groups, pair.largest[0])
            index, weights, present = self._fitted(pair.synthetic, groups, pair.largest[1])
            tree = tree_take((pair.synthetic.inputs, pair.synthetic.targets), index)
            own = [leaf[index] for leaf in learned]
            with differentiable_twice(self.learner):
                slopes, values = self._separate(
                    own, pair.mask, tree, weights, matched, fixed, target
                )
            total += (values * factor).sum()
            for gradient, slope in zip(gradients, slopes, strict=True):
                slope = slope * factor.view(-1, *[1] * (slope.ndim - 1))
                gradient[index[present]] = slope[present].to(gradient.dtype)
        return total, gradients

    def _real_slopes(
        self, matched: Params, fixed: Params, real: Batch, groups: Tensor, largest: int
    ) -> Params:
        """[B, ...] gradients of the mean losses of real groups, a piece at a time."""
        small = self.whole or self.at_once > 1
        piece = piece_size(largest, None if small else self.learner.chunk)
        index, weights, _ = self._fitted(real, groups, piece)
        piece = max(piece, index.shape[1]) if self.whole else piece
        shares = weights / weights.sum(dim=1, keepdim=True)
        total: Params = {}
        for rows, share in zip(*(t.split(piece, dim=1) for t in (index, shares)), strict=True):
            tree = tree_take((real.inputs, real.targets), rows)
            # fast attention cannot be mapped over groups either
            with differentiable_twice(self.learner) if self.at_once > 1 else nullcontext():
                slopes = self._slopes(matched, fixed, tree, share)
            of_piece = share.sum(dim=1)
            for name, slope in slopes.items():
                part = slope * of_piece.view(-1, *[1] * (slope.ndim - 1))
                total[name] = total[name].add_(part) if name in total else part
        return total

    def _fitted(self, batch: Batch, groups: Tensor, piece: int) -> tuple[Tensor, Tensor, Tensor]:
        """`block` of `groups`, filled up where shapes are compiled."""
        padded = self.learner.compiled and not self.whole
        index, weights, present = block(
            batch, groups, lambda most: rounded(most, piece) if padded else most
        )
        return index, weights.to(self.wide), present

    def _of_group(
        self,
        learned: list[Tensor],
        mask: tuple[bool, ...],
        tree: Tree,
        weights: Tensor,
        matched: Params,
        fixed: Params,
        target: Params,
    ) -> Tensor:
        """Distance of the gradient of one group's items [m, ...] from `target`."""
        tree = filled(tree, mask, learned)
        slope = grad(self._loss)(matched, fixed, tree, weights, self.narrow)
        pair = [{name: g.unsqueeze(0) for name, g in side.items()} for side in (target, slope)]
        return self.distance(*pair).sum()

    # -- joint batches ----------------------------------------------------------------------------

    def _jointly(
        self, matched: Params, fixed: Params, pair: Pair, factors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        real, synthetic = pair.real, pair.synthetic
        count = int(pair.common.max()) + 1
        rows = [batch.group_weights(count, self.wide)[pair.common] for batch in (real, synthetic)]
        # Not compiled, since the way back is run group by group: side by side they would hold the
        # activations of a large graph as often.
        tree = (real.inputs, real.targets)
        target = self._all_slopes(
            matched, fixed, tree, rows[0], self.learner.dtype, one_by_one=True
        )
        tree = (synthetic.inputs, synthetic.targets)
        with differentiable_twice(self.learner):
            slopes, value = self._joint(
                pair.learned(), pair.mask, tree, rows[1], matched, fixed, target, factors
            )
        return value, slopes

    def _all_slopes(
        self,
        matched: Params,
        fixed: Params,
        tree: Tree,
        rows: Tensor,
        dtype: torch.dtype,
        *,
        one_by_one: bool = False,
    ) -> Params:
        """[G, ...] gradients of the losses of all groups; `rows` [G, n] weighs the items.

        The forward pass does not depend on the row: it is run once, for all of them.
        """

        def losses(matched: Params) -> Tensor:
            def loss(row: Tensor) -> Tensor:
                return self._loss(matched, fixed, tree, row, dtype)

            return vmap(loss, randomness="same")(rows)

        return jacrev(losses, chunk_size=1 if one_by_one else None)(matched)

    def _of_structure(
        self,
        learned: list[Tensor],
        mask: tuple[bool, ...],
        tree: Tree,
        rows: Tensor,
        matched: Params,
        fixed: Params,
        target: Params,
        factors: Tensor,
    ) -> Tensor:
        """Distances of the gradients of all groups of a structure from `target`, weighed."""
        tree = filled(tree, mask, learned)
        slopes = self._all_slopes(matched, fixed, tree, rows, self.narrow)
        return (self.distance(target, slopes) * factors).sum()


def _side_by_side(learner: Learner, params: Params, example: Batch) -> bool:
    """True for a small net that can be mapped over groups; recurrent ones fail or are slow."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in learner.encoder.modules())
    unfit = learner.mixes_items or learner.task.coupled or example.joint or recurrent
    if unfit or not len(example):
        return False
    items = torch.zeros(2, 1, dtype=torch.int64, device=example.groups.device)
    tree = tree_take((example.inputs, example.targets), items)

    def slope(tree: Tree) -> Params:
        return grad(lambda at: learner.pure_loss(at, *tree))(params)

    learner.encoder.eval()
    with lent_generators(0, learner.device), differentiable_twice(learner), torch.no_grad():
        with FlopCounterMode(display=False) as work:
            learner.pure_loss(params, *tree_take(tree, 0))
        try:
            vmap(slope, randomness="different")(tree)
        except (RuntimeError, ValueError):
            return False
    return bool(work.get_total_flops() < SMALL_WORK)
