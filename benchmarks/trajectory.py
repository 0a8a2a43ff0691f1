"""Memory and time of a step of trajectory matching: ``python benchmarks/trajectory.py``.

Fashion-MNIST (digits where it is absent), 10 images per class, ConvNet-D3, DSA at every inner step.
Four ways to the same loss: its graph unrolled through all inner steps (float32, uncompiled: what
the MTT repository does), ``exact`` uncompiled and compiled, and ``tesla``. Each runs in a fresh
process; all but the first keep freed memory, as every run of this package does. Memory is the
largest resident set during the measured steps, with and without what the process held before its
first step. Errors are those of the items' gradient at ``--check`` inner steps, against the unrolled
graph in float64.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import DATA, append, machine, median
from torch import Tensor

from mmdd import machine as mm
from mmdd.labels import HardLabels
from mmdd.learner import Learner
from mmdd.modalities.images.augment import DSA
from mmdd.modalities.images.convnet import ConvNet
from mmdd.modalities.images.data import open_images
from mmdd.modalities.images.options import ImageData
from mmdd.objectives.trajectory import TrajectoryMatching
from mmdd.real import RealData
from mmdd.representations import Direct
from mmdd.rng import generator
from mmdd.sources import Drawn
from mmdd.step import Step
from mmdd.synthetic import StepSize, SyntheticSet
from mmdd.tasks.classification import Classification
from mmdd.training import Student

WAYS = {
    "unrolled": ("unrolled", False),
    "exact": ("exact", False),
    "exact compiled": ("exact", True),
    "tesla": ("tesla", False),
    "tesla compiled": ("tesla", True),
}
"""Memory mode, and whether the learner is compiled. The first one is what the others are set
against."""
PER_CLASS, RATE = 10, 0.01
EXPERT_STEPS, EXPERT_BATCH = 10, 128


# -- one way, in a process of its own --------------------------------------------------------------


def synthetic_set(data: RealData, device: torch.device) -> SyntheticSet:
    """The first real items of every class."""
    groups = torch.arange(data.num_groups).repeat_interleave(PER_CLASS)
    index = torch.cat([data.members(group)[:PER_CLASS] for group in range(data.num_groups)])
    items = Direct(data.select(index).inputs)
    made = SyntheticSet(items, HardLabels(groups), groups, data.num_groups)
    made.step_size = StepSize(RATE)
    return made.to(device)


def segment(learner: Learner, data: RealData) -> Drawn:
    """A fresh net, and where some SGD steps on real items take it."""
    start = learner.init(generator(0, "net"))
    student, stream = Student(learner, start, lr=RATE), generator(0, "real")
    for _ in range(EXPERT_STEPS):
        student.step(data.select(torch.randint(len(data), (EXPERT_BATCH,), generator=stream)))
    return Drawn(start, target=student.snapshot())


def comparison(args: argparse.Namespace, compiled: bool) -> tuple[Step, str]:
    """One step of a run, and what the data are called."""
    device = mm.device(args.device)
    known = Path(args.data).exists()
    splits = open_images(args.data if known else "digits", ImageData(), device)
    data, (channels, height, width) = splits.train, splits.info.shape
    net = ConvNet(channels, height, width, splits.info.classes, width=args.width)
    learner = Learner(net, Classification(), device=device, compiled=compiled)
    step = Step(
        number=0,
        learner=learner,
        drawn=segment(Learner(net, Classification(), device=device), data),
        synthetic=synthetic_set(data, device),
        real=data,
        per_group=1,
        generator=generator(0, "unused"),
        augmentation=DSA(),
    )
    return step, splits.info.source.rsplit("/", 1)[-1]


def seconds(step: Step, objective: TrajectoryMatching) -> float:
    """Time of one loss with its gradient."""
    wait = torch.cuda.synchronize if step.learner.device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    objective(step).backward()
    wait()
    return time.perf_counter() - started


class Resident:
    """Memory of this process in MiB: now, and the most since the last `forget`."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def now(self) -> float:
        """What is held."""
        if self.cuda:
            return torch.cuda.memory_allocated() / 2**20
        return self._status("VmRSS")

    def peak(self) -> float:
        """The most that was held."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        return self._status("VmHWM")

    def forget(self) -> None:
        """Start counting anew."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            # 5 resets the high-water mark of a Linux process: see proc(5)
            Path("/proc/self/clear_refs").write_text("5")

    @staticmethod
    def _status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**10


