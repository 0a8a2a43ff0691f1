"""Columns, pictures and exports of a finished set, and a whole run."""

import importlib.util
import json

import datasets
import numpy as np
import pytest
import torch
from clip_sets import KEEP_ALL, blobs, opened, stored
from PIL import Image, ImageSequence

import mmdd
from mmdd.artifact import export
from mmdd.errors import UserError
from mmdd.modalities.video import show
from mmdd.modalities.video.export import write_frames, write_gif, write_strip
from mmdd.modalities.video.modality import VIDEO
from mmdd.modalities.video.options import DATA, ENCODERS

HAS_AV = importlib.util.find_spec("av") is not None


def small_set(channels=1, count=6):
    clips, codes = blobs(count, channels=channels)
    data = opened((clips, codes), **KEEP_ALL)
    batch = data.train.select(torch.arange(count))
    return clips, batch, data.info


@pytest.mark.parametrize("channels", [1, 3])
def test_columns_hold_the_pixels_that_were_read(channels):
    clips, batch, info = small_set(channels)
    columns, features = VIDEO.to_columns(batch.inputs, batch.targets, info)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    found = np.stack(table.with_format("numpy")["frames"][:])
    assert np.array_equal(found, clips)
    assert table.features["frames"] == datasets.Array4D(clips.shape[1:], "uint8")
    assert table["label"][:] == [0, 1] * 3
    again = opened(table, **KEEP_ALL)
    assert torch.equal(stored(again.train).permute(0, 2, 3, 4, 1), torch.from_numpy(clips))


def test_soft_labels_stand_beside_their_largest_class():
    _, batch, info = small_set()
    soft = torch.tensor([[0.3, 0.7]]).repeat(6, 1)
    columns, features = VIDEO.to_columns(batch.inputs, soft, info)
    assert columns["label"] == [1] * 6
    assert features["soft_label"].length == 2


def test_bounds_are_black_and_white():
    _, batch, info = small_set(3)
    low, high = VIDEO.bounds(info)
    pixels = show.as_bytes(torch.stack([low, high]).expand(2, *info.shape), info)
    assert (pixels[0].max(), pixels[1].min()) == (0, 255)
    assert bool(((batch.inputs >= low - 1e-5) & (batch.inputs <= high + 1e-5)).all())


def test_the_picture_has_a_strip_per_class(tmp_path):
    clips, batch, info = small_set(count=12)
    VIDEO.picture(batch.inputs, batch.targets, info, tmp_path / "picture.png")
    page = np.asarray(Image.open(tmp_path / "picture.png").convert("L"))
    factor = 5  # 8 pixels to at least 40
    wanted = np.kron(clips[0, 2, :, :, 0], np.ones((factor, factor), np.uint8))
    assert _contains(page, wanted)
    assert not _contains(page, wanted[:, ::-1])
    last = np.kron(clips[8, 0, :, :, 0], np.ones((factor, factor), np.uint8))
    assert not _contains(page, last)  # the fifth clip of its class


def _contains(page, part):
    height, width = part.shape
    corners = np.argwhere(page[: page.shape[0] - height, : page.shape[1] - width] == part[0, 0])
    return any(np.array_equal(page[y : y + height, x : x + width], part) for y, x in corners)


def frames_of(path):
    with Image.open(path) as image:
        return np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(image)])


