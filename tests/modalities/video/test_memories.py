"""Stills with memories and key frames against plainly written decoders and finite differences."""

import pytest
import torch
import torch.nn.functional as F
from clip_sets import blobs
from fakes import noise

from mmdd import build, compose
from mmdd.basis import Basis
from mmdd.errors import UserError
from mmdd.frequency import Frequency
from mmdd.modalities.video.memories import KeyFrames, StaticDynamic, between
from mmdd.packed import Packed
from mmdd.trees import tree_bytes

SHAPES = [(1, 4, 6, 8), (3, 5, 7, 6), (2, 1, 5, 4)]
STATIC_LEAVES = {
    "inputs.static",
    "inputs.dynamic",
    "inputs.decoder.static",
    "inputs.decoder.dynamic",
    "inputs.decoder.bias",
}


def stirred(made, seed=5):
    """All leaves at random values."""
    for place, leaf in enumerate(made.leaves().values()):
        leaf.data.copy_(noise(*leaf.shape, seed=seed + place))
    return made


def published(made, shape):
    """The decoder as published: one 3x3x3 convolution over the repeated still and the memory."""
    leaves = made.leaves()
    static, dynamic = leaves["inputs.static"], leaves["inputs.dynamic"]
    frames, (height, width) = shape[1], shape[2:]
    clips = []
    for still, memory in zip(static, dynamic, strict=True):
        large = F.interpolate(memory.transpose(0, 1), (height, width), mode="bilinear")
        both = torch.cat([still[:, None].expand(-1, frames, -1, -1), large.transpose(0, 1)])
        held = torch.cat([both[:, :1], both, both[:, -1:]], dim=1)  # one frame more at both ends
        held = F.pad(held, (1, 1, 1, 1))
        # the still's filters are the same at three times: a third each
        of_still = leaves["inputs.decoder.static"].unsqueeze(2).expand(-1, -1, 3, -1, -1) / 3
        weight = torch.cat([of_still, leaves["inputs.decoder.dynamic"]], dim=1)
        clips.append(F.conv3d(held[None], weight, leaves["inputs.decoder.bias"])[0])
    return torch.stack(clips)


