"""From what the user named or handed over to a `Graph` as it came."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from mmdd.errors import UserError, nearest
from mmdd.modalities.graphs import local, pyg
from mmdd.modalities.graphs.arrays import graph_of
from mmdd.modalities.graphs.data_options import GraphData
from mmdd.modalities.graphs.graph import Graph

PYTHON_SOURCES = (
    "'pyg:NAME/ITEM', a path, a torch_geometric Data, a list or data set of them, or a dict of "
    "arrays (edge_index, x, y, train_mask, ...)"
)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source before anything is checked beyond its shapes.

    Attributes
    ----------
    name: what the user called it.
    graph: its nodes, edges, labels and masks.
    normalise: what the field does with these features, where it is a known exception.
    notes: sentences for the user.
    """

    name: str
    graph: Graph
    normalise: Literal["standard"] | None = None
    notes: tuple[str, ...] = ()


def open_source(source: Any, options: GraphData) -> Opened:
    """Find out what `source` is and read it; see `open_graphs` for what it may be.

    Errors: UserError for anything that cannot be opened.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str) and source.startswith(pyg.PREFIX):
        chosen = pyg.choose(source)
        opened = pyg.open_set(chosen, options.root)
        arrays, notes = arrays_of(opened)
        graph = graph_of(arrays, options.max_feature_bytes)
        return Opened(chosen.text, graph, chosen.known.normalise, tuple(notes))
    if options.root is not None:
        raise UserError(
            "data.root is for sets of PyG", got=options.root, expected="a source 'pyg:NAME/ITEM'"
        )
    if isinstance(source, str):
        arrays = local.read_arrays(_existing(source))
        return Opened(source, graph_of(arrays, options.max_feature_bytes))
    arrays, notes = arrays_of(source)
    graph = graph_of(arrays, options.max_feature_bytes)
    return Opened(f"{type(source).__name__} in memory", graph, notes=tuple(notes))


def graph_from_python(source: Any) -> Graph:
    """Read a Data, several of them, or a dict of arrays."""
    return graph_of(arrays_of(source)[0])


def _existing(text: str) -> Path:
    path = Path(text).expanduser()
    if text and path.exists():
        return path
    meant = pyg.suggestion(text)
    folder = path.parent
    close = nearest(path.name, [e.name for e in folder.iterdir()]) if folder.is_dir() else None
    guess = str(folder / close) if close else meant
    raise UserError(
        f"no such file or folder: {text!r}",
        hint=f"Did you mean {guess!r}?" if guess else "A set of PyG is called 'pyg:NAME/ITEM'",
    )


def arrays_of(source: Any) -> tuple[dict[str, Any], list[str]]:
    """Named arrays of whatever came from Python, and sentences on what of it is not used.

    Errors: UserError for a thing that is no graph.
    """
    if isinstance(source, Mapping):
        return dict(source), []
    from torch_geometric.data import Data
    from torch_geometric.data import Dataset as GraphSet

    notes: list[str] = []
    if isinstance(source, Data):
        return _of_data(source, notes), notes
    several = isinstance(source, (GraphSet, torch.utils.data.Dataset, Sequence))
    if not several or isinstance(source, (str, bytes)):
        raise UserError(
            "this cannot be opened as graphs", got=type(source).__name__, expected=PYTHON_SOURCES
        )
    graphs = _listed(source)
    arrays = _of_data(graphs[0], notes) if len(graphs) == 1 else _union(graphs, notes)
    if hasattr(source, "get_idx_split"):  # the official parts of OGB
        arrays |= {f"{role}_index": index for role, index in source.get_idx_split().items()}
    return arrays, notes


def _listed(source: Any) -> list[Any]:
    from torch_geometric.data import Data

    graphs = [source[number] for number in range(len(source))]
    if not graphs:
        raise UserError("the set holds no graphs", got=type(source).__name__)
    wrong = next((graph for graph in graphs if not isinstance(graph, Data)), None)
    if wrong is not None:
        raise UserError(
            "not every item of the set is a graph",
            got=type(wrong).__name__,
            expected="torch_geometric.data.Data",
        )
    return graphs


def _of_data(data: Any, notes: list[str]) -> dict[str, Any]:
    arrays = dict(data.to_dict())
    if arrays.get("edge_index") is None and arrays.get("adj_t") is not None:
        raise UserError(
            "the graph has its edges in 'adj_t' only",
            expected="edge_index",
            hint="Leave the transform ToSparseTensor out",
        )
    _note_attributes([data], notes)
    return arrays


def _note_attributes(graphs: Sequence[Any], notes: list[str]) -> None:
    if any(getattr(data, "edge_attr", None) is not None for data in graphs):
        notes.append("edge_attr is not used; only a number per edge, called edge_weight, would be")


def _union(graphs: Sequence[Any], notes: list[str]) -> dict[str, Any]:
    """Several graphs side by side, with ``sizes``; each has one label."""
    _note_attributes(graphs, notes)
    sizes = [int(data.num_nodes or 0) for data in graphs]
    starts = torch.tensor([0, *sizes]).cumsum(0)
    edges = [_required(data, "edge_index") for data in graphs]
    arrays: dict[str, Any] = {
        "sizes": torch.tensor(sizes),
        "edge_index": torch.cat([e + s for e, s in zip(edges, starts[:-1], strict=True)], dim=1),
        "y": torch.cat([_one_label(data, number) for number, data in enumerate(graphs)]),
    }
    for name in ("x", "edge_weight"):
        found = [getattr(data, name, None) for data in graphs]
        if any(values is not None for values in found):
            arrays[name] = _joined(found, name)
    return arrays


def _required(data: Any, name: str) -> Any:
    values = getattr(data, name, None)
    if values is None:
        raise UserError(f"a graph of the set has no {name}", got=str(data))
    return values


def _one_label(data: Any, number: int) -> torch.Tensor:
    y = torch.as_tensor(_required(data, "y"))
    if y.numel() != 1:
        per_node = y.shape[:1] == (data.num_nodes,)
        raise UserError(
            f"graph {number} of the set has {y.numel()} labels",
            expected="one class per graph",
            hint="Labels of nodes: join the graphs with Batch.from_data_list into one Data"
            if per_node
            else None,
        )
    return y.reshape(1)


def _joined(found: Sequence[Any], name: str) -> torch.Tensor:
    shapes = {None if values is None else tuple(values.shape[1:]) for values in found}
    if len(shapes) > 1:
        raise UserError(
            f"the graphs differ in their {name}",
            got=sorted(map(str, shapes)),
            expected="the same width in all",
        )
    return torch.cat(list(found))
