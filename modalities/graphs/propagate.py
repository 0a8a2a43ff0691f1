"""Sums over neighbours and their normalisations, of dense, sparse and absent adjacency alike.

Throughout, w_ij is the weight of the edge j -> i, and no graph holds self-loops: layers add theirs.
Shape suffixes in this file: n nodes, E edges, d features; dense graphs may lead with [..., ].
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

Map = Callable[[Tensor], Tensor]

# -- fixed patterns of edges -----------------------------------------------------------------------


class Structure:
    """Who sends to whom, target after target: the pattern of a sparse matrix in rows (CSR).

    Parameters
    ----------
    source, target: [E] integers, sorted by target.
    count: n targets.
    senders: columns of the matrix; n if not given.

    Attributes
    ----------
    pointer: [n + 1] int32, where the edges of each target begin.
    source, target: [E] int32; copies, so that what they were made from can be forgotten.
    """

    def __init__(
        self, source: Tensor, target: Tensor, count: int, senders: int | None = None
    ) -> None:
        assert bool((target[1:] >= target[:-1]).all()), "edges are sorted by target"
        self.count, self.senders = count, count if senders is None else senders
        # int32 is what sparse kernels read: int64 is converted at every product.
        self.source, self.target = (ends.to(torch.int32, copy=True) for ends in (source, target))
        self.pointer = torch.zeros(count + 1, dtype=torch.int32, device=target.device)
        self.pointer[1:] = torch.bincount(target, minlength=count).cumsum(0)

    @functools.cached_property
    def reversed(self) -> tuple[Structure, Tensor]:
        """The pattern of the transposed matrix, and the order [E] in which it takes the values."""
        order = self.source.argsort(stable=True)
        ends = self.target[order], self.source[order]
        return Structure(*ends, self.senders, self.count), order


_STRUCTURES = WeakTensorKeyDictionary()
"""Patterns by the tensor that they were made from: a set hands over the same one at every step."""


@torch.compiler.disable
def structure_of(edge_index: Tensor, count: int) -> Structure:
    """The pattern of `edge_index` [2, E] on `count` nodes, made when it is first seen."""
    made = _STRUCTURES.get(edge_index)
    version = edge_index._version
    if made is None or made[0] != (count, version):
        made = (count, version), Structure(edge_index[0], edge_index[1], count)
        _STRUCTURES[edge_index] = made
    found: Structure = made[1]
    return found


with warnings.catch_warnings():
    # PyTorch says once that its sparse rows are in beta, which is nothing that a user can mend.
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


class _Product(torch.autograd.Function):
    """A sparse matrix times a dense one, differentiable in both as often as asked.

    PyTorch's own sparse tensors fail inside `torch.func`; here they do not leave `forward`. No
    [E, d] is made but for the gradient of the values.
    """

    @staticmethod
    def forward(structure: Structure, value: Tensor, h: Tensor) -> Tensor:
        size = (structure.count, structure.senders)
        matrix = torch.sparse_csr_tensor(
            structure.pointer, structure.source, value, size, check_invariants=False
        )
        return matrix @ h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Structure, Tensor, Tensor], output: Tensor) -> None:
        ctx.structure, value, h = inputs
        # states are as large as all activations: kept only if weights are differentiated
        ctx.save_for_backward(value, h if ctx.needs_input_grad[1] else None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (grad,) = grads
        value, h = ctx.saved_tensors
        structure: Structure = ctx.structure
        by_value = by_h = None
        if ctx.needs_input_grad[1]:
            ends = grad.index_select(0, structure.target), h.index_select(0, structure.source)
            by_value = (ends[0] * ends[1]).sum(dim=1)
        if ctx.needs_input_grad[2]:
            back, order = structure.reversed
            by_h = product(back, value[order], grad)
        return None, by_value, by_h

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], structure: Structure, value: Tensor, h: Tensor
    ) -> tuple[Tensor, int]:
        _, of_value, of_h = in_dims
        if of_value is None and of_h is not None:
            wide = h.movedim(of_h, -1)
            found = product(structure, value, wide.flatten(1))
            return found.unflatten(1, wide.shape[1:]), -1
        batch = range(info.batch_size)
        values = [value if of_value is None else value.select(of_value, i) for i in batch]
        states = [h if of_h is None else h.select(of_h, i) for i in batch]
        pairs = zip(values, states, strict=True)
        return torch.stack([product(structure, *pair) for pair in pairs]), 0


@torch.compiler.disable
def product(structure: Structure, value: Tensor, h: Tensor) -> Tensor:
    """[n, d] sums over edges of ``value[e] * h[source[e]]`` at their targets; `value` is [E]."""
    found: Tensor = _Product.apply(structure, value, h)
    return found


# -- features that are mostly zero -----------------------------------------------------------------

SPARSE_NUMBERS, SPARSE_SHARE = 2**20, 0.05
"""Features of at least so many numbers, of which at most this share is not zero, are multiplied by
weights as a sparse matrix: bags of words have one in a hundred."""

_FEATURES = WeakTensorKeyDictionary()
"""What is known of a feature matrix: seen once, too dense, or its pattern and values."""


@torch.compiler.disable
def sparse_features(x: Tensor) -> tuple[Structure, Tensor] | None:
    """Pattern and values of features [n, d] that stay the same and are mostly zero; else None.

    A matrix is looked at when it comes for the second time: what is made anew at every step is
    not worth it.
    """
    if x.ndim != 2 or x.numel() < SPARSE_NUMBERS or x.requires_grad:
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return None
    found = _FEATURES.get(x)
    if found is None or found[0] != x._version:
        _FEATURES[x] = (x._version, "once")
        return None
    if found[1] == "once":
        found = (x._version, _pattern(x))
        _FEATURES[x] = found
    kept: tuple[Structure, Tensor] | None = found[1]
    return kept


def _pattern(x: Tensor) -> tuple[Structure, Tensor] | None:
    if int(torch.count_nonzero(x)) > SPARSE_SHARE * x.numel():
        return None
    rows, columns = x.nonzero(as_tuple=True)
    return Structure(columns, rows, *x.shape), x[rows, columns]


def mapped(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` of a linear layer, by a sparse product where the features allow it."""
    found = sparse_features(x)
    if found is None:
        dense: Tensor = layer(x)
        return dense
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, Tensor)
    made = product(*found, weight.T)
    return made if not isinstance(bias, Tensor) else made + bias


