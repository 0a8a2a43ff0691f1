"""Augmentation of audio against plain loops, item by item."""

from __future__ import annotations

import math

import pytest
import torch

from mmdd import compose
from mmdd.errors import UserError
from mmdd.modalities.audio.augment import AudioAugment, standard_normal
from mmdd.modalities.audio.modality import AUDIO
from mmdd.modalities.audio.part_options import AUGMENTATION_OPS, Siamese
from mmdd.modality import DataInfo
from mmdd.trees import tree_cat

MEAN, STD = [0.5, -1.0, 2.0, 0.0], [1.0, 2.0, 0.5, 4.0]


def info(space="log-mel", mask=False):
    facts = {
        "space": space,
        "mask": mask,
        "range": [-9.0, 5.0],
        "bounds": [-9.5, 7.0],
        "mean": MEAN,
        "std": STD,
    }
    if space == "waveform":
        facts |= {"range": [-1.0, 1.0], "mean": [0.0], "std": [0.25]}
    shape = (1, 4, 20) if space == "log-mel" else (1, 20)
    return DataInfo("audio", "classification", "x", shape, 2, ("a", "b"), "f", facts, {}, {})


def augment(space="log-mel", mask=False, **options):
    return AudioAugment(Siamese(**options), info(space, mask))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(space="log-mel", count=6):
    return torch.randn(count, *info(space).shape, generator=seeded(9))


# -- one operation each ----------------------------------------------------------------------------


