"""Back to words: the real sentences and tokens that synthetic vectors are nearest to.

Real texts are no part of a distilled set. While the data is open in this process they are found by
its fingerprint; a set that is loaded without its data is shown without them.

Shape suffixes: M synthetic items, N real ones, L positions, h numbers per token, V tokens, D.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from mmdd.modalities.nets.pooling import masked_mean
from mmdd.real import ResidentData
from mmdd.trees import Tree

CHUNK = 4096  # real items compared at once


class TextsInMemory(ResidentData):
    """Texts as numbers or vectors on the device, with the words that they came from.

    Attributes
    ----------
    words: [N] the texts, or empty where the source has vectors alone.
    """

    words: Sequence[str] = ()


_open: weakref.WeakValueDictionary[str, TextsInMemory] = weakref.WeakValueDictionary()


def remember(fingerprint: str, train: TextsInMemory) -> None:
    """Make the training items known while somebody holds them."""
    _open[fingerprint] = train


def recall(fingerprint: str) -> TextsInMemory | None:
    """The training items of an open data set, or None."""
    return _open.get(fingerprint)


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The nearest real items.

    Attributes
    ----------
    index: [M] int64 positions in the training set.
    distances: [M] Euclidean, in the space that learners read.
    """

    index: Tensor
    distances: Tensor


def as_vectors(inputs: Tree) -> Tensor:
    """[M, D] one vector per item: itself, or the mean of its shown token embeddings."""
    if isinstance(inputs, dict):
        return masked_mean(inputs["values"], inputs["mask"])
    return inputs


@torch.no_grad()
def nearest_items(inputs: Tree, real: ResidentData) -> Nearest:
    """Compare synthetic items with all real ones.

    Token embeddings are compared by their means: positions of two sentences do not correspond.
    """
    wanted = as_vectors(inputs).to(real.device).float()
    best = torch.full((len(wanted),), float("inf"), device=real.device)
    index = torch.zeros(len(wanted), dtype=torch.int64, device=real.device)
    for rows in torch.arange(len(real)).split(CHUNK):
        found, place = torch.cdist(wanted, as_vectors(real.read(rows)).float()).min(dim=1)
        index = torch.where(found < best, rows.to(real.device)[place], index)
        best = torch.minimum(found, best)
    return Nearest(index.cpu(), best.cpu())


@torch.no_grad()
def nearest_tokens(values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [M, L] of `table` [V, h] nearest to `values` [M, L, h], and distances [M, L]."""
    index, distances = [], []
    for item in values.float():
        found, place = torch.cdist(item, table.float()).min(dim=1)
        index.append(place)
        distances.append(found)
    return torch.stack(index), torch.stack(distances)
