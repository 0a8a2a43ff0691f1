"""Speed of recording expert trajectories: ``python benchmarks/experts.py``.

Digits, ConvNet of width 32, DSA, mini-batches of 32. The same experts are recorded stacked and one
after the other, in turn in the same process; both write their files. Also printed: what the
recorder would choose by itself, how far the two ways end apart, and the time to read one snapshot.
Stacking pays where steps are small: ``--batch 256`` shows where it no longer does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import alternate, append, machine, median

from mmdd import build, compose
from mmdd import machine as mm
from mmdd.cohort import stack_size
from mmdd.expert_options import Recording
from mmdd.experts import Experts
from mmdd.recording import record

READS = 100


def difference(one: Experts, two: Experts) -> float:
    """Largest relative distance between the ends of the same experts, over the way they went."""
    worst = 0.0
    for expert in range(one.count):
        first, a, b = (
            torch.cat([value.flatten() for value in params.values()])
            for params in (one.first(expert), one.last(expert), two.last(expert))
        )
        worst = max(worst, float((a - b).norm() / (a - first).norm()))
    return worst


def read_seconds(experts: Experts) -> float:
    """Median time to read one snapshot, each another one."""
    times = []
    for number in range(READS):
        started = time.perf_counter()
        experts.params(number % experts.count, number % (experts.epochs + 1))
        times.append(time.perf_counter() - started)
    return median(times)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sharpness", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    device = mm.device(args.device)
    recipe = compose.compose(
        flags={"data.source": args.data, "run.device": str(device)},
        options={"learner.width": args.width, "run.compile": False},
    )
    splits = build.open_data(recipe, None, device)
    parts = build.parts(recipe, splits.info, device)
    learner, augmentation = parts.learner(1.0), parts.augmentation()
    example = splits.train.select(torch.arange(1))
    plan = Recording(
        count=args.experts, epochs=args.epochs, batch_size=args.batch, sharpness=args.sharpness
    )
    made: dict[int, Experts] = {}
    with tempfile.TemporaryDirectory() as root:

        def timed(stacked: int) -> Callable[[], float]:
            def once() -> float:
                folder = tempfile.mkdtemp(dir=root)
                started = time.perf_counter()
                made[stacked] = record(
                    Path(folder),
                    learner,
                    splits.train,
                    plan,
                    seed=0,
                    augmentation=augmentation,
                    fingerprint=splits.info.fingerprint,
                    about={},
                    stacked=stacked,
                )
                return time.perf_counter() - started

            return once

        together, alone = timed(args.experts), timed(1)
        together(), alone()  # first calls also load kernels
        stacked, single = alternate(together, alone, args.rounds)
        apart = difference(made[args.experts], made[1])
        read = read_seconds(made[1])
    ratios = [b / a for a, b in zip(stacked, single, strict=True)]
    done = args.experts * args.epochs
    row = {
        "benchmark": "experts",
        "data": splits.info.source.rsplit("/", 1)[-1],
        "width": args.width,
        "batch": args.batch,
        "sharpness": args.sharpness,
        "experts": args.experts,
        "epochs": args.epochs,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "automatic": stack_size(learner, example, args.batch),
        "precision": str(learner.dtype).removeprefix("torch."),
        "stacked_seconds": round(median(stacked), 3),
        "alone_seconds": round(median(single), 3),
        "ratio_median": round(median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "stacked_epochs_per_core_second": round(done / median(stacked) / args.threads, 3),
        "alone_epochs_per_core_second": round(done / median(single) / args.threads, 3),
        "relative_difference": f"{apart:.1e}",
        "mb": round(made[1].nbytes / 2**20, 2),
        "read_ms": round(1000 * read, 3),
        **machine(),
    }
    for key, value in row.items():
        print(f"{key:<32} {value}")
    append("experts", row)


if __name__ == "__main__":
    main()
