"""Linear layers whose gradients factor: which they are, and what a pass tells of them.

Shape suffixes: n items, B groups and m items of each in a block, O outputs and I inputs of a layer.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmdd.batch import Batch
from mmdd.learner import Learner, Params
from mmdd.objectives.batch_norm import widened
from mmdd.objectives.inner import differentiable_twice
from mmdd.rng import lent_generators
from mmdd.trees import Tree, tree_leaves, tree_map, tree_take

PROBED = 3
"""Items on which a net is tried out."""


class Layers(NamedTuple):
    """Linear layers whose gradients are matched.

    Attributes
    ----------
    matched: which of ``weight`` and ``bias``, by the name of the layer.
    shapes: (O, I) of every layer.
    width: numbers that a forward pass makes of one item.
    """

    matched: dict[str, list[str]]
    shapes: dict[str, tuple[int, int]]
    width: int

    @property
    def formed(self) -> int:
        """Numbers in the gradients of one group, biases left out."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def names(self) -> list[tuple[str, str, str]]:
        """Of every matched parameter, its name, and those of its layer and its kind."""
        return [(f"{a}.{kind}", a, kind) for a, kinds in self.matched.items() for kind in kinds]

    def weighed(self) -> list[str]:
        """The layers whose weights are matched."""
        return [layer for layer, kinds in self.matched.items() if "weight" in kinds]

    def without(self, layers: Collection[str]) -> dict[str, list[str]]:
        """What is matched but the weights of `layers`."""
        return {
            layer: [kind for kind in kinds if kind != "weight" or layer not in layers]
            for layer, kinds in self.matched.items()
        }

    def short(self, layer: str, m: int) -> bool:
        """True where products of the factors of `m` items are less work than those of gradients."""
        return m * sum(self.shapes[layer]) < math.prod(self.shapes[layer])


class Seen(NamedTuple):
    """What is known of a layer: E [B, m, O] of the groups' mean losses, and X [B, m, I]."""

    errors: Tensor
    inputs: Tensor


def formed(seen: dict[str, Seen], matched: dict[str, list[str]]) -> Params:
    """Gradients [B, O, I] of weights and [B, O] of biases by name, one per group."""
    return {
        f"{layer}.{kind}": (
            torch.bmm(seen[layer].errors.mT, seen[layer].inputs)
            if kind == "weight"
            else seen[layer].errors.sum(dim=1)
        )
        for layer, kinds in matched.items()
        for kind in kinds
    }


def linear_layers(
    learner: Learner, params: Params, example: Batch, names: Iterable[str]
) -> Layers | None:
    """The layers of the parameters `names`, or None where their gradients do not factor.

    They do where each is an ``nn.Linear`` that is called once, with one row per item. The net is
    tried out, since neither its class nor its modules tell whether a weight is read elsewhere too.
    """
    unfit = learner.compiled or learner.mixes_items or learner.task.coupled or example.joint
    if unfit or not len(example):
        return None
    modules = dict(learner.encoder.named_modules())
    matched: dict[str, list[str]] = {}
    for layer, _, kind in (name.rpartition(".") for name in names):
        matched.setdefault(layer, []).append(kind)
    if any(type(modules[layer]) is not nn.Linear for layer in matched):
        return None
    wide = torch.float64 if learner.dtype == torch.float64 else torch.float32
    params = {name: widened(value.detach(), wide) for name, value in params.items()}
    few = torch.arange(PROBED, device=example.groups.device) % len(example)
    tree = tree_map(lambda leaf: leaf.detach()[few], (example.inputs, example.targets))
    try:
        learner.encoder.eval()  # without dropout, that passes can be compared
        with lent_generators(0, learner.device), differentiable_twice(learner):
            fits = all(_factors(learner, params, tree, matched, item) for item in range(PROBED))
            width = _width(learner, params, tree) if fits else 0
    except (RuntimeError, ValueError, IndexError):
        return None
    shapes = {layer: (modules[layer].out_features, modules[layer].in_features) for layer in matched}
    return Layers(matched, shapes, width) if fits else None


def _factors(
    learner: Learner, params: Params, tree: Tree, matched: dict[str, list[str]], item: int
) -> bool:
    """True if what an item teaches alone is the product of its rows among others."""
    names = [f"{layer}.{kind}" for layer, kinds in matched.items() for kind in kinds]
    own = {name: params[name].clone().requires_grad_() for name in names}
    one = torch.zeros(PROBED, device=learner.device)
    one[item] = 1.0
    inputs, targets = tree
    wide = next(iter(own.values())).dtype
    with torch.enable_grad(), noted(learner, matched) as calls:
        loss = learner.pure_loss({**params, **own}, inputs, targets, one, dtype=wide)
        if any(len(found) != 1 or len(found[0][0]) != PROBED for found in calls.values()):
            return False
        outputs = [found[0][1] for found in calls.values()]
        errors = torch.autograd.grad(loss, outputs, materialize_grads=True)
        inputs, targets = tree_take(tree, slice(item, item + 1))
        loss = learner.pure_loss({**params, **own}, inputs, targets, dtype=wide)
        slopes = torch.autograd.grad(loss, list(own.values()), materialize_grads=True)
    seen = {
        layer: Seen(error[None], found[0][0].detach()[None])
        for (layer, found), error in zip(calls.items(), errors, strict=True)
        if error.ndim == 2 and error.count_nonzero() == error[item].count_nonzero()
    }
    if len(seen) < len(matched):
        return False
    products = formed(seen, matched)
    return all(
        torch.allclose(products[name][0], slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))
        for name, slope in zip(own, slopes, strict=True)
    )


def _width(learner: Learner, params: Params, tree: Tree) -> int:
    """Numbers that an item has, and that the modules of the net make of it."""
    made = [leaf.numel() for leaf in tree_leaves(tree)]

    def count(_module: nn.Module, _arguments: Any, output: Any) -> None:
        made.extend(leaf.numel() for leaf in tree_leaves(output))

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for module in learner.encoder.modules():
            if not any(module.children()):
                hooks.callback(module.register_forward_hook(count).remove)
        learner.pure_loss(params, *tree)
    return max(1, sum(made) // PROBED)


@contextlib.contextmanager
def noted(
    learner: Learner, layers: Iterable[str]
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Inputs and outputs of every call of the layers; the outputs have derivatives."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def note(layer: str, _: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # the first layer's parameters and inputs may be constants
        output = output if output.requires_grad else output.requires_grad_()
        calls[layer].append((arguments[0], output))
        return output

    modules = dict(learner.encoder.named_modules())
    with contextlib.ExitStack() as hooks:
        for layer in calls:
            hook = functools.partial(note, layer)
            hooks.callback(modules[layer].register_forward_hook(hook).remove)
        yield calls
