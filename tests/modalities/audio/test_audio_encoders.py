"""Audio encoders: the contract, masks, and derivatives of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from mmdd.errors import UserError
from mmdd.learner import Learner
from mmdd.modalities.audio.base import coarser, mean_in_time
from mmdd.modalities.audio.convolutional import ConvNet, InstanceNorm
from mmdd.modalities.audio.encoders import ENCODERS, build
from mmdd.modalities.audio.part_options import ENCODERS as OPTIONS
from mmdd.tasks.classification import Classification

SHAPES = {"log-mel": (1, 12, 14), "waveform": (1, 300)}
CASES = [
    *((name, space, {}) for name, kind in ENCODERS.items() for space in kind.spaces),
    ("convnet", "log-mel", {"norm": "batch", "pooling": "max", "depth": 1, "width": 8}),
    ("crnn", "log-mel", {"norm": "batch", "depth": 4, "width": 4, "hidden": 5}),
    ("m5", "waveform", {"norm": "none", "kernel": 9, "stride": 2, "width": 4}),
    ("transformer", "log-mel", {"patch": 3, "dim": 8, "heads": 2, "depth": 1}),
    ("mlp", "waveform", {"width": 8, "depth": 1}),
]
IDS = ["-".join([name, space, *map(str, options.values())]) for name, space, options in CASES]
PLAIN = [case for case in CASES if not case[2]]


def made(name, space, options, seed=0):
    torch.manual_seed(seed)
    chosen = OPTIONS[name](**options).model_dump()
    del chosen["encoder"]
    return build(name, SHAPES[space], 4, space, chosen)


def inputs(space, count=3, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPES[space], generator=generator, dtype=torch.float64).to(dtype)


def masked(x, lengths):
    return {"audio": x, "mask": torch.arange(x.shape[-1]) < torch.tensor(lengths)[:, None]}


@pytest.mark.parametrize(("name", "space", "options"), CASES, ids=IDS)
def test_contract(name, space, options):
    net, x = made(name, space, options), inputs(space)
    for given in (x, masked(x, [5, 14, 1])):
        features, layers = net.features(given), net.layers(given)
        assert features.shape == (3, net.classifier.in_features)
        assert all(layer.ndim == 2 and len(layer) == 3 for layer in layers)
        assert torch.equal(layers[-1], features)
        torch.testing.assert_close(net(given), net.classifier(features), rtol=0, atol=0)
        assert net(given).shape == (3, 4)
        assert torch.isfinite(net(given)).all()
    assert net.mixes_items == (options.get("norm") == "batch")
    everything = {"audio": x, "mask": torch.ones(3, x.shape[-1], dtype=torch.bool)}
    torch.testing.assert_close(net(everything), net(x))
    half = Learner(net, Classification(), precision="bfloat16")
    batch_of = half.outputs(half.init(torch.Generator().manual_seed(0)), as_batch(x))
    assert torch.isfinite(batch_of).all()


def as_batch(x):
    from mmdd.batch import Batch

    return Batch(x, torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x), dtype=torch.int64))


@pytest.mark.parametrize(("name", "space", "options"), PLAIN, ids=IDS[: len(PLAIN)])
def test_items_do_not_mix_and_hidden_numbers_do_not_matter(name, space, options):
    net, x = made(name, space, options), inputs(space)
    torch.testing.assert_close(net(x)[1:], net(x[1:]), rtol=1e-4, atol=1e-5)
    given = masked(x, [x.shape[-1] // 2, x.shape[-1], 3])
    leaf = given["audio"].clone().requires_grad_()
    wanted = net({**given, "audio": leaf})
    wanted.square().sum().backward()
    hidden = ~given["mask"].view(3, *(1,) * (x.ndim - 2), -1).expand(x.shape)
    assert (leaf.grad[hidden] == 0).all()
    assert (leaf.grad[~hidden] != 0).float().mean() > 0.5
    changed = torch.where(hidden, 100.0, x)
    torch.testing.assert_close(net({**given, "audio": changed}), wanted)


@pytest.mark.parametrize(("name", "space", "options"), PLAIN, ids=IDS[: len(PLAIN)])
def test_second_derivatives_are_those_of_finite_differences(name, space, options):
    """d/dx of <v, dL/dtheta>, what gradient and trajectory matching need, in float64."""
    small = {"convnet": {"width": 3}, "m5": {"width": 2}, "crnn": {"width": 2, "hidden": 3}}
    net = made(name, space, small.get(name, {})).double()
    x = masked(inputs(space, 2, dtype=torch.float64), [9, 14] if space == "log-mel" else [200, 300])
    params = [p for p in net.parameters()]
    torch.manual_seed(5)
    vector = [torch.randn_like(p) for p in params]
    labels = torch.tensor([1, 3])

    def projected(values, create_graph=False):
        loss = nn.functional.cross_entropy(net({**x, "audio": values}), labels)
        found = torch.autograd.grad(loss, params, create_graph=create_graph)
        return sum((a * b).sum() for a, b in zip(found, vector, strict=True))

    leaf = x["audio"].clone().requires_grad_()
    (got,) = torch.autograd.grad(projected(leaf, create_graph=True), leaf)
    direction = torch.randn_like(leaf)
    step = 1e-6
    ahead, behind = (projected(x["audio"] + sign * step * direction) for sign in (1, -1))
    torch.testing.assert_close(
        (got * direction).sum(), (ahead - behind) / (2 * step), rtol=2e-4, atol=1e-6
    )


@pytest.mark.parametrize(("name", "space", "options"), PLAIN, ids=IDS[: len(PLAIN)])
def test_stacked_nets_are_the_single_ones(name, space, options):
    nets = [made(name, space, options, seed) for seed in (0, 1)]
    params, buffers = stack_module_state(nets)
    x = inputs(space)
    for given in (x, masked(x, [5, 14, 2])):

        def call(p, b, given=given):
            return functional_call(nets[0], (p, b), (given,))

        together = vmap(call)(params, buffers)
        wanted = torch.stack([net(given) for net in nets])
        torch.testing.assert_close(together, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "space", "options"), CASES, ids=IDS)
def test_every_draw_of_a_learner_is_new_and_its_seeds(name, space, options):
    learner = Learner(made(name, space, options), Classification())
    first, same, other = (learner.init(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    names = learner.trainable_names
    assert all(torch.equal(first[key], same[key]) for key in names)
    drawn = [key for key in names if first[key].unique().numel() > 1]
    assert len(drawn) > 0
    assert all(not torch.equal(first[key], other[key]) for key in drawn)


def test_instance_norm_is_torchs():
    norm = InstanceNorm(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 9) * 2 + 1
    wanted = nn.functional.instance_norm(x, weight=norm.weight[:, 0], bias=norm.bias[:, 0])
    torch.testing.assert_close(norm(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "depth"),
    [((1, 32, 42), 3), ((1, 40, 101), 3), ((1, 64, 100), 4), ((1, 8, 8), 2), ((1, 4, 40), 1)],
)
def test_the_convnet_keeps_maps_of_two_by_two(shape, depth):
    with torch.device("meta"):
        net = ConvNet(shape, 10, width=4)
    assert len(net.blocks) == depth
    assert net.classifier.in_features == 4 * (shape[1] >> depth) * (shape[2] >> depth)
    assert min(shape[1:]) >> depth >= 2


def test_pooled_masks_and_means():
    mask = torch.tensor([[True] * 3 + [False] * 4, [True] * 7])
    assert coarser(mask, 3).tolist() == [[True, True, False], [True] * 3]
    x = torch.arange(14.0).view(2, 1, 7)
    assert mean_in_time(x, mask)[:, 0].tolist() == [1.0, 10.0]
    none = torch.zeros(2, 7, dtype=torch.bool)
    assert mean_in_time(x, none)[:, 0].tolist() == [3.0, 10.0]
    assert coarser(None, 3) is None


@pytest.mark.parametrize(
    ("name", "space", "options", "message"),
    [
        ("convnet", "waveform", {}, r"reads log-mel, .* waveform; expected one of m5, mlp, linear"),
        ("m5", "log-mel", {}, r"expected one of convnet, crnn, transformer, mlp, linear"),
        ("resnet", "log-mel", {}, "unknown encoder 'resnet'"),
        ("convnet", "log-mel", {"depth": 4}, "below one pixel|below"),
        ("m5", "waveform", {"kernel": 400}, "needs 404 samples"),
        ("transformer", "log-mel", {"dim": 7}, "a multiple of 4"),
        ("transformer", "log-mel", {"patch": 15}, "more frames than a clip has"),
    ],
)
def test_encoders_that_do_not_fit(name, space, options, message):
    with pytest.raises(UserError, match=message):
        build(name, SHAPES[space], 4, space, options)