# -- graphs ----------------------------------------------------------------------------------------


class Neighbours(abc.ABC):
    """The weights w_ij that node states are summed with."""

    @abc.abstractmethod
    def add(self, h: Tensor) -> Tensor:
        """[..., n, d] -> [..., n, d]: ``sum_j w_ij h_j`` at every node i."""

    @abc.abstractmethod
    def symmetric(self, *, loops: bool) -> Neighbours:
        r"""The weights :math:`w_{ij} / \sqrt{d_i d_j}`, d the weighted in-degree.

        With `loops` every node gets a loop of weight 1 first, which counts in d: GCN's
        :math:`\hat A = \tilde D^{-1/2} (A + I) \tilde D^{-1/2}` (Kipf & Welling 2017, eq. 2).
        Where d is 0 the weights are 0, and so are their derivatives.
        """

    @abc.abstractmethod
    def mean(self) -> Neighbours:
        """The weights ``w_ij / d_i``: neighbours are averaged; 0 for a node without any."""


@dataclasses.dataclass(frozen=True, eq=False)
class Edgeless(Neighbours):
    """No edges: every sum is 0; with `loops`, every node's own state."""

    loops: bool = False

    def add(self, h: Tensor) -> Tensor:
        """Each node's state, or zeros.

        A product, so that parameters behind it have a gradient of 0, as with a matrix of zeros.
        """
        return h if self.loops else h * 0.0

    def symmetric(self, *, loops: bool) -> Edgeless:
        """The identity with loops: all degrees are 1 then."""
        return Edgeless(loops)

    def mean(self) -> Edgeless:
        """No edges either."""
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class Dense(Neighbours):
    """`adjacency` [..., n, n] holds w_ij at [i, j]; differentiable in it as often as asked."""

    adjacency: Tensor

    def add(self, h: Tensor) -> Tensor:
        """A matrix product."""
        return self.adjacency @ h

    def symmetric(self, *, loops: bool) -> Dense:
        """The normalised matrix is made once for all layers."""
        weights = with_loops(self.adjacency) if loops else self.adjacency
        scale = _power(weights.sum(dim=-1), -0.5)
        return Dense(weights * scale.unsqueeze(-1) * scale.unsqueeze(-2))

    def mean(self) -> Dense:
        """Rows that sum to 1, or to 0 without neighbours."""
        scale = _power(self.adjacency.sum(dim=-1), -1.0)
        return Dense(self.adjacency * scale.unsqueeze(-1))


