"""A synthetic series: windows that are views of one leaf, in time and in frequency."""

import numpy as np
import pytest
import torch

from mmdd.errors import UserError
from mmdd.labels import DerivedLabels
from mmdd.modalities.timeseries.windows import (
    Series,
    from_frequencies,
    to_frequencies,
    window_count,
)
from mmdd.synthetic import SyntheticSet

EXAMPLE = {"inputs": torch.zeros(1, 2, 5), "targets": torch.zeros(1, 2, 3)}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(series, **options):
    return Series.of_series(series, example=EXAMPLE, **options)


@pytest.mark.parametrize("space", ["time", "frequency"])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("steps", [20, 21])
def test_windows_are_slices_of_the_series(space, stride, steps):
    series = noise(steps, 2)
    own = made(series, space=space, stride=stride)
    decoded = own.decode(None)
    count = window_count(steps, 8, stride)
    assert int(Series.stored(torch.tensor([steps]), EXAMPLE, stride=stride)) == count
    assert decoded["inputs"].shape == (count, 2, 5)
    for place in range(count):
        start = place * stride
        for field, low, high in (("inputs", 0, 5), ("targets", 5, 8)):
            expected = series[start + low : start + high].T
            torch.testing.assert_close(decoded[field][place], expected, rtol=1e-5, atol=1e-5)
    some = own.decode(torch.tensor([2, 0]))
    assert torch.equal(some["targets"], decoded["targets"][[2, 0]])
    # what no window reaches is not stored
    assert len(own.inputs) == 8 + (count - 1) * stride


def test_a_number_that_is_given_and_forecast_gets_both_gradients():
    own = made(noise(14, 2))
    decoded = own.decode(None)
    decoded["inputs"].sum().backward(retain_graph=True)
    as_input = own.inputs.grad.clone()
    own.inputs.grad = None
    decoded["targets"].sum().backward()
    as_target = own.inputs.grad
    # counted by hand: 7 windows of 5 + 3 steps
    expected = [sum(start <= t < start + 5 for start in range(7)) for t in range(14)]
    assert as_input[:, 0].tolist() == expected
    expected = [sum(start + 5 <= t < start + 8 for start in range(7)) for t in range(14)]
    assert as_target[:, 1].tolist() == expected


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 33])
def test_coefficients_are_the_real_fourier_transform_in_an_orthonormal_basis(steps):
    series = noise(steps, 3).double()
    found = to_frequencies(series)
    assert found.shape == series.shape
    torch.testing.assert_close(from_frequencies(found, steps), series)
    # orthonormal: lengths and angles stay
    torch.testing.assert_close(found.T @ found, series.T @ series)
    plain = np.fft.rfft(series.numpy(), axis=0) / np.sqrt(steps)
    assert found[0, 1].item() == pytest.approx(plain[0, 1].real)
    for wave in range(1, (steps - 1) // 2 + 1):
        expected = np.sqrt(2) * plain[wave]
        np.testing.assert_allclose(found[2 * wave - 1].numpy(), expected.real, atol=1e-12)
        np.testing.assert_allclose(found[2 * wave].numpy(), expected.imag, atol=1e-12)


def test_few_coefficients_give_the_smoothest_part():
    time = torch.arange(40.0)
    slow = torch.stack([torch.sin(2 * torch.pi * time / 40), torch.ones(40)], dim=1)
    fast = 0.5 * torch.cos(torch.pi * time)[:, None]
    own = made(slow + fast, space="frequency", keep=0.25)
    assert own.inputs.shape == (10, 2)
    torch.testing.assert_close(own.series(), slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("space", ["time", "frequency"])
def test_second_derivatives_reach_the_leaf(space):
    own = made(noise(12, 2), space=space).double()

    def loss(leaf):
        own_series = leaf if space == "time" else from_frequencies(leaf, 12)
        windows = own_series.unfold(0, 8, 1)
        return (windows[..., :5].square().sum(dim=(1, 2)) * windows[..., 5:].sum(dim=(1, 2))).sum()

    leaf = own.inputs.detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(loss, (leaf,))


@pytest.mark.parametrize("space", ["time", "frequency"])
def test_bounds_hold_for_the_series(space):
    low, high = torch.tensor([[-0.5], [0.0]]), torch.tensor([[0.5], [1.0]])
    bounds = ({"inputs": low}, {"inputs": high})
    own = made(3 * noise(30, 2), space=space, bounds=bounds)
    expected = own.series().detach().clamp(low.T, high.T)
    own.constrain_()
    torch.testing.assert_close(own.series().detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_stored_series_comes_back_with_the_same_bits():
    options = {"space": "frequency", "keep": 0.5, "stride": 2}
    own = made(noise(31, 2), **options)
    again = Series.of_state(own.state_dict(), example=EXAMPLE, **options)
    for field, value in own.decode(None).items():
        assert torch.equal(value, again.decode(None)[field])
    with pytest.raises(UserError, match="does not fit the options"):
        Series.of_state(own.state_dict(), example=EXAMPLE, space="frequency", keep=0.9)
    with pytest.raises(UserError, match="no synthetic series"):
        Series.of_state({"inputs": own.inputs}, example=EXAMPLE)


def test_budgets_are_told_in_time_steps():
    with pytest.raises(UserError) as caught:
        Series.stored(torch.tensor([7]), EXAMPLE)
    assert "7 time steps (synthetic.items)" in str(caught.value)
    assert "at least 8: 5 that are given and 3 to forecast" in str(caught.value)
    assert int(Series.stored(torch.tensor([8]), EXAMPLE)) == 1
    with pytest.raises(UserError, match="task=forecasting"):
        Series.stored(torch.tensor([9]), EXAMPLE["inputs"])
    own = SyntheticSet(made(noise(20, 2)), DerivedLabels(), torch.zeros(13), 1)
    # the series, a group for every window, and its length
    assert own.nbytes == 20 * 2 * 4 + 13 * 8 + 8
