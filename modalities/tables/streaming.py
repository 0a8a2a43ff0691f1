"""What modalities share whose items stay on disk: numbered reads, processes, what is said of it."""

from __future__ import annotations

import abc
import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.tables.failures import HINT
from mmdd.modalities.tables.parts import Parts
from mmdd.modalities.tables.stored import StoredItems
from mmdd.real import RealData
from mmdd.streamed import StreamedData, WorkerPool
from mmdd.trees import Tree

MOST_WORKERS = 8

S = TypeVar("S", bound=StoredItems)

log = logging.getLogger("mmdd")


@dataclasses.dataclass(kw_only=True)
class NumberedReader(abc.ABC, Generic[S]):
    """Reads numbered items of several splits: what the workers of a `StreamedData` hold.

    Items were checked by sample only, so one may turn out unreadable here. A blank one takes its
    place then, and it is said once; too many are an error.

    Attributes
    ----------
    one: what messages call an item.
    instead: what they say of the one that takes its place.
    parts: the splits; row r of part k is number ``offsets[k] + r``.
    limit: unreadable items that one process tolerates.
    """

    one: ClassVar[str]
    instead: ClassVar[str] = "a blank one"
    parts: Sequence[S]
    limit: int
    _bad: set[int] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.offsets = np.cumsum([0, *(len(part) for part in self.parts)])

    @abc.abstractmethod
    def __call__(self, rows: list[int]) -> Tree:
        """Read the items numbered `rows` [n] into a tree of tensors [n, ...]."""

    def find(self, number: int) -> tuple[S, int]:
        """The split that an item is of, and its row there."""
        owner = int(np.searchsorted(self.offsets, number, side="right")) - 1
        return self.parts[owner], int(number - self.offsets[owner])

    def report(self, number: int, name: str, why: str) -> None:
        """Say once that an item cannot be read.

        Errors: UserError when there are more than `limit` of them.
        """
        if number in self._bad:
            return
        self._bad.add(number)
        said = "%s %s cannot be read (%s); %s takes its place"
        log.warning(said, self.one, name, why, self.instead)
        if len(self._bad) > self.limit:
            raise UserError(
                f"more than {self.limit} {self.one}s cannot be read, the last one {name}: {why}",
                hint=HINT,
            )


def splits_of(parts: Parts[S]) -> list[S]:
    """The splits that the parts are of, each of them once."""
    return list({id(part.items): part.items for part in parts.values()}.values())


def sharing(
    parts: Parts[S],
    reader: NumberedReader[S],
    classes: int,
    workers: int,
    prepare: Callable[[Tree], Tree],
    device: torch.device | str,
) -> dict[str, RealData]:
    """All parts as sets that share one reader, whose splits are `splits_of` them, and `workers`."""
    pool = WorkerPool(reader, workers)
    data: dict[str, RealData] = {}
    for role, part in parts.items():
        codes = torch.from_numpy(part.codes)
        first = reader.offsets[[split is part.items for split in reader.parts].index(True)]
        rows = torch.from_numpy(part.rows + first)
        data[role] = StreamedData(
            pool, codes, codes, classes, prepare=prepare, device=device, rows=rows
        )
    return data


def processes_for(parts: Parts[S], asked: int | None) -> int:
    """Processes that read: none for arrays, which every process would need a copy of.

    Else as many as `asked`, or one less than there are cores, at most `MOST_WORKERS`.
    """
    if all(split.in_memory for split in splits_of(parts)):
        return 0
    if asked is not None:
        return asked
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 1) - 1))


def told(what: str, parts: Parts[S], workers: int, size: str = "") -> str:
    """Say where `what` stay, of which size they are, and who reads them."""
    where = "in main memory" if parts["train"].items.in_memory else "on disk"
    return f"{what} stay {where}{size}, read by " + (
        f"{workers} processes" if workers else "this process"
    )


def told_of_sample(what: str, parts: Parts[S], workers: int, nbytes: int, checked: int) -> str:
    """`told`, and how many of the training ones were `checked`."""
    note = told(what, parts, workers, f" ({nbytes / 2**30:.2f} GiB decoded)")
    if checked < len(parts["train"]):
        note += f"; mean, std and readability come from {checked} training {what} chosen at random"
    return note
