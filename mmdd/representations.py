"""Learnable tensors and a differentiable decode into what a learner reads.

These know no modality: they work on a tensor or on a dict of fields.
Shape suffixes: M synthetic items, m items of a batch.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from mmdd.trees import Tree, named_leaves, tree_map


class Representation(nn.Module):
    """Base of all representations.

    `expand` is the number of decoded items per stored item (1 unless items are packed).
    Learnable tensors are parameters of the module; their names (``inputs``, ``inputs.image``)
    are the names that learning rates are given for.
    """

    expand: int = 1

    def decode(self, index: Tensor | None) -> Tree:
        """Inputs of the stored items `index` [m]; all of them, or the joint whole, for None."""
        raise AssertionError("a representation defines decode")

    def leaves(self) -> dict[str, nn.Parameter]:
        """Learnable tensors by public name."""
        return {name.replace("/", "."): leaf for name, leaf in self.named_parameters()}

    def constrain_(self) -> None:
        """Bring the leaves back into their valid range after a step."""


class Direct(Representation):
    """The synthetic items themselves.

    Parameters
    ----------
    values: a [M, ...] tensor, or a dict of such fields. Floating-point fields are learned.
    fixed: dotted names of fields that stay as they are (masks, positions).
    bounds: (lowest, highest) values, or None: each a tensor that broadcasts against one item, or
        a dict of such tensors for the fields that have bounds.
    """

    def __init__(
        self,
        values: Tree,
        *,
        fixed: Collection[str] = (),
        bounds: tuple[Tree, Tree] | None = None,
    ) -> None:
        super().__init__()
        self._bounded: list[str] = []
        self._structure = tree_map(lambda leaf: None, values)
        for name, leaf in named_leaves(values, "inputs").items():
            short = name.removeprefix("inputs.")
            if leaf.is_floating_point() and short not in fixed:
                # '.' may not stand in a parameter's name
                self.register_parameter(name.replace(".", "/"), nn.Parameter(leaf.detach().clone()))
            else:
                self.register_buffer(name.replace(".", "/"), leaf.detach().clone())
        if bounds is not None:
            self._bound(*bounds)

    def _bound(self, low: Tree, high: Tree) -> None:
        lows, highs = named_leaves(low, "inputs"), named_leaves(high, "inputs")
        for name, _ in self.named_parameters():
            dotted = name.replace("/", ".")
            key = dotted if dotted in lows else dotted.removeprefix("inputs.")
            if isinstance(low, Tensor):
                key = "inputs"
            if key in lows:
                self._bounded.append(name)
                self.register_buffer(f"low:{name}", lows[key], persistent=False)
                self.register_buffer(f"high:{name}", highs[key], persistent=False)

    def decode(self, index: Tensor | None) -> Tree:
        """Slice the stored tensors."""
        return self._take(self._structure, "inputs", index)

    def _take(self, structure: Tree, name: str, index: Tensor | None) -> Tree:
        if isinstance(structure, dict):
            return {key: self._take(sub, f"{name}/{key}", index) for key, sub in structure.items()}
        leaf = getattr(self, name)
        return leaf if index is None else leaf[index]

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clamp into the bounds, where they are given."""
        for name in self._bounded:
            leaf = getattr(self, name)
            low, high = getattr(self, f"low:{name}"), getattr(self, f"high:{name}")
            leaf.copy_(torch.minimum(torch.maximum(leaf, low), high))
