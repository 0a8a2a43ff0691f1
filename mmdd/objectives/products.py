"""Distances between gradients of linear layers, and their derivatives, from thin products.

With a real gradient a and a synthetic one b = E^T X, whose row b_i belongs to output unit i and e_i
is column i of E, the products that distances are made of need no b,

    <a_i, b_i> = sum_j E_ji <a_i, x_j>,    |b_i|^2 = e_i^T (X X^T) e_i,

which is less work as long as a group has few synthetic items. Where a distance has the derivatives
p_i and q_i with respect to the two, it has with respect to E and X (P and Q: p and q down every
column)

    P * (X a^T) + 2 Q * (X X^T E),    (P * E) a + (2 Q * E) E^T X.

Written out, that is fewer and larger steps than autograd takes, which counts where nets are small.

Shape suffixes: B groups and m items of each in a block, O outputs and I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmdd.learner import Params
from mmdd.objectives.distances import DISTANCES, EPS, Distance
from mmdd.objectives.linear_layers import Layers, Seen, formed


class Real(NamedTuple):
    """Gradients of real groups: [B, O, I] or [B, O] by name, or factors by the name of a layer.

    `exact` are the X of factors before they were rounded, of the layers where they are at hand.
    """

    formed: Params
    factors: dict[str, Seen]
    exact: Params


class Products(NamedTuple):
    """Of the real gradients a and the synthetic ones b of every output unit, [B, O] each."""

    ab: Tensor
    aa: Tensor
    bb: Tensor


class Slopes(NamedTuple):
    """Derivatives with respect to E [B, m, O] and X [B, m, I]; None where there are none."""

    errors: Tensor
    inputs: Tensor | None


Back = Callable[[Tensor, Tensor], Slopes]
"""From derivatives with respect to ab and bb [B, O] to those with respect to E and X."""


def compared(
    kind: Distance, real: Real, seen: dict[str, Seen], layers: Layers, factors: Tensor
) -> tuple[Tensor, dict[str, Slopes]]:
    """The sum of `factors` [B] times the distances, and its derivatives by layer.

    Distances are those of `mmdd.objectives.distances` but l1, which is no function of products.
    """
    found: dict[str, Products] = {}
    ways: list[tuple[str, Back]] = []
    for name, layer, part in layers.names():
        own = seen[layer]
        if part == "bias":
            made, back = _bias(real.formed[name], own)
        elif layers.short(layer, own.errors.shape[1]):
            made, back = _thin(real, name, layer, own)
        else:
            made, back = _whole(real.formed[name], own)
        found[name] = Products(made.ab.requires_grad_(), made.aa, made.bb.requires_grad_())
        ways.append((layer, back))
    with torch.enable_grad():
        value = (distance_of(kind, found) * factors).sum()
    leaves = [leaf for made in found.values() for leaf in (made.ab, made.bb)]
    found_slopes = torch.autograd.grad(value, leaves, materialize_grads=True)
    total: dict[str, Slopes] = {}
    for (layer, back), ab, bb in zip(ways, found_slopes[::2], found_slopes[1::2], strict=True):
        slopes = back(ab, bb)
        total[layer] = _sum(total[layer], slopes) if layer in total else slopes
    return value.detach(), total


def compared_formed(
    kind: Distance, real: Params, seen: dict[str, Seen], layers: Layers, factors: Tensor
) -> tuple[Tensor, dict[str, Slopes]]:
    """`compared`, for any distance, by synthetic gradients that are formed."""
    leaves = {
        layer: Seen(*(leaf.detach().requires_grad_() for leaf in own))
        for layer, own in seen.items()
    }
    with torch.enable_grad():
        value = (DISTANCES[kind](real, formed(leaves, layers.matched)) * factors).sum()
    asked = [leaf for own in leaves.values() for leaf in own]
    slopes = torch.autograd.grad(value, asked, materialize_grads=True)
    pairs = zip(leaves, slopes[::2], slopes[1::2], strict=True)
    return value.detach(), {layer: Slopes(errors, inputs) for layer, errors, inputs in pairs}


def _sum(one: Slopes, other: Slopes) -> Slopes:
    pairs = [part for part in (one.inputs, other.inputs) if part is not None]
    return Slopes(one.errors + other.errors, sum(pairs[1:], pairs[0]) if pairs else None)


# -- products --------------------------------------------------------------------------------------


def _bias(a: Tensor, own: Seen) -> tuple[Products, Back]:
    """The gradient [B, O] of a bias: the sum of the rows of E."""
    b = own.errors.sum(dim=1)

    def back(ab: Tensor, bb: Tensor) -> Slopes:
        return Slopes((ab * a + 2 * bb * b).unsqueeze(1).expand_as(own.errors), None)

    return Products(a * b, a.square(), b.square()), back


def _whole(a: Tensor, own: Seen) -> tuple[Products, Back]:
    """The gradient [B, O, I] of a weight, formed."""
    b = torch.bmm(own.errors.mT, own.inputs)

    def back(ab: Tensor, bb: Tensor) -> Slopes:
        slope = torch.addcmul(ab.unsqueeze(2) * a, 2 * bb.unsqueeze(2), b)
        errors = torch.bmm(own.inputs, slope.mT)
        return Slopes(errors, torch.bmm(own.errors, slope) if own.inputs.requires_grad else None)

    return Products(*((x * y).sum(dim=2) for x, y in ((a, b), (a, a), (b, b)))), back


def _thin(real: Real, name: str, layer: str, own: Seen) -> tuple[Products, Back]:
    """The gradient of a weight, not formed; the real one may be of factors too."""
    errors, inputs = (leaf.detach() for leaf in own)
    if layer in real.factors:
        told, rows = real.factors[layer]
        told, rows = told.to(inputs.dtype), real.exact.get(layer, rows).to(inputs.dtype)
        aa = _length(real.factors[layer], told)
        # the many rows first: on a CPU up to twice as fast as the few
        onto = torch.bmm(torch.bmm(rows, inputs.mT).mT, told)
    else:
        a = real.formed[name]
        aa, onto = torch.linalg.vector_norm(a, dim=2).square(), torch.bmm(inputs, a.mT)
    against = torch.bmm(torch.bmm(inputs, inputs.mT), errors)

    def back(ab: Tensor, bb: Tensor) -> Slopes:
        ab, bb = ab.unsqueeze(1), 2 * bb.unsqueeze(1)
        slope = torch.addcmul(ab * onto, bb, against)
        if not own.inputs.requires_grad:
            return Slopes(slope, None)
        if layer in real.factors:
            back_to = torch.bmm(torch.bmm(ab * errors, told.mT), rows)
        else:
            back_to = torch.bmm(ab * errors, a)
        return Slopes(slope, back_to.baddbmm_(torch.bmm(bb * errors, errors.mT), inputs))

    return Products((errors * onto).sum(dim=1), aa, (errors * against).sum(dim=1)), back


def _length(real: Seen, errors: Tensor) -> Tensor:
    """|a_i|^2 [B, O] of a real gradient that is not formed, by products in its own precision."""
    against = torch.bmm(torch.bmm(real.inputs, real.inputs.mT), real.errors)
    return (errors * against).sum(dim=1)


# -- distances -------------------------------------------------------------------------------------


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
