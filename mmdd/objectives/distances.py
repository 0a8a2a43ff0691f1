"""Distances between gradients, given as dictionaries with one gradient per parameter.

Shape suffixes: G gradients of each parameter (one per group), O output units, I inputs of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mmdd.learner import Params

Distance = Literal["layerwise-cosine", "cosine", "mse", "relative-mse", "l1"]

EPS = 1e-6
"""Added to the product of two lengths, as in the code of Zhao et al. 2021."""


def layerwise_cosine(real: Params, synthetic: Params) -> Tensor:
    r"""[G] :math:`\sum_\theta \sum_i 1 - \langle a_i, b_i \rangle / (|a_i| |b_i| + \epsilon)`.

    DC (Zhao et al. 2021, eq. 10): i runs over the output units, the first axis of every weight
    [G, O, ...]. Parameters with a single axis (biases, norms) do not count, as in the published
    code.
    """
    total = _zeros(synthetic)
    for name, a in real.items():
        if a.ndim > 2:
            total = total + _one_minus_cosine(_rows(a, 2), _rows(synthetic[name], 2)).sum(dim=1)
    return total


def cosine(real: Params, synthetic: Params) -> Tensor:
    """[G] one minus the cosine of the angle between the concatenated gradients."""
    joined = [torch.cat([_rows(g[name], 1) for name in real], dim=1) for g in (real, synthetic)]
    return _one_minus_cosine(joined[0], joined[1])


def squared(real: Params, synthetic: Params) -> Tensor:
    """[G] sum of the squared differences."""
    total = _zeros(synthetic)
    for name, a in real.items():
        total = total + (_rows(a, 1) - _rows(synthetic[name], 1)).square().sum(dim=1)
    return total


def relative(real: Params, synthetic: Params) -> Tensor:
    """[G] `squared` over the squared length of the real gradients (DosCond, whole graphs)."""
    length = sum((_rows(a, 1).square().sum(dim=1) for a in real.values()), _zeros(real))
    return squared(real, synthetic) / length.clamp_min(torch.finfo(length.dtype).tiny)


def absolute(real: Params, synthetic: Params) -> Tensor:
    """[G] sum of the absolute differences (IDC, Kim et al. 2022)."""
    total = _zeros(synthetic)
    for name, a in real.items():
        total = total + (_rows(a, 1) - _rows(synthetic[name], 1)).abs().sum(dim=1)
    return total


DISTANCES: dict[str, Callable[[Params, Params], Tensor]] = {
    "layerwise-cosine": layerwise_cosine,
    "cosine": cosine,
    "mse": squared,
    "relative-mse": relative,
    "l1": absolute,
}


def _one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """[..., I] twice -> [...]; 1 where a row is zero."""
    return 1 - (a * b).sum(dim=-1) / (_length(a) * _length(b) + EPS)


def _length(rows: Tensor) -> Tensor:
    # A root has no derivative at zero: there the length is held at the smallest number.
    return rows.square().sum(dim=-1).clamp_min(torch.finfo(rows.dtype).tiny).sqrt()


def _rows(gradient: Tensor, kept: int) -> Tensor:
    """Flatten all axes after the first `kept`; a complex number counts as two real ones."""
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient)
    return gradient.unsqueeze(-1).flatten(kept)


def _zeros(gradients: Params) -> Tensor:
    """[G] zeros."""
    first = next(iter(gradients.values()))
    real = first.real if first.is_complex() else first
    return torch.zeros(first.shape[0], dtype=real.dtype, device=first.device)
