"""A finished set as files that other programs open: GIFs, frames, strips, MP4.

Every form has one folder per class, ``train/CLASS/00001…``, which readers number by sorted name;
``classes.json`` has the set's own numbers.

Shape suffixes: M clips, T frames, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdd import files
from mmdd.artifact import PARQUET
from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.video.show import pil_frames, strip
from mmdd.parquet import read_parquet

MILLISECONDS = 80
"""How long a frame is shown: a set does not store the rate of its frames."""

Write = Callable[[Array, Path], None]
"""Writes one clip [T, H, W, C] uint8 to a path without suffix."""


def to_gif(found: Any, folder: Path, made: Path) -> None:
    """Write one animated GIF per clip into a folder per class; colours are reduced to 256."""
    _write_classes(folder, made, ".gif", write_gif)


def to_frames(found: Any, folder: Path, made: Path) -> None:
    """Write one folder of PNG files per clip into a folder per class; no pixel is lost."""
    _write_classes(folder, made, "", write_frames)


def to_strips(found: Any, folder: Path, made: Path) -> None:
    """Write one PNG per clip, its frames side by side, into a folder per class."""
    _write_classes(folder, made, ".png", write_strip)


def to_mp4(found: Any, folder: Path, made: Path) -> None:
    """Write one MP4 (H.264) per clip into a folder per class.

    Errors: UserError where PyAV is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise UserError(
            "MP4 files are written by PyAV, which is not installed",
            hint="pip install 'mmdd[video]', or export --to gif or frames.",
        )
    _write_classes(folder, made, ".mp4", write_mp4)


def write_gif(clip: Array, path: Path) -> None:
    """An endless loop; a frame that repeats the one before is merged with it, and shown longer."""
    first, *rest = pil_frames(clip)
    first.save(
        path,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=MILLISECONDS,
        loop=0,
        optimize=False,
        disposal=2,
    )


def write_frames(clip: Array, path: Path) -> None:
    """``0001.png`` and so on."""
    path.mkdir()
    for number, frame in enumerate(pil_frames(clip), start=1):
        frame.save(path / f"{number:04}.png")


def write_strip(clip: Array, path: Path) -> None:
    """Frames side by side, nothing between them."""
    strip(pil_frames(clip)).save(path, format="PNG")


def write_mp4(clip: Array, path: Path) -> None:
    """H.264; sides are made even, as the format asks, by repeating the last row or column."""
    import av

    frames = np.stack([np.asarray(frame.convert("RGB")) for frame in pil_frames(clip)])
    odd = [side % 2 for side in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), (0, odd[0]), (0, odd[1]), (0, 0)], mode="edge")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(1000 / MILLISECONDS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _write_classes(folder: Path, made: Path, suffix: str, write: Write) -> None:
    """Write all clips of a set's parquet file, and the numbers of the classes."""
    table = read_parquet(folder / PARQUET)
    if "frames" not in table.column_names or "label" not in table.column_names:
        raise UserError(
            "this set holds no labelled clips",
            got=table.column_names,
            expected="columns frames and label",
            hint="Export it --to parquet or safetensors.",
        )
    names = table.features["label"].names
    folders, counts = files.safe_names(names), [0] * len(names)
    order = []
    for item in table.with_format("numpy"):
        code = int(item["label"])
        counts[code] += 1
        path = made / "train" / folders[code] / f"{counts[code]:05}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(np.asarray(item["frames"], np.uint8), path)
        order.append(path.relative_to(made).as_posix())
    numbers = {folders[code]: {"label": code, "name": name} for code, name in enumerate(names)}
    files.write_json(made / "classes.json", numbers)
    if "soft_label" in table.column_names:
        soft = {"soft_labels": torch.tensor(np.stack(table.with_format("numpy")["soft_label"][:]))}
        files.save_tensors(made / "soft_labels.safetensors", soft, {"files": json.dumps(order)})
