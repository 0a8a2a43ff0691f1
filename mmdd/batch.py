"""A batch: what a learner reads, what its loss compares with, and how items are grouped.

Shape suffixes in this file: n items, G groups, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from mmdd.trees import Tree, tree_map, tree_take


@dataclasses.dataclass(frozen=True)
class Batch:
    """Items of one forward pass.

    Attributes
    ----------
    inputs: a tensor, a dict of fields (values and mask), or a modality's own dataclass (a graph).
    targets: what the task's loss reads; None where the batch itself is the relation (pairs).
    groups: [n] int64, the matching group of each item: its class, its cluster, or 0.
    weights: [n] float or None; 0 removes an item from losses and means.
    joint: True when one structure holds all items (the nodes of a graph). A joint batch is never
        sliced: choosing items re-weights it, so that it is forwarded once for all its groups.
    """

    inputs: Tree
    targets: Tree
    groups: Tensor
    weights: Tensor | None = None
    joint: bool = False

    def __len__(self) -> int:
        return self.groups.shape[0]

    @property
    def item_weights(self) -> Tensor:
        """[n] float32, ones where the batch carries no weights."""
        if self.weights is None:
            return torch.ones(len(self), device=self.groups.device)
        return self.weights

    def select(self, index: Tensor) -> Batch:
        """Keep the items `index` [k]: sliced when separable, re-weighted when joint."""
        if self.joint:
            keep = torch.zeros(len(self), device=self.groups.device)
            keep[index] = 1.0
            return dataclasses.replace(self, weights=self.item_weights * keep)
        return Batch(
            inputs=tree_take(self.inputs, index),
            targets=tree_take(self.targets, index),
            groups=self.groups[index],
            weights=None if self.weights is None else self.weights[index],
        )

    def by_group(self) -> Iterator[tuple[int, Batch]]:
        """Yield ``(group, its items)`` for every group that has an item of non-zero weight."""
        alive = self.item_weights != 0
        for group in torch.unique(self.groups[alive]).tolist():
            yield group, self.select(torch.nonzero((self.groups == group) & alive).flatten())

    def group_weights(self, num_groups: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[G, n] rows that average the items of each group; a row of an absent group is zero."""
        member = torch.nn.functional.one_hot(self.groups, num_groups).T.to(dtype)
        member = member * self.item_weights.to(dtype)
        return member / member.sum(dim=1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)

    def group_means(self, values: Tensor, num_groups: int) -> Tensor:
        """[n, D] -> [G, D] weighted mean of every group, in one matrix product."""
        return self.group_weights(num_groups, values.dtype) @ values

    def present(self, num_groups: int) -> Tensor:
        """[G] bool: the groups with at least one item of non-zero weight."""
        weights = self.item_weights
        totals = torch.zeros(num_groups, dtype=weights.dtype, device=weights.device)
        return totals.index_add(0, self.groups, weights.abs()) > 0

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor to `device`."""
        return tree_map(lambda leaf: leaf.to(device), self)

    def with_inputs(self, inputs: Tree) -> Batch:
        """The same items with other inputs (augmented, cast)."""
        return dataclasses.replace(self, inputs=inputs)
