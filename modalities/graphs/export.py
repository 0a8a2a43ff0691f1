"""Condensed graphs for other programs: parquet columns, PyG's `Data`, plain arrays.

Shape suffixes: M stored nodes or graphs, n nodes of one graph, d features, E edges, K classes. A
dense adjacency has the weight of the edge from j to i at [i, j]; an edge exists where it is above
zero. Features are those that a learner reads; what was done to the real ones beforehand stands in
the card of the set.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdd.artifact import PARQUET, Artifact
from mmdd.errors import UserError
from mmdd.files import write_atomic
from mmdd.modalities.tables.shown import add_labels, class_numbers
from mmdd.modality import DataInfo
from mmdd.parquet import read_parquet

if TYPE_CHECKING:
    from torch_geometric.data import Data

NPZ = "graph.npz"
"""Name of the arrays where a folder is to hold them."""


class Sparse(NamedTuple):
    """One graph: features [n, d], edge_index [2, E] (source above target), edge_weight [E].

    Edges are sorted by target, then by source.
    """

    x: Tensor
    edge_index: Tensor
    edge_weight: Tensor


def sparse(x: Tensor, adjacency: Tensor | None) -> Sparse:
    """Turn [n, d] and [n, n], or no adjacency, into features and edges on the CPU, detached."""
    x = x.detach().cpu().float()
    if adjacency is None:
        return Sparse(x, torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0))
    weights = adjacency.detach().cpu().float()
    target, source = torch.nonzero(weights > 0, as_tuple=True)
    return Sparse(x, torch.stack([source, target]), weights[target, source])


def sparse_graphs(inputs: Mapping[str, Tensor]) -> list[Sparse]:
    """The one graph of node-level inputs, or each of the graphs without its masked nodes."""
    x, adjacency, mask = (inputs.get(name) for name in ("x", "adjacency", "mask"))
    assert x is not None
    if x.ndim == 2:
        return [sparse(x, adjacency)]
    assert adjacency is not None
    assert mask is not None
    return [
        sparse(own[keep], edges[keep][:, keep])
        for own, edges, keep in zip(x, adjacency, mask, strict=True)
    ]


# -- parquet ---------------------------------------------------------------------------------------


def to_columns(
    inputs: Mapping[str, Tensor], targets: Tensor, info: DataInfo
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the columns and ``datasets`` features that a user reads without this package.

    Nodes have one row each, in the order of their numbers: ``x``, ``label``, and, unless the set
    has no edges at all by its kind, ``neighbours`` and ``weights``: the nodes whose edges lead to
    this one, and the weights of these edges. Graphs have one row each: ``x`` [n, d], ``edge_index``
    [2, E] (sources, targets), ``weights`` [E], ``label``. Soft labels stand in ``soft_label``
    beside their largest class.
    """
    from datasets import List, Value

    graphs, wide = sparse_graphs(inputs), inputs["x"].shape[-1]
    row = List(Value("float32"), length=wide)
    columns: dict[str, list[Any]]
    features: dict[str, Any]
    if inputs["x"].ndim == 2:
        columns, features = {"x": graphs[0].x.tolist()}, {"x": row}
        if "adjacency" in inputs:
            columns |= _neighbours(graphs[0])
            features["neighbours"] = List(Value("int32"))
    else:
        columns = {
            "x": [graph.x.tolist() for graph in graphs],
            "edge_index": [graph.edge_index.tolist() for graph in graphs],
            "weights": [graph.edge_weight.tolist() for graph in graphs],
        }
        features = {"x": List(row), "edge_index": List(List(Value("int32")), length=2)}
    if "weights" in columns:
        features["weights"] = List(Value("float32"))
    add_labels(columns, features, targets, info)
    return columns, features


def _neighbours(graph: Sparse) -> dict[str, list[Any]]:
    """Sources and weights of the edges, target by target."""
    counts = torch.bincount(graph.edge_index[1], minlength=len(graph.x)).tolist()
    return {
        "neighbours": [part.tolist() for part in graph.edge_index[0].split(counts)],
        "weights": [part.tolist() for part in graph.edge_weight.split(counts)],
    }


# -- PyG -------------------------------------------------------------------------------------------


def to_pyg(inputs: Mapping[str, Tensor], targets: Tensor) -> Data | list[Data]:
    """Return one ``Data`` of all nodes, or a list with one of each graph.

    ``y`` are class numbers; soft labels are ``y_soft`` beside their largest class.
    """
    from torch_geometric.data import Data

    labels = {"y": class_numbers(targets)}
    if targets.ndim == 2:
        labels["y_soft"] = targets.detach().cpu().float()
    graphs = sparse_graphs(inputs)
    if inputs["x"].ndim == 2:
        return Data(**graphs[0]._asdict(), **labels)
    return [
        Data(**graph._asdict(), **{name: value[i : i + 1] for name, value in labels.items()})
        for i, graph in enumerate(graphs)
    ]


