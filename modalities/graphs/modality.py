"""Graphs as a modality: the room's doors in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdd.errors import unknown_name
from mmdd.modalities.graphs import export, show
from mmdd.modalities.graphs.augment import GraphDropout
from mmdd.modalities.graphs.data import open_graphs
from mmdd.modalities.graphs.encoders import ENCODERS
from mmdd.modality import DataInfo, Mixer, Splits


class Graphs:
    """Items are the nodes of one graph (``level`` node) or whole graphs (``level`` graph).

    Inputs are dicts of tensors. Real nodes: ``x`` [N, d], ``edge_index`` [2, E], ``edge_weight``
    [E]; synthetic ones: ``x`` [n, d] and, unless they stand alone, ``adjacency`` [n, n]. Real
    graphs come as one disjoint union with ``sizes`` [n]; synthetic ones padded, with a ``mask``.
    """

    name = "graphs"
    eager = True
    shows_real = True

    def __init__(self) -> None:
        self.mixers: Mapping[str, Mixer] = {}

    def open(self, source: Any, options: Any, device: torch.device) -> Splits:
        """Open a source; see `open_graphs`."""
        return open_graphs(source, options, device)

    def encoder(self, options: Any, info: DataInfo) -> nn.Module:
        """Build the encoder that the options name for features of the set's width."""
        chosen = options.model_dump()
        name = chosen.pop("encoder")
        if name not in ENCODERS:
            raise unknown_name("encoder", name, ENCODERS)
        build: Any = ENCODERS[name]
        made: nn.Module = build(info.shape[0], info.classes, level_of(info), **chosen)
        return made

    def example(self, info: DataInfo) -> dict[str, Tensor]:
        """One blank node, or one blank graph of the mean size."""
        return blank(1, info)

    def augmentation(self, options: Any, info: DataInfo) -> GraphDropout | None:
        """Graph dropout, or None."""
        chosen = options.model_dump()
        return None if chosen.pop("kind") == "none" else GraphDropout(**chosen)

    def noise(self, count: int, info: DataInfo, generator: torch.Generator) -> dict[str, Tensor]:
        """Nodes of standard normal features; graphs also have an edge in one of ten places."""
        made = blank(count, info)
        made["x"] = torch.randn(made["x"].shape, generator=generator)
        if "adjacency" in made:
            edges = (torch.rand(made["adjacency"].shape, generator=generator) < 0.1).float()
            upper = edges.triu(diagonal=1)
            made["adjacency"] = upper + upper.transpose(1, 2)
        return made

    def bounds(self, info: DataInfo) -> None:
        """Features have no range that all sets share."""
        return

    def to_columns(
        self, inputs: dict[str, Tensor], targets: Tensor, info: DataInfo
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """One row per node, or per graph."""
        return export.to_columns(inputs, targets, info)

    def picture(
        self,
        inputs: dict[str, Tensor],
        targets: Tensor,
        info: DataInfo,
        path: Path,
        real: tuple[dict[str, Tensor], Tensor] | None = None,
    ) -> None:
        """The condensed graph, and its nodes among real ones in the plane of their features."""
        beside = None
        if real is not None and level_of(info) == "node":
            beside = (real[0]["x"].cpu(), real[1].cpu())
        show.picture(inputs, targets, info, path, real=beside)

    def to_pyg(self, inputs: dict[str, Tensor], targets: Tensor) -> Any:
        """A ``torch_geometric.data.Data``, or a list of them."""
        return export.to_pyg(inputs, targets)


def level_of(info: DataInfo) -> Any:
    """``node`` or ``graph``: what an item is."""
    return info.normalisation["level"]


def blank(count: int, info: DataInfo) -> dict[str, Tensor]:
    """`count` items of zeros."""
    if level_of(info) == "node":
        return {"x": torch.zeros(count, *info.shape)}
    nodes = info.normalisation["mean_nodes"]
    return {
        "x": torch.zeros(count, nodes, *info.shape),
        "adjacency": torch.zeros(count, nodes, nodes),
        "mask": torch.ones(count, nodes, dtype=torch.bool),
    }


GRAPHS = Graphs()