def item_gradient(step: Step, objective: TrajectoryMatching) -> Tensor:
    """Derivative with respect to the items, in one row of float64."""
    leaf = step.synthetic.leaves()["inputs"]
    return torch.autograd.grad(objective(step), leaf)[0].double().flatten()


def errors(step: Step, memory: Any, inner: int) -> dict[str, str]:
    """Distance from the gradient in float64, and its cosine with it."""
    ours = item_gradient(step, TrajectoryMatching(inner, memory))
    net, device = step.learner.encoder, step.learner.device
    wide = Learner(net, step.learner.task, device=device, precision="float64")
    made = dataclasses.replace(step, learner=wide, synthetic=step.synthetic.double())
    exact = item_gradient(made, TrajectoryMatching(inner, "unrolled"))
    return {
        "relative_error": f"{float((ours - exact).norm() / exact.norm()):.2e}",
        "cosine": f"{float(ours @ exact / ours.norm() / exact.norm()):.5f}",
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one way at one number of inner steps."""
    limit_memory()
    memory, compiled = WAYS[args.way]
    if memory != "unrolled":
        mm.keep_memory()
    step, data = comparison(args, compiled)
    resident = Resident(step.learner.device)
    objective = TrajectoryMatching(args.inner, memory)
    before = resident.now()
    first = seconds(step, objective)
    gc.collect()
    resident.forget()
    times = [seconds(step, objective) for _ in range(args.rounds)]
    peak = resident.peak()
    found: dict[str, Any] = {
        "data": data,
        "seconds_per_step": round(median(times), 4),
        "first_step_seconds": round(first, 1),
        "peak_mb": round(peak),
        "added_mb": round(peak - before),
    }
    if args.check:
        found |= {"check": args.check, **errors(step, memory, args.check)}
    return found


def limit_memory() -> None:
    """Fail alone, with an exception, before the machine runs out of memory."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * free * 2**10),) * 2)


# -- all of them -----------------------------------------------------------------------------------


def in_process(args: argparse.Namespace, way: str, inner: int, check: int) -> dict[str, Any]:
    """Measure in a fresh interpreter; one that fails is recorded as such."""
    asked = {"way": way, "inner": inner, "check": check, "width": args.width, "data": args.data}
    asked |= {"device": args.device, "rounds": args.rounds}
    told = [f"--{name}={value}" for name, value in asked.items()]
    done = subprocess.run([sys.executable, __file__, *told], capture_output=True, text=True)
    if done.returncode == 0:
        return {**json.loads(done.stdout.splitlines()[-1]), "status": "done"}
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    short = "out of memory" if "memory" in last or done.returncode == -9 else last[:80]
    return {"status": short}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(DATA / "images" / "fashion_mnist"))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--inner", default="10,50,200", help="numbers of inner steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", type=int, default=3, help="inner steps of the error; 0: none")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--way", choices=WAYS, help="measure this one, in this process")
    args = parser.parse_args()
    if args.way:
        args.inner = int(args.inner)
        print(json.dumps(measure(args)))
        return
    for place, inner in enumerate(int(part) for part in args.inner.split(",")):
        plain: float | None = None
        for way in WAYS:
            found = in_process(args, way, inner, 0 if place else args.check)
            own = found.get("seconds_per_step")
            plain = own if way == "unrolled" else plain
            row = {
                "benchmark": "trajectory",
                "way": way,
                "inner": inner,
                "width": args.width,
                "device": str(mm.device(args.device)),
                "threads": torch.get_num_threads(),
                **found,
                "time_of_unrolled": round(own / plain, 2) if own and plain else "",
                **machine(),
            }
            append("trajectory", row)
            told = ("seconds_per_step", "time_of_unrolled", "added_mb", "relative_error", "cosine")
            shown = ", ".join(f"{name} {row[name]}" for name in told if name in row)
            print(f"N={inner:<4} {way:<15} {row['status']}: {shown}", flush=True)


if __name__ == "__main__":
    main()
