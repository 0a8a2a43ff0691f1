"""Which modality a data set is of, by what its files or columns are; nothing large is read."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from mmdd.modalities.pairs.options import CAPTION_NAMES
from mmdd.modalities.tables.columns import is_file, is_text
from mmdd.modalities.tables.labels import looks_like_label
from mmdd.modalities.text.columns import PAIRED, TEXT_NAMES

MEDIA = {
    "images": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"),
    "video": (".mp4", ".avi", ".mkv", ".mov", ".webm"),
}
TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".jsonl", ".json")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
MOST_FILES = 500  # files of a folder that are looked at


def modality_of(source: Any) -> str | None:
    """Name the modality of a folder, a file, a ``datasets`` object or a pair; None if unclear.

    ``pyg:NAME/ITEM``, arrays (``.npz``, ``.safetensors``) and PyG's objects are graphs. A Hub name
    is unclear: it would have to be downloaded.
    """
    if _is_graph(source):
        return "graphs"
    if isinstance(source, (str, os.PathLike)):
        return _of_path(Path(source).expanduser())
    if isinstance(source, Mapping):
        if {"image", "text"} <= source.keys():
            return "pairs"
        return modality_of(next(iter(source.values()), None))
    if isinstance(source, datasets.Dataset):
        return of_features(source.features)
    if isinstance(source, (list, tuple)) and len(source):
        return "text" if _holds_text(source) else None
    return None


def _is_graph(source: Any) -> bool:
    """True for what graphs alone are: told by a name, whether or not it is there."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        return name.startswith("pyg:") or name.endswith((".npz", ".safetensors"))
    first = source[0] if isinstance(source, (list, tuple)) and source else source
    return type(first).__module__.startswith("torch_geometric")


def _holds_text(source: Any) -> bool:
    """True for (texts, labels), and for [(text, label), ...]; a text may be a tuple of strings."""
    first = source[0]
    while isinstance(first, (list, tuple)) and len(first):
        first = first[0]
    return isinstance(first, str)


def of_features(features: Mapping[str, Any]) -> str | None:
    """Name the modality of a table by its columns."""
    if _holds_pairs(features):
        return "pairs"
    kinds = {_kind(feature) for feature in features.values()}
    for kind in ("video", "images", "audio", "timeseries", "text"):
        if kind in kinds:
            return kind
    strings = [n for n, f in features.items() if is_text(f) and not looks_like_label(n, f)]
    lowered = tuple(name.lower() for name in strings)
    named = any(name in TEXT_NAMES for name in lowered)
    paired = any(set(pair) <= set(lowered) for pair in PAIRED)
    return "text" if named or paired or len(strings) == 1 else None


def _holds_pairs(features: Mapping[str, Any]) -> bool:
    """True for images, or vectors of images, with captions and without labels."""
    if any(looks_like_label(name, feature) for name, feature in features.items()):
        return False
    vectors = [n.lower() for n, f in features.items() if _kind(f) == "text"]
    if any("image" in name for name in vectors):
        return any(word in name for name in vectors for word in ("text", "caption"))
    if not any(_kind(f) == "images" or is_file(f) for f in features.values()):
        return False
    return any(
        # a lone "text" beside images may be their class
        (is_text(f) and "caption" in name.lower())
        or (isinstance(f, (datasets.List, datasets.LargeList)) and is_text(f.feature))
        for name, f in features.items()
    )


def _kind(feature: Any) -> str | None:
    """What one column holds; vectors count as text embeddings."""
    by_type = {"Image": "images", "Video": "video", "Audio": "audio", "Array4D": "video"}
    name = type(feature).__name__
    if name in by_type:
        return by_type[name]
    if name in ("Array2D", "Array3D"):
        return "timeseries" if feature.dtype.startswith("float") and name == "Array2D" else "images"
    depth = 0
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature, depth = feature.feature, depth + 1
    if not isinstance(feature, datasets.Value) or depth == 0:
        return None
    floats = feature.dtype.startswith(("float", "double"))
    if depth == 1:
        return "text" if floats else None
    return "timeseries" if floats and depth == 2 else "images" if depth < 4 else "video"


def _of_path(path: Path) -> str | None:
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        return None
    files = list(itertools.islice(_files(path), MOST_FILES))
    counts = Counter(_medium(file) for file in files)
    counts.pop(None, None)
    if counts:
        found = counts.most_common(1)[0][0]
        beside = [file for file in files if file.name in METADATA]
        return "pairs" if found == "images" and beside and _captions_in(beside[0]) else found
    tables = [file for file in files if file.suffix.lower() in TABLES and not _is_state(file)]
    return _of_file(tables[0]) if tables else None


def _captions_in(metadata: Path) -> bool:
    """True for a table beside images that gives each a caption and no label."""
    try:
        features, _ = _head(metadata)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return False
    named = any(is_text(f) and name.lower() in CAPTION_NAMES for name, f in features.items())
    return named and not any(looks_like_label(name, f) for name, f in features.items())


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder in a fixed order, hidden ones left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def _is_state(file: Path) -> bool:
    """True for what `save_to_disk` writes beside its tables."""
    return file.name in ("dataset_dict.json", "dataset_info.json", "state.json")


def _medium(file: Path | str) -> str | None:
    suffix = os.path.splitext(str(file))[1].lower()
    return next((kind for kind, known in MEDIA.items() if suffix in known), None)


def _of_file(file: Path) -> str | None:
    try:
        features, first = _head(file)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None  # it is said when the file is opened
    found = of_features(features)
    if found is not None:
        return found
    # undecoded files tell by their names what they are
    named = [
        (first.get(name) or {}).get("path") or "" for name, f in features.items() if is_file(f)
    ]
    return next((kind for kind in map(_medium, named) if kind), None)


def _head(file: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Features and first row of a table."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(file) as opened:
            batch = next(opened.iter_batches(1), None)
            schema = opened.schema_arrow
    elif suffix == ".arrow":
        with pa.OSFile(str(file)) as stream:
            reader = pa.ipc.open_stream(stream)
            schema, batch = reader.schema, next(iter(reader), None)
    else:
        batch = _text_table(file, suffix)
        schema = batch.schema
    row = batch.slice(0, 1).to_pylist() if batch is not None else []
    known = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
    if known.get("features"):
        return datasets.Features.from_dict(known["features"]), row[0] if row else {}
    return datasets.Features.from_arrow_schema(schema), row[0] if row else {}


def _text_table(file: Path, suffix: str) -> pa.RecordBatch:
    """The first block of a csv or json file."""
    if suffix in (".csv", ".tsv"):
        from pyarrow import csv

        options = csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",")
        with csv.open_csv(file, parse_options=options) as reader:
            return reader.read_next_batch()
    from pyarrow import json as lines

    with lines.open_json(file) as reader:
        return reader.read_next_batch()


__all__ = ["modality_of", "of_features"]
