"""Distribution matching: the synthetic features of a group are to look like its real features.

Shape suffixes: n items, G groups, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.objectives.statistics import characteristic_distances, covariance_distances
from mmdd.step import Objective, Step

Kernel = Literal["linear", "polynomial", "gaussian"]


class DistributionMatching(Objective):
    r"""DM (Zhao & Bilen 2023, eq. 4): :math:`\sum_g \lVert \bar f^{real}_g - \bar f^{syn}_g
    \rVert^2` at a random net.

    Parameters
    ----------
    features: ``last`` compares the penultimate features (the paper); ``all`` adds the outputs of
        every block (CAFE-like), each divided by its own width times that of the last.
    moments: how many moments are compared: 1 the means; 2 adds the variances per feature; 3 and 4
        the higher central moments (as in CMD, Zellinger et al. 2017).
    moment_weights: factor of each moment; ones if not given.
    kernel: compare whole samples instead of moments by the squared maximum mean discrepancy (M3D).
        ``gaussian`` bandwidths are `bandwidths` times the median distance of the real sample.
    statistic: ``moments``; ``covariance``: means, and `covariance_weight` / D times the squared
        distance of the covariances (DSDM); ``characteristic``: characteristic functions at
        `frequencies` random frequencies, `amplitude` weighing amplitudes against phases (NCFM).
    """  # noqa: D205

    by_group = True

    def __init__(
        self,
        features: Literal["last", "all"] = "last",
        moments: int = 1,
        moment_weights: Sequence[float] | None = None,
        kernel: Kernel | None = None,
        bandwidths: Sequence[float] = (0.5, 1.0, 2.0),
        statistic: Literal["moments", "covariance", "characteristic"] = "moments",
        covariance_weight: float = 1.0,
        frequencies: int = 1024,
        amplitude: float = 0.5,
    ) -> None:
        self.features = features
        self.statistic = statistic
        self.covariance_weight = covariance_weight
        self.frequencies, self.amplitude = frequencies, amplitude
        self.moment_weights = list(moment_weights or [1.0] * moments)
        self.kernel = kernel
        self.bandwidths = list(bandwidths)

    def __call__(self, step: Step) -> Tensor:
        """Sum over groups; groups absent from either batch do not count."""
        with torch.no_grad():
            real = step.real_batch()
            real_features = self._features(step, real)
        synthetic = step.synthetic_batch()
        synthetic_features = self._features(step, synthetic)
        real, synthetic, groups = renumbered(real, synthetic)
        total = torch.zeros((), device=synthetic.groups.device)
        last = real_features[-1].shape[1]
        for real_f, synthetic_f in zip(real_features, synthetic_features, strict=True):
            scale = 1.0 if self.features == "last" else last / real_f.shape[1]
            pair = (real, real_f, synthetic, synthetic_f)
            if self.statistic == "characteristic":
                total = total + scale * self._characteristic(step, groups, *pair)
            else:
                total = total + scale * self._distance(groups, *pair)
        return total

    def _features(self, step: Step, batch: Batch) -> list[Tensor]:
        if self.features == "all":
            return step.learner.layers(step.drawn.params, batch)
        return [step.learner.features(step.drawn.params, batch)]

    def _distance(
        self, groups: int, real: Batch, real_f: Tensor, synthetic: Batch, synthetic_f: Tensor
    ) -> Tensor:
        if self.kernel is not None:
            return self._kernel_distance(real, real_f, synthetic, synthetic_f)
        both = (real.present(groups) & synthetic.present(groups)).to(synthetic_f.dtype)
        pairs = zip(
            central_moments(real, real_f, groups, len(self.moment_weights)),
            central_moments(synthetic, synthetic_f, groups, len(self.moment_weights)),
            self.moment_weights,
            strict=True,
        )
        total = sum(
            (weight * (both * (a - b).square().sum(dim=1)).sum() for a, b, weight in pairs),
            start=torch.zeros((), device=both.device),
        )
        if self.statistic == "covariance":
            found = covariance_distances(real, real_f, synthetic, synthetic_f, groups)
            total = total + self.covariance_weight / real_f.shape[1] * (both * found).sum()
        return total

    def _characteristic(
        self,
        step: Step,
        groups: int,
        real: Batch,
        real_f: Tensor,
        synthetic: Batch,
        synthetic_f: Tensor,
    ) -> Tensor:
        # a stream of the width's own: layers of equal width share frequencies, others do not
        found = characteristic_distances(
            real,
            real_f,
            synthetic,
            synthetic_f,
            groups,
            frequencies=self.frequencies,
            amplitude=self.amplitude,
            generator=step.random(f"frequencies/{real_f.shape[1]}"),
        )
        both = real.present(groups) & synthetic.present(groups)
        return (found * both.to(found.dtype)).sum()

    def _kernel_distance(
        self, real: Batch, real_f: Tensor, synthetic: Batch, synthetic_f: Tensor
    ) -> Tensor:
        # starts on the graph, so that a pass without common groups has a gradient too: zero
        total = 0.0 * synthetic_f.sum()
        for group in torch.unique(synthetic.groups).tolist():
            a, weights_a = _of_group(real, real_f, group)
            b, weights_b = _of_group(synthetic, synthetic_f, group)
            if len(a) and len(b):
                total = total + squared_mmd(
                    a, b, self.kernel or "linear", self.bandwidths, weights_a, weights_b
                )
        return total


def _of_group(batch: Batch, features: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Features and weights of the items of one group that count."""
    keep = (batch.groups == group) & (batch.item_weights != 0)
    return features[keep], batch.item_weights[keep].to(features.dtype)


