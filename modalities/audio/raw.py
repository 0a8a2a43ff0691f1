"""How clips are found in tables and taken from Python: what `modalities.tables` asks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.audio.clips import ArrayClips, Clip, Clips
from mmdd.modalities.audio.columns import AudioColumn, find_audio
from mmdd.modalities.audio.decode import checked, to_samples
from mmdd.modalities.audio.folders import open_folder
from mmdd.modalities.audio.options import AudioData
from mmdd.modalities.tables.arrays import to_numpy
from mmdd.modalities.tables.items import RawSplit, Reader
from mmdd.modalities.tables.words import Words

WORDS = Words(
    one="clip",
    many="clips",
    source="a name or path, e.g. a folder train/<class>/*.wav",
    folder="parquet files, train/<class>/*.wav",
    unlabelled="A folder of clips needs one folder per class, and two of these or more",
)


class RawAudio(Reader[Clips]):
    """Clips of any rate and length, in columns, files and Python objects."""

    words = WORDS
    builders: Mapping[str, str] = {".zip": "audiofolder"}
    workers = 0  # a clip costs more to send to another process than to take

    def __init__(self, options: AudioData) -> None:
        self.audio, self.rate = options.audio, options.array_rate or options.rate
        self.field = options.audio or "audio"
        self.train, self.label = options.train_split, options.label

    def known(self, name: str) -> Mapping[str, RawSplit[Clips]] | None:
        """Local folders of audio files; see `open_folder`."""
        folder = Path(name).expanduser()
        if not name or not folder.is_dir():
            return None
        return open_folder(folder, self.train, self.label, WORDS)

    def find(self, dataset: datasets.Dataset) -> AudioColumn:
        """Choose the audio column; see `find_audio`."""
        return find_audio(dataset, self.audio, self.rate)

    def of_values(self, values: Any) -> ArrayClips:
        """Take N clips: [N, T] or [N, C, T], or a list of what `convert` reads."""
        if not isinstance(values, (list, tuple)):
            values = list(to_numpy(values))
        return self.collect([self._numbered(place, value) for place, value in enumerate(values)])

    def _numbered(self, place: int, value: Any) -> Clip:
        try:
            return self.convert(value)
        except UserError as error:
            raise UserError(f"clip {place}: {error}") from None

    def convert(self, item: Any) -> Clip:
        """Take one clip: an array or tensor, ``{"array", "sampling_rate"}`` or (array, rate).

        Errors: UserError for anything else, for an empty clip and samples that are not finite.
        """
        rate = None
        if isinstance(item, Mapping):
            item, rate = item.get("array"), item.get("sampling_rate")
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], int):
            item, rate = item
        if not isinstance(item, (np.ndarray, torch.Tensor, list)):
            raise UserError("this is no clip", got=type(item), expected="an array or a tensor")
        try:
            # copied: a data set may reuse its buffer
            samples = checked(to_samples(np.array(to_numpy(item))))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from None
        return Clip(samples, None if rate is None else int(rate))

    def collect(self, items: list[Clip]) -> ArrayClips:
        """Join what `convert` returned."""
        if self.rate is None and any(clip.rate is None for clip in items):
            raise UserError(
                "these clips do not tell their sampling rate",
                hint="Give it, e.g. data.array_rate=16000, or hand over (array, rate) pairs",
            )
        return ArrayClips(items, self.rate or 0)
