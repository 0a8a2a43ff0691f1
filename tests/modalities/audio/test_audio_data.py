"""Opening of audio: files, columns and arrays to waveforms and spectra of one shape."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from mmdd.errors import UserError
from mmdd.modalities.audio import clips as clips_module
from mmdd.modalities.audio.data import open_audio
from mmdd.modalities.audio.options import AudioData
from mmdd.modalities.audio.space import audio_of, in_units, spectrum_of
from mmdd.trees import tree_leaves

pytestmark = pytest.mark.usefixtures("soundfile")

RATE = 8000
SHARED = Path(os.environ.get("MMDD_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


def opened(source, **options):
    return open_audio(source, AudioData(**{"validation": 0, "test": 0.0, **options}))


def everything(data):
    return data.select(torch.arange(len(data)))


def from_arrays(arrays, labels, **options):
    return opened((arrays, labels), array_rate=RATE, **options)


def said(splits):
    return " | ".join(splits.info.notes)


# -- sources ---------------------------------------------------------------------------------------


def test_a_folder_of_files_is_opened_by_split_and_class(folder, tones):
    splits = opened(str(folder), space="waveform", length=1500)
    info = splits.info
    assert (info.names, info.shape, info.sizes) == (
        ("deep", "high"),
        (1, 1500),
        {"train": 12, "validation": 0, "test": 4},
    )
    clips, labels = tones(6)
    order = sorted(range(12), key=lambda i: (labels[i], i))  # files by name, class by class
    batch = everything(splits.train)
    made = in_units(batch.inputs, info)
    for place, number in enumerate(order):
        clip = clips[number]
        start = max(0, (len(clip) - 1500) // 2)
        kept = clip[start : start + 1500]
        np.testing.assert_allclose(made[place, 0, : len(kept)], kept, atol=1e-6)
        assert (made[place, 0, len(kept) :] == 0).all()
        assert info.names[int(batch.targets[place])] == labels[number]


def test_a_folder_without_splits_and_one_with_a_table(folder, write, tmp_path):
    one = opened(str(folder / "train"), length=1500, test=0.25)
    assert one.info.sizes == {"train": 9, "validation": 0, "test": 3}
    place = tmp_path / "listed"
    rows = ["file_name,speaker,label"]
    for number in range(6):
        write(place / "all" / f"{number}.wav", np.full(600, 0.1 * number, np.float32))
        rows.append(f"all/{number}.wav,s{number},{'ab'[number % 2]}")
    (place / "metadata.csv").write_text("\n".join(rows))
    listed = opened(str(place), label="label", space="waveform")
    assert listed.info.names == ("a", "b")
    values = in_units(everything(listed.train).inputs, listed.info)[:, 0, 0]
    np.testing.assert_allclose(values, [0.1 * number for number in range(6)], atol=1e-6)


def test_an_audio_column_is_read_without_decoding_it_elsewhere(encoded, tones, monkeypatch):
    clips, labels = tones(3)
    files = [{"bytes": encoded(clip), "path": None} for clip in clips]
    table = datasets.Dataset.from_dict({"sound": files, "label": labels})
    table = table.cast_column("sound", datasets.Audio(sampling_rate=RATE))

    def refused(*_, **__):
        raise AssertionError("decoded by the library")

    monkeypatch.setattr(datasets.Audio, "decode_example", refused)
    splits = opened(table, space="waveform", length=2000)
    assert splits.info.columns == {"audio": "sound", "label": "label"}
    made = in_units(everything(splits.train).inputs, splits.info)
    np.testing.assert_allclose(made[2, 0, : len(clips[2])], clips[2], atol=1e-6)


def test_a_table_of_file_names(folder, tmp_path):
    names = sorted(str(path.relative_to(folder)) for path in (folder / "train").rglob("*.wav"))
    rows = ["clip,kind", *(f"{name},{name.split('/')[1]}" for name in names)]
    (folder / "list.csv").write_text("\n".join(rows))
    splits = opened(str(folder / "list.csv"), label="kind", length=1500)
    assert splits.info.sizes["train"] == 12
    assert splits.info.columns == {"audio": "clip", "label": "kind"}


def test_arrays_from_python_in_every_form(tone, tones):
    clips, labels = tones(3, low=1500, high=1501)
    plain = from_arrays(clips, labels, space="waveform")
    wanted = everything(plain.train).inputs

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return len(clips)

        def __getitem__(self, place):
            return torch.from_numpy(clips[place])[None], labels[place]

    same = [
        from_arrays(np.stack(clips), labels, space="waveform"),
        from_arrays(torch.from_numpy(np.stack(clips)), labels, space="waveform"),
        from_arrays([np.stack([clip, clip]) for clip in clips], labels, space="waveform"),
        opened(
            ([{"array": clip, "sampling_rate": RATE} for clip in clips], labels), space="waveform"
        ),
        opened(([(clip, RATE) for clip in clips], labels), space="waveform"),
        opened(Samples(), array_rate=RATE, space="waveform"),
        opened(
            datasets.Dataset.from_dict({"wave": [c.tolist() for c in clips], "label": labels}),
            array_rate=RATE,
            audio="wave",
            space="waveform",
        ),
    ]
    for other in same:
        torch.testing.assert_close(everything(other.train).inputs, wanted, rtol=0, atol=1e-6)
    whole = [np.round(clip * 2**15).astype(np.int16) for clip in clips]
    made = from_arrays(whole, labels, space="waveform")
    got = in_units(everything(made.train).inputs, made.info)
    np.testing.assert_allclose(got[:, 0], np.stack(clips), atol=2 / 2**15)


# -- rate, channels, length ------------------------------------------------------------------------


def test_rates_that_differ_become_the_most_common_one(tone, tmp_path, write):
    for place in range(6):
        write(tmp_path / "a" / f"{place}.wav", tone(440, 1000, 8000, place))
        write(tmp_path / "b" / f"{place}.wav", tone(900, 1000, 8000, place))
    write(tmp_path / "b" / "z.wav", tone(900, 2000, 16000, 9), 16000)
    splits = opened(str(tmp_path), space="waveform")
    assert splits.info.normalisation["rate"] == 8000
    assert splits.info.shape == (1, 1000)
    assert "1 clips of other rates (16,000 Hz) were resampled to 8,000 Hz" in said(splits)
    made = in_units(everything(splits.train).inputs, splits.info)[-1, 0]
    assert abs(float(torch.fft.rfft(made).abs().argmax()) - 900 * 1000 / 8000) <= 1
    # band-limited: the amplitude of the tone is kept
    assert float(made[100:-100].abs().max()) == pytest.approx(0.5, abs=0.05)
    chosen = opened(str(tmp_path), space="waveform", rate=4000)
    assert chosen.info.shape == (1, 500)


def test_channels_are_averaged_and_said(tmp_path, write):
    left, right = np.full(600, 0.5, np.float32), np.full(600, -0.1, np.float32)
    for name in "ab":
        for place in range(2):
            write(tmp_path / name / f"{place}.wav", np.stack([left, right], axis=1))
    splits = opened(str(tmp_path), space="waveform")
    made = in_units(everything(splits.train).inputs, splits.info)
    torch.testing.assert_close(made, torch.full((4, 1, 600), 0.2))
    assert "4 clips of several channels were mixed to one" in said(splits)


def test_the_length_is_what_most_clips_fit_into():
    clips = [np.full(100 + number, 0.1, np.float32) for number in range(101)]
    splits = from_arrays(clips, ["a", "b"] * 50 + ["a"], space="waveform")
    assert splits.info.shape == (1, 195)
    assert "195 samples at 8,000 Hz), what 95 % of training fits into" in said(splits)
    assert "5 longer ones keep their middle" in said(splits)
    for given, samples in ((120, 120), (0.02, 160)):
        made = from_arrays(clips, ["a", "b"] * 50 + ["a"], space="waveform", length=given)
        assert made.info.shape == (1, samples)


@pytest.mark.parametrize(("crop", "first"), [("start", 0), ("centre", 50)])
def test_longer_clips_are_cropped(crop, first):
    ramps = [np.arange(200, dtype=np.float32) / 200 for _ in range(4)]
    splits = from_arrays(ramps, list("abab"), space="waveform", length=100, crop=crop)
    made = in_units(everything(splits.train).inputs, splits.info)[0, 0]
    np.testing.assert_allclose(made, ramps[0][first : first + 100], atol=1e-6)


def test_silence_is_trimmed(tone):
    silence = np.full(300, 1e-4, np.float32)
    clips = [np.concatenate([silence, tone(500, 400, seed=s), silence]) for s in range(4)]
    splits = from_arrays(clips, list("abab"), space="waveform", trim=30.0)
    assert 350 < splits.info.shape[-1] <= 400
    made = in_units(everything(splits.train).inputs, splits.info)
    assert float(made[0, 0, :5].abs().max()) > 0.5 * 10 ** (-30 / 20)
    quiet = [np.zeros(400, np.float32), *clips[1:]]
    kept = from_arrays(quiet, list("abab"), space="waveform", trim=30.0, length=400)
    assert "1 clips are silent" in said(kept)
    assert len(kept.train) == 4


# -- spaces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", ["bands", "global"])
def test_spectra_are_normalised_by_the_training_clips_alone(folder, normalise):
    splits = opened(str(folder), normalise=normalise, length=1500)
    waves = opened(str(folder), space="waveform", length=1500)
    spectrum = spectrum_of(splits.info)
    assert splits.info.shape == (1, 32, 1500 // 128 + 1)
    raw = {}
    for role in ("train", "test"):
        wave = in_units(everything(getattr(waves, role)).inputs, waves.info)[:, 0]
        raw[role] = spectrum(wave).double()
    axes = (0, 2) if normalise == "bands" else (0, 1, 2)
    mean, std = raw["train"].mean(axes), raw["train"].std(axes, correction=0)
    if normalise == "bands":
        mean, std = mean[:, None], std[:, None]
    for role, values in raw.items():
        wanted = (values - mean) / std
        got = everything(getattr(splits, role)).inputs[:, 0].double()
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    found, normalised = splits.info.normalisation, (raw["train"] - mean) / std
    for name, values in (("range", raw["train"]), ("bounds", normalised)):
        wanted = [float(values.min()), float(values.max())]
        assert found[name] == pytest.approx(wanted, abs=1e-3)


def test_a_band_that_is_never_used_is_not_blown_up():
    # 300 Hz alone: the high bands hold next to nothing but rounding
    time = np.arange(2000) / RATE
    clips = [(a * np.sin(2 * np.pi * 300 * time)).astype(np.float32) for a in (0.3, 0.4, 0.5, 0.6)]
    splits = from_arrays(clips, list("abab"))
    std = np.array(splits.info.normalisation["std"])
    assert std.min() >= 0.049 * std.max()


@pytest.mark.parametrize("space", ["waveform", "log-mel"])
def test_masks_show_what_is_the_clips_own(space, tones):
    clips, labels = tones(4)
    splits = from_arrays(clips, labels, space=space, mask=True, length=2000)
    values, mask = audio_of(everything(splits.train).inputs)
    for clip, own in zip(clips, mask, strict=True):
        places = len(clip) if space == "waveform" else len(clip) // 128 + 1
        assert own.tolist() == [place < places for place in range(len(own))]
    hidden = ~mask.view(len(mask), *(1,) * (values.ndim - 2), -1).expand(values.shape)
    assert (values[hidden] == 0).all()
    # measured over what sounds alone
    assert float(values[~hidden].square().mean()) == pytest.approx(1.0, abs=0.02)


def test_spectra_are_computed_once_and_come_back_with_the_same_bits(folder, monkeypatch, tmp_path):
    first = opened(str(folder))
    store = list((tmp_path / "cache" / "audio").iterdir())
    assert len(store) == 1
    again = opened(str(folder))

    def refused(*_):
        raise AssertionError("decoded once more")

    with monkeypatch.context() as patched:
        patched.setattr(clips_module, "decode", refused)
        patched.setattr(clips_module, "header", refused)
        again = opened(str(folder), normalise="global")
        again = opened(str(folder))
    assert again.info == first.info
    for role in ("train", "test"):
        one, other = (everything(getattr(splits, role)) for splits in (first, again))
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    opened(str(folder), mels=20)
    opened(str(folder), cache=False, mels=24)
    assert len(list(store[0].parent.iterdir())) == 2
    store[0].write_bytes(store[0].read_bytes()[:100])
    assert opened(str(folder)).info == first.info
    # a file that changed is another set
    changed = next((folder / "train" / "deep").iterdir())
    changed.write_bytes(next((folder / "train" / "high").iterdir()).read_bytes())
    os.utime(changed, (1, 1))
    assert opened(str(folder)).info.fingerprint != first.info.fingerprint


def test_the_fingerprint_knows_clips_labels_and_space(tones):
    clips, labels = tones(3)
    base = from_arrays(clips, labels).info.fingerprint
    assert from_arrays(clips, labels, cache=False).info.fingerprint == base
    other = [clips[0] * 1.01, *clips[1:]]
    different = [
        from_arrays(other, labels),
        from_arrays(clips, labels[::-1]),
        from_arrays(clips, labels, space="waveform"),
        from_arrays(clips, labels, mask=True),
        from_arrays(clips, labels, mels=20),
        from_arrays(clips, labels, normalise="global"),
        from_arrays(clips, labels, length=900),
    ]
    found = {splits.info.fingerprint for splits in different}
    assert len(found) == len(different)
    assert base not in found


# -- real clips ------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (SHARED / "audio" / "fsdd").is_dir(), reason="shared/data/audio/fsdd is absent"
)
def test_spoken_digits():
    splits = open_audio(str(SHARED / "audio" / "fsdd"), AudioData(label="label"))
    info = splits.info
    assert info.sizes == {"train": 2430, "validation": 270, "test": 300}
    assert info.names[:3] == ("zero", "one", "two")
    assert info.shape == (1, 32, 42)
    assert "8,000 Hz" in said(splits)
    batch = everything(splits.train)
    torch.testing.assert_close(batch.inputs.mean(), torch.tensor(0.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(batch.inputs.std(), torch.tensor(1.0), atol=1e-2, rtol=0)


# -- sets that stay on disk ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mask": True}, {"space": "waveform", "length": 1500}])
def test_clips_read_from_disk_are_those_of_a_resident_set(folder, options):
    kept = opened(str(folder), cache=False, **options)
    disk = opened(str(folder), store="disk", workers=0, **options)
    assert "clips stay on disk, read by this process" in said(disk)
    assert disk.info.normalisation == kept.info.normalisation
    index = torch.tensor([5, 0, 5, 11])
    pair = [splits.train.select(index) for splits in (disk, kept)]
    for own, other in zip(*(tree_leaves(batch) for batch in pair), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    # what a worker process is given, and what it reads: an item by itself, to the bit
    reader = pickle.loads(pickle.dumps(disk.train.pool.reader))
    again = disk.train.prepare(reader([11, 5]))
    for own, other in zip(tree_leaves(again), tree_leaves(pair[0].inputs), strict=True):
        assert torch.equal(own, other[[3, 0]])
    assert torch.equal(disk.test.select(torch.tensor([3])).groups, torch.tensor([1]))


def test_memory_that_does_not_suffice_leaves_clips_where_they_are(folder, tones):
    splits = opened(str(folder), max_resident_bytes=1000, cache=False)
    assert "clips stay on disk" in said(splits)
    splits.close()
    small = from_arrays(*tones(3), max_resident_bytes=1000, cache=False)
    assert "clips stay in main memory, read by this process" in said(small)
    assert len(everything(small.train).inputs) == 6


def test_clips_on_disk_that_turn_out_bad_are_silent_or_too_many(folder, monkeypatch, caplog):
    monkeypatch.setattr("mmdd.modalities.audio.streaming.SAMPLE_DISK", 1)
    splits = opened(str(folder), store="disk", workers=0, max_corrupt=1, space="waveform")
    assert "comes from 1 training clips" in said(splits)
    files = sorted((folder / "train").rglob("*.wav"))
    files[3].write_bytes(b"nothing")
    found = everything(splits.train).inputs
    assert found[3].abs().max() == 0
    assert found[2].abs().max() > 0
    assert f"{files[3].name}) cannot be read" in caplog.text
    files[7].write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"more than 1 clips cannot be read, the last one row 7"):
        everything(splits.train)
