"""Where the nodes of a graph stand in a picture: near each other as they are in the graph.

Shape suffixes: n nodes, E pairs of nodes with an edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDS = 150
"""Steps of stress majorisation; it changes by less than a thousandth long before."""


def layout(nodes: int, edges: np.ndarray) -> np.ndarray:
    """[n, 2] places of the nodes of a graph with the pairs `edges` [E, 2]; an edge is about 1 long.

    Every connected part is laid out by its distances; parts then stand in rows, the largest first.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, shortest_path

    ones = np.ones(len(edges))
    linked = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(nodes, nodes)).tocsr()
    count, part = connected_components(linked, directed=False)
    parts = [np.flatnonzero(part == number) for number in range(count)]
    parts.sort(key=len, reverse=True)
    drawn = []
    for own in parts:
        hops = shortest_path(linked[own][:, own], directed=False, unweighted=True)
        places = by_distances(hops)
        drawn.append(places - places.min(axis=0))
    places = np.zeros((nodes, 2))
    for own, corner, shape in zip(parts, _packed(drawn), drawn, strict=True):
        places[own] = shape + corner
    return places


def by_distances(hops: np.ndarray) -> np.ndarray:
    """[n, 2] places whose distances are near `hops` [n, n], in squares relative to them.

    Stress majorisation (Gansner, Koren and North 2004), from classical scaling.
    """
    nodes = len(hops)
    if nodes == 1:
        return np.zeros((1, 2))
    centring = np.eye(nodes) - 1 / nodes
    values, vectors = np.linalg.eigh(-centring @ hops**2 @ centring / 2)
    places = (vectors * np.sqrt(np.clip(values, 0, None)))[:, ::-1][:, :2]
    turn = np.arange(nodes) * 2.4  # nodes at one place would stay together
    places = places + 0.05 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    weight = np.divide(1, hops**2, out=np.zeros_like(hops), where=hops > 0)
    inverse = np.linalg.pinv(np.diag(weight.sum(axis=1)) - weight)
    for _ in range(ROUNDS):
        found = np.linalg.norm(places[:, None] - places, axis=2)
        pull = weight * np.divide(hops, found, out=np.zeros_like(hops), where=found > 1e-9)
        places = inverse @ (np.diag(pull.sum(axis=1)) - pull) @ places
    turned: np.ndarray = places @ np.linalg.svd(places, full_matrices=False)[2].T
    return turned


def _packed(shapes: Sequence[np.ndarray], gap: float = 1.4) -> list[np.ndarray]:
    """Corners of boxes that stand in rows about as wide as all rows are high."""
    sizes = [shape.max(axis=0) + gap for shape in shapes]
    wide = max(max(size[0] for size in sizes), float(np.sqrt(sum(w * h for w, h in sizes))))
    corners, x, y, high = [], 0.0, 0.0, 0.0
    for size in sizes:
        if x > 0 and x + size[0] > wide + 1e-9:
            x, y, high = 0.0, y - high, 0.0
        corners.append(np.array([x, y - size[1] + gap]))
        x, high = x + size[0], max(high, size[1])
    return corners
