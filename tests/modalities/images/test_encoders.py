"""Image encoders: published sizes, the common contract, and derivatives of every kind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, stack_module_state, vmap

from mmdd.modalities.images.encoders import ENCODERS
from mmdd.modalities.images.norm import Norm

NAMES = list(ENCODERS)
SIZES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 40, 24)]
SMALL = (3, 8, 8)

# Every option at least once, beside the defaults.
VARIANTS = [
    *((name, {}) for name in NAMES),
    ("convnet", {"norm": "group", "activation": "leakyrelu", "pooling": "max", "depth": 2}),
    ("convnet", {"norm": "layer", "activation": "sigmoid", "pooling": "none", "width": 8}),
    ("convnet", {"norm": "none", "activation": "softplus"}),
    ("convnet", {"norm": "batch"}),
    ("mlp", {"width": 16, "depth": 1}),
    ("vgg11", {"norm": "none"}),
    ("resnet18", {"norm": "group", "stem": "imagenet"}),
    ("resnet18", {"norm": "batch", "downsample": "avgpool"}),
    ("vit", {"patch": 2, "dim": 32, "depth": 1, "heads": 2, "mlp_ratio": 1.5}),
]
VARIANT_IDS = ["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]


def build(name, size, classes=4, seed=0, **options):
    torch.manual_seed(seed)
    return ENCODERS[name](*size, classes, **options)


def images(size, count=2, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *size, generator=generator, dtype=torch.float64).to(dtype)


def count_parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "size", "options", "expected"),
    [
        ("convnet", (3, 32, 32), {}, 320_010),
        ("convnet", (1, 28, 28), {}, 317_706),
        ("convnet", (1, 28, 28), {"width": 32}, 24_138),
        ("mlp", (1, 28, 28), {}, 118_282),
        ("lenet", (1, 28, 28), {}, 61_706),
        ("lenet", (3, 32, 32), {}, 62_006),
        ("alexnet", (3, 32, 32), {}, 1_872_202),
        ("vgg11", (3, 32, 32), {}, 9_231_114),
        ("resnet18", (3, 32, 32), {"norm": "batch"}, 11_173_962),
        ("resnet18", (3, 32, 32), {}, 11_173_962),
        ("vit", (3, 32, 32), {}, 546_186),
    ],
)
def test_parameter_counts(name, size, options, expected):
    with torch.device("meta"):
        net = ENCODERS[name](*size, 10, **options)
    assert count_parameters(net) == expected


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("convnet", (1, 28, 28), 128 * 4 * 4),
        ("convnet", (3, 28, 28), 128 * 3 * 3),
        ("convnet", (3, 64, 64), 128 * 4 * 4),
        ("convnet", (3, 128, 128), 128 * 4 * 4),
        ("convnet", (3, 224, 224), 128 * 3 * 3),
        ("convnet", (3, 5, 5), 128 * 2 * 2),
        ("alexnet", (3, 32, 32), 192 * 4 * 4),
        ("vgg11", (1, 28, 28), 512),
        ("vgg11", (3, 224, 224), 512 * 7 * 7),
    ],
)
def test_feature_sizes(name, size, expected):
    with torch.device("meta"):
        assert ENCODERS[name](*size, 10).classifier.in_features == expected


@pytest.mark.parametrize("kind", ["instance", "group", "layer"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_norm_is_group_norm(kind, memory):
    norm = Norm(kind, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (images((8, 5, 7), count=3) * 2 + 3).contiguous(memory_format=memory).requires_grad_()
    weight, bias = norm.weight, norm.bias
    ours = norm(x)
    groups = {"instance": 8, "group": 4, "layer": 1}[kind]
    reference = F.group_norm(x, groups, weight, bias, eps=1e-5)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    assert ours.is_contiguous(memory_format=memory)
    wanted = torch.autograd.grad(reference.square().sum(), [x, weight, bias])
    got = torch.autograd.grad(ours.square().sum(), [x, weight, bias])
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)


def test_layer_norm_is_torchs_at_its_initial_weights():
    x = images((8, 5, 7))
    torch.testing.assert_close(Norm("layer", 8)(x), F.layer_norm(x, [8, 5, 7]))


def test_norm_of_half_precision_keeps_its_type_and_the_statistics():
    # bfloat16 sums of so many pixels would stall long before the mean.
    x = images((4, 64, 64)) + 2
    norm = Norm("instance", 4).bfloat16()
    out = norm(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), F.instance_norm(x), atol=0.05, rtol=0.02)


def test_norm_batch_and_none():
    x = images((4, 3, 3))
    torch.testing.assert_close(Norm("batch", 4)(x), F.batch_norm(x, None, None, training=True))
    assert Norm("none", 4)(x) is x


def test_instance_norm_of_one_pixel_is_the_bias():
    norm = Norm("instance", 4)
    torch.nn.init.normal_(norm.bias)
    expected = norm.bias.reshape(1, 4, 1, 1).expand(2, 4, 1, 1)
    torch.testing.assert_close(norm(images((4, 1, 1))), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=VARIANT_IDS)
def test_contract(name, options):
    net = build(name, SMALL, **options)
    x = images(SMALL)
    features, layers = net.features(x), net.layers(x)
    assert net.mixes_items == (options.get("norm") == "batch")
    assert features.shape == (2, net.classifier.in_features)
    assert len(layers) >= 1
    assert all(layer.ndim == 2 and len(layer) == 2 for layer in layers)
    torch.testing.assert_close(layers[-1], features, rtol=0, atol=0)
    torch.testing.assert_close(net(x), net.classifier(features), rtol=0, atol=0)
    assert net(x).shape == (2, 4)


@pytest.mark.parametrize("name", NAMES)
def test_items_do_not_mix(name):
    net, x = build(name, SMALL), images(SMALL, count=3)
    torch.testing.assert_close(net(x)[1:], net(x[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_input_gradient(name, size):
    net, x = build(name, size), images(size).requires_grad_()
    logits = net(x)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert logits.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_large_images(name):
    size = (3, 224, 224)
    with torch.no_grad():
        assert build(name, size)(images(size, count=1)).isfinite().all()


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=VARIANT_IDS)
def test_vmap_over_stacked_parameters(name, options):
    nets = [build(name, SMALL, seed=seed, **options).double().eval() for seed in range(3)]
    x = images(SMALL, dtype=torch.float64)
    state = stack_module_state(nets)
    stacked = vmap(lambda params, buffers: functional_call(nets[0], (params, buffers), (x,)))
    looped = torch.stack([net(x) for net in nets])
    torch.testing.assert_close(stacked(*state), looped, atol=1e-9, rtol=1e-9)


def squared_gradient_norm(net, x):
    """What gradient matching differentiates: the squared norm of the parameter gradient."""
    params = {key: value.detach() for key, value in net.named_parameters()}
    loss = grad(lambda params: functional_call(net, params, (x,)).square().mean())
    return sum(value.square().sum() for value in loss(params).values())


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=VARIANT_IDS)
def test_double_backward(name, options):
    net = build(name, SMALL, **options).eval()
    second = grad(lambda x: squared_gradient_norm(net, x))(images(SMALL))
    assert second.isfinite().all()
    assert second.abs().max() > 0


@pytest.mark.parametrize("name", ["convnet", "vit"])
def test_double_backward_is_the_derivative(name):
    size = (1, 8, 8)
    options = {"dim": 16, "depth": 1} if name == "vit" else {"width": 4}
    net = build(name, size, **options).double()
    x, direction = images(size, dtype=torch.float64), images(size, seed=2, dtype=torch.float64)
    second = grad(lambda x: squared_gradient_norm(net, x))(x)
    step = 1e-6
    ends = [squared_gradient_norm(net, x + sign * step * direction) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((second * direction).sum(), slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_redrawing_under_a_seed_gives_the_same_bits(name):
    net = build(name, SMALL)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        draws.append({key: value.clone() for key, value in net.state_dict().items()})
    assert all(torch.equal(draws[0][key], draws[1][key]) for key in draws[0])
    before = build(name, SMALL, seed=4).state_dict()
    drawn = [key for key, value in before.items() if value.unique().numel() > 1]
    assert drawn
    assert not any(torch.equal(before[key], draws[0][key]) for key in drawn)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_belongs_to_a_module_that_can_redraw_it(name):
    for module in build(name, SMALL).modules():
        if list(module.parameters(recurse=False)):
            assert hasattr(module, "reset_parameters")


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_and_channels_last(name):
    net, x = build(name, SMALL), images(SMALL)
    wanted = net(x)
    net = net.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x), wanted, atol=1e-4, rtol=1e-4)
    half = net.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).norm() < 0.2 * wanted.norm()


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("convnet", SMALL, {"depth": 4}, "at most 3"),
        ("convnet", SMALL, {"depth": 0}, "at least 1"),
        ("convnet", SMALL, {"width": 0}, "at least 1"),
        ("convnet", SMALL, {"width": 6, "norm": "group"}, "multiple of 4"),
        ("convnet", SMALL, {"norm": "instanse"}, "batch, group, instance, layer, none.*'instance'"),
        ("convnet", SMALL, {"activation": "tanh"}, "leakyrelu, relu, sigmoid, softplus"),
        ("convnet", SMALL, {"pooling": "mean"}, "avg, max, none"),
        ("vgg11", SMALL, {"norm": "x"}, "batch, group, instance, layer, none"),
        ("resnet18", SMALL, {"norm": "x"}, "batch, group, instance, layer, none"),
        ("resnet18", SMALL, {"stem": "resnet"}, "cifar, imagenet"),
        ("resnet18", SMALL, {"downsample": "pool"}, "avgpool, stride"),
        ("resnet18", (3, 6, 6), {"stem": "imagenet"}, "at least 8"),
        ("lenet", (1, 3, 3), {}, "at least 4"),
        ("mlp", (0, 8, 8), {}, "channels"),
        ("mlp", SMALL, {"classes": 0}, "classes"),
        ("mlp", SMALL, {"depth": 0}, "at least 1"),
        ("vit", (3, 40, 24), {"patch": 3}, "1, 2, 4, 8"),
        ("vit", SMALL, {"dim": 30}, "multiple of 4"),
        ("vit", SMALL, {"mlp_ratio": 0.0}, "mlp_ratio"),
        ("vit", SMALL, {"heads": 0}, "heads"),
    ],
)
def test_bad_options_say_what_is_allowed(name, size, options, message):
    with pytest.raises(ValueError, match=message):
        ENCODERS[name](*size, **{"classes": 4, **options})


@pytest.mark.parametrize(("size", "patch"), [((3, 32, 32), 4), ((1, 28, 28), 2), ((1, 8, 8), 1)])
def test_default_patch(size, patch):
    with torch.device("meta"):
        net = ENCODERS["vit"](*size, 10)
    assert net.layers(torch.empty(1, *size, device="meta"))[0].shape[1] == 128 * (
        1 + size[1] * size[2] // patch**2
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiles_to_one_graph(name):
    torch.compiler.reset()
    net, x = build(name, SMALL), images(SMALL)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x), atol=1e-4, rtol=1e-4)
