"""Trajectory matching: training on the set for some steps is to lead where an expert arrived.

Sources: Cazenavette et al. 2022, "Dataset Distillation by Matching Training Trajectories" (MTT);
Cui et al. 2023, "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory" (TESLA);
Guo et al. 2024, "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching"
(DATM).

Shape suffixes: N inner steps, P groups of parameters, M stored items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.errors import NonFiniteError, UserError
from mmdd.learner import Params
from mmdd.objectives.inner import InnerTraining, inner_product, reading
from mmdd.step import Objective, Step, with_gradient
from mmdd.trees import tree_leaves, tree_map
from mmdd.views import augmented

Memory = Literal["exact", "unrolled", "tesla"]
Order = Literal["random", "fixed"]


class TrajectoryMatching(Objective):
    r"""MTT (Cazenavette et al. 2022, eq. 2): :math:`\sum_p \lVert \theta_N - \theta^* \rVert_p^2 /
    \lVert \theta_0 - \theta^* \rVert_p^2` over the groups p of parameters.

    theta_0 and theta* are the ends of an expert's segment; theta_N follows from theta_0 by N SGD
    steps on the synthetic set, at the rates ``synthetic.step_size``, one per group (or one for
    all). The gradient reaches inputs, labels and rates. Buffers, and parameters outside all groups,
    stay as theta_0 has them and are not compared.

    Parameters
    ----------
    steps: N.
    memory: ``unrolled`` keeps the graph of all N steps. ``exact`` has the same gradient, up to
        rounding, from the graph of one step at a time and N parameter vectors
        (`mmdd.objectives.inner`); it is compiled where the learner is. ``tesla`` is the published
        constant-memory update: it leaves out how earlier steps move later ones, so that its
        direction departs from the gradient as N and the rate grow, and saves a fifth of the time.
    batch_size: stored items of an inner step, decoded together; None for all of them. A joint set
        is always taken whole.
    order: mini-batches come in passes through all items, permuted anew (``random``) or not; the
        last one of a pass may be smaller.
    momentum: of the inner SGD.
    skip_above: a loss above it has no gradient: the step leaves the set as it is (DATM).
    root: take the ratio of distances, not of their squares, in every group (GEOM, Zhang et al.
        2024).

    Raises `UserError` for TESLA with momentum, and when called for a set without a step size, a net
    without a target, a segment that stands still, or an encoder without second derivatives;
    `NonFiniteError` when the inner training diverges.
    """  # noqa: D205

    def __init__(
        self,
        steps: int = 20,
        memory: Memory = "exact",
        batch_size: int | None = None,
        order: Order = "random",
        momentum: float = 0.0,
        skip_above: float | None = None,
        root: bool = False,
    ) -> None:
        if memory == "tesla" and momentum:
            raise UserError(
                "memory=tesla is defined without momentum",
                got=momentum,
                expected="momentum=0",
                hint="memory=exact takes momentum, in the same memory.",
            )
        self.steps, self.memory = steps, memory
        self.batch_size, self.order = batch_size, order
        self.momentum, self.skip_above, self.root = momentum, skip_above, root
        self._inner: InnerTraining | None = None

    def __call__(self, step: Step) -> Tensor:
        """The ratio, summed over the groups of parameters."""
        target = _target(step)
        feed = Feed(step, self.steps, self.batch_size, self.order, cut=self.memory != "unrolled")
        inner = self._training(step, feed)
        start, fixed = inner.split(step.drawn.params)
        end = _Expert(step, start, inner.split(target)[0], self.root)
        rates = _rates(step, len(end.groups)).to(inner.dtype)
        path = self._forth(inner, feed, start, fixed, rates)
        loss = end.distance(path[-1])
        value = float(loss.detach())
        _require_finite(value, path, step)
        skipped = self.skip_above is not None and value > self.skip_above
        if skipped or not torch.is_grad_enabled():
            return loss.detach()
        if self.memory == "unrolled":
            return loss
        by_rate = self._back(inner, feed, path, end.pull(path[-1]), fixed, rates.detach())
        return with_gradient(loss, [*feed.collected(), (rates, by_rate)])

    def _training(self, step: Step, feed: Feed) -> InnerTraining:
        """The learner's pure functions, made when it is first seen."""
        if self._inner is None or self._inner.learner is not step.learner:
            self._inner = InnerTraining(
                step.learner,
                step.drawn.params,
                feed.batch(0),
                momentum=self.momentum,
                hessian=self.memory != "tesla",
            )
        return self._inner

    def _forth(
        self, inner: InnerTraining, feed: Feed, theta: Params, fixed: Params, rates: Tensor
    ) -> list[Params]:
        """theta_0 … theta_N, in one graph where the memory is ``unrolled``."""
        unrolled = self.memory == "unrolled"
        go = inner.step if unrolled else inner.forth
        path, velocity = [theta], inner.rest(theta)
        for number in range(self.steps):
            with inner.around(feed.seeds[number]):
                read = reading(feed.batch(number), fixed, cut=not unrolled)
                theta, velocity = go(theta, velocity, rates if unrolled else rates.detach(), read)
            path.append(theta)
        return path

    def _back(
        self,
        inner: InnerTraining,
        feed: Feed,
        path: list[Params],
        adjoint: Params,
        fixed: Params,
        rates: Tensor,
    ) -> Tensor:
        """Collect the derivatives of items and labels in the feed; return those of the rates [P].

        `path` is used up, so that its memory is free again step by step.
        """
        by_rate, carried = torch.zeros_like(rates), inner.rest(path.pop())
        for number in reversed(range(self.steps)):
            batch = feed.batch(number)
            with inner.around(feed.seeds[number]):
                adjoint, carried, new, gradients = inner.return_to(
                    path.pop(), adjoint, carried, rates, reading(batch, fixed)
                )
            feed.collect(batch, gradients)
            by_rate += new
        return by_rate


