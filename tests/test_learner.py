"""Learners: draws without side effects, and pure functions of the parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import CASES, Chain, labels, noise, seeded
from torch import nn

from mmdd.batch import Batch
from mmdd.learner import Learner
from mmdd.modalities.images.convnet import ConvNet
from mmdd.tasks.classification import Classification


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def everything(case):
    return case.train.select(torch.arange(len(case.train)))


def pictures(norm="instance", size=8, **how):
    with torch.random.fork_rng(devices=[]):
        net = ConvNet(3, size, size, 3, width=8, norm=norm)
    return Learner(net, Classification(), **how)


def picture_batch(count=20, size=8):
    return Batch(noise(count, 3, size, size, seed=1), labels(count), labels(count))


# -- drawing parameters ----------------------------------------------------------------------------


def test_a_seed_decides_the_draw(case):
    first, second = case.learner(), case.learner()
    one, same = first.init(seeded(3)), second.init(seeded(3))
    other = first.init(seeded(4))
    assert one.keys() == same.keys()
    for name, value in one.items():
        assert torch.equal(value, same[name]), name
        assert not torch.equal(value, other[name]), name


def test_the_generator_moves_on_between_draws(case):
    stream = seeded(3)
    learner = case.learner()
    one, two = learner.init(stream), learner.init(stream)
    assert all(not torch.equal(one[name], two[name]) for name in one)


def test_drawing_leaves_the_global_generator_alone(case):
    learner = case.learner()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    learner.init(seeded(0))
    learner.init(seeded(0), stacked=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stacked_draw_equals_draws_one_after_the_other(case):
    learner = case.learner()
    stacked = learner.init(seeded(5), stacked=3)
    stream = seeded(5)
    for place in range(3):
        for name, value in learner.init(stream).items():
            assert torch.equal(stacked[name][place], value), name


def test_draws_share_no_memory(case):
    learner = case.learner()
    one = learner.init(seeded(0))
    kept = copy.deepcopy(one)
    two = learner.init(seeded(1))
    for value in two.values():
        value.zero_()
    for name, value in one.items():
        assert torch.equal(value, kept[name])
    own = {value.data_ptr() for value in learner.encoder.state_dict().values()}
    assert own.isdisjoint(value.data_ptr() for value in [*one.values(), *two.values()])


def test_a_draw_follows_every_layers_own_rule():
    learner = pictures()
    params = learner.init(seeded(0))
    torch.manual_seed(int(torch.randint(2**62, (1,), generator=seeded(0))))
    by_hand = ConvNet(3, 8, 8, 3, width=8)
    for layer in by_hand.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()
    # building draws too: draw a second time from the same seed
    torch.manual_seed(int(torch.randint(2**62, (1,), generator=seeded(0))))
    for layer in by_hand.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()
    for name, value in by_hand.named_parameters():
        assert torch.equal(params[name], value), name


def test_buffers_are_drawn_but_not_trained():
    learner = pictures(norm="batch")
    params = learner.init(seeded(0))
    buffers = {name for name in params if "running" in name}
    assert buffers
    assert set(params) - buffers == set(learner.trainable(params))
    assert not any("num_batches" in name for name in params)


class Own(nn.Module):
    """Holds a parameter itself, and an attention layer, whose reset has a private name."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(4))
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.head = nn.Linear(4, 3)


def test_no_parameter_is_forgotten_in_silence():
    learner = Learner(Own(), Classification())
    try:
        one, two = learner.init(seeded(0)), learner.init(seeded(1))
    except ValueError:
        return
    # the bias of attention starts at zero by its own rule
    forgotten = [n for n in one if "attention" not in n or n.endswith("in_proj_weight")]
    assert not [name for name in forgotten if torch.equal(one[name], two[name])]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_draw_on_a_gpu_is_the_draw_of_the_cpu():
    on_gpu, on_cpu = CASES["separable"]().learner(device="cuda"), CASES["separable"]().learner()
    before = torch.cuda.get_rng_state()
    drawn = on_gpu.init(seeded(0))
    for name, value in on_cpu.init(seeded(0)).items():
        assert torch.equal(drawn[name].cpu(), value), name
    assert torch.equal(torch.cuda.get_rng_state(), before)


# -- functions of the parameters -------------------------------------------------------------------


def test_outputs_are_those_of_a_module_that_holds_the_parameters(case):
    learner = case.learner()
    params, batch = learner.init(seeded(0)), everything(case)
    with torch.random.fork_rng(devices=[]):
        plain = case.net()
    plain.load_state_dict(params)
    torch.testing.assert_close(learner.outputs(params, batch), plain(batch.inputs))
    torch.testing.assert_close(learner.features(params, batch), plain.features(batch.inputs))
    torch.testing.assert_close(learner.layers(params, batch), plain.layers(batch.inputs))