@dataclasses.dataclass(frozen=True, eq=False)
class Sparse(Neighbours):
    """Edges by target.

    Attributes
    ----------
    edge_index: [2, E] int64, sources and targets, sorted by (target, source).
    weight: [E] the w_ij.
    structure: their pattern.
    degree: [n] weighted in-degrees; of the whole graph, where this is a part of one.
    loop: [n] weight of each node's own state, or None for 0.
    """

    edge_index: Tensor
    weight: Tensor
    structure: Structure
    degree: Tensor
    loop: Tensor | None = None

    def add(self, h: Tensor) -> Tensor:
        """A sparse product."""
        found = product(self.structure, self.weight, h)
        return found if self.loop is None else found + self.loop.unsqueeze(-1) * h

    def symmetric(self, *, loops: bool) -> Sparse:
        """New weights of the same edges."""
        scale = (self.degree + 1).rsqrt() if loops else _power(self.degree, -0.5)
        source, target = self.edge_index
        weight = self.weight * scale[target] * scale[source]
        loop = scale.square() if loops else None
        return dataclasses.replace(self, weight=weight, loop=loop)

    def mean(self) -> Sparse:
        """New weights of the same edges."""
        scale = _power(self.degree, -1.0)
        return dataclasses.replace(self, weight=self.weight * scale[self.edge_index[1]])


def with_loops(adjacency: Tensor) -> Tensor:
    """[..., n, n] with 1 added along the diagonal."""
    size, device = adjacency.shape[-1], adjacency.device
    return adjacency + torch.eye(size, dtype=adjacency.dtype, device=device)


def _power(degree: Tensor, exponent: float) -> Tensor:
    """``degree ** exponent`` where it is positive, elsewhere 0, with a derivative of 0."""
    alive = degree > 0
    # two choices, since the derivative of what is not chosen would be 0 times infinity
    return torch.where(alive, torch.where(alive, degree, 1.0).pow(exponent), 0.0)


def in_cheaper_order(summed: Map, projected: Map, x: Tensor, *, smaller: bool) -> Tensor:
    """``projected(summed(x))`` of a sum over neighbours and a linear map of features: they commute.

    `smaller` tells that the map has fewer outputs than inputs, so that it had better come first.
    """
    return summed(projected(x)) if smaller else projected(summed(x))


# -- what encoders read ----------------------------------------------------------------------------


def read(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Neighbours]:
    """Node features [..., n, d] and their graph, from any of the forms that encoders take.

    ``{"x", "edge_index", "edge_weight"}``, with ``"degree"`` [n] where the nodes are a part of a
    larger graph; ``{"x", "adjacency"}``; ``{"x"}`` alone, without edges. A ``"mask"`` [..., n]
    tells which nodes of padded graphs exist: others are cut off, so that they neither have an
    influence nor a gradient.
    """
    x = inputs["x"]
    if "edge_index" in inputs:
        return x, _sparse(inputs, x.shape[0])
    adjacency, mask = inputs.get("adjacency"), inputs.get("mask")
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
    if adjacency is None:
        return x, Edgeless()
    if mask is not None:
        adjacency = adjacency.masked_fill(~(mask.unsqueeze(-1) & mask.unsqueeze(-2)), 0.0)
    return x, Dense(adjacency)


def _sparse(inputs: Mapping[str, Tensor], count: int) -> Sparse:
    edge_index, weight = inputs["edge_index"], inputs["edge_weight"]
    degree = inputs.get("degree")
    if degree is None:
        degree = weight.new_zeros(count).index_add(0, edge_index[1], weight)
    return Sparse(edge_index, weight, structure_of(edge_index, count), degree)
