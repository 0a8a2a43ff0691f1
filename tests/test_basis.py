"""Shared bases and codes."""

import pytest
import torch
from fakes import noise

from mmdd.basis import Basis, principal
from mmdd.errors import UserError
from mmdd.optimise import OuterOptimiser
from mmdd.recipe import Leaf

ITEM = (2, 5, 7)


def test_decode_is_the_sum_of_coded_bases():
    made = Basis.of_items(noise(4, *ITEM), bases=3)
    bases, codes = noise(3, *ITEM, seed=1), noise(4, 3, seed=2)
    made.load_state_dict({"inputs/bases": bases, "inputs/codes": codes})
    for item, decoded in enumerate(made.decode(None)):
        expected = sum(codes[item, j] * bases[j] for j in range(3))
        torch.testing.assert_close(decoded, expected)


@pytest.mark.parametrize("shape", [(12, *ITEM), (12, 9), (90, 9), (12, 3, 20)], ids=str)
@pytest.mark.parametrize("bases", [1, 3, 8])
def test_the_start_is_the_best_approximation(shape, bases):
    items = noise(*shape)
    made = Basis.of_items(items, bases=bases)
    error = (made.decode(None) - items).double().square().sum()
    # Eckart & Young: what is left are the other singular values
    values = torch.linalg.svdvals(items.flatten(1).double())
    torch.testing.assert_close(error, values[bases:].square().sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bases", [3, 4, 12, 40])
def test_items_of_low_rank_are_exact_from_their_rank_on(bases):
    items = (noise(12, 3) @ noise(3, 70, seed=1)).unflatten(1, ITEM)
    made = Basis.of_items(items, bases=bases)
    assert made.leaves()["inputs.codes"].shape == (12, bases)
    torch.testing.assert_close(made.decode(None), items, rtol=1e-4, atol=1e-4)


def test_bases_are_orthogonal_and_as_large_as_an_item():
    items = 7 * noise(5, *ITEM)
    bases = Basis.of_items(items, bases=20).leaves()["inputs.bases"].detach().flatten(1)
    assert bases.shape == (20, 70)
    size = items.flatten(1).square().sum(1).mean()
    torch.testing.assert_close(bases @ bases.T, size * torch.eye(20), rtol=1e-4, atol=1e-2)


def test_bases_beyond_the_items_have_no_weight_but_learn():
    items = noise(4, *ITEM)
    made = Basis.of_items(items, bases=6)
    codes = made.leaves()["inputs.codes"]
    torch.testing.assert_close(codes[:, 4:], torch.zeros(4, 2), atol=1e-5, rtol=0)
    made.decode(None).square().sum().backward()
    (made.decode(None) * noise(4, *ITEM, seed=3)).sum().backward()
    assert (codes.grad[:, 4:].abs() > 1e-3).all()


def test_no_more_bases_than_values_are_stored():
    made = Basis.of_items(noise(9, 5), bases=32)
    assert made.leaves()["inputs.bases"].shape == (5, 5)
    again = Basis.of_state(made.state_dict(), example=noise(1, 5), bases=32)
    assert torch.equal(again.decode(None), made.decode(None))


def test_blank_items_make_finite_bases():
    made = Basis.of_items(torch.zeros(4, *ITEM), bases=6)
    assert all(torch.isfinite(leaf).all() for leaf in made.parameters())
    assert torch.equal(made.decode(None), torch.zeros(4, *ITEM))


def test_constraining_solves_the_least_squares_for_the_clamped_items():
    made = Basis.of_items(noise(6, *ITEM), bases=4, bounds=(torch.tensor(-0.3), torch.tensor(0.4)))
    bases = made.leaves()["inputs.bases"].detach().flatten(1).double()
    goal = made.decode(None).detach().flatten(1).clamp(-0.3, 0.4).double()
    expected = torch.linalg.lstsq(bases.T, goal.T).solution.T
    made.constrain_()
    codes = made.leaves()["inputs.codes"].detach().double()
    torch.testing.assert_close(codes, expected, rtol=1e-5, atol=1e-6)


def test_constraining_stands_equal_bases():
    made = Basis.of_items(noise(6, *ITEM), bases=2, bounds=(torch.tensor(-0.3), torch.tensor(0.4)))
    made.leaves()["inputs.bases"].data[1] = made.leaves()["inputs.bases"].data[0]
    goal = made.decode(None).detach().clamp(-0.3, 0.4)
    made.constrain_()
    base = made.leaves()["inputs.bases"].detach()[0].flatten().double()
    expected = torch.outer(goal.flatten(1).double() @ base, base) / base.dot(base)
    decoded = made.decode(None).flatten(1).double()
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-5)


def test_a_basis_that_can_be_in_range_gets_there():
    # as many bases as values span every item
    made = Basis.of_items(3 * noise(8, 6), bases=6, bounds=(torch.tensor(-1.0), torch.tensor(1.0)))
    before = made.decode(None).detach()
    made.constrain_()
    torch.testing.assert_close(made.decode(None), before.clamp(-1, 1), rtol=1e-5, atol=1e-5)


def test_principal_directions_are_orthonormal_and_repeatable():
    items = noise(3, 50)
    found = principal(items, 11)
    torch.testing.assert_close(found @ found.T, torch.eye(11), rtol=0, atol=1e-5)
    assert torch.equal(found, principal(items, 11))


def test_rates_go_to_the_two_parts_by_prefix():
    made = Basis.of_items({"image": noise(3, *ITEM), "text": noise(3, 8)}, bases=2)
    rates = {
        "inputs": Leaf(lr=1.0),
        "inputs.codes": Leaf(lr=0.1),
        "inputs.bases.text": Leaf(lr=5.0),
    }
    found = OuterOptimiser(made.leaves(), rates, 10).options
    assert {name: options.lr for name, options in found.items()} == {
        "inputs.bases.image": 1.0,
        "inputs.codes.image": 0.1,
        "inputs.bases.text": 5.0,
        "inputs.codes.text": 0.1,
    }


@pytest.mark.parametrize("bases", [0, -3])
def test_a_senseless_number_of_bases_is_refused(bases):
    with pytest.raises(UserError, match="1 or more"):
        Basis.of_items(noise(3, 4), bases=bases)


@pytest.mark.parametrize(
    "state",
    [
        {"inputs/bases": noise(3, 4), "inputs/codes": noise(5, 2)},
        {"inputs/bases": noise(2, 5), "inputs/codes": noise(5, 2)},
        {"inputs/bases": noise(3, 4), "inputs/codes": noise(5, 3)},
    ],
)
def test_a_state_whose_parts_do_not_fit_is_refused(state):
    with pytest.raises(UserError, match="does not fit the options"):
        Basis.of_state(state, example=noise(1, 4), bases=2)
