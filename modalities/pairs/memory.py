"""Pairs on a device: items of the first field, each with one or several of the second.

Shape suffixes: N items (images), C pairs (captions), n pairs of a read, G groups.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.real import RealData
from mmdd.trees import Tree, tree_map, tree_take


@dataclasses.dataclass(frozen=True)
class Side:
    """One field: values as stored, and what turns a slice of them into learner inputs."""

    name: str
    values: Tree
    prepare: Callable[[Tree], Tree]

    def read(self, index: Tensor) -> Tree:
        """Prepare the values at `index`."""
        return self.prepare(tree_take(self.values, index))

    def taken(self, index: Tensor) -> Side:
        """Keep the values at `index`."""
        return dataclasses.replace(self, values=tree_take(self.values, index))

    def to(self, device: torch.device) -> Side:
        """Move the values."""
        return dataclasses.replace(self, values=tree_map(lambda v: v.to(device), self.values))


class PairsInMemory(RealData):
    """Pairs of which several may share their first half: an image with its captions.

    An index below N is an item with its first caption; the others, up to C, are items with their
    further captions. Whatever is drawn at random holds an item once, with one caption of its own
    drawn from the same stream; a pass in order holds all C pairs, as evaluation asks for.

    Parameters
    ----------
    first, second: N and C values.
    owner: [C] int64 the item that each caption belongs to; every item has one.
    groups: [N] int64 the matching groups of the items.
    words: [C] the texts as a person reads them, or empty.

    Batches have ``targets`` [n]: the number of the item, equal for captions of one image.
    """

    def __init__(
        self,
        first: Side,
        second: Side,
        owner: Tensor,
        groups: Tensor,
        num_groups: int,
        *,
        device: torch.device | str = "cpu",
        words: Sequence[str] = (),
    ) -> None:
        super().__init__(None, groups, num_groups, device)
        order = _first_captions_first(owner, len(groups))
        self.owner = owner[order]
        self.first = first.to(self.device)
        self.second = second.taken(order).to(self.device)
        self.words = [words[place] for place in order.tolist()] if len(words) else []
        self._by_item = torch.argsort(self.owner, stable=True)
        self._counts = torch.bincount(self.owner, minlength=len(groups))
        self._starts = self._counts.cumsum(0) - self._counts

    @property
    def pairs(self) -> int:
        """C."""
        return len(self.owner)

    def read(self, index: Tensor) -> Tree:
        """``{first: [n, ...], second: [n, ...]}`` of the pairs `index` [n]."""
        owner, index = self.owner[index.cpu()].to(self.device), index.to(self.device)
        return {self.first.name: self.first.read(owner), self.second.name: self.second.read(index)}

    def select(self, index: Tensor) -> Batch:
        """The pairs `index` [n] as one batch on the device."""
        index = index.cpu()
        owner = self.owner[index]
        groups = self.groups[owner].to(self.device)
        return Batch(self.read(index), owner.to(self.device), groups)

    def draw_index(
        self, per_group: int, generator: torch.Generator, groups: Tensor | None = None
    ) -> Tensor:
        """Draw up to `per_group` different items of every group, each with a random caption."""
        return self.with_captions(super().draw_index(per_group, generator, groups), generator)

    def permutation(self, generator: torch.Generator) -> Tensor:
        """All items in random order, each with a random caption."""
        return self.with_captions(super().permutation(generator), generator)

    def with_captions(self, items: Tensor, generator: torch.Generator) -> Tensor:
        """Pairs of the `items` [n], each with one of its captions drawn uniformly."""
        counts = self._counts[items]
        drawn = (torch.rand(len(items), generator=generator) * counts).long()
        return self._by_item[self._starts[items] + torch.minimum(drawn, counts - 1)]

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All items once, shuffled by `generator`; without one all C pairs, in order."""
        order = torch.arange(self.pairs) if generator is None else self.permutation(generator)
        for index in order.split(size):
            yield self.select(index)

    def subset(self, index: Tensor) -> PairsInMemory:
        """The items of the pairs `index` with all of their captions."""
        items = self.owner[index.cpu()]
        kept = torch.cat([torch.nonzero(self.owner == item).flatten() for item in items])
        owner = torch.repeat_interleave(torch.arange(len(items)), self._counts[items])
        return PairsInMemory(
            self.first.taken(items.to(self.device)),
            self.second.taken(kept.to(self.device)),
            owner,
            self.groups[items],
            self.num_groups,
            device=self.device,
            words=[self.words[place] for place in kept.tolist()] if self.words else (),
        )


def _first_captions_first(owner: Tensor, count: int) -> Tensor:
    """[C] an order in which place i < N is the first caption of item i."""
    places = torch.arange(len(owner))
    firsts = torch.full((count,), len(owner)).scatter_reduce(0, owner, places, "amin")
    assert bool((firsts < len(owner)).all()), "every item has a caption"
    rest = torch.ones(len(owner), dtype=torch.bool)
    rest[firsts] = False
    return torch.cat([firsts, places[rest]])


_open: weakref.WeakValueDictionary[str, PairsInMemory] = weakref.WeakValueDictionary()


def remember(fingerprint: str, train: PairsInMemory) -> None:
    """Make the training pairs known, for pictures and exports, while somebody holds them."""
    _open[fingerprint] = train


def recall(fingerprint: str) -> PairsInMemory | None:
    """The training pairs of an open data set, or None."""
    return _open.get(fingerprint)
