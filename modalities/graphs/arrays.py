"""From named arrays to a `Graph`: every layout of a dict, an npz or a safetensors file.

The names are those of PyG: ``edge_index`` [2, E], ``x`` [N, d], ``y``, ``train_mask``,
``val_mask``, ``test_mask`` (or ``train_index`` and so on), ``edge_weight`` [E]; ``sizes`` [G] says
that the graphs, not the nodes, are the items. A matrix may come as its CSR arrays
(``x_data``, ``x_indices``, ``x_indptr``, ``x_shape``; the adjacency as ``adj_...``), as the sets of
Shchur et al. do (2018, arXiv:1811.05868). Those of Platonov et al. (2023, arXiv:2302.11640), with
``edges`` [E, 2] and masks [S, N], are read as they are.

Shape suffixes: N nodes, E edges, G graphs, M items (nodes or graphs), d features, S splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdd.errors import UserError, nearest
from mmdd.files import human_bytes
from mmdd.modalities.graphs.graph import ROLES, Graph

UNLABELLED = -1
NAMED = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
FEATURES = ("x", "node_features", "features")
LABELS = ("y", "node_labels", "labels")
CSR = ("data", "indices", "indptr", "shape")
ADJACENCY = ("adj_", "adjacency_", "")
SPARSE_FEATURES = ("x_", "attr_")
Arrays = Mapping[str, Any]


def graph_of(arrays: Arrays, most_bytes: int | None = None) -> Graph:
    """Read named arrays (of numpy, torch, lists; SciPy's sparse matrices too) as a graph.

    Parameters
    ----------
    arrays: see the head of this file; other names are ignored.
    most_bytes: refuse features that take more than this once dense.

    Errors: UserError when edges or labels are missing, or shapes and types do not fit.
    """
    arrays = {name: value for name, value in arrays.items() if value is not None}
    y = labels_of(_first(arrays, LABELS, "labels"))
    sizes = _sizes(arrays)
    nodes = _count_nodes(arrays, y, sizes)
    x = _features(arrays, most_bytes)
    _require_count("features", x, nodes, "node")
    edges, weights, weighted = _edges(arrays, nodes)
    unit, items = ("node", nodes) if sizes is None else ("graph", len(sizes))
    _require_count("labels", y, items, unit)
    names = tuple(str(name) for name in _plain(arrays["names"])) if "names" in arrays else None
    return Graph(nodes, edges, weights, weighted, x, y, _masks(arrays, items, unit), sizes, names)


def _plain(values: Any) -> Any:
    return values.tolist() if isinstance(values, (np.ndarray, Tensor)) else values


def to_tensor(values: Any, name: str) -> Tensor:
    """Turn numbers of any kind into a dense tensor on the CPU that shares memory where it can.

    Errors: UserError for anything that holds no numbers.
    """
    if isinstance(values, Tensor):
        plain = values.detach().cpu()
        return plain if plain.layout == torch.strided else plain.to_dense()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name!r} is no array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name!r} holds no numbers", got=str(array.dtype))
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _whole(values: Any, name: str) -> Tensor:
    """Integers as int64."""
    tensor = to_tensor(values, name)
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise UserError(f"{name!r} must hold whole numbers", got=str(tensor.dtype))
    return tensor.to(torch.int64)


def _first(arrays: Arrays, names: tuple[str, ...], what: str) -> Any:
    found = next((arrays[name] for name in names if name in arrays), None)
    if found is None:
        close = nearest(names[0], arrays)
        raise UserError(
            f"the graph has no {what}",
            got=sorted(map(str, arrays)),
            expected=f"an array {names[0]!r}",
            hint=f"Is it {close!r}? Then rename it" if close else None,
        )
    return found


def _count_nodes(arrays: Arrays, y: Tensor, sizes: Tensor | None) -> int:
    """N, of the sizes of the graphs, or else of features or labels."""
    if sizes is not None:
        empty = int((sizes < 1).sum())
        if empty or not len(sizes):
            raise UserError(f"{empty or 'all'} graphs have no nodes", hint="Leave them out")
        return int(sizes.sum())
    shapes = [getattr(arrays[name], "shape", None) for name in FEATURES if name in arrays]
    shapes += [arrays[f"{prefix}shape"] for prefix in SPARSE_FEATURES if f"{prefix}shape" in arrays]
    known = [shape for shape in shapes if shape is not None and len(shape)]
    nodes = int(known[0][0]) if known else len(y)
    if not nodes:
        raise UserError("the graph is empty: it has no nodes")
    return nodes


def _sizes(arrays: Arrays) -> Tensor | None:
    if "sizes" not in arrays:
        return None
    sizes = _whole(arrays["sizes"], "sizes")
    if sizes.ndim != 1:
        raise UserError("'sizes' must say the nodes of each graph", got=tuple(sizes.shape))
    return sizes


def _require_count(what: str, values: Tensor | None, count: int, unit: str) -> None:
    if values is not None and len(values) != count:
        raise UserError(
            f"the number of {what} differs from that of {unit}s",
            got=len(values),
            expected=f"{count}, one for each {unit}",
        )


# -- edges -----------------------------------------------------------------------------------------


def _edges(arrays: Arrays, nodes: int) -> tuple[Tensor, Tensor, bool]:
    """Edges [2, E], their weights [E], and whether these were given."""
    if hasattr(arrays.get("adjacency"), "tocsr"):
        return _of_csr(_csr_parts(arrays["adjacency"]), nodes)
    for prefix in () if "edge_index" in arrays else ADJACENCY:
        if all(f"{prefix}{part}" in arrays for part in CSR):
            return _of_csr({part: arrays[f"{prefix}{part}"] for part in CSR}, nodes)
    edges = _ends(arrays)
    if "edge_weight" not in arrays:
        return edges, torch.ones(edges.shape[1]), False
    weights = to_tensor(arrays["edge_weight"], "edge_weight").float()
    weights = weights[:, 0] if weights.ndim == 2 and weights.shape[1] == 1 else weights
    if weights.shape != edges.shape[1:]:
        raise UserError(
            "'edge_weight' must give one number per edge",
            got=tuple(weights.shape),
            expected=f"({edges.shape[1]},)",
        )
    return edges, weights, True


def _ends(arrays: Arrays) -> Tensor:
    if "edge_index" not in arrays and "edges" in arrays:
        listed = _whole(arrays["edges"], "edges")
        if listed.ndim == 2 and listed.shape[1] == 2:
            return listed.T.contiguous()
        raise UserError("'edges' must be pairs of nodes", got=tuple(listed.shape))
    values = _first(arrays, ("edge_index",), "edges")
    tensor = to_tensor(values, "edge_index")
    # an empty list has no type of its own
    edges = tensor.reshape(2, 0).long() if not tensor.numel() else _whole(tensor, "edge_index")
    if edges.ndim != 2 or edges.shape[0] != 2:
        turned = edges.ndim == 2 and edges.shape[1] == 2
        raise UserError(
            "'edge_index' must have one column per edge",
            got=tuple(edges.shape),
            expected="[2, E]: sources above targets",
            hint="Pass its transpose" if turned else None,
        )
    return edges


def _csr_parts(matrix: Any) -> dict[str, Any]:
    rows = matrix.tocsr()
    return {part: getattr(rows, part) for part in CSR}


def _of_csr(parts: Mapping[str, Any], nodes: int) -> tuple[Tensor, Tensor, bool]:
    """Edges of an adjacency: the row is the source, as in PyG and SciPy."""
    shape = tuple(int(side) for side in _plain(parts["shape"]))
    if shape != (nodes, nodes):
        raise UserError(
            "the adjacency does not fit the nodes", got=shape, expected=f"({nodes}, {nodes})"
        )
    rows, columns, values = _triplets(parts, nodes, "the adjacency")
    weighted = bool((values != 1).any())
    return torch.stack([rows, columns]), values, weighted


def _triplets(parts: Mapping[str, Any], rows: int, what: str) -> tuple[Tensor, Tensor, Tensor]:
    values = to_tensor(parts["data"], "data").float()
    columns, starts = _whole(parts["indices"], "indices"), _whole(parts["indptr"], "indptr")
    counts = starts.diff()
    fits = starts.shape == (rows + 1,) and values.shape == columns.shape
    if not fits or int(starts[0]) != 0 or int(starts[-1]) != len(columns) or (counts < 0).any():
        raise UserError(f"{what} is no valid CSR matrix: its arrays do not fit each other")
    return torch.repeat_interleave(torch.arange(rows), counts), columns, values


# -- features, labels, masks -----------------------------------------------------------------------


def _features(arrays: Arrays, most_bytes: int | None) -> Tensor | None:
    """[N, d] float32, or None; a set of no columns has no features."""
    found = next((arrays[name] for name in FEATURES if name in arrays), None)
    if hasattr(found, "tocsr"):
        return _dense(_csr_parts(found), most_bytes)
    if found is not None:
        if hasattr(found, "shape"):
            _require_bytes(found.shape, most_bytes)
        x = to_tensor(found, "x").to(torch.float32)
        if x.ndim != 2:
            raise UserError("'x' must have one row per node", got=tuple(x.shape), expected="[N, d]")
        _require_finite(x)
        return x if x.shape[1] else None
    for prefix in SPARSE_FEATURES:
        if all(f"{prefix}{part}" in arrays for part in CSR):
            return _dense({part: arrays[f"{prefix}{part}"] for part in CSR}, most_bytes)
    return None


def _dense(parts: Mapping[str, Any], most_bytes: int | None) -> Tensor:
    shape = tuple(int(side) for side in _plain(parts["shape"]))
    if len(shape) != 2:
        raise UserError("the features are no matrix", got=shape)
    _require_bytes(shape, most_bytes)
    rows, columns, values = _triplets(parts, shape[0], "the feature matrix")
    if columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < shape[1]:
        raise UserError("the feature matrix has columns outside its shape", got=shape)
    _require_finite(values[:, None])
    dense = torch.zeros(shape)
    return dense.index_put_((rows, columns), values, accumulate=True)


def _require_bytes(shape: Any, most_bytes: int | None) -> None:
    needed = int(np.prod([int(side) for side in shape], dtype=np.float64)) * 4
    if most_bytes is not None and needed > most_bytes:
        raise UserError(
            "the feature matrix is too large",
            got=f"{human_bytes(needed)} once dense",
            expected=f"at most {human_bytes(most_bytes)}",
            hint="Allow more with data.max_feature_bytes, or reduce the features",
        )


def _require_finite(x: Tensor) -> None:
    wrong = ~torch.isfinite(x).all(dim=1)
    if wrong.any():
        raise UserError(
            f"{int(wrong.sum())} rows of the features are NaN or infinite",
            got=f"the first is row {int(torch.nonzero(wrong)[0])}",
            expected="finite numbers",
        )


def labels_of(values: Any) -> Tensor:
    """Class numbers, [M] int64; -1 for what has no label (-1, or NaN among whole floats).

    Errors: UserError for several labels per item, fractions, and numbers below -1.
    """
    y = to_tensor(values, "y")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1:
        one_hot = y.ndim == 2 and bool(((y == 0) | (y == 1)).all() and (y.sum(dim=1) == 1).all())
        raise UserError(
            "labels are not one class per item",
            got=tuple(y.shape),
            expected="[M] class numbers: several labels per item are not supported",
            hint="One-hot labels: pass y.argmax(1)" if one_hot else None,
        )
    if y.is_floating_point():
        y = torch.where(torch.isnan(y), float(UNLABELLED), y)
        if (y != y.round()).any() or torch.isinf(y).any():
            raise UserError(
                "labels are no class numbers",
                got=float(y[torch.nonzero((y != y.round()) | torch.isinf(y))[0]]),
                expected="whole numbers from 0, -1 or NaN for no label",
            )
    y = y.to(torch.int64)
    if y.numel() and int(y.min()) < UNLABELLED:
        raise UserError(
            "labels are no class numbers",
            got=int(y.min()),
            expected="whole numbers from 0, -1 for no label",
        )
    return y


def _masks(arrays: Arrays, items: int, unit: str) -> dict[str, Tensor]:
    masks = {}
    for role in ROLES:
        for stem in NAMED[role]:
            if f"{stem}_mask" in arrays:
                masks[role] = _mask(arrays[f"{stem}_mask"], f"{stem}_mask", items, unit)
            elif f"{stem}_masks" in arrays:
                turned = to_tensor(arrays[f"{stem}_masks"], f"{stem}_masks").T
                masks[role] = _mask(turned, f"{stem}_masks", items, unit)
            elif f"{stem}_index" in arrays:
                masks[role] = _of_index(arrays[f"{stem}_index"], f"{stem}_index", items, unit)
    return masks


def _mask(values: Any, name: str, items: int, unit: str) -> Tensor:
    mask = to_tensor(values, name)
    if mask.ndim not in (1, 2) or mask.shape[0] != items:
        raise UserError(
            f"{name!r} does not fit the {unit}s",
            got=tuple(mask.shape),
            expected=f"[{items}], or [{items}, S] for S splits",
        )
    if ((mask != 0) & (mask != 1)).any():
        raise UserError(
            f"{name!r} must be true or false for each {unit}",
            hint=f"Numbers of {unit}s are called {name.replace('_mask', '_index')!r}",
        )
    return mask.to(torch.bool)


def _of_index(values: Any, name: str, items: int, unit: str) -> Tensor:
    index = to_tensor(values, name)
    index = index.long() if not index.numel() else _whole(index, name)
    if index.ndim != 1 or (index.numel() and not 0 <= int(index.min()) <= int(index.max()) < items):
        raise UserError(
            f"{name!r} must be numbers of {unit}s", expected=f"whole numbers from 0 to {items - 1}"
        )
    mask = torch.zeros(items, dtype=torch.bool)
    mask[index] = True
    return mask
