"""A small vision transformer.

Shape suffixes in this file: n items, T tokens, d token size, h heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.images.base import ImageEncoder, require_image
from mmdd.modalities.nets.attention import TransformerBlock
from mmdd.modalities.nets.checks import require_at_least, require_shared_out

POSITION_STD = 0.02


def common_divisors(height: int, width_px: int) -> list[int]:
    """Patch sides, in pixels, that tile an image exactly, in increasing order."""
    common = math.gcd(height, width_px)
    return [side for side in range(1, common + 1) if common % side == 0]


def choose_patch(patch: int | None, height: int, width_px: int) -> int:
    """Check the patch side, or take the largest that fits 8 times into the shorter side."""
    divisors = common_divisors(height, width_px)
    if patch is None:
        return max(side for side in divisors if side <= max(1, min(height, width_px) // 8))
    if patch not in divisors:
        raise UserError(
            f"patch does not tile images of {height}x{width_px} pixels",
            got=patch,
            expected=f"one of {', '.join(map(str, divisors))}",
        )
    return patch


class Patches(nn.Module):
    """Cut images into square patches and project each, [n, c, H, W] -> [n, T, d].

    A reshape and a linear map: the same function as a strided convolution, but its derivatives of
    any order, also over stacked parameters, are matrix products.
    """

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(channels * patch * patch, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Project the patches, row by row."""
        n, channels, height, width_px = x.shape
        rows, columns = height // self.patch, width_px // self.patch
        x = x.reshape(n, channels, rows, self.patch, columns, self.patch)
        x = x.permute(0, 2, 4, 1, 3, 5)
        return self.project(x.reshape(n, rows * columns, channels * self.patch * self.patch))


class Tokens(nn.Module):
    """Put the class token first and add learned positions, [n, T, d] -> [n, T + 1, d].

    A module of its own, so that its parameters are drawn by a `reset_parameters` like all others.
    """

    def __init__(self, patches: int, dim: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both from a normal distribution of standard deviation 0.02."""
        nn.init.normal_(self.class_token, std=POSITION_STD)
        nn.init.normal_(self.positions, std=POSITION_STD)

    def forward(self, x: Tensor) -> Tensor:
        """Extend the token sequence x."""
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions


class ClassToken(nn.Module):
    """Take the first token and normalise it, [n, T, d] -> [n, d]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the class token alone: a layer norm treats every token by itself."""
        return self.norm(x[:, 0])


class ViT(ImageEncoder):
    """Vision transformer (Dosovitskiy et al. 2021), pre-norm, with a class token.

    `patch` None takes the largest square that tiles the image and fits at least 8 times into its
    shorter side, 65 tokens or more. `mlp_ratio` is the hidden size over `dim`.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width_px: int,
        classes: int,
        *,
        patch: int | None = None,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 2.0,
    ) -> None:
        require_image("vit", channels, (height, width_px), smallest=1)
        require_at_least("depth", depth, 1)
        require_at_least("heads", heads, 1)
        require_shared_out(dim, heads)
        side = choose_patch(patch, height, width_px)
        hidden = round(dim * mlp_ratio)
        require_at_least("dim * mlp_ratio", hidden, 1)
        tokens = Tokens((height // side) * (width_px // side), dim)
        blocks = [nn.Sequential(Patches(channels, side, dim), tokens)]
        blocks += [nn.Sequential(TransformerBlock(dim, heads, hidden)) for _ in range(depth)]
        blocks[-1].append(ClassToken(dim))
        super().__init__(blocks, dim, classes)
