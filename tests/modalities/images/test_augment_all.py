"""The mode "all" of the augmentation, op by op, and CutMix against the definition."""

from __future__ import annotations

import math

import pytest
import torch

from mmdd.errors import UserError
from mmdd.modalities.images import augment, mixing
from mmdd.modalities.images.augment import _OPS, DSA, GEOMETRIC, Draw, Strengths
from mmdd.modalities.images.encoder_options import AUGMENTATION_OPS
from mmdd.modalities.images.encoder_options import DSA as Options
from mmdd.modalities.images.mixing import cutmix
from mmdd.modalities.images.modality import IMAGES
from mmdd.recipe import validate
from mmdd.trees import tree_cat

EVERY = "_".join(AUGMENTATION_OPS)
SHAPES = [(1, 8, 8), (3, 7, 12)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, shape=(3, 8, 8), dtype=torch.float64, seed=1):
    return torch.randn(n, *shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def single(op, x, values):
    """One op of the mode "one" on one image [C, H, W] by its first uniforms."""
    padded = torch.zeros(1, 4)
    padded[0, : len(values)] = values
    return DSA(op)(x[None], Draw(torch.zeros(1, dtype=torch.int64), padded))[0]


def one_after_another(x, draw, rows, strategy=EVERY):
    """What the mode "all" means: image by image, op by op."""
    names = strategy.split("_")
    picks = [name for name in names if name in GEOMETRIC]
    out = []
    for item, row in zip(x, rows, strict=True):
        u = draw.params[row]
        if "color" in names:
            item = single("color", item, u[0:3])
        if picks:
            item = single(picks[int(draw.ops[row])], item, u[6:8])
        if "flip" in names:
            item = single("flip", item, u[3:4])
        if "cutout" in names:
            item = single("cutout", item, u[4:6])
        out.append(item)
    return torch.stack(out)


# -- all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "strategy", [EVERY, "cutout_color", "flip", "rotate", "crop_scale_flip", "color_crop_cutout"]
)
def test_all_ops_are_applied_and_one_geometric_one_is_picked(strategy, shape):
    dsa, x = DSA(strategy, mode="all"), images(30, shape)
    draw, rows = dsa.draw(12, seeded(3)), torch.randint(12, (30,), generator=seeded(4))
    expected = one_after_another(x, draw, rows.tolist(), strategy)
    torch.testing.assert_close(dsa(x, draw, rows), expected, rtol=1e-12, atol=1e-12)
    picks = [name for name in strategy.split("_") if name in GEOMETRIC]
    assert set(draw.ops.tolist()) == set(range(max(1, len(picks))))


@pytest.mark.parametrize("mode", ["one", "all"])
def test_runs_of_equal_ops_give_what_sorting_gives(mode, monkeypatch):
    dsa, x = DSA(mode=mode), images(60, dtype=torch.float32)
    draw, rows = dsa.draw(6, seeded(5)), torch.arange(60) // 10
    found, pieces = {}, []
    for limit in (1, 10**9):
        monkeypatch.setattr(augment, "RUN_VALUES", limit)
        pieces.append(len(augment._runs(x, draw.ops[rows])))
        leaf = x.clone().requires_grad_()
        out = dsa(leaf, draw, rows)
        (out * images(60, dtype=torch.float32, seed=2)).sum().backward()
        found[limit] = (out.detach(), leaf.grad)
    assert pieces[0] > pieces[1] == 1
    for runs, whole in zip(*found.values(), strict=True):
        torch.testing.assert_close(runs, whole, rtol=1e-6, atol=1e-6)


def test_parameters_of_the_ops_are_independent():
    draw = DSA(mode="all").draw(4000, seeded())
    assert draw.params.shape == (4000, 8)
    together = torch.cat([draw.params, draw.ops[:, None]], dim=1).T.corrcoef()
    # a correlation of independent columns has the standard deviation 1 / sqrt(4000) = 0.016
    assert together.triu(1).abs().max() < 5 * 0.016
    share = torch.bincount(draw.ops) / 4000
    assert (share - 1 / 3).abs().max() < 5 * math.sqrt(2 / 9 / 4000)


