"""The dataset card (what a finished set is, for people and for the Hub) and facts of its origin."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from mmdd.scores import ROWS, is_share

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


def card(manifest: Mapping[str, Any]) -> str:
    """Write the card of a set, as Markdown with YAML front matter.

    Parameters
    ----------
    manifest: as `mmdd.artifact.save` completes it. Every key may be missing; only files that
        ``files`` lists are mentioned. ``data.path`` is the glob of the files that
        ``load_dataset`` reads (by default the parquet file).
    """
    body = [
        _opening(manifest),
        _source(manifest),
        _making(manifest),
        _results(manifest),
        _loading(manifest),
        _exactness(manifest),
        _repeating(manifest),
    ]
    header = yaml.safe_dump(front_matter(manifest), sort_keys=False, width=88)
    return f"---\n{header}---\n\n" + "\n\n".join(part for part in body if part) + "\n"


# -- what the Hub and `datasets` read --------------------------------------------------------------


def front_matter(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the YAML header: where the data lies, its features and how it is found."""
    info, data = _part(manifest, "info"), _part(manifest, "data")
    items = _part(manifest, "budget").get("items")
    header: dict[str, Any] = {"pretty_name": _title(manifest), "license": "unknown"}
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
    for name, facts in _part(manifest, "files").items():
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


# -- what a person reads ---------------------------------------------------------------------------


def _part(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = manifest.get(name)
    return found if isinstance(found, Mapping) else {}


def _title(manifest: Mapping[str, Any]) -> str:
    source = _part(manifest, "info").get("source")
    items = _part(manifest, "budget").get("items")
    name = public_name(source) if source else "A data set"
    return f"{name} distilled to {items:,} items" if isinstance(items, int) else f"{name} distilled"


def _opening(manifest: Mapping[str, Any]) -> str:
    source = _part(manifest, "info").get("source")
    real = f"`{public_name(source)}`" if source else "a larger set"
    train = _part(_part(manifest, "info"), "sizes").get("train")
    of = f" ({train:,} training items)" if isinstance(train, int) else ""
    lines = [
        f"# {_title(manifest)}",
        f"A small synthetic training set that stands for {real}{of}: its items were optimised so"
        " that a model trained on them does as well as possible on the real data (dataset"
        " distillation). They are not items of the real set, and the licence of the real data"
        " applies to them as far as it reaches.",
    ]
    if "picture.png" in _part(manifest, "files"):
        lines.append("![The items, one row per class](picture.png)")
    return "\n\n".join(lines)


def _source(manifest: Mapping[str, Any]) -> str:
    info = _part(manifest, "info")
    names = [str(name) for name in info.get("names") or ()]
    classes = f"{info['classes']:,}: {_shortened(names)}" if info.get("classes") else None
    given = [f"{k} {_numbers(value)}" for k, value in _part(info, "normalisation").items()]
    splits = [f"{count:,} {name}" for name, count in _part(info, "sizes").items() if count]
    return _table(
        "Source",
        {
            "data": public_name(info["source"]) if info.get("source") else None,
            "items": ", ".join(splits),
            "item": " x ".join(map(str, info.get("shape") or ())),
            "classes": classes,
            "normalisation": "; ".join(given),
            "fingerprint": f"`{info['fingerprint']}`" if info.get("fingerprint") else None,
        },
    )


def _shortened(names: list[str], most: int = 20) -> str:
    more = f", … and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _numbers(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(_numbers, value)) + ")"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _making(manifest: Mapping[str, Any]) -> str:
    recipe, run, budget = (_part(manifest, name) for name in ("recipe", "run", "budget"))
    used, origin = _part(manifest, "versions"), manifest.get("commit")
    size = [f"{budget[k]:,} {k}" for k in ("items", "bytes") if isinstance(budget.get(k), int)]
    made = ", ".join(f"{name} {used[name]}" for name in ("mmdd", "torch") if name in used)
    return _table(
        "How it was made",
        {
            "method": recipe.get("method"),
            "encoder": _net(_part(recipe, "learner")),
            "judged by": _net(_part(_part(recipe, "evaluate"), "learner")),
            "budget": ", ".join(size),
            "steps": f"{run['steps']:,}" if isinstance(run.get("steps"), int) else None,
            "time": _seconds(run.get("seconds")),
            "peak memory, MiB": run.get("peak_memory_mb"),
            "device": run.get("device"),
            "seed": run.get("seed"),
            "state kept": run.get("kept"),
            "software": made + (f", commit `{str(origin)[:12]}`" if origin else ""),
        },
    )


def _net(options: Mapping[str, Any]) -> str:
    width = options.get("width")
    return f"{options.get('encoder') or ''}" + (f", width {width}" if width else "")


def _seconds(value: Any) -> str | None:
    if not isinstance(value, (int, float)):
        return None
    return f"{value:.1f} s" if value < 600 else f"{value / 60:.0f} minutes"


def _table(title: str, facts: Mapping[str, Any]) -> str:
    rows = [
        f"| {name} | {_cell(value)} |" for name, value in facts.items() if value not in (None, "")
    ]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *rows]) if rows else ""


