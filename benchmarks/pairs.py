"""Retrieval with distilled pairs: ``python benchmarks/pairs.py --minutes 60``.

Every row of `PLAN` is a method at a budget on Flickr8k-1k (753 training images with 5 captions
each): sets are distilled from several seeds, each is scored on the test split by several fresh
learners, and means and standard deviations are over all of them. R@k of both ways is over the whole
gallery, whose sizes are in the row: an image finds one of its captions (TR), a caption its image
(IR). Random, herding, k-center and full data stand beside it under the same training recipe.

Both encoders are frozen and were learned from the training split alone, as no pretrained weights
are used: the row says which. Only linear projections are trained, so that the numbers compare
methods and budgets with each other, not with published ones.

Learned similarities (LoRS) cost bytes: they are compared with the identity at equal pairs, and with
fewer pairs at equal bytes. Rows that ``results/pairs.csv`` holds are skipped; none is begun once
the minutes are spent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from common import DATA, append, is_done, machine, read

import mmdd
from mmdd.progress import PlainProgress

TABLE = "pairs"
SET = "pairs/flickr8k_1k"
RECALLS = tuple(f"{way}@{depth}" for way in ("TR", "IR") for depth in (1, 5, 10))
BASELINES = ("random", "herding", "k-center", "full")
RANK = 10
Options = dict[str, Any]
WBCE: Options = {"task": "retrieval-wbce", "experts.lr": 2.0, "synthetic.step_size": 2.0}
# only random choice is told anew for every seed
FIRST: Options = {"evaluate.baselines": list(BASELINES[:-1])}
FURTHER: Options = {"evaluate.baselines": ["random"], "evaluate.full": False}
IDENTITY: Options = {"synthetic.labels": "hard"}


def row(items: int, method: str, label: str = "", **options: Any) -> dict[str, Any]:
    """One line of the plan."""
    given = {key.replace("__", "."): value for key, value in options.items()}
    return {"items": items, "method": method, "label": label, "options": given}


def at_equal_bytes(items: int, numbers: int = 64 + 256) -> int:
    """Pairs with similarities of rank `RANK` that take no more bytes than `items` without.

    A pair has `numbers` floats and its group in 8 bytes; a similarity 2 r + 1 floats per pair.
    """
    pair = 4 * numbers + 8
    return items * pair // (pair + 4 * (2 * RANK + 1))


PLAN = [
    line
    for items in (50, 100)
    for line in (
        row(items, "dm-vl"),
        # lors without its similarities: the same loss, rates and steps
        row(items, "mtt-vl", "identity"),
        row(items, "lors", "relation, equal pairs"),
    )
]
PLAN += [row(at_equal_bytes(items), "lors", f"relation, bytes of {items}") for items in (50, 100)]
AT_TRAINED: Options = {
    "source": {"kind": "real-trained", "life": 40, "updates": 4, "lr": 0.1},
    "objective__distance": "mse",
    "synthetic__initialise": "real",
    "optimise__inputs": {"optimiser": "adam", "lr": 0.03},
    "optimise__steps": 200,
    "evaluate__protocol": "pairs",
}
PLAN += [row(items, "dc", **AT_TRAINED) for items in (50, 100)]
PLAN += [
    row(items, "lors", f"wbce, {name}") | {"options": WBCE | labels}
    for items in (50, 100)
    for name, labels in (("identity", IDENTITY), ("relation, equal pairs", {}))
]


def measure(line: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Distil from every seed and score."""
    tables: dict[str, list[dict[str, Any]]] = {}
    seconds: list[float] = []
    for seed in range(args.seeds):
        done = mmdd.distill(
            str(DATA / SET),
            method=line["method"],
            items=line["items"],
            seed=seed,
            device=args.device,
            options=(FURTHER if seed else FIRST) | line["options"],
            progress=PlainProgress(60),
        )
        report = done.evaluate(learners=args.learners)
        seconds.append(done.run["seconds"])
        for name, found in next(iter(report["results"].values())).items():
            tables.setdefault(name, []).append(found)
    told = {name: summary(found) for name, found in tables.items()}
    ours, fields = told.pop("synthetic"), done.info.normalisation["fields"]
    gain = ours["R@10"] / told["random"]["R@10"] - 1
    extras = tables["synthetic"][0]["extras"]
    return {
        **ours,
        "over_random": f"{100 * gain:+.0f}%",
        **{
            f"{name}_{key}": value
            for name, found in told.items()
            for key, value in found.items()
            if key.startswith(("R@10", "r_mean"))
        },
        "gallery_images": int(extras["gallery_images"]["mean"]),
        "gallery_texts": int(extras["gallery_texts"]["mean"]),
        "seeds": args.seeds,
        "learners": args.learners,
        "steps": done.run["steps"],
        "distill_seconds": round(statistics.median(seconds), 1),
        "peak_memory_mb": round(report["peak_memory_mb"]),
        "bytes": report["budget"]["bytes"],
        "protocol": f"{report['protocol']['name']} {report['protocol']['epochs']} epochs",
        "selection": report["selection"],
        "encoders": "; ".join(
            f"{name}: {about['made']}, {about['shape'][0]} numbers, frozen"
            for name, about in fields.items()
        ),
        "options": " ".join(f"{key}={value}" for key, value in line["options"].items()),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every recall over all seeds and learners, in percent; deviations of the two means."""
    values = {name: collected(rows, name) for name in (*RECALLS, "R@10")}
    values["r_mean"] = [value for found in rows for value in found["values"]]
    made = {name: round(100 * statistics.mean(found), 2) for name, found in values.items()}
    for name in ("R@10", "r_mean"):
        made[f"{name}_std"] = round(100 * statistics.stdev(values[name]), 2)
    return made


def collected(rows: list[dict[str, Any]], name: str) -> list[float]:
    """All values of one recall."""
    return [value for found in rows for value in found["extras"][name]["values"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learners", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="words of a line, e.g. '50 lors identity'")
    args = parser.parse_args()
    facts = machine()  # now: the checkout may move on while this runs
    deadline = time.monotonic() + 60 * args.minutes
    for line in PLAN:
        key = {"data": SET} | {k: line[k] for k in ("items", "method", "label")}
        words = set(" ".join(map(str, key.values())).replace("/", " ").replace(",", "").split())
        if not set(args.only.split()) <= words or is_done(TABLE, key):
            continue
        if time.monotonic() > deadline:
            print(f"out of time before {key}")
            break
        append(TABLE, {**key, **measure(line, args), **facts})
        print(read(TABLE)[-1], flush=True)


if __name__ == "__main__":
    main()
