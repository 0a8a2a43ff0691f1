"""The space that learners read: real items are looked up or scaled into it, one read at a time.

Shape suffixes: n items of a read, L tokens, h numbers per token, D numbers of a vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdd.modalities.tables.arrays import Array
from mmdd.trees import Tree


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Token numbers -> embeddings, by a fixed table [V, h] that is on the device of the numbers.

    Real items are stored as numbers, h times 4 bytes smaller than their embeddings.
    """

    table: Tensor

    def __call__(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """``ids`` [n, L] and ``lengths`` [n] -> ``values`` [n, L, h] and ``mask`` [n, L] bool.

        Values beyond a text's end are zero.
        """
        ids, lengths = stored["ids"], stored["lengths"]
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        values = F.embedding(ids.long(), self.table) * mask.unsqueeze(-1)
        return {"values": values, "mask": mask}


@dataclasses.dataclass(frozen=True)
class Standardise:
    """Vectors [n, D] -> (vector - mean) / std in float32; one std for all dimensions.

    One number keeps distances between vectors in proportion.
    """

    mean: Tensor
    std: float

    def __call__(self, stored: Tensor) -> Tensor:
        """Prepare stored vectors of any float type."""
        values = stored.float()
        values = values - self.mean if values is stored else values.sub_(self.mean)
        return values.mul_(1 / self.std)

    def inverse(self, inputs: Tensor) -> Tensor:
        """Bring learner inputs back to the units of the source."""
        return inputs * self.std + self.mean

    @classmethod
    def of(cls, vectors: Array) -> Standardise:
        """Measure the training vectors [N, D]."""
        mean = vectors.mean(axis=0, dtype="float64")
        square = sum(
            float(((block.astype("float64") - mean) ** 2).sum()) for block in _blocks(vectors)
        )
        std = (square / max(vectors.size, 1)) ** 0.5
        return cls(torch.from_numpy(mean).float(), std if std > 0 else 1.0)


def _blocks(vectors: Array, rows: int = 8192) -> list[Array]:
    return [vectors[start : start + rows] for start in range(0, len(vectors), rows)]


def blank(shape: Sequence[int]) -> Tree:
    """One item of zeros: tokens [1, L, h] that are all shown, or a tensor of another shape."""
    values = torch.zeros(1, *shape)
    if len(shape) != 2:
        return values
    return {"values": values, "mask": torch.ones(1, shape[0], dtype=torch.bool)}


def noise(
    count: int, shape: Sequence[int], facts: Mapping[str, Any], generator: torch.Generator
) -> Tree:
    """`count` standard normal items; of tokens [L, h] as many are shown as is typical."""
    values = torch.randn(count, *shape, generator=generator)
    if len(shape) != 2:
        return values
    shown = torch.arange(shape[0]) < min(shape[0], facts["typical_length"])
    return {"values": values * shown[:, None], "mask": shown.repeat(count, 1)}
