"""Accuracy of recipes under the full protocol: ``python benchmarks/accuracy.py --minutes 60``.

Every row of `PLAN` is one distillation, scored with `--learners` fresh learners beside random
selection, herding and full data, and appended to ``results/accuracy.csv``. Rows that are there
already are skipped, and no new row is begun once the minutes are spent, so that any session (on a
GPU too) can go on with the same table.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from typing import Any

from common import DATA, append, is_done, machine

import mmdd
from mmdd.progress import PlainProgress
from mmdd.recipe import validate

TABLE = "accuracy"
SETS = {
    "fashion_mnist": str(DATA / "images" / "fashion_mnist"),
    "cifar10_jpeg": str(DATA / "images" / "cifar10_jpeg"),
    "digits": "digits",
}
PAPER = {"evaluate.protocol": "dc", "optimise.steps": 20000, "optimise.inputs.schedule": "constant"}
"""DM as published: 20,000 steps at a constant rate of 1. For GPUs."""


def row(data: str, per_class: int, label: str, **options: Any) -> dict[str, Any]:
    """One line of the plan; `options` are recipe values with '__' for '.'."""
    return {"data": data, "per_class": per_class, "label": label, "options": options}


PLAN = [
    row("fashion_mnist", 10, "dm-8min", run__minutes=8),
    row("fashion_mnist", 1, "dm-5min", run__minutes=5),
]
GPU_PLAN = [
    row(data, per_class, "dm-paper", **{k.replace(".", "__"): v for k, v in PAPER.items()})
    for data in ("fashion_mnist", "cifar10_jpeg")
    for per_class in (1, 10, 50)
]


def measure(line: dict[str, Any], seed: int, learners: int, device: str) -> dict[str, Any]:
    """Distil and score one line."""
    options = {key.replace("__", "."): value for key, value in line["options"].items()}
    timed = "run.minutes" in options
    options |= {
        "evaluate.learners": learners,
        "evaluate.full_minutes": 30,
        "evaluate.full_epochs": 6,
    }
    if timed:
        options.setdefault("optimise.steps", 1_000_000)
    progress = PlainProgress(60)
    with tempfile.TemporaryDirectory() as folder:
        done = mmdd.distill(
            SETS[line["data"]],
            per_class=line["per_class"],
            seed=seed,
            device=device,
            out=f"{folder}/run",
            options=options,
            progress=progress,
        )
    started = time.perf_counter()
    report = done.evaluate(progress=progress)
    found = next(iter(report["results"].values()))
    scores = {
        f"{name}_{part}": round(100 * value[part], 2)
        for name, value in found.items()
        for part in ("mean", "std")
    }
    quick = build_quick(done, progress)
    return {
        **scores,
        **quick,
        "learners": learners,
        "steps": done.run["steps"],
        "distil_seconds": round(done.run["seconds"]),
        "evaluate_seconds": round(time.perf_counter() - started),
        "peak_memory_mb": round(report["peak_memory_mb"]),
        "protocol": f"{report['protocol']['name']} {report['protocol']['epochs']} epochs",
        "selection": report["selection"],
        "bytes": report["budget"]["bytes"],
        "precision": done.run["precision"],
        "options": " ".join(f"{k}={v}" for k, v in options.items()),
    }


def build_quick(done: mmdd.Distilled, progress: PlainProgress) -> dict[str, float]:
    """Score the same set by the quick protocol: what the shorter training costs."""
    values = done.recipe.model_dump()
    values["evaluate"] |= {"protocol": "quick", "full": False}
    recipe = validate(values, "quick")
    parts = dataclasses.replace(done.parts, recipe=recipe)
    found = next(
        iter(dataclasses.replace(done, parts=parts).evaluate(progress=progress)["results"].values())
    )
    return {f"quick_{name}_mean": round(100 * value["mean"], 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--learners", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="part of a line's data or label")
    args = parser.parse_args()
    from mmdd import machine as mm

    device = mm.device(args.device)
    plan = [*PLAN, *GPU_PLAN] if device.type == "cuda" else PLAN
    facts = machine()  # now: the checkout may move on while this runs
    deadline = time.monotonic() + 60 * args.minutes
    for line in plan:
        key = {k: line[k] for k in ("data", "per_class", "label")} | {"seed": args.seed}
        if args.only not in f"{line['data']} {line['label']}" or is_done(TABLE, key):
            continue
        if time.monotonic() > deadline:
            print(f"out of time before {key}")
            break
        append(TABLE, {**key, **measure(line, args.seed, args.learners, str(device)), **facts})
        print(f"done: {key}")


if __name__ == "__main__":
    main()
