"""Augmentation of clips: every frame alike, one draw for two batches, time read as said."""

import pytest
import torch
from fakes import noise, seeded

from mmdd.errors import UserError
from mmdd.modalities.images.augment import DSA, Draw
from mmdd.modalities.images.mixing import cutmix as image_cutmix
from mmdd.modalities.video.augment import ClipDraw, ClipDSA, cutmix

ALL = "color_crop_cutout_flip_scale_rotate"


def still_time(strategy=ALL, mode="one"):
    return ClipDSA(strategy, mode=mode, shift=0.0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["one", "all"])
def test_every_frame_is_changed_as_the_picture_is(mode, channels):
    """A clip that stands still must come out as its frame does, at every time."""
    frames = noise(12, channels, 8, 9).double()
    clips = frames.unsqueeze(2).expand(-1, -1, 5, -1, -1)
    clip_dsa, dsa = still_time(mode=mode), DSA(ALL, mode=mode)
    draw = clip_dsa.draw(12, seeded(3))
    expected = dsa(frames, draw.frames)
    for frame in clip_dsa(clips, draw).unbind(2):
        torch.testing.assert_close(frame, expected)


@pytest.mark.parametrize("mode", ["one", "all"])
def test_frames_of_a_moving_clip_get_the_same_geometry(mode):
    clips = noise(10, 2, 4, 8, 8).double()
    strategy = "crop_cutout_flip_scale_rotate"
    clip_dsa, dsa = still_time(strategy, mode), DSA(strategy, mode=mode)
    draw = clip_dsa.draw(10, seeded(1))
    found = clip_dsa(clips, draw)
    for time in range(4):
        torch.testing.assert_close(found[:, :, time], dsa(clips[:, :, time], draw.frames))


def test_contrast_is_about_the_mean_of_the_clip():
    clip = noise(1, 1, 3, 4, 4).double()
    params = torch.tensor([[0.5, 0.5, 0.9, 0.0]])  # brightness unchanged, contrast 1.4
    draw = ClipDraw(Draw(torch.zeros(1, dtype=torch.int64), params), torch.zeros(1, 2))
    factor = 0.5 + float(params[0, 2])
    expected = (clip - clip.mean()) * factor + clip.mean()
    torch.testing.assert_close(still_time("color")(clip, draw), expected)


@pytest.mark.parametrize("mode", ["one", "all"])
def test_rows_choose_the_draw_of_each_clip(mode):
    clips = noise(5, 1, 6, 8, 8)
    dsa = ClipDSA(ALL, mode=mode, shift=0.4, speed=1.5)
    draw = dsa.draw(3, seeded(2))
    rows = torch.tensor([2, 0, 1, 2, 0])
    found = dsa(clips, draw, rows)
    for place, row in enumerate(rows.tolist()):
        own = ClipDraw(Draw(draw.frames.ops[[row]], draw.frames.params[[row]]), draw.times[[row]])
        torch.testing.assert_close(found[[place]], dsa(clips[[place]], own))


def test_a_shift_moves_whole_frames_and_holds_the_ends():
    clip = noise(1, 1, 8, 2, 2)
    dsa = ClipDSA("none", shift=0.25)
    for part in range(5):  # the shifts from -2 to 2
        draw = ClipDraw(
            Draw(torch.zeros(1).long(), torch.zeros(1, 4)), torch.tensor([[(part + 0.5) / 5, 0.5]])
        )
        wanted = [min(max(time + part - 2, 0), 7) for time in range(8)]
        torch.testing.assert_close(dsa(clip, draw), clip[:, :, wanted])


def test_speed_reads_a_longer_or_a_shorter_part():
    ramp = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(1, 1, 9, 2, 2)
    dsa = ClipDSA("none", shift=0.0, speed=2.0)
    for uniform, factor in ((0.0, 0.5), (0.5, 1.0), (0.75, 2**0.5)):
        draw = ClipDraw(
            Draw(torch.zeros(1).long(), torch.zeros(1, 4)), torch.tensor([[0.5, uniform]])
        )
        wanted = ((torch.arange(9.0) - 4) * factor + 4).clamp(0, 8)
        torch.testing.assert_close(dsa(ramp, draw)[0, 0, :, 0, 0], wanted)


def test_gradients_flow_by_finite_differences_and_inputs_stay():
    dsa = ClipDSA(ALL, shift=0.3, speed=1.3)
    draw = dsa.draw(6, seeded(4))
    x = noise(6, 1, 3, 4, 4).double().requires_grad_()
    before = x.detach().clone()
    assert torch.autograd.gradcheck(lambda given: dsa(given, draw), (x,))
    assert torch.equal(x.detach(), before)


def test_the_draws_of_frames_do_not_depend_on_the_options():
    first = ClipDSA(ALL).draw(4, seeded(5))
    second = ClipDSA("flip", shift=0.5, speed=2.0).draw(4, seeded(5))
    assert torch.equal(first.frames.params, second.frames.params)
    assert torch.equal(first.times, second.times)
    shared = ClipDSA(ALL).draw(9, seeded(6), shared_op=True)
    assert len(shared.frames.ops.unique()) == 1
    assert len(shared.times.unique()) == 18


def test_nothing_to_do_gives_the_clips_themselves():
    x = noise(2, 1, 3, 4, 4)
    dsa = ClipDSA("none", shift=0.0)
    assert dsa(x, dsa.draw(2, seeded(0))) is x


def test_boxes_of_cutmix_are_the_same_in_all_frames():
    x, partner = noise(2, 1, 3, 6, 6), noise(2, 1, 3, 6, 6, seed=1)
    mixed, kept = cutmix(x, partner, seeded(7))
    for time in range(3):
        own, share = image_cutmix(x[:, :, time], partner[:, :, time], seeded(7))
        assert torch.equal(mixed[:, :, time], own)
        assert kept == share


def test_what_means_nothing_is_refused():
    with pytest.raises(UserError, match="shift is a share"):
        ClipDSA("flip", shift=1.5)
    with pytest.raises(UserError, match="speed is the largest factor"):
        ClipDSA("flip", speed=0.5)
    dsa = ClipDSA("flip")
    with pytest.raises(UserError, match="no clips"):
        dsa(noise(2, 1, 4, 4), dsa.draw(2, seeded(0)))
