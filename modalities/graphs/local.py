"""Graphs in files that need no pickle: ``.npz``, ``.safetensors``, a folder of ``.npy`` arrays."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mmdd import files
from mmdd.errors import UserError
from mmdd.modalities.graphs.graph import Graph

ENDINGS = (".npz", ".safetensors")
PICKLED = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".gpickle")
SPARSE_BELOW = 0.25  # share of non-zero features below which CSR arrays are smaller
MASKS = {"train": "train_mask", "validation": "val_mask", "test": "test_mask"}


def read_arrays(path: Path) -> dict[str, Any]:
    """Read the named arrays of a file, or of a folder with one such file or ``.npy`` files.

    Nothing is unpickled. Errors: UserError for files of other kinds, or damaged ones.
    """
    if path.is_dir():
        return _of_folder(path)
    suffix = path.suffix.lower()
    if suffix in PICKLED:
        raise UserError(
            f"{str(path)!r} is a pickle, which could run any program, and is not read",
            expected="a .npz or .safetensors file",
            hint="Load it where you trust it, and write it with "
            "mmdd.modalities.graphs.local.save_graph('graph.npz', data)",
        )
    if suffix == ".npz":
        return _of_npz(path)
    if suffix == ".safetensors":
        tensors, metadata = files.load_tensors(path)
        names = {"names": json.loads(metadata["names"])} if "names" in metadata else {}
        return {**tensors, **names}
    raise UserError(
        f"cannot tell what kind of graph {str(path)!r} is",
        expected=f"a file ending in {' or '.join(ENDINGS)}, or a folder",
    )


def _of_folder(folder: Path) -> dict[str, Any]:
    packed = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in ENDINGS)
    if len(packed) == 1:
        return read_arrays(packed[0])
    single = sorted(folder.glob("*.npy"))
    if packed or not single:
        raise UserError(
            f"the folder {str(folder)!r} holds {len(packed) or 'no'} graphs",
            got=[entry.name for entry in packed] or None,
            expected="one .npz or .safetensors file, or .npy files named edge_index, x, y, ...",
            hint="Raw files of a set of PyG: name the set, e.g. pyg:Planetoid/Cora, and give this "
            "folder with --root",
        )
    return {path.stem: _load(path) for path in single}


def _of_npz(path: Path) -> dict[str, Any]:
    with _load(path) as opened:
        return _members(opened, path)


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None


def _members(opened: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Every array that holds numbers or plain strings; objects would need a pickle."""
    found = {}
    for name in opened:
        try:
            found[name] = opened[name]
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise _unreadable(path, error) from None
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise _unreadable(path, error) from None
    return found


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, ValueError) and "pickle" in str(error):
        return UserError(
            f"{str(path)!r} holds Python objects, which are not read",
            expected="arrays of numbers",
        )
    lines = str(error).splitlines() or [type(error).__name__]
    return UserError(f"{str(path)!r} cannot be read: {lines[0]}")


def save_graph(path: str | Path, source: Any) -> None:
    """Write a graph, or several, into one ``.npz`` or ``.safetensors`` file, atomically.

    Parameters
    ----------
    path: its ending says the format.
    source: a ``torch_geometric.data.Data``, a list or data set of them (whole graphs), or a dict
        of arrays (see `arrays`). What `data.source` reads is written: edges, weights where there
        are any, features (as CSR arrays where that is smaller), labels, masks, sizes, names.

    Errors: UserError for another ending, or a graph that could not be opened.
    """
    from mmdd.modalities.graphs.sources import graph_from_python

    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise UserError(
            "a graph cannot be written into this kind of file",
            got=path.name,
            expected=f"a name ending in {' or '.join(ENDINGS)}",
        )
    graph = graph_from_python(source)
    arrays = _arrays(graph)
    if path.suffix.lower() == ".safetensors":
        names = {} if graph.names is None else {"names": json.dumps(graph.names)}
        files.save_tensors(path, arrays, names)
        return
    named = {name: tensor.numpy() for name, tensor in arrays.items()}
    if graph.names is not None:
        named["names"] = np.array(graph.names, dtype=np.str_)
    files.write_atomic(path, lambda place: _write_npz(place, named))


def _write_npz(place: Path, arrays: Mapping[str, Any]) -> None:
    opened: BinaryIO
    with open(place, "wb") as opened:  # given a name, the library would change its ending
        np.savez_compressed(opened, **arrays)


def _arrays(graph: Graph) -> dict[str, Tensor]:
    arrays = {"edge_index": graph.edge_index, "y": graph.y}
    if graph.weighted:
        arrays["edge_weight"] = graph.edge_weight
    if graph.x is not None:
        arrays.update(_feature_arrays(graph.x))
    arrays.update({MASKS[role]: mask for role, mask in graph.masks.items()})
    if graph.sizes is not None:
        arrays["sizes"] = graph.sizes
    return arrays


def _feature_arrays(x: Tensor) -> dict[str, Tensor]:
    filled = x != 0
    if int(filled.sum()) >= SPARSE_BELOW * x.numel():
        return {"x": x}
    counts = filled.sum(dim=1)
    return {
        "x_data": x[filled],
        "x_indices": torch.nonzero(filled)[:, 1].to(torch.int32),
        "x_indptr": torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        "x_shape": torch.tensor(x.shape),
    }
