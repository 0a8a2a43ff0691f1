"""Cosine coefficients against the definition, and against SciPy where it is installed."""

import math

import pytest
import torch
from fakes import noise

from mmdd import frequency
from mmdd.errors import UserError
from mmdd.frequency import Frequency, dct, dct_matrix, fast_dct, fast_idct, lowest

SHAPES = [(9,), (3, 8), (2, 7), (1, 8, 8), (3, 5, 9), (1, 4, 6, 5)]


def slow_dct(values):
    """Orthonormal DCT-II of a list, from the definition."""
    side = len(values)
    return [
        math.sqrt((1 if u == 0 else 2) / side)
        * sum(x * math.cos(math.pi * (n + 0.5) * u / side) for n, x in enumerate(values))
        for u in range(side)
    ]


def default_axes(shape):
    return tuple(range(1, len(shape))) if len(shape) > 1 else (0,)


@pytest.mark.parametrize("side", [1, 2, 5, 8, 31])
def test_the_transforms_are_the_definition(side):
    values = noise(2, side).double()
    expected = torch.tensor([slow_dct(row) for row in values.tolist()]).double()
    torch.testing.assert_close(values @ dct_matrix(side).T, expected)
    torch.testing.assert_close(fast_dct(values, 1), expected)
    torch.testing.assert_close(dct(values.T, 0), expected.T)
    torch.testing.assert_close(fast_idct(expected, 1, side), values)
    eye = torch.eye(side, dtype=torch.float64)
    torch.testing.assert_close(dct_matrix(side) @ dct_matrix(side).T, eye)


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("kept", [1, 4, 6])
def test_the_fast_inverse_takes_missing_high_frequencies_as_zero(side, kept):
    low = noise(3, kept, 2).double()
    expected = torch.einsum("aub,un->anb", low, dct_matrix(side)[:kept])
    torch.testing.assert_close(fast_idct(low, 1, side), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_coefficients_are_those_of_scipy(shape):
    fft = pytest.importorskip("scipy.fft")
    items = noise(4, *shape)
    made = Frequency.of_items(items, keep=1.0, choose="low")
    axes = [axis + 1 for axis in default_axes(shape)]
    expected = torch.from_numpy(fft.dctn(items.numpy(), type=2, norm="ortho", axes=axes))
    torch.testing.assert_close(made.inputs, expected.flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choose", ["low", "energy", "variance"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_coefficients_give_the_items_back(shape, choose):
    items = noise(4, *shape)
    made = Frequency.of_items(items, keep=1.0, choose=choose)
    torch.testing.assert_close(made.decode(None), items, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dense", [1, 1024])
@pytest.mark.parametrize("choose", ["low", "energy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_is_the_sum_of_kept_waves(shape, choose, dense, monkeypatch):
    monkeypatch.setattr(frequency, "DENSE", dense)
    made = Frequency.of_items(noise(3, *shape).double(), keep=0.3, choose=choose)
    made.inputs.data.copy_(noise(*made.inputs.shape, seed=1))
    axes = default_axes(shape)
    if choose == "low":
        places = lowest(torch.Size(shape), axes, 0.3)
    else:
        places = made.state_dict()["kept"].long()
    expected = torch.zeros(3, *shape).double()
    for k, place in enumerate(torch.stack(torch.unravel_index(places, shape), 1).tolist()):
        wave = torch.ones(()).double()
        for axis, u in enumerate(place):
            eye = torch.eye(shape[axis]).double()
            row = dct_matrix(shape[axis])[u] if axis in axes else eye[u]
            wave = wave[..., None] * row
        expected += made.inputs[:, k].view(3, *[1] * len(shape)) * wave
    torch.testing.assert_close(made.decode(None), expected)


def test_low_keeps_the_lowest_normalised_frequencies_of_every_channel():
    item = torch.Size((2, 4, 6))
    ranks = sorted((u / 4 + v / 6, u, v) for u in range(4) for v in range(6))
    expected = sorted(c * 24 + u * 6 + v for c in range(2) for _, u, v in ranks[: round(0.25 * 24)])
    assert lowest(item, (1, 2), 0.25).tolist() == expected


def test_equal_frequencies_go_to_the_first_place():
    assert lowest(torch.Size((1, 3, 3)), (1, 2), 2 / 9).tolist() == [0, 1]
    assert lowest(torch.Size((3, 3)), (0,), 0.01).tolist() == [0, 1, 2]


def test_low_costs_no_places_and_others_few_bytes():
    items = noise(4, 3, 8, 8)
    assert set(Frequency.of_items(items, keep=0.2, choose="low").state_dict()) == {"inputs"}
    kept = Frequency.of_items(items, keep=0.2).state_dict()["kept"]
    assert kept.dtype == torch.int16
    assert len(kept) == round(0.2 * 192)
    long = Frequency.of_items(noise(1, 40_000), keep=0.001).state_dict()["kept"]
    assert long.dtype == torch.int32


def test_energy_has_the_least_squared_error_of_any_choice():
    items = noise(5, 3, 6, 6) * torch.linspace(0.1, 3, 6) + 2
    made = Frequency.of_items(items, keep=0.25)
    coefficients = Frequency.of_items(items, keep=1.0, choose="low").inputs.detach()
    power = coefficients.square().sum(0).sort(descending=True).values
    error = (made.decode(None) - items).square().sum()
    torch.testing.assert_close(error, power[27:].sum(), rtol=1e-4, atol=1e-3)
    for choose in ("low", "variance"):
        other = Frequency.of_items(items, keep=0.25, choose=choose)
        assert (other.decode(None) - items).square().sum() > error


def test_variance_leaves_out_what_all_items_share():
    items = 0.1 * noise(6, 1, 4, 4) + 5
    zero = torch.tensor(0)
    assert zero in Frequency.of_items(items, keep=0.1).state_dict()["kept"]
    waves = noise(6, 1, 1, 4) + 0 * items
    kept = Frequency.of_items(waves - waves.mean(-1, keepdim=True) + 5, keep=0.1, choose="variance")
    assert zero not in kept.state_dict()["kept"]


def test_decode_is_linear_in_the_leaf():
    made = Frequency.of_items(noise(3, 2, 7, 5), keep=0.4)
    shape = made.inputs.shape

    def decoded(values):
        made.inputs.data.copy_(values)
        return made.decode(None).detach().clone()

    a, b = noise(*shape, seed=1), noise(*shape, seed=2)
    expected = 2 * decoded(a) - decoded(b)
    torch.testing.assert_close(decoded(2 * a - b), expected, rtol=1e-4, atol=1e-5)


def test_no_matrix_is_larger_than_an_axis():
    made = Frequency.of_items(noise(2, 1, 30, 40), keep=0.05, choose="low")
    sizes = [buffer.numel() for buffer in made.buffers()]
    assert max(sizes) <= 40 * 40
    # the kept corner is small: so are the products
    assert made._boxes["inputs"][1] < 12


def test_sequences_are_transformed_over_the_axes_that_are_named():
    items = noise(3, 8, 5)
    made = Frequency.of_items(items, keep=0.5, choose="low", axes=[0])
    expected = torch.einsum("un,mnd->mud", dct_matrix(8)[:4].float(), items)
    torch.testing.assert_close(made.inputs, expected.flatten(1))
    both = Frequency.of_items(
        {"a": items, "b": noise(3, 6)}, keep=0.5, choose="low", axes={"a": [-2]}
    )
    assert torch.equal(both.leaves()["inputs.a"], made.inputs)
    assert both.leaves()["inputs.b"].shape == (3, 3)


@pytest.mark.parametrize("dense", [1, 1024])
@pytest.mark.parametrize("choose", ["low", "energy"])
def test_constraining_keeps_the_coefficients_of_the_clamped_items(choose, dense, monkeypatch):
    monkeypatch.setattr(frequency, "DENSE", dense)
    limits = (torch.tensor(-0.3), torch.tensor(0.5))
    made = Frequency.of_items(noise(3, 2, 6, 7), keep=0.4, choose=choose, bounds=limits)
    goal = made.decode(None).detach().clamp(-0.3, 0.5)
    whole = Frequency.of_items(goal, keep=1.0, choose="low").inputs
    if choose == "low":
        places = lowest(torch.Size((2, 6, 7)), (1, 2), 0.4)
    else:
        places = made.state_dict()["kept"].long()
    made.constrain_()
    torch.testing.assert_close(made.inputs, whole[:, places], rtol=1e-4, atol=1e-5)


def test_all_coefficients_meet_the_bounds():
    limits = (torch.tensor(-0.3), torch.tensor(0.5))
    made = Frequency.of_items(noise(3, 2, 6, 7), keep=1.0, bounds=limits)
    made.constrain_()
    decoded = made.decode(None)
    assert decoded.min() >= -0.3 - 1e-5
    assert decoded.max() <= 0.5 + 1e-5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep": 0.0}, r"keep .*got 0.0; expected in \(0, 1\]"),
        ({"keep": 1.5}, "got 1.5"),
        ({"choose": "enregy"}, "Did you mean 'energy'"),
        ({"axes": [3]}, r"got \[3\]"),
        ({"axes": [1, 1]}, "different axes"),
        ({"axes": []}, "different axes"),
        ({"axes": {"picture": [0]}}, "axes names fields .*picture"),
    ],
)
def test_a_senseless_option_is_refused(options, match):
    with pytest.raises(UserError, match=match):
        Frequency.of_items(noise(3, 2, 4, 4), **options)


@pytest.mark.parametrize(
    "places", [[0, 1, 2], [0, 1, 2, 16], [-1, 1, 2, 3], [0, 2, 1, 3], [0, 1, 1, 3]]
)
def test_places_that_do_not_fit_are_refused(places):
    state = {"inputs": noise(2, 4), "kept": torch.tensor(places, dtype=torch.int16)}
    with pytest.raises(UserError, match="expected 4 rising places below 16"):
        Frequency.of_state(state, example=noise(1, 1, 4, 4), keep=0.25)


def test_a_leaf_of_another_length_is_refused():
    with pytest.raises(UserError, match="does not fit the options"):
        Frequency.of_state({"inputs": noise(2, 5)}, example=noise(1, 16), keep=0.25, choose="low")


def test_one_item_has_an_energy_but_no_variance():
    items = noise(1, 1, 4, 4)
    assert Frequency.of_items(items, keep=0.5).inputs.abs().sum() > 0
    chosen = Frequency.of_items(items, keep=0.5, choose="variance").state_dict()["kept"]
    assert chosen.tolist() == list(range(8))
