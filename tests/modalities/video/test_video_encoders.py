"""Video encoders: layers against PyTorch's own, derivatives, shapes, and what they can tell."""

import pytest
import torch
from clip_sets import blobs
from fakes import noise, seeded
from torch import nn

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.learner import Learner
from mmdd.modalities.video.encoders import ENCODERS, ConvNet3D
from mmdd.modalities.video.layers import ClipNorm, FewChannels3d, PerFrame, Pool, convolution
from mmdd.tasks.classification import Classification

SHAPE = (1, 6, 8, 10)
SMALL = {
    "convnet": {"width": 4},
    "r2plus1d": {"width": 4},
    "cnn-gru": {"width": 4, "hidden": 5},
    "frame-mean": {"width": 4},
    "mlp": {"width": 6},
    "linear": {},
}


def small(name, shape=SHAPE, classes=3, **options):
    return ENCODERS[name](*shape, classes, **{**SMALL[name], **options})


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 1, 2)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 1)])
@pytest.mark.parametrize("sides", [(5, 6, 7), (1, 4, 4)])
def test_few_channels_are_the_convolution(sides, kernel, stride):
    padding = tuple(side // 2 for side in kernel)
    own = FewChannels3d(2, 3, kernel, stride=stride, padding=padding).double()
    x = noise(2, 2, *sides).double().requires_grad_()
    expected = nn.functional.conv3d(x, own.weight, own.bias, stride, padding)
    torch.testing.assert_close(own(x), expected)
    wanted = torch.autograd.grad(expected.sin().sum(), (x, own.weight))
    found = torch.autograd.grad(own(x).sin().sum(), (x, own.weight))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1)])
def test_half_precision_gives_the_gradients_of_single_precision(kernel, frames):
    """Kernels of some processors do not, at two frames and 16 channels or more."""
    for channels in (8, 16, 32):
        x, found = noise(2, channels, frames, 4, 6), []
        weight = noise(32, channels, *kernel)
        for dtype in (torch.float32, torch.bfloat16):
            layer = convolution(channels, 32, kernel).to(dtype)
            layer.weight.data.copy_(weight)
            (gradient,) = torch.autograd.grad(
                layer(x.to(dtype)).float().square().sum(), layer.weight
            )
            found.append(gradient.float().flatten())
        assert nn.functional.cosine_similarity(*found, dim=0) > 0.999


@pytest.mark.parametrize("kind", ["instance", "group", "layer", "batch"])
def test_norms_are_those_of_pytorch_in_three_dimensions(kind):
    x = noise(3, 8, 4, 5, 6).double()
    expected = {
        "instance": nn.InstanceNorm3d(8),
        "group": nn.GroupNorm(4, 8),
        "layer": nn.GroupNorm(1, 8),
        "batch": nn.BatchNorm3d(8),
    }[kind].double()
    own = ClipNorm(kind, 8).double()
    torch.testing.assert_close(own(x), expected(x))
    frames = x.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(own(frames), expected(frames.unsqueeze(2)).squeeze(2))


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize("sides", [(4, 6, 8), (5, 7, 3), (1, 2, 2)])
def test_poolings_are_those_of_pytorch(kind, sides):
    x = noise(2, 3, *sides).double()
    pool = nn.functional.avg_pool3d if kind == "avg" else nn.functional.max_pool3d
    torch.testing.assert_close(Pool(kind, frames=False)(x), pool(x, (1, 2, 2)))
    if sides[0] > 1:
        torch.testing.assert_close(Pool(kind, frames=True)(x), pool(x, 2))


@pytest.mark.parametrize("name", ["convnet", "r2plus1d"])
def test_nets_that_are_compiled_say_the_same(name):
    """Other layouts and poolings are taken there; mapped over items as gradient matching does."""
    torch.compiler.reset()
    net, x = small(name).double(), noise(3, *SHAPE).double().requires_grad_()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
    slopes = [torch.autograd.grad(made(x).square().sum(), x)[0] for made in (compiled, net)]
    torch.testing.assert_close(*slopes)

    def slope(item):
        return torch.func.grad(lambda at: net(at[None]).square().sum())(item)

    mapped = torch.compile(torch.func.vmap(slope), backend="eager")
    torch.testing.assert_close(mapped(x.detach()), slopes[1])


@pytest.mark.parametrize("name", ENCODERS)
def test_nets_run_in_half_precision_forward_and_back(name):
    """The processor's choice for nets of this size; not all of its kernels know it."""
    net, x = small(name), noise(2, *SHAPE)
    params = {key: value.detach().requires_grad_() for key, value in net.named_parameters()}
    learner = Learner(net, Classification(), precision="bfloat16")
    batch = Batch(x.requires_grad_(), torch.tensor([0, 1]), torch.zeros(2).long())
    loss = learner.loss(params, batch)
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    (found,) = torch.autograd.grad(sum(g.square().sum() for g in grads), x)
    assert loss.item() == pytest.approx(net_loss(net, x), rel=0.05)
    assert bool(torch.isfinite(found).all())
    assert float(found.abs().max()) > 0


