"""Node features: degrees where a set has none, and how they are normalised.

Shape suffixes: N nodes, d features.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from mmdd.modalities.graphs.data_options import GraphData
from mmdd.modalities.graphs.graph import Graph

Kind = Literal["none", "row", "standard"]
SPARSE = 0.5  # share of zeros from which non-negative features count as a bag of words
BLOCK = 2**16  # rows handled at once, to spare copies of large matrices


@dataclasses.dataclass(frozen=True)
class Normalise:
    """What is done to the features of every node.

    Attributes
    ----------
    kind: 'row' divides by the sum of absolute values, 'standard' by the deviation after taking the
        mean away.
    mean, std: [d] float32 of 'standard', else None.
    """

    kind: Kind
    mean: Tensor | None = None
    std: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [N, d] into a new tensor; rows of zeros stay zeros under 'row'."""
        made = x.clone()
        if self.kind == "row":
            for block in torch.split(made, BLOCK):
                total = block.abs().sum(dim=1, keepdim=True)
                block.div_(torch.where(total > 0, total, 1.0))
        elif self.mean is not None and self.std is not None:
            made.sub_(self.mean).div_(self.std)
        return made

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What undoes 'standard': value * std + mean."""
        if self.mean is None or self.std is None:
            return {}
        return {"feature_mean": self.mean, "feature_std": self.std}


def fit(x: Tensor, train: Tensor, options: GraphData, usual: Kind | None) -> Normalise:
    """Choose and measure the normalisation.

    Parameters
    ----------
    x: [N, d] features.
    train: [k] int64 the training nodes, over which 'standard' is fitted.
    usual: what the field does with this set where 'auto' would choose otherwise, or None.
    """
    kind = options.normalise
    if kind == "auto":
        kind = usual or _choose(x)
    if kind != "standard":
        return Normalise(kind)
    mean, std = _moments(x, train)
    return Normalise("standard", mean, std)


def _choose(x: Tensor) -> Kind:
    """'row' for bags of words: non-negative, half or more of them zero; 'none' for one-hot rows."""
    if bool((x < 0).any()) or int((x == 0).sum()) < SPARSE * x.numel():
        return "standard"
    totals = x.sum(dim=1)
    return "none" if bool(((totals == 0) | (totals == 1)).all()) else "row"


def _moments(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population deviation [d] of the chosen rows, in double precision, block by block."""
    count = max(1, len(rows))
    blocks = torch.split(rows, BLOCK)
    mean = torch.stack([x[block].double().sum(dim=0) for block in blocks]).sum(dim=0) / count
    squares = torch.stack([(x[block].double() - mean).square().sum(dim=0) for block in blocks])
    std = (squares.sum(dim=0) / count).sqrt()
    # rounding leaves a trace of variance in a constant feature
    std[std <= 1e-7 * mean.abs().clamp_min(1)] = 1.0
    return mean.float(), std.float()


def degree_width(graph: Graph, nodes: Tensor, most: int) -> int:
    """Width of one-hot degrees: 1 + the largest degree among `nodes` [k], at most 1 + `most`."""
    degrees = graph.in_degrees[nodes]
    return min(most, int(degrees.max()) if len(degrees) else 0) + 1


def one_hot_degrees(graph: Graph, width: int) -> Tensor:
    """[N, width] float32: the number of edges that end at each node; the last column is 'or more'.

    As for the sets of TU Dortmund without node labels (Xu et al. 2019, arXiv:1810.00826, section
    7), which are social networks.
    """
    degrees = graph.in_degrees.clamp_max(width - 1)
    made = torch.zeros(graph.nodes, width)
    return made.scatter_(1, degrees[:, None], 1.0)
