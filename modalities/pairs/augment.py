"""Augmentation of pairs: what their fields know, with one draw for the real and the synthetic side.

Shape suffixes: k draws, n items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdd.modalities.images.augment import DSA
from mmdd.modalities.text.augment import TextAugment
from mmdd.modality import Augmentation, DataInfo
from mmdd.trees import Tree

Draw = dict[str, Any]


class PairAugment:
    """One augmentation for each field, drawn one after the other.

    Dropout of dimensions for vectors, dropout and masking of tokens, DSA of pixels. Nothing mixes
    items: a mixed image would belong to no caption.
    """

    def __init__(self, fields: Mapping[str, Augmentation]) -> None:
        self.fields = dict(fields)

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Draw:
        """`count` draws for every field."""
        return {
            name: augment.draw(count, generator, shared_op=shared_op)
            for name, augment in self.fields.items()
        }

    def __call__(
        self, inputs: dict[str, Tree], draw: Draw, rows: Tensor | None = None
    ) -> dict[str, Tree]:
        """Apply draw ``rows[i]`` to item i (draw i when `rows` is None)."""
        return {
            name: augment(inputs[name], draw[name], rows) for name, augment in self.fields.items()
        }


def build(options: Any, info: DataInfo) -> PairAugment | None:
    """Build the augmentation that the options name, or None."""
    if options.kind != "pairs":
        return None
    made: dict[str, Any] = {}
    for name, facts in info.normalisation["fields"].items():
        if facts["kind"] == "pixels":
            made[name] = DSA(options.strategy)
        else:
            shape = tuple(facts["shape"])
            made[name] = TextAugment(shape, dropout=options.dropout, mask=options.mask)
    return PairAugment(made)