def net_loss(net, x):
    return nn.functional.cross_entropy(net(x), torch.tensor([0, 1])).item()


def test_a_layer_per_frame_reads_frame_by_frame():
    layer = nn.Conv2d(2, 3, 3)
    x = noise(2, 2, 4, 6, 5)
    found = PerFrame(layer)(x)
    for frame in range(4):
        torch.testing.assert_close(found[:, :, frame], layer(x[:, :, frame]))


@pytest.mark.parametrize("shape", [(1, 6, 8, 10), (3, 1, 8, 8), (3, 5, 33, 36)], ids=str)
@pytest.mark.parametrize("name", ENCODERS)
def test_layers_end_with_the_features_that_the_classifier_reads(name, shape):
    net = small(name, shape)
    x = noise(2, *shape)
    layers = net.layers(x)
    assert torch.equal(layers[-1], net.features(x))
    assert torch.equal(net.classifier(layers[-1]), net(x))
    assert all(layer.shape[0] == 2 and layer.ndim == 2 for layer in layers)
    assert net.classifier.in_features == layers[-1].shape[1]


@pytest.mark.parametrize("name", ENCODERS)
def test_items_do_not_see_each_other(name):
    net, x = small(name).double(), noise(4, *SHAPE).double()
    torch.testing.assert_close(net(x)[1:3], net(x[1:3]))
    assert not net.mixes_items


@pytest.mark.parametrize("name", ENCODERS)
def test_a_gradient_through_a_gradient_is_right(name):
    """Gradient matching's second order, against finite differences of the first."""
    # smooth activations where there is a choice: a kink has no derivative
    options = {"activation": "softplus"} if "activation" in _keywords(name) else {}
    net = small(name, (1, 4, 5, 4), **options).double()
    x = noise(2, 1, 4, 5, 4).double().requires_grad_()

    def matched(inputs):
        loss = nn.functional.cross_entropy(net(inputs), torch.tensor([0, 2]))
        grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        return sum((g * noise(*g.shape, seed=3)).sum() for g in grads)

    (found,) = torch.autograd.grad(matched(x), x)
    direction, step = noise(*x.shape, seed=9).double(), 1e-6
    ends = [matched((x + s * step * direction).detach()).item() for s in (1, -1)]
    assert (found * direction).sum() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-4)


def _keywords(name):
    return ENCODERS[name].__init__.__kwdefaults__ or {}


@pytest.mark.parametrize("name", ENCODERS)
def test_stacked_learners_are_the_single_ones(name):
    learner = Learner(small(name), Classification())
    params = learner.init(seeded(1), stacked=2)
    inputs = noise(2, 3, *SHAPE)
    both = learner.stacked_outputs(params, inputs)
    for place in range(2):
        own = {key: value[place] for key, value in params.items()}
        single = learner.outputs(own, Batch(inputs[place], None, torch.zeros(3).long()))
        torch.testing.assert_close(both[place], single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn-gru", "convnet", "r2plus1d"])
def test_nets_see_the_order_of_frames_and_the_still_one_does_not(name):
    x = noise(2, *SHAPE)
    net, still = small(name), small("frame-mean")
    assert not torch.allclose(net(x), net(x.flip(2)), atol=1e-5)
    torch.testing.assert_close(still(x), still(x.flip(2)))


def test_motion_is_learned_from_a_few_clips_and_not_from_stills():
    clips, codes = blobs(96)
    x = (torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() - 40) / 60
    codes = torch.from_numpy(codes)

    def score(name):
        torch.manual_seed(0)
        net = small(name, classes=2, width=8)
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(40):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[:64]), codes[:64]).backward()
            optimiser.step()
        return float((net(x[64:]).argmax(1) == codes[64:]).float().mean())

    assert score("convnet") > 0.85
    assert score("frame-mean") < 0.8


def test_the_first_pooling_can_leave_the_frames_alone():
    x = noise(1, 1, 8, 16, 16)
    shapes = []
    for pool_frames in ("all", "later"):
        net = ConvNet3D(1, 8, 16, 16, 2, width=2, depth=2, pool_frames=pool_frames)
        shapes.append([tuple(block(x).shape[2:]) for block in net.blocks[:1]])
    assert shapes == [[(4, 8, 8)], [(8, 8, 8)]]


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("convnet", (1, 4, 1, 8), {}, "frames this small"),
        ("convnet", (1, 4, 8, 8), {"depth": 9}, "depth halves maps"),
        ("convnet", (1, 4, 8, 8), {"pooling": "none"}, "unknown pooling"),
        ("cnn-gru", (1, 4, 8, 8), {"hidden": 0}, "hidden is too small"),
        ("r2plus1d", (1, 4, 3, 3), {}, "frames this small"),
        ("mlp", (1, 0, 3, 3), {}, "frames is too small"),
    ],
)
def test_what_cannot_be_built_is_refused(name, shape, options, message):
    with pytest.raises(UserError, match=message):
        small(name, shape, **options)
