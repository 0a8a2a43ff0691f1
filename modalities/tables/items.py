"""What a modality says about its items, so that tables, folders and Python objects of them open.

A modality makes one `Reader`; everything else of this package works on what that returns.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import datasets

from mmdd.modalities.tables.labels import Labels
from mmdd.modalities.tables.words import Words


class Items(Protocol):
    """The items of one split, as the modality likes to hold them before they are read."""

    def __len__(self) -> int:
        """N."""


I = TypeVar("I", bound=Items)  # noqa: E741 - the items
I_co = TypeVar("I_co", bound=Items, covariant=True)


@dataclasses.dataclass(frozen=True)
class RawSplit(Generic[I]):
    """One split of a source; `labels` is None when it has none at all."""

    items: I
    labels: Labels | None


@dataclasses.dataclass(frozen=True)
class Opened(Generic[I]):
    """A source before anything is decoded.

    Attributes
    ----------
    name: what the user called it.
    splits: what it holds, by name.
    columns: where items and labels come from, where the source has columns.
    """

    name: str
    splits: Mapping[str, RawSplit[I]]
    columns: Mapping[str, str]


class ItemColumns(Protocol[I_co]):
    """The columns that hold the items of a table.

    Attributes
    ----------
    names: the column of each field, e.g. ``{"image": "img"}``.
    """

    @property
    def names(self) -> Mapping[str, str]:
        """The column of each field."""

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> I_co:
        """Return the items of one split; `root` is the folder that file names start from.

        Errors: UserError when the split lacks a column.
        """


class Reader(abc.ABC, Generic[I]):
    """How one modality finds and takes its items.

    Attributes
    ----------
    words: what messages call them.
    builders: loaders of ``datasets`` by file suffix, beyond those of tables.
    built_in: names of sets that need no file.
    field: the key of an item in a data set of PyTorch whose samples are dicts.
    workers: processes that read a data set of PyTorch; None for as many as pay.
    """

    words: Words
    builders: Mapping[str, str] = {}
    built_in: tuple[str, ...] = ()
    field: str = ""
    workers: int | None = None

    def known(self, name: str) -> Mapping[str, RawSplit[I]] | None:
        """What the modality itself has under this name: a built-in set, a file in its own format.

        None for everything else, which is then looked for on disk and on the Hub.
        """
        return None

    @abc.abstractmethod
    def find(self, dataset: datasets.Dataset) -> ItemColumns[I]:
        """Choose the columns of a table, by its training split (one row at least).

        Errors: UserError when none fits, when several do, or when a chosen one is unfit.
        """

    @abc.abstractmethod
    def of_values(self, values: Any) -> I:
        """Take the first half of a pair (items, labels): an array, a tensor or a list."""

    def pick(self, sample: Mapping[str, Any]) -> Any:
        """The item of a sample that is a dict: its entry `field`."""
        return sample[self.field]

    @abc.abstractmethod
    def convert(self, item: Any) -> Any:
        """Turn one item of a data set of PyTorch into what `collect` reads, in any process."""

    @abc.abstractmethod
    def collect(self, items: list[Any]) -> I:
        """Join N items that `convert` returned."""
