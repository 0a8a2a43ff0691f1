"""Speed of video, series and audio: ``python benchmarks/series_video_speed.py --only video``.

``video``: a DM step on GRID digits, ten clips per class, beside a plainly written one: float32, one
class after the other, PyTorch's own 3-D layers. Both are timed in turn in the same process. Also
printed: how far value and gradient of one comparison (same net, clips and draw) are from the plain
ones, as the step is run and in eager float32.

``series``: a CondTSF run on ETTh1, 300 steps from expert training to the last score, with scores on
validation on the way.

``audio``: the real side of a step on FSDD, spectra from the cache and one augmentation for the
batch, beside spectra and augmentation clip by clip in Python.

Rows that ``results/series_video_speed.csv`` holds are skipped. A busy machine tells little by its
clock: `cpu_seconds` are those of this process.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from common import DATA, alternate, append, is_done, machine, median
from torch import Tensor, nn

import mmdd
from mmdd import build, compose
from mmdd.distiller import Distiller
from mmdd.learner import Learner, Params
from mmdd.modalities.audio.spectra import LogMel
from mmdd.modality import Augmentation
from mmdd.step import Step

TABLE = "series_video_speed"
PER_CLASS, REAL, ROUNDS = 10, 32, 3
SERIES = {"data.borders": [8640, 2880, 2880], "data.season": 24, "evaluate.every": 50}


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def opened(data: str, method: str, **options: Any) -> tuple[Distiller, build.Parts, Any]:
    """A run at step 0, its parts and the opened splits."""
    given = {key.replace("__", "."): value for key, value in options.items()}
    recipe = compose.from_flags(
        str(DATA / data), method=method, per_class=PER_CLASS, device="cpu", options=given
    )
    splits = build.open_data(recipe, None, torch.device("cpu"))
    parts = build.parts(recipe, splits.info, torch.device("cpu"))
    return build.distiller(parts, splits), parts, splits


# -- video -----------------------------------------------------------------------------------------


class PlainNet(nn.Module):
    """The ConvNet of clips as it is usually written, with the sizes of `encoder`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in encoder.blocks:
            own = block[0]
            shape = (own.in_channels, own.out_channels, own.kernel_size, own.stride, own.padding)
            layers += [nn.Conv3d(*shape), nn.GroupNorm(own.out_channels, own.out_channels)]
            layers += [nn.ReLU(), nn.AvgPool3d(2 if block[-1].frames else (1, 2, 2))]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, D]."""
        return self.body(x).flatten(1)

    def load(self, params: Params) -> PlainNet:
        """Take the numbers of a learner's net, which has the same parameters in the same order."""
        with torch.no_grad():
            for own, other in zip(self.parameters(), params.values(), strict=False):
                own.copy_(other)
        return self.requires_grad_(requires_grad=False)


