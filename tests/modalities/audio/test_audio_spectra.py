"""Log-mel spectra against their formula, and the way back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmdd.modalities.audio.spectra import LogMel, usual_mels, usual_window

SPECTRUM = LogMel(8000, 256, 128, 32, 1e-5)


def plain_log_mel(wave, rate, n_fft, hop, mels, floor):
    """[T] float64 -> [M, F], one frame and one band after the other."""
    padded = np.pad(wave, n_fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    to_mel = [2595 * math.log10(1 + hertz / 700) for hertz in (0.0, rate / 2)]
    edges = [700 * (10 ** (mel / 2595) - 1) for mel in np.linspace(*to_mel, mels + 2)]
    hertz = np.arange(n_fft // 2 + 1) * rate / n_fft
    columns = []
    for frame in range(len(wave) // hop + 1):
        power = np.abs(np.fft.rfft(padded[frame * hop : frame * hop + n_fft] * window)) ** 2
        column = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            rise, fall = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
            column.append((power * np.clip(np.minimum(rise, fall), 0, None)).sum())
        columns.append(column)
    return np.log(np.maximum(np.array(columns).T, floor))


def test_the_spectrum_is_what_the_formula_says(tone):
    wave = tone(700, 1500)
    wave[600:] = 0
    wanted = plain_log_mel(wave.astype(np.float64), 8000, 256, 128, 32, 1e-5)
    got = SPECTRUM(torch.from_numpy(wave)[None])[0]
    assert got.shape == (32, SPECTRUM.frames(1500)) == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=2e-3)
    assert float(got.min()) == pytest.approx(math.log(1e-5))


def test_centres_are_where_the_filters_peak():
    hertz = torch.linspace(0, 4000, 129)
    # a filter peaks within one step of the grid around its centre
    peaks = hertz[SPECTRUM.filters.argmax(dim=0)]
    assert float((peaks - SPECTRUM.centres).abs().max()) <= 4000 / 128


def test_windows_and_bands_follow_the_rate():
    rates = (8000, 16000, 22050, 44100, 48000)
    assert [usual_window(rate) for rate in rates] == [256, 512, 512, 1024, 2048]
    assert [usual_mels(rate) for rate in (8000, 16000, 44100)] == [32, 40, 64]


def test_a_tone_can_be_heard_again(tone):
    waves = torch.from_numpy(np.stack([tone(pitch, 4000) for pitch in (400, 1800)]))
    made = SPECTRUM.waves(SPECTRUM(waves), 4000, seed=3)
    assert made.shape == (2, 4000)
    for wave, pitch in zip(made, (400, 1800), strict=True):
        peak = float(torch.fft.rfft(wave).abs().argmax()) * 8000 / 4000
        assert abs(peak - pitch) < 40
    # the spectrum of what was made is near the one it was made from, where there is sound
    loud = SPECTRUM(waves) > 0
    assert float((SPECTRUM(made) - SPECTRUM(waves))[loud].abs().mean()) < 1.0


def test_silence_stays_silent_and_the_phases_are_the_seeds():
    floor = torch.full((1, 32, 15), math.log(1e-5))
    assert float(SPECTRUM.waves(floor, 1900).abs().max()) < 1e-6
    torch.manual_seed(1)
    noise = torch.randn(1, 32, 15)
    state = torch.get_rng_state()
    first, again, other = (SPECTRUM.waves(noise, 1900, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
