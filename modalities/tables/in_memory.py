"""Items handed over from Python: pairs (items, labels) and data sets of PyTorch."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch.utils.data import DataLoader, Dataset, TensorDataset

from mmdd.errors import UserError
from mmdd.modalities.tables.columns import one_line
from mmdd.modalities.tables.items import I, RawSplit, Reader
from mmdd.modalities.tables.labels import CLASSES, Labels, Targets
from mmdd.progress import for_terminal

MANY = 5000  # items whose reading deserves processes and a bar


def is_pair(source: Any) -> bool:
    """True for (items, labels); a list of two (item, label) samples is none."""
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        return False
    items = source[0]
    return (hasattr(items, "shape") and hasattr(items, "dtype")) or isinstance(items, list)


def from_pair(
    items: Any, labels: Any, reader: Reader[I], targets: Targets = CLASSES
) -> RawSplit[I]:
    """Take (items, labels), N of each.

    Errors: UserError when lengths differ, or what the reader or the labels refuse.
    """
    if len(items) != len(labels):
        raise UserError(
            f"{reader.words.many} and labels differ in number",
            got=(len(items), len(labels)),
            expected="equal",
        )
    return RawSplit(reader.of_values(items), targets.of_values(labels, reader.words))


def from_torch(
    dataset: Any, reader: Reader[I], label: str | None, targets: Targets = CLASSES
) -> RawSplit[I]:
    """Read a map-style data set of (item, label) once; random transforms are frozen by that.

    `label` is the key of the label in samples that are dicts.

    Errors: UserError naming the first item that cannot be read.
    """
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        items, labels = dataset.tensors
        return from_pair(items, labels, reader, targets)
    count = len(dataset)
    loader: DataLoader[Any] = DataLoader(
        _Samples(dataset, reader, label or "label"),
        batch_size=64,
        collate_fn=list,
        num_workers=_workers(count, reader.workers),
    )
    found: list[Any] = []
    codes: list[Any] = []
    quiet = count <= MANY or not sys.stderr.isatty()
    with for_terminal(quiet).task(f"reading {reader.words.many}", count) as update:
        for batch in loader:
            for problem, item, code in batch:
                if problem:
                    raise UserError(problem)
                found.append(item)
                codes.append(code)
            update(len(found))
    named = _named(targets.of_values(codes, reader.words), dataset)
    return RawSplit(reader.collect(found), named)


def _named(labels: Labels, dataset: Any) -> Labels:
    """Use the names of a torchvision set's `classes`, where its labels are numbers of these."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)) or len(set(map(str, names))) < len(names):
        return labels
    places = [str(number) for number in range(len(names))]
    if not set(labels.names) <= set(places):
        return labels
    return Labels(labels.in_terms_of(places).codes, tuple(map(str, names)))


def _workers(count: int, given: int | None) -> int:
    if given is not None:
        return given
    spare = (os.cpu_count() or 1) - 1
    # One process would only add the cost of sending the items back.
    return min(spare, 8) if count > MANY and spare > 1 else 0


class _Samples(Dataset[tuple[str, Any, Any]]):
    """Samples as (what is wrong or "", item, label), since workers garble exceptions."""

    def __init__(self, dataset: Any, reader: Reader[Any], label: str) -> None:
        self.dataset, self.reader, self.label = dataset, reader, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[str, Any, Any]:
        try:
            item, label = self._parts(self.dataset[number])
            code = label.item() if hasattr(label, "item") else label
            return "", self.reader.convert(item), code
        except Exception as error:  # the user's code may raise anything
            return f"item {number} of the data set cannot be read: {one_line(error)}", None, None

    def _parts(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, dict):
            return self.reader.pick(item), item[self.label]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            one = self.reader.words.one
            raise TypeError(f"expected ({one}, label), got {type(item).__name__}")
        return item[0], item[1]
