"""Small helpers over trees of tensors (a tensor, or dicts, tuples and dataclasses of them)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""A tensor, or a dict / tuple / list / dataclass of trees. Other leaves pass through untouched."""


def tree_map(fn: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """Apply `fn` to every tensor of `tree`, keeping its structure."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, dict):
        return {key: tree_map(fn, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(tree_map(fn, value) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: tree_map(fn, getattr(tree, f.name)) for f in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **fields)
    return tree


def tree_take(tree: Tree, index: Tensor | slice | int) -> Tree:
    """Index the first axis of every tensor."""
    return tree_map(lambda leaf: leaf[index], tree)


def tree_leaves(tree: Tree) -> list[Tensor]:
    """Every tensor of `tree`, in the order in which `tree_map` meets them."""
    found: list[Tensor] = []
    tree_map(found.append, tree)
    return found


def named_leaves(tree: Tree, name: str = "") -> dict[str, Tensor]:
    """Tensors of nested dicts by dotted name; a bare tensor is called `name`."""
    if isinstance(tree, Tensor):
        return {name: tree}
    if isinstance(tree, dict):
        return {
            full: leaf
            for key, value in tree.items()
            for full, leaf in named_leaves(value, f"{name}.{key}" if name else str(key)).items()
        }
    return {}


def tree_cat(trees: list[Tree]) -> Tree:
    """Concatenate trees of equal structure along the first axis of every tensor."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(trees)
    if isinstance(first, dict):
        return {key: tree_cat([tree[key] for tree in trees]) for key in first}
    if isinstance(first, (tuple, list)):
        return type(first)(tree_cat(list(parts)) for parts in zip(*trees, strict=True))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first)]
        fields = {name: tree_cat([getattr(tree, name) for tree in trees]) for name in names}
        return dataclasses.replace(first, **fields)
    return first


def tree_bytes(tree: Tree) -> int:
    """Bytes stored by the tensors of `tree`."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree))
