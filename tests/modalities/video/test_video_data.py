"""Sets of clips from every kind of source, frames as sampled, and what is said of bad ones."""

import copy
import importlib.util
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from clip_sets import KEEP_ALL, array_table, blobs, frame_table, gif, opened, png, stored
from PIL import Image

from mmdd import build, compose
from mmdd.errors import UserError
from mmdd.modalities.video import decode
from mmdd.modalities.video.arrays import order_of_clip
from mmdd.modalities.video.sample import Sampling

HAS_AV = importlib.util.find_spec("av") is not None
HAS_VIDEO = HAS_AV or decode._works("torchcodec.decoders")


def as_kept(clips):
    """[N, T, H, W, C] -> [N, C, T, H, W]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3)


def refused(source, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        opened(source, **options)
    assert "\n" not in str(caught.value)


# -- sources ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_from_python_of_any_order(channels):
    clips, codes = blobs(8, channels=channels)
    expected = as_kept(clips)
    sources = [clips, torch.from_numpy(clips), clips.transpose(0, 1, 4, 2, 3), list(clips)]
    if channels == 1:
        sources.append(clips[..., 0])
    for source in sources:
        data = opened((source, codes), **KEEP_ALL)
        assert torch.equal(stored(data.train), expected)
        assert data.info.shape == (channels, 6, 8, 10)
        assert data.info.modality == "video"
    assert len({opened((source, codes), **KEEP_ALL).info.fingerprint for source in sources}) == 1


def test_axes_by_name():
    assert order_of_clip((16, 32, 48)) == "THW"
    assert order_of_clip((16, 32, 48, 1)) == "THWC"
    assert order_of_clip((3, 32, 48, 1)) == "THWC"
    assert order_of_clip((16, 3, 32, 48)) == "TCHW"
    assert order_of_clip((3, 16, 32, 48)) == "CTHW"
    with pytest.raises(UserError, match="axes of the clips"):
        order_of_clip((4, 4))


def test_inputs_are_normalised_over_training():
    clips, codes = blobs(20, channels=3)
    data = opened((clips, codes), validation=0, test=0.25)
    pixels = stored(data.train).double() / 255
    mean, std = pixels.mean(dim=(0, 2, 3, 4)), pixels.std(dim=(0, 2, 3, 4), correction=0)
    assert data.info.normalisation["mean"] == pytest.approx(mean.tolist())
    assert data.info.normalisation["std"] == pytest.approx(std.tolist())
    for part in (data.train, data.test):
        found = part.select(torch.arange(len(part))).inputs
        shape = (1, 3, 1, 1, 1)
        expected = (stored(part).double() / 255 - mean.view(shape)) / std.view(shape)
        torch.testing.assert_close(found, expected.float())
    assert found.dtype == torch.float32


def test_floats_keep_their_range():
    clips, codes = blobs(6)
    floats = clips.astype(np.float64) / 10 - 3
    data = opened((floats, codes), **KEEP_ALL)
    assert data.info.normalisation["range"] == pytest.approx([floats.min(), floats.max()])
    assert stored(data.train).dtype == torch.float32
    assert any("taken as already scaled" in note for note in data.info.notes)


def test_tables_of_arrays_and_of_frames_hold_the_same_clips():
    clips, codes = blobs(6)
    nested = {"frames": clips[..., 0].tolist(), "label": codes.tolist()}
    whole = datasets.Dataset.from_dict(nested)
    for table in (array_table(clips, codes), frame_table(clips, codes), whole):
        data = opened(table, **KEEP_ALL)
        assert torch.equal(stored(data.train), as_kept(clips))
        assert data.train.targets.tolist() == codes.tolist()
    assert opened(frame_table(clips, codes), **KEEP_ALL).info.columns["video"] == "pictures"


def test_clips_of_different_lengths_in_one_column():
    clips, codes = blobs(5, frames=9)
    lengths = [9, 5, 7, 6, 5]
    ragged = [clip[:n, ..., 0].tolist() for clip, n in zip(clips, lengths, strict=True)]
    table = datasets.Dataset.from_dict({"frames": ragged, "label": codes.tolist()})
    data = opened(table, sample="start", **KEEP_ALL)
    assert torch.equal(stored(data.train), as_kept(clips[:, :5]))
    assert any("5 frames of every clip" in note and "5 to 9" in note for note in data.info.notes)


def test_samples_of_a_torch_data_set():
    clips, codes = blobs(6)

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, number):
            return torch.from_numpy(clips[number]), int(codes[number])

    assert torch.equal(stored(opened(Samples(), **KEEP_ALL).train), as_kept(clips))


def test_a_folder_of_animated_pictures(tmp_path):
    clips, codes = blobs(6)
    for number, (clip, code) in enumerate(zip(clips, codes, strict=True)):
        folder = tmp_path / "train" / f"kind {code}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.gif").write_bytes(gif(clip[..., 0]))
    data = opened(str(tmp_path), **KEEP_ALL)
    assert data.info.names == ("kind 0", "kind 1")
    assert data.info.shape == (1, 6, 8, 10)
    order = [0, 2, 4, 1, 3, 5]
    assert torch.equal(stored(data.train), as_kept(clips[order]))


@pytest.mark.parametrize("splits", [True, False])
def test_a_folder_of_folders_of_frames(tmp_path, splits):
    clips, codes = blobs(6, frames=11)
    for split in ("train", "test") if splits else ("",):
        for number, (clip, code) in enumerate(zip(clips, codes, strict=True)):
            folder = tmp_path / split / f"kind {code}" / f"clip{number}"
            folder.mkdir(parents=True)
            for time, frame in enumerate(clip):  # frame10 follows frame9
                (folder / f"frame{time}.png").write_bytes(png(frame[..., 0]))
    data = opened(str(tmp_path), **({"validation": 0} if splits else KEEP_ALL))
    assert torch.equal(stored(data.train), as_kept(clips[[0, 2, 4, 1, 3, 5]]))
    assert (data.test is not None) == splits


def test_size_and_colours_are_as_asked():
    clips, codes = blobs(6, size=(8, 12), channels=3)
    data = opened((clips, codes), size=(4, 6), channels=1, **KEEP_ALL)
    assert data.info.shape == (1, 6, 4, 6)
    grey = Image.fromarray(clips[2, 3]).convert("L").resize((6, 4), Image.Resampling.BILINEAR)
    assert np.array_equal(stored(data.train)[2, 0, 3].numpy(), np.asarray(grey))
    assert any("resized" in note for note in data.info.notes)
    assert any("36 colour frames were turned grey" in note for note in data.info.notes)


def test_a_file_of_a_table(tmp_path):
    clips, codes = blobs(6)
    array_table(clips, codes).to_parquet(str(tmp_path / "clips.parquet"))
    data = opened(str(tmp_path / "clips.parquet"), **KEEP_ALL)
    assert torch.equal(stored(data.train), as_kept(clips))


# -- frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "stride", "count", "frames", "expected"),
    [
        ("uniform", 1, 4, 4, [0, 1, 2, 3]),
        ("uniform", 1, 8, 4, [1, 3, 5, 7]),
        ("uniform", 1, 5, 2, [1, 3]),
        ("start", 2, 9, 3, [0, 2, 4]),
        ("centre", 2, 9, 3, [2, 4, 6]),
        ("centre", 1, 9, 4, [2, 3, 4, 5]),
    ],
)
def test_places_of_the_frames(sample, stride, count, frames, expected):
    assert Sampling(frames, sample, stride, "refuse").places(count).tolist() == expected


@pytest.mark.parametrize(
    ("short", "expected"), [("hold", [0, 1, 2, 2, 2]), ("loop", [0, 1, 2, 0, 1])]
)
@pytest.mark.parametrize("sample", ["uniform", "start", "centre"])
def test_places_of_a_short_clip(sample, short, expected):
    assert Sampling(5, sample, 1, short).places(3).tolist() == expected


def test_short_clips_are_refused_or_treated_as_said():
    clips, codes = blobs(6, frames=5)
    source = ([*clips[:5], clips[5][:3]], codes)
    refused(source, r"1 clips have fewer frames.*row 5 \(3 frames\).*data.short", frames=5)
    held = opened(source, frames=5, short="hold", **KEEP_ALL)
    assert torch.equal(stored(held.train)[5], as_kept(clips)[5][:, [0, 1, 2, 2, 2]])
    assert any("1 short clips hold their last frame" in note for note in held.info.notes)
    dropped = opened(source, frames=5, short="drop", **KEEP_ALL)
    assert torch.equal(stored(dropped.train), as_kept(clips)[:5])
    assert opened(source, **KEEP_ALL).info.shape[1] == 3  # nothing asked: the shortest decides


# -- bad input -------------------------------------------------------------------------------------


def file_table(values, codes):
    features = datasets.Features(
        {"clip": datasets.Video(decode=False), "label": datasets.Value("int64")}
    )
    rows = [{"bytes": value, "path": None} for value in values]
    return datasets.Dataset.from_dict({"clip": rows, "label": codes}, features=features)


def test_unreadable_clips_are_named_and_tolerated_as_allowed():
    clips, codes = blobs(6)
    values = [gif(clip[..., 0]) for clip in clips]
    values[2], values[3] = b"", values[3][:30]
    table = file_table(values, codes.tolist())
    refused(table, r"2 of 6 clips cannot be read: .*row 2: .*empty", **KEEP_ALL)
    data = opened(table, max_corrupt=2, **KEEP_ALL)
    assert torch.equal(stored(data.train), as_kept(clips)[[0, 1, 4, 5]])
    assert data.train.targets.tolist() == codes[[0, 1, 4, 5]].tolist()
    assert any("2 unreadable clips dropped" in note for note in data.info.notes)


def test_classes_without_readable_clips_are_left_out():
    clips, codes = blobs(6, classes=3)
    values = [gif(clip[..., 0]) for clip in clips]
    values[1] = values[4] = b"nothing"
    # what is no picture is a video file; whatever opens it finds nothing in it
    if not HAS_VIDEO:
        values[1] = values[4] = b""
    data = opened(file_table(values, codes.tolist()), max_corrupt=0.5, **KEEP_ALL)
    assert data.info.names == ("0", "2")
    assert torch.equal(stored(data.train), as_kept(clips)[[0, 2, 3, 5]])


@pytest.mark.skipif(HAS_VIDEO, reason="a decoder of video files is installed")
def test_video_files_without_a_decoder_say_what_to_install():
    table = file_table([b"\0\0\0\x20ftypisom"] * 4, [0, 1, 0, 1])
    refused(table, r"none is installed.*pip install 'mmdd\[video\]'")


def test_the_first_decoder_that_is_there_is_taken(monkeypatch):
    for works, expected in (
        ({"torchcodec.decoders", "av"}, decode.with_torchcodec),
        ({"av"}, decode.with_av),
    ):
        monkeypatch.setattr(decode, "_works", works.__contains__)
        assert decode.decoder() is expected
    monkeypatch.setattr(decode, "_works", lambda module: False)
    with pytest.raises(UserError, match="none is installed"):
        decode.decoder()


@pytest.mark.parametrize("how", ["bytes", "folder"])
@pytest.mark.skipif(not HAS_AV, reason="needs PyAV (extra 'video') to write video files")
def test_video_files_are_decoded_to_nearly_the_frames_that_were_written(tmp_path, how):
    from mmdd.modalities.video.export import write_mp4

    codes = np.arange(4) % 2
    # the level says clip and time; the codec keeps it, whatever else it loses
    levels = 30 + 10 * np.arange(10) + 25 * np.arange(4)[:, None]
    clips = np.broadcast_to(levels[..., None, None, None], (4, 10, 32, 46, 3)).astype(np.uint8)
    for number, (clip, code) in enumerate(zip(clips, codes, strict=True)):
        folder = tmp_path / "train" / f"kind {code}"
        folder.mkdir(parents=True, exist_ok=True)
        write_mp4(clip, folder / f"{number}.mp4")
    source = str(tmp_path)
    if how == "bytes":
        files = sorted(tmp_path.rglob("*.mp4"))
        source = file_table([path.read_bytes() for path in files], [0, 0, 1, 1])
    data = opened(source, frames=5, **KEEP_ALL)
    assert data.info.shape == (3, 5, 32, 46)
    expected = torch.from_numpy(levels[[0, 2, 1, 3]][:, [1, 3, 5, 7, 9]]).float()
    found = stored(data.train).float()
    torch.testing.assert_close(found.mean(dim=(1, 3, 4)), expected, rtol=0, atol=3)
    assert float(found.std(dim=(1, 3, 4)).max()) < 3


def test_what_is_no_set_of_clips_is_refused():
    clips, codes = blobs(6)
    floats = clips.astype(np.float32)
    floats[3, 2, 1, 1] = np.nan
    refused((floats, codes), "1 pixels of clip row 3 of 'train' are NaN", **KEEP_ALL)
    refused((clips[:, 0, ..., 0], codes), "these are no clips")
    refused((clips[:, :1], codes), "row 0 has a single frame.*modality images", **KEEP_ALL)
    refused((clips, codes), "data.stride is for clips", stride=2)
    refused((["a clip"] * 6, codes), "this is no clip")
    refused((clips.astype(np.int64) * 9, codes), "out of range")
    uneven = [[clips[0, 0], clips[0, 1, :4]]] * 6
    refused((uneven, codes), "frames of a clip differ in shape")
    table = array_table(clips, codes)
    refused(table, "unknown video column 'frame'; .*Did you mean 'frames'", video="frame")
    refused(table, "column 'label' holds no clips", video="label")
    refused(table.remove_columns("frames"), "no column holds clips")
    refused(table.add_column("again", table["frames"][:]), "several columns could be the video")


def test_frames_of_uneven_size_in_a_table_are_named():
    clip = [[[1, 2], [3, 4]], [[1, 2], [3, 4, 5]]]
    table = datasets.Dataset.from_dict({"frames": [clip] * 4, "label": [0, 1, 0, 1]})
    refused(table, "no clip of split 'train' can be opened.*frames differ in size", **KEEP_ALL)


# -- a real set ------------------------------------------------------------------------------------

GRID = Path(os.environ.get("MMDD_SHARED_DATA", "/nowhere")) / "video" / "grid_digit"


@pytest.mark.skipif(not GRID.exists(), reason="no grid_digit under $MMDD_SHARED_DATA")
def test_spoken_digits_open_as_they_are():
    data = opened(str(GRID))
    assert data.info.shape == (1, 16, 32, 48)
    assert data.info.sizes == {"train": 706, "validation": 78, "test": 216}
    assert data.info.names[:3] == ("zero", "one", "two")
    batch = data.train.select(torch.arange(16)).inputs
    assert abs(float(batch.mean())) < 0.5
    assert batch.diff(dim=2).abs().mean() < 0.2  # neighbouring frames are alike


# -- sets that stay on disk ------------------------------------------------------------------------


def frame_folder(root, count=8):
    """Clips as folders of PNG frames; returns the clips in the order of the folder."""
    clips, codes = blobs(count, size=(8, 10))
    for number, (clip, code) in enumerate(zip(clips, codes, strict=True)):
        folder = root / "train" / f"kind{code}" / f"clip{number}"
        folder.mkdir(parents=True)
        for time, frame in enumerate(clip):
            (folder / f"{time}.png").write_bytes(png(frame[..., 0]))
    return clips, codes


def test_clips_read_from_disk_are_those_of_a_resident_set(tmp_path):
    frame_folder(tmp_path)
    options = {**KEEP_ALL, "frames": 4}
    kept = opened(str(tmp_path), **options)
    disk = opened(str(tmp_path), store="disk", workers=0, **options)
    assert any("on disk" in note for note in disk.info.notes)
    assert disk.info.normalisation == kept.info.normalisation
    index = torch.tensor([5, 0, 5, 3])
    for part in (disk.train, disk.train.subset(torch.arange(8))):
        assert torch.equal(part.select(index).inputs, kept.train.select(index).inputs)
    assert torch.equal(disk.train.groups, kept.train.groups)
    # what a worker process is given, and what it reads
    reader = pickle.loads(pickle.dumps(disk.train.pool.reader))
    assert torch.equal(disk.train.prepare(reader([5, 0])), kept.train.select(index[:2]).inputs)


def test_memory_that_does_not_suffice_leaves_the_clips_where_they_are(tmp_path):
    clips, codes = frame_folder(tmp_path)
    kept = opened((clips, codes), **KEEP_ALL)
    small = opened((clips, codes), max_resident_bytes=100, **KEEP_ALL)
    assert any("in main memory" in note for note in small.info.notes)
    everything = torch.arange(8)
    assert torch.equal(small.train.select(everything).inputs, kept.train.select(everything).inputs)
    again = opened(str(tmp_path), max_resident_bytes=100, **KEEP_ALL)
    assert any("on disk" in note for note in again.info.notes)
    again.close()
    path = next(tmp_path.rglob("0.png"))
    path.write_bytes(png(255 - clips[0, 0, ..., 0]))
    changed = opened(str(tmp_path), max_resident_bytes=100, **KEEP_ALL)
    assert changed.info.fingerprint != again.info.fingerprint


def test_a_run_on_clips_from_disk_has_the_bits_of_one_in_memory_and_resumes(tmp_path):
    frame_folder(tmp_path, 12)

    def distiller(store):
        options = {"data.store": store, "data.workers": 0, "data.validation": 0, "data.test": 0.2}
        options |= {"learner.width": 4, "learner.depth": 1, "real.per_group": 3}
        options |= {"modality": "video", "run.compile": False, "run.precision": "float32"}
        recipe = compose.from_flags(str(tmp_path), method="dm", per_class=1, options=options)
        splits = build.open_data(recipe, None, torch.device("cpu"))
        return build.distiller(build.parts(recipe, splits.info, torch.device("cpu")), splits)

    disk, memory = distiller("disk"), distiller("device")
    assert [disk.step() for _ in range(2)] == [memory.step() for _ in range(2)]
    resumed = distiller("disk")
    resumed.load_state_dict(copy.deepcopy(disk.state_dict()))
    assert resumed.step() == disk.step() == memory.step()
    ends = [run.synthetic.leaves()["inputs"] for run in (resumed, disk, memory)]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_bad_clips_on_disk_are_blank_or_refused(tmp_path, monkeypatch, caplog):
    frame_folder(tmp_path)
    # as if the sample that is checked at first had missed them
    monkeypatch.setattr("mmdd.modalities.video.data.SAMPLE_DISK", 2)
    monkeypatch.setattr("mmdd.modalities.video.opening.SAMPLE", 2)
    options = {**KEEP_ALL, "store": "disk", "workers": 0}
    data = opened(str(tmp_path), max_corrupt=1, **options)
    (tmp_path / "train" / "kind0" / "clip2" / "3.png").write_bytes(b"nothing")
    found = data.train.select(torch.arange(8)).inputs
    assert float(found[1].abs().max()) < 0.02
    assert float(found[0].abs().max()) > 0.5
    assert "clip2 cannot be read" in caplog.text
    (tmp_path / "train" / "kind1" / "clip3" / "3.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"more than 1 clips cannot be read.*clip3"):
        data.train.select(torch.arange(8))
    refused(str(tmp_path), "known once all of them are opened", short="drop", **options)


def test_a_short_clip_on_disk_stops_the_run_where_it_would_in_memory(tmp_path, monkeypatch):
    frame_folder(tmp_path)
    monkeypatch.setattr("mmdd.modalities.video.data.SAMPLE_DISK", 1)
    (tmp_path / "train" / "kind0" / "clip4" / "5.png").unlink()
    data = opened(str(tmp_path), store="disk", workers=0, frames=6, **KEEP_ALL)
    with pytest.raises(UserError, match=r"clip .*clip4 has fewer frames than asked for; got 5"):
        data.train.select(torch.arange(8))
    held = opened(str(tmp_path), store="disk", workers=0, frames=6, short="hold", **KEEP_ALL)
    last = held.train.select(torch.tensor([2])).inputs
    assert torch.equal(last[:, :, 5], last[:, :, 4])
