"""Packed items against plain loops over stored items and parts."""

import math

import pytest
import torch
import torch.nn.functional as F
from fakes import noise

from mmdd.errors import UserError
from mmdd.packed import DENSE, MODES, Packed, cut, paste

SHAPES = [(1, 8, 8), (3, 6, 10), (2, 7, 9), (1, 5, 3), (4, 12), (2, 11), (1, 4, 5, 6), (2, 7, 4, 3)]


def boxes(sides, factor):
    """Slices of the parts, row by row, written out from the definition."""
    starts = [[math.floor(i * side / factor) for i in range(factor)] for side in sides]
    sizes = [math.ceil(side / factor) for side in sides]
    found = [()]
    for own, size in zip(starts, sizes, strict=True):
        found = [(*box, slice(start, start + size)) for box in found for start in own]
    return found


def expected(stored, factors):
    sides = stored.shape[2:]
    made = []
    for item in stored:
        for factor in factors:
            for box in boxes(sides, factor):
                part = item[(slice(None), *box)][None]
                mode = MODES[len(sides)]
                made.append(F.interpolate(part, size=sides, mode=mode, align_corners=False))
    return torch.cat(made)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_is_the_loop_over_items_and_parts(shape, factor):
    count = factor ** (len(shape) - 1)
    made = Packed.of_items(noise(3 * count, *shape).double(), factor=factor)
    made.inputs.data.copy_(noise(3, *shape, seed=1))
    assert made.expand == count
    torch.testing.assert_close(made.decode(None), expected(made.inputs, [factor]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_multi_decodes_with_every_factor(shape):
    spatial = len(shape) - 1
    assert Packed.needs(noise(1, *shape), factor=3, multi=True) == 3**spatial
    made = Packed.of_items(noise(2 * 3**spatial, *shape), factor=3, multi=True)
    made.inputs.data.copy_(noise(2, *shape, seed=1))
    assert made.expand == 1 + 2**spatial + 3**spatial
    torch.testing.assert_close(made.decode(None), expected(made.inputs, [1, 2, 3]))
    assert torch.equal(made.decode(torch.tensor([1]))[0], made.inputs[1])


@pytest.mark.parametrize("shape", [(2, DENSE + 3), (1, 6, DENSE + 1)], ids=str)
def test_long_axes_decode_in_the_same_way_without_matrices(shape):
    made = Packed.of_items(noise(2 ** len(shape[1:]) * 2, *shape), factor=2)
    made.inputs.data.copy_(noise(2, *shape, seed=1))
    assert not list(made.buffers())
    torch.testing.assert_close(made.decode(None), expected(made.inputs, [2]))


@pytest.mark.parametrize(
    ("side", "factor"), [(side, factor) for factor in (2, 3, 4, 5) for side in range(factor, 14)]
)
def test_parts_cover_an_axis_and_paste_undoes_the_cut(side, factor):
    places = torch.arange(float(side))[None, :, None]
    parts = cut(places, 1, factor)
    assert parts.shape == (1, factor, math.ceil(side / factor), 1)
    assert set(parts.flatten().tolist()) == set(range(side))
    assert parts[0, 0, 0] == 0
    assert parts[0, -1, -1] == side - 1
    assert torch.equal(paste(parts, 1, side), places)


def test_a_stored_item_starts_as_a_grid_of_shrunken_items():
    items = noise(8, 3, 4, 6)
    made = Packed.of_items(items, factor=2)
    for stored in range(2):
        for row in range(2):
            for column in range(2):
                item = items[4 * stored + 2 * row + column]
                for c, i, j in ((0, 0, 0), (2, 1, 2), (1, 0, 1)):
                    block = item[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                    found = made.inputs[stored, c, 2 * row + i, 3 * column + j]
                    torch.testing.assert_close(found, block.mean())


def test_a_row_that_two_parts_share_starts_at_the_mean_of_both():
    items = torch.tensor([2.0, 4.0])[:, None, None] * torch.ones(2, 1, 5)
    made = Packed.of_items(items, factor=2)
    assert made.inputs.tolist() == [[[2.0, 2.0, 3.0, 4.0, 4.0]]]


def test_even_items_come_back_as_they_are():
    items = noise(8, 3, 1, 1).expand(8, 3, 4, 6)
    torch.testing.assert_close(Packed.of_items(items, factor=2).decode(None), items)


def test_decode_is_linear_in_the_leaf():
    made = Packed.of_items(noise(8, 1, 7, 6))
    a, b = noise(2, 1, 7, 6, seed=1), noise(2, 1, 7, 6, seed=2)

    def decoded(values):
        made.inputs.data.copy_(values)
        return made.decode(None).detach().clone()

    torch.testing.assert_close(decoded(2 * a - b), 2 * decoded(a) - decoded(b))


def test_every_stored_number_is_read():
    made = Packed.of_items(noise(18, 1, 7, 8), factor=3)
    made.decode(None).sum().backward()
    # a part spreads its numbers over the whole item; what two parts share counts twice
    assert (made.inputs.grad > 0).all()
    assert made.inputs.grad.sum().item() == pytest.approx(18 * 7 * 8, rel=1e-5)


def test_bounds_hold_for_what_is_decoded():
    low = torch.tensor([-0.2, -0.1, 0.0]).view(3, 1, 1)
    made = Packed.of_items(noise(8, 3, 7, 7), bounds=(low, low + 0.4), factor=2, multi=True)
    made.constrain_()
    decoded = made.decode(None)
    assert (decoded >= low - 1e-6).all()
    assert (decoded <= low + 0.4 + 1e-6).all()
    assert torch.equal(made.inputs.detach(), made.inputs.detach().clamp(low, low + 0.4))


def test_decoding_knows_the_precision_of_the_items():
    made = Packed.of_items(noise(4, 1, 6, 6)).double()
    assert made.decode(None).dtype == torch.float64


@pytest.mark.parametrize(
    ("example", "options", "match"),
    [
        (noise(1, 6), {}, r"without a spatial axis .*\(6,\)"),
        ({"x": noise(1, 6), "adjacency": noise(1, 9)}, {}, "without a spatial axis"),
        (torch.zeros(1, 5, dtype=torch.int64), {}, "without a spatial axis"),
        (noise(1, 1, 6, 6), {"factor": 1}, "factor .*got 1; expected 2 or more"),
        (noise(1, 1, 6, 3), {"factor": 4}, "too small for factor 4"),
        (noise(1, 1, 4, 4, 4, 4), {}, "at most 3"),
        ({"video": noise(1, 3, 4, 6, 6), "sound": noise(1, 1, 9)}, {}, "'sound': 1.* fixed"),
        (
            {"values": noise(1, 5, 4), "mask": torch.ones(1, 5, dtype=torch.bool)},
            {},
            "masked sequences .*'values'",
        ),
        ({"image": noise(1, 1, 6, 6), "text": noise(1, 8)}, {"multi": True}, "got 'text'"),
    ],
)
def test_what_cannot_be_packed_is_refused_with_the_reason(example, options, match):
    with pytest.raises(UserError, match=match):
        Packed.needs(example, **options)


def test_a_mask_over_the_positions_goes_with_each_decoded_item():
    values = {
        "signal": noise(6, 3, 10),
        "mask": torch.arange(10)[None] < torch.arange(4, 10)[:, None],
    }
    made = Packed.of_items(values, factor=2)
    assert torch.equal(made.decode(None)["mask"], values["mask"])
    assert made.decode(None)["signal"].shape == (6, 3, 10)


def test_items_that_do_not_fill_a_grid_are_refused():
    with pytest.raises(UserError, match="got 6; expected a multiple of 4"):
        Packed.of_items(noise(6, 1, 4, 4))


def test_bounds_that_change_over_a_picture_are_refused():
    low = torch.zeros(1, 4, 4)
    low[0, 0, 0] = -1
    with pytest.raises(UserError, match="bounds of 'inputs' change"):
        Packed.of_items(noise(4, 1, 4, 4), bounds=(low, torch.tensor(1.0)))
    same = torch.zeros(1, 4, 4)
    assert Packed.of_items(noise(4, 1, 4, 4), bounds=(same, same + 1)).expand == 4


def test_a_state_of_another_size_is_refused():
    with pytest.raises(UserError, match=r"got \(2, 1, 6, 6\).* \(1, 4, 4\)"):
        Packed.of_state({"inputs": noise(2, 1, 6, 6)}, example=noise(1, 1, 4, 4))