# -- the ends of a segment -------------------------------------------------------------------------


class _Expert:
    """Start and end of a segment: where the inner training sets out and should arrive."""

    def __init__(self, step: Step, start: Params, target: Params, root: bool = False) -> None:
        self.target, self.root = target, root
        self.groups = step.learner.groups_of_parameters
        self.lengths = self._squares(start)
        if not bool((self.lengths > 0).all()):
            lengths = zip(self.groups, self.lengths.tolist(), strict=True)
            still = ", ".join(name for name, length in lengths if length == 0)
            raise UserError(
                f"step {step.number + 1}: the expert's segment ends where it starts, in its"
                f" parameters {still!r}",
                got="a distance of 0",
                hint="Match longer or earlier segments (source.length, source.max_start), or record"
                " experts that train these parameters.",
            )

    def _squares(self, theta: Params) -> Tensor:
        """[P] squared distance to the target."""
        apart = {name: theta[name] - value for name, value in self.target.items()}
        return torch.stack([inner_product(apart, apart, n) for n in self.groups.values()])

    def distance(self, theta: Params) -> Tensor:
        """The loss of an end of the inner training."""
        ratios = self._squares(theta) / self.lengths
        return (ratios.sqrt() if self.root else ratios).sum()

    @torch.no_grad()
    def pull(self, theta: Params) -> Params:
        """Derivative of `distance`."""
        scales = 2 / self.lengths
        if self.root:
            # d sqrt(r) = dr / (2 sqrt(r)); the end that is the target pulls nowhere
            roots = (self._squares(theta) / self.lengths).sqrt()
            scales = torch.where(roots > 0, scales / (2 * roots), 0.0)
        return {
            name: scale * (theta[name] - self.target[name])
            for names, scale in zip(self.groups.values(), scales, strict=True)
            for name in names
        }


def _target(step: Step) -> Params:
    if step.drawn.target is None:
        raise UserError(
            "matching trajectories needs the ends of expert segments",
            expected="a source that draws targets",
            hint="Set source.kind=experts.",
        )
    return step.drawn.target


def _rates(step: Step, groups: int) -> Tensor:
    """[P] rates with their graph; a single one is every group's."""
    if step.synthetic.step_size is None:
        raise UserError(
            "matching trajectories trains on the synthetic set, at a rate that is learned with it",
            hint="Set synthetic.step_size, e.g. to the rate that the experts were trained with.",
        )
    rates = step.synthetic.step_size.values()
    if len(rates) not in (1, groups):
        raise UserError(
            "the learner has another number of parameter groups than the set has step sizes",
            got=len(rates),
            expected=f"1 or {groups}",
        )
    return rates.expand(groups)


