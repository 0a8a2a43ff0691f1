"""Accuracy of recipes under the full protocol: ``python benchmarks/accuracy.py --minutes 60``.

Every row of `PLAN` is one distillation, scored with `--learners` fresh learners beside random
selection, herding and full data, and appended to ``results/accuracy.csv``. Rows that are there
already are skipped, and no new row is begun once the minutes are spent, so that any session (on a
GPU too) can go on with the same table.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from common import DATA, FEW_EXPERTS, append, is_done, machine, read, widths

import mmdd
from mmdd.artifact import MANIFEST
from mmdd.compose import from_flags
from mmdd.progress import PlainProgress

TABLE = "accuracy"
SETS = {
    "fashion_mnist": str(DATA / "images" / "fashion_mnist"),
    "cifar10_jpeg": str(DATA / "images" / "cifar10_jpeg"),
    "digits": "digits",
}
Options = dict[str, Any]
BEGUN = "build"
"""Folder of the sets that others go on from, in the commands that repeat a row."""


def row(
    data: str,
    per_class: int,
    label: str,
    method: str = "dm",
    options: Options | None = None,
    of: str | None = None,
    begin: str | None = None,
) -> dict[str, Any]:
    """One line of the plan; `options` are recipe values by dotted key.

    `of` names the line whose set is scored, under another protocol; it must have been kept.
    `begin` names the line whose set this one goes on from: it is made first where it was not kept.
    """
    options = dict(options or {})
    if begin:
        options["synthetic.initialise"] = f"{BEGUN}/{begin}"
    return {
        "of": of or label,
        "begin": begin,
        "data": data,
        "per_class": per_class,
        "label": label,
        "method": method,
        "options": options,
    }


MTT_SHORT: Options = {
    "run.minutes": 35,
    "experts.count": 3,
    "experts.epochs": 6,
    "experts.epoch_steps": 100,
    "experts.batch_size": 128,
    "experts.lr": 0.02,
    "source.max_start": 2,
    **{f"optimise.{leaf}.schedule": "cosine" for leaf in ("inputs", "step_size")},
}
LONGER_NETS: Options = {
    "run.minutes": 15,
    "optimise.inputs.lr": 2.0,
    "experts.count": 3,
    "experts.epochs": 10,
    "experts.epoch_steps": 300,
    "experts.batch_size": 64,
    "experts.schedule": "cosine",
}
NARROW_NETS: Options = {
    "experts.count": 4,
    "experts.epochs": 12,
    "experts.epoch_steps": 1000,
    "experts.batch_size": 64,
    "experts.schedule": "cosine",
}
NARROW: Options = {"learner.width": 32, "evaluate.learner.width": 128}
"""Made with a net of a quarter of the width, in a quarter of the time; judged like the others."""
SHORT_EPOCHS = {"evaluate.epochs": 300}
"""For sets whose decoded items fill more than one mini-batch: about as many updates in all."""
RANDOM_ALONE: Options = {"evaluate.baselines": ["random"]}
DATM_NARROW: Options = {
    **NARROW,
    "optimise.steps": 1200,
    "objective.steps": 15,
    "objective.skip_above": None,
    "experts.count": 6,
    "experts.epochs": 20,
    "experts.epoch_steps": 100,
    "experts.batch_size": 128,
    "experts.lr": 0.02,
    "experts.sharpness": False,
    "source.length": 2,
    "source.first_max_start": 4,
    "source.max_start": 14,
    "source.widen_steps": 600,
    "synthetic.step_size": 0.05,
    **{f"optimise.{name}.schedule": "cosine" for name in ("inputs", "labels", "step_size")},
}
DATM_AVERAGED: Options = {
    **DATM_NARROW,
    "experts.count": 4,
    "experts.epoch_steps": 150,
    "experts.lr": 0.03,
    "experts.average": 3.0,
    "source.length": 1,
    "source.first_max_start": 6,
    "source.max_start": 18,
    "evaluate.every": 200,
}
"""From a set that DM made in a minute, along averaged trajectories."""
PLAN = [
    row("fashion_mnist", 10, "dm-8min", options={"run.minutes": 8}),
    row("fashion_mnist", 1, "dm-5min", options={"run.minutes": 5}),
    row("fashion_mnist", 1, "dance-8min", "dance", {"run.minutes": 8, "evaluate.protocol": "dc"}),
    row(
        "fashion_mnist",
        10,
        "dance-8min",
        "dance",
        {"run.minutes": 8, "evaluate.protocol": "dc", **SHORT_EPOCHS},
    ),
    row(
        "fashion_mnist",
        10,
        "dance-25min",
        "dance",
        {
            "run.minutes": 25,
            "optimise.inputs.lr": 2.0,
            "evaluate.protocol": "dc",
            **SHORT_EPOCHS,
        },
    ),
    # four small images in one want CutMix, as IDC and DANCE are judged in their papers
    row(
        "fashion_mnist",
        10,
        "dance-25min-idc",
        "dance",
        {"run.minutes": 25, "optimise.inputs.lr": 2.0, "evaluate.protocol": "idc", **SHORT_EPOCHS},
        of="dance-25min",
    ),
    row(
        "fashion_mnist",
        10,
        "dance-25min-idc-1000",
        "dance",
        {"run.minutes": 25, "optimise.inputs.lr": 2.0, "evaluate.protocol": "idc"},
        of="dance-25min",
    ),
    # nets that are trained longer, and the thousand epochs of the protocol
    row("fashion_mnist", 10, "dance-15min-longer-nets", "dance", LONGER_NETS),
    row(
        "fashion_mnist",
        10,
        "dance-15min-longer-nets-300",
        "dance",
        {**LONGER_NETS, **SHORT_EPOCHS},
        of="dance-15min-longer-nets",
    ),
    row(
        "fashion_mnist",
        50,
        "dance-15min-longer-nets",
        "dance",
        {**LONGER_NETS, "evaluate.epochs": 150},
    ),
    row("fashion_mnist", 1, "dance-25min", "dance", {"run.minutes": 25, "evaluate.protocol": "dc"}),
    row(
        "fashion_mnist",
        10,
        "dance-w32-3000",
        "dance",
        {
            **NARROW,
            **NARROW_NETS,
            "optimise.steps": 3000,
            "optimise.inputs.lr": 2.0,
            **SHORT_EPOCHS,
        },
    ),
    row(
        "fashion_mnist",
        50,
        "dance-w32-400",
        "dance",
        {
            **NARROW,
            **NARROW_NETS,
            "optimise.steps": 400,
            "optimise.inputs.lr": 2.0,
            "evaluate.epochs": 60,
            **RANDOM_ALONE,
        },
    ),
    # fifty whole images of a class say more than two hundred small ones
    row(
        "fashion_mnist",
        50,
        "dance-w32-2500-direct",
        "dance",
        {
            **NARROW,
            **NARROW_NETS,
            "synthetic.representation": "direct",
            "optimise.steps": 2500,
            "optimise.inputs.lr": 2.0,
            **SHORT_EPOCHS,
        },
    ),
    row("fashion_mnist", 10, "datm-w32-1200", "datm", {**DATM_NARROW, **RANDOM_ALONE}),
    # with fewer epochs at another rate than the learned one, validation has 84.4
    row(
        "fashion_mnist",
        10,
        "datm-w32-1200-0.01",
        "datm",
        {**DATM_NARROW, **RANDOM_ALONE, "evaluate.lr": 0.01, **SHORT_EPOCHS},
        of="datm-w32-1200",
    ),
    row(
        "fashion_mnist",
        10,
        "dm-w32-600",
        options={**NARROW, "optimise.steps": 600, "real.per_group": 128, **SHORT_EPOCHS},
    ),
    row("fashion_mnist", 10, "datm-averaged-1200", "datm", DATM_AVERAGED, begin="dm-w32-600"),
    row(
        "fashion_mnist",
        10,
        "dsa-w32-3000",
        "dsa",
        {
            **NARROW,
            "optimise.steps": 3000,
            "real.per_group": 64,
            "optimise.inputs.lr": 2.0,
            "optimise.inputs.schedule": "cosine",
            # ten epochs at five times the rate for the fifty of the paper
            "source.inner": 10,
            "source.lr": 0.05,
        },
    ),
    row(
        "fashion_mnist",
        1,
        "idc-w32-6000",
        "idc",
        {
            **NARROW,
            "optimise.steps": 6000,
            "optimise.inputs.lr": 0.03,
            "real.per_group": 24,
            **SHORT_EPOCHS,
        },
    ),
    row(
        "fashion_mnist",
        1,
        "dance-25min-idc",
        "dance",
        {"run.minutes": 25, "evaluate.protocol": "idc"},
        of="dance-25min",
    ),
    row(
        "fashion_mnist",
        1,
        "dsa-30min",
        "dsa",
        {"run.minutes": 30, "optimise.inputs.lr": 1.0, "optimise.inputs.schedule": "cosine"},
    ),
    row("fashion_mnist", 1, "idc-30min", "idc", {"run.minutes": 30}),
    # thrice the recipe's rate of the rows before, as validation at width 32 prefers it
    row("fashion_mnist", 1, "idc-40min", "idc", {"run.minutes": 40, "optimise.inputs.lr": 0.03}),
    row("fashion_mnist", 1, "mtt-35min", "mtt", MTT_SHORT),
    # the learned rate, 0.03, is of plain steps; under a momentum of 0.9 validation prefers this one
    row(
        "fashion_mnist",
        1,
        "mtt-35min-0.005",
        "mtt",
        {**MTT_SHORT, "evaluate.lr": 0.005},
        of="mtt-35min",
    ),
    row("fashion_mnist", 1, "idc-6min", "idc", {"run.minutes": 6, "evaluate.protocol": "dc"}),
    row(
        "fashion_mnist",
        1,
        "dsa-6min",
        "dsa",
        {"run.minutes": 6, "optimise.inputs.lr": 1.0, "optimise.inputs.schedule": "cosine"},
    ),
    row(
        "fashion_mnist",
        1,
        "mtt-6min",
        "mtt",
        {
            "run.minutes": 6,
            "experts.count": 5,
            "experts.epochs": 8,
            "experts.epoch_steps": 60,
            "experts.lr": 0.02,
            "source.max_start": 4,
            "objective.steps": 15,
        },
    ),
    row(
        "fashion_mnist",
        10,
        "dsa-20min",
        "dsa",
        {
            "run.minutes": 20,
            "optimise.inputs.lr": 5.0,
            "optimise.inputs.schedule": "cosine",
            "source.inner": 5,
        },
    ),
    row("fashion_mnist", 10, "datm-10min", "datm", {"run.minutes": 10}),
    row(
        "fashion_mnist",
        10,
        "mtt-w32-8min",
        "mtt",
        {
            "learner.width": 32,
            "run.minutes": 8,
            **FEW_EXPERTS,
            **SHORT_EPOCHS,
        },
    ),
    row(
        "fashion_mnist",
        50,
        "dance-12min",
        "dance",
        {"run.minutes": 12, "evaluate.protocol": "dc", **SHORT_EPOCHS},
    ),
]

LONG = "optimise.steps"
CONSTANT = {"optimise.inputs.schedule": "constant"}
MTT_NET = {"experts.count": 100, "experts.epochs": 50, "experts.lr": 0.01}
"""The buffers of MTT: 100 experts of 50 epochs."""
MTT = {
    1: {"objective.steps": 50, "source.max_start": 2, "synthetic.step_size": 0.01},
    10: {"objective.steps": 30, "source.max_start": 20, "synthetic.step_size": 0.001},
    50: {"objective.steps": 30, "source.max_start": 40, "synthetic.step_size": 0.001},
}
PAPERS: dict[str, Callable[[int], Options]] = {
    "dm": lambda n: {LONG: 20_000, "optimise.inputs.lr": 1.0, **CONSTANT},
    "dc": lambda n: {LONG: 1000 * n, **CONSTANT},
    "dsa": lambda n: {LONG: 1000 * n, **CONSTANT},
    "idc": lambda n: {LONG: 200_000},
    "dance": lambda n: {
        LONG: 10_000,
        "experts.count": 20,
        "experts.epochs": 60,
        "experts.epoch_steps": None,
    },
    "mtt": lambda n: {LONG: 5_000, **MTT_NET, **MTT[n]},
    "datm": lambda n: {LONG: 10_000, **MTT_NET, "experts.epochs": 100, "objective.steps": 80},
}
"""Schedules of the papers, by items per class. For GPUs; begun rows are cut at --row-minutes."""
GPU_PLAN = [
    row(data, per_class, f"{method}-paper", method, PAPERS[method](per_class))
    for data in ("cifar10_jpeg", "fashion_mnist")
    for method in PAPERS
    for per_class in (1, 10, 50)
]


def options_of(line: dict[str, Any], args: argparse.Namespace) -> Options:
    """What a line is distilled and scored with."""
    options = {**line["options"], "evaluate.learners": args.learners}
    options |= {"evaluate.full_minutes": 30, "evaluate.full_epochs": 6}
    if args.row_minutes is not None:
        options.setdefault("run.minutes", args.row_minutes)
    if "run.minutes" in options:
        options.setdefault("optimise.steps", 1_000_000)
    return options


def made(
    line: dict[str, Any], args: argparse.Namespace, device: str, stack: ExitStack
) -> mmdd.Distilled:
    """The line's set, kept from before or distilled, after the one that it goes on from.

    Files that are not to stay go when `stack` is closed.
    """
    options = options_of(line, args)
    run = Path(stack.enter_context(folder_of(line, args))) / "run"
    if (run / MANIFEST).exists():
        return kept(run, line, options)
    if line["begin"]:
        wanted = (line["data"], line["per_class"], line["begin"])
        before = next(o for o in PLAN if (o["data"], o["per_class"], o["label"]) == wanted)
        options["synthetic.initialise"] = str(made(before, args, device, stack).folder)
    return mmdd.distill(
        SETS[line["data"]],
        method=line["method"],
        per_class=line["per_class"],
        seed=args.seed,
        device=device,
        out=run,
        options=options,
        progress=PlainProgress(60),
    )


def measure(line: dict[str, Any], args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Distil and score one line."""
    options, progress = options_of(line, args), PlainProgress(60)
    started = time.perf_counter()
    with ExitStack() as stack:
        done = made(line, args, device, stack)
    earlier = (done.run.get("begun_with") or {}).get("seconds", 0.0)
    seconds = done.run["seconds"] + earlier
    all_seconds = time.perf_counter() - started
    started = time.perf_counter()
    borrowed = known(line, args.learners, told(done.recipe.protocol.model_dump()))
    done.recipe.evaluate.full = "full_mean" not in borrowed
    report = done.evaluate(progress=progress, baselines="baselines" not in borrowed)
    found = next(iter(report["results"].values()))
    scores = {
        f"{name}_{part}": round(100 * value[part], 2)
        for name, value in found.items()
        for part in ("mean", "std")
    }
    return {
        "method": line["method"],
        **borrowed,
        **scores,
        "learners": args.learners,
        "steps": done.run["steps"],
        "distil_seconds": round(seconds),
        "before_seconds": max(0, round(all_seconds - seconds)),
        "evaluate_seconds": round(time.perf_counter() - started),
        "peak_memory_mb": round(report["peak_memory_mb"]),
        "protocol": told(report["protocol"]),
        "selection": report["selection"],
        "bytes": report["budget"]["bytes"],
        "precision": done.run["precision"],
        "threads": done.run["threads"],
        "options": " ".join(f"{k}={v}" for k, v in options.items()),
    }


