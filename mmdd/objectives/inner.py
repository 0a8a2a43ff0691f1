"""Inner training as pure functions: an SGD step on the synthetic set, and the way back through it.

One step with momentum m and a rate a for each group of parameters is, as in ``torch.optim.SGD``,

    v' = m v + g(theta; x, y),    theta' = theta - a v',    g = d loss / d theta.

Going back, lambda is the derivative of the outer loss L with respect to the parameters that a step
arrived at. With w <- lambda + m w (w = 0 behind the last step) and s = <g, a w>,

    dL/dx -= ds/dx,    dL/dy -= ds/dy,    dL/da -= <g, w>,    lambda <- lambda - ds/dtheta:

one step's graph at a time, at parameters that were kept on the way there. It is the reversal of
Maclaurin et al. 2015 (alg. 2) and the BPTT of Deng & Russakovsky 2022 for a rate that all steps
share: the derivative with respect to a velocity is -a w then, so that none has to be kept.

Shape suffixes: P groups of parameters, n items.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.learner import Learner, Params
from mmdd.rng import lent_generators
from mmdd.trees import Tree, tree_leaves, tree_map

PROBED = 8
"""Items on which an encoder is tried out."""


class Reading(NamedTuple):
    """What a step reads beside the parameters.

    Attributes
    ----------
    fixed: buffers, and parameters outside all groups.
    learned: tensors of the tree that gradients are wanted for.
    mask: their places among all tensors of the tree.
    tree: (inputs, targets).
    weights: [n] or None.
    """

    fixed: Params
    learned: list[Tensor]
    mask: tuple[bool, ...]
    tree: Tree
    weights: Tensor | None


def reading(batch: Batch, fixed: Params, *, cut: bool = True) -> Reading:
    """Take a batch apart; `cut` leaves its graph behind.

    Memory layouts are evened out then, since each of them would be compiled anew.
    """
    tree = (batch.inputs, batch.targets)
    mask = tuple(leaf.requires_grad for leaf in tree_leaves(tree))
    if cut:
        tree = tree_map(lambda leaf: leaf.detach().contiguous(), tree)
    learned = [leaf for leaf, taken in zip(tree_leaves(tree), mask, strict=True) if taken]
    return Reading(fixed, learned, mask, tree, batch.weights)


def filled(tree: Tree, mask: Sequence[bool], learned: Sequence[Tensor]) -> Tree:
    """`tree` with other tensors at the places of `mask`."""
    flags, values = iter(mask), iter(learned)
    return tree_map(lambda leaf: next(values) if next(flags) else leaf, tree)


class InnerTraining:
    """Steps of one learner as pure functions of parameter dictionaries.

    They work in float32 (float64 where the learner does) even for a learner in bfloat16. On a
    ConvNet-D3-W32 and 20 steps, the gradient in bfloat16 is 5 % away from that in float64, a way
    back in float32 along a bfloat16 path 3 %, float32 throughout 0.6 %.

    Parameters
    ----------
    start, example: parameters and items as they will be trained; the encoder is tried out on some.
    hessian: go back through the parameters too; without, lambda stays as it is (TESLA).

    Raises `UserError` for an encoder whose gradients cannot be differentiated.
    """

    def __init__(
        self,
        learner: Learner,
        start: Params,
        example: Batch,
        *,
        momentum: float = 0.0,
        hessian: bool = True,
    ) -> None:
        self.learner = learner
        self.momentum = momentum
        self.hessian = hessian
        self.dtype = torch.float64 if learner.dtype == torch.float64 else torch.float32
        self.groups = list(learner.groups_of_parameters.values())
        self.place = {name: place for place, names in enumerate(self.groups) for name in names}
        if not example.joint and len(example) > PROBED:
            example = example.select(torch.arange(PROBED, device=example.groups.device))
        theta, fixed = self.split(start)
        few = reading(example, fixed)
        learner.encoder.train()
        self.noisy = self._draws_numbers(theta, few)
        self._require_second_derivatives(theta, few)
        # Compiled code would draw other random numbers on the way back than on the way there.
        compiled = not self.noisy
        self._step = learner.transform(self.step) if compiled else self.step
        self._back = learner.transform(self.back) if compiled else self.back

    def split(self, params: Params) -> tuple[Params, Params]:
        """Parameters that are stepped, and the others: buffers and those outside all groups."""
        wide = {
            name: value.detach().to(self.dtype) if value.is_floating_point() else value.detach()
            for name, value in params.items()
        }
        moving = {name: wide[name] for name in self.place}
        return moving, {name: value for name, value in wide.items() if name not in moving}

    def rest(self, theta: Params) -> Params:
        """Zeros: v before the first step, and w behind the last one."""
        return {name: torch.zeros_like(v) for name, v in theta.items()} if self.momentum else {}

    @contextlib.contextmanager
    def around(self, seed: int) -> Iterator[None]:
        """Where a step runs: the same dropout there and back, kernels with second derivatives."""
        self.learner.encoder.train()
        noise = lent_generators(seed, self.learner.device) if self.noisy else None
        with noise or contextlib.nullcontext(), differentiable_twice(self.learner):
            yield

    @torch.no_grad()
    def forth(
        self, theta: Params, velocity: Params, rates: Tensor, read: Reading
    ) -> tuple[Params, Params]:
        """`step` without a graph; compiled where the learner is."""
        after: tuple[Params, Params] = self._step(theta, velocity, rates, read)
        return after

    @torch.no_grad()
    def return_to(
        self, theta: Params, adjoint: Params, carried: Params, rates: Tensor, read: Reading
    ) -> tuple[Params, Params, Tensor, list[Tensor]]:
        """`back` to `theta`; compiled where the learner is."""
        before: tuple[Params, Params, Tensor, list[Tensor]] = self._back(
            theta, adjoint, carried, rates, read
        )
        return before

    def step(
        self, theta: Params, velocity: Params, rates: Tensor, read: Reading
    ) -> tuple[Params, Params]:
        """Return theta' and v' (empty without momentum), differentiable; `rates` is [P]."""
        slope = grad(self._loss)(theta, read.learned, read)
        if self.momentum:
            slope = {name: self.momentum * velocity[name] + slope[name] for name in slope}
        after = {name: theta[name] - rates[self.place[name]] * slope[name] for name in theta}
        return after, slope if self.momentum else {}

    def back(
        self, theta: Params, adjoint: Params, carried: Params, rates: Tensor, read: Reading
    ) -> tuple[Params, Params, Tensor, list[Tensor]]:
        """Return lambda at `theta`, w, and this step's part of dL/da [P] and of dL/d(learned).

        `carried` is w of the step that follows. The equations are at the top.
        """
        w = adjoint
        if self.momentum:
            w = {name: adjoint[name] + self.momentum * carried[name] for name in adjoint}

        def s(theta: Params, learned: list[Tensor]) -> tuple[Tensor, Tensor]:
            # Not in forward mode, which is 5 % faster: PyTorch's forward derivatives of batch and
            # layer norm take the statistics for constants, so that theirs in turn are wrong.
            slope = grad(self._loss)(theta, learned, read)
            by_group = torch.stack([inner_product(slope, w, names) for names in self.groups])
            return (rates * by_group).sum(), by_group

        asked = (self.hessian, bool(read.learned))
        wanted = tuple(place for place, taken in enumerate(asked) if taken) or (0,)
        parts, by_rate = grad(s, argnums=wanted, has_aux=True)(theta, read.learned)
        found = dict(zip(wanted, parts, strict=True))
        if self.hessian:
            adjoint = {name: adjoint[name] - found[0][name] for name in adjoint}
        return adjoint, w, -by_rate, [-leaf for leaf in found.get(1, [])]

    def _loss(self, theta: Params, learned: list[Tensor], read: Reading) -> Tensor:
        inputs, targets = filled(read.tree, read.mask, learned)
        params = {**read.fixed, **theta}
        return self.learner.pure_loss(params, inputs, targets, read.weights, dtype=self.dtype)

    def _draws_numbers(self, theta: Params, read: Reading) -> bool:
        """True when the loss uses random numbers (dropout)."""
        device = self.learner.device
        with lent_generators(0, device), torch.no_grad():
            before = _random_state(device)
            self._loss(theta, read.learned, read)
            return not torch.equal(before, _random_state(device))

    def _require_second_derivatives(self, theta: Params, read: Reading) -> None:
        rates = torch.ones(len(self.groups), dtype=self.dtype, device=self.learner.device)
        try:
            with self.around(0), torch.no_grad():
                self.back(theta, theta, self.rest(theta), rates, read)
        except RuntimeError as error:
            raise UserError(
                "the gradients of this encoder cannot be differentiated, as matching trajectories"
                " asks for",
                got=type(self.learner.encoder).__name__,
                hint=str(error).partition("\n")[0],
            ) from error


def inner_product(a: Params, b: Params, names: Sequence[str]) -> Tensor:
    """Scalar <a, b> over the tensors `names`; of complex ones as pairs of real numbers."""
    return torch.stack([(a[name].conj() * b[name]).real.sum() for name in names]).sum()


@contextlib.contextmanager
def differentiable_twice(learner: Learner) -> Iterator[None]:
    """Kernels whose gradients have gradients: plain attention, recurrent nets without cuDNN."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in learner.encoder.modules())
    plain: Any = contextlib.nullcontext()
    if recurrent and learner.device.type == "cuda":
        plain = torch.backends.cudnn.flags(enabled=False)
    with plain, sdpa_kernel(SDPBackend.MATH):
        yield


def _random_state(device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()
