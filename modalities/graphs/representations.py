"""What the learned graphs share: features of nodes, and a dense adjacency made when they decode.

Shape suffixes: M stored nodes of one graph, or M stored graphs of n nodes; d features; P = n(n-1)/2
pairs of nodes. ``adjacency[i, j]`` is the weight of the edge from j to i.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from mmdd import rng
from mmdd.errors import UserError
from mmdd.representations import ROOT, FieldWise, fields, short_name
from mmdd.trees import Tree, tree_take

X, MASK, ADJACENCY = f"{ROOT}/x", f"{ROOT}/mask", f"{ROOT}/adjacency"


class Linked(FieldWise):
    """Base of those that decode nodes into ``{"x", "adjacency"}``, symmetric, without self-loops.

    From items {"x": [1, d]} the stored items are the nodes of one graph: `joint`. From items
    {"x": [1, n, d], "adjacency": [1, n, n], "mask": [1, n]} they are graphs of their own, and
    ``mask`` is decoded too: a masked node has zero features, no edge and no gradient.

    Features are the leaf ``inputs.x``; what the edges are made from is under ``inputs.adjacency``.
    """

    def __init__(self, example: Tree) -> None:
        given = fields(example) if isinstance(example, dict) else {}
        axes = given[X].ndim if X in given else 0
        wanted = {2: {X, ADJACENCY}, 3: {X, ADJACENCY, MASK}}.get(axes, set())
        if not given or not set(given) <= wanted or (axes == 3 and set(given) != wanted):
            raise UserError(
                "this representation is for the nodes of a graph, or for whole graphs",
                got={short_name(name): tuple(leaf.shape) for name, leaf in given.items()} or None,
                expected="fields x [n, d], or x [n, m, d] with adjacency and mask",
                hint="Use representation 'direct' for items without edges.",
            )
        super().__init__({name: example[name] for name in ("x", "mask") if name in example})
        self.joint = axes == 2
        self.features = given[X].shape[-1]
        self.settled = False

    @classmethod
    def needs(cls, example: Tree, **options: Any) -> int:
        """One start item per stored one; `UserError` when items or options do not fit."""
        cls(example, **options)
        return 1

    @classmethod
    def of_items(
        cls,
        values: Tree,
        *,
        bounds: tuple[Tree, Tree] | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Self:
        """Start at the nodes or graphs `values`; for nodes an ``adjacency`` [M, M] is optional.

        What the edges start from without one is drawn from `generator`.
        """
        made = cls(tree_take(values, slice(0, 1)), **options)
        values = made._fitted(values)
        stored = {field: leaf for field, leaf in fields(values).items() if field in made._fields}
        stream = rng.generator(0, "edges") if generator is None else generator
        return made._ready({**stored, **made._start(values, stream)}, bounds)

    def _ready(self, stored: dict[str, Tensor], bounds: tuple[Tree, Tree] | None) -> Self:
        self._note_form(stored)
        made = super()._ready(stored, bounds)
        self._check()
        return made

    def _names(self) -> list[str]:
        return [*super()._names(), *self._edge_names()]

    def _check(self) -> None:
        """Raise `UserError` unless the stored tensors fit each other and the options."""
        x, mask = getattr(self, X), getattr(self, MASK, None)
        wanted = {X: (*x.shape[:-1], self.features), **self._edge_shapes()}
        if mask is not None:
            wanted[MASK] = x.shape[:-1]
        for name, shape in wanted.items():
            found = tuple(getattr(self, name).shape)
            if found != tuple(shape) or x.ndim != 3 - self.joint:
                raise UserError(
                    f"the stored tensor {short_name(name)!r} does not fit the options",
                    got=found,
                    expected=f"shape {tuple(shape)}",
                )

    @property
    def nodes(self) -> int:
        """Nodes of the one graph, or of each graph, masked ones included."""
        return int(getattr(self, X).shape[-2])

    def decode(self, index: Tensor | None) -> Tree:
        """Features, adjacency and mask; nodes of one graph are only decoded all together."""
        assert index is None or not self.joint, "the nodes of one graph are decoded as a whole"
        found, adjacency = super().decode(index), self._adjacency(index)
        mask = found.get("mask")
        if mask is None:
            return {**found, "adjacency": adjacency}
        both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
        zero = adjacency.new_zeros(())
        return {
            "x": torch.where(mask.unsqueeze(-1), found["x"], zero),
            "adjacency": torch.where(both, adjacency, zero),
            "mask": mask,
        }

    def settle(self) -> dict[str, Tensor]:
        """Tensors of the finished set, from which `of_state` builds what decodes alike.

        By default the stored ones. A representation whose edges take less room than what they were
        learned as stores those: they are fixed from then on.
        """
        return {name: value.detach().clone() for name, value in self.state_dict().items()}

    # -- what a representation of edges defines --------------------------------------------------

    def _fitted(self, values: Tree) -> Tree:
        """Start values of the shapes that are stored."""
        return values

    def _note_form(self, stored: dict[str, Tensor]) -> None:
        """Look whether the tensors are those of a settled set."""

    def _edge_names(self) -> list[str]:
        """Names of the tensors that edges are made from."""
        raise AssertionError("a representation of edges defines _edge_names")

    def _edge_shapes(self) -> dict[str, tuple[int, ...]]:
        """Their shapes, known from the features and the options."""
        raise AssertionError("a representation of edges defines _edge_shapes")

    def _start(self, values: Tree, generator: torch.Generator) -> dict[str, Tensor]:
        """Their first values."""
        raise AssertionError("a representation of edges defines _start")

    def _adjacency(self, index: Tensor | None) -> Tensor:
        """[n, n], or [m, n, n] of the graphs `index`; masks are seen to by `decode`."""
        raise AssertionError("a representation of edges defines _adjacency")


# -- pairs of nodes --------------------------------------------------------------------------------


def mirrored(pairs: Tensor, nodes: int) -> Tensor:
    """[..., P] values of the pairs i < j, row by row -> [..., n, n] with a zero diagonal.

    Symmetric to the bit, which functions of a symmetric matrix need not be.
    """
    rows, columns = torch.triu_indices(nodes, nodes, 1, device=pairs.device)
    flat = pairs.new_zeros(*pairs.shape[:-1], nodes * nodes)
    upper = flat.index_copy(-1, rows * nodes + columns, pairs).unflatten(-1, (nodes, nodes))
    return upper + upper.mT


def of_pairs(square: Tensor) -> Tensor:
    """[..., n, n] -> [..., P] entries above the diagonal, row by row."""
    nodes = square.shape[-1]
    rows, columns = torch.triu_indices(nodes, nodes, 1, device=square.device)
    return square[..., rows, columns]


def without_loops(square: Tensor) -> Tensor:
    """[..., n, n] with a zero diagonal."""
    nodes = square.shape[-1]
    loops = torch.eye(nodes, dtype=torch.bool, device=square.device)
    return square.masked_fill(loops, 0.0)


def cropped(values: Tree, nodes: int) -> Tree:
    """Graphs {"x": [K, m, d], "adjacency": [K, m, m], "mask": [K, m]} brought to `nodes` nodes.

    A larger graph keeps its `nodes` nodes of highest (weighted) degree, of equal ones the first,
    in their order; a smaller one is filled up with masked nodes.
    """
    x, adjacency, mask = values["x"], values["adjacency"], values["mask"]
    more = nodes - x.shape[1]
    if more >= 0:
        pad = torch.nn.functional.pad
        return {
            "x": pad(x, (0, 0, 0, more)),
            "adjacency": pad(adjacency, (0, more, 0, more)),
            "mask": pad(mask, (0, more)),
        }
    both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    degree = torch.where(both, adjacency, 0.0).sum(dim=-1).masked_fill(~mask, -1.0)
    order = torch.argsort(degree, dim=1, descending=True, stable=True)[:, :nodes]
    kept = order.sort(dim=1).values
    rows = torch.arange(len(kept), device=kept.device)[:, None]
    return {
        "x": x[rows, kept],
        "adjacency": adjacency[rows[..., None], kept[:, :, None], kept[:, None, :]],
        "mask": mask[rows, kept],
    }
