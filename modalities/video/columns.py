"""Which column of a table holds the clips, and how they are stored in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from mmdd.errors import UserError
from mmdd.modalities.tables.columns import (
    OneColumn,
    choose_with,
    given_column,
    is_binary,
    is_file,
    kinds_of,
    only_column,
)
from mmdd.modalities.video.clips import ColumnClips, OfFile, OfFrames, of_array
from mmdd.modalities.video.decode import Footage

VIDEO_FILES = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv",
    ".gif", ".webp", ".apng",
)  # fmt: skip
KINDS = ("video", "frames", "array", "picture", "bytes", "file")
"""Ways to store a clip, the surest first; ``picture`` is one animated picture."""


@dataclasses.dataclass(frozen=True)
class VideoColumn(OneColumn):
    """The chosen column and how a clip is stored in it."""

    field = "video"
    kind: str

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> ColumnClips:
        """Return the clips of one split."""
        self.require(dataset, split)
        readers: dict[str, Callable[[pa.Array], Footage]] = {
            "frames": OfFrames(root),
            "array": of_array,
        }
        feature = inner(dataset.features[self.column])[0]
        floats = self.kind == "array" and feature.dtype.startswith("float")
        dtype = np.dtype(np.float32 if floats else np.uint8)
        return ColumnClips(dataset, self.column, readers.get(self.kind, OfFile(root)), dtype)


def find_videos(dataset: datasets.Dataset, video: str | None) -> VideoColumn:
    """Choose the column of the clips.

    Parameters
    ----------
    dataset: the training split; at least one row.
    video: the name that the user gave, or None.

    Errors: UserError when the given name is unknown or unfit, when nothing fits, or several do.
    """
    kinds = kinds_of(dataset, kind_of, VIDEO_FILES)
    if video is not None:
        fit = "videos, lists of frames, or arrays [T, H, W, C]"
        kind = given_column(dataset, video, kinds, "video", many="clips", fit=fit)
        return VideoColumn(video, kind)
    found = only_column(kinds, KINDS, "video")
    if found is not None:
        return VideoColumn(*found)
    raise UserError("no column holds clips", got=dataset.column_names, hint=choose_with("video"))


def inner(feature: Any) -> tuple[Any, int]:
    """What the lists of a feature hold, and how deep it lies."""
    depth = 0
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature, depth = feature.feature, depth + 1
    return feature, depth


def kind_of(feature: Any) -> str | None:
    """Say how a column can be read as clips, one of `KINDS`, or None for not at all."""
    found, depth = inner(feature)
    if isinstance(found, datasets.Video) and depth == 0:
        return "video"
    if isinstance(found, (datasets.Image, datasets.Audio)) or is_file(found) or is_binary(found):
        return _kind_of_encoded(found, depth)
    if depth == 0 and isinstance(found, (datasets.Array3D, datasets.Array4D)):
        return "array"
    kinds = ("uint", "int", "float", "bool")
    numbers = isinstance(found, datasets.Value) and found.dtype.startswith(kinds)
    return "array" if numbers and depth in (3, 4) else None


def _kind_of_encoded(found: Any, depth: int) -> str | None:
    if isinstance(found, datasets.Audio):
        return None
    if depth == 1:
        return "frames"
    if depth == 0:
        return "picture" if isinstance(found, datasets.Image) else "bytes"
    return None
