"""What is made of all places of a sequence.

Shape suffixes: n items, L places, h numbers of a place.
"""

from __future__ import annotations

from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[n, L, h] -> [n, h] mean over the places that `mask` [n, L] shows; zero where none is."""
    shown = mask.unsqueeze(-1).to(values.dtype)
    return (values * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1)
