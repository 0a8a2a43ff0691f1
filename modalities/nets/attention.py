"""Self-attention and the transformer block around it, with derivatives of every order.

Shape suffixes: n items, L tokens, d numbers of a token, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), as matmul, softmax, matmul.

    The fused kernels have no second derivative, which trajectory and gradient matching need.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[n, L, d] -> [n, L, d]; tokens that `mask` [n, L] hides are not attended to."""
        return self.attended(x, mask)[0]

    def attended(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The result, and the attention [n, H, L, L] of each token (rows) to each (columns)."""
        n, tokens, dim = x.shape
        size = dim // self.heads
        parts = self.project_in(x).reshape(n, tokens, 3, self.heads, size)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each [n, H, L, d / H]
        scores = (query * size**-0.5) @ key.transpose(-2, -1)
        if mask is not None:
            # a large number in place of infinity: no row of a softmax may be empty
            scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(n, tokens, dim)
        return self.project_out(mixed), weights

    def extra_repr(self) -> str:
        """What the layers do not show: recorded experts are told apart by what a net says."""
        return f"heads={self.heads}"


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a layer norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.before, self.attend = nn.LayerNorm(dim), Attention(dim, heads)
        self.think = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[n, L, d] -> [n, L, d]."""
        return self.attended(x, mask)[0]

    def attended(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The tokens, and the attention [n, H, L, L] that was paid."""
        read, weights = self.attend.attended(self.before(x), mask)
        x = x + read
        return x + self.think(x), weights
