"""What pictures and exported tables of labelled sets have in common: classes, and words for counts.

Shape suffixes: M items, K classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmdd.modality import DataInfo


def class_numbers(targets: Tensor) -> Tensor:
    """[M] int64 on the CPU: class numbers as they are, the largest class of soft labels [M, K]."""
    numbers = targets.argmax(dim=1) if targets.ndim == 2 else targets
    return numbers.detach().cpu().long()


def add_labels(
    columns: dict[str, list[Any]], features: dict[str, Any], targets: Tensor, info: DataInfo
) -> None:
    """Add the column ``label``, and ``soft_label`` beside it where the targets are [M, K]."""
    from datasets import ClassLabel

    columns["label"] = class_numbers(targets).tolist()
    features["label"] = ClassLabel(names=list(info.names))
    if targets.ndim == 2:
        add_soft_labels(columns, features, targets)


def add_soft_labels(
    columns: dict[str, list[Any]], features: dict[str, Any], targets: Tensor
) -> None:
    """Add the column ``soft_label`` of targets [M, K]."""
    from datasets import List, Value

    columns["soft_label"] = targets.detach().cpu().float().tolist()
    features["soft_label"] = List(Value("float32"), length=targets.shape[1])


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what is counted, e.g. ``1,200 images``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def per_class(counts: Tensor) -> str:
    """How many items the classes have, of their `counts`."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,} per class" if low == high else f"{low:,} to {high:,} per class"
