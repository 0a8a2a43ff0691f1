"""Accuracy against steps, beside a plainly written reference: ``python benchmarks/curves.py``.

Fashion-MNIST, a narrow ConvNet (D3, width 32), so that whole published schedules fit on few
cores. A line is one distillation of so many steps: ours, or the plain loop (float32, one class
after the other, PyTorch's own layers) with the same start images, rates, schedule and
augmentation. Both sets are scored alike, on the test split, by fresh learners of the same width.

Lines that ``results/curves.csv`` holds are skipped; none is begun once ``--minutes`` are spent.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from common import DATA, FEW_EXPERTS, append, is_done, machine
from plain import PLAIN

from mmdd import build, compose
from mmdd import machine as mm
from mmdd.batch import Batch
from mmdd.distiller import Distiller
from mmdd.evaluate import score
from mmdd.modality import Splits
from mmdd.progress import PlainProgress
from mmdd.results import detached
from mmdd.scores import Scores

TABLE, WIDTH = "curves", 32
PLAN = [
    # (method, items per class, steps): DSA's published schedule at one per class is 1,000 steps
    *(("dsa", 1, steps) for steps in (30, 100, 300, 1000)),
    *(("mtt", 1, steps) for steps in (100, 300, 1000)),
    *(("dance", 1, steps) for steps in (30, 100, 300, 1000)),
    *(("idc", 1, steps) for steps in (30, 100, 300, 1000)),
    *(("dm", 1, steps) for steps in (30, 100, 300, 1000)),
    *(("dm", 10, steps) for steps in (30, 100, 300, 1000)),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "dsa": {"optimise.inputs.lr": 1.0, "optimise.inputs.schedule": "cosine"},
    "dm": {},
    "dance": {
        "experts.count": 4,
        "experts.epochs": 1,
        "experts.epoch_steps": 300,
        "experts.batch_size": 256,
        "experts.schedule": "constant",
    },
    "idc": {},
    "mtt": FEW_EXPERTS,
}
WITH_EXPERTS = ("dance", "mtt")


Made = tuple[Batch, float | None, float]
"""A set, its step size if it has learned one, and the seconds that it took."""


def plain(distiller: Distiller, parts: build.Parts, steps: int) -> Made:
    """Distil by the plain loop."""
    run = PLAIN[parts.recipe.method](distiller, parts)
    started = time.perf_counter()
    for number in range(steps):
        run.step(number, steps)
    return *run.result(), time.perf_counter() - started


def ours(distiller: Distiller, parts: build.Parts, steps: int) -> Made:
    """Distil by this package."""
    started = time.perf_counter()
    for _ in range(steps):
        distiller.step()
    made = distiller.synthetic
    rate = None if made.step_size is None else float(made.step_size.values().detach())
    return detached(made), rate, time.perf_counter() - started


def scored(
    parts: build.Parts, splits: Splits, batch: Batch, rate: float | None, learners: int
) -> Scores:
    """Test accuracies of fresh learners trained on the set."""
    protocol = parts.recipe.protocol
    if protocol.lr == "learned":
        protocol = protocol.model_copy(update={"lr": rate})
    learner = parts.learner(3.0 * protocol.epochs * len(batch) * learners)
    trained = parts.trainer(learner, protocol, None).train([batch] * learners)
    return Scores(tuple(score(learner, params, splits.test) for params in trained))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--learners", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="a method")
    args = parser.parse_args()
    device, facts = mm.device(args.device), machine()
    deadline, progress = time.monotonic() + 60 * args.minutes, PlainProgress(60)
    for method, per_class, steps in PLAN:
        for who, make in (("ours", ours), ("plain", plain)):
            key = {"method": method, "per_class": per_class, "steps": steps, "who": who}
            if args.only not in method or is_done(TABLE, key) or time.monotonic() > deadline:
                continue
            recipe = compose.from_flags(
                str(DATA / "images" / "fashion_mnist"),
                method=method,
                per_class=per_class,
                steps=steps,
                device=str(device),
                options={
                    "learner.width": WIDTH,
                    "evaluate.epochs": 300,
                    **OPTIONS[method],
                },
            )
            splits = build.open_data(recipe, None, device)
            parts = build.parts(recipe, splits.info, device)
            experts = build.experts(parts, splits, progress) if method in WITH_EXPERTS else None
            batch, rate, seconds = make(build.distiller(parts, splits, experts), parts, steps)
            found = scored(parts, splits, batch, rate, args.learners)
            row = {"mean": round(100 * found.mean, 2), "std": round(100 * found.std, 2)}
            more = {"learners": args.learners, "seconds": round(seconds), "width": WIDTH}
            append(TABLE, {**key, **row, **more, **facts})
            progress.say(f"{key} {row} {seconds:.0f} s")


if __name__ == "__main__":
    main()
