"""Distances between gradients against plainly written loops, and where they have no derivative."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import noise

from mmdd.objectives.distances import DISTANCES, EPS

G = 2
SHAPES = {
    "conv": (3, 2, 3, 3),
    "linear": (4, 5),
    "recurrent": (8, 3),
    "bias": (4,),
    "scale": (),
}


def gradients(seed: int) -> dict[str, torch.Tensor]:
    return {
        name: noise(G, *shape, seed=seed + place).double()
        for place, (name, shape) in enumerate(SHAPES.items())
    }


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def one_minus_cosine(a, b):
    return 1 - dot(a, b) / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b)) + EPS)


def plain(kind: str, real: dict, synthetic: dict) -> float:
    """The distance of one group's gradients, over lists of numbers."""
    if kind == "layerwise-cosine":
        return sum(
            one_minus_cosine(a.flatten().tolist(), b.flatten().tolist())
            for name in real
            if real[name].ndim > 1
            for a, b in zip(real[name], synthetic[name], strict=True)
        )
    a = [x for name in real for x in real[name].flatten().tolist()]
    b = [x for name in real for x in synthetic[name].flatten().tolist()]
    if kind == "cosine":
        return one_minus_cosine(a, b)
    if kind == "relative-mse":
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / dot(a, a)
    power = {"mse": 2, "l1": 1}[kind]
    return sum(abs(x - y) ** power for x, y in zip(a, b, strict=True))


@pytest.fixture(params=DISTANCES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_value_equals_a_plain_loop(kind):
    real, synthetic = gradients(1), gradients(20)
    found = DISTANCES[kind](real, synthetic)
    assert found.shape == (G,)
    for g in range(G):
        expected = plain(kind, *({n: v[g] for n, v in side.items()} for side in (real, synthetic)))
        assert float(found[g]) == pytest.approx(expected, rel=1e-12)


def test_a_gradient_is_at_no_distance_from_itself(kind):
    real = gradients(1)
    found = DISTANCES[kind](real, real)
    # the constant in the denominator leaves a trace of its own size
    assert float(found.abs().max()) < 100 * EPS


def test_only_the_cosines_ignore_length(kind):
    real, synthetic = gradients(1), gradients(20)
    longer = {name: 3 * value for name, value in synthetic.items()}
    before, after = DISTANCES[kind](real, synthetic), DISTANCES[kind](real, longer)
    assert torch.allclose(before, after, atol=1e-4) == kind.endswith("cosine")


def test_derivative_equals_finite_differences(kind):
    real, synthetic = gradients(1), gradients(20)
    names = list(synthetic)

    def value(*tensors):
        return DISTANCES[kind](real, dict(zip(names, tensors, strict=True)))

    tensors = [synthetic[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(value, tensors, eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("empty", ["real", "synthetic", "both"])
def test_zero_gradients_give_finite_values_and_derivatives(kind, empty, dtype):
    real, synthetic = (
        {name: value.to(dtype) for name, value in gradients(seed).items()} for seed in (1, 20)
    )
    if empty != "synthetic":
        real["linear"] = torch.zeros_like(real["linear"])
    if empty != "real":
        synthetic["linear"] = torch.zeros_like(synthetic["linear"])
    for value in synthetic.values():
        value.requires_grad_()
    found = DISTANCES[kind](real, synthetic)
    assert torch.isfinite(found).all()
    found.sum().backward()
    for name, value in synthetic.items():
        if value.grad is not None:
            assert torch.isfinite(value.grad).all(), name


def test_a_dead_unit_counts_as_at_right_angles():
    zero = {"weight": torch.zeros(1, 4, 5)}
    found = DISTANCES["layerwise-cosine"]({"weight": noise(1, 4, 5)}, zero)
    assert found.tolist() == [4.0]


def test_a_complex_number_counts_as_two_real_ones(kind):
    pair = [torch.complex(noise(G, 3, 4, seed=s), noise(G, 3, 4, seed=s + 1)) for s in (1, 5)]
    as_real = [torch.view_as_real(z).flatten(2) for z in pair]
    found = DISTANCES[kind](*({"weight": z} for z in pair))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, DISTANCES[kind](*({"weight": z} for z in as_real)))
