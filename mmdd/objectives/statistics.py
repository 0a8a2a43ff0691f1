"""Statistics of features by which groups are compared, beyond their moments.

Shape suffixes: n items, G groups, D features, F frequencies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdd.batch import Batch

TINY = 1e-12


def covariance_distances(
    real: Batch, real_f: Tensor, synthetic: Batch, synthetic_f: Tensor, groups: int
) -> Tensor:
    r"""[G] squared Frobenius distance of the groups' feature covariances (DSDM, Li et al. 2024).

    :math:`\lVert A^T A - B^T B \rVert^2 = \lVert A A^T \rVert^2 + \lVert B B^T \rVert^2 - 2 \lVert
    A B^T \rVert^2` with centred rows of length :math:`1/\sqrt n`: products of items with items, so
    that the D x D covariances are never formed.
    """
    found = []
    for group in range(groups):
        a = _centred(real, real_f, group)
        b = _centred(synthetic, synthetic_f, group)
        inner = (a @ a.T).square().sum() - 2 * (a @ b.T).square().sum()
        found.append(inner + (b @ b.T).square().sum())
    return torch.stack(found)


def _centred(batch: Batch, features: Tensor, group: int) -> Tensor:
    """[n_g, D] rows whose product with themselves is the covariance of the group."""
    keep = torch.nonzero((batch.groups == group) & (batch.item_weights != 0)).flatten()
    weights = batch.item_weights[keep].to(features.dtype)
    shares = (weights / weights.sum().clamp_min(torch.finfo(features.dtype).tiny)).unsqueeze(1)
    items = features[keep]
    return (items - (shares * items).sum(dim=0)) * shares.sqrt()


def characteristic_distances(
    real: Batch,
    real_f: Tensor,
    synthetic: Batch,
    synthetic_f: Tensor,
    groups: int,
    *,
    frequencies: int,
    amplitude: float,
    generator: torch.Generator,
) -> Tensor:
    r"""[G] distance of the empirical characteristic functions (NCFM, Wang et al. 2025).

    :math:`\operatorname{mean}_t \sqrt{\alpha (|\phi| - |\tilde\phi|)^2 + (1 - \alpha) \, 2
    (|\phi||\tilde\phi| - \operatorname{Re} \phi \overline{\tilde\phi})}` at frequencies t ~ N(0, I)
    of features that are normalised to length one per item.
    """
    t = torch.randn(frequencies, real_f.shape[1], generator=generator).to(real_f)
    ours = _characteristic(synthetic, synthetic_f, groups, t)
    theirs = _characteristic(real, real_f, groups, t)
    sizes = [(re.square() + im.square()).clamp_min(TINY).sqrt() for re, im in (ours, theirs)]
    amplitudes = (sizes[0] - sizes[1]).square()
    apart = (ours[0] - theirs[0]).square() + (ours[1] - theirs[1]).square()
    # the phase term is apart - amplitudes; products of near equals, as it is written above, would
    # leave rounding errors whose square root is not small
    inside = (2 * amplitude - 1) * amplitudes + (1 - amplitude) * apart
    return inside.clamp_min(TINY).sqrt().mean(dim=1)


def _characteristic(
    batch: Batch, features: Tensor, groups: int, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Real and imaginary part [G, F] of the mean of exp(i t.z)."""
    angles = F.normalize(features, dim=1) @ t.T
    weights = batch.group_weights(groups, angles.dtype)
    return weights @ angles.cos(), weights @ angles.sin()
