"""PNG files by class, for programs that read folders."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from mmdd import files
from mmdd.artifact import CARD, PARQUET, Artifact, card_bytes
from mmdd.errors import UserError
from mmdd.parquet import read_parquet


def to_imagefolder(found: Artifact, folder: Path, made: Path) -> None:
    """Write one PNG per item into a folder per class."""
    table = read_parquet(folder / PARQUET)
    image, label = _column(table, "Image"), _column(table, "ClassLabel")
    names = table.features[label].names
    folders, counts = files.safe_names(names), [0] * len(names)
    order = []
    for item in table.with_format(None):
        code = item[label]
        counts[code] += 1
        order.append(f"train/{folders[code]}/{counts[code]:05}.png")
        (made / order[-1]).parent.mkdir(parents=True, exist_ok=True)
        (made / order[-1]).write_bytes(_as_png(item[image]["bytes"]))
    numbers = {folders[code]: {"label": code, "name": name} for code, name in enumerate(names)}
    files.write_json(made / "classes.json", numbers)
    if "soft_label" in table.column_names:
        soft = {"soft_labels": torch.tensor(table["soft_label"][:])}
        files.save_tensors(made / "soft_labels.safetensors", soft, {"files": json.dumps(order)})
    # says where the items are, since a class may be called "test"
    listed = {PARQUET: found.manifest["files"][PARQUET]}
    shown = {**found.manifest, "files": listed, "data": {"path": "train/**"}}
    (made / CARD).write_bytes(card_bytes(shown))


def _column(table: Any, kind: str) -> str:
    found = {name: type(feature).__name__ for name, feature in table.features.items()}
    if kind not in found.values():
        raise UserError(
            "this set holds no labelled images",
            got=found,
            expected=f"a column of type {kind}",
            hint="Export it --to parquet or safetensors.",
        )
    return next(name for name, each in found.items() if each == kind)


def _as_png(encoded: bytes) -> bytes:
    if encoded.startswith(b"\x89PNG"):
        return encoded
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).save(buffer, format="PNG")
    return buffer.getvalue()
