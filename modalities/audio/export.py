"""Clips for people: WAV files and columns that other programs read.

Shape suffixes: M synthetic items, K classes, T samples.
"""

from __future__ import annotations

import functools
import html
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdd.artifact import CARD, PARQUET, Artifact
from mmdd.card import card
from mmdd.errors import UserError
from mmdd.files import safe_names, save_tensors, write_json
from mmdd.modalities.audio.decode import soundfile
from mmdd.modalities.audio.space import in_units, spectrum_of
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.shown import add_labels
from mmdd.modality import DataInfo
from mmdd.parquet import read_parquet
from mmdd.trees import Tree

PLAYERS = "players.html"


def to_waves(inputs: Tree, info: DataInfo, seed: int = 0) -> Array:
    """Inputs of M items -> float32 [M, T] in [-1, 1].

    Waveforms are what they are; log-mel spectra are turned into a clip that has about such a
    spectrum (`LogMel.waves`, first phases from `seed`). A clip that would be cut off at full scale
    is made quieter as a whole.
    """
    values = in_units(inputs, info)[:, 0]
    spectrum = spectrum_of(info)
    if spectrum is not None:
        values = spectrum.waves(values, int(info.normalisation["samples"]), seed)
    peak = values.abs().amax(dim=1, keepdim=True).clamp_min(1.0)
    return (values / peak).numpy()


def wav(samples: Array, rate: int) -> bytes:
    """[T] in [-1, 1] -> a WAV file of 16 bits."""
    buffer = io.BytesIO()
    soundfile().write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def to_columns(
    inputs: Tree, targets: Tensor, info: DataInfo
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the columns and ``datasets`` features that a user reads without this package.

    Parameters
    ----------
    inputs: of M items.
    targets: [M] class numbers, or [M, K] soft labels.

    ``audio`` holds WAV files of 16 bits in an Audio feature, ``label`` the class; soft labels stand
    in ``soft_label`` beside their largest class.
    """
    rate = int(info.normalisation["rate"])
    clips = [{"bytes": wav(wave, rate), "path": None} for wave in to_waves(inputs, info)]
    columns: dict[str, list[Any]] = {"audio": clips}
    features: dict[str, Any] = {"audio": _encoded_audio()(sampling_rate=rate)}
    add_labels(columns, features, targets, info)
    return columns, features


@functools.cache
def _encoded_audio() -> type[Any]:
    """``datasets.Audio`` for clips that are encoded already.

    The library's own asks for torchcodec even where there is nothing to encode. In a file it is
    written as a plain Audio feature.
    """
    import datasets

    class EncodedAudio(datasets.Audio):
        def encode_example(self, value: Any) -> dict[str, Any]:
            return {"bytes": value["bytes"], "path": value["path"]}

    return EncodedAudio


# -- WAV files by class ----------------------------------------------------------------------------


def to_wav(found: Artifact, folder: Path, made: Path) -> None:
    """Write one WAV file per item into a folder per class, and a page that plays them."""
    import datasets

    table = read_parquet(folder / PARQUET)
    audio, label = _column(table, datasets.Audio), _column(table, datasets.ClassLabel)
    table = table.cast_column(audio, datasets.Audio(decode=False))
    names = table.features[label].names
    folders, counts, order = safe_names(names), [0] * len(names), []
    for item in table:
        code = item[label]
        counts[code] += 1
        order.append((code, f"train/{folders[code]}/{counts[code]:05}.wav"))
        place = made / order[-1][1]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(item[audio]["bytes"])
    numbers = {folders[code]: {"label": code, "name": name} for code, name in enumerate(names)}
    write_json(made / "classes.json", numbers)
    if "soft_label" in table.column_names:
        soft = {"soft_labels": torch.tensor(table["soft_label"][:])}
        listed = json.dumps([path for _, path in order])
        save_tensors(made / "soft_labels.safetensors", soft, {"files": listed})
    (made / PLAYERS).write_text(_players(names, order), encoding="utf8")
    # says where the items are, since a class may be called "test"
    files = {PARQUET: found.manifest["files"][PARQUET]}
    shown = {**found.manifest, "files": files, "data": {"path": "train/**"}}
    (made / CARD).write_bytes(card(shown).encode(errors="backslashreplace"))


def _column(table: Any, kind: type[Any]) -> str:
    found = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    if not found:
        raise UserError(
            "this set holds no labelled clips",
            got={name: type(feature).__name__ for name, feature in table.features.items()},
            expected=f"a column of type {kind.__name__}",
            hint="Export it --to parquet or safetensors.",
        )
    return str(found[0])


def _players(names: list[str], order: list[tuple[int, str]]) -> str:
    """A page with a player for every file, class by class."""
    rows = []
    for code in sorted({code for code, _ in order}):
        players = "".join(
            f'<audio controls preload="none" src="{html.escape(path)}"></audio>'
            for own, path in order
            if own == code
        )
        rows.append(f"<h2>{html.escape(names[code])}</h2><p>{players}</p>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Synthetic clips</title>'
        "<style>body{font:15px sans-serif;margin:2em;max-width:70em}h2{margin:1em 0 .3em}"
        "audio{height:2em;margin:.2em}</style><h1>Synthetic clips by class</h1>"
        + "".join(rows)
        + "</html>\n"
    )
