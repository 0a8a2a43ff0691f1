"""Scores of several learners, and how rows and metrics are called."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

ROWS = {
    "synthetic": "this set",
    "random": "random real items",
    "herding": "herding",
    "k-center": "k-center",
    "k-means": "k-means",
    "aggregate": "aggregate",
    "last-value": "last value",
    "seasonal-naive": "seasonal naive",
    "full": "full data",
}
SHARES = ("accuracy", "recall", "f1", "auroc")
"""Metrics that lie in 0..1 and are written in percent."""


def is_share(metric: str) -> bool:
    """True for a metric that lies in 0..1."""
    return any(word in metric.lower() for word in SHARES)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of several learners: mean, sample standard deviation (n - 1) and their number."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return sum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation; 0 for a single learner."""
        if len(self.values) < 2:
            return 0.0
        mean = self.mean
        return math.sqrt(sum((v - mean) ** 2 for v in self.values) / (len(self.values) - 1))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = list(self.values)
        return {"mean": self.mean, "std": self.std, "n": len(values), "values": values}
