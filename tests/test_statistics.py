"""Statistics of groups against the formulas with explicit matrices and complex numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fakes import CASES, labels, noise, seeded

from mmdd.batch import Batch
from mmdd.objectives.distribution import DistributionMatching
from mmdd.objectives.statistics import characteristic_distances, covariance_distances

GROUPS = 3
SIZE = 5


def batch_of(count, seed, weights=None):
    """[count, 5] float64 features of three groups in turns."""
    features = noise(count, SIZE, seed=seed).double()
    return Batch(features, labels(count), labels(count), weights), features


def weights_of(count):
    """Unequal weights; one item of every group does not count."""
    weights = 0.5 + torch.arange(count) % 4
    weights[:3] = 0.0
    return weights


WEIGHTED = {"alike": lambda count: None, "weighted": weights_of}


@pytest.fixture(params=WEIGHTED)
def pair(request):
    weigh = WEIGHTED[request.param]
    return (*batch_of(24, 1, weigh(24)), *batch_of(9, 2, weigh(9)))


def of_group(batch, features, group):
    rows = [r for r in range(len(batch)) if int(batch.groups[r]) == group]
    weights = batch.item_weights[rows].double()
    return features[rows], weights / weights.sum()


def covariance(items, shares):
    """D x D, written out."""
    mean = sum(share * row for share, row in zip(shares, items, strict=True))
    return sum(
        share * torch.outer(row - mean, row - mean)
        for share, row in zip(shares, items, strict=True)
    )


def characteristic(items, shares, t):
    """[F] complex mean of exp(i t.z) of rows of length one."""
    unit = items / items.norm(dim=1, keepdim=True)
    return (shares[:, None] * torch.exp(1j * (unit @ t.T))).sum(dim=0)


def cf(real, real_f, synthetic, synthetic_f, *, frequencies=7, amplitude=0.5, seed=4):
    return characteristic_distances(
        real,
        real_f,
        synthetic,
        synthetic_f,
        GROUPS,
        frequencies=frequencies,
        amplitude=amplitude,
        generator=seeded(seed),
    )


# -- covariances -----------------------------------------------------------------------------------


def test_covariance_distances_are_those_of_the_matrices(pair):
    found = covariance_distances(*pair, GROUPS)
    for group in range(GROUPS):
        a = covariance(*of_group(*pair[:2], group))
        b = covariance(*of_group(*pair[2:], group))
        torch.testing.assert_close(found[group], (a - b).square().sum())


def test_equal_samples_have_equal_covariances():
    real, features = batch_of(12, 1)
    found = covariance_distances(real, features, real, features, GROUPS)
    torch.testing.assert_close(found, torch.zeros(GROUPS).double(), rtol=0, atol=1e-12)
    # a shift is the means' affair, a repetition nobody's
    twice = Batch(None, None, torch.cat([real.groups, real.groups]))
    moved = torch.cat([features, features]) + 7.0
    found = covariance_distances(real, features, twice, moved, GROUPS)
    torch.testing.assert_close(found, torch.zeros(GROUPS).double(), rtol=0, atol=1e-9)


def test_one_item_has_no_spread():
    real, real_f = batch_of(12, 1)
    single, single_f = batch_of(3, 2)
    found = covariance_distances(real, real_f, single, single_f, GROUPS)
    for group in range(GROUPS):
        expected = covariance(*of_group(real, real_f, group)).square().sum()
        torch.testing.assert_close(found[group], expected)


def test_the_gradient_of_covariance_distances(pair):
    real, real_f, synthetic, synthetic_f = pair
    assert torch.autograd.gradcheck(
        lambda f: covariance_distances(real, real_f, synthetic, f, GROUPS),
        synthetic_f.requires_grad_(),
    )


# -- characteristic functions ----------------------------------------------------------------------


@pytest.mark.parametrize("amplitude", [0.0, 0.3, 1.0])
def test_characteristic_distances_are_those_of_complex_means(pair, amplitude):
    found = cf(*pair, amplitude=amplitude)
    t = torch.randn(7, SIZE, generator=seeded(4)).double()
    for group in range(GROUPS):
        a = characteristic(*of_group(*pair[:2], group), t)
        b = characteristic(*of_group(*pair[2:], group), t)
        sizes = (a.abs() - b.abs()) ** 2
        phases = 2 * (a.abs() * b.abs() - (a * b.conj()).real)
        expected = (amplitude * sizes + (1 - amplitude) * phases).sqrt().mean()
        torch.testing.assert_close(found[group], expected, rtol=1e-6, atol=1e-7)


def test_amplitudes_and_phases_make_the_whole_distance(pair):
    """|a - b|^2 is amplitudes plus phases: at equal weights the distance is |a - b| / sqrt 2."""
    t = torch.randn(7, SIZE, generator=seeded(4)).double()
    found = cf(*pair, amplitude=0.5)
    for group in range(GROUPS):
        a = characteristic(*of_group(*pair[:2], group), t)
        b = characteristic(*of_group(*pair[2:], group), t)
        torch.testing.assert_close(found[group], (a - b).abs().mean() / 2**0.5, rtol=1e-6, atol=0)


def test_equal_samples_have_equal_characteristic_functions():
    real, features = batch_of(12, 1)
    assert cf(real, features, real, features).abs().max() < 1e-5
    # items are compared by direction alone
    assert cf(real, features, real, 3 * features).abs().max() < 1e-5
    other = noise(12, SIZE, seed=8).double()
    assert cf(real, features, real, other).min() > 0.05


def test_the_gradient_of_characteristic_distances(pair):
    real, real_f, synthetic, synthetic_f = pair
    assert torch.autograd.gradcheck(
        lambda f: cf(real, real_f, synthetic, f), synthetic_f.requires_grad_()
    )


def test_the_gradient_is_finite_where_nothing_differs():
    real, features = batch_of(12, 1)
    leaf = features.clone().requires_grad_()
    (cf(real, features, real, leaf).sum() + covariance_distances(
        real, features, real, leaf, GROUPS
    ).sum()).backward()  # fmt: skip
    assert torch.isfinite(leaf.grad).all()


# -- in the objective ------------------------------------------------------------------------------


def grouped_step(name, **more):
    case = CASES[name]()
    return case.step(case.learner(precision="float64"), case.start(), **more)


def features_of(step):
    real, synthetic = step.real.select(torch.arange(len(step.real))), step.synthetic.batch()
    params = step.drawn.params
    return (
        real,
        step.learner.features(params, real),
        synthetic,
        step.learner.features(params, synthetic),
    )


@pytest.mark.parametrize("name", ["separable", "joint", "masked"])
def test_covariance_is_an_option_of_distribution_matching(name):
    step = grouped_step(name)
    found = DistributionMatching(statistic="covariance", covariance_weight=3.0)(step)
    real, real_f, synthetic, synthetic_f = features_of(step)
    expected = 0.0
    for group in range(GROUPS):
        both = []
        for batch, values in ((real, real_f), (synthetic, synthetic_f)):
            rows = (batch.groups == group) & (batch.item_weights != 0)
            both.append((values[rows].mean(dim=0), torch.cov(values[rows].T, correction=0)))
        (mean_a, cov_a), (mean_b, cov_b) = both
        expected = expected + (mean_a - mean_b).square().sum()
        expected = expected + 3.0 / real_f.shape[1] * (cov_a - cov_b).square().sum()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["separable", "joint", "masked"])
def test_characteristic_is_an_option_of_distribution_matching(name):
    step = dataclasses.replace(grouped_step(name), number=7, seed=3)
    options = {"frequencies": 16, "amplitude": 0.2}
    found = DistributionMatching(statistic="characteristic", **options)(step)
    expected = characteristic_distances(
        *features_of(step), GROUPS, **options, generator=step.random("frequencies/12")
    )
    torch.testing.assert_close(found, expected.sum())


def test_frequencies_are_new_at_every_step_and_the_same_at_every_pass():
    step = grouped_step("separable")
    objective = DistributionMatching(statistic="characteristic", frequencies=16)
    assert torch.equal(objective(step), objective(step))
    later = dataclasses.replace(step, number=1)
    assert not torch.equal(objective(step), objective(later))


@pytest.mark.parametrize("name", ["separable", "joint", "masked"])
@pytest.mark.parametrize("statistic", ["covariance", "characteristic"])
@pytest.mark.parametrize("features", ["last", "all"])
def test_passes_over_groups_add_up(name, statistic, features):
    step = grouped_step(name)
    objective = DistributionMatching(statistic=statistic, features=features, frequencies=16)
    whole = objective(step)
    parts = [objective(step.of_groups(torch.tensor(groups))) for groups in ([0, 2], [1])]
    torch.testing.assert_close(parts[0] + parts[1], whole)
