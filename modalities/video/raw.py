"""How clips are found in tables and folders and taken from Python: what `modalities.tables` asks.

Shape suffixes: N clips, T frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.images.in_memory import to_array
from mmdd.modalities.tables.arrays import Array, require_one_type, to_numpy
from mmdd.modalities.tables.items import RawSplit, Reader
from mmdd.modalities.tables.words import Words
from mmdd.modalities.video.arrays import frames_first
from mmdd.modalities.video.clips import ArrayClips, Clips
from mmdd.modalities.video.columns import VideoColumn, find_videos
from mmdd.modalities.video.folders import frame_folders
from mmdd.modalities.video.options import VideoData

WORDS = Words(
    one="clip",
    many="clips",
    source="a name or path, e.g. a folder of parquet files",
    folder="parquet files, train/<class>/*.mp4 or .gif, train/<class>/<clip>/*.png",
    unlabelled="A folder of clips needs one folder per class, and two of these or more",
)


class RawClips(Reader[Clips]):
    """Clips of any length, size and mode, in columns, files and Python objects."""

    words = WORDS
    builders: Mapping[str, str] = {".zip": "videofolder"}

    def __init__(self, options: VideoData) -> None:
        self.video = options.video
        self.field = options.video or "video"

    def known(self, name: str) -> Mapping[str, RawSplit[Clips]] | None:
        """A folder of folders of frames; see `frame_folders`."""
        return frame_folders(name, self.words)

    def find(self, dataset: datasets.Dataset) -> VideoColumn:
        """Choose the column of the clips; see `find_videos`."""
        return find_videos(dataset, self.video)

    def of_values(self, values: Any) -> Clips:
        """[N, T, H, W, C] or [N, T, H, W] numbers, or a list of clips; see `to_frames`."""
        if isinstance(values, list):
            return self.collect([to_frames(clip) for clip in values])
        array = to_numpy(values)
        if array.ndim not in (4, 5):
            raise UserError(
                "these are no clips", got=array.shape, expected="[N, T, H, W, C] or [N, T, H, W]"
            )
        if not len(array):
            raise UserError("there are no clips", got=array.shape)
        return ArrayClips([frames_first(clip) for clip in array])

    def convert(self, item: Any) -> Array:
        """One clip as [T, C, H, W]; see `to_frames`."""
        return to_frames(item)

    def collect(self, items: list[Any]) -> Clips:
        """Join what `convert` returned, all bytes or all floats."""
        require_one_type(items, "clips")
        return ArrayClips(items)


def to_frames(clip: Any) -> Array:
    """Turn one clip (a tensor or array [T, H, W, C] or the like, a list of frames) to [T, C, H, W].

    Errors: UserError for anything else.
    """
    if isinstance(clip, (torch.Tensor, np.ndarray)):
        return np.array(frames_first(to_numpy(clip)), order="C")  # a data set may reuse its buffer
    if isinstance(clip, (list, tuple)) and clip:
        frames = [to_array(frame) for frame in clip]
        if len({frame.shape for frame in frames}) > 1:
            shapes = sorted({frame.shape for frame in frames})
            raise UserError("the frames of a clip differ in shape", got=shapes)
        return np.stack(frames)
    raise UserError(
        "this is no clip",
        got=type(clip),
        expected="a tensor or array [T, H, W, C], or a list of frames",
    )
