"""Named random streams: one generator per purpose, never the clock."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive(seed: int, name: str) -> int:
    """Return a 63-bit seed that depends on the run's seed and on the purpose alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, name: str) -> torch.Generator:
    """Return a fresh CPU generator for one purpose of a run."""
    return torch.Generator().manual_seed(derive(seed, name))


class Streams:
    """CPU generators by purpose, made when first asked for. Two purposes never share numbers.

    All draws are made on the CPU and moved, so a run draws the same numbers on every device.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._made: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        if name not in self._made:
            self._made[name] = generator(self.seed, name)
        return self._made[name]

    def state_dict(self) -> dict[str, Tensor]:
        """State of every stream in use, as byte tensors."""
        return {name: made.get_state() for name, made in self._made.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue every stream where `state` left it."""
        self._made = {}
        for name, saved in state.items():
            self[name].set_state(saved)
