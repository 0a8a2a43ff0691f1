"""Folders of audio files: ``<split>/<class>/*.wav``, ``<class>/*.wav``, or files and a table.

The layouts are those of ``datasets``' audiofolder, whose own builder asks for torchcodec.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from mmdd.errors import UserError
from mmdd.modalities.audio.clips import Clips, ColumnClips
from mmdd.modalities.audio.columns import AUDIO_FILES
from mmdd.modalities.tables.columns import listed, one_line
from mmdd.modalities.tables.items import RawSplit
from mmdd.modalities.tables.labels import CLASSES, Labels, labels_of
from mmdd.modalities.tables.words import Words

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
TABLES = (".parquet", ".arrow")
METADATA = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"


def open_folder(
    folder: Path, train: str, label: str | None, words: Words
) -> Mapping[str, RawSplit[Clips]] | None:
    """Open a folder of audio files; None for one that holds none, or tables beside them.

    Parameters
    ----------
    folder: with one folder per split, or one split, which is then called `train`.
    train: what the user calls the training split.
    label: the label column of a metadata table, or None to find it.

    Errors: UserError when files stand in no class and no table tells their classes.
    """
    found = sorted(_files(folder))
    names = {name.rsplit("/", 1)[-1] for name in found}
    if any(name.endswith(TABLES) for name in names):
        return None
    clips = [name for name in found if name.lower().endswith(AUDIO_FILES)]
    if not clips:
        return None
    tops = {name.split("/", 1)[0] for name in clips}
    if not tops <= SPLITS.keys() or any("/" not in name for name in clips):
        return {train: _open(folder, clips, label, words)}
    splits: dict[str, list[str]] = {}
    for name in clips:
        top, inside = name.split("/", 1)
        splits.setdefault(top, []).append(inside)
    canonical = [SPLITS[top] for top in splits]
    if len(set(canonical)) < len(canonical):
        raise UserError(
            f"folders of {str(folder)!r} name the same split twice", got=listed(sorted(splits))
        )
    return {
        SPLITS[top]: _open(folder / top, inside, label, words) for top, inside in splits.items()
    }


def _files(folder: Path) -> Iterator[str]:
    """Names of all files below `folder`, with forward slashes; hidden ones are left out."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        inside = Path(parent).relative_to(folder)
        for name in files:
            if not name.startswith("."):
                yield (inside / name).as_posix()


def _open(folder: Path, clips: list[str], label: str | None, words: Words) -> RawSplit[Clips]:
    """Open one split: a metadata table, or a folder per class."""
    for name in METADATA:
        if (folder / name).is_file():
            return _of_table(folder, folder / name, label, words)
    loose = [name for name in clips if "/" not in name]
    if loose:
        raise UserError(
            f"files of {str(folder)!r} stand in no class, e.g. {loose[0]!r}",
            expected=f"one folder per class, or a table {METADATA[0]} with the columns "
            f"{FILE_NAME} and label",
        )
    classes = [name.split("/")[-2] for name in clips]
    return RawSplit(_clips(folder, clips), labels_of(classes, words))


def _of_table(folder: Path, table: Path, label: str | None, words: Words) -> RawSplit[Clips]:
    read = pyarrow.csv.read_csv if table.suffix == ".csv" else pyarrow.json.read_json
    try:
        rows = datasets.Dataset(datasets.table.InMemoryTable(read(table)))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{str(table)!r} cannot be read: {one_line(error)}") from error
    if FILE_NAME not in rows.column_names or not len(rows):
        raise UserError(
            f"{str(table)!r} names no files",
            got=listed(rows.column_names),
            expected=f"a column {FILE_NAME}, and one of labels",
        )
    column = CLASSES.find(rows, label, [FILE_NAME], words)
    labels: Labels | None = CLASSES.read(rows, column)
    return RawSplit(_clips(folder, rows[FILE_NAME]), labels)


def _clips(folder: Path, names: list[str]) -> ColumnClips:
    table = datasets.Dataset.from_dict({FILE_NAME: list(names)})
    return ColumnClips(table, FILE_NAME, str(folder))
