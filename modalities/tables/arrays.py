"""Arrays from whatever holds numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmdd.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]


def to_numpy(values: Any) -> Array:
    """View a tensor or array-like as a numpy array; bfloat16 becomes float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def require_one_type(arrays: Sequence[Array], many: str) -> None:
    """Refuse items, `many` of them, of which some hold bytes and some floats."""
    kinds = sorted({str(array.dtype) for array in arrays})
    if len(kinds) > 1:
        raise UserError(f"some {many} hold bytes and some floats", got=kinds, expected="one type")


def spread(count: int, most: int) -> Array:
    """Up to `most` positions of `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def at_random(count: int, most: int) -> Array:
    """Ascending positions: all `count`, or `most` of them, always the same."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))
