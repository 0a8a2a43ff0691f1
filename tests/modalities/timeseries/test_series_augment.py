"""Augmentation of series: one draw for both batches, each operation by its formula."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmdd import compose
from mmdd.errors import UserError
from mmdd.modalities.timeseries.augment import (
    CLASSES,
    MOVES,
    SeriesAugmentation,
    Strengths,
    names_of,
)
from mmdd.modalities.timeseries.encoder_options import DSA
from mmdd.modalities.timeseries.modality import TIMESERIES
from mmdd.trees import tree_cat

ALL = (*CLASSES, "raw")


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=7):
    return torch.randn(*shape, generator=stream(seed))


def one(name, shape=(2, 24), **strengths):
    return SeriesAugmentation((name,), shape, strengths=Strengths(**strengths))


@pytest.mark.parametrize("mode", ["one", "all"])
def test_rows_choose_the_draw_and_equal_items_stay_equal(mode):
    made = SeriesAugmentation(ALL, (2, 24), mode=mode)
    draw = made.draw(3, stream())
    x = noise(1, 2, 24).expand(7, -1, -1)
    rows = torch.tensor([2, 0, 1, 2, 0, 0, 1])
    found = made(x, draw, rows)
    for group in range(3):
        own = found[rows == group]
        torch.testing.assert_close(own, own[:1].expand_as(own), rtol=0, atol=0)
    assert not torch.equal(found[0], found[1])
    single = made(x[:3], draw)
    torch.testing.assert_close(single[rows], found, rtol=1e-6, atol=1e-6)


def test_a_draw_is_the_seeds_and_draws_join():
    made = SeriesAugmentation(ALL, (2, 24))
    x = noise(4, 2, 24)
    assert torch.equal(made(x, made.draw(4, stream(1))), made(x, made.draw(4, stream(1))))
    assert not torch.equal(made(x, made.draw(4, stream(1))), made(x, made.draw(4, stream(2))))
    parts = [made.draw(2, stream(3)), made.draw(2, stream(4))]
    joined = made(x, tree_cat(parts))
    apart = torch.cat([made(x[:2], parts[0]), made(x[2:], parts[1])])
    torch.testing.assert_close(joined, apart)
    shared = made.draw(50, stream(5), shared_op=True)
    assert len(shared.ops.unique()) == 1
    assert len(made.draw(50, stream(5)).ops.unique()) > 4


def test_jitter_and_scaling():
    x = noise(3000, 2, 24)
    made = one("jitter", jitter=0.2)
    added = made(x, made.draw(3000, stream())) - x
    assert added.std() == pytest.approx(0.2, rel=0.02)
    assert added.mean().abs() < 0.005
    made = one("scale", scale=0.3)
    factors = made(x, made.draw(3000, stream())) / x
    torch.testing.assert_close(factors, factors[..., :1].expand_as(factors), rtol=1e-3, atol=1e-4)
    assert factors[:, 0, 0].std() == pytest.approx(0.3, rel=0.1)
    assert not torch.allclose(factors[:, 0], factors[:, 1])


def test_the_low_pass_filter_drops_the_high_frequencies():
    x = noise(3, 2, 24)
    made = one("lowpass", lowpass=0.5)
    found = np.fft.rfft(made(x, made.draw(3, stream())).numpy())
    expected = np.fft.rfft(x.numpy())
    np.testing.assert_allclose(found[..., :7], expected[..., :7], atol=1e-4)
    np.testing.assert_allclose(found[..., 7:], 0, atol=1e-4)


def test_phases_turn_and_amplitudes_change():
    x = noise(4, 2, 25) + 1
    made = one("phase", (2, 25), phase=math.pi / 4)
    found, before = np.fft.rfft(made(x, made.draw(4, stream())).numpy()), np.fft.rfft(x.numpy())
    np.testing.assert_allclose(np.abs(found), np.abs(before), rtol=1e-3, atol=1e-4)
    turn = np.angle(found / before)
    assert np.abs(turn[..., 0]).max() < 1e-4
    assert 0.5 < np.abs(turn).max() <= math.pi / 4 + 1e-4
    made = one("amplitude", (2, 25), amplitude=0.2)
    draw = made.draw(4, stream())
    found = np.fft.rfft(made(x, draw).numpy())
    # a small amplitude may change its sign, which is a turn by half a circle
    np.testing.assert_allclose(np.imag(found / before), 0, atol=1e-3)
    size = np.abs(before)
    expected = size + 0.2 * size.mean(axis=-1, keepdims=True) * draw.noise[:, 0, :, :13].numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-3)


def test_shift_moves_and_fills_with_the_mean():
    x = noise(200, 2, 24) + 5
    made = one("shift", shift=0.125)
    found = made(x, made.draw(200, stream()))
    seen = set()
    for item, moved in zip(x, found, strict=True):
        options = {}
        for by in range(-3, 4):
            expected = torch.zeros_like(item)
            if by >= 0:
                expected[:, : 24 - by] = item[:, by:]
            else:
                expected[:, -by:] = item[:, :by]
            options[by] = expected
        fits = [by for by, expected in options.items() if torch.equal(expected, moved)]
        assert len(fits) == 1
        seen |= set(fits)
    assert seen == set(range(-3, 4))


def test_crop_stretches_a_part():
    line = torch.arange(24.0).expand(100, 2, -1)
    made = one("crop", crop=0.5)
    found = made(line, made.draw(100, stream()))[:, 0]
    steps = found.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-3, atol=1e-3)
    length = found[:, -1] - found[:, 0]
    assert length.min() >= 0.5 * 23 - 1e-3
    assert length.max() <= 23 + 1e-3
    assert found.min() >= 0
    assert found.max() <= 23 + 1e-4


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_finite_differences(name):
    made = one(name, (2, 9), shift=0.3)
    draw = made.draw(2, stream(3))
    x = noise(2, 2, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: made(v, draw), (x,), atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_masked_positions_stay_zero_and_are_not_read(name):
    made = one(name)
    draw = made.draw(3, stream(1))
    mask = torch.arange(24)[None] < torch.tensor([24, 15, 6])[:, None]
    values = noise(3, 2, 24)
    hidden = ~mask[:, None].expand_as(values)
    found = made({"values": values, "mask": mask}, draw)
    changed = made({"values": values.masked_fill(hidden, 9.0), "mask": mask}, draw)
    assert torch.equal(found["values"], changed["values"])
    assert torch.equal(found["mask"], mask)
    assert (found["values"][hidden] == 0).all()
    leaf = values.clone().requires_grad_()
    made({"values": leaf, "mask": mask}, draw)["values"].square().sum().backward()
    assert (leaf.grad[hidden] == 0).all()


def test_what_follows_a_window_stays_true():
    assert names_of(None, forecasts=True) == ("jitter",)
    assert names_of(None, forecasts=False) == CLASSES
    assert names_of("lowpass_phase", forecasts=True) == ("lowpass", "phase")
    assert names_of("none", forecasts=False) == ()
    for name in MOVES:
        with pytest.raises(UserError, match=f"what follows a window.*{name}"):
            names_of(f"jitter_{name}", forecasts=True)


def test_views_are_the_operations_side_by_side():
    info = SimpleNamespace(task="classification", shape=(2, 24))
    options = DSA(strategy="raw_lowpass_amplitude", mode="views", amplitude=0.1)
    made = TIMESERIES.augmentation(options, info)
    x = noise(3, 2, 24)
    draw = made.draw(3, stream(1))
    views = made(x, draw).unflatten(0, (3, 3)).unbind(dim=1)
    assert torch.equal(views[0], x)
    torch.testing.assert_close(views[1], one("lowpass")(x, draw[1]))
    alone = one("amplitude", amplitude=0.1)
    torch.testing.assert_close(views[2], alone(x, draw[2]))
    assert not torch.allclose(views[2], x, atol=1e-2)
    single = TIMESERIES.augmentation(DSA(strategy="jitter", mode="views"), info)
    assert len(single(x, single.draw(3, stream()))) == 3


@pytest.mark.parametrize("name", compose.methods())
def test_methods_for_all_items_fit_series(name):
    known = compose.read_yaml(compose.methods()[name])
    if known.get("modality", "timeseries") != "timeseries":
        pytest.skip("a method for other data")
    made = compose.compose(method=name, options={"modality": "timeseries"})
    for options in (made.augment, made.evaluate.augment or made.augment):
        assert options.kind == "none" or isinstance(names_of(options.strategy, False), tuple)
    assert made.evaluate.resolved().mix in ("none", "mixup", *TIMESERIES.mixers)
