"""Log-mel spectra of waveforms, and the way back to something that can be heard.

Shape suffixes: n clips, T samples, M mel bands, F frames.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.audio.decode import Framing, transforms
from mmdd.modalities.audio.options import AudioData
from mmdd.rng import derive, lent_generators

WINDOW_SECONDS = 0.032
MELS_UP_TO = ((8000, 32), (16000, 40))
MELS_ABOVE = 64
GRIFFIN_LIM_STEPS = 64


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Log of the power in M mel bands: ``log(max(mel(|STFT|^2), floor))``, natural logarithm.

    Hann windows of `n_fft` samples every `hop`, centred and reflected at the ends
    (``torchaudio.transforms.MelSpectrogram``, HTK's mel scale from 0 to rate / 2).
    """

    rate: int
    n_fft: int
    hop: int
    mels: int
    floor: float

    def frames(self, samples: int) -> int:
        """F of clips of this many samples."""
        return samples // self.hop + 1

    @torch.no_grad()
    def __call__(self, waves: Tensor) -> Tensor:
        """[n, T] -> [n, M, F] on the CPU, so that every machine caches the same."""
        return self._mel(waves).clamp_(min=self.floor).log_()

    @functools.cached_property
    def _mel(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # empty bands are refused in one line of our own
            return transforms().MelSpectrogram(
                self.rate, self.n_fft, hop_length=self.hop, n_mels=self.mels
            )

    @property
    def filters(self) -> Tensor:
        """[n_fft / 2 + 1, M] weights of the bands."""
        filters: Tensor = self._mel.mel_scale.fb
        return filters

    @property
    def centres(self) -> Tensor:
        """[M] middle frequency of every band, in Hz."""
        highest = 2595 * math.log10(1 + self.rate / 2 / 700)
        mels = torch.linspace(0, highest, self.mels + 2, dtype=torch.float64)[1:-1]
        return 700 * (10 ** (mels / 2595) - 1)

    @torch.no_grad()
    def waves(self, spectra: Tensor, samples: int, seed: int = 0) -> Tensor:
        """[n, M, F] -> [n, `samples`]: least squares for the bands, Griffin-Lim for the phases.

        Griffin & Lim 1984; the first phases are drawn from `seed`. What the logarithm and the
        bands lost is not known, so this is a clip with such a spectrum, not the clip.
        """
        power = spectra.detach().cpu().float().exp()
        power = torch.where(power <= self.floor * 1.001, 0.0, power)
        inverse = transforms().InverseMelScale(self.n_fft // 2 + 1, self.mels, self.rate)
        phases = transforms().GriffinLim(
            self.n_fft, GRIFFIN_LIM_STEPS, hop_length=self.hop, power=2.0, length=samples
        )
        with lent_generators(derive(seed, "griffin-lim"), torch.device("cpu")):
            made: Tensor = phases(inverse(power))
        return made


def usual_window(rate: int) -> int:
    """The power of two nearest 32 ms."""
    return int(2 ** max(4, round(math.log2(WINDOW_SECONDS * rate))))


def usual_mels(rate: int) -> int:
    """32 up to 8 kHz, 40 up to 16 kHz, 64 above."""
    return next((mels for limit, mels in MELS_UP_TO if rate <= limit), MELS_ABOVE)


def choose_spectrum(options: AudioData, framing: Framing) -> LogMel:
    """Fill in what the options leave open.

    Errors: UserError for clips shorter than a window, windows with gaps between them, and bands
    that no frequency falls into.
    """
    rate, samples = framing.rate, framing.samples
    n_fft = options.n_fft or usual_window(rate)
    hop = options.hop or max(1, n_fft // 2)
    if samples < n_fft:
        raise UserError(
            f"clips of {samples} samples are too short for windows of data.n_fft={n_fft}",
            expected=f"n_fft of at most {samples}",
            hint="Set data.n_fft lower or data.length higher, or use data.space=waveform",
        )
    if hop > n_fft:
        raise UserError(
            "data.hop leaves samples between the windows out",
            got=hop,
            expected=f"at most data.n_fft={n_fft}",
        )
    made = LogMel(rate, n_fft, hop, options.mels or usual_mels(rate), options.floor)
    empty = int((made.filters.sum(dim=0) == 0).sum())
    if empty:
        raise UserError(
            f"{empty} of {made.mels} mel bands are narrower than the frequencies of a window of "
            f"data.n_fft={n_fft} and would stay empty",
            hint="Set data.mels lower or data.n_fft higher",
        )
    return made
