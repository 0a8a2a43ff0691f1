"""Open graph data: find, check, split, normalise, and keep as nodes or as whole graphs.

Shape suffixes: N nodes, E edges, M items (nodes or graphs), d features.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.graphs.data_options import GraphData
from mmdd.modalities.graphs.features import Normalise, degree_width, fit, one_hot_degrees
from mmdd.modalities.graphs.graph import ROLES, Graph, clean_edges
from mmdd.modalities.graphs.nodes import Nodes, SampledNodes
from mmdd.modalities.graphs.parts import Parts, make_parts
from mmdd.modalities.graphs.sources import Opened, open_source
from mmdd.modalities.graphs.structure import Structure
from mmdd.modalities.graphs.whole import Union, WholeGraphs
from mmdd.modality import DataInfo, Splits
from mmdd.real import RealData

__all__ = ["open_graphs"]


@dataclasses.dataclass
class Opening:
    """A set on its way from a source to data.

    Attributes
    ----------
    graph: with cleaned edges.
    parts: which items play which part.
    normalise: what is done to the features.
    notes: sentences for the user.
    """

    graph: Graph
    parts: Parts
    options: GraphData
    notes: list[str]
    normalise: Normalise = dataclasses.field(default_factory=lambda: Normalise("none"))


def open_graphs(source: Any, options: GraphData, device: torch.device | str = "cpu") -> Splits:
    """Open a graph with labelled nodes, or a set of labelled graphs.

    Parameters
    ----------
    source: what `options.source` may be ('pyg:NAME/ITEM', a path), or from Python: a
        ``torch_geometric.data.Data`` (its nodes are the items), a list or data set of several
        (the graphs are), or a dict of arrays. None for `options.source`.
    options: how to read it.
    device: where batches are delivered.

    Errors
    ------
    UserError, one line, for anything about the source or the options that cannot be used.
    """
    source = options.source if source is None else source
    if source is None:
        raise UserError("no data source", hint="Set data.source, e.g. pyg:Planetoid/Cora")
    opened = open_source(source, options)
    notes = list(opened.notes)
    graph = clean_edges(opened.graph, options.undirected, notes)
    opening = Opening(graph, make_parts(graph, options, notes), options, notes)
    if graph.level == "graph" and options.neighbours is not None:
        raise UserError(
            "data.neighbours is for the nodes of one graph", got=options.neighbours, expected="null"
        )
    build = _nodes if graph.level == "node" else _graphs
    data, width, facts = build(opening, opened, torch.device(device))
    info = _info(opening, opened, data, width, facts)
    return Splits(data["train"], data.get("validation"), data.get("test"), info)


Built = tuple[dict[str, RealData], int, dict[str, Any]]
"""The parts as data, the number of features, and what else describes their space."""


def _nodes(opening: Opening, opened: Opened, device: torch.device) -> Built:
    """Nodes of one graph; every part sees the structure that its setting allows."""
    views = _views(opening)
    sampled = opening.options.neighbours
    features = _features(opening, opened, views)
    structures = _structures(views, features, opening.normalise, device)
    data: dict[str, RealData] = {}
    for role, rows in opening.parts.rows.items():
        nodes, _ = views[role]
        index = torch.searchsorted(nodes, torch.from_numpy(rows))
        codes = torch.from_numpy(opening.parts.codes[rows])
        shared = (structures[role], index, codes, len(opening.parts.names))
        if role == "train" and sampled is not None:
            seed = opening.options.seed
            data[role] = SampledNodes(*shared, fanouts=sampled, seed=seed, device=device)
        else:
            data[role] = Nodes(*shared, device=device)
    return data, features["train"].shape[1], {}


Views = dict[str, tuple[Tensor, Graph]]
"""By role: the nodes [n] of the graph that it sees, ascending, and the graph of these."""


def _views(opening: Opening) -> Views:
    """The whole graph for all parts, or for each the sub-graph induced by its own nodes."""
    graph, parts = opening.graph, opening.parts
    if opening.options.setting == "transductive":
        everything = (torch.arange(graph.nodes), graph)
        return dict.fromkeys(parts.rows, everything)
    chosen = {role: torch.from_numpy(parts.members[role]) for role in parts.rows}
    unseen = graph.nodes - sum(map(len, chosen.values()))
    if unseen:
        opening.notes.append(f"{unseen} nodes are in no part, and no inductive graph holds them")
    views = {role: (nodes, graph.induced(nodes)) for role, nodes in chosen.items()}
    kept = sum(part.edge_index.shape[1] for _, part in views.values())
    total = graph.edge_index.shape[1]
    opening.notes.append(f"inductive: {kept} of {total} directed edges lie within a part")
    return views


def _features(opening: Opening, opened: Opened, views: Views) -> dict[str, Tensor]:
    """Features of every part's graph as they came, or degrees; measure their normalisation."""
    parts, options = opening.parts, opening.options
    nodes, train = views["train"]
    rows = torch.searchsorted(nodes, torch.from_numpy(parts.rows["train"]))
    if opening.graph.x is None:
        width = degree_width(train, rows, options.max_degree)
        _note_degrees(width, opening.notes)
        made = {id(view): one_hot_degrees(view, width) for _, view in views.values()}
        found = {role: made[id(view)] for role, (_, view) in views.items()}
    else:
        found = {role: view.x for role, (_, view) in views.items() if view.x is not None}
    opening.normalise = fit(found["train"], rows, options, opened.normalise)
    return found


