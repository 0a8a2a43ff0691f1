"""The space that inputs lie in, read back from what a set's facts say of it."""

from __future__ import annotations

from torch import Tensor

from mmdd.modalities.audio.normalise import Normalisation
from mmdd.modalities.audio.spectra import LogMel
from mmdd.modality import DataInfo
from mmdd.trees import Tree

LOG_MEL, WAVEFORM = "log-mel", "waveform"


def audio_of(inputs: Tree) -> tuple[Tensor, Tensor | None]:
    """The numbers [n, 1, ...] of inputs, and their mask [n, F or T] where there is one."""
    if isinstance(inputs, dict):
        return inputs["audio"], inputs["mask"]
    return inputs, None


def normalisation_of(info: DataInfo) -> Normalisation:
    """How the inputs were normalised."""
    facts = info.normalisation
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    return Normalisation(mean, std, *facts["range"], *facts["bounds"])


def spectrum_of(info: DataInfo) -> LogMel | None:
    """How the spectra were made; None for waveforms."""
    facts = info.normalisation
    if facts["space"] != LOG_MEL:
        return None
    return LogMel(*(facts[name] for name in ("rate", "n_fft", "hop", "mels", "floor")))


def in_units(inputs: Tree, info: DataInfo) -> Tensor:
    """[n, 1, ...] inputs -> waveforms, or log-mel spectra, float32 on the CPU.

    What a mask hides becomes silence.
    """
    values, mask = audio_of(inputs)
    made = normalisation_of(info).undo(values)
    if mask is None:
        return made
    spectrum = spectrum_of(info)
    silence = 0.0 if spectrum is None else float(info.normalisation["range"][0])
    shown = mask.cpu().view(len(mask), *(1,) * (made.ndim - 2), -1)
    return made.where(shown, made.new_tensor(silence))