def renumbered(real: Batch, synthetic: Batch) -> tuple[Batch, Batch, int]:
    """Number the groups of both batches 0..k-1, so that cost follows the groups that are there.

    A pass over a few of ten thousand classes would else build means for all of them.
    """
    there = torch.bincount(torch.cat([real.groups, synthetic.groups])) != 0
    if bool(there.all()):
        return real, synthetic, len(there)
    number = there.cumsum(0) - 1
    pair = [dataclasses.replace(batch, groups=number[batch.groups]) for batch in (real, synthetic)]
    return pair[0], pair[1], int(there.sum())


def central_moments(batch: Batch, features: Tensor, groups: int, count: int) -> list[Tensor]:
    """[n, D] -> mean [G, D] and the central moments 2..count [G, D] of every group."""
    means = batch.group_means(features, groups)
    if count == 1:
        return [means]
    centred = features - means[batch.groups]
    higher = [batch.group_means(centred**power, groups) for power in range(2, count + 1)]
    return [means, *higher]


def squared_mmd(
    a: Tensor,
    b: Tensor,
    kernel: Kernel,
    bandwidths: Sequence[float],
    weights_a: Tensor | None = None,
    weights_b: Tensor | None = None,
) -> Tensor:
    """Biased squared maximum mean discrepancy of [n, D] and [m, D] (Gretton et al. 2012, eq. 5).

    Items count by their weights [n] and [m], alike if not given.
    """
    p, q = _shares(a, weights_a), _shares(b, weights_b)
    if kernel == "gaussian":
        scale = _median_square_distance(a)

        def k(x: Tensor, y: Tensor) -> Tensor:
            square = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
            return sum(
                (torch.exp(-square / (2 * scale * width**2)) for width in bandwidths),
                start=torch.zeros_like(square),
            ) / len(bandwidths)

    else:
        power = 1 if kernel == "linear" else 2
        offset = 0.0 if kernel == "linear" else 1.0

        def k(x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.T / (1.0 if kernel == "linear" else x.shape[1]) + offset) ** power

    return p @ k(a, a) @ p + q @ k(b, b) @ q - 2 * p @ k(a, b) @ q


def _shares(items: Tensor, weights: Tensor | None) -> Tensor:
    weights = torch.ones_like(items[:, 0]) if weights is None else weights
    return weights / weights.sum()


def _median_square_distance(a: Tensor) -> Tensor:
    # A sample is enough for a scale, and a constant: no gradient runs through it.
    distances = torch.pdist(a.detach()[:256]).square()
    one = torch.ones((), device=a.device, dtype=a.dtype)
    if distances.numel() == 0:
        return one
    # repeated items give a median of zero, which would blind the kernel
    for scale in (distances.median(), distances.mean()):
        if scale > torch.finfo(a.dtype).tiny:
            return scale
    return one