def _note_degrees(width: int, notes: list[str]) -> None:
    notes.append(
        f"no node features: nodes get one-hot degrees, 0 to {width - 2} and {width - 1} or more"
        if width > 1
        else "no node features and no edges: every node gets the one feature 1"
    )


def _structures(
    views: Views, features: dict[str, Tensor], normalise: Normalise, device: torch.device
) -> dict[str, Structure]:
    """One structure for each graph: parts that see the same graph share it."""
    made: dict[int, Structure] = {}
    for role, (_, view) in views.items():
        if id(view) not in made:
            x = normalise(features[role])
            made[id(view)] = Structure(x, view.edge_index, view.edge_weight, device=device)
    return {role: made[id(view)] for role, (_, view) in views.items()}


def _graphs(opening: Opening, opened: Opened, device: torch.device) -> Built:
    """Whole graphs; all parts share one storage."""
    graph, parts, options = opening.graph, opening.parts, opening.options
    assert graph.sizes is not None, "the level is graph"
    trained = torch.zeros(len(graph.sizes), dtype=torch.bool)
    trained[parts.rows["train"]] = True
    nodes = torch.nonzero(trained[graph.owner]).flatten()
    x = graph.x
    if x is None:
        width = degree_width(graph, nodes, options.max_degree)
        _note_degrees(width, opening.notes)
        x = one_hot_degrees(graph, width)
    opening.normalise = fit(x, nodes, options, opened.normalise)
    union = Union.of(graph, opening.normalise(x), device)
    data: dict[str, RealData] = {}
    for role, rows in parts.rows.items():
        index, codes = torch.from_numpy(rows), torch.from_numpy(parts.codes[rows])
        data[role] = WholeGraphs(union, index, codes, len(parts.names), device=device)
    sizes = graph.sizes[parts.rows["train"]]
    facts = {
        "mean_nodes": max(1, round(sizes.double().mean().item())),
        "max_nodes": int(sizes.max()),
    }
    return data, x.shape[1], facts


def _info(
    opening: Opening,
    opened: Opened,
    data: dict[str, RealData],
    width: int,
    facts: dict[str, Any],
) -> DataInfo:
    graph, kind = opening.graph, opening.normalise.kind
    # test graphs are never seen while training, whatever was chosen for nodes
    setting = opening.options.setting if graph.level == "node" else "inductive"
    sizes = {role: len(data.get(role, ())) for role in ROLES}
    if graph.sizes is not None:
        sizes["graphs"] = len(graph.sizes)
    sizes |= {"nodes": graph.nodes, "edges": graph.edge_index.shape[1]}
    if kind != "none":
        did = "divided by their sum" if kind == "row" else "standardised over the training nodes"
        opening.notes.append(f"features are {did} (data.normalise: {kind})")
    return DataInfo(
        modality="graphs",
        task="classification",
        source=opened.name,
        shape=(width,),
        classes=len(opening.parts.names),
        names=opening.parts.names,
        fingerprint=_digest(opening),
        normalisation={
            "kind": kind,
            "level": graph.level,
            "setting": setting,
            "features": "degree" if graph.x is None else "given",
            **facts,
        },
        columns={},
        sizes=sizes,
        notes=tuple(opening.notes),
        tensors=opening.normalise.tensors,
    )


def _digest(opening: Opening) -> str:
    """Fingerprint features, edges, labels and parts, and the options that make them other items."""
    graph, parts, options = opening.graph, opening.parts, opening.options
    hasher = hashlib.sha256()
    setting = options.setting if graph.level == "node" else None
    degree = options.max_degree if graph.x is None else None
    sampled = None if options.neighbours is None else (options.neighbours, options.seed)
    facts = (graph.level, setting, opening.normalise.kind, degree, sampled, parts.names)
    hasher.update(repr(facts).encode())
    fields = {"edges": graph.edge_index, "weights": graph.edge_weight, "sizes": graph.sizes}
    fields["x"] = None if graph.x is None else graph.x + 0.0  # -0 and 0 are one feature
    fields |= {role: torch.from_numpy(rows) for role, rows in parts.rows.items()}
    if setting == "inductive":
        fields |= {f"{r} sees": torch.from_numpy(seen) for r, seen in parts.members.items()}
    fields["codes"] = torch.from_numpy(parts.codes)
    for name, values in fields.items():
        if values is not None:
            hasher.update(repr((name, tuple(values.shape), str(values.dtype))).encode())
            hasher.update(values.contiguous().numpy().data)
    return hasher.hexdigest()
