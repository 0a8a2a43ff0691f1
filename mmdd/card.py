"""The dataset card (what a finished set is, for people and for the Hub) and facts of its origin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from mmdd.card_header import front_matter, part, public_name, title
from mmdd.scores import ROWS, is_share


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
    return f"---\n{header}---\n\n" + "\n\n".join(section for section in body if section) + "\n"


# -- what a person reads ---------------------------------------------------------------------------


def _opening(manifest: Mapping[str, Any]) -> str:
    source = part(manifest, "info").get("source")
    real = f"`{public_name(source)}`" if source else "a larger set"
    train = part(part(manifest, "info"), "sizes").get("train")
    of = f" ({train:,} training items)" if isinstance(train, int) else ""
    lines = [
        f"# {title(manifest)}",
        f"A small synthetic training set that stands for {real}{of}: its items were optimised so"
        " that a model trained on them does as well as possible on the real data (dataset"
        " distillation). They are not items of the real set, and the licence of the real data"
        " applies to them as far as it reaches.",
    ]
    if "picture.png" in part(manifest, "files"):
        lines.append("![The items, one row per class](picture.png)")
    return "\n\n".join(lines)


def _source(manifest: Mapping[str, Any]) -> str:
    info = part(manifest, "info")
    names = [str(name) for name in info.get("names") or ()]
    classes = f"{info['classes']:,}: {_shortened(names)}" if info.get("classes") else None
    given = [f"{k} {_numbers(value)}" for k, value in part(info, "normalisation").items()]
    splits = [f"{count:,} {name}" for name, count in part(info, "sizes").items() if count]
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
    recipe, run, budget = (part(manifest, name) for name in ("recipe", "run", "budget"))
    used, origin = part(manifest, "versions"), manifest.get("commit")
    size = [f"{budget[k]:,} {k}" for k in ("items", "bytes") if isinstance(budget.get(k), int)]
    made = ", ".join(f"{name} {used[name]}" for name in ("mmdd", "torch") if name in used)
    return _table(
        "How it was made",
        {
            "method": recipe.get("method"),
            "encoder": _net(part(recipe, "learner")),
            "judged by": _net(part(part(recipe, "evaluate"), "learner")),
            "budget": ", ".join(size),
            "begun with": _begun(part(run, "begun_with")),
            "steps": f"{run['steps']:,}" if isinstance(run.get("steps"), int) else None,
            "time": _seconds(run.get("seconds")),
            "peak memory, MiB": run.get("peak_memory_mb"),
            "device": run.get("device"),
            "seed": run.get("seed"),
            "state kept": run.get("kept"),
            "software": made + (f", commit `{str(origin)[:12]}`" if origin else ""),
        },
    )


def _begun(before: Mapping[str, Any]) -> str | None:
    return f"a set made by {before['method']} in {_seconds(before['seconds'])}" if before else None


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
    report = part(manifest, "results")
    table = {k: v for k, v in part(report, "results").items() if isinstance(v, Mapping) and v}
    if not table:
        return "## Results\n\nNot scored yet: `mmdd evaluate DIR`."
    leak = part(part(manifest, "info"), "normalisation").get("leak", False)
    protocol = report.get("protocol") or part(manifest, "protocol")
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
    protocol = part(report, "protocol")
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
    columns = ", ".join(f"`{name}`" for name in part(part(manifest, "data"), "features"))
    return (
        "## Use\n\n```python\nimport datasets\n\n"
        'train = datasets.load_dataset("path/to/this/folder", split="train")\n'
        "item = train[0]\n```" + (f"\n\nColumns: {columns}." if columns else "")
    )


def _exactness(manifest: Mapping[str, Any]) -> str:
    features = part(part(manifest, "data"), "features")
    kinds = [feature.get("_type") for feature in features.values() if isinstance(feature, Mapping)]
    parts = []
    if "Image" in kinds or (manifest.get("data") and not features):
        parts.append(
            "The images here are 8-bit PNG: pixels were denormalised, clipped and rounded."
        )
    if "synthetic.safetensors" in part(manifest, "files"):
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
    beside = part(manifest, "info_tensors")
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
    recipe = part(manifest, "recipe")
    if not recipe:
        return ""
    shown: dict[str, Any] = dict(recipe)
    data = part(recipe, "data")
    if data.get("source"):
        shown["data"] = {**data, "source": public_name(data["source"])}
    if start := part(recipe, "synthetic").get("initialise"):
        shown["synthetic"] = {**recipe["synthetic"], "initialise": public_name(start)}
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