def _require_finite(value: float, path: Sequence[Params], step: Step) -> None:
    """Raise `NonFiniteError` naming the inner step that diverged. Looks only where L tells so."""
    if abs(value) < float("inf"):
        return
    broken = (
        number
        for number, theta in enumerate(path)
        if not all(bool(torch.isfinite(leaf).all()) for leaf in theta.values())
    )
    first = next(broken, None)
    where = "its end is out of range"
    if first is not None:
        where = f"parameters are not finite after inner step {first} of {len(path) - 1}"
    assert step.synthetic.step_size is not None
    rates = ", ".join(f"{rate:.3g}" for rate in step.synthetic.step_size.values().tolist())
    raise NonFiniteError(
        f"step {step.number + 1}: training on the synthetic set diverged: {where}, at step size"
        f" {rates}; start with a smaller synthetic.step_size, or lower optimise.step_size.lr"
    )


# -- the batches of the inner steps ----------------------------------------------------------------


class Feed:
    """What the N inner steps of an outer step read: the same at every asking and after a resume.

    Every inner step has an augmentation of its own: one op for the batch, with parameters for each
    item (MTT; not siamese). Its loss is the mean over the views, where there are several (CondTSC).

    Parameters
    ----------
    batch_size, order: see `TrajectoryMatching`.
    cut: end every batch's graph at tensors where the gradients of all steps are collected. A whole
        set is decoded once for all of them; of mini-batches, each is decoded when asked for.
    """

    def __init__(
        self, step: Step, steps: int, batch_size: int | None, order: Order, *, cut: bool
    ) -> None:
        self._synthetic, self._augmentation = step.synthetic, step.augmentation
        stream = step.random("inner/order") if order == "random" else None
        self._index: list[Tensor | None] = [None] * steps
        count = len(step.synthetic)
        if batch_size is not None and batch_size < count and not step.synthetic.joint:
            self._index = [*passes(count, batch_size, steps, stream)]
        self._draws = self._drawn(step.random("inner/augment"))
        noise = step.random("inner/noise")
        self.seeds = torch.randint(2**62, (steps,), generator=noise).tolist()
        """Of the random numbers inside the encoder, by inner step."""
        self._whole = step.synthetic.batch() if self._index[0] is None else None
        self._ends, self._roots = self._cut() if cut else ([], [])
        self._sums: list[Tensor | None] = [None] * len(self._roots)

    def _drawn(self, stream: torch.Generator) -> list[Any]:
        if self._augmentation is None:
            return [None] * len(self._index)
        expand = self._synthetic.representation.expand
        sizes = [len(self._synthetic if index is None else index) for index in self._index]
        draw = self._augmentation.draw
        return [draw(size * expand, stream, shared_op=True) for size in sizes]

    def _cut(self) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors that gradients are handed to, and those that batches are made from instead."""
        if self._whole is None:
            leaves = self._synthetic.leaves()
            roots: list[Tensor] = [leaf for leaf in leaves.values() if leaf.requires_grad]
            return roots, roots
        ends = _learned(self._whole)
        self._whole = tree_map(
            lambda leaf: leaf.detach().requires_grad_(leaf.requires_grad), self._whole
        )
        return ends, _learned(self._whole)

    def batch(self, number: int) -> Batch:
        """What inner step `number` reads."""
        index = self._index[number]
        if self._whole is not None:
            batch = self._whole
        else:
            assert index is not None
            batch = self._synthetic.batch(index.to(self._synthetic.groups.device))
        return augmented(batch, self._augmentation, self._draws[number])

    def collect(self, batch: Batch, gradients: Sequence[Tensor]) -> None:
        """Add the gradients of a batch's learned tensors, in the order of `reading`."""
        if not gradients:
            return
        found = torch.autograd.grad(_learned(batch), self._roots, gradients, allow_unused=True)
        for place, (total, new) in enumerate(zip(self._sums, found, strict=True)):
            if new is not None:
                self._sums[place] = new if total is None else total + new

    def collected(self) -> list[tuple[Tensor, Tensor]]:
        """Tensors with a graph, and what they received from all steps."""
        pairs = zip(self._ends, self._sums, strict=True)
        return [(tensor, total) for tensor, total in pairs if total is not None]


def _learned(batch: Batch) -> list[Tensor]:
    """Tensors of inputs and targets with a graph."""
    return [leaf for leaf in tree_leaves((batch.inputs, batch.targets)) if leaf.requires_grad]


def passes(count: int, size: int, steps: int, stream: torch.Generator | None) -> list[Tensor]:
    """Indices of `steps` mini-batches of passes over `count` items, permuted where a stream is."""
    found: list[Tensor] = []
    while len(found) < steps:
        order = torch.randperm(count, generator=stream) if stream else torch.arange(count)
        found += order.split(size)
    return found[:steps]
