"""Neighbour sampling: training batches of nodes from graphs that do not fit.

Shape suffixes: n seeds, m nodes of a sample, e its edges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mmdd.modalities.graphs.structure import Structure, sort_edges
from mmdd.rng import generator


def sample(
    graph: Structure, seeds: Tensor, fanouts: Sequence[int], seed: int
) -> tuple[dict[str, Tensor], int]:
    """Draw the neighbourhood of `seeds` [n] distinct, hop by hop (Hamilton et al. 2017, alg. 2).

    Every node that a hop reaches first reads up to ``fanouts[hop]`` of its in-neighbours, drawn
    without replacement; the weights of its k drawn edges are multiplied by (its edges) / k, and
    degrees are those of the whole graph. A propagated sum is therefore unbiased over draws, and
    exact where the fan-outs are not smaller than the degrees. The draw depends on `seed` and on the
    seeds alone, so that a resumed run repeats it.

    Returns
    -------
    Inputs on the CPU, the seeds being its first nodes, in order; and their number n.
    """
    draws = generator(seed, f"neighbours/{_digest(seeds)}")
    place = torch.full((len(graph),), -1)
    place[seeds] = torch.arange(len(seeds))
    nodes, frontier, edges = [seeds], seeds, []
    for fanout in fanouts:
        chosen, boost = _draw(graph, frontier, fanout, draws)
        source = graph.edge_index[0][chosen]
        frontier = torch.unique(source[place[source] < 0])
        place[frontier] = torch.arange(len(frontier)) + sum(map(len, nodes))
        nodes.append(frontier)
        edges.append((chosen, boost))
    kept = torch.cat(nodes)
    taken = torch.cat([chosen for chosen, _ in edges])
    weights = graph.edge_weight[taken] * torch.cat([boost for _, boost in edges])
    index, weights = sort_edges(place[graph.edge_index[:, taken]], weights, len(kept))
    inputs = {
        "x": graph.x[kept],
        "edge_index": index,
        "edge_weight": weights,
        "degree": graph.degree[kept],
    }
    return inputs, len(seeds)


def _digest(seeds: Tensor) -> str:
    return hashlib.sha256(seeds.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()


def _draw(
    graph: Structure, nodes: Tensor, fanout: int, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Numbers [e] of up to `fanout` edges that end at each node, and (its edges) / (those drawn).

    All candidates get a random key and are sorted within their node, without a loop over nodes.
    """
    starts, counts = graph.starts[nodes], graph.starts[nodes + 1] - graph.starts[nodes]
    owner = torch.repeat_interleave(torch.arange(len(nodes)), counts)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(owner)) - first[owner]
    candidates = starts[owner] + rank
    # halved, so that no sum rounds up to the next owner
    keys = owner + torch.rand(len(owner), generator=draws, dtype=torch.float64) / 2
    shuffled = candidates[torch.argsort(keys)]
    drawn = rank < fanout
    taken = counts.clamp_max(fanout)
    boost = (counts.double() / taken.clamp_min(1)).float()
    return shuffled[drawn], boost[owner[drawn]]


def distinct(index: Tensor) -> tuple[Tensor, Tensor]:
    """The different numbers of `index` [n] in the order of first appearance, and each one's row."""
    values, inverse = torch.unique(index, return_inverse=True)
    if len(values) == len(index):
        return index, torch.arange(len(index))
    first = torch.full((len(values),), len(index)).scatter_reduce_(
        0, inverse, torch.arange(len(index)), "amin"
    )
    order = torch.argsort(first)
    row = torch.empty_like(order)
    row[order] = torch.arange(len(order))
    return values[order], row[inverse]