# -- arrays ----------------------------------------------------------------------------------------


def to_arrays(inputs: Mapping[str, Tensor], targets: Tensor) -> dict[str, np.ndarray]:
    """Return ``x`` [N, d], ``edge_index`` [2, E], ``edge_weight`` [E], ``y`` and ``sizes``.

    Graphs become one disjoint union, nodes of graph 0 first, with ``sizes`` [M]. float32 and
    int64; soft labels are ``y_soft``.
    """
    arrays = _union(sparse_graphs(inputs), several=inputs["x"].ndim == 3)
    arrays["y"] = class_numbers(targets).numpy()
    if targets.ndim == 2:
        arrays["y_soft"] = targets.detach().cpu().float().numpy()
    return arrays


def _union(graphs: Sequence[Sparse], *, several: bool) -> dict[str, np.ndarray]:
    sizes = torch.tensor([len(graph.x) for graph in graphs])
    starts = sizes.cumsum(0) - sizes
    joined = [graph.edge_index + start for graph, start in zip(graphs, starts, strict=True)]
    arrays = {
        "x": torch.cat([graph.x for graph in graphs]).numpy(),
        "edge_index": torch.cat(joined, dim=1).numpy(),
        "edge_weight": torch.cat([graph.edge_weight for graph in graphs]).numpy(),
    }
    return {**arrays, "sizes": sizes.numpy()} if several else arrays


def write_npz(
    path: str | Path,
    inputs: Mapping[str, Tensor],
    targets: Tensor,
    names: Sequence[str] | None = None,
) -> None:
    """Write the arrays of `to_arrays` and the class `names` into one file, as a whole.

    ``numpy.load`` reads it without pickle, and so does this package as a source of graphs.
    """
    _write(Path(path), to_arrays(inputs, targets), names)


def _write(path: Path, arrays: Mapping[str, np.ndarray], names: Sequence[str] | None) -> None:
    content = dict(arrays)
    if names is not None:
        content["names"] = np.array(list(names), dtype=np.str_)

    def write(place: Path) -> None:
        with open(place, "wb") as opened:  # given a name, numpy would change its ending
            np.savez_compressed(opened, **content)  # type: ignore[arg-type]

    write_atomic(path, write)


def to_npz(found: Artifact, folder: Path, made: Path) -> None:
    """Write the arrays of the finished set in `folder`: into the file `made`, or that folder.

    Raises `UserError` for a set that is no graph.
    """
    table = read_parquet(folder / PARQUET) if (folder / PARQUET).exists() else None
    modality = found.manifest.get("info", {}).get("modality")
    if table is None or "x" not in table.column_names or modality not in (None, "graphs"):
        raise UserError(
            "this set has no nodes to export",
            got=modality,
            expected="a condensed graph",
            hint="Choose another format.",
        )
    arrays = _of_table(table.with_format(None))
    _write(made / NPZ if made.is_dir() else made, arrays, table.features["label"].names)


def _of_table(table: Any) -> dict[str, np.ndarray]:
    """The arrays of `to_arrays` from the columns of `to_columns`."""
    several = "edge_index" in table.column_names
    graphs = [_of_row(item) for item in table] if several else [_of_nodes(table)]
    arrays = _union(graphs, several=several)
    arrays["y"] = np.array(table["label"][:], dtype=np.int64)
    if "soft_label" in table.column_names:
        arrays["y_soft"] = np.array(table["soft_label"][:], dtype=np.float32)
    return arrays


def _of_row(item: Mapping[str, Any]) -> Sparse:
    edges = torch.tensor(item["edge_index"], dtype=torch.int64).view(2, -1)
    return Sparse(torch.tensor(item["x"]), edges, torch.tensor(item["weights"]))


def _of_nodes(table: Any) -> Sparse:
    x = torch.tensor(table["x"][:])
    if "neighbours" not in table.column_names:
        return sparse(x, None)
    neighbours, weights = table["neighbours"][:], table["weights"][:]
    target = torch.repeat_interleave(torch.tensor([len(own) for own in neighbours]))
    source = torch.tensor(list(itertools.chain(*neighbours)), dtype=torch.int64)
    flat = torch.tensor(list(itertools.chain(*weights)), dtype=torch.float32)
    return Sparse(x, torch.stack([source, target]), flat)