def test_values_consumed_do_not_depend_on_the_strategy():
    states = []
    for strategy in (EVERY, "flip", "color_crop", "none"):
        DSA(strategy, mode="all").draw(13, generator := seeded(7))
        states.append(generator.get_state())
    torch.rand(13, 9, generator=(plain := seeded(7)))
    assert all(torch.equal(state, plain.get_state()) for state in states)


def test_shared_op_is_one_geometric_op():
    dsa = DSA(mode="all")
    seen = set()
    for seed in range(12):
        draw = dsa.draw(5, seeded(seed), shared_op=True)
        assert len(draw.ops.unique()) == 1
        assert len(draw.params.unique(dim=0)) == 5
        seen.add(int(draw.ops[0]))
    assert seen == {0, 1, 2}


def test_draws_are_concatenated_and_shared_by_rows():
    dsa, x = DSA(mode="all"), images(1, dtype=torch.float32)
    draws = [dsa.draw(4, seeded(seed), shared_op=True) for seed in (1, 2)]
    both = tree_cat(draws)
    assert isinstance(both, Draw)
    whole = dsa(x.expand(8, -1, -1, -1), both)
    parts = [dsa(x.expand(4, -1, -1, -1), draw) for draw in draws]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-6, atol=1e-6)
    rows = torch.tensor([7, 0, 0, 5, 7])
    siamese = dsa(x.expand(5, -1, -1, -1), both, rows)
    torch.testing.assert_close(siamese, whole[rows], rtol=1e-6, atol=1e-6)
    assert torch.equal(dsa(x.expand(8, -1, -1, -1), both), whole)


def test_gradcheck_of_all():
    dsa, x = DSA(mode="all"), images(4, (2, 4, 5)).requires_grad_()
    draw = dsa.draw(3, seeded(1))
    assert len(draw.ops.unique()) > 1
    rows = torch.tensor([0, 1, 2, 0])
    assert torch.autograd.gradcheck(lambda t: dsa(t, draw, rows), (x,))


def test_input_of_all_is_not_changed_and_half_precision_is_close():
    x = images(30, (3, 9, 8), torch.bfloat16)
    before, dsa = x.clone(), DSA(mode="all")
    draw = dsa.draw(30, seeded())
    out, exact = dsa(x, draw), dsa(x.double(), draw)
    assert torch.equal(x, before)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=1e-3)
    assert DSA("none", mode="all")(x, DSA("none", mode="all").draw(30, seeded())) is x
    assert dsa(x[:0], dsa.draw(0, seeded())).shape == (0, 3, 9, 8)


def test_strengths_reach_every_op():
    still = {"scale": 1.0, "rotate": 0.0, "crop": 0.0, "cutout": 0.0, "flip": 0.0}
    dsa = DSA("flip_cutout_crop_scale_rotate", ratios=Strengths(**still), mode="all")
    x = images(20)
    torch.testing.assert_close(dsa(x, dsa.draw(20, seeded())), x)
    flipped = DSA("flip_crop", ratios={**still, "flip": 1.0}, mode="all")
    assert torch.equal(flipped(x, flipped.draw(20, seeded())), x.flip(3))


def test_draws_of_another_mode_or_strategy_are_refused():
    one, every, x = DSA(), DSA(mode="all"), images(20)
    for dsa, other in ((one, every), (every, one)):
        with pytest.raises(UserError, match="strategy and mode that made it"):
            dsa(x, other.draw(20, seeded()))
    with pytest.raises(UserError, match="draw: got 'op"):
        DSA("flip_crop", mode="all")(x, every.draw(20, seeded()))
    with pytest.raises(UserError, match="unknown mode"):
        DSA(mode="al")


# -- as a recipe writes it -------------------------------------------------------------------------


def recipe(**augment):
    return validate({"data": {"source": "digits"}, "augment": augment}, "here")


