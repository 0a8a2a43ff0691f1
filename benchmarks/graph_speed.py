"""Time and memory of condensing graphs: ``python benchmarks/graph_speed.py``.

Generated graphs (a block model: 10 classes, mean degree 10, 64 features) of 10^4 to 10^6
nodes condensed by GCond-X, 10^4 nodes condensed to more and more by GCond, CiteSeer to 120; each
in a process of its own, so that its peak memory is its own. Lines that the table holds are skipped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, append, is_done, machine, quiet_python

from mmdd.modalities.graphs.local import save_graph

CITESEER = 3327
TABLE, CLASSES, DEGREE, FEATURES, STEPS = "graph_speed", 10, 10, 64, 40
PLAN = [
    *(("gcond-x", nodes, 100) for nodes in (10_000, 100_000, 1_000_000)),
    *(("gcond", 10_000, items) for items in (50, 100, 200, 400, 800)),
    *((method, CITESEER, 120) for method in ("gcond", "gcond-x", "gcdm")),
]
RUN = """
import json, resource, sys, time
started = time.perf_counter()
from mmdd import build, machine, start
from mmdd.compose import from_flags
options = dict([("data.root", {root!r})] if {root!r} else [])
recipe = from_flags(
    {path!r}, method={method!r}, items={items}, steps={steps}, device={device!r}, options=options
)
where = machine.device(recipe.run.device)
before = machine.peak_memory_mb(where)
begun = time.perf_counter()
splits = build.open_data(recipe, None, where)
parts = build.parts(recipe, splits.info, where)
distiller = build.distiller(parts, splits)
opened = time.perf_counter() - begun
for _ in range(3):
    distiller.step()
begun = time.perf_counter()
for _ in range({steps}):
    distiller.step()
each = (time.perf_counter() - begun) / {steps}
print(json.dumps(dict(open_seconds=round(opened, 2), step_ms=round(1000 * each, 2),
    imported_mb=round(before), peak_memory_mb=round(machine.peak_memory_mb(where)))))
"""


def generated(nodes: int, path: Path) -> None:
    """Write a block model whose features hint at the class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=nodes)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(CLASSES + 1))
    source = rng.integers(nodes, size=nodes * DEGREE // 2)
    inside = rng.random(len(source)) < 0.8
    own = labels[source]
    place = starts[own] + (rng.random(len(source)) * (starts[own + 1] - starts[own])).astype(int)
    target = np.where(inside, order[place], rng.integers(nodes, size=len(source)))
    edges = np.stack([np.concatenate([source, target]), np.concatenate([target, source])])
    x = rng.standard_normal((nodes, FEATURES), dtype=np.float32)
    x[np.arange(nodes), labels] += 1
    role = rng.random(nodes)
    save_graph(
        path,
        {
            "x": x,
            "edge_index": edges,
            "y": labels,
            "train_mask": role < 0.5,
            "val_mask": (role >= 0.5) & (role < 0.6),
            "test_mask": role >= 0.6,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--generate", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.generate:
        generated(int(args.generate[0]), Path(args.generate[1]))
        return
    facts = machine()
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        for method, nodes, items in PLAN:
            key: dict[str, Any] = {"method": method, "real_nodes": nodes, "items": items}
            if is_done(TABLE, key) or time.monotonic() > deadline:
                continue
            path, root = Path(folder) / f"{nodes}.npz", None
            if nodes == CITESEER:
                path, root = "pyg:Planetoid/CiteSeer", str(DATA / "graphs")
            elif not path.exists():
                # by another process: a child's peak memory begins with its parent's
                own = [sys.executable, __file__, "--generate", str(nodes), str(path)]
                subprocess.run(own, check=True)
            values = {"method": method, "items": items, "steps": STEPS}
            values |= {"path": str(path), "root": root}
            told = quiet_python(RUN.format(**values, device=args.device)).splitlines()[-1]
            append(TABLE, {**key, **json.loads(told), **facts})
            print(key, told)


if __name__ == "__main__":
    main()
