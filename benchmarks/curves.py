"""Accuracy against steps, beside a plainly written reference: ``python benchmarks/curves.py``.

Fashion-MNIST, a narrow ConvNet (D3, width 32), so that whole published schedules fit on few
cores. A line is one distillation of so many steps: ours, or the plain loop (float32, one class
after the other, PyTorch's own layers) with the same start images, rates, schedule and
augmentation. Both sets are scored alike, on the test split, by fresh learners of the same width.

Lines that ``results/curves.csv`` holds are skipped; none is begun once ``--minutes`` are spent.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import torch
from common import DATA, append, is_done, machine
from gradient_step import PlainNet, PlainStep, plain_loss
from torch import Tensor

from mmdd import build, compose
from mmdd import machine as mm
from mmdd.batch import Batch
from mmdd.evaluate import Trainer, score
from mmdd.optimise import schedule_factor
from mmdd.progress import PlainProgress
from mmdd.results import detached
from mmdd.scores import Scores

TABLE, WIDTH = "curves", 32
PLAN = [
    # (method, items per class, steps): DSA's published schedule at one per class is 1,000 steps
    *(("dsa", 1, steps) for steps in (30, 100, 300, 1000)),
    *(("dm", 1, steps) for steps in (30, 100, 300, 1000)),
    *(("dm", 10, steps) for steps in (30, 100, 300, 1000)),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "dsa": {"optimise.inputs.lr": 1.0, "optimise.inputs.schedule": "cosine"},
    "dm": {},
}


class PlainDM(PlainStep):
    """The plain step with DM's loss: class means of features."""

    @staticmethod
    def loss(net: PlainNet, real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
        """Sum over classes of squared distances."""
        pairs = zip(real, synthetic, strict=True)
        means = [[net.body(x).flatten(1).mean(dim=0) for x in pair] for pair in pairs]
        return torch.stack([(a.detach() - b).square().sum() for a, b in means]).sum()


def plain(parts: build.Parts, splits: Any, steps: int) -> tuple[Batch, float]:
    """Distil by the plain loop; returns the set and its seconds."""
    recipe, info = parts.recipe, parts.info
    ours = build.distiller(parts, splits)
    channels, side, _ = info.shape

    def make() -> PlainNet:
        return PlainNet(channels, side, info.classes, WIDTH, 3).to(parts.device)

    loss = PlainDM.loss if recipe.method == "dm" else plain_loss
    step = PlainStep(ours, make, augment=True, loss=loss)
    options = recipe.optimise.inputs
    low, high = (bound.to(parts.device) for bound in parts.modality.bounds(info))
    started = time.perf_counter()
    for number in range(steps):
        for group in step.optimiser.param_groups:
            factor = schedule_factor(options, number, steps)
            group.update(lr=options.lr * factor, momentum=options.momentum)
        step()
        with torch.no_grad():
            for images in step.images:
                images.copy_(torch.minimum(torch.maximum(images, low), high))
    seconds = time.perf_counter() - started
    start = detached(ours.synthetic)
    made = torch.cat([images.detach() for images in step.images])
    order = torch.argsort(start.groups, stable=True)
    return dataclasses.replace(start.select(order), inputs=made), seconds


def ours(parts: build.Parts, splits: Any, steps: int) -> tuple[Batch, float]:
    """Distil by this package."""
    distiller = build.distiller(parts, splits)
    started = time.perf_counter()
    for _ in range(steps):
        distiller.step()
    return detached(distiller.synthetic), time.perf_counter() - started


def scored(parts: build.Parts, splits: Any, batch: Batch, learners: int) -> Scores:
    """Test accuracies of fresh learners trained on the set."""
    protocol = parts.recipe.evaluate.resolved()
    learner = parts.learner(3.0 * protocol.epochs * len(batch) * learners)
    trainer: Trainer = parts.trainer(learner, protocol, None)
    trained = trainer.train([batch] * learners)
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
            batch, seconds = make(parts, splits, steps)
            found = scored(parts, splits, batch, args.learners)
            row = {"mean": round(100 * found.mean, 2), "std": round(100 * found.std, 2)}
            more = {"learners": args.learners, "seconds": round(seconds), "width": WIDTH}
            append(TABLE, {**key, **row, **more, **facts})
            progress.say(f"{key} {row} {seconds:.0f} s")


if __name__ == "__main__":
    main()
