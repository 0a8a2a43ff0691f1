"""Folders of clips that are themselves folders of frames: ``[split/]class/clip/frame.png``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mmdd.modalities.images.columns import IMAGE_FILES
from mmdd.modalities.tables.items import RawSplit
from mmdd.modalities.tables.labels import labels_of
from mmdd.modalities.tables.words import Words
from mmdd.modalities.video.clips import Clips, FileClips

SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
Found = dict[str, dict[tuple[str, str], list[Path]]]
"""Frames by split, and by (class, clip)."""


def frame_folders(name: str, words: Words) -> Mapping[str, RawSplit[Clips]] | None:
    """The splits of a folder whose clips are folders of frames; None for anything else.

    Frames follow each other in the order of the numbers in their names.
    """
    root = Path(name).expanduser()
    if not name or not root.is_dir():
        return None
    found = _clips_in(root)
    return None if found is None else {key: _split(clips, words) for key, clips in found.items()}


def _clips_in(root: Path) -> Found | None:
    """None as soon as one picture lies at another depth."""
    found: Found = {}
    for path in root.rglob("*"):
        if path.suffix.lower() not in IMAGE_FILES:
            continue
        parts = path.relative_to(root).parts
        has_split = parts[0].lower() in SPLITS
        if len(parts) != 3 + has_split:
            return None
        split = SPLITS[parts[0].lower()] if has_split else "train"
        found.setdefault(split, {}).setdefault((parts[-3], parts[-2]), []).append(path)
    return found or None


def _split(clips: dict[tuple[str, str], list[Path]], words: Words) -> RawSplit[Clips]:
    order = sorted(clips, key=lambda key: (key[0], _by_number(key[1])))
    folders = [[str(path) for path in sorted(clips[key], key=_path_key)] for key in order]
    return RawSplit(FileClips(folders), labels_of([key[0] for key in order], words))


def _path_key(path: Path) -> list[tuple[int, str]]:
    return _by_number(path.name)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts frame10 behind frame9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]
