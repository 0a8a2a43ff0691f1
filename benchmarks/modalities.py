"""Accuracy on text, audio, time series and video: ``python benchmarks/modalities.py --minutes 60``.

Every row of `PLAN` is one distillation by a shipped method with a few options, scored on the test
split by fresh learners beside random, herding and full data under the same training recipe. Rows
that ``results/modalities.csv`` holds are skipped; none is begun once the minutes are spent.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from common import DATA, append, is_done, machine

import mmdd
from mmdd.progress import PlainProgress

TABLE = "modalities"
STUDENT = "build/bert_student"
Options = dict[str, Any]
ROWS = (
    "synthetic",
    "random",
    "herding",
    "k-center",
    "aggregate",
    "full",
    "last-value",
    "seasonal-naive",
)


def row(
    data: str, budget: int, method: str, *, called: str | None = None, **options: Any
) -> dict[str, Any]:
    """One line of the plan; the budget is per class, or in time steps for a forecast.

    `called` is what the table calls the method, where one method stands there in several ways.
    """
    given = {key.replace("__", "."): value for key, value in options.items()}
    names = {"method": called or method, "recipe": method}
    return {"data": data, "budget": budget, **names, "options": given}


AUDIO: Options = {
    "learner__width": 32,
    "real__per_group": 48,
    "experts__count": 2,
    "experts__epoch_steps": 150,
    "evaluate__protocol": "quick",
}
SERIES: Options = {"learner__width": 32, "evaluate__protocol": "quick", "optimise__steps": 100}
NEAR_HERDING: Options = {
    **SERIES,
    # among clean curves of little noise, what is far from a real one is far from the class
    "synthetic__initialise": "herding",
    "optimise__inputs__lr": 0.02,
}
NET_OF_POSTURES: Options = {
    "learner__width": 32,
    # instance norm takes the level of a channel away, by which standing differs from lying
    "learner__norm": "layer",
    "learner__head": "mean",
}
POSTURES: Options = {
    **SERIES,
    **NET_OF_POSTURES,
    "real__per_group": 64,
    "optimise__inputs__lr": 3.0,
}
HOURLY: Options = {"data__borders": [8640, 2880, 2880], "data__season": 24}
OF_SERIES: Options = {
    "modality": "timeseries",
    "task": "forecasting",
    "synthetic__representation": "series",
    "synthetic__initialise": "real",
    "learner__encoder": "dlinear",
    "augment": "none",
    "optimise__inputs": {"optimiser": "adam", "lr": 0.03},
    "optimise__steps": 300,
    "evaluate__protocol": "quick",
    "evaluate__lr": 0.05,
    "evaluate__augment": "none",
    "evaluate__baselines": ["random", "herding", "aggregate"],
}
"""As `condtsf` is made and judged, but for what is matched."""
ENDS: Options = {"experts__count": 3, "experts__epoch_steps": 50}
CLIP_ENDS: Options = {"experts__count": 2, "experts__epoch_steps": 100}
CLIPS: Options = {
    "optimise__steps": 60,
    "real__per_group": 16,
    **CLIP_ENDS,
    "optimise__inputs__lr": 1.0,
    "evaluate__protocol": "quick",
}
MANY_CLIPS: Options = {
    "synthetic__per_step": 16,
    "real__per_group": 16,
    "optimise__steps": 30,
    "optimise__inputs__lr": 0.1,
    "evaluate__protocol": "quick",
    # eighty decoded clips per class are many mini-batches an epoch, ten real ones few: small ones,
    # so that both are trained for some hundred steps
    "evaluate__batch_size": 64,
    "evaluate__epochs": 60,
    "evaluate__full_epochs": 60,
    "evaluate__full_minutes": 30.0,
}
CLIP_SEGMENTS: Options = {
    "synthetic__representation": "packed",
    "synthetic__step_size": 0.02,
    "experts__count": 2,
    "experts__epochs": 4,
    "experts__epoch_steps": 25,
    "experts__batch_size": 64,
    "experts__lr": 0.02,
    "source__length": 1,
    "source__max_start": 3,
    "objective__steps": 5,
    "objective__batch_size": 8,
    "optimise__inputs__lr": 10.0,
    "optimise__steps": 15,
    "evaluate__protocol": "mtt",
    "evaluate__batch_size": 64,
    "evaluate__epochs": 60,
    "evaluate__full_epochs": 60,
    "evaluate__full_minutes": 30.0,
}
VECTORS: Options = {
    "learner__encoder": "linear",
    # features of a linear net are the vectors themselves: a rate above one per item overshoots
    "optimise__inputs__lr": 0.2,
    "optimise__inputs__by_items": True,
    "evaluate__protocol": "quick",
    "optimise__steps": 300,
    "evaluate__baselines": ["random", "herding", "k-center"],
}
TRAJECTORIES: Options = {
    "learner__encoder": "linear",
    "experts__count": 3,
    "experts__sharpness": False,
    "objective__steps": 10,
    "objective__skip_above": 1.1,
    "optimise__inputs__lr": 10.0,
    **{f"optimise__{leaf}__schedule": "constant" for leaf in ("inputs", "labels", "step_size")},
    "optimise__steps": 150,
    "evaluate__protocol": "mtt",
    "evaluate__epochs": 300,
    "evaluate__baselines": ["random", "herding", "k-center"],
}
NOTHING_SKIPPED: Options = {**TRAJECTORIES, "objective__skip_above": None}
FALLING: Options = {
    **NOTHING_SKIPPED,
    # sets of different seeds differ by a point where the rates stay as they are
    **{f"optimise__{leaf}__schedule": "cosine" for leaf in ("inputs", "labels", "step_size")},
    "synthetic__initialise": "herding",
    "experts__count": 10,
    "optimise__inputs__lr": 30.0,
    "optimise__steps": 600,
}
TAUGHT: Options = {
    "learner__encoder": "linear",
    "synthetic__labels": {"kind": "teacher", "temperature": 4.0},
    "experts__count": 3,
    "experts__epochs": 10,
    "experts__lr": 0.1,
    "experts__momentum": 0.9,
    "real__per_group": 64,
    "optimise__inputs__lr": 0.2,
    "optimise__steps": 40,
    "evaluate__protocol": "quick",
    "evaluate__lr": 0.3,
    "evaluate__baselines": ["random", "herding", "k-center"],
}
TOKENS: Options = {
    "learner__encoder": "textcnn",
    "learner__width": 64,
    "evaluate__protocol": "quick",
}
OF_GRU: Options = {
    "data__model": STUDENT,
    "data__space": "tokens",
    **TOKENS,
    "learner__encoder": "gru",
}
OF_BERT: Options = {
    "data__model": STUDENT,
    "data__space": "tokens",
    "learner__encoder": "transformers",
    "learner__tuning": "head",
    "evaluate__protocol": "quick",
    "evaluate__full_epochs": 4,
    "real__per_group": 64,
}
AT_TRAINED: Options = {
    "source": {"kind": "real-trained", "life": 40, "updates": 4, "lr": 0.02},
    "objective__distance": "mse",
    "synthetic__initialise": "real",
    "real__per_group": 64,
    "optimise__inputs": {"optimiser": "adam", "lr": 0.05},
    "optimise__steps": 80,
}
AT_TRAINED_ON_VECTORS: Options = {
    **AT_TRAINED,
    "learner__encoder": "linear",
    "real__per_group": 128,
    "optimise__inputs": {"lr": 1.0},
    "optimise__steps": 150,
    "evaluate__protocol": "quick",
    "evaluate__baselines": ["random", "herding", "k-center"],
}
SEGMENTS: Options = {
    "source": {"kind": "experts", "length": 1, "max_start": 3},
    "experts__count": 2,
    "experts__epochs": 4,
    "experts__epoch_steps": 50,
    "experts__batch_size": 64,
    "experts__lr": 0.05,
    "synthetic__step_size": 0.05,
    "objective__steps": 8,
    "optimise__inputs__lr": 10.0,
    "optimise__steps": 60,
    "evaluate__protocol": "mtt",
    "evaluate__epochs": 200,
}
SEGMENTS_FALLING: Options = {
    **SEGMENTS,
    "experts__count": 8,
    "optimise__inputs__schedule": "cosine",
    "optimise__steps": 300,
    # at the learned rate and a momentum of 0.9, learners differ by five points among themselves
    "evaluate__lr": 0.01,
}
ATTENDING: Options = {
    "data__model": STUDENT,
    "data__space": "tokens",
    "learner__encoder": "transformers",
    # the last layer: what is trained must have attention
    "learner__tuning": "last",
    "learner__layers": 1,
    "source": {"kind": "experts", "length": 1, "max_start": 3},
    "experts__count": 2,
    "experts__epochs": 4,
    "experts__epoch_steps": 50,
    "experts__batch_size": 64,
    "experts__lr": 0.05,
    "objective__steps": 6,
    "optimise__steps": 40,
    "evaluate__protocol": "mtt",
    "evaluate__epochs": 100,
    "evaluate__full_epochs": 4,
}
GRADIENTS: Options = {"optimise__steps": 40, "real__per_group": 48, "source__inner": 5}
EXPERT_SEGMENTS: Options = {
    "experts__count": 2,
    "experts__epochs": 6,
    "experts__epoch_steps": 25,
    "experts__lr": 0.02,
    "source__length": 1,
    "source__max_start": 4,
    "objective__steps": 10,
    "objective__batch_size": 50,
    "synthetic__step_size": 0.02,
    "optimise__steps": 40,
    "evaluate__protocol": "mtt",
    "evaluate__epochs": 200,
}
"""Short runs of the families that no other row shows; nothing about them was chosen."""
PLAN = [
    *(row("audio/fsdd", n, "dance", optimise__steps=150, **AUDIO) for n in (1, 10)),
    row("audio/fsdd", 10, "dsa", learner__width=32, evaluate__protocol="quick", **GRADIENTS),
    row(
        "audio/fsdd",
        10,
        "mtt",
        learner__width=32,
        optimise__inputs__lr=100.0,
        **EXPERT_SEGMENTS,
    ),
    row(
        "timeseries/ucihar_subset",
        10,
        "dsa",
        **{**POSTURES, "optimise__steps": 60, "optimise__inputs__lr": 0.1},
    ),
    row(
        "timeseries/ucihar_subset",
        10,
        "datm",
        **NET_OF_POSTURES,
        experts__count=3,
        experts__epochs=12,
        experts__epoch_steps=25,
        experts__lr=0.02,
        experts__sharpness=False,
        objective__skip_above=None,
        objective__steps=10,
        optimise__steps=60,
        optimise__inputs__lr=1.0,
        evaluate__protocol="mtt",
        evaluate__epochs=200,
    ),
    *(row("text/sst2_minilm", n, "datm", **TRAJECTORIES) for n in (1, 5, 10, 20)),
    *(
        row("text/sst2_minilm", n, "datm", called="datm, nothing skipped", **NOTHING_SKIPPED)
        for n in (1, 5, 10, 20)
    ),
    *(
        row("text/sst2_minilm", n, "datm", called="datm, falling rates", **FALLING)
        for n in (10, 5, 20)
    ),
    row("text/banking77_minilm", 5, "dm", called="dm, teacher's labels", **TAUGHT),
    *(row("text/sst2_minilm", n, "dm", **VECTORS) for n in (1, 5, 10, 20)),
    *(row("text/banking77_minilm", n, "dm", **VECTORS) for n in (1, 5)),
    row("text/sst2_minilm", 10, "dc", **AT_TRAINED_ON_VECTORS),
    *(
        row("text/sst2", 10, name, called=f"{name}, student's embeddings", **taught, **more)
        for taught in ({"data__model": STUDENT, "data__space": "tokens"},)
        for name, more in (
            ("mtt", {**TOKENS, **SEGMENTS}),
            ("dc", {**TOKENS, **AT_TRAINED}),
            ("dm", {**TOKENS, "optimise__steps": 150, "real__per_group": 64}),
        )
    ),
    row(
        "text/sst2",
        10,
        "mtt",
        called="mtt, student's embeddings, falling rate",
        data__model=STUDENT,
        data__space="tokens",
        **{**TOKENS, **SEGMENTS_FALLING},
    ),
    *(
        row(
            "text/sst2", 10, name, called=f"{name}, student's embeddings, gru", **{**OF_GRU, **more}
        )
        for name, more in (
            (
                "dc",
                {
                    **AT_TRAINED,
                    "optimise__inputs": {"optimiser": "adam", "lr": 0.01, "schedule": "cosine"},
                    "optimise__steps": 60,
                },
            ),
            ("dm", {"optimise__steps": 150, "real__per_group": 64}),
            (
                "mtt",
                {
                    **SEGMENTS_FALLING,
                    "experts__count": 2,
                    "objective__steps": 4,
                    "optimise__steps": 60,
                    "real__per_group": 64,
                },
            ),
        )
    ),
    row("text/sst2", 10, "mtt", **{**TOKENS, **SEGMENTS}),
    row("text/sst2", 10, "dc", **{**TOKENS, **AT_TRAINED}),
    row("text/sst2", 10, "dm", **TOKENS, optimise__steps=150, real__per_group=128),
    row(
        "text/sst2",
        10,
        "dm",
        called="dm, transformers",
        **OF_BERT,
        optimise__steps=150,
        optimise__inputs__lr=0.1,
    ),
    row(
        "text/sst2",
        10,
        "dc",
        called="dc, transformers",
        **{**OF_BERT, **AT_TRAINED, "objective__distance": "l1", "optimise__inputs": {"lr": 1.0}},
    ),
    row("text/sst2", 10, "mtt", called="mtt, transformers", **{**OF_BERT, **SEGMENTS}),
    *(
        row("text/sst2", 10, "attention-labels", called=called, **ATTENDING, **labels)
        for called, labels in (
            ("attention labels", {}),
            ("attention labels, hard labels instead", {"synthetic__labels__kind": "hard"}),
            ("attention labels, soft labels instead", {"synthetic__labels__kind": "soft"}),
        )
    ),
    row("timeseries/ucihar_subset", 10, "dm", **POSTURES),
    *(row("timeseries/ucihar_subset", n, "dance", **POSTURES, **ENDS) for n in (10, 5, 1)),
    *(
        row(
            "timeseries/ucihar_subset",
            n,
            "dm",
            called="dm, near herding",
            **{
                **POSTURES,
                "synthetic__initialise": "herding",
                "optimise__steps": 60,
                "optimise__inputs__lr": 0.3,
            },
        )
        for n in (10, 5, 1)
    ),
    *(row("timeseries/gunpoint", n, "dm", **NEAR_HERDING) for n in (5, 1)),
    *(
        row("timeseries/synthetic_control", n, "dance", **SERIES, **ENDS, optimise__inputs__lr=3.0)
        for n in (1, 5)
    ),
    row(
        "timeseries/ucihar_subset",
        10,
        "condtsc",
        experts__count=3,
        experts__epochs=12,
        experts__epoch_steps=25,
        experts__lr=0.02,
        optimise__steps=60,
        evaluate__epochs=200,
    ),
    *(
        row("timeseries/synthetic_control", n, "dm", **{**SERIES, "optimise__steps": 200})
        for n in (1, 5)
    ),
    row("timeseries/etth1", 384, "condtsf", **HOURLY),
    *(
        row("timeseries/etth1", 384, name, **HOURLY, **OF_SERIES, source={"kind": "fresh"})
        for name in ("dm", "dc")
    ),
    row("video/grid_digit", 1, "dance", **CLIPS),
    row(
        "video/grid_digit",
        1,
        "dance",
        called="dance, plain frames",
        synthetic__representation="direct",
        **CLIPS,
    ),
    row("video/grid_digit", 10, "dance", **MANY_CLIPS, **CLIP_ENDS),
    # what packing does alone: eighty real clips at half size, one step that moves them by nothing
    row(
        "video/grid_digit",
        10,
        "idc",
        called="idc, not distilled",
        **{**MANY_CLIPS, "optimise__steps": 1, "optimise__inputs__lr": 1e-9},
    ),
    row(
        "video/grid_digit",
        10,
        "idc",
        **{**MANY_CLIPS, "optimise__steps": 20, "optimise__inputs__lr": 0.01},
    ),
    row("video/grid_digit", 10, "mtt", called="mtt, packed", **CLIP_SEGMENTS),
    # a clip is 24,576 numbers, its still and memory 7,680: three of them are fewer bytes than one
    row(
        "video/grid_digit",
        3,
        "dance",
        called="dance, static-dynamic",
        synthetic__representation="static-dynamic",
        **CLIPS,
    ),
    row(
        "video/grid_digit",
        10,
        "dsa",
        **{**CLIPS, **GRADIENTS, "real__per_group": 16, "optimise__inputs__lr": 0.1},
    ),
]
"""Options were chosen on validation (``choices.csv``): one seed, few steps. Not chosen are those
of ``dm`` on Synthetic Control, of ``condtsc``, of FSDD's ``dsa``, of ``dm`` and ``dc`` on ETTh1,
of attention labels, and on GRID of plain frames, the static-dynamic form, ``idc``, ``dsa`` and
``mtt``. Those of UCI-HAR's ``dsa``, ``datm`` and ``dance`` were, on a random hold-out that
shares recordings with training; those of ``dm, near herding`` on the last windows of every
activity, after the test scores of the three had been seen."""


def encoder(data: str) -> str:
    """Folder of a small BERT, made here in the ignored build/: MiniLM's student on the texts."""
    from text_encoder import make, texts_of, vectors_of

    vectors = vectors_of(f"{data}_minilm")
    return make(Path(__file__).parent / STUDENT, texts_of(data)[0], vectors=vectors)