@pytest.mark.parametrize(("channels", "factor"), [(1, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frames_are_the_published_convolution(shape, channels, factor):
    items = noise(3, *shape).double()
    made = stirred(StaticDynamic.of_items(items, channels=channels, factor=factor))
    assert set(made.leaves()) == STATIC_LEAVES
    torch.testing.assert_close(made.decode(None), published(made, shape))
    index = torch.tensor([2, 0, 2])
    torch.testing.assert_close(made.decode(index), made.decode(None)[index])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_full_memory_starts_at_the_items(shape):
    items = noise(4, *shape).double()
    made = StaticDynamic.of_items(items, channels=shape[0], factor=1)
    torch.testing.assert_close(made.decode(None), items)


def test_the_start_is_nearest_of_all_memories():
    items = noise(2, 1, 4, 6, 8).double()
    made = StaticDynamic.of_items(items, factor=2)
    loss = (made.decode(None) - items).square().sum()
    (gradient,) = torch.autograd.grad(loss, made.leaves()["inputs.dynamic"])
    assert gradient.abs().max() < 1e-9
    still = (items.mean(dim=2, keepdim=True) - items).square().sum()
    assert loss < 0.9 * still


def test_one_memory_is_read_in_the_direction_of_most_motion():
    motion = noise(3, 1, 5, 4, 4).double()
    direction = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    items = noise(3, 3, 1, 4, 4, seed=1).double() + direction.view(3, 1, 1, 1) * motion
    made = StaticDynamic.of_items(items, channels=1, factor=1)
    torch.testing.assert_close(made.decode(None), items)


def test_channels_beyond_those_of_the_items_can_learn():
    made = StaticDynamic.of_items(noise(2, 1, 3, 4, 4), channels=3, factor=1)
    loss = (made.decode(None) - 1).square().sum()
    gradients = torch.autograd.grad(loss, made.leaves()["inputs.dynamic"])[0]
    assert bool((gradients.abs().amax(dim=(0, 2, 3, 4)) > 0).all())


def test_slow_items_are_key_frames_and_others_are_nearest():
    times = torch.linspace(0, 1, 7).double()
    slow = noise(2, 3, 1, 4, 5).double() + times.view(1, 1, 7, 1, 1) * noise(2, 3, 1, 4, 5, seed=1)
    made = KeyFrames.of_items(slow, frames=2)
    torch.testing.assert_close(made.decode(None), slow)
    made = KeyFrames.of_items(noise(2, 1, 7, 4, 5).double(), frames=3)
    assert made.leaves()["inputs"].shape == (2, 1, 3, 4, 5)
    loss = (made.decode(None) - noise(2, 1, 7, 4, 5).double()).square().sum()
    assert torch.autograd.grad(loss, made.leaves()["inputs"])[0].abs().max() < 1e-9


@pytest.mark.parametrize(("keys", "frames"), [(1, 5), (2, 5), (3, 5), (4, 7), (5, 5), (1, 1)])
def test_frames_lie_between_their_key_frames(keys, frames):
    made = stirred(KeyFrames.of_items(noise(2, 1, frames, 2, 2).double(), frames=keys))
    stored, decoded = made.leaves()["inputs"], made.decode(None)
    for frame in range(frames):
        at = 0 if frames == 1 else frame / (frames - 1) * (keys - 1)
        low = min(int(at), max(0, keys - 2))
        share = at - low if keys > 1 else 0.0
        high = min(low + 1, keys - 1)
        expected = (1 - share) * stored[:, :, low] + share * stored[:, :, high]
        torch.testing.assert_close(decoded[:, :, frame], expected)
    torch.testing.assert_close(between(keys, frames).sum(dim=1), torch.ones(frames).double())


KINDS = [
    (StaticDynamic, {"channels": 1, "factor": 2}),
    (StaticDynamic, {"channels": 2, "factor": 3}),
    (KeyFrames, {"frames": 3}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_gradients_by_finite_differences(kind, options):
    made = stirred(kind.of_items(noise(2, 2, 4, 4, 3).double(), **options))
    names = list(made.leaves())
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in made.leaves().values())

    def decode(*values):
        named = zip(names, values, strict=True)
        leaves = {f"made.{name.replace('.', '/')}": value for name, value in named}
        return torch.func.functional_call(_Decoder(made), leaves, ()).square()

    torch.autograd.gradcheck(decode, leaves)
    torch.autograd.gradgradcheck(decode, leaves)


class _Decoder(torch.nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self):
        return self.made.decode(torch.tensor([1, 0, 1]))


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_stored_set_comes_back_with_the_same_bits_and_bytes(kind, options):
    items = noise(3, 2, 5, 6, 7)
    bounds = (torch.tensor(-1.0), torch.tensor(1.0))
    made = stirred(kind.of_items(items, bounds=bounds, **options))
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    again = kind.of_state(state, example=items[:1] * 0, bounds=bounds, **options)
    assert torch.equal(again.decode(None), made.decode(None))
    assert set(again.state_dict()) == set(state)
    assert tree_bytes(state) == sum(4 * leaf.numel() for leaf in made.leaves().values())
    made.constrain_()
    again.constrain_()
    assert torch.equal(again.decode(None), made.decode(None))


def test_bytes_of_the_shared_decoder_do_not_grow_with_the_items():
    def size(count):
        made = StaticDynamic.of_items(noise(count, 3, 4, 8, 8), channels=2, factor=2)
        return tree_bytes(made.state_dict())

    each = 4 * (3 * 8 * 8 + 2 * 4 * 4 * 4)
    shared = 4 * (3 * 3 * 9 + 3 * 2 * 27 + 3)
    assert [size(1), size(5)] == [each + shared, 5 * each + shared]


def test_fields_beside_the_clips_are_kept():
    values = {"video": noise(4, 1, 3, 4, 4), "sound": noise(4, 7), "place": torch.arange(4)}
    made = StaticDynamic.of_items(values, factor=1)
    decoded = made.decode(torch.tensor([3, 1]))
    torch.testing.assert_close(decoded["video"], values["video"][[3, 1]])
    assert torch.equal(decoded["sound"], values["sound"][[3, 1]])
    assert torch.equal(decoded["place"], torch.tensor([3, 1]))
    assert "inputs.decoder.dynamic.video" in made.leaves()
    assert "inputs.sound" in made.leaves()


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_range_is_approached_and_what_lies_in_it_stays(kind, options):
    items = noise(3, 2, 5, 6, 7).double()
    bounds = (torch.full((2, 1, 1, 1), -0.7).double(), torch.full((2, 1, 1, 1), 0.6).double())
    made = kind.of_items(items, bounds=bounds, **options)
    stays = 0.01 * items
    first = made.decode(None).detach()

    def outside(decoded):
        return (decoded - decoded.clamp(-0.7, 0.6)).square().sum()

    made.constrain_()
    after = outside(made.decode(None))
    assert after < 0.5 * outside(first)
    for _ in range(50):
        made.constrain_()
    assert outside(made.decode(None)) < 0.1 * outside(first)
    small = kind.of_items(stays, bounds=bounds, **options)
    before = small.decode(None).detach()
    small.constrain_()
    assert torch.equal(small.decode(None), before)


def test_key_frames_in_range_keep_all_frames_in_range():
    bounds = (torch.tensor(-0.2), torch.tensor(0.1))
    made = KeyFrames.of_items(noise(3, 1, 6, 4, 4), frames=3, bounds=bounds)
    made.constrain_()
    assert float(made.decode(None).detach().min()) >= -0.2 - 1e-6
    assert float(made.decode(None).detach().max()) <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (StaticDynamic, {"channels": 0}, "channels are those of the memory"),
        (StaticDynamic, {"factor": 0}, "factor shrinks the memory"),
        (KeyFrames, {"frames": 0}, "frames counts the key frames"),
        (KeyFrames, {"frames": 9}, "fewer frames than key frames"),
    ],
)
def test_options_that_do_not_fit_are_refused(kind, options, message):
    with pytest.raises(UserError, match=message):
        kind.needs(torch.zeros(1, 1, 4, 4, 4), **options)


@pytest.mark.parametrize("kind", [StaticDynamic, KeyFrames])
def test_items_without_frames_and_foreign_tensors_are_refused(kind):
    with pytest.raises(UserError, match="no frames"):
        kind.needs(torch.zeros(1, 3, 8, 8))
    state = kind.of_items(noise(2, 1, 4, 4, 4)).state_dict()
    with pytest.raises(UserError, match="does not fit the options"):
        kind.of_state(dict(state), example=torch.zeros(1, 1, 4, 6, 4))


def test_bounds_that_change_in_time_are_refused_for_key_frames():
    low = torch.zeros(1, 4, 1, 1)
    low[:, 2] = 0.1
    with pytest.raises(UserError, match="change over time"):
        KeyFrames.of_items(noise(2, 1, 4, 3, 3), bounds=(low, low + 1))


@pytest.mark.parametrize("shape", [(1, 4, 6, 8), (3, 5, 4, 4)], ids=str)
def test_the_other_representations_code_clips(shape):
    items = noise(8, *shape).double()
    packed = Packed.of_items(items, factor=2)
    assert packed.expand == 8
    assert packed.leaves()["inputs"].shape == (1, *shape)
    assert packed.decode(None).shape == (8, *shape)
    for whole in (Basis.of_items(items, bases=8), Frequency.of_items(items, keep=1.0)):
        torch.testing.assert_close(whole.decode(None), items)
    part = Frequency.of_items(items, keep=0.25, choose="low")
    error = (part.decode(None) - items).square().sum()
    assert 0 < error < items.square().sum()
    for made in (packed, part):
        (gradient,) = torch.autograd.grad(made.decode(None).square().sum(), made.inputs)
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().max()) > 0


def moved_by_matching(**more):
    """Mean squared change of the clips, relative to them, by six steps of the recipe for clips."""
    clips, codes = blobs(24, frames=8, size=(12, 12))
    options = {"modality": "video", "synthetic.representation": "static-dynamic"}
    options |= {"learner.width": 8, "real.per_group": 12, "data.validation": 0, "data.test": 0.0}
    options |= {"optimise.inputs.lr": 0.5, **more}
    recipe = compose.compose(method="dm", flags={"synthetic.per_class": 2}, options=options)
    cpu = torch.device("cpu")
    splits = build.open_data(recipe, (clips, codes), cpu)
    run = build.distiller(build.parts(recipe, splits.info, cpu), splits)
    before = run.synthetic.batch().inputs.detach()
    for _ in range(6):
        run.step()
    after = run.synthetic.batch().inputs.detach()
    return float((after - before).square().mean() / before.square().mean())


def test_rates_of_their_own_keep_still_and_decoder_from_making_noise():
    assert 0 < moved_by_matching() < 0.2
    one = {"lr": 1.0, "momentum": 0.5}
    assert (
        moved_by_matching(**{f"optimise.inputs.{leaf}": one for leaf in ("static", "decoder")}) > 1
    )
