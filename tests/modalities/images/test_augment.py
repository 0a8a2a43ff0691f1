"""Tests of mmdd.modalities.images.augment against plainly written references."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmdd.modalities.images.augment import DSA, Draw, Strengths

OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")
# One and three channels; square, oblong either way, odd and even sides.
SHAPES = [(1, 8, 8), (3, 7, 12), (3, 11, 6)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(
    n: int, shape: tuple[int, ...] = (3, 8, 8), dtype: torch.dtype = torch.float64, seed: int = 1
) -> Tensor:
    return torch.randn(n, *shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


# References: one image [C, H, W] and its four uniforms, pixel by pixel. ------------------------


def ref_color(x: Tensor, u: list[float]) -> Tensor:
    channels, height, width = x.shape
    out = x + u[0] - 0.5
    for i in range(height):
        for j in range(width):
            grey = float(out[:, i, j].sum()) / channels
            for c in range(channels):
                out[c, i, j] = grey + 2 * u[1] * (out[c, i, j] - grey)
    mean = float(out.sum()) / out.numel()
    return mean + (0.5 + u[2]) * (out - mean)


def ref_crop(x: Tensor, u: list[float]) -> Tensor:
    _, height, width = x.shape
    pad_y, pad_x = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    dx = math.floor(u[0] * (2 * pad_x + 1)) - pad_x
    dy = math.floor(u[1] * (2 * pad_y + 1)) - pad_y
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            if 0 <= i + dy < height and 0 <= j + dx < width:
                out[:, i, j] = x[:, i + dy, j + dx]
    return out


def ref_cutout(x: Tensor, u: list[float]) -> Tensor:
    _, height, width = x.shape
    cut_y, cut_x = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    centre_x = math.floor(u[0] * (width + (1 - cut_x % 2)))
    centre_y = math.floor(u[1] * (height + (1 - cut_y % 2)))
    out = x.clone()
    for a in range(cut_y):  # the field's form: clamp each erased index to the image
        for b in range(cut_x):
            i = min(max(a + centre_y - cut_y // 2, 0), height - 1)
            j = min(max(b + centre_x - cut_x // 2, 0), width - 1)
            out[:, i, j] = 0
    return out


def ref_flip(x: Tensor, u: list[float]) -> Tensor:
    width = x.shape[2]
    return torch.stack([x[:, :, width - 1 - j] for j in range(width)], 2) if u[0] < 0.5 else x


def bilinear(x: Tensor, where: Callable[[float, float], tuple[float, float]]) -> Tensor:
    """Read x at ``where(dy, dx)``, both measured in pixels from the centre of the image."""
    _, height, width = x.shape
    mid_y, mid_x = (height - 1) / 2, (width - 1) / 2
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            y, x_ = where(i - mid_y, j - mid_x)
            y, x_ = y + mid_y, x_ + mid_x
            for k in (math.floor(y), math.floor(y) + 1):
                for m in (math.floor(x_), math.floor(x_) + 1):
                    if 0 <= k < height and 0 <= m < width:
                        out[:, i, j] += x[:, k, m] * (1 - abs(y - k)) * (1 - abs(x_ - m))
    return out


def ref_scale(x: Tensor, u: list[float]) -> Tensor:
    sx, sy = (1 / 1.2 + v * (1.2 - 1 / 1.2) for v in u[:2])
    return bilinear(x, lambda dy, dx: (sy * dy, sx * dx))


def ref_rotate(x: Tensor, u: list[float]) -> Tensor:
    angle = math.radians(-15 + 30 * u[0])
    cos, sin = math.cos(angle), math.sin(angle)
    return bilinear(x, lambda dy, dx: (sin * dx + cos * dy, cos * dx - sin * dy))


REFERENCES = {
    "color": ref_color,
    "crop": ref_crop,
    "cutout": ref_cutout,
    "flip": ref_flip,
    "scale": ref_scale,
    "rotate": ref_rotate,
}


def reference(x: Tensor, draw: Draw, rows: list[int], names: tuple[str, ...] = OPS) -> Tensor:
    out = [
        REFERENCES[names[int(draw.ops[r])]](item, draw.params[r].tolist())
        for item, r in zip(x, rows, strict=True)
    ]
    return torch.stack(out)


# The ops. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", OPS)
def test_each_op_matches_its_reference(op: str, shape: tuple[int, int, int]) -> None:
    dsa, x = DSA(op), images(12, shape)
    draw = dsa.draw(12, seeded())
    expected = reference(x, draw, list(range(12)), (op,))
    torch.testing.assert_close(dsa(x, draw), expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(expected, x)


def test_extreme_uniforms_match_the_reference() -> None:
    last = 1 - 2**-24  # the largest float32 that torch.rand gives
    params = torch.tensor([[a, b, a, b] for a in (0.0, 0.5, last) for b in (0.0, 0.5, last)])
    x = images(9, (3, 7, 12))
    for op in OPS:
        draw = Draw(ops=torch.zeros(9, dtype=torch.int64), params=params)
        expected = reference(x, draw, list(range(9)), (op,))
        torch.testing.assert_close(DSA(op)(x, draw), expected, rtol=1e-12, atol=1e-12)


def test_mixed_ops_land_on_their_own_items() -> None:
    dsa, x = DSA(), images(24, (3, 6, 8))
    draw, rows = dsa.draw(9, seeded(3)), torch.randint(9, (24,), generator=seeded(4))
    assert len(draw.ops[rows].unique()) > 3
    expected = reference(x, draw, rows.tolist())
    torch.testing.assert_close(dsa(x, draw, rows), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op: str) -> None:
    dsa, x = DSA(op), images(3, (2, 4, 5)).requires_grad_()
    draw = dsa.draw(2, seeded())
    assert torch.autograd.gradcheck(lambda t: dsa(t, draw, torch.tensor([0, 1, 0])), (x,))


def test_gradcheck_mixed_ops() -> None:
    dsa, x = DSA(), images(8, (1, 4, 3)).requires_grad_()
    draw = dsa.draw(8, seeded(2))
    assert len(draw.ops.unique()) > 2
    assert torch.autograd.gradcheck(lambda t: dsa(t, draw), (x,))


def test_strengths_replace_the_defaults() -> None:
    x = images(20)
    still = {"scale": 1.0, "rotate": 0.0, "crop": 0.0, "cutout": 0.0, "flip": 0.0}
    dsa = DSA("scale_rotate_crop_cutout_flip", ratios=still)
    assert dsa.strengths == Strengths(**still)
    torch.testing.assert_close(dsa(x, dsa.draw(20, seeded())), x)
    always = DSA("flip", ratios=Strengths(flip=1.0))
    assert torch.equal(always(x, always.draw(20, seeded())), x.flip(3))
    away = DSA("cutout", ratios={"cutout": 1.0})
    assert (away(x, away.draw(20, seeded())) == 0).any()


def test_grid_is_that_of_affine_grid() -> None:
    theta = torch.tensor([[[1.1, 0, 0], [0, 0.9, 0]]], dtype=torch.float64)
    x = images(1, (3, 7, 12))
    grid = torch.nn.functional.affine_grid(theta, [1, 3, 7, 12], align_corners=False)
    expected = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    low, high = 1 / 1.2, 1.2
    u = torch.tensor([[(1.1 - low) / (high - low), (0.9 - low) / (high - low), 0, 0]])
    actual = DSA("scale")(x, Draw(torch.zeros(1, dtype=torch.int64), u))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)  # u is float32


# The draw. -------------------------------------------------------------------------------------


def test_same_seed_same_bits() -> None:
    dsa, x = DSA(), images(16, dtype=torch.float32)
    first, second, other = (dsa.draw(16, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(first.ops, second.ops)
    assert torch.equal(first.params, second.params)
    assert torch.equal(dsa(x, first), dsa(x, second))
    assert not torch.equal(first.params, other.params)
    assert first.ops.dtype == torch.int64
    assert first.params.shape == (16, 4)


@pytest.mark.parametrize("shared_op", [False, True])
def test_values_consumed_do_not_depend_on_the_strategy(shared_op: bool) -> None:
    states = []
    for strategy in (*OPS, "_".join(OPS), "none"):
        generator = seeded(7)
        DSA(strategy).draw(13, generator, shared_op=shared_op)
        states.append(generator.get_state())
    DSA().draw(13, generator := seeded(7))
    assert all(torch.equal(state, generator.get_state()) for state in states)


def test_every_op_is_chosen_about_equally() -> None:
    count = 6000
    share = torch.bincount(DSA().draw(count, seeded()).ops, minlength=6) / count
    assert share.shape == (6,)
    # Standard deviation of a share: sqrt(1/6 * 5/6 / 6000) = 0.0048.
    assert (share - 1 / 6).abs().max() < 5 * 0.0048


def test_ops_chosen_across_successive_draws() -> None:
    dsa, generator = DSA(), seeded()
    ops = [int(dsa.draw(3, generator, shared_op=True).ops[0]) for _ in range(120)]
    assert set(ops) == set(range(6))


def test_shared_op_is_one_op_with_parameters_per_item() -> None:
    dsa, x = DSA("rotate_scale"), images(1).expand(10, -1, -1, -1)
    for seed in range(5):
        draw = dsa.draw(10, seeded(seed), shared_op=True)
        assert len(draw.ops.unique()) == 1
        assert len(draw.params.unique(dim=0)) == 10
        assert len(dsa(x, draw).unique(dim=0)) == 10


# Siamese use. ----------------------------------------------------------------------------------


def test_siamese_batches_get_the_same_transform() -> None:
    dsa, base = DSA(), images(1, dtype=torch.float32)
    draw, groups = dsa.draw(40, seeded()), torch.arange(40)
    rows = groups.repeat(3)[torch.randperm(120, generator=seeded(8))]
    real = dsa(base.expand(120, -1, -1, -1), draw, rows)
    synthetic = dsa(base.expand(40, -1, -1, -1), draw, groups)
    # Not bits: vectorised kernels may round an image by its place in the batch.
    torch.testing.assert_close(real, synthetic[rows], rtol=1e-6, atol=1e-6)
    moving = torch.isin(draw.ops, torch.tensor([OPS.index(op) for op in ("color", "rotate")]))
    assert len(synthetic[moving].unique(dim=0)) == int(moving.sum()) > 5


@pytest.mark.parametrize("op", ["crop", "cutout", "flip"])
def test_siamese_ops_without_arithmetic_agree_to_the_bit(op: str) -> None:
    dsa, base = DSA(op), images(1, dtype=torch.float32)
    draw, rows = dsa.draw(4, seeded()), torch.tensor([2, 0, 3, 3, 1])
    every = dsa(base.expand(4, -1, -1, -1), draw)
    assert torch.equal(dsa(base.expand(5, -1, -1, -1), draw, rows), every[rows])


def test_a_draw_fits_batches_of_any_size_and_channels() -> None:
    dsa = DSA()
    draw = dsa.draw(6, seeded())
    for shape in SHAPES:
        assert dsa(images(6, shape), draw).shape == (6, *shape)


# Tensors of every kind. ------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["none", "None", "", (), ("none",)])
def test_identity(strategy: str | tuple[str, ...]) -> None:
    dsa, x = DSA(strategy), images(4)
    assert torch.equal(dsa(x, dsa.draw(4, seeded())), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_input_is_not_changed(shape: tuple[int, int, int]) -> None:
    for op in (*OPS, "_".join(OPS)):
        dsa, x = DSA(op), images(10, shape)
        before = x.clone()
        dsa(x, dsa.draw(10, seeded()))
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes_are_close_to_float64(dtype: torch.dtype) -> None:
    x = images(30, (3, 9, 8), dtype)
    for op in (*OPS, "_".join(OPS)):
        dsa = DSA(op)
        draw = dsa.draw(30, seeded())
        out, exact = dsa(x, draw), dsa(x.double(), draw)
        assert out.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(out.double(), exact, rtol=eps, atol=max(eps / 8, 1e-5))


def test_gradient_flows_in_bfloat16() -> None:
    dsa, x = DSA(), images(12, dtype=torch.bfloat16).requires_grad_()
    dsa(x, dsa.draw(12, seeded())).float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert bool((x.grad != 0).any())


def test_channels_last() -> None:
    x = images(12, (3, 6, 8))
    for op in (*OPS, "_".join(OPS)):
        dsa = DSA(op)
        draw = dsa.draw(12, seeded())
        last = dsa(x.contiguous(memory_format=torch.channels_last), draw)
        torch.testing.assert_close(last, dsa(x, draw), rtol=1e-12, atol=1e-12)


def test_zero_fill_stops_values_that_are_not_finite() -> None:
    draw = DSA("cutout").draw(8, seeded())
    x = torch.full((8, 1, 6, 6), math.inf)
    out = DSA("cutout")(x, draw)
    assert not out.isnan().any()
    assert (out == 0).any()


def test_empty_batch() -> None:
    dsa, x = DSA(), images(0)
    assert dsa(x, dsa.draw(0, seeded())).shape == x.shape
    assert dsa(x, dsa.draw(0, seeded(), shared_op=True)).shape == x.shape
    assert dsa(x, dsa.draw(3, seeded()), torch.zeros(0, dtype=torch.int64)).shape == x.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_transform_on_the_gpu() -> None:
    dsa, x = DSA(), images(60, (3, 9, 12), torch.float32)
    draw, rows = dsa.draw(20, seeded()), torch.arange(60) % 20
    on_gpu = dsa(x.cuda(), draw, rows.cuda())
    torch.testing.assert_close(on_gpu.cpu(), dsa(x, draw, rows), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="a CPU generator"):
        dsa.draw(2, torch.Generator("cuda"))


@settings(max_examples=40, deadline=None)
@given(
    op=st.sampled_from((*OPS, "_".join(OPS))),
    n=st.integers(0, 5),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 10), st.integers(1, 10)),
    seed=st.integers(0, 2**31),
    shared_op=st.booleans(),
)
def test_output_is_finite_and_of_the_same_shape(
    op: str, n: int, shape: tuple[int, int, int], seed: int, shared_op: bool
) -> None:
    dsa, x = DSA(op), images(n, shape, torch.float32, seed)
    out = dsa(x, dsa.draw(n, seeded(seed), shared_op=shared_op))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert bool(out.isfinite().all())


# Errors. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["color_rotat", ["color", "rotat"]])
def test_unknown_op_lists_the_names_and_suggests(strategy: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"got 'rotat'.*did you mean 'rotate'") as caught:
        DSA(strategy)
    assert all(op in str(caught.value) for op in OPS)


def test_bad_strengths() -> None:
    with pytest.raises(ValueError, match="did you mean 'brightness'"):
        DSA(ratios={"brightnes": 1.0})
    for name, value in [("scale", 0.5), ("cutout", 1.5), ("rotate", math.nan), ("crop", -1.0)]:
        with pytest.raises(ValueError, match=f"strength '{name}': got {value}"):
            DSA(ratios={name: value})


def test_bad_calls() -> None:
    dsa, x = DSA(), images(4)
    draw = dsa.draw(3, seeded())
    for rows in (None, torch.zeros(3, dtype=torch.int64), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"rows: got .* expected int64"):
            dsa(x, draw, rows)
    for bad in (3, -1):
        with pytest.raises(ValueError, match="expected 0 to 2"):
            dsa(x, draw, torch.tensor([0, 1, bad, 2]))
    for wrong in (x[0], x.to(torch.uint8)):
        with pytest.raises(ValueError, match="images: got"):
            dsa(wrong, dsa.draw(len(wrong), seeded()))
    with pytest.raises(ValueError, match="number of draws: got -1"):
        dsa.draw(-1, seeded())
    with pytest.raises(ValueError, match="draw: got 'op"):
        DSA("flip")(images(20), dsa.draw(20, seeded()))
