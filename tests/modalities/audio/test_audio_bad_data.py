"""Audio that cannot be used: one line that names it, or a stated treatment."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from mmdd.errors import UserError
from mmdd.modalities.audio.data import open_audio
from mmdd.modalities.audio.options import AudioData

pytestmark = pytest.mark.usefixtures("soundfile")

RATE = 8000


def opened(source, **options):
    return open_audio(source, AudioData(**{"validation": 0, "test": 0.0, **options}))


def everything(data):
    return data.select(torch.arange(len(data)))


def from_arrays(arrays, labels, **options):
    return opened((arrays, labels), array_rate=RATE, **options)


def said(splits):
    return " | ".join(splits.info.notes)


def test_corrupt_files_are_tolerated_up_to_a_limit(folder):
    bad = folder / "train" / "deep" / "00.wav"
    bad.write_bytes(b"this is no audio at all, but long enough to look at")
    with pytest.raises(UserError, match=r"1 of 16 clips cannot be read: train row 0 \(.*00\.wav\)"):
        opened(str(folder))
    splits = opened(str(folder), max_corrupt=1)
    assert splits.info.sizes["train"] == 11
    assert "1 unreadable clips dropped" in said(splits)
    assert everything(splits.train).groups.tolist() == [0] * 5 + [1] * 6
    # from the cache as well
    assert opened(str(folder), max_corrupt=1).info == splits.info
    with pytest.raises(UserError, match="1 of 16 clips cannot be read"):
        opened(str(folder))


def test_a_class_whose_only_clips_are_unreadable_goes(folder, write):
    write(folder / "train" / "aaa" / "x.wav", np.zeros(0, np.float32))
    splits = opened(str(folder), max_corrupt=1)
    assert splits.info.names == ("deep", "high")
    assert "(aaa)" in said(splits)
    batch = everything(splits.train)
    assert batch.targets.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize(
    ("clip", "why"),
    [
        (np.zeros(0, np.float32), "the clip is empty"),
        (np.array([0.1, np.nan] * 300, np.float32), "samples are not finite"),
        (np.array([0.1, np.inf] * 300, np.float32), "samples are not finite"),
    ],
)
def test_empty_clips_and_broken_samples_are_named(folder, write, clip, why):
    write(folder / "train" / "deep" / "00.wav", clip)
    with pytest.raises(UserError, match=f"00.wav.*{why}"):
        opened(str(folder))
    with pytest.raises(UserError, match=f"clip 1: {why}"):
        from_arrays([np.ones(600, np.float32), clip], ["a", "b"])


def test_files_that_all_fail_and_folders_that_say_nothing(tmp_path, write):
    for name in ("a/1.wav", "b/2.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match="no clip of split 'train' can be opened"):
        opened(str(tmp_path))
    write(tmp_path / "loose.wav", np.ones(600, np.float32))
    with pytest.raises(UserError, match=r"stand in no class, e\.g\. 'loose.wav'"):
        opened(str(tmp_path))
    (tmp_path / "metadata.csv").write_text("path,label\nloose.wav,a\n")
    with pytest.raises(UserError, match=r"names no files.*file_name"):
        opened(str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"x": [1, 2]}, {}, "no column holds audio; got .'x', 'label'"),
        ({"x": [1, 2]}, {"audio": "y"}, "unknown audio column 'y'"),
        ({"x": [1, 2]}, {"audio": "x"}, "column 'x' holds no audio"),
        ({"x": [[0.1], [0.2]]}, {}, "data.array_rate=RATE, if x holds samples"),
        ({"x": [[0.1], [0.2]]}, {"audio": "x"}, "do not tell their sampling rate"),
        ({"x": ["a.wav", "b.wav"], "y": ["c.mp3", "d.mp3"]}, {}, "several columns could be"),
    ],
)
def test_columns_that_do_not_fit(columns, options, message):
    table = datasets.Dataset.from_dict({**columns, "label": ["a", "b"]})
    with pytest.raises(UserError, match=message):
        opened(table, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_fft": 4096}, "clips of 600 samples are too short for windows of data.n_fft=4096"),
        ({"n_fft": 64, "hop": 65}, "data.hop leaves samples"),
        ({"n_fft": 64, "mels": 64}, "mel bands are narrower"),
    ],
)
def test_options_that_do_not_fit(options, message):
    clips = [np.ones(600, np.float32)] * 4
    with pytest.raises(UserError, match=message):
        from_arrays(clips, list("abab"), **options)


def test_arrays_that_are_no_clips():
    ones = np.ones(600, np.float32)
    cases = [
        ([ones, np.ones((20, 30), np.float32)], "clip 1: this is no clip"),
        ([ones, "text"], "clip 1: this is no clip"),
        ([ones, np.ones(600, np.int64)], "clip 1: samples of this type"),
        ([ones, [[1.0, 2.0], [3.0]]], "clip 1: "),
        ([np.ones(8, np.float32)] * 2, "clips of 8 samples are too short"),
    ]
    for clips, message in cases:
        with pytest.raises(UserError, match=message):
            from_arrays(clips, ["a", "b"])
    with pytest.raises(UserError, match=r"do not tell their sampling rate.*array_rate=16000"):
        opened(([ones, ones], ["a", "b"]))


def test_a_package_that_is_missing_is_named_before_anything_is_read(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(UserError, match=r"need the package soundfile.*pip install soundfile"):
        opened("/nowhere")


def test_a_whole_number_of_seconds_is_told_from_samples():
    assert AudioData(length=1.0).length == 1.0
    assert AudioData(length=8000).length == 8000
    with pytest.raises(ValueError, match=r"write 1\.0 for seconds"):
        AudioData(length=1)