def test_use_does_not_change_the_encoder(case):
    learner = case.learner()
    params = {name: v.requires_grad_() for name, v in learner.init(seeded(0)).items()}
    kept = copy.deepcopy(learner.encoder.state_dict())
    learner.loss(params, everything(case)).backward()
    learner.features(params, everything(case), train=False)
    for name, value in learner.encoder.state_dict().items():
        assert torch.equal(value, kept[name]), name
    assert all(parameter.grad is None for parameter in learner.encoder.parameters())
    assert any(value.grad is not None for value in params.values())


@pytest.mark.parametrize("name", ["separable", "masked", "coupled", "forecasting"])
def test_stacked_outputs_equal_a_loop(name):
    case = CASES[name]()
    learner = case.learner()
    stacked = learner.init(seeded(0), stacked=3)
    batches = [case.train.select(torch.arange(start, start + 5)) for start in (0, 5, 10)]
    inputs = [batch.inputs for batch in batches]
    if isinstance(inputs[0], dict):
        together = {key: torch.stack([fields[key] for fields in inputs]) for key in inputs[0]}
    else:
        together = torch.stack(inputs)
    found = learner.stacked_outputs(stacked, together)
    for place, batch in enumerate(batches):
        alone = learner.outputs({name: v[place] for name, v in stacked.items()}, batch)
        if isinstance(alone, dict):
            torch.testing.assert_close({key: v[place] for key, v in found.items()}, alone)
        else:
            torch.testing.assert_close(found[place], alone)


def watch_sizes(learner, monkeypatch):
    """Count the items of every forward of the encoder."""
    sizes = []
    original = type(learner.encoder).features

    def watched(self, inputs):
        fields = inputs if isinstance(inputs, dict) else {"": inputs}
        sizes.append(next(iter(fields.values())).shape[0])
        return original(self, inputs)

    monkeypatch.setattr(type(learner.encoder), "features", watched)
    return sizes


