"""Audio in the whole house: recipes, representations, artifacts, exports and pictures."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import mmdd
from mmdd import artifact
from mmdd.compose import from_flags
from mmdd.errors import UserError
from mmdd.frequency import Frequency
from mmdd.modalities.audio.export import to_columns, to_waves
from mmdd.modalities.audio.modality import AUDIO
from mmdd.modalities.audio.options import AudioData
from mmdd.modalities.audio.show import band_ticks, picture
from mmdd.modalities.audio.space import in_units, spectrum_of

pytestmark = pytest.mark.usefixtures("soundfile")

SMALL = {
    "modality": "audio",
    "data.length": 1500,
    "data.validation": 0.1,
    "data.array_rate": 8000,
    "evaluate.learners": 1,
    "evaluate.epochs": 2,
    "real.per_group": 4,
    "run.device": "cpu",
    "run.compile": False,
}
SHORT = {
    "dm": {},
    "dsa": {"source.outer": 2, "source.inner": 1},
    "mtt": {
        "experts.count": 1,
        "experts.epochs": 2,
        "source.length": 1,
        "source.max_start": 1,
        "objective.steps": 2,
    },
}
NETS = {
    "log-mel": {"learner.encoder": "convnet", "learner.width": 4},
    "waveform": {"learner.encoder": "m5", "learner.width": 4},
}


def distilled(source, method="dm", space="log-mel", mask=False, out=None, **options):
    chosen = {
        **SMALL,
        **SHORT[method],
        **NETS[space],
        "data.space": space,
        "data.mask": mask,
        **options,
    }
    return mmdd.distill(source, method=method, per_class=1, steps=2, out=out, options=chosen)


@pytest.fixture
def source(tones):
    return tones(8)


def opened(source, **options):
    chosen = AudioData(length=1500, array_rate=8000, validation=0, test=0.0, **options)
    return AUDIO.open(source, chosen, torch.device("cpu"))


def items(source, **options):
    splits = opened(source, **options)
    batch = splits.train.select(torch.arange(len(splits.train)))
    return batch.inputs, batch.targets, splits.info


# -- methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SHORT)
@pytest.mark.parametrize(
    ("space", "mask"), [("log-mel", False), ("waveform", False), ("log-mel", True)]
)
def test_every_objective_in_every_space(source, method, space, mask):
    done = distilled(source, method, space, mask)
    leaves = done.synthetic.leaves()
    name = "inputs.audio" if mask else "inputs"
    start = distilled(source, method, space, mask, **{"optimise.steps": 1}).synthetic.leaves()[name]
    assert torch.isfinite(leaves[name]).all()
    assert not torch.equal(leaves[name], start)
    low, high = AUDIO.bounds(done.info)
    low, high = (low["audio"], high["audio"]) if mask else (low, high)
    assert ((leaves[name] >= low - 1e-5) & (leaves[name] <= high + 1e-5)).all()
    report = done.evaluate(data=source, baselines=False, learners=1)
    assert 0 <= report["results"][NETS[space]["learner.encoder"]]["synthetic"]["mean"] <= 1


@pytest.mark.parametrize("encoder", ["crnn", "transformer", "linear", "mlp"])
def test_other_nets_under_gradient_matching(source, encoder):
    options = {"crnn": {"learner.width": 4}, "mlp": {"learner.width": 4}}.get(encoder, {})
    chosen = {**SMALL, **SHORT["dsa"], "learner.encoder": encoder, **options}
    done = mmdd.distill(source, method="dsa", per_class=1, steps=2, options=chosen)
    assert torch.isfinite(done.synthetic.leaves()["inputs"]).all()


def test_a_net_of_the_other_space_is_refused_in_one_line(source):
    with pytest.raises(UserError, match=r"'convnet' reads log-mel, and data.space is waveform"):
        distilled(source, space="waveform", **{"learner.encoder": "convnet"})


def test_methods_of_images_bring_their_net_and_not_their_augmentation():
    recipe = from_flags("x", method="dm", options={"modality": "audio"})
    assert recipe.learner.encoder == "convnet"
    assert recipe.augment.kind == "siamese"


# -- representations -------------------------------------------------------------------------------


def test_frequency_coefficients_of_waveforms(source):
    inputs, _, info = items(source, space="waveform")
    made = Frequency.of_items(inputs, keep=0.5, choose="low", bounds=AUDIO.bounds(info))
    assert made.inputs.shape == (len(inputs), 750)
    # tones of 300 and 1500 Hz lie below half of 4 kHz: what is lost is half of a little noise
    decoded = made.decode(None)
    assert decoded.shape == inputs.shape
    lost = (decoded - inputs).square().mean() / inputs.square().mean()
    assert lost.item() < 0.01
    made.decode(torch.tensor([1])).square().sum().backward()
    assert (made.inputs.grad[1] != 0).all()
    assert (made.inputs.grad[0] == 0).all()
    with torch.no_grad():
        made.inputs.mul_(10)
    before = made.decode(None).detach().abs().max()
    made.constrain_()
    assert made.decode(None).detach().abs().max() < before


def test_frequency_coefficients_through_a_recipe(source, tmp_path):
    chosen = {"synthetic.representation": {"kind": "frequency", "keep": 0.25}}
    for mask in (False, True):
        done = distilled(source, "dm", "waveform", mask, tmp_path / str(mask), **chosen)
        again = mmdd.load(tmp_path / str(mask))
        one, other = done.to_torch().inputs, again.to_torch().inputs
        if mask:
            assert torch.equal(one["mask"], other["mask"])
            one, other = one["audio"], other["audio"]
        assert torch.equal(one, other)


def test_packed_spectra(source):
    chosen = {"synthetic.representation": {"kind": "packed", "factor": 2}}
    done = distilled(source, **chosen)
    assert len(done.to_torch()) == 8
    assert done.to_torch().inputs.shape[1:] == done.info.shape


# -- what a person reads ---------------------------------------------------------------------------


def decoded(audio):
    import soundfile

    return soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32")


def test_waveforms_are_exported_as_they_are(source):
    inputs, targets, info = items(source, space="waveform")
    columns, features = to_columns(inputs, targets, info)
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made = made.cast_column("audio", datasets.Audio(decode=False))
    wanted = in_units(inputs, info)[:, 0]
    for item, wave, label in zip(made, wanted, targets, strict=True):
        samples, rate = decoded(item["audio"])
        assert rate == 8000
        np.testing.assert_allclose(samples, wave, atol=1 / 2**15)
        assert item["label"] == int(label)
    loud = to_waves(inputs * 10, info)
    assert np.abs(loud).max() == pytest.approx(1.0)


def test_spectra_are_exported_as_clips_of_about_that_spectrum(source):
    inputs, targets, info = items(source, mask=True)
    waves = to_waves(inputs, info)
    assert waves.shape == (len(targets), 1500)
    assert np.array_equal(waves, to_waves(inputs, info))
    for wave, label in zip(waves, targets.tolist(), strict=True):
        peak = np.abs(np.fft.rfft(wave)).argmax() * 8000 / 1500
        assert abs(peak - (300, 1500)[label]) < 80
    spectrum = spectrum_of(info)
    mask = inputs["mask"]
    silent = torch.from_numpy(waves)[~mask[:, -1]][:, -128:]
    assert len(silent) > 0
    assert float(silent.abs().max()) < 0.05
    assert spectrum.frames(1500) == mask.shape[1]


def test_soft_labels_stand_beside_their_largest_class(source):
    inputs, targets, info = items(source)
    soft = torch.nn.functional.one_hot(targets, 2) * 0.6 + 0.2
    columns, features = to_columns(inputs, soft, info)
    assert columns["label"] == targets.tolist()
    assert columns["soft_label"][0] == pytest.approx(soft[0].tolist())
    assert set(features) == {"audio", "label", "soft_label"}


def test_an_artifact_is_read_without_a_codec_and_opens_again(source, tmp_path):
    done = distilled(source, out=tmp_path / "set")
    table = datasets.load_dataset(
        str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert isinstance(table.features["audio"], datasets.Audio)
    assert table.features["audio"].sampling_rate == 8000
    table = table.cast_column("audio", datasets.Audio(decode=False))
    waves = to_waves(done.to_torch().inputs, done.info)
    for item, wave in zip(table, waves, strict=True):
        np.testing.assert_allclose(decoded(item["audio"])[0], wave, atol=1 / 2**15)
    assert mmdd.load(tmp_path / "set").info == done.info
    again = AUDIO.open(
        str(tmp_path / "set"), AudioData(test=0.0, validation=0), torch.device("cpu")
    )
    assert again.info.sizes["train"] == 2


def test_wav_files_by_class(source, tmp_path):
    distilled(source, out=tmp_path / "set")
    assert artifact.export(tmp_path / "set", "wav", tmp_path / "clips")
    assert not artifact.export(tmp_path / "set", "wav", tmp_path / "clips")
    found = sorted(str(p.relative_to(tmp_path / "clips")) for p in (tmp_path / "clips").rglob("*"))
    files = ["train/deep/00001.wav", "train/high/00001.wav"]
    assert set(files) <= set(found)
    assert {"README.md", "classes.json", "players.html"} <= set(found)
    numbers = json.loads((tmp_path / "clips" / "classes.json").read_text())
    assert numbers == {
        "deep": {"label": 0, "name": "deep"},
        "high": {"label": 1, "name": "high"},
    }
    page = (tmp_path / "clips" / "players.html").read_text()
    assert all(f'src="{file}"' in page for file in files)
    # the export is itself a set that opens
    options = AudioData(test=0.0, validation=0, length=1500)
    splits = AUDIO.open(str(tmp_path / "clips"), options, torch.device("cpu"))
    assert splits.info.names == ("deep", "high")


def test_only_clips_become_wav_files(tmp_path):
    images = (np.random.default_rng(0).integers(0, 255, (20, 8, 8)).astype(np.uint8), [0, 1] * 10)
    chosen = {"learner.width": 4, "data.validation": 0.1, "real.per_group": 2, "run.device": "cpu"}
    mmdd.distill(images, method="dm", per_class=1, steps=1, out=tmp_path / "set", options=chosen)
    with pytest.raises(UserError, match="this set holds no labelled clips"):
        artifact.export(tmp_path / "set", "wav", tmp_path / "clips")


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"space": "waveform"}, {"mask": True}])
def test_a_picture_of_a_whole_set(source, options, tmp_path):
    inputs, targets, info = items(source, **options)
    picture(inputs, targets, info, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as drawn:
        pixels = np.asarray(drawn.convert("L"), dtype=float)
    width, height = 1.6 + 8 * 1.7 + 0.2, 0.85 + 2 * 1.05 + 0.5
    assert pixels.shape == (round(height * 100), round(width * 100))
    # all eight clips of both classes are there
    for row in range(2):
        for column in range(8):
            top, left = 85 + row * 105 + 15, 160 + column * 170 + 10
            assert pixels[top : top + 80, left : left + 140].std() > 5


def test_the_frequency_axis_is_in_hertz(source):
    _, _, info = items(source)
    spectrum = spectrum_of(info)
    places, names = band_ticks(spectrum)
    assert names == ["250 Hz", "500 Hz", "1 kHz", "2 kHz"]
    # a tone of 1 kHz is loudest in the band under that tick
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(2000) / 8000)[None]
    band = int(spectrum(tone)[0].mean(dim=1).argmax())
    assert abs(band + 0.5 - places[2]) <= 1
