"""Generated clips: tones whose pitch is their class."""

from __future__ import annotations

import io

import numpy as np
import pytest

RATE = 8000


def tone(pitch, samples, rate=RATE, seed=0):
    """A sine of random phase and a little noise, float32."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi)
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate + phase)
    return (wave + 0.01 * rng.standard_normal(samples)).astype(np.float32)


def tones(count, rate=RATE, low=1000, high=2000):
    """`count` clips of each of the classes 300 and 1500 Hz, and their labels."""
    rng = np.random.default_rng(7)
    pitches = {"deep": 300, "high": 1500}
    clips, labels = [], []
    for place in range(count):
        for name, pitch in pitches.items():
            samples = int(rng.integers(low, high))
            clips.append(tone(pitch, samples, rate, seed=len(clips) + place))
            labels.append(name)
    return clips, labels


@pytest.fixture(name="tone")
def tone_maker():
    return tone


@pytest.fixture(name="tones")
def tones_maker():
    return tones


@pytest.fixture
def soundfile():
    return pytest.importorskip("soundfile", reason="audio files are read by soundfile")


@pytest.fixture
def write(soundfile):
    """Write [t] or [t, c] to a file; floats are kept as they are."""

    def done(path, samples, rate=RATE, subtype="FLOAT"):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, subtype=subtype)
        return path

    return done


@pytest.fixture
def encoded(soundfile):
    """Bytes of a WAV file."""

    def done(samples, rate=RATE):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
        return buffer.getvalue()

    return done


@pytest.fixture
def folder(tmp_path, write):
    """An audiofolder of two splits: 6 training and 2 test clips of each class."""
    for split, count in (("train", 6), ("test", 2)):
        clips, labels = tones(count)
        for place, (clip, label) in enumerate(zip(clips, labels, strict=True)):
            write(tmp_path / "set" / split / label / f"{place:02}.wav", clip)
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path / "cache"))
