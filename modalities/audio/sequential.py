"""Encoders that read frame after frame: a recurrent one, and a transformer.

Shape suffixes in this file: n items, M mel bands, F frames, L places in time, C channels, H hidden
numbers, d numbers of a token, h heads.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.audio.base import AudioEncoder, coarser, mean_in_time, require_at_least
from mmdd.modalities.audio.space import LOG_MEL
from mmdd.modalities.images.convnet import FewChannels
from mmdd.modalities.images.norm import Norm, NormKind

POSITION_STD = 0.02


class GRU(nn.Module):
    """Gated recurrent units (Cho et al. 2014) in the form and initialisation of ``nn.GRU``.

    Written in plain operations, one step after the other: cuDNN's kernel has no second derivative,
    which gradient and trajectory matching need, and none runs under ``vmap``.

    r = s(W_r x + U_r h), z = s(W_z x + U_z h), c = tanh(W_c x + r U_c h), h' = (1 - z) c + z h,
    each product with a bias of its own.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight_input = nn.Parameter(torch.empty(3 * hidden, inputs))
        self.weight_hidden = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.bias_input = nn.Parameter(torch.empty(3 * hidden))
        self.bias_hidden = nn.Parameter(torch.empty(3 * hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +- 1 / sqrt(H), as in ``nn.GRU``."""
        bound = 1 / math.sqrt(self.hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[n, L, inputs] -> [n, L, H], the state after every place.

        Where `mask` [n, L] is false the state is handed on as it is.
        """
        gates = F.linear(x, self.weight_input, self.bias_input)
        state = x.new_zeros(x.shape[0], self.hidden)
        found = []
        for place in range(x.shape[1]):
            own = F.linear(state, self.weight_hidden, self.bias_hidden)
            reset_x, update_x, new_x = gates[:, place].chunk(3, dim=-1)
            reset_h, update_h, new_h = own.chunk(3, dim=-1)
            update = torch.sigmoid(update_x + update_h)
            new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            moved = new + update * (state - new)
            state = moved if mask is None else torch.where(mask[:, place, None], moved, state)
            found.append(state)
        return torch.stack(found, dim=1)


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
            convolution = (
                FewChannels(1, width, 3, padding=1)
                if place == 0
                else nn.Conv2d(width, width, 3, padding=1)
            )
            blocks.append(
                nn.Sequential(convolution, Norm(norm, width), nn.ReLU(), nn.AvgPool2d(pool))
            )
        self.blocks = nn.ModuleList(blocks)
        self.recurrent = GRU(width * bands, hidden)
        self.mixes_items = norm == "batch"

    def stages(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Maps after every block, [n, C, M', F'], then the mean state [n, H]."""
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
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


class Attention(nn.Module):
    """Multi-head self-attention, [n, L, d] -> [n, L, d], as matmul, softmax, matmul.

    The fused kernels have no second derivative, which trajectory and gradient matching need.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend over the tokens that `mask` [n, L] shows (all, where it shows none)."""
        n, tokens, dim = x.shape
        size = dim // self.heads
        parts = self.project_in(x).reshape(n, tokens, 3, self.heads, size)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each [n, h, L, d / h]
        scores = (query * size**-0.5) @ key.transpose(-2, -1)
        if mask is not None:
            # a large number in place of infinity: no row of a softmax may be empty
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        mixed = scores.softmax(dim=-1) @ value
        return self.project_out(mixed.transpose(1, 2).reshape(n, tokens, dim))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a layer norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attend = Attention(dim, heads)
        self.think = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Transform the tokens x [n, L, d]."""
        x = x + self.attend(self.before(x), mask)
        return x + self.think(self.between(x))


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
        if dim < 1 or dim % heads:
            raise UserError(
                "dim is shared out among the heads", got=dim, expected=f"a multiple of {heads}"
            )
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
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(depth))
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
