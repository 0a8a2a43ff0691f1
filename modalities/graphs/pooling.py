"""From the states of nodes to one vector for each graph.

Shape suffixes in this file: n graphs, N nodes of all of them, m nodes of a padded one, d features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Pool = Literal["mean", "sum", "max"]
POOLS: tuple[Pool, ...] = ("mean", "sum", "max")


def pooled(h: Tensor, inputs: Mapping[str, Tensor], pool: Pool) -> Tensor:
    """[n, d] mean, sum or maximum over the nodes of each graph; 0 for a graph without nodes.

    `h` is [N, d], the graphs of ``inputs["sizes"]`` [n] one after another; or [n, m, d], where
    ``inputs["mask"]`` [n, m], if there, tells which nodes exist. Equal largest values share the
    gradient of a maximum evenly.
    """
    if "sizes" in inputs:
        return _of_union(h, inputs["sizes"], pool)
    mask = inputs.get("mask")
    if mask is None:
        mask = torch.ones(h.shape[:-1], dtype=torch.bool, device=h.device)
    return _of_padded(h, mask, pool)


def _of_union(h: Tensor, sizes: Tensor, pool: Pool) -> Tensor:
    places = torch.arange(len(sizes), device=sizes.device)
    owner = places.repeat_interleave(sizes, output_size=len(h))
    zeros = h.new_zeros(len(sizes), h.shape[-1])
    if pool == "max":
        index = owner.unsqueeze(-1).expand_as(h)
        return zeros.scatter_reduce(0, index, h, "amax", include_self=False)
    total = zeros.index_add(0, owner, h)
    return total if pool == "sum" else total / sizes.clamp_min(1).unsqueeze(-1)


def _of_padded(h: Tensor, mask: Tensor, pool: Pool) -> Tensor:
    alone = ~mask.unsqueeze(-1)
    if pool == "max":
        nothing = ~mask.any(dim=-1).unsqueeze(-1)
        return h.masked_fill(alone, -torch.inf).amax(dim=-2).masked_fill(nothing, 0.0)
    total = h.masked_fill(alone, 0.0).sum(dim=-2)
    return total if pool == "sum" else total / mask.sum(dim=-1, keepdim=True).clamp_min(1)