def plain_loss(net: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """DM, class by class, of real and synthetic clips."""
    loss = torch.zeros(())
    for real, synthetic in pairs:
        with torch.no_grad():
            target = net(real).mean(dim=0)
        loss = loss + (target - net(synthetic).mean(dim=0)).square().sum()
    return loss


class PlainStep:
    """A DM step on clips of its own, one class after the other."""

    def __init__(self, ours: Distiller, splits: Any, augmentation: Augmentation) -> None:
        groups = range(splits.info.classes)
        train, batch = splits.train, ours.synthetic.batch()
        self.real = [train.select(train.members(g)).inputs for g in groups]
        own = [batch.inputs[batch.groups == g] for g in groups]
        self.synthetic = [clips.detach().clone().requires_grad_() for clips in own]
        self.encoder, self.augmentation = ours.learner.encoder, augmentation
        self.rng = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        """Draw, compare, step."""
        net = PlainNet(self.encoder).requires_grad_(requires_grad=False)
        pairs = []
        for real, synthetic in zip(self.real, self.synthetic, strict=True):
            chosen = real[torch.randperm(len(real), generator=self.rng)[:REAL]]
            draw = self.augmentation.draw(1, self.rng)
            rows = [torch.zeros(len(clips), dtype=torch.long) for clips in (chosen, synthetic)]
            pairs.append(
                (
                    self.augmentation(chosen, draw, rows[0]),
                    self.augmentation(synthetic, draw, rows[1]),
                )
            )
        gradients = torch.autograd.grad(plain_loss(net, pairs), self.synthetic)
        with torch.no_grad():
            for clips, gradient in zip(self.synthetic, gradients, strict=True):
                clips -= gradient


def compared(ours: Distiller, step: Step, learner: Learner) -> tuple[float, float]:
    """Relative error of the value, and cosine of the gradient, against the plain loop."""
    step = dataclasses.replace(step, learner=learner)
    state = step.generator.get_state()
    leaf = ours.synthetic.leaves()["inputs"]
    found = ours.objective(step)
    own = torch.autograd.grad(found, leaf)[0].flatten().double()
    step.generator.set_state(state)
    real, synthetic = step.real_batch(), step.synthetic_batch()
    step.generator.set_state(state)
    pairs = [
        (real.inputs[real.groups == g], synthetic.inputs[synthetic.groups == g])
        for g in torch.unique(real.groups).tolist()
    ]
    plain = plain_loss(PlainNet(learner.encoder).load(step.drawn.params), pairs)
    slope = torch.autograd.grad(plain, leaf)[0].flatten().double()
    error = abs(float(found.detach()) - float(plain.detach())) / float(plain.detach())
    return error, float(torch.nn.functional.cosine_similarity(own, slope, dim=0))


def video(rounds: int) -> dict[str, Any]:
    """The step beside a loop over classes."""
    ours, parts, splits = opened(
        "video/grid_digit", "dm", real__per_group=REAL, optimise__steps=1000
    )
    augmentation = parts.augmentation()
    assert augmentation is not None
    plain = PlainStep(ours, splits, augmentation)
    first = timed(ours.step)
    timed(ours.step), timed(plain)
    mine, theirs = alternate(lambda: timed(ours.step), lambda: timed(plain), rounds)
    step = ours._comparison()
    error, cosine = compared(ours, step, ours.learner)
    exact = Learner(ours.learner.encoder, ours.learner.task)
    exact_error, exact_cosine = compared(ours, step, exact)
    return {
        "precision": str(ours.learner.dtype).removeprefix("torch."),
        "compiled": ours.learner.compiled,
        "seconds": round(median(mine), 3),
        "plain_seconds": round(median(theirs), 3),
        **ratios(mine, theirs),
        "first_step_seconds": round(first, 1),
        "value_error": f"{error:.1e}",
        "gradient_cosine": round(cosine, 5),
        "float32_value_error": f"{exact_error:.1e}",
        "float32_gradient_cosine": round(exact_cosine, 7),
    }


def ratios(mine: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as long the plain way takes."""
    found = [b / a for a, b in zip(mine, theirs, strict=True)]
    names = {"median": median(found), "min": min(found), "max": max(found)}
    return {f"ratio_{name}": round(value, 2) for name, value in names.items()}


# -- series ----------------------------------------------------------------------------------------


def series(rounds: int) -> dict[str, Any]:
    """A whole run, with nothing in the cache."""
    started, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, MMDD_CACHE=empty):
        done = mmdd.distill(
            str(DATA / "timeseries" / "etth1"), method="condtsf", items=384, options=SERIES
        )
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "steps": done.run["steps"],
        "distil_seconds": round(done.run["seconds"], 1),
        "evaluations": done.run["steps"] // SERIES["evaluate.every"],
    }


# -- audio -----------------------------------------------------------------------------------------


def audio(rounds: int) -> dict[str, Any]:
    """Real clips of a step: from the cache at once, and clip by clip."""
    ours, parts, splits = opened("audio/fsdd", "dm", real__per_group=REAL, learner__width=32)
    waves = opened("audio/fsdd", "dm", data__space="waveform", learner__encoder="m5")[2]
    augmentation, facts = parts.augmentation(), splits.info.normalisation
    assert augmentation is not None
    spectrum = LogMel(*(facts[name] for name in ("rate", "n_fft", "hop", "mels", "floor")))
    mean, std = (torch.tensor(facts[name])[:, None] for name in ("mean", "std"))
    raw = waves.train.select(torch.arange(len(waves.train))).inputs[:, 0]
    raw = raw * waves.info.normalisation["std"][0]
    rng = torch.Generator().manual_seed(0)

    def drawn() -> tuple[Tensor, Any]:
        index = splits.train.draw_index(REAL, rng, None)
        return index, augmentation.draw(splits.info.classes, rng)

    def together() -> None:
        index, draw = drawn()
        batch = splits.train.select(index)
        augmentation(batch.inputs, draw, batch.groups)

    def one_by_one() -> None:
        index, draw = drawn()
        made = []
        for place, group in zip(index.tolist(), splits.train.groups[index].tolist(), strict=True):
            clip = (spectrum(raw[place : place + 1]) - mean) / std
            made.append(augmentation(clip[None], draw, torch.tensor([group])))
        torch.cat(made)

    timed(together), timed(one_by_one)
    mine, theirs = alternate(lambda: timed(together), lambda: timed(one_by_one), rounds)
    return {
        "seconds": round(median(mine), 4),
        "plain_seconds": round(median(theirs), 4),
        **ratios(mine, theirs),
        "step_seconds": round(median([timed(ours.step) for _ in range(rounds)]), 3),
    }


PARTS = {
    "video": ("video/grid_digit", video),
    "series": ("timeseries/etth1", series),
    "audio": ("audio/fsdd", audio),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    facts = machine()  # now: the checkout may move on while this runs
    for name in args.only or PARTS:
        data, work = PARTS[name]
        key = {"benchmark": name, "data": data, "threads": torch.get_num_threads()}
        if is_done(TABLE, key):
            continue
        row = {**key, **work(args.rounds), **facts}
        for column, value in row.items():
            print(f"{column:<26} {value}")
        append(TABLE, row)


if __name__ == "__main__":
    main()