def test_gain_is_a_factor_of_waveforms_and_a_sum_in_log_mel():
    made = augment("waveform", strategy="gain", gain=6.0)
    draw, x = made.draw(6, seeded()), batch("waveform")
    for item, got, u in zip(x, made(x, draw), draw.params, strict=True):
        decibels = (2 * float(u[0]) - 1) * 6
        torch.testing.assert_close(got, item * 10 ** (decibels / 20))
    made = augment(strategy="gain", gain=6.0)
    draw, x = made.draw(6, seeded()), batch()
    std = torch.tensor(STD).view(1, 4, 1)
    mean = torch.tensor(MEAN).view(1, 4, 1)
    for item, got, u in zip(x, made(x, draw), draw.params, strict=True):
        decibels = (2 * float(u[0]) - 1) * 6
        power = torch.exp(item * std + mean) * 10 ** (decibels / 10)
        torch.testing.assert_close(got, (power.log() - mean) / std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("space", ["log-mel", "waveform"])
def test_a_shift_moves_and_leaves_silence(space):
    made = augment(space, strategy="shift", shift=0.2)
    draw, x = made.draw(6, seeded(1)), batch(space)
    low = (-9.0 - torch.tensor(MEAN)) / torch.tensor(STD)
    silence = low.view(1, 4, 1).expand(1, 4, 20) if space == "log-mel" else torch.zeros(1, 20)
    seen = set()
    for item, got, u in zip(x, made(x, draw), draw.params, strict=True):
        steps = math.floor(float(u[1]) * 9) - 4
        seen.add(steps)
        wanted = silence.clone()
        for place in range(20):
            if 0 <= place + steps < 20:
                wanted[..., place] = item[..., place + steps]
        torch.testing.assert_close(got, wanted)
    assert len(seen) > 2


def test_a_shift_takes_the_mask_along():
    made = augment(mask=True, strategy="shift", shift=0.2)
    x = batch()
    mask = torch.arange(20) < torch.tensor([3, 8, 20, 11, 1, 15])[:, None]
    given = {"audio": x.masked_fill(~mask[:, None, None], 0.0), "mask": mask}
    draw = made.draw(6, seeded(1))
    got = made(given, draw)
    assert set(got) == {"audio", "mask"}
    for place in range(6):
        steps = math.floor(float(draw.params[place, 1]) * 9) - 4
        wanted = [0 <= t + steps < 20 and bool(mask[place, t + steps]) for t in range(20)]
        assert got["mask"][place].tolist() == wanted
    assert (got["audio"].masked_select(~got["mask"][:, None, None].expand(x.shape)) == 0).all()


@pytest.mark.parametrize(("name", "axis", "column"), [("time", 3, 3), ("frequency", 2, 5)])
def test_masks_hide_a_stretch(name, axis, column):
    made = augment(strategy=name, time=0.5, frequency=0.5)
    draw, x = made.draw(6, seeded(2)), batch()
    size = x.shape[axis]
    for item, got, u in zip(x, made(x, draw), draw.params.double(), strict=True):
        width = math.floor(float(u[column]) * (int(size * 0.5 + 0.5) + 1))
        start = math.floor(float(u[column + 1]) * (size - width + 1))
        wanted = item.clone()
        wanted.narrow(axis - 1, start, width).zero_()
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("space", ["log-mel", "waveform"])
def test_noise_has_the_drawn_strength_and_is_shared_by_a_draw(space):
    made = augment(space, strategy="noise", noise=0.5)
    draw, x = made.draw(2, seeded(3)), batch(space)
    rows = torch.tensor([0, 1, 0, 1, 1, 0])
    added = made(x, draw, rows) - x
    for place, row in enumerate(rows.tolist()):
        numbers = standard_normal(draw.seeds[row : row + 1], x[0].numel()).view(x.shape[1:])
        wanted = numbers * draw.params[row, 2] * 0.5
        torch.testing.assert_close(added[place], wanted, rtol=1e-4, atol=1e-5)


def test_the_numbers_of_the_noise_are_normal_and_their_seeds():
    found = standard_normal(torch.tensor([0, 1, 2, 2**32 - 1]), 50_000)
    assert torch.equal(found[1:2], standard_normal(torch.tensor([1]), 50_000))
    torch.testing.assert_close(
        found[:, :100], standard_normal(torch.tensor([0, 1, 2, 2**32 - 1]), 100)
    )
    assert float(found.mean(dim=1).abs().max()) < 0.02
    assert float((found.std(dim=1) - 1).abs().max()) < 0.02
    assert float((found**4).mean(dim=1).sub(3).abs().max()) < 0.2
    related = torch.corrcoef(torch.cat([found, found.roll(1, dims=1)[:1]]))
    assert float((related - torch.eye(5)).abs().max()) < 0.02


# -- how they are put together ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["one", "all"])
@pytest.mark.parametrize("space", ["log-mel", "waveform"])
def test_one_draw_is_one_transform_whatever_the_batch(space, mode):
    made = augment(space, mode=mode)
    draw, x = made.draw(3, seeded(4)), batch(space)
    rows = torch.tensor([2, 0, 1, 1, 2, 0])
    whole = made(x, draw, rows)
    for place in range(6):
        alone = made(x[place : place + 1], draw, rows[place : place + 1])
        torch.testing.assert_close(alone[0], whole[place], rtol=1e-5, atol=1e-6)
    assert not torch.equal(whole, x)
    # siamese: the same map of the real and the synthetic batch, which is affine
    mixed = made((x + x.flip(0)) / 2, draw, torch.zeros(6, dtype=torch.int64))
    zero = torch.zeros(6, dtype=torch.int64)
    torch.testing.assert_close(mixed, (made(x, draw, zero) + made(x.flip(0), draw, zero)) / 2)


def test_one_picks_one_and_shared_picks_the_same():
    made = augment()
    assert made.names == AUGMENTATION_OPS
    draw = made.draw(400, seeded(5))
    counts = torch.bincount(draw.ops, minlength=5)
    assert int(counts.min()) > 50
    shared = made.draw(7, seeded(6), shared_op=True)
    assert shared.ops.unique().numel() == 1
    assert shared.params[:, 0].unique().numel() == 7
    joined = tree_cat([draw, shared])
    x = torch.randn(407, 1, 4, 20, generator=seeded(7))
    torch.testing.assert_close(made(x, joined)[400:], made(x[400:], shared))


def test_gradients_reach_the_items():
    made = augment(mode="all")
    x = batch().double().requires_grad_()
    draw = made.draw(6, seeded(8))
    assert torch.autograd.gradcheck(lambda values: made(values, draw), (x,))


def test_nothing_to_do_returns_the_input():
    x = batch()
    made = augment(strategy="none")
    assert made(x, made.draw(6, seeded())) is x
    weak = dict.fromkeys(("gain", "shift", "noise", "time", "frequency"), 0.0)
    still = augment(mode="all", **weak)
    torch.testing.assert_close(still(x, still.draw(6, seeded())), x, rtol=0, atol=0)


def test_strategies_that_do_not_fit():
    assert augment("waveform").names == ("gain", "shift", "noise", "time")
    with pytest.raises(UserError, match="no bands for the augmentation 'frequency'"):
        augment("waveform", strategy="gain_frequency")
    with pytest.raises(ValueError, match=r"unknown operation 'shfit'.*did you mean 'shift'"):
        Siamese(strategy="gain_shfit")


@pytest.mark.parametrize("name", compose.methods())
def test_methods_for_all_items_mix_clips_in_a_way_that_there_is(name):
    if compose.read_yaml(compose.methods()[name]).get("modality", "audio") != "audio":
        pytest.skip("a method for other data")
    made = compose.compose(method=name, options={"modality": "audio"})
    assert made.evaluate.resolved().mix in ("none", "mixup", *AUDIO.mixers)
