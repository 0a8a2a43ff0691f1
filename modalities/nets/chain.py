"""Blocks that run one after another."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def outputs_of(blocks: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """What every block gives of what the one before it gave, the first of `x`."""
    found = []
    for block in blocks:
        x = block(x)
        found.append(x)
    return found
