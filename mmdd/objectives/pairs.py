"""A real and a synthetic batch side by side, group by group.

Shape suffixes: n items of a batch, B groups and m items of each in a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.objectives.distribution import renumbered
from mmdd.step import Step
from mmdd.trees import tree_leaves, tree_map


@dataclasses.dataclass(frozen=True)
class Pair:
    """A real and a synthetic batch without their graphs, groups numbered alike.

    Attributes
    ----------
    common: the groups with items on both sides.
    largest: most items of a group, real and synthetic, in any pass.
    mask: the leaves of the synthetic inputs and targets that gradients are wanted for.
    """

    real: Batch
    synthetic: Batch
    common: Tensor
    largest: tuple[int, int]
    mask: tuple[bool, ...]

    @classmethod
    def of(cls, step: Step, real: Batch, synthetic: Batch, by_group: bool) -> Pair:
        """Take the batches of a step; not `by_group` all items are one group."""
        mask = tuple(leaf.requires_grad for leaf in _leaves(synthetic))
        real, synthetic = _cut(real), _cut(synthetic)
        if by_group:
            expand = step.synthetic.representation.expand
            stored = int(torch.bincount(step.synthetic.groups).max())
            if step.synthetic_per_group is not None:
                stored = min(stored, max(1, step.synthetic_per_group // expand))
            largest = (
                min(step.per_group, int(step.real.group_sizes.max())),
                stored * expand,
            )
        else:
            real, synthetic = (
                dataclasses.replace(batch, groups=torch.zeros_like(batch.groups))
                for batch in (real, synthetic)
            )
            largest = (len(real), len(synthetic))
        real, synthetic, count = renumbered(real, synthetic)
        both = real.present(count) & synthetic.present(count)
        return cls(real, synthetic, torch.nonzero(both).flatten(), largest, mask)

    def sizes(self) -> Tensor:
        """[common] synthetic items of every group over those of the largest of the whole set."""
        counts = torch.bincount(self.synthetic.groups)[self.common]
        return counts / self.largest[1]

    def learned(self) -> list[Tensor]:
        """The tensors of the synthetic batch that gradients are wanted for."""
        return taken(self.synthetic, self.mask)


def _leaves(batch: Batch) -> list[Tensor]:
    return tree_leaves((batch.inputs, batch.targets))


def taken(batch: Batch, mask: Sequence[bool]) -> list[Tensor]:
    """Return the leaves of inputs and targets that the mask names."""
    return [leaf for leaf, wanted in zip(_leaves(batch), mask, strict=True) if wanted]


def _cut(batch: Batch) -> Batch:
    """Leave the graph behind; even memory layouts out, each of which would be compiled anew."""
    return tree_map(lambda leaf: leaf.detach().contiguous(), batch)


def members(batch: Batch, group: int) -> Tensor:
    """[m] places of the items of a group that count."""
    return torch.nonzero((batch.groups == group) & (batch.item_weights != 0)).flatten()


def block(
    batch: Batch, groups: Tensor, fitted: Callable[[int], int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Places, weights and presence [B, m] of the items of `groups`.

    ``m = fitted(most items of a group)``; the last item of a group fills its row up, with weight 0.
    """
    held, order = _by_group(batch)
    start = torch.searchsorted(held, groups).unsqueeze(1)
    count = torch.searchsorted(held, groups, right=True).unsqueeze(1) - start
    place = torch.arange(fitted(int(count.max())), device=batch.groups.device)
    index = start + torch.minimum(place, count - 1)
    if order is not None:
        index = order.take(index)
    present = place < count
    return index, batch.item_weights.take(index) * present, present


def _by_group(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Groups of the items that count, ascending, and the places they come from; None: as they lie.

    Sorted once, since a search for every group costs more than the arithmetic of a small net.
    """
    groups = batch.groups
    if batch.weights is None and not bool((groups[1:] < groups[:-1]).any()):
        return groups, None
    held = torch.where(batch.item_weights != 0, groups, torch.iinfo(torch.int64).max)
    return held.sort(stable=True)


def piece_size(largest: int, chunk: int | None) -> int:
    """Size of the equal pieces into which `largest` items are cut, at most `chunk`."""
    pieces = -(-largest // (chunk or largest))
    return -(-largest // pieces)


def rounded(count: int, piece: int) -> int:
    """Round up: to whole pieces, or to a piece halved as often as possible.

    So few sizes occur, and at most half of a small block is filled up.
    """
    if count > piece:
        return -(-count // piece) * piece
    while piece > 1 and -(-piece // 2) >= count:
        piece = -(-piece // 2)
    return piece