def test_written_clips_are_the_frames(tmp_path):
    clips, _, _ = small_set()
    write_gif(clips[0], tmp_path / "grey.gif")
    assert np.array_equal(frames_of(tmp_path / "grey.gif"), clips[0].repeat(3, axis=-1))
    write_strip(clips[0], tmp_path / "strip.png")
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert np.array_equal(strip, np.concatenate(list(clips[0, ..., 0]), axis=1))
    colour = blobs(1, channels=3)[0][0]
    write_frames(colour, tmp_path / "clip")
    files = sorted((tmp_path / "clip").iterdir())
    assert np.array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), colour)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a few steps on blobs, saved."""
    folder = tmp_path_factory.mktemp("video") / "set"
    clips, codes = blobs(40)
    options = {
        "modality": "video",
        "learner.width": 4,
        "real.per_group": 4,
        "optimise.inputs.lr": 0.05,
        "evaluate.protocol": "quick",
        "evaluate.epochs": 2,
        "evaluate.learners": 2,
        "evaluate.full": False,
        "evaluate.baselines": ["random"],
        "synthetic.representation": {"kind": "static-dynamic", "factor": 2},
        "optimise.inputs.decoder": {"lr": 1e-4},
        "run.compile": False,
    }
    done = mmdd.distill((clips, codes), method="dm", per_class=2, steps=3, options=options)
    done.save(folder)
    return done, folder


def test_a_run_ends_with_a_set_that_reads_back(finished):
    done, folder = finished
    again = mmdd.load(folder)
    assert torch.equal(again.to_torch()[0][0], done.to_torch()[0][0])
    stored_bytes = 4 * (4 * (8 * 10 + 6 * 4 * 5) + 9 + 27 + 1) + 8 * 4
    assert done.budget == {"items": 4, "bytes": stored_bytes}
    table = datasets.Dataset.from_parquet(str(next(folder.rglob("*.parquet"))))
    assert np.asarray(table.with_format("numpy")["frames"][0]).shape == (6, 8, 10, 1)
    assert (folder / "picture.png").stat().st_size > 0


@pytest.mark.parametrize("kind", ["gif", "frames"])
def test_an_exported_set_opens_as_clips(finished, tmp_path, kind):
    done, folder = finished
    export(folder, kind, tmp_path / kind)
    assert json.loads((tmp_path / kind / "classes.json").read_text()) == {
        "0": {"label": 0, "name": "0"},
        "1": {"label": 1, "name": "1"},
    }
    batch = done.to_torch()
    expected = show.as_bytes(torch.stack([batch[n][0] for n in range(4)]), done.info)
    again = opened(str(tmp_path / kind), **KEEP_ALL)
    assert torch.equal(stored(again.train).permute(0, 2, 3, 4, 1), torch.from_numpy(expected))


def test_strips_are_one_picture_per_clip(finished, tmp_path):
    export(finished[1], "strips", tmp_path / "strips")
    files = sorted((tmp_path / "strips" / "train").rglob("*.png"))
    assert len(files) == 4
    assert {Image.open(file).size for file in files} == {(60, 8)}


@pytest.mark.skipif(HAS_AV, reason="PyAV is installed")
def test_mp4_without_pyav_says_what_to_install(finished, tmp_path):
    with pytest.raises(UserError, match=r"pip install 'mmdd\[video\]'"):
        export(finished[1], "mp4", tmp_path / "mp4")
    assert not (tmp_path / "mp4").exists()


@pytest.mark.skipif(not HAS_AV, reason="needs PyAV (extra 'video')")
def test_mp4_files_open_as_clips(finished, tmp_path):
    export(finished[1], "mp4", tmp_path / "mp4")
    again = opened(str(tmp_path / "mp4"), **KEEP_ALL)
    assert again.info.shape == (3, 6, 8, 10)


def test_every_encoder_is_built_from_its_options():
    _, batch, info = small_set()
    for name, model in ENCODERS.items():
        net = VIDEO.encoder(model(), info)
        assert net(batch.inputs).shape == (6, 2), name
    assert DATA(size=4).height_width == (4, 4)
    assert VIDEO.example(info).shape == (1, 1, 6, 8, 10)
    noise = VIDEO.noise(3, info, torch.Generator().manual_seed(0))
    assert noise.shape == (3, 1, 6, 8, 10)


@pytest.mark.parametrize("method", ["dm", "dsa", "dance"])
def test_methods_fit_clips_without_a_word(method):
    clips, codes = blobs(24)
    options = {
        "modality": "video",
        "learner.width": 4,
        "real.per_group": 3,
        "evaluate.protocol": "quick",
        "evaluate.epochs": 1,
        "evaluate.learners": 1,
        "evaluate.full": False,
        "evaluate.baselines": [],
        "run.compile": False,
    }
    if method == "dance":
        options |= {"experts.count": 1, "experts.epoch_steps": 2}
    done = mmdd.distill((clips, codes), method=method, per_class=1, steps=2, options=options)
    assert all(bool(torch.isfinite(x).all()) for x, _ in done.to_torch())
