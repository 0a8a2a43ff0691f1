"""Encoders that read frame after frame: a recurrent one, and a transformer.

Shape suffixes in this file: n items, M mel bands, F frames, L places in time, C channels, H hidden
numbers, d numbers of a token, h heads.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.audio.base import AudioEncoder, coarser, convolution, mean_in_time
from mmdd.modalities.audio.space import LOG_MEL
from mmdd.modalities.images.norm import Norm, NormKind
from mmdd.modalities.nets.attention import TransformerBlock
from mmdd.modalities.nets.chain import outputs_of
from mmdd.modalities.nets.checks import require_at_least, require_shared_out
from mmdd.modalities.nets.recurrent import GRU

POSITION_STD = 0.02


class CRNN(AudioEncoder):
    """Convolutions, then a GRU along time (Choi et al. 2017); features are its mean state.

    Each of `depth` blocks is a 3x3 convolution to `width` channels, a norm, ReLU and a 2x2
    average pooling, which stops halving an axis that would fall below 2.
    """

    spaces: ClassVar[tuple[str, ...]] = (LOG_MEL,)

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        width: int = 64,
        depth: int = 2,
        hidden: int = 64,
        norm: NormKind = "instance",
    ) -> None:
        _, bands, frames = shape
        for option, value in (("width", width), ("depth", depth), ("hidden", hidden)):
            require_at_least(option, value, 1)
        super().__init__(hidden, classes)
        blocks = []
        for place in range(depth):
            pool = (2 if bands >= 4 else 1, 2 if frames >= 4 else 1)
            bands, frames = bands // pool[0], frames // pool[1]
            parts = [convolution(place, width), Norm(norm, width), nn.ReLU(), nn.AvgPool2d(pool)]
            blocks.append(nn.Sequential(*parts))
        self.blocks = nn.ModuleList(blocks)
        self.recurrent = GRU(width * bands, hidden)
        self.mixes_items = norm == "batch"

    def stages(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Maps after every block, [n, C, M', F'], then the mean state [n, H]."""
        found = outputs_of(self.blocks, x)
        x = found[-1]
        mask = coarser(mask, x.shape[-1])
        states = self.recurrent(x.flatten(1, 2).transpose(1, 2), mask)
        found.append(mean_in_time(states.transpose(1, 2), mask))
        return found


class Tokens(nn.Module):
    """Project groups of frames and add learned positions, [n, M, F] -> [n, L, d].

    Frames left over at the end are left out.
    """

    def __init__(self, bands: int, tokens: int, patch: int, dim: int) -> None:
        super().__init__()
        self.tokens, self.patch = tokens, patch
        self.project = nn.Linear(bands * patch, dim)
        self.positions = nn.Parameter(torch.empty(tokens, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Positions from a normal distribution of standard deviation 0.02."""
        self.project.reset_parameters()
        nn.init.normal_(self.positions, std=POSITION_STD)

    def forward(self, x: Tensor) -> Tensor:
        """Cut, project and place."""
        kept = x[..., : self.tokens * self.patch].unflatten(-1, (self.tokens, self.patch))
        return self.project(kept.permute(0, 2, 1, 3).flatten(2)) + self.positions


class Transformer(AudioEncoder):
    """A small pre-norm transformer (Vaswani et al. 2017) whose tokens are `patch` frames each.

    Features are the mean of the tokens that sound, after a layer norm.
    """

    spaces: ClassVar[tuple[str, ...]] = (LOG_MEL,)

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        patch: int = 2,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
    ) -> None:
        _, bands, frames = shape
        for option, value in (("patch", patch), ("depth", depth), ("heads", heads)):
            require_at_least(option, value, 1)
        require_shared_out(dim, heads)
        if patch > frames:
            raise UserError(
                "a token would hold more frames than a clip has",
                got=patch,
                expected=f"at most {frames}",
            )
        hidden = round(dim * mlp_ratio)
        require_at_least("dim * mlp_ratio", hidden, 1)
        super().__init__(dim, classes)
        self.tokens = Tokens(bands, frames // patch, patch, dim)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def stages(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Tokens at the start and after every block but the last, then their mean [n, d]."""
        x = self.tokens(x[:, 0])
        mask = self._of_tokens(mask)
        found = [x]
        for block in self.blocks:
            x = block(x, mask)
            found.append(x)
        found[-1] = mean_in_time(self.norm(x).transpose(1, 2), mask)
        return found

    def _of_tokens(self, mask: Tensor | None) -> Tensor | None:
        """[n, F] -> [n, L]: a token sounds if any of its frames does."""
        if mask is None:
            return None
        tokens, patch = self.tokens.tokens, self.tokens.patch
        return mask[:, : tokens * patch].unflatten(1, (tokens, patch)).any(dim=2)
