"""Mixing two batches of images while a learner is trained on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmdd.errors import UserError


def cutmix(
    x: Tensor, partner: Tensor, generator: torch.Generator, beta: float = 1.0
) -> tuple[Tensor, float]:
    """Paste one box of `partner` into `x`, at the same place for the whole batch (CutMix).

    Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features" (ICCV), section 3: with lambda ~ Beta(beta, beta) the box has the sides
    sqrt(1 - lambda) H and sqrt(1 - lambda) W, here rounded to whole pixels, and a centre uniform
    over the pixels; what lies beyond the border is lost.

    Parameters
    ----------
    x, partner: images [n, C, H, W] of one shape; neither is changed, gradients flow to both.
    generator: where every random number comes from; on the CPU.
    beta: both parameters of the beta distribution; 1 is the uniform one.

    Returns
    -------
    The mixed images [n, C, H, W], and the share of their pixels that are those of `x`: the weight
    of its targets in the loss, one minus it being that of the partner's.

    Errors: UserError for images of different shapes, a beta that is not above 0, or a generator
    elsewhere.
    """
    if x.ndim != 4 or partner.shape != x.shape:
        got = (list(x.shape), list(partner.shape))
        raise UserError("images that cannot be mixed", got=got, expected="two of [n, C, H, W]")
    if not (math.isfinite(beta) and beta > 0):
        raise UserError("beta of cutmix", got=beta, expected="a finite number above 0")
    if generator.device.type != "cpu":
        raise UserError("generator", got=str(generator.device), expected="one on the CPU")
    side = math.sqrt(1 - _beta(beta, generator))
    centres = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    rows, columns = (
        _cut(length, side, centre) for length, centre in zip(x.shape[2:], centres, strict=True)
    )
    box = rows[:, None] & columns
    kept = 1 - int(box.sum()) / box.numel()
    return torch.where(box.to(x.device), partner, x), kept


def _beta(beta: float, generator: torch.Generator) -> float:
    """Draw from Beta(beta, beta): G / (G + G') of two gamma variables of that shape."""
    if beta == 1:
        return float(torch.rand((), generator=generator, dtype=torch.float64))
    shape = torch.full((2,), beta, dtype=torch.float64)
    first, second = torch._standard_gamma(shape, generator=generator).tolist()
    return float(first / (first + second))


def _cut(length: int, side: float, centre: float) -> Tensor:
    """Mask [length] on the CPU, true within `side` (share of the length) about pixel `centre`."""
    size = int(length * side + 0.5)
    start = int(length * centre) - size // 2
    position = torch.arange(length)
    return (position >= start) & (position < start + size)
