"""Augmentation of embeddings: one draw per class, shared by real and synthetic items.

Shape suffixes: k draws, n items, L positions, h (or D) numbers per token (or vector).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdd.trees import Tree

Draw = dict[str, Tensor]


class TextAugment:
    """Dropout of dimensions, masking of positions, and mixing with the next item of the class.

    Parameters
    ----------
    shape: of one item, (L, h) for tokens or (D,) for a vector (which has no positions to mask).
    dropout: probability that a dimension is 0 in all positions; the others grow by 1 / (1 - p).
    mask: probability that the embedding of a position is 0; the position still counts as shown.
    mix: the largest share of another item. Item i of a class is mixed with the one after it in the
        batch, the last with the first, which leaves the class as it is. An item that is alone in
        its draw stays as it is.
    """

    def __init__(
        self, shape: tuple[int, ...], *, dropout: float = 0.1, mask: float = 0.1, mix: float = 0.0
    ) -> None:
        self.shape, self.dropout, self.mask, self.mix = tuple(shape), dropout, mask, mix

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Draw:
        """`count` draws: ``keep`` [k, h], ``show`` [k, L] bool, ``share`` [k] in [0, mix].

        They are made on the CPU, in this order whatever the options are.
        """
        keep = torch.rand(count, self.shape[-1], generator=generator) >= self.dropout
        length = self.shape[0] if len(self.shape) == 2 else 1
        show = torch.rand(count, length, generator=generator) >= self.mask
        share = torch.rand(count, generator=generator) * self.mix
        return {"keep": keep, "show": show, "share": share}

    def __call__(self, inputs: Tree, draw: Draw, rows: Tensor | None = None) -> Tree:
        """Apply draw ``rows[i]`` to item i (draw i when `rows` is None)."""
        tokens = isinstance(inputs, dict)
        values = inputs["values"] if tokens else inputs
        keep, show, share = (draw[name].to(values.device) for name in ("keep", "show", "share"))
        if rows is None:
            rows = torch.arange(len(values), device=values.device)
        factor = keep[rows].to(values.dtype) / (1 - self.dropout)
        if tokens:
            shown = show[rows][:, : values.shape[1]].to(values.dtype)
            values = values * factor.unsqueeze(1) * shown.unsqueeze(2)
            return self._mixed_tokens({**inputs, "values": values}, share[rows], rows)
        return self._mixed(values * factor, share[rows], rows)

    def _mixed(self, values: Tensor, share: Tensor, rows: Tensor) -> Tensor:
        if self.mix == 0:
            return values
        share = share.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
        return values + share * (values[partners(rows)] - values)

    def _mixed_tokens(self, inputs: dict[str, Tensor], share: Tensor, rows: Tensor) -> Tree:
        """The mixed item shows what either shows; beyond a text's end its values are zero."""
        if self.mix == 0:
            return inputs
        values, mask = inputs["values"], inputs["mask"]
        values = values * mask.unsqueeze(-1).to(values.dtype)
        both = mask | mask[partners(rows)]
        return {**inputs, "values": self._mixed(values, share, rows), "mask": both}


def partners(rows: Tensor) -> Tensor:
    """[n] the next item with the same draw; the first of them for the last."""
    order = torch.argsort(rows, stable=True)
    ordered = rows[order]
    count = len(rows)
    place = torch.arange(count, device=rows.device)
    first = torch.searchsorted(ordered, ordered)
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    following = torch.where(place == last, first, place + 1)
    found = torch.empty_like(order)
    found[order] = order[following]
    return found
