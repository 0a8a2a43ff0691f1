"""Clips for people: 8-bit columns that other programs read, and strips of frames.

Shape suffixes: M synthetic clips, C channels, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmdd.card_header import public_name
from mmdd.files import write_atomic
from mmdd.modalities.images import show as sheets
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.shown import add_labels, class_numbers, per_class
from mmdd.modalities.video.normalise import NormaliseClips
from mmdd.modality import DataInfo

if TYPE_CHECKING:
    from PIL import Image

MOST_CLASSES, MOST_CLIPS, MOST_FRAMES = 20, 4, 16
SMALLEST, LARGEST = 40, 96
"""Pixels of a frame's side as drawn: small frames are enlarged by whole factors until the shorter
side has the first number, large ones shrunk until the longer side has the second."""


def as_bytes(inputs: Tensor, info: DataInfo) -> Array:
    """[M, C, T, H, W] learner inputs -> uint8 [M, T, H, W, C] on the CPU, 255 being the brightest.

    Sources of floats outside [0, 1] are scaled from the range measured in training.
    """
    low, high = info.normalisation.get("range", (0.0, 1.0))
    space = NormaliseClips(info.normalisation["mean"], info.normalisation["std"])
    units = (space.inverse(inputs.detach().cpu().float()) - low) / (high - low)
    pixels = units.clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 4, 1).numpy())


def to_columns(
    inputs: Tensor, targets: Tensor, info: DataInfo
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the columns and ``datasets`` features that a user reads without this package.

    Parameters
    ----------
    inputs: [M, C, T, H, W] normalised clips.
    targets: [M] class numbers, or [M, K] soft labels.

    ``frames`` is a uint8 array [T, H, W, C] (``Array4D``), ``label`` the class; soft labels stand
    in ``soft_label`` beside their largest class.
    """
    from datasets import Array4D

    clips = as_bytes(inputs, info)
    columns: dict[str, list[Any]] = {"frames": list(clips)}
    features: dict[str, Any] = {"frames": Array4D(tuple(clips.shape[1:]), "uint8")}
    add_labels(columns, features, targets, info)
    return columns, features


# -- pictures --------------------------------------------------------------------------------------


def pil_frames(clip: Array) -> list[Image.Image]:
    """Frames [T, H, W, C] uint8 as pictures; of other than 1 or 3 channels, the first 1 or 3."""
    from PIL import Image

    shown = 3 if clip.shape[-1] >= 3 else 1
    frames = np.ascontiguousarray(clip[..., :shown])
    return [Image.fromarray(frame.squeeze(-1) if shown == 1 else frame) for frame in frames]


def strip(frames: list[Image.Image], gap: int = 0) -> Image.Image:
    """One picture of all frames, side by side, `gap` white pixels between them."""
    from PIL import Image

    width, height = frames[0].size
    whole = len(frames) * (width + gap) - gap
    made = Image.new(frames[0].mode, (whole, height), "white")
    for place, frame in enumerate(frames):
        made.paste(frame, (place * (width + gap), 0))
    return made


def picture(inputs: Tensor, targets: Tensor, info: DataInfo, path: str | Path) -> None:
    """Draw the clips into a PNG: per class a row of strips of frames, without smoothing.

    Parameters
    ----------
    inputs: [M, C, T, H, W] normalised clips.
    targets: [M] class numbers, or [M, K] soft labels, whose largest class counts.
    path: the file to write; at most 20 classes of 4 clips of 16 frames are drawn, and it says so.
    """
    drawn = sheets.draw(_sheet(inputs, class_numbers(targets), info))
    write_atomic(path, lambda place: drawn.save(place, format="PNG", optimize=True))


def _sheet(inputs: Tensor, numbers: Tensor, info: DataInfo) -> sheets.Sheet:
    sizes = torch.bincount(numbers, minlength=len(info.names))
    present = torch.nonzero(sizes).flatten().tolist()
    rows = []
    for number in present[:MOST_CLASSES]:
        chosen = torch.nonzero(numbers == number).flatten()[:MOST_CLIPS]
        for place, clip in enumerate(as_bytes(inputs[chosen], info)):
            name = info.names[number] if place == 0 else ""
            # no count beside a strip: it would be read as that of its frames
            rows.append((name, 0, [_row(clip)]))
    channels, frames, height, width = inputs.shape[1:]
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    facts = (
        f"{len(numbers):,} clips of {frames} frames of {width} x {height} pixels, {kind}; "
        f"{len(present):,} classes, {per_class(sizes[present])}"
    )
    title = f"Synthetic set distilled from {public_name(info.source)}"
    notes = _left_out(len(present), int(sizes.max()), frames, channels)
    return sheets.Sheet(title, [facts, *notes], rows)


def _row(clip: Array) -> Image.Image:
    """One strip: frames evenly over the clip, each brought to a size that can be seen."""
    from PIL import Image

    places = np.linspace(0, len(clip) - 1, min(len(clip), MOST_FRAMES)).round().astype(int)
    frames = pil_frames(clip[places])
    short, long = min(frames[0].size), max(frames[0].size)
    factor = min(-(-SMALLEST // short), LARGEST // long)
    if factor > 1:
        size = (frames[0].width * factor, frames[0].height * factor)
        frames = [frame.resize(size, Image.Resampling.NEAREST) for frame in frames]
    elif long > LARGEST:
        for frame in frames:
            frame.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return strip([frame.convert("RGB") for frame in frames], gap=1)


def _left_out(classes: int, most: int, frames: int, channels: int) -> list[str]:
    """Sentences about what is not drawn."""
    said = []
    if classes > MOST_CLASSES:
        left = classes - MOST_CLASSES
        said.append(f"the first {MOST_CLASSES} classes; {left:,} more are left out")
    if most > MOST_CLIPS:
        said.append(f"the first {MOST_CLIPS} clips of each class; the rest is left out")
    if frames > MOST_FRAMES:
        said.append(f"{MOST_FRAMES} of {frames} frames")
    if channels not in (1, 3):
        said.append("the first channel" if channels == 2 else "channels 1 to 3 as RGB")
    return [f"Shown: {sentence}" for sentence in said]
