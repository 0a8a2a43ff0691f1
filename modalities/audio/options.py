"""What a recipe may say about audio. Imports nothing heavy: recipes are checked with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mmdd.modalities.audio.part_options import AUGMENTATIONS, ENCODERS
from mmdd.modalities.nets.options import Positive
from mmdd.modalities.tables.options import GIB, Store, TableData, Tolerated, Workers

Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FEWEST_SAMPLES = 16


class AudioData(TableData):
    """The ``data:`` section of a recipe whose modality is audio."""

    source: str | None = Field(
        None,
        description="a name on the Hugging Face Hub, or a local folder (train/<class>/*.wav) or "
        "file. A local path wins over a Hub name",
    )
    audio: str | None = Field(None, description="audio column; found when there is only one")
    space: Literal["log-mel", "waveform"] = Field(
        "log-mel",
        description="what is distilled and learned from: 'log-mel' spectrograms [1, mels, frames], "
        "or the 'waveform' [1, samples]",
    )
    rate: Positive | None = Field(
        None, description="samples per second; by default the most common rate of training"
    )
    array_rate: Positive | None = Field(
        None,
        description="samples per second of arrays that do not say theirs (numpy, torch, columns "
        "of numbers); by default `rate`",
    )
    length: Positive | Above | None = Field(
        None,
        description="seconds (1.0) or samples (8000) of every clip; by default what 95 % of the "
        "training clips fit into. Shorter ones are filled up with silence at the end",
    )
    crop: Literal["centre", "start"] = Field(
        "centre", description="which part of a longer clip is kept"
    )
    trim: Above | None = Field(
        None,
        description="silence at both ends that is cut off, in dB below the clip's peak, e.g. 40",
    )
    mask: bool = Field(
        False,
        description="inputs are a dict of 'audio' and 'mask', true where the clip sounds; what "
        "fills a clip up is then hidden from every net",
    )
    n_fft: Positive | None = Field(
        None, description="samples of a window; by default the power of two nearest 32 ms"
    )
    hop: Positive | None = Field(
        None, description="samples between windows; by default half of `n_fft`"
    )
    mels: Positive | None = Field(
        None, description="mel bands; by default 32 up to 8 kHz, 40 up to 16 kHz, 64 above"
    )
    floor: float = Field(
        1e-5, gt=0, allow_inf_nan=False, description="lowest mel power: log(max(power, floor))"
    )
    normalise: Literal["bands", "global"] = Field(
        "bands", description="mean and std per mel band, or one of each; fitted on training"
    )
    max_corrupt: Tolerated = Field(
        0.01, description="unreadable clips to tolerate: a fraction (a float) or a number (an int)"
    )
    store: Store = Field(
        "auto",
        description="'device': prepared once, kept on the device; 'disk': decoded at every read "
        "by worker processes; 'auto': by `max_resident_bytes`",
    )
    max_resident_bytes: int = Field(
        4 * GIB, ge=0, description="largest prepared set, in bytes, that 'auto' keeps on the device"
    )
    workers: Workers = None
    cache: bool = Field(True, description="keep computed log-mel spectra for the next run")

    @field_validator("length", mode="before")
    @classmethod
    def _clear_length(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < FEWEST_SAMPLES:
            raise ValueError(
                f"a whole number counts samples, at least {FEWEST_SAMPLES}; write {value}.0 for "
                "seconds"
            )
        return value


DATA = AudioData
"""The model of the ``data:`` section, under the name that every modality gives it."""

HINTS = {"encoders": "crnn,mlp", "export": "wav my_clips"}
"""Words for the commands that are proposed after a run."""

__all__ = ["AUGMENTATIONS", "DATA", "ENCODERS", "HINTS", "AudioData"]