def kept(folder: Path, line: dict[str, Any], options: Options) -> mmdd.Distilled:
    """A set that was distilled before, to be scored as this line asks."""
    done = mmdd.load(folder)
    wanted = from_flags(SETS[line["data"]], method=line["method"], options=options)
    done.recipe.evaluate = wanted.evaluate
    done.results = {}
    return done


def folder_of(line: dict[str, Any], args: argparse.Namespace) -> AbstractContextManager[str]:
    """Where a row's run lies: a folder that stays (``--keep``), or one that goes with the row."""
    if args.keep is None:
        return tempfile.TemporaryDirectory()
    name = f"{line['data']}_{line['per_class']}_{line['of']}_{args.seed}"
    return nullcontext(str(args.keep / name))


def told(protocol: dict[str, Any]) -> str:
    """The protocol in a few words."""
    return f"{protocol['name']} {protocol['epochs']} epochs"


BASELINES = tuple(f"{name}_{part}" for name in ("random", "herding") for part in ("mean", "std"))
FULL = ("full_mean", "full_std")


def known(line: dict[str, Any], learners: int, protocol: str) -> dict[str, Any]:
    """Baselines that the table holds already for this data, budget and protocol.

    They depend on the net that judges and on nothing else: same learners, same seeds, same
    augmentation; herding also on the net in whose features it chooses, which is the one that the
    row's set was made with. Full data has a protocol of its own, so any row of the data and the
    judging net knows it. The column ``baselines`` says which row measured the others. A rate that
    was learned with the set has its own.
    """
    found: dict[str, Any] = {}
    _, judges = widths([f"{key}={value}" for key, value in line["options"].items()])
    for other in read(TABLE):
        if other["data"] != line["data"] or other["learners"] != str(learners):
            continue
        if widths(other["options"].split())[1] != judges:
            continue
        if other.get("full_mean"):
            found |= {key: other[key] for key in FULL}
        if protocol.startswith("mtt"):
            continue
        alike = other["per_class"] == str(line["per_class"]) and other["protocol"] == protocol
        if alike and other.get("random_mean") and "baselines" not in found:
            found |= {key: other[key] for key in BASELINES}
            found["baselines"] = other.get("baselines") or other["label"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--learners", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="part of a line's data or label")
    parser.add_argument("--row-minutes", type=float, help="cut every distillation after this time")
    parser.add_argument("--keep", type=Path, help="folder in which the finished sets stay")
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
        append(TABLE, {**key, **measure(line, args, str(device)), **facts})
        print(f"done: {key}")


if __name__ == "__main__":
    main()