def _cell(value: Any) -> str:
    """Text that cannot break out of its cell of a Markdown table."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").replace("<", "&lt;")


# -- scores ----------------------------------------------------------------------------------------


def _results(manifest: Mapping[str, Any]) -> str:
    report = _part(manifest, "results")
    table = {k: v for k, v in _part(report, "results").items() if isinstance(v, Mapping) and v}
    if not table:
        return "## Results\n\nNot scored yet: `mmdd evaluate DIR`."
    leak = _part(_part(manifest, "info"), "normalisation").get("leak", False)
    protocol = report.get("protocol") or _part(manifest, "protocol")
    report = {**report, "protocol": protocol, "leak": leak}
    metric = str(report.get("metric", "score"))
    rows = [row for row in ROWS if any(row in found for found in table.values())]
    rows += sorted({row for found in table.values() for row in found} - set(ROWS))
    lines = [
        f"| encoder | {' | '.join(_cell(ROWS.get(row, row)) for row in rows)} |",
        "|---" * (len(rows) + 1) + "|",
    ]
    for encoder, found in table.items():
        cells = [_score(found.get(row), metric) for row in rows]
        lines.append(f"| {_cell(encoder)} | {' | '.join(cells)} |")
    return "\n\n".join(["## Results", _protocol(report, metric), "\n".join(lines)])


def _score(row: Any, metric: str) -> str:
    """``mean ± std (n)``, in percent for shares."""
    if not isinstance(row, Mapping) or not isinstance(row.get("mean"), (int, float)):
        return "-"
    spread, number = row.get("std"), row.get("n")
    scale, digits = (100, 1) if is_share(metric) else (1, 4)
    text = f"{scale * row['mean']:.{digits}f}"
    if isinstance(spread, (int, float)):
        text += f" ± {scale * spread:.{digits}f}"
    return text + (f" (n = {number})" if number else "")


def _protocol(report: Mapping[str, Any], metric: str) -> str:
    protocol = _part(report, "protocol")
    optimiser = [str(protocol[k]) for k in ("optimiser", "lr") if k in protocol]
    better = {"max": "higher", "min": "lower"}.get(str(report.get("direction")))
    unit = " in %" if is_share(metric) else ""
    details = [
        f"protocol `{protocol['name']}`" if protocol.get("name") else "",
        f"{protocol['epochs']:,} epochs" if isinstance(protocol.get("epochs"), int) else "",
        " ".join(optimiser),
        "with augmentation" if protocol.get("augment") else "",
        f"{report['selection']} epoch" if report.get("selection") else "",
    ]
    said = f" ({', '.join(word for word in details if word)})" if any(details) else ""
    chosen = "Nothing was chosen on the test split."
    if report.get("leak"):
        chosen = (
            "**Not an honest score**: as in some papers, validation is the test split, and units"
            " are measured on both."
        )
    return (
        f"{metric.capitalize()}{unit} on the real test split"
        + (f", {better} is better" if better else "")
        + ": mean ± standard deviation over n learners, each trained from scratch on the set of its"
        f" column{said}. {chosen}"
    )


# -- use -------------------------------------------------------------------------------------------


def _loading(manifest: Mapping[str, Any]) -> str:
    if not manifest.get("data"):
        return ""
    columns = ", ".join(f"`{name}`" for name in _part(_part(manifest, "data"), "features"))
    return (
        "## Use\n\n```python\nimport datasets\n\n"
        'train = datasets.load_dataset("path/to/this/folder", split="train")\n'
        "item = train[0]\n```" + (f"\n\nColumns: {columns}." if columns else "")
    )


def _exactness(manifest: Mapping[str, Any]) -> str:
    features = _part(_part(manifest, "data"), "features")
    kinds = [feature.get("_type") for feature in features.values() if isinstance(feature, Mapping)]
    parts = []
    if "Image" in kinds or (manifest.get("data") and not features):
        parts.append(
            "The images here are 8-bit PNG: pixels were denormalised, clipped and rounded."
        )
    if "synthetic.safetensors" in _part(manifest, "files"):
        parts.append(
            "The exact, normalised floating-point tensors that were optimised and scored are in"
            " `synthetic.safetensors`; `mmdd.load(folder)` reads them, with all that belongs to"
            " them from `mmdd.json`."
        )
        parts += _beside(manifest)
    elif parts:
        parts.append("The scores above are of the exact floating-point tensors.")
    return "## Exactness\n\n" + " ".join(parts) if parts else ""


def _beside(manifest: Mapping[str, Any]) -> list[str]:
    """What stands in the file of the tensors and belongs to the space of the data."""
    beside = _part(manifest, "info_tensors")
    names = [str(name) for name in beside.get("names") or ()]
    if not names:
        return []
    size = f" ({beside['bytes']:,} bytes)" if isinstance(beside.get("bytes"), int) else ""
    said = f"Beside them are {', '.join(f'`{name}`' for name in names)}{size}, which describe the"
    said += " space of the real data and are no part of the budget."
    if "whiten.inverse" in names:
        said += " Flattened inputs times `whiten.inverse` plus `whiten.mean` are the normalised"
        said += " items before they were whitened."
    return [said]


def _repeating(manifest: Mapping[str, Any]) -> str:
    recipe = _part(manifest, "recipe")
    if not recipe:
        return ""
    shown: dict[str, Any] = dict(recipe)
    data = _part(recipe, "data")
    if data.get("source"):
        shown["data"] = {**data, "source": public_name(data["source"])}
    text = yaml.safe_dump(_plain(shown), sort_keys=False, width=88)
    return (
        "## Repeat it\n\n`mmdd distill recipe.yaml`, with this recipe:\n\n"
        "<details><summary>recipe.yaml</summary>\n\n"
        f"```yaml\n{text}```\n\n</details>"
    )


def _plain(value: Any) -> Any:
    """Lists and dicts only, as YAML wants them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
