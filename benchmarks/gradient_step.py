"""Speed of a gradient-matching step beside a plainly written one.

``python benchmarks/gradient_step.py``: Fashion-MNIST (digits where it is absent), 10 images per
class, ConvNet-D3-W128, 256 real images per class, without augmentation (DC) and with DSA. A step
is the loss at a new net, its derivative and the update of the images; nets are not trained in
between. The plain step is float32, one class after the other, PyTorch's own layers, the derivative
of ``autograd.grad(create_graph=True)``: what the papers' repositories do. Both are timed in turn in
the same process, by the clock and by the seconds of all cores. Also printed: the angle between the
images' gradients of the two, at the same net and items, and where the time of a step goes.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import DATA, alternate, append, machine, median, memory_option, settled_memory
from plain import PlainNet, plain_loss
from torch import Tensor

from mmdd import build, compose
from mmdd import machine as mm
from mmdd.distiller import Distiller
from mmdd.modalities.images.augment import DSA

REAL, PER_CLASS, ROUNDS = 256, 10, 5


class PlainStep:
    """A plain step on images of its own."""

    def __init__(
        self,
        ours: Distiller,
        make: Callable[[], PlainNet],
        augment: bool,
    ) -> None:
        batch, groups = ours.synthetic.batch(), range(ours.real.num_groups)
        self.images = [batch.inputs[batch.groups == g].detach().clone() for g in groups]
        for images in self.images:
            images.requires_grad_()
        self.members = [ours.real.select(ours.real.members(g)).inputs for g in groups]
        self.make, self.augment = make, DSA() if augment else None
        self.optimiser = torch.optim.SGD(self.images, 0.1, momentum=0.5)
        self.stream = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        """Update the images once."""
        real = []
        for members in self.members:
            order = torch.randperm(len(members), generator=self.stream)[:REAL]
            real.append(members[order.to(members.device)])
        synthetic: list[Tensor] = self.images
        if self.augment is not None:
            draws = [self.augment.draw(1, self.stream) for _ in real]
            rows = [torch.zeros(len(x), dtype=torch.long, device=x.device) for x in real]
            both = list(zip(draws, rows, real, synthetic, strict=True))
            real = [self.augment(x, draw, row) for draw, row, x, _ in both]
            synthetic = [self.augment(y, draw, row[: len(y)]) for draw, row, _, y in both]
        self.optimiser.zero_grad()
        plain_loss(self.make(), real, synthetic).backward()
        self.optimiser.step()


def angle(ours: Distiller, make: Callable[[], PlainNet]) -> float:
    """Cosine between the images' gradients, ours and the plain one, at the same net and items."""
    step = dataclasses.replace(ours._comparison(), augmentation=None)
    index = step.real.draw_index(step.per_group, step.generator)
    step = dataclasses.replace(step, selector=lambda _: index)
    leaf = ours.synthetic.leaves()["inputs"]
    (mine,) = torch.autograd.grad(ours.objective(step), leaf)
    real, synthetic, groups = step.real_batch(), step.synthetic_batch(), range(len(index) // REAL)
    sides = [[b.inputs[b.groups == g] for g in groups] for b in (real, synthetic)]
    (theirs,) = torch.autograd.grad(plain_loss(make().holding(step.drawn.params), *sides), leaf)
    return float(F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0))


def real_share(ours: Distiller, seconds: float) -> float:
    """Share of a step that the real gradients take: the others are left out, one by one."""
    objective: Any = ours.objective
    comparison = objective.terms[0][1]._comparison
    step = ours._comparison()
    own, compare = comparison._separate, comparison._separate

    def none(learned: list[Tensor], *rest: Any) -> tuple[list[Tensor], Tensor]:
        return [torch.zeros_like(leaf) for leaf in learned], torch.zeros(1, device=ours.real.device)

    comparison._separate = none
    found = median([timed(lambda: ours.objective(step), ours.real.device)[0] for _ in range(3)])
    comparison._separate = compare
    assert own is compare
    return found / seconds


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds by the clock, and of all cores together."""
    wait(device)
    started, worked = time.perf_counter(), time.process_time()
    call()
    wait(device)
    return time.perf_counter() - started, time.process_time() - worked


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    device = mm.device(args.device)
    recipe = compose.compose(
        method=method,
        flags={"data.source": args.data, "run.device": str(device)},
        options={
            "learner.width": args.width,
            "learner.depth": args.depth,
            "synthetic.per_class": PER_CLASS,
            "synthetic.initialise": "real",
            "source": {"kind": "fresh"},
            "run.precision": args.precision,
            "run.compile": True,
            "real.per_group": REAL,
        },
    )
    splits = build.open_data(recipe, None, device)
    parts = build.parts(recipe, splits.info, device)
    ours = build.distiller(parts, splits)
    channels, side, _ = splits.info.shape
    shape = (channels, side, splits.info.classes, args.width, args.depth)

    def make() -> PlainNet:
        return PlainNet(*shape).to(device)

    plain = PlainStep(ours, make, augment=method == "dsa")
    first = timed(ours.step, device)[0]
    ours.step(), plain()
    pairs = alternate(lambda: timed(ours.step, device), lambda: timed(plain, device), args.rounds)
    mine, theirs = ([list(column) for column in zip(*side, strict=True)] for side in pairs)
    ratios = [b / a for a, b in zip(mine[0], theirs[0], strict=True)]
    cores = [b / a for a, b in zip(mine[1], theirs[1], strict=True)]
    return {
        "benchmark": "gradient_step",
        "data": splits.info.source.rsplit("/", 1)[-1],
        "method": method,
        "width": args.width,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": str(ours.learner.dtype).removeprefix("torch."),
        "seconds_per_step": round(median(mine[0]), 3),
        "plain_seconds_per_step": round(median(theirs[0]), 3),
        "ratio_median": round(median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "core_seconds_per_step": round(median(mine[1]), 3),
        "plain_core_seconds_per_step": round(median(theirs[1]), 3),
        "core_ratio_median": round(median(cores), 2),
        "first_step_seconds": round(first, 1),
        "real_share": round(real_share(ours, median(mine[0])), 2),
        "gradient_cosine": f"{angle(ours, make):.5f}",
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    images = DATA / "images" / "fashion_mnist"
    parser.add_argument("--data", default=str(images) if images.exists() else "digits")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--methods", default="dc,dsa")
    memory_option(parser)
    args = parser.parse_args()
    memory = settled_memory(args)
    if args.depth is None:
        args.depth = 3 if Path(args.data).exists() else 2
    for method in args.methods.split(","):
        row = {**measure(method, args), "memory": memory}
        for key, value in row.items():
            print(f"{key:<28} {value}")
        append("gradient_step", row)


if __name__ == "__main__":
    main()
