"""The header of a dataset card: what the Hub and `datasets` read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

MARK = "dataset-distillation"
"""A tag of every card, by which a card of ours is told from somebody's README."""

PARQUET_GLOB = "data/train-*.parquet"
CATEGORIES = {
    ("images", "classification"): "image-classification",
    ("images", "multi-label"): "image-classification",
    ("text", "classification"): "text-classification",
    ("text", "multi-label"): "text-classification",
    ("audio", "classification"): "audio-classification",
    ("audio", "multi-label"): "audio-classification",
    ("video", "classification"): "video-classification",
    ("graphs", "classification"): "graph-ml",
    ("timeseries", "forecasting"): "time-series-forecasting",
    ("pairs", "retrieval"): "text-retrieval",
}
"""(modality, task) -> task category of the Hub."""


def front_matter(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the YAML header: where the data lies, its features and how it is found."""
    info, data = part(manifest, "info"), part(manifest, "data")
    items = part(manifest, "budget").get("items")
    header: dict[str, Any] = {"pretty_name": title(manifest), "license": "unknown"}
    category = CATEGORIES.get((str(info.get("modality")), str(info.get("task"))))
    if category:
        header["task_categories"] = [category]
    if info.get("source"):
        header["source_datasets"] = [public_name(info["source"])]
    if isinstance(items, int):
        header["size_categories"] = [size_category(items)]
    header["tags"] = [MARK, "synthetic", "mmdd"]
    if data:
        path = data.get("path", PARQUET_GLOB)
        header["configs"] = [
            {"config_name": "default", "data_files": [{"split": "train", "path": path}]}
        ]
    features = yaml_features(data.get("features"))
    info_of_data = _dataset_info(features, data) if features else {}
    info_of_data |= _told_apart(manifest)
    if info_of_data:
        header["dataset_info"] = info_of_data
    return header


def _dataset_info(features: list[dict[str, Any]], data: Mapping[str, Any]) -> dict[str, Any]:
    size = data.get("bytes", 0)
    split = {"name": "train", "num_bytes": size, "num_examples": data.get("examples", 0)}
    return {"features": features, "splits": [split], "dataset_size": size}


def _told_apart(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A description that names the content of the parquet file.

    ``load_dataset`` keeps a local folder in its cache under a hash of this header, not of the data:
    without it, a second set of the same shape in a folder of the same name reads as the first.
    """
    for name, facts in part(manifest, "files").items():
        if name.endswith(".parquet"):
            return {"description": f"parquet sha256 {facts['sha256']}"}
    return {}


def yaml_features(features: Any) -> list[dict[str, Any]] | None:
    """``datasets.Features.to_dict()`` as the list that a card holds; None if one is unknown here.

    The parquet file carries its features too, so that leaving them out costs nothing but a preview.
    """
    if not isinstance(features, Mapping) or not features:
        return None
    found = []
    for name, feature in features.items():
        entry = _yaml_feature(feature)
        if entry is None:
            return None
        found.append({"name": name, **entry})
    return found


def _yaml_feature(feature: Any) -> dict[str, Any] | None:
    kind = feature.get("_type") if isinstance(feature, Mapping) else None
    if kind in ("Image", "Audio", "Video") and set(feature) == {"_type"}:
        return {"dtype": kind.lower()}
    if kind == "ClassLabel":
        names = {str(place): name for place, name in enumerate(feature["names"])}
        return {"dtype": {"class_label": {"names": names}}}
    if kind == "Value":
        return {"dtype": feature["dtype"]}
    if kind == "List":
        inner = _yaml_feature(feature["feature"])
        length = {"length": feature["length"]} if feature.get("length", -1) > 0 else {}
        # a list of one type is that type alone: {list: float32}, not {list: {dtype: float32}}
        return None if inner is None else {"list": inner.get("dtype", inner), **length}
    return None


def size_category(items: int) -> str:
    """Return the Hub's category of a number of items."""
    steps = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
    if items < 1000:
        return "n<1K"
    place = min(int(math.log10(items + 0.5)) - 3, len(steps) - 2)
    return f"{steps[place]}<n<{steps[place + 1]}"


def public_name(source: Any) -> str:
    """Name of a source without the folders of the machine it lay on."""
    text = str(source)
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(text)
        if path.is_absolute() or text.startswith(("~", "..")):
            return path.name or text
    return text.removeprefix("./")


def title(manifest: Mapping[str, Any]) -> str:
    """What the set is called."""
    source = part(manifest, "info").get("source")
    items = part(manifest, "budget").get("items")
    name = public_name(source) if source else "A data set"
    return f"{name} distilled to {items:,} items" if isinstance(items, int) else f"{name} distilled"


def part(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of the manifest; an empty one where it is missing."""
    found = manifest.get(name)
    return found if isinstance(found, Mapping) else {}