def test_recipes_name_the_mode_and_the_ops():
    assert set(AUGMENTATION_OPS) == set(_OPS)
    made = IMAGES.augmentation(recipe(kind="dsa", mode="all", strategy="color_crop").augment, None)
    assert (made.mode, made.names, made.choices) == ("all", ("color", "crop"), ("crop",))
    assert IMAGES.augmentation(recipe(kind="dsa").augment, None).mode == "one"
    assert Options(strategy="none").strategy == "none"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "color_rotat"}, "'rotat'.*did you mean 'rotate'"),
        ({"strategy": "color-crop"}, "color-crop"),
        ({"mode": "both"}, "mode"),
    ],
)
def test_recipes_with_unknown_words_are_refused(options, words):
    with pytest.raises(UserError, match=words) as error:
        recipe(kind="dsa", **options)
    assert "\n" not in str(error.value)


# -- CutMix ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 12), (2, 1, 9)])
def test_cutmix_pastes_one_box_into_the_whole_batch(shape):
    x, partner = torch.zeros(5, *shape), torch.ones(5, *shape)
    sizes = set()
    for seed in range(40):
        mixed, kept = cutmix(x, partner, seeded(seed))
        assert not x.any()
        first = mixed[0, 0].bool()
        assert torch.equal(mixed, first.float().expand_as(mixed))
        rows, columns = first.any(dim=1), first.any(dim=0)
        assert torch.equal(first, rows[:, None] & columns)
        for side in (rows, columns):  # one piece each
            assert int((side[1:] != side[:-1]).sum()) <= 2
        assert kept == pytest.approx(1 - float(mixed.mean()), abs=1e-6)
        sizes.add(kept)
    assert len(sizes) > 4


def test_cutmix_follows_its_definition():
    """Share and centre are the generator's own numbers: lambda first, then row and column."""
    x, partner = torch.zeros(1, 1, 30, 40), torch.ones(1, 1, 30, 40)
    for seed in range(20):
        share, row, column = torch.rand(3, generator=seeded(seed), dtype=torch.float64).tolist()
        height, width = (math.floor(n * math.sqrt(1 - share) + 0.5) for n in (30, 40))
        top, left = math.floor(30 * row) - height // 2, math.floor(40 * column) - width // 2
        wanted = torch.zeros(30, 40)
        for i in range(top, top + height):
            for j in range(left, left + width):
                if 0 <= i < 30 and 0 <= j < 40:
                    wanted[i, j] = 1
        mixed, kept = cutmix(x, partner, seeded(seed))
        assert torch.equal(mixed[0, 0], wanted)
        assert kept == 1 - int(wanted.sum()) / 1200


@pytest.mark.parametrize("beta", [0.2, 1.0, 3.0])
def test_cutmix_shares_are_beta_distributed(beta):
    generator = seeded(11)
    drawn = torch.tensor([mixing._beta(beta, generator) for _ in range(4000)])
    variance = 1 / (4 * (2 * beta + 1))
    assert drawn.mean() == pytest.approx(0.5, abs=5 * math.sqrt(variance / 4000))
    assert drawn.var() == pytest.approx(variance, rel=0.1)
    again = [mixing._beta(beta, generator.manual_seed(11)) for _ in range(2)]
    assert again[0] == again[1] == pytest.approx(float(drawn[0]))


def test_gradients_of_cutmix_reach_both():
    x, partner = (
        images(2, (1, 4, 5)).requires_grad_(),
        images(2, (1, 4, 5), seed=2).requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda a, b: cutmix(a, b, seeded(4))[0], (x, partner))
    mixed, kept = cutmix(x, partner, seeded(4))
    mixed.sum().backward()
    assert 0 < kept < 1
    assert float(x.grad.mean()) == pytest.approx(kept)
    assert torch.equal(x.grad + partner.grad, torch.ones_like(x))


def test_mixers_are_offered_by_name():
    mixed, kept = IMAGES.mixers["cutmix"](images(3), images(3, seed=2), seeded(1))
    assert mixed.shape == (3, 3, 8, 8)
    assert 0 <= kept <= 1


def test_cutmix_refuses_what_it_cannot_mix():
    x = images(3)
    for bad in (x[:2], x[0]):
        with pytest.raises(UserError, match="cannot be mixed"):
            cutmix(x, bad, seeded())
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="beta of cutmix"):
            cutmix(x, x, seeded(), beta)
    mixed, _ = cutmix(x, x, seeded(), 1e-4)  # shares of 0 and 1, but numbers
    assert torch.equal(mixed, x)