def measure(line: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Distil and score one line."""
    forecast = "etth1" in line["data"]
    options = {"evaluate.learners": args.learners, **line["options"]}
    if options.get("data.model") == STUDENT:
        options["data.model"] = encoder(line["data"])
    done = mmdd.distill(
        str(DATA / line["data"]),
        method=line["recipe"],
        **{"items" if forecast else "per_class": line["budget"]},
        seed=args.seed,
        device=args.device,
        options=options,
        progress=PlainProgress(60),
    )
    report = done.evaluate(progress=PlainProgress(60))
    scale = 1 if forecast else 100
    found = next(iter(report["results"].values()))
    scores = {
        f"{name}_{part}": round(scale * found[name][part], 4 if forecast else 2)
        for name in ROWS
        if name in found
        for part in ("mean", "std")
    }
    return {
        "metric": report["metric"],
        **scores,
        "learners": args.learners,
        "steps": done.run["steps"],
        "seconds": round(done.run["seconds"]),
        "peak_memory_mb": round(report["peak_memory_mb"]),
        "bytes": report["budget"]["bytes"],
        "protocol": f"{report['protocol']['name']} {report['protocol']['epochs']} epochs",
        "encoder": next(iter(report["results"])),
        "options": " ".join(f"{key}={value}" for key, value in line["options"].items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--learners", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="part of a line's data")
    args = parser.parse_args()
    facts = machine()  # now: the checkout may move on while this runs
    deadline = time.monotonic() + 60 * args.minutes
    for line in PLAN:
        key = {k: line[k] for k in ("data", "budget", "method")} | {"seed": args.seed}
        if args.only not in line["data"] or is_done(TABLE, key):
            continue
        if time.monotonic() > deadline:
            print(f"out of time before {key}")
            break
        append(TABLE, {**key, **measure(line, args), **facts})
        print(f"done: {key}")


if __name__ == "__main__":
    main()
