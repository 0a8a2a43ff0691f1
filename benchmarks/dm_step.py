"""Speed of a DM step beside a plainly written one: ``python benchmarks/dm_step.py``.

Fashion-MNIST, 10 images per class, ConvNet-D3-W128, 256 real images per class, DSA. The plain step
is float32, one class after the other, PyTorch's own layers: what the papers' repositories do. Both
are timed in turn in the same process. Also printed: the error of the class-mean features, and the
distance to the machine's arithmetic limit (measured by a large matrix product).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import DATA, alternate, append, machine, median, memory_option, settled_memory
from torch import Tensor, nn

from mmdd import build, compose
from mmdd import machine as mm
from mmdd.modalities.images.augment import DSA

REAL, ROUNDS = 256, 7


class PlainNet(nn.Module):
    """The field's ConvNet as it is usually written."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for depth in range(3):
            layers.append(nn.Conv2d(channels, width, 3, padding=3 if depth == 0 else 1))
            layers += [nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
            channels = width
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, 16 * width]."""
        return self.body(x).flatten(1)


def plain_step(
    synthetic: list[Tensor],
    real: list[Tensor],
    augment: DSA,
    rng: torch.Generator,
    width: int,
    device: torch.device,
) -> float:
    """One DM step, one class at a time; returns its seconds."""
    _wait(device)
    started = time.perf_counter()
    net = PlainNet(width).to(device)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    loss = torch.zeros((), device=device)
    for images, members in zip(synthetic, real, strict=True):
        chosen = members[torch.randperm(len(members), generator=rng)[:REAL].to(members.device)]
        draw = augment.draw(1, rng)
        a = augment(chosen, draw, torch.zeros(len(chosen), dtype=torch.long))
        b = augment(images, draw, torch.zeros(len(images), dtype=torch.long))
        target = net(a).detach().mean(dim=0)
        loss = loss + (target - net(b).mean(dim=0)).square().sum()
    grads = torch.autograd.grad(loss, synthetic)
    with torch.no_grad():
        for images, grad in zip(synthetic, grads, strict=True):
            images -= grad
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limit(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a large matrix product, best of ten."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        started = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def feature_error(step: Any) -> float:
    """Relative error of the class-mean features of the fast path against float32, eager."""
    from mmdd.learner import Learner

    learner = step.learner
    exact = Learner(learner.encoder, learner.task, device=learner.device)
    batch = step.real_batch()
    groups = step.real.num_groups
    with torch.no_grad():
        fast = batch.group_means(learner.features(step.drawn.params, batch), groups)
        slow = batch.group_means(exact.features(step.drawn.params, batch), groups)
    return float((fast - slow).norm() / slow.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(DATA / "images" / "fashion_mnist"))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    memory_option(parser)
    args = parser.parse_args()
    memory = settled_memory(args)
    device = mm.device(args.device)
    recipe = compose.compose(
        flags={"data.source": args.data, "run.device": str(device)},
        options={"learner.width": args.width, "optimise.steps": 20000},
    )
    splits = build.open_data(recipe, None, device)
    parts = build.parts(recipe, splits.info, device)
    ours = build.distiller(parts, splits)
    groups = range(splits.info.classes)
    real = [splits.train.select(splits.train.members(g)).inputs for g in groups]
    batch = ours.synthetic.batch()
    plain = [batch.inputs[batch.groups == g].detach().clone().requires_grad_() for g in groups]
    augment, rng = DSA(), torch.Generator().manual_seed(0)

    def fast() -> float:
        _wait(device)
        started = time.perf_counter()
        ours.step()
        _wait(device)
        return time.perf_counter() - started

    def slow() -> float:
        return plain_step(plain, real, augment, rng, args.width, device)

    started = time.perf_counter()
    fast()
    compile_seconds = time.perf_counter() - started
    fast(), slow()
    mine, theirs = alternate(fast, slow, args.rounds)
    ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
    flops = mm.flops_per_item(
        parts.modality.encoder(recipe.learner, splits.info).to(device),
        parts.modality.example(splits.info).to(device),
    )
    work = flops * (REAL * splits.info.classes + 3 * len(ours.synthetic))
    step = ours._comparison()
    row = {
        "benchmark": "dm_step",
        "data": splits.info.source.rsplit("/", 1)[-1],
        "width": args.width,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": str(ours.learner.dtype).removeprefix("torch."),
        "seconds_per_step": round(median(mine), 4),
        "plain_seconds_per_step": round(median(theirs), 4),
        "ratio_median": round(median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "memory": memory,
        "first_step_seconds": round(compile_seconds, 1),
        "gflop_per_step": round(work / 1e9, 1),
        "limit_float32_s": round(work / limit(torch.float32, device), 3),
        "limit_bfloat16_s": round(work / limit(torch.bfloat16, device), 3),
        "feature_relative_error": f"{feature_error(step):.2e}",
        **machine(),
    }
    for key, value in row.items():
        print(f"{key:<26} {value}")
    append("dm_step", row)


if __name__ == "__main__":
    main()
