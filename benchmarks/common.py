"""What every benchmark records beside its numbers, and how it is resumed."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mmdd.machine import keep_memory
from mmdd.provenance import commit

WIDTH = 128
"""Of the field's ConvNet."""
RESULTS = Path(__file__).parent / "results"
FEW_EXPERTS = {
    "experts.count": 4,
    "experts.epochs": 8,
    "experts.epoch_steps": 50,
    "experts.batch_size": 128,
    "experts.lr": 0.02,
    "source.max_start": 4,
}
"""Trajectories on Fashion-MNIST that a narrow net leaves in a few minutes of one core."""
DATA = Path(os.environ.get("MMDD_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def machine() -> dict[str, Any]:
    """Processor or GPU, cores, versions and the commit that was measured."""
    return {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": (commit() or "unknown")[:12],
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        flags = [f for f in ("avx512f", "avx512_bf16", "amx_bf16") if f in found["flags"].split()]
        name = f"{found['model name']} family {found['cpu family']} model {found['model']}"
        return f"{name} ({' '.join(flags)})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def read(table: str) -> list[dict[str, str]]:
    """Rows of ``results/<table>.csv``, or none."""
    path = RESULTS / f"{table}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def memory_option(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark run as PyTorch does by itself."""
    parser.add_argument(
        "--default-memory", action="store_true", help="hand freed memory back, as PyTorch does"
    )


def settled_memory(args: argparse.Namespace) -> str:
    """Keep freed memory, as every run of this package does, unless asked not to; say which.

    Plain loops in float32, whose maps are large blocks, gain even more by it.
    """
    return "kept" if not args.default_memory and keep_memory() else "handed back"


def widths(options: Iterable[str]) -> tuple[int, int]:
    """Width of the ConvNet that a set was made with, and of the one that judges it.

    Of ``key=value`` in `options`; a judging net has from the other what it is not given itself.
    """
    given = dict(word.partition("=")[::2] for word in options)
    made = int(given.get("learner.width", WIDTH))
    return made, int(given.get("evaluate.learner.width", made))


def with_full(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows with the full-data score of another row where they have none.

    Full data is trained by a recipe of its own: with the same data, net and number of learners it
    is the same, whatever was distilled.
    """

    def about(row: dict[str, str]) -> tuple[str, ...]:
        options = row.get("options", "").split()
        own = [
            word for word in options if word.startswith(("learner.", "data.", "evaluate.full_e"))
        ]
        return (row["data"], row["encoder"], row["learners"], *sorted(own))

    known = {about(row): row for row in rows if row.get("full_mean")}
    names = ("full_mean", "full_std")
    return [
        row | {name: known[about(row)][name] for name in names}
        if not row.get("full_mean") and about(row) in known
        else row
        for row in rows
    ]


def append(table: str, row: Mapping[str, Any]) -> None:
    """Add a row; columns that the file lacks are added to it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows: list[Mapping[str, Any]] = [*read(table), row]
    columns = list(dict.fromkeys(key for line in rows for key in line))
    path = RESULTS / f"{table}.csv"
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def is_done(table: str, key: Mapping[str, Any]) -> bool:
    """True when the table has a row with these values (compared as text)."""
    return any(all(row.get(k) == str(v) for k, v in key.items()) for row in read(table))


def median(values: Iterable[float]) -> float:
    """Middle value."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def alternate(
    first: Callable[[], float], second: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    """Time two things in turn, A B A B …, so that both see the same machine."""
    a, b = [], []
    for _ in range(rounds):
        a.append(first())
        b.append(second())
    return a, b


def quiet_python(code: str) -> str:
    """Run `code` in a fresh interpreter and return what it prints."""
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
