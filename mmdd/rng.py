"""Named random streams: one generator per purpose, never the clock."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def derive(seed: int, name: str) -> int:
    """Return a 63-bit seed that depends on the run's seed and on the purpose alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, name: str) -> torch.Generator:
    """Return a fresh CPU generator for one purpose of a run."""
    return torch.Generator().manual_seed(derive(seed, name))


@contextlib.contextmanager
def lent_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, which dropout reads, and put them back afterwards."""
    gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if gpu else []):
        torch.default_generator.manual_seed(seed)
        if gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def draws_noise(module: nn.Module) -> bool:
    """True for a net with dropout: its forward pass reads the global generator."""
    return any(
        getattr(part, "p", 0) for part in module.modules() if "Dropout" in type(part).__name__
    )


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
