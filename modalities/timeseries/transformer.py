"""A small transformer over pieces of a series.

Shape suffixes in this file: n items, C channels, T time steps, N tokens, d token size, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.nets.attention import TransformerBlock
from mmdd.modalities.nets.checks import require_shared_out
from mmdd.modalities.nets.pooling import masked_mean
from mmdd.modalities.timeseries.base import Block, Mask, SeriesEncoder, Spec

POSITION_STD = 0.02


class Patches(Block):
    """Cut a series into overlapping pieces and project each: [n, C, T] -> [n, N, d].

    Pieces start every half of their length; the series is lengthened by zeros to fill the last one.
    A token that holds no shown step is hidden in turn.
    """

    def __init__(self, channels: int, steps: int, patch: int, dim: int) -> None:
        super().__init__()
        self.stride = max(1, patch // 2)
        self.tokens = 1 + -(-max(0, steps - patch) // self.stride)
        self.patch = patch
        self.filling = (self.tokens - 1) * self.stride + patch - steps
        self.project = nn.Linear(channels * patch, dim)
        self.positions = nn.Parameter(torch.empty(1, self.tokens, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the positions from a normal distribution of deviation 0.02."""
        self.project.reset_parameters()
        nn.init.normal_(self.positions, std=POSITION_STD)

    def _cut(self, x: Tensor) -> Tensor:
        starts = self.stride * torch.arange(self.tokens, device=x.device)
        places = starts[:, None] + torch.arange(self.patch, device=x.device)
        return F.pad(x, (0, self.filling))[..., places]

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """Project the pieces in the order of time."""
        pieces = self._cut(x).transpose(1, 2).flatten(2)
        shown = None if mask is None else self._cut(mask.to(x.dtype)).amax(dim=-1) > 0
        return self.project(pieces) + self.positions, shown


class TokenBlock(Block):
    """A transformer block that hands the mask on; tokens of which nothing is shown stay zero."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.transform = TransformerBlock(dim, heads, hidden)

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """Transform the tokens."""
        x = self.transform(x, mask)
        return x if mask is None else x * mask.unsqueeze(-1).to(x.dtype), mask


class Ending(Block):
    """Normalise the tokens; their mean, or all of them in a row for forecasts."""

    def __init__(self, dim: int, *, mean: bool) -> None:
        super().__init__()
        self.norm, self.mean = nn.LayerNorm(dim), mean

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """[n, N, d] -> [n, d] or [n, N x d]."""
        x = self.norm(x)
        if not self.mean:
            return x.flatten(1), None
        if mask is None:
            return x.mean(dim=1), None
        return masked_mean(x, mask), None


class PatchTransformer(SeriesEncoder):
    """A transformer on overlapping pieces of a series, after PatchTST (Nie et al. 2023).

    A token holds all channels of its piece; with ``per_channel``, as in the paper, one of them.
    `patch` None takes 16 steps, or a quarter of a shorter series.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        patch: int | None = None,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
    ) -> None:
        require_shared_out(dim, heads)
        patch = max(1, min(16, spec.steps // 4)) if patch is None else patch
        if patch > spec.steps:
            raise UserError(
                "patch is longer than the series",
                got=patch,
                expected=f"at most {spec.steps} time steps",
            )
        cut = Patches(spec.channels, spec.steps, patch, dim)
        hidden = max(1, round(dim * mlp_ratio))
        blocks: list[Block] = [cut]
        blocks += [TokenBlock(dim, heads, hidden) for _ in range(depth)]
        blocks.append(Ending(dim, mean=not spec.forecasts))
        super().__init__(spec, blocks, cut.tokens * dim if spec.forecasts else dim)
