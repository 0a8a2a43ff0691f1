"""Choose options on validation: ``python benchmarks/choose.py DATA METHOD key=a,b …``.

Every combination of the values (separated by commas) is distilled from each seed and scored by
fresh learners on the *validation* part; the test split is never looked at. What came is printed and
appended to ``results/choices.csv``, where combinations that are there already are skipped. The
options that `PLAN` lines of other benchmarks carry come from here.

    python benchmarks/choose.py text/sst2_minilm dm --per-class 10 optimise.inputs.lr=0.1,0.2,0.5
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

from common import DATA, append, is_done, machine

from mmdd import build, compose
from mmdd import machine as mm
from mmdd.progress import PlainProgress
from mmdd.results import Judge

TABLE = "choices"


def combinations(words: list[str]) -> list[dict[str, Any]]:
    """``["a=1,2", "b=3"]`` to ``[{"a": 1, "b": 3}, {"a": 2, "b": 3}]``; lists want brackets."""
    values: list[list[tuple[str, Any]]] = []
    for word in words:
        key, _, text = word.partition("=")
        given = [text] if text.startswith(("[", "{")) else text.split(",")
        values.append(
            [item for one in given for item in compose.parse_overrides([f"{key}={one}"]).items()]
        )
    return [dict(found) for found in itertools.product(*values)]


def scored(
    source: str, args: argparse.Namespace, options: dict[str, Any], seed: int
) -> tuple[list[float], float]:
    """Distil once; returns the validation scores and the seconds of distillation."""
    device = mm.device(args.device)
    root = {"data.root": str(DATA / "graphs")} if source.startswith("pyg:") else {}
    recipe = compose.from_flags(
        source,
        method=args.method,
        per_class=args.per_class,
        items=args.items,
        seed=seed,
        device=args.device,
        options=root | options,
    )
    splits = build.open_data(recipe, None, device)
    if splits.validation is None:
        raise SystemExit(f"{source} has no validation part")
    parts = build.parts(recipe, splits.info, device)
    experts = build.experts(parts, splits, PlainProgress(60))
    distiller = build.distiller(parts, splits, experts)
    started = time.perf_counter()
    for _ in range(recipe.optimise.steps):
        distiller.step()
    seconds = time.perf_counter() - started
    judge = Judge(parts, splits, split="validation")
    table = judge.table(distiller.synthetic, learners=args.learners, baselines=False)
    return list(next(iter(table.values()))["synthetic"]["values"]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder below the shared data, or pyg:NAME/ITEM")
    parser.add_argument("method")
    parser.add_argument("options", nargs="*", help="key=value,value,…")
    parser.add_argument("--per-class", type=int)
    parser.add_argument("--items", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--learners", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_intermixed_args()
    facts, inside = machine(), DATA / args.data
    source = str(inside) if inside.exists() else args.data
    found = []
    for options in combinations(args.options):
        told = " ".join(f"{key}={value}" for key, value in options.items())
        key = {
            "data": args.data,
            "budget": args.per_class or args.items,
            "method": args.method,
            "options": told,
            "seeds": args.seeds,
            "learners": args.learners,
        }
        if is_done(TABLE, key):
            continue
        runs = [scored(source, args, options, seed) for seed in range(args.seeds)]
        values = [value for one, _ in runs for value in one]
        row = {
            "validation_mean": round(statistics.mean(values), 4),
            "validation_std": round(statistics.stdev(values), 4) if len(values) > 1 else "",
            "seconds": round(statistics.median(seconds for _, seconds in runs), 1),
        }
        append(TABLE, {**key, **row, **facts})
        found.append((row["validation_mean"], told))
        print(*row.values(), told, flush=True)
    for mean, told in sorted(found, reverse=True):
        print(f"{mean:.4f}  {told}")


if __name__ == "__main__":
    main()
