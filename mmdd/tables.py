"""Tables that the command line prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmdd import catalog
from mmdd.compose import methods, read_yaml, recipes
from mmdd.recipe import PROTOCOLS
from mmdd.scores import ROWS, is_share

MANY = 5
"""Sets beyond which there is one line per set, not per encoder, so that it fits into 80 columns."""


def spread(row: Mapping[str, Any] | None, metric: str) -> str:
    """``mean ± std``, in percent for shares; one number alone has no spread."""
    if row is None:
        return "-"
    scale, digits = (100, 1) if is_share(metric) else (1, 4)
    told = f"{scale * row['mean']:.{digits}f}"
    return told if row["n"] == 1 else f"{told} ± {scale * row['std']:.{digits}f}"


def show_results(report: Mapping[str, Any], console: Console | None = None) -> None:
    """One line per encoder, the set beside its baselines; or one per set where these are many."""
    console = console or Console()
    rows = [row for row in ROWS if any(row in found for found in report["results"].values())]
    protocol, budget = report["protocol"], report["budget"]
    learners = "/".join({str(found["synthetic"]["n"]) for found in report["results"].values()})
    names = [ROWS[row] if row == "full" else row for row in rows]
    cells = [
        [spread(found.get(row), report["metric"]) for row in rows]
        for found in report["results"].values()
    ]
    table = Table()
    if len(rows) > MANY:
        table.add_column("trained on")
        for encoder in report["results"]:
            table.add_column(encoder, justify="right")
        for name, *line in zip(names, *cells, strict=True):
            table.add_row(name, *line)
    else:
        table.add_column("encoder")
        for name in names:
            table.add_column(name, justify="right")
        for encoder, line in zip(report["results"], cells, strict=True):
            table.add_row(encoder, *line)
    unit = " in %" if is_share(report["metric"]) else ""
    better = ", lower is better" if report["direction"] == "min" else ""
    console.print(
        f"{report['metric']}{unit} on the real {report.get('split', 'test')} split{better},"
        f" mean ± std of {learners} learners"
    )
    console.print(table)
    console.print(
        f"protocol {protocol['name']}: {protocol['epochs']} epochs, {report['selection']} epoch;"
        f" {budget['items']} synthetic items, {budget['bytes']:,} bytes",
        highlight=False,
    )


def show_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """What a finished set is."""
    console = Console()
    info, run, recipe = manifest["info"], manifest["run"], manifest["recipe"]
    budget = manifest["budget"]
    classes = f" {info['classes']} classes," if info["classes"] > 1 else ""
    facts = {
        "data": f"{info['source']} ({info['modality']},{classes}"
        f" {info['sizes'].get('train')} training items)",
        "method": f"{recipe['method']}: {run['steps']} steps, {run['seconds']:.0f} s,"
        f" {run['peak_memory_mb']:.0f} MiB, {run['device']}, {run['precision']}",
        "budget": f"{budget['items']} items, {budget['bytes']:,} bytes",
        "seed": str(run["seed"]),
        "fingerprint": info["fingerprint"][:16],
        "picture": str(folder / "picture.png"),
    }
    if before := run.get("begun_with"):
        facts["begun with"] = f"a set made by {before['method']} in {before['seconds']:.0f} s"
    for name, value in facts.items():
        console.print(f"[bold]{name:<12}[/bold] {value}", highlight=False, soft_wrap=True)
    if manifest.get("results"):
        show_results(manifest["results"], console)
    else:
        console.print(f"not scored yet: mmdd evaluate {folder}")


def families() -> dict[str, Any]:
    """Every family with its names and a line (methods: their composition) each."""
    found: dict[str, Any] = {"methods": {n: composition(p) for n, p in methods().items()}}
    found["recipes"] = {name: first_comment(path) for name, path in recipes().items()}
    for family, entries in catalog.FAMILIES.items():
        found[family] = {name: entry.about for name, entry in entries.items()}
    for modality in catalog.MODALITIES:
        options = catalog.options(modality)
        for family, models in (
            ("encoders", options.ENCODERS),
            ("augmentations", options.AUGMENTATIONS),
        ):
            about = {name: str(model.__doc__).split("\n")[0] for name, model in models.items()}
            found.setdefault(family, {})[modality] = about
    found["protocols"] = {
        name: f"{p.epochs} epochs, {p.optimiser} lr {p.lr}, {p.schedule}, {p.selection} epoch"
        for name, p in PROTOCOLS.items()
    }
    return found


def composition(path: Path) -> dict[str, Any]:
    """Which parts a method is made of."""
    values = read_yaml(path)
    synthetic = values.get("synthetic", {})
    return {
        "about": first_comment(path),
        "representation": synthetic.get("representation"),
        "labels": synthetic.get("labels"),
        "source": values.get("source"),
        "objective": values.get("objective"),
        "augment": values.get("augment"),
        "selector": values.get("real", {}).get("selector"),
        "step_size": synthetic.get("step_size"),
        "experts": values.get("experts"),
        "protocol": values.get("evaluate", {}).get("protocol"),
    }


def first_comment(path: Path) -> str:
    """First sentence of a recipe's opening comment."""
    lines = path.read_text(encoding="utf8").splitlines()
    words = " ".join(line.lstrip("# ").strip() for line in lines[: _comment_length(lines)])
    return words.split(". ")[0].rstrip(".")


def _comment_length(lines: list[str]) -> int:
    return next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))


def show_families(chosen: Mapping[str, Any]) -> None:
    """Print names and what they are."""
    console = Console()
    for family, entries in chosen.items():
        console.print(f"[bold]{family}[/bold]")
        _show_entries(console, entries, "  ")


def _show_entries(console: Console, entries: Mapping[str, Any], indent: str) -> None:
    for name, about in entries.items():
        if isinstance(about, Mapping) and "about" not in about:
            console.print(f"{indent}{name}")
            _show_entries(console, about, indent + "  ")
            continue
        text = about["about"] if isinstance(about, Mapping) else about
        console.print(f"{indent}{name:<16} {text}", highlight=False, soft_wrap=True)
