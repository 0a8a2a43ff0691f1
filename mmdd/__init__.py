"""mmdd: multimodal dataset distillation.

``mmdd.distill(...)`` turns a large training set into a tiny synthetic one; ``mmdd.load(path)``
brings a finished one back. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmdd.errors import NonFiniteError, UserError

if TYPE_CHECKING:
    from mmdd.api import Distilled, DistilledDataset, distill, load, record_experts, resume

__version__ = "0.1.0"
__all__ = [
    "Distilled",
    "DistilledDataset",
    "NonFiniteError",
    "UserError",
    "distill",
    "load",
    "record_experts",
    "resume",
]
_LAZY = ("Distilled", "DistilledDataset", "distill", "load", "record_experts", "resume")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module("mmdd.api"), name)
    raise AttributeError(f"module 'mmdd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
