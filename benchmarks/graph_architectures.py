"""Condensed graphs judged by other nets: ``python benchmarks/graph_architectures.py``.

Cora and CiteSeer, the middle budget of the field, one set per method and seed; every net trains on
the set by the protocol `gcond` and is scored on the real test nodes. Lines of the table
``results/graph_architectures.csv`` that are there are skipped.
"""

from __future__ import annotations

import argparse
import statistics
import time

from common import DATA, append, is_done, machine

import mmdd
from mmdd.progress import PlainProgress

TABLE = "graph_architectures"
NETS = ("gcn", "sgc", "sage", "gat", "appnp", "cheby", "mlp")
PLAN = [
    (data, items, method)
    for data, items in (("Cora", 70), ("CiteSeer", 60))
    for method in ("gcond", "gcond-x", "sfgc")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--learners", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="a method")
    args = parser.parse_args()
    facts, deadline = machine(), time.monotonic() + 60 * args.minutes
    for data, items, method in PLAN:
        key = {"data": data, "items": items, "method": method}
        if args.only not in (method, "") or is_done(TABLE, key) or time.monotonic() > deadline:
            continue
        done = mmdd.distill(
            f"pyg:Planetoid/{data}",
            method=method,
            items=items,
            device=args.device,
            options={"data.root": str(DATA / "graphs"), "evaluate.learners": args.learners},
        )
        report = done.evaluate(encoders=NETS, baselines=False, progress=PlainProgress(60))
        found = {net: rows["synthetic"] for net, rows in report["results"].items()}
        scores = {
            f"{net}_{part}": round(100 * row[part], 2)
            for net, row in found.items()
            for part in ("mean", "std")
        }
        mean = statistics.mean(row["mean"] for row in found.values())
        more = {"average": round(100 * mean, 2), "learners": args.learners}
        append(TABLE, {**key, **scores, **more, **facts})
        print(key, scores)


if __name__ == "__main__":
    main()