@pytest.mark.parametrize("chunk", [1, 7, 18, 36, 100])
@pytest.mark.parametrize("name", ["separable", "masked", "coupled"])
def test_cut_forwards_equal_whole_ones(name, chunk, monkeypatch):
    case = CASES[name]()
    whole, cut = case.learner(), case.learner(chunk=chunk)
    params, batch = whole.init(seeded(0)), everything(case)
    torch.testing.assert_close(cut.features(params, batch), whole.features(params, batch))
    torch.testing.assert_close(cut.outputs(params, batch), whole.outputs(params, batch))
    torch.testing.assert_close(cut.layers(params, batch), whole.layers(params, batch))
    sizes = watch_sizes(cut, monkeypatch)
    cut.features(params, batch)
    count = len(batch)
    # all chunks have one size, so that a compiled net is specialised once
    assert sizes == ([count] if chunk >= count else [chunk] * -(-count // chunk))


def test_what_needs_a_gradient_is_never_cut(monkeypatch):
    case = CASES["separable"]()
    learner = case.learner(chunk=4)
    params, batch = learner.init(seeded(0)), everything(case)
    sizes = watch_sizes(learner, monkeypatch)
    learner.features(params, batch.with_inputs(batch.inputs.clone().requires_grad_()))
    trained = {name: value.clone().requires_grad_() for name, value in params.items()}
    learner.features(trained, batch)
    assert sizes == [36, 36]
    with torch.no_grad():
        learner.features(trained, batch)
    assert sizes[2:] == [4] * 9


def test_joint_batches_are_never_cut(monkeypatch):
    case = CASES["joint"]()
    learner, whole = case.learner(chunk=4), case.learner()
    params, batch = learner.init(seeded(0)), everything(case)
    assert torch.equal(learner.features(params, batch), whole.features(params, batch))


def test_a_net_with_batch_norm_is_never_cut(monkeypatch):
    learner = pictures(norm="batch", chunk=4)
    assert learner.mixes_items
    assert learner.chunk is None
    sizes = watch_sizes(learner, monkeypatch)
    params = learner.init(seeded(0))
    learner.features(params, picture_batch())
    assert sizes == [20]
    whole = pictures(norm="batch").features(params, picture_batch())
    assert torch.equal(learner.features(params, picture_batch()), whole)


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_other_precisions_give_nearly_the_same(precision):
    tolerance = {"bfloat16": 0.03, "float64": 1e-5}[precision]
    exact, other = pictures(), pictures(precision=precision)
    params, batch = exact.init(seeded(0)), picture_batch()
    a, b = exact.features(params, batch), other.features(params, batch)
    assert b.dtype == {"bfloat16": torch.float32, "float64": torch.float64}[precision]
    assert float((a - b).norm() / a.norm()) < tolerance
    assert all(value.dtype == torch.float32 for value in other.init(seeded(0)).values())


def test_gradients_in_bfloat16_point_the_same_way():
    # on maps below 4x4, instance norm magnifies the rounding: 8x8 pictures would not pass
    gradients = []
    for precision in ("float32", "bfloat16"):
        learner = pictures(size=16, precision=precision)
        batch = picture_batch(size=16)
        inputs = batch.inputs.clone().requires_grad_()
        learner.loss(learner.init(seeded(0)), batch.with_inputs(inputs)).backward()
        assert inputs.grad.dtype == torch.float32
        gradients.append(inputs.grad.flatten())
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.98


def test_masks_keep_their_type_in_every_precision():
    case = CASES["masked"]()
    seen = []

    class Watching(Chain):
        def read(self, inputs):
            seen.append((inputs["values"].dtype, inputs["mask"].dtype))
            return inputs["values"].mean(dim=1)

    learner = Learner(Watching(4, 8, outputs=3), Classification(), precision="bfloat16")
    learner.features(learner.init(seeded(0)), everything(case))
    assert seen == [(torch.bfloat16, torch.bool)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batch_statistics_are_kept_for_evaluation(precision):
    learner = pictures(norm="batch", precision=precision)
    params = learner.init(seeded(0))
    start = copy.deepcopy(params)
    batch = picture_batch()
    shifted = batch.with_inputs(2 * batch.inputs + 3)
    for _ in range(60):
        learner.outputs(params, shifted)
    moved = [name for name in params if not torch.equal(params[name], start[name])]
    assert moved == [name for name in params if "running" in name]
    trained = learner.features(params, shifted)
    settled = learner.features(params, shifted, train=False)
    assert float((trained - settled).norm() / trained.norm()) < 0.1


def test_second_derivatives_work(case):
    learner = case.learner(precision="float64")
    params = {name: v.double().requires_grad_() for name, v in learner.init(seeded(0)).items()}
    synthetic = case.start().double()
    leaves = list(synthetic.leaves().values())
    loss = learner.loss(params, synthetic.batch())
    gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
    assert all(torch.isfinite(g).all() for g in second)
    assert all(g.abs().sum() > 0 for g in second)


def test_a_gradient_of_a_gradient_equals_finite_differences():
    case = CASES["separable"]()
    learner = case.learner(precision="float64")
    params = {name: v.double().requires_grad_() for name, v in learner.init(seeded(0)).items()}
    batch = case.start().batch()

    def length(inputs):
        loss = learner.loss(params, batch.with_inputs(inputs))
        gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        return sum(g.square().sum() for g in gradients)

    inputs = batch.inputs.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(length, inputs, atol=1e-6)


# -- losses ----------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_mean_of_the_item_losses():
    case = CASES["separable"]()
    learner = case.learner()
    params, batch = learner.init(seeded(0)), everything(case)
    losses = learner.item_losses(params, batch)
    torch.testing.assert_close(learner.loss(params, batch), losses.mean())
    weights = torch.rand(len(batch), generator=seeded(0))
    weighted = Batch(batch.inputs, batch.targets, batch.groups, weights)
    expected = sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights)
    torch.testing.assert_close(learner.loss(params, weighted), expected)


def test_items_of_weight_zero_do_not_count_in_the_loss():
    case = CASES["separable"]()
    learner = case.learner()
    params, batch = learner.init(seeded(0)), everything(case)
    weights = (torch.arange(len(batch)) < 10).float()
    inputs = batch.inputs.clone().requires_grad_()
    loss = learner.loss(params, Batch(inputs, batch.targets, batch.groups, weights))
    torch.testing.assert_close(loss, learner.loss(params, batch.select(torch.arange(10))))
    loss.backward()
    assert (inputs.grad[10:] == 0).all()
    assert (inputs.grad[:10] != 0).any()


def test_nodes_outside_the_training_part_do_not_count_in_the_loss():
    case = CASES["joint"]()
    learner = case.learner()
    params, batch = learner.init(seeded(0)), everything(case)
    rows = case.train.index
    expected = learner.item_losses(params, batch)[rows].mean()
    torch.testing.assert_close(learner.loss(params, batch), expected)


def test_no_weight_at_all_is_a_loss_of_zero():
    case = CASES["separable"]()
    learner = case.learner()
    batch = everything(case)
    empty = Batch(batch.inputs, batch.targets, batch.groups, torch.zeros(len(batch)))
    assert float(learner.loss(learner.init(seeded(0)), empty)) == 0.0


def test_class_probabilities_are_targets_too():
    case = CASES["separable"]()
    learner = case.learner()
    params, batch = learner.init(seeded(0)), everything(case)
    soft = torch.nn.functional.one_hot(batch.targets, 3).float()
    as_soft = Batch(batch.inputs, soft, batch.groups)
    torch.testing.assert_close(learner.loss(params, as_soft), learner.loss(params, batch))
    outputs = learner.outputs(params, batch)
    assert learner.task.score(outputs, soft) == learner.task.score(outputs, batch.targets)
