"""Which column of a table holds the clips, and how they are stored in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import datasets

from mmdd.errors import UserError
from mmdd.modalities.audio.clips import ColumnClips
from mmdd.modalities.tables.columns import (
    ambiguous,
    choose_with,
    is_binary,
    is_file,
    is_text,
    listed,
    require_column,
    stored,
)

AUDIO_FILES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf")
FIRST_ROWS = 20  # looked at to tell a column of file names


@dataclasses.dataclass(frozen=True)
class AudioColumn:
    """The chosen column; `rate` is None for encoded clips, else that of its numbers."""

    audio: str
    rate: int | None

    @property
    def names(self) -> Mapping[str, str]:
        """The column under the field's name."""
        return {"audio": self.audio}

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> ColumnClips:
        """Return the clips of one split."""
        require_column(self.audio, dataset.column_names, f"audio column in split {split!r}")
        return ColumnClips(dataset, self.audio, root, self.rate)


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
    kinds = {name: audio_kind(dataset, name) for name in dataset.column_names}
    if audio is not None:
        require_column(audio, dataset.column_names, "audio column")
        if kinds[audio] is None:
            raise UserError(
                f"column {audio!r} holds no audio",
                got=str(dataset.features[audio]),
                expected=listed(name for name in kinds if kinds[name])
                or "audio, bytes, names of audio files or lists of numbers",
            )
        return AudioColumn(audio, _rate(audio, rate) if kinds[audio] == "numbers" else None)
    for kind in ("audio", "bytes", "file"):
        found = [name for name in kinds if kinds[name] == kind]
        if len(found) > 1:
            raise ambiguous("audio", found)
        if found:
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


def audio_kind(dataset: datasets.Dataset, name: str) -> str | None:
    """Say how a column can be read as clips: "audio", "bytes", "file", "numbers", or None."""
    feature: Any = dataset.features[name]
    if isinstance(feature, datasets.Audio):
        return "audio"
    if is_file(feature) or is_binary(feature):
        return "bytes"
    if is_text(feature):
        first = stored(dataset.take(min(FIRST_ROWS, len(dataset))), name).to_pylist()
        named = (isinstance(v, str) and v.lower().endswith(AUDIO_FILES) for v in first)
        return "file" if all(named) else None
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        inner = feature.feature
        floats = isinstance(inner, datasets.Value) and inner.dtype.startswith("float")
        return "numbers" if floats else None
    return None
