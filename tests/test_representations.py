"""What every representation keeps to, and `Direct`."""

import copy
import itertools

import pytest
import torch
from fakes import CASES, noise

from mmdd.basis import Basis
from mmdd.errors import UserError
from mmdd.frequency import Frequency
from mmdd.labels import HardLabels
from mmdd.packed import Packed
from mmdd.representations import Direct, along
from mmdd.synthetic import SyntheticSet

IMAGE = (2, 6, 8)
KINDS = {
    "direct": (Direct, {}),
    "packed": (Packed, {"factor": 2}),
    "packed-3": (Packed, {"factor": 3}),
    "multi": (Packed, {"factor": 2, "multi": True}),
    "basis": (Basis, {"bases": 3}),
    "basis-padded": (Basis, {"bases": 40}),
    "low": (Frequency, {"keep": 0.3, "choose": "low"}),
    "energy": (Frequency, {"keep": 0.3, "choose": "energy"}),
    "variance": (Frequency, {"keep": 0.3, "choose": "variance"}),
}
LEAVES = {Basis: ["inputs.bases", "inputs.codes"]}


def start(name, *, stored=4, dtype=torch.float32, bounds=None):
    kind, options = KINDS[name]
    example = torch.zeros(1, *IMAGE, dtype=dtype)
    values = noise(stored * kind.needs(example, **options), *IMAGE).to(dtype)
    return kind.of_items(values, bounds=bounds, **options)


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


def test_some_of_the_items_decode_as_among_all(name):
    made = start(name)
    every = made.decode(None)
    assert every.shape == (4 * made.expand, *IMAGE)
    index = torch.tensor([2, 0, 2])
    rows = (index[:, None] * made.expand + torch.arange(made.expand)).flatten()
    torch.testing.assert_close(made.decode(index), every[rows])


def test_leaves_have_public_names_under_inputs(name):
    made = start(name)
    assert list(made.leaves()) == LEAVES.get(type(made), ["inputs"])
    assert all(leaf.requires_grad for leaf in made.leaves().values())


def test_gradients_of_the_decode_are_right_to_the_second_order(name):
    made = start(name, stored=2, dtype=torch.float64)
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in made.parameters())
    names = [key for key, _ in made.named_parameters()]
    weight = noise(2 * made.expand, *IMAGE).double()

    def loss(*values):
        given = {f"of.{key}": value for key, value in zip(names, values, strict=True)}
        decoded = torch.func.functional_call(Decode(made), given)
        return (weight * decoded.sin()).sum()

    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)


class Decode(torch.nn.Module):
    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self):
        return self.of.decode(None)


def test_a_state_comes_back_with_the_same_bits(name):
    made = start(name)
    for leaf in made.leaves().values():
        leaf.data.add_(0.1 * noise(*leaf.shape, seed=3))
    kind, options = KINDS[name]
    again = kind.of_state(made.state_dict(), example=torch.zeros(1, *IMAGE), **options)
    assert torch.equal(again.decode(None), made.decode(None))
    assert list(again.leaves()) == list(made.leaves())
    # another start, then the state: what a resumed run does
    other = kind.of_items(
        noise(4 * kind.needs(made.decode(None)[:1], **options), *IMAGE, seed=9), **options
    )
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.decode(None), made.decode(None))
    assert torch.equal(copy.deepcopy(other).decode(None), made.decode(None))


def test_the_state_is_not_shared_with_what_it_was_built_from(name):
    made = start(name)
    kind, options = KINDS[name]
    state = {key: value.clone() for key, value in made.state_dict().items()}
    again = kind.of_state(state, example=torch.zeros(1, *IMAGE), **options)
    for value in state.values():
        value.zero_()
    assert torch.equal(again.decode(None), made.decode(None))


def test_a_state_of_another_kind_is_refused(name):
    kind, options = KINDS[name]
    state = dict(start(name).state_dict(), surplus=torch.zeros(1))
    with pytest.raises(UserError, match=r"do not belong .*surplus"):
        kind.of_state(state, example=torch.zeros(1, *IMAGE), **options)
    state.pop("surplus")
    state.pop(next(iter(state)))
    with pytest.raises(UserError, match="do not belong"):
        kind.of_state(state, example=torch.zeros(1, *IMAGE), **options)


def test_decoded_items_carry_the_labels_and_groups_of_what_stores_them(name):
    made = start(name)
    labels = torch.tensor([0, 2, 1, 2])
    batch = SyntheticSet(made, HardLabels(labels), labels, 3).batch(groups=torch.tensor([2]))
    assert batch.targets.tolist() == [2] * 2 * made.expand
    assert batch.groups.tolist() == [2] * 2 * made.expand
    whole = made.decode(None).unflatten(0, (4, -1))
    torch.testing.assert_close(batch.inputs, whole[[1, 3]].flatten(0, 1))


def test_bytes_are_those_of_the_stored_tensors(name):
    values = 2 * 6 * 8
    expected = {
        "basis": 3 * values * 4 + 4 * 3 * 4,
        "basis-padded": 40 * values * 4 + 4 * 40 * 4,
        "low": 4 * 2 * 14 * 4,
        "energy": 4 * 29 * 4 + 29 * 2,
        "variance": 4 * 29 * 4 + 29 * 2,
    }.get(name, 4 * values * 4)
    made = start(name, bounds=(torch.tensor(-1.0), torch.tensor(1.0)))
    labels = torch.arange(4)
    assert SyntheticSet(made, HardLabels(labels), labels, 4).nbytes == expected + 4 * 8


