"""Which column of a table holds the clips, and how they are stored in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import datasets

from mmdd.errors import UserError
from mmdd.modalities.audio.clips import ColumnClips
from mmdd.modalities.tables.columns import (
    OneColumn,
    choose_with,
    given_column,
    is_binary,
    is_file,
    kinds_of,
    listed,
    only_column,
)

AUDIO_FILES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf")


@dataclasses.dataclass(frozen=True)
class AudioColumn(OneColumn):
    """The chosen column; `rate` is None for encoded clips, else that of its numbers."""

    field = "audio"
    rate: int | None

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> ColumnClips:
        """Return the clips of one split."""
        self.require(dataset, split)
        return ColumnClips(dataset, self.column, root, self.rate)


def find_audio(dataset: datasets.Dataset, audio: str | None, rate: int | None) -> AudioColumn:
    """Choose the audio column of a table.

    Parameters
    ----------
    dataset: the training split; at least one row.
    audio: the name that the user gave, or None. A column of numbers is taken only by name, since
        any series may be stored so.
    rate: samples per second of a column of numbers.

    Errors: UserError when the given name is unknown or unfit, when nothing fits, or several do.
    """
    kinds = kinds_of(dataset, _audio_kind, AUDIO_FILES)
    if audio is not None:
        fit = "audio, bytes, names of audio files or lists of numbers"
        kind = given_column(dataset, audio, kinds, "audio", many="audio", fit=fit)
        return AudioColumn(audio, _rate(audio, rate) if kind == "numbers" else None)
    found = only_column(kinds, ("audio", "bytes", "file"), "audio")
    if found is not None:
        return AudioColumn(found[0], None)
    numbers = [name for name in kinds if kinds[name] == "numbers"]
    hint = choose_with("audio")
    if numbers:
        hint += f" and data.array_rate=RATE, if {listed(numbers)} holds samples"
    raise UserError("no column holds audio", got=dataset.column_names, hint=hint)


def _rate(column: str, rate: int | None) -> int:
    if rate is None:
        raise UserError(
            f"column {column!r} holds numbers, which do not tell their sampling rate",
            hint="Give it, e.g. data.array_rate=16000",
        )
    return rate


def _audio_kind(feature: Any) -> str | None:
    """Say how a column can be read as clips: "audio", "bytes" or "numbers"; None for not at all."""
    if isinstance(feature, datasets.Audio):
        return "audio"
    if is_file(feature) or is_binary(feature):
        return "bytes"
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        inner = feature.feature
        floats = isinstance(inner, datasets.Value) and inner.dtype.startswith("float")
        return "numbers" if floats else None
    return None
