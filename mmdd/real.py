"""The large set, sampled by group. One interface for data on a device and data on disk.

Shape suffixes: N items of the set, n items of a batch, G groups.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.trees import Tree, tree_map, tree_take


class RealData(abc.ABC):
    """A labelled set that can be read by index and sampled by group.

    Parameters
    ----------
    targets: [N, ...] what the task's loss reads (class numbers, values), or None.
    groups: [N] int64 on the CPU: the matching group of each item.
    num_groups: G; every group number lies in ``0..G-1``.
    device: where batches are delivered.

    `joint` is True for a set that is one structure, which is forwarded whole.
    """

    joint: bool = False

    def __init__(
        self, targets: Tensor | None, groups: Tensor, num_groups: int, device: torch.device | str
    ) -> None:
        self.targets = targets
        self.groups = groups.cpu().to(torch.int64)
        self.num_groups = num_groups
        self.device = torch.device(device)
        self.group_sizes = torch.bincount(self.groups, minlength=num_groups)
        self._sorted = torch.argsort(self.groups, stable=True)
        self._by_group = self._sorted.split(self.group_sizes.tolist())
        self._starts = self.group_sizes.cumsum(0) - self.group_sizes

    def __len__(self) -> int:
        return self.groups.shape[0]

    @abc.abstractmethod
    def read(self, index: Tensor) -> Tree:
        """Return the prepared (normalised float) inputs of the items `index` [n], on the device."""

    @abc.abstractmethod
    def subset(self, index: Tensor) -> RealData:
        """Return the set restricted to the items `index` [n], in that order."""

    def select(self, index: Tensor) -> Batch:
        """Return the items `index` [n] as one batch on the device."""
        index = index.cpu()
        targets = None
        if self.targets is not None:
            targets = self.targets.index_select(0, index).to(self.device)
        groups = self.groups.index_select(0, index).to(self.device)
        return Batch(self.read(index), targets, groups)

    def seen_by(self, encoder: nn.Module) -> RealData:
        """The same items, in the same order, in the form that is cheapest for `encoder`.

        A net that reads neighbours only through a fixed operator can be given its product, and one
        with a short receptive field the part of a graph that it reaches.
        """
        return self

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the batch ``select(index)`` that are the items `index` [n]."""
        return torch.arange(len(index))

    def items(self, index: Tensor) -> Tree:
        """Inputs of the items `index` [n] on their own, from which a synthetic set can start."""
        return self.select(index).inputs

    def coreset(self, index: Tensor) -> Batch:
        """The items `index` [n] as a training set of their own: a baseline."""
        return self.select(index)

    def difficulty(self) -> Tensor | None:
        """[N] how hard every item is, the larger the harder; None where nothing tells."""
        return None

    def aggregate(self, counts: Tensor, generator: torch.Generator) -> Batch:
        """``counts[g]`` items of every group that sum it up, made without training.

        Raises `UserError` where nothing of the kind is known.
        """
        raise UserError(
            "these data know no training-free aggregation",
            got="aggregate",
            expected="one of real, herding, k-center, k-means",
        )

    def stretch(self, steps: int, generator: torch.Generator) -> Tensor:
        """`steps` consecutive time steps [T, C] at a random place, of items cut from one series.

        Raises `UserError` where the items are no windows of a series, or it is too short.
        """
        raise UserError(
            "these items are no windows of one series",
            expected="representation direct, or a set that is opened for forecasting",
        )

    def members(self, group: int) -> Tensor:
        """[N_g] int64 indices of the items of `group`, in the order of the set."""
        return self._by_group[group]

    def draw_index(
        self, per_group: int, generator: torch.Generator, groups: Tensor | None = None
    ) -> Tensor:
        """Draw up to `per_group` items of every group without replacement; all of a smaller group.

        Returns their indices, group after group.
        """
        groups = torch.arange(self.num_groups) if groups is None else groups.cpu()
        sizes = self.group_sizes[groups]
        orders = [torch.randperm(size, generator=generator)[:per_group] for size in sizes.tolist()]
        starts = self._starts[groups].repeat_interleave(sizes.clamp_max(per_group))
        return self._sorted.index_select(0, torch.cat(orders) + starts)

    def sample(
        self, per_group: int, generator: torch.Generator, groups: Tensor | None = None
    ) -> Batch:
        """Return a batch with `per_group` random items of every group (see `draw_index`)."""
        return self.select(self.draw_index(per_group, generator, groups))

    def permutation(self, generator: torch.Generator) -> Tensor:
        """Indices of all items, each once, in random order: one pass of a training."""
        return torch.randperm(len(self), generator=generator)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One pass over the set in batches of `size`: shuffled by `generator`, else in order."""
        order = torch.arange(len(self))
        if generator is not None:
            order = self.permutation(generator)
        for index in order.split(size):
            yield self.select(index)

    def close(self) -> None:  # noqa: B027 - most sets hold nothing
        """Release worker processes and files; the set cannot be read afterwards."""


def identity(values: Tree) -> Tree:
    """Prepare nothing: the stored values are what the learner reads."""
    return values


class ResidentData(RealData):
    """A set that lies whole in the memory of the device, usually as uint8.

    Parameters
    ----------
    values: tree of [N, ...] tensors as stored.
    prepare: turns a slice of `values` on the device into learner inputs (cast and normalise).
    """

    def __init__(
        self,
        values: Tree,
        targets: Tensor | None,
        groups: Tensor,
        num_groups: int,
        *,
        prepare: Callable[[Tree], Tree] = identity,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(targets, groups, num_groups, device)
        self.values = tree_map(lambda leaf: leaf.to(self.device), values)
        self.prepare = prepare

    def read(self, index: Tensor) -> Tree:
        """Slice and prepare on the device: a gather, a cast and a multiply-add."""
        on_device = index.to(self.device)
        return self.prepare(tree_take(self.values, on_device))

    def subset(self, index: Tensor) -> ResidentData:
        """Return the chosen items as a set of their own (copied)."""
        on_device = index.to(self.device)
        return ResidentData(
            tree_take(self.values, on_device),
            None if self.targets is None else self.targets[index],
            self.groups[index],
            self.num_groups,
            prepare=self.prepare,
            device=self.device,
        )


class JointData(RealData):
    """A set that is one structure (the nodes of one graph): forwarded whole, items re-weighted.

    Parameters
    ----------
    structure: the whole input, e.g. a dict with features and adjacency.
    index: [k] the items that may be sampled; the others are context only.
    """

    joint = True

    def __init__(
        self,
        structure: Tree,
        targets: Tensor,
        groups: Tensor,
        num_groups: int,
        *,
        index: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.index = torch.arange(groups.shape[0]) if index is None else index.cpu()
        super().__init__(targets[self.index], groups[self.index], num_groups, device)
        self.structure = tree_map(lambda leaf: leaf.to(self.device), structure)
        self.all_targets, self.all_groups = targets, groups.to(torch.int64)

    def read(self, index: Tensor) -> Tree:
        """Return the whole structure: joint inputs are never sliced."""
        return self.structure

    def rows(self, index: Tensor) -> Tensor:
        """Places of the items in the structure."""
        return self.index[index.cpu()]

    def select(self, index: Tensor) -> Batch:
        """Return the whole structure with weight 1 on the items `index` and 0 elsewhere."""
        weights = torch.zeros(self.all_groups.shape[0])
        weights[self.index[index.cpu()]] = 1.0
        whole = Batch(self.structure, self.all_targets, self.all_groups, weights, joint=True)
        return whole.to(self.device)

    def subset(self, index: Tensor) -> JointData:
        """Return the same structure with fewer items to sample."""
        return JointData(
            self.structure,
            self.all_targets,
            self.all_groups,
            self.num_groups,
            index=self.index[index],
            device=self.device,
        )


def describe(data: RealData) -> dict[str, Any]:
    """Sizes that a person reads: items, groups, smallest and largest group."""
    sizes = data.group_sizes
    return {
        "items": len(data),
        "groups": data.num_groups,
        "smallest_group": int(sizes.min()) if len(data) else 0,
        "largest_group": int(sizes.max()) if len(data) else 0,
    }
