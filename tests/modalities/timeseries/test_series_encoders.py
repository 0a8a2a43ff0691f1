"""Nets that read series: their parts, masks, derivatives, and what they are by formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.learner import Learner
from mmdd.modalities.timeseries.base import Norm, Spec, halve, mean_over_time
from mmdd.modalities.timeseries.encoder_options import ENCODERS as OPTIONS
from mmdd.modalities.timeseries.encoders import ENCODERS, build
from mmdd.modalities.timeseries.linear import DLinear
from mmdd.objectives.inner import differentiable_twice
from mmdd.tasks.classification import Classification
from mmdd.tasks.forecasting import Forecasting

SMALL = {
    "convnet": {"width": 6, "kernel": 3},
    "fcn": {"width": 6},
    "resnet": {"width": 5, "depth": 2},
    "inception": {"width": 4, "depth": 4, "kernel": 8},
    "dual": {"width": 5, "kernel": 3},
    "lstm": {"width": 6, "depth": 2},
    "gru": {"width": 6},
    "dlinear": {"average": 4},
    "patchtransformer": {"dim": 8, "depth": 1, "heads": 2, "patch": 4},
    "linear": {},
    "mlp": {"width": 8},
}
READERS = [name for name in SMALL if name != "dlinear"]
RECURRENT = ("lstm", "gru")
STEPS = 18


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def net(name, spec, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build(name, spec, **{**SMALL[name], **more})


def lengths_mask(lengths, steps=STEPS):
    return torch.arange(steps)[None, :] < torch.tensor(lengths)[:, None]


def test_every_option_model_builds_its_encoder():
    assert set(OPTIONS) == set(ENCODERS)
    for name, model in OPTIONS.items():
        options = model().model_dump()
        assert options.pop("encoder") == name
        made = build(name, Spec(2, 64, (2, 8)), **options)
        assert made(noise(3, 2, 64)).shape == (3, 2, 8)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("outputs", [(4,), (3, 5)], ids=["classes", "forecasts"])
def test_outputs_features_and_layers_belong_together(name, outputs):
    if name == "dlinear" and len(outputs) == 1:
        with pytest.raises(UserError, match="'dlinear' makes forecasts"):
            net(name, Spec(3, STEPS, outputs))
        return
    made = net(name, Spec(3, STEPS, outputs)).eval()
    x = noise(7, 3, STEPS)
    features, layers = made.features(x), made.layers(x)
    assert made(x).shape == (7, *outputs)
    assert features.ndim == 2
    assert torch.equal(layers[-1], features)
    assert all(layer.ndim == 2 and len(layer) == 7 for layer in layers)
    # an item's output is its own
    torch.testing.assert_close(made(x[2:4]), made(x)[2:4], rtol=1e-5, atol=1e-5)
    assert not made.mixes_items


@pytest.mark.parametrize("name", SMALL)
def test_all_parameters_are_drawn_anew_and_used(name):
    made = net(name, Spec(3, STEPS, (3, 5)))
    learner = Learner(made, Forecasting())
    first = learner.init(torch.Generator().manual_seed(0))
    second = learner.init(torch.Generator().manual_seed(1))
    same = learner.init(torch.Generator().manual_seed(0))
    for key, value in first.items():
        assert torch.equal(value, same[key])
        constant = value.unique().numel() == 1
        assert constant or not torch.equal(value, second[key]), key
    made(noise(4, 3, STEPS)).square().sum().backward()
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None, key


# -- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_what_a_mask_hides_is_never_read_and_gets_no_gradient(name):
    made = net(name, Spec(2, STEPS, (4,), masked=True)).eval()
    mask = lengths_mask([STEPS, 11, 5, 1])
    values = noise(4, 2, STEPS)
    plain = made({"values": values, "mask": mask})
    hidden = ~mask[:, None].expand_as(values)
    for filling in (7.0, float("nan")):
        changed = values.masked_fill(hidden, filling)
        assert torch.equal(made({"values": changed, "mask": mask}), plain)
    leaf = values.clone().requires_grad_()
    made({"values": leaf, "mask": mask}).square().sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad[hidden] == 0).all()
    shown = leaf.grad.abs().sum(dim=1)[mask]
    assert (shown > 0).float().mean() > 0.8


@pytest.mark.parametrize("name", ["convnet", "fcn", "resnet", "inception", "lstm", "gru"])
def test_a_longer_padding_changes_nothing(name):
    more = {"head": "mean"} if name == "convnet" else {}
    short = net(name, Spec(2, 10, (4,), masked=True), depth=2, **more) if name != "fcn" else None
    short = net("fcn", Spec(2, 10, (4,), masked=True)) if short is None else short
    values, mask = noise(3, 2, 10), lengths_mask([10, 7, 4], 10)
    padded = {"values": F.pad(values, (0, 8)), "mask": F.pad(mask, (0, 8))}
    found = short({"values": values, "mask": mask}), short(padded)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_a_mask_that_hides_nothing_is_no_mask():
    for name in READERS:
        plain, masked = (net(name, Spec(2, STEPS, (4,), masked=m)).eval() for m in (False, True))
        x = noise(3, 2, STEPS)
        everything = torch.ones(3, STEPS, dtype=torch.bool)
        found = masked({"values": x, "mask": everything})
        torch.testing.assert_close(plain(x), found, rtol=1e-5, atol=1e-5, msg=name)


# -- formulas --------------------------------------------------------------------------------------


def test_norms_are_those_of_pytorch():
    x = noise(3, 4, 9)
    own = Norm(4, "instance")
    torch.testing.assert_close(own(x, None), nn.InstanceNorm1d(4)(x), rtol=1e-5, atol=1e-5)
    own = Norm(4, "layer")
    torch.testing.assert_close(own(x, None), nn.GroupNorm(1, 4)(x), rtol=1e-5, atol=1e-5)
    mask = lengths_mask([9, 5, 2], 9)
    for kind, plain in (("instance", nn.InstanceNorm1d(4)), ("layer", nn.GroupNorm(1, 4))):
        found = Norm(4, kind)(x * mask[:, None], mask)
        for row, length in enumerate((9, 5, 2)):
            expected = plain(x[row : row + 1, :, :length])
            torch.testing.assert_close(
                found[row : row + 1, :, :length], expected, rtol=1e-4, atol=1e-4
            )


def test_pooling_takes_means_of_what_is_there():
    x = torch.arange(1.0, 6.0).view(1, 1, 5)
    assert halve(x, None)[0].flatten().tolist() == [1.5, 3.5, 5.0]
    mask = torch.tensor([[True, True, True, False, False]])
    pooled, left = halve(x * mask[:, None], mask)
    assert pooled.flatten().tolist() == [1.5, 3.0, 0.0]
    assert left.tolist() == [[True, True, False]]
    assert mean_over_time(x * mask[:, None], mask).item() == 2.0


def test_dlinear_is_the_published_sum():
    made = DLinear(Spec(2, 12, (2, 4)), average=5)
    x = noise(3, 2, 12)
    expected = torch.zeros(3, 2, 4)
    for item in range(3):
        for channel in range(2):
            row = x[item, channel].numpy()
            long = np.concatenate([[row[0]] * 2, row, [row[-1]] * 2])
            trend = torch.tensor([long[k : k + 5].mean() for k in range(12)])
            rest = torch.from_numpy(row) - trend
            expected[item, channel] = made.trend(trend) + made.rest(rest)
    torch.testing.assert_close(made(x), expected.detach(), rtol=1e-5, atol=1e-5, check_stride=False)
    assert torch.equal(made.features(x), made(x).flatten(1))


def test_recurrent_nets_read_the_state_at_the_last_step_that_is_shown():
    made = net("lstm", Spec(2, STEPS, (4,), masked=True), depth=1)
    values, mask = noise(2, 2, STEPS), lengths_mask([STEPS, 6])
    features = made.features({"values": values, "mask": mask})
    states, _ = made.blocks[0](values.transpose(1, 2))
    torch.testing.assert_close(features[0], states[0, -1])
    torch.testing.assert_close(features[1], states[1, 5])


@pytest.mark.parametrize("name", ["convnet", "mlp", "gru", "patchtransformer"])
def test_forecasts_move_with_the_level_of_the_series(name):
    made = net(name, Spec(2, STEPS, (2, 4))).eval()
    x = noise(3, 2, STEPS)
    level = torch.tensor([[5.0], [-3.0]])
    torch.testing.assert_close(made(x + level), made(x) + level, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["convnet", "mlp", "lstm", "patchtransformer", "linear"])
def test_a_net_per_channel_sees_one_channel(name):
    made = net(name, Spec(3, STEPS, (3, 4)), per_channel=True).eval()
    x = noise(2, 3, STEPS)
    changed = x.clone()
    changed[:, 1] += noise(2, STEPS, seed=4)
    first, second = made(x), made(changed)
    torch.testing.assert_close(first[:, [0, 2]], second[:, [0, 2]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first[:, 1], second[:, 1])
    # one net for all: channels in another order give forecasts in that order
    order = [2, 0, 1]
    torch.testing.assert_close(made(x[:, order]), first[:, order], rtol=1e-5, atol=1e-6)
    assert made.features(x).shape[0] == 2
    assert torch.equal(made.layers(x)[-1], made.features(x))
    with pytest.raises(UserError, match="per_channel is for forecasts"):
        net(name, Spec(3, STEPS, (4,)), per_channel=True)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="a multiple of 2"):
        net("patchtransformer", Spec(1, 20, (2,)), dim=7)
    with pytest.raises(UserError, match="at most 3 time steps"):
        net("patchtransformer", Spec(1, 3, (2,)))
    with pytest.raises(UserError, match="Did you mean 'convnet'"):
        build("convnett", Spec(1, 20, (2,)))


def test_every_encoder_reads_very_short_series():
    for name in READERS:
        more = {"patch": 1} if name == "patchtransformer" else {}
        for steps in (1, 2, 3):
            made = net(name, Spec(1, steps, (2,)), **more).eval()
            assert torch.isfinite(made(noise(2, 1, steps))).all()


# -- derivatives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_gradients_are_those_of_finite_differences(name):
    forecasts = name == "dlinear"
    outputs = (2, 3) if forecasts else (3,)
    made = net(name, Spec(2, 8, outputs)).double().eval()
    task = Forecasting() if forecasts else Classification()
    learner = Learner(made, task, precision="float64")
    params = {k: v.detach().double() for k, v in made.named_parameters()}
    targets = noise(3, 2, 3, seed=5, dtype=torch.float64) if forecasts else torch.tensor([0, 2, 1])
    x = noise(3, 2, 8, seed=2, dtype=torch.float64)
    towards = {k: noise(*v.shape, seed=9, dtype=torch.float64) for k, v in params.items()}

    def along(values):
        """The derivative of the loss in one direction of the parameters."""
        with differentiable_twice(learner):
            slopes = torch.func.grad(learner.pure_loss)(params, values, targets)
        return sum((slopes[k] * towards[k]).sum() for k in params)

    leaf = x.clone().requires_grad_()
    with differentiable_twice(learner):
        gradient = torch.func.grad(along)(x)
    direction, step = noise(3, 2, 8, seed=6, dtype=torch.float64), 1e-6
    both = [along(leaf.detach() + sign * step * direction) for sign in (1, -1)]
    expected = float(both[0] - both[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in RECURRENT])
def test_stacked_learners_are_learners_one_by_one(name):
    outputs = (2, 3)
    learner = Learner(net(name, Spec(2, STEPS, outputs)), Forecasting())
    params = learner.init(torch.Generator().manual_seed(0), stacked=2)
    x = noise(2, 4, 2, STEPS)
    together = learner.stacked_outputs(params, x)
    for place in range(2):
        own = {key: value[place] for key, value in params.items()}
        batch = Batch(x[place], noise(4, *outputs), torch.zeros(4, dtype=torch.int64))
        alone = learner.outputs(own, batch)
        torch.testing.assert_close(together[place], alone, rtol=1e-4, atol=1e-5)