def outside(decoded, low, high):
    return (decoded - decoded.clamp(low, high)).double().square().sum().sqrt()


def test_a_step_out_of_the_bounds_is_taken_back(name):
    low, high = -0.4, 0.5
    made = start(name, bounds=(torch.tensor(low), torch.tensor(high)))
    errors = [outside(made.decode(None), low, high)]
    assert errors[0] > 1
    for _ in range(200):
        made.constrain_()
        errors.append(outside(made.decode(None), low, high))
    assert all(after <= before for before, after in itertools.pairwise(errors[:50]))
    assert errors[-1] < (1e-6 if isinstance(made, (Direct, Packed)) else 0.02 * errors[0])


def test_what_is_in_range_keeps_its_bits(name):
    decoded = start(name).decode(None)
    limits = (torch.tensor(-9.0), torch.tensor(9.0))
    made = start(name, bounds=limits)
    assert decoded.abs().max() < 9
    before = [leaf.detach().clone() for leaf in made.parameters()]
    made.constrain_()
    for leaf, old in zip(made.parameters(), before, strict=True):
        assert torch.equal(leaf, old)
    if not isinstance(made, Packed):
        first = next(leaf for key, leaf in made.leaves().items() if key != "inputs.bases")
        first.data[1] *= 50
        before = first.detach().clone()
        made.constrain_()
        assert torch.equal(first[[0, 2, 3]], before[[0, 2, 3]])
        assert not torch.equal(first[1], before[1])


def test_the_start_leaves_the_global_generator_alone(name):
    state = torch.get_rng_state()
    first, second = start(name).decode(None), start(name).decode(None)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


# -- fields ----------------------------------------------------------------------------------------


def pairs(count):
    return {
        "image": noise(count, *IMAGE),
        "score": noise(count, seed=4),
        "place": noise(count, 3, seed=5),
        "seen": torch.arange(count * 6).view(count, 6) % 3 == 0,
        "more": {"token": torch.arange(count)},
    }


@pytest.fixture(params=[k for k in KINDS if k != "multi"])
def fielded(request):
    return request.param


def test_every_field_is_treated_by_its_kind(fielded):
    kind, options = KINDS[fielded]
    needs = kind.needs(pairs(1), fixed=["place"], **options)
    values = pairs(2 * needs)
    made = kind.of_items(values, fixed=["place"], **options)
    alone = kind.of_items(values["image"], **options)
    decoded = made.decode(None)
    assert list(decoded) == list(values)
    assert torch.equal(decoded["image"], alone.decode(None))
    for key in ("score", "place", "seen"):
        assert torch.equal(decoded[key], values[key])
    assert torch.equal(decoded["more"]["token"], values["more"]["token"])
    coded = {"inputs.bases.image", "inputs.codes.image"} if kind is Basis else {"inputs.image"}
    assert set(made.leaves()) == coded | {"inputs.score"}
    index = torch.tensor([1])
    some = made.decode(index)
    assert torch.equal(some["seen"], values["seen"][needs:])
    torch.testing.assert_close(some["image"], decoded["image"][needs:])
    again = kind.of_state(made.state_dict(), example=pairs(1), fixed=["place"], **options)
    assert torch.equal(again.decode(None)["image"], decoded["image"])


def test_fields_have_their_own_bounds(fielded):
    kind, options = KINDS[fielded]
    values = pairs(2 * kind.needs(pairs(1), **options))
    bounds = ({"score": torch.tensor(-0.1)}, {"score": torch.tensor(0.1)})
    made = kind.of_items(values, bounds=bounds, **options)
    before = made.decode(None)["image"].clone()
    made.constrain_()
    assert torch.equal(made.decode(None)["image"], before)
    assert torch.equal(made.decode(None)["score"], values["score"].clamp(-0.1, 0.1))


def test_an_unknown_fixed_field_is_named():
    with pytest.raises(UserError, match=r"fixed .*maks.*expected some of mask, values"):
        Direct({"values": noise(2, 3), "mask": torch.ones(2)}, fixed=["maks"])


def test_a_masked_sequence_keeps_its_masks():
    start = CASES["masked"]().start().representation.decode(None)
    values = {key: value.detach() for key, value in start.items()}
    for kind, options in ((Basis, {"bases": 20}), (Frequency, {"keep": 1.0, "axes": [0]})):
        made = kind.of_items(values, **options)
        assert torch.equal(made.decode(None)["mask"], values["mask"])
        torch.testing.assert_close(made.decode(None)["values"], values["values"])
        assert torch.equal(made.decode(torch.tensor([3]))["mask"], values["mask"][3:4])


# -- Direct ----------------------------------------------------------------------------------------


def test_direct_is_its_values_whatever_their_length():
    values = noise(3, 5)
    made = Direct(values)
    assert torch.equal(made.decode(None), values)
    assert made.inputs is not values
    assert Direct.needs(values) == 1
    longer = Direct.of_state({"inputs": noise(7, 5)}, example=values[:1])
    assert longer.decode(None).shape == (7, 5)


@pytest.mark.parametrize("axis", range(4))
def test_a_product_along_an_axis(axis):
    values, matrix = noise(3, 4, 5, 6), noise(2, (3, 4, 5, 6)[axis])
    letters = "abcd"
    out = letters.replace(letters[axis], "z")
    expected = torch.einsum(f"{letters},z{letters[axis]}->{out}", values, matrix)
    torch.testing.assert_close(along(values, matrix, axis), expected)
