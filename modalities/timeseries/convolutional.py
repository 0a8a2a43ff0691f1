"""Convolutional series encoders.

Kernels are odd, so that a step's output is centred at it; the even ones of some papers are one
step shorter here.

Shape suffixes in this file: n items, C channels, T time steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.modalities.timeseries.base import (
    Block,
    Mask,
    SeriesEncoder,
    Spec,
    halve,
    halved,
    hidden_to_zero,
    mean_over_time,
    norm_of,
)


def odd(kernel: int) -> int:
    """The kernel, or one step less where it is even."""
    return max(1, kernel - (kernel + 1) % 2)


def same(channels: int, width: int, kernel: int, *, bias: bool = True) -> nn.Conv1d:
    """A convolution that keeps the length; `kernel` is odd."""
    return nn.Conv1d(channels, width, kernel, padding=kernel // 2, bias=bias)


class ConvBlock(Block):
    """Convolution, norm, ReLU, and pooling by two where asked for."""

    def __init__(self, channels: int, width: int, kernel: int, norm: str, *, pool: bool) -> None:
        super().__init__()
        self.convolve = same(channels, width, odd(kernel))
        self.norm = norm_of(norm, width)
        self.pool = pool

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """[n, C, T] -> [n, width, T] or [n, width, T / 2]."""
        x = self.convolve(x)
        x = F.relu(x if self.norm is None else self.norm(x, mask))
        x = hidden_to_zero(x, mask)
        return halve(x, mask) if self.pool else (x, mask)


class MeanOverTime(Block):
    """[n, C, T] -> [n, C]."""

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """Mean over the positions that there are."""
        return mean_over_time(x, mask), None


class Chain(Block):
    """Blocks that count as one."""

    def __init__(self, *parts: Block) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """Run them one after another."""
        for part in self.parts:
            x, mask = part(x, mask)
        return x, mask


def conv_blocks(
    channels: int, steps: int, width: int, depth: int | None, kernel: int, norm: str
) -> tuple[list[ConvBlock], int]:
    """Blocks of a ConvNet, and the steps that they leave: all halve where the length allows it."""
    depth = max(1, min(3, (steps - 1).bit_length() - 1)) if depth is None else depth
    pooled = [steps > 2 ** (place + 1) for place in range(depth)]
    blocks = [
        ConvBlock(channels if not place else width, width, kernel, norm, pool=pooled[place])
        for place in range(depth)
    ]
    return blocks, halved(steps, sum(pooled))


class ConvNet(SeriesEncoder):
    """The field's ConvNet (Gidaris & Komodakis 2018; Zhao et al. 2021) in one dimension.

    `head` ``flatten`` reads every step that is left, ``mean`` their mean. `norm` ``instance`` takes
    away the level of every channel of every layer; ``layer`` keeps how they differ.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: int = 128,
        depth: int | None = None,
        kernel: int = 5,
        norm: str = "instance",
        head: str = "flatten",
    ) -> None:
        blocks, left = conv_blocks(spec.channels, spec.steps, width, depth, kernel, norm)
        chain: list[Block] = [*blocks]
        if head == "mean":
            chain[-1] = Chain(chain[-1], MeanOverTime())
        super().__init__(spec, chain, width if head == "mean" else width * left)


class FCN(SeriesEncoder):
    """Three convolutions of 7, 5 and 3 steps and the mean over time (Wang et al. 2017).

    Their norm is batch norm, and their first kernel has 8 steps.
    """

    def __init__(self, spec: Spec, *, width: int = 128, norm: str = "layer") -> None:
        sizes = [spec.channels, width, 2 * width, width]
        blocks: list[Block] = [
            ConvBlock(sizes[place], sizes[place + 1], kernel, norm, pool=False)
            for place, kernel in enumerate((7, 5, 3))
        ]
        blocks[-1] = Chain(blocks[-1], MeanOverTime())
        super().__init__(spec, blocks, width)


class Residual(Block):
    """Convolutions of 7, 5 and 3 steps beside a shortcut of one step."""

    def __init__(self, channels: int, width: int, norm: str) -> None:
        super().__init__()
        sizes = [channels, width, width, width]
        self.convolve = nn.ModuleList(
            same(sizes[place], width, kernel) for place, kernel in enumerate((7, 5, 3))
        )
        norms = [norm_of(norm, width) for _ in range(3)]
        self.norms = nn.ModuleList(found for found in norms if found is not None)
        self.shortcut = None if channels == width else same(channels, width, 1)

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """[n, C, T] -> [n, width, T]."""
        direct = x if self.shortcut is None else self.shortcut(x)
        for place, convolve in enumerate(self.convolve):
            x = convolve(x)
            if len(self.norms):
                x = self.norms[place](x, mask)
            if place < 2:
                x = hidden_to_zero(F.relu(x), mask)
        return hidden_to_zero(F.relu(x + direct), mask), mask


class ResNet(SeriesEncoder):
    """`depth` residual blocks, the first of `width` channels, the others of twice as many.

    Wang et al. 2017, "Time Series Classification from Scratch", with another norm.
    """

    def __init__(self, spec: Spec, *, width: int = 64, depth: int = 3, norm: str = "layer") -> None:
        sizes = [spec.channels, width, *[2 * width] * (depth - 1)]
        blocks: list[Block] = [
            Residual(sizes[place], sizes[place + 1], norm) for place in range(depth)
        ]
        blocks[-1] = Chain(blocks[-1], MeanOverTime())
        super().__init__(spec, blocks, sizes[-1])


class InceptionBlock(Block):
    """A bottleneck, three convolutions side by side, and a pooled branch."""

    def __init__(self, channels: int, width: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.bottleneck = same(channels, width, 1, bias=False) if channels > 1 else None
        inner = channels if self.bottleneck is None else width
        lengths = [odd(max(1, kernel // part)) for part in (1, 2, 4)]
        self.branches = nn.ModuleList(same(inner, width, k, bias=False) for k in lengths)
        self.pooled = same(channels, width, 1, bias=False)
        self.norm = norm_of(norm, 4 * width)

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """[n, C, T] -> [n, 4 x width, T]."""
        read = x if self.bottleneck is None else self.bottleneck(x)
        # the largest of three steps; what is hidden is no candidate, as beyond the ends
        low = x if mask is None else x.masked_fill(~mask.unsqueeze(1), torch.finfo(x.dtype).min)
        largest = hidden_to_zero(F.max_pool1d(low, 3, stride=1, padding=1), mask)
        parts = [*(branch(read) for branch in self.branches), self.pooled(largest)]
        x = torch.cat(parts, dim=1)
        x = F.relu(x if self.norm is None else self.norm(x, mask))
        return hidden_to_zero(x, mask), mask


class Shortcut(Block):
    """Blocks beside a convolution of one step."""

    def __init__(self, blocks: list[Block], channels: int, width: int) -> None:
        super().__init__()
        self.chain = Chain(*blocks)
        self.direct = same(channels, width, 1)

    def forward(self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """[n, C, T] -> [n, width, T]."""
        made, _ = self.chain(x, mask)
        return hidden_to_zero(F.relu(made + self.direct(x)), mask), mask


class Inception(SeriesEncoder):
    """One net of InceptionTime (Ismail Fawaz et al. 2020): a shortcut beside every three blocks."""

    def __init__(
        self,
        spec: Spec,
        *,
        width: int = 32,
        depth: int = 6,
        kernel: int = 40,
        norm: str = "layer",
    ) -> None:
        sizes = [spec.channels, *[4 * width] * depth]
        made = [InceptionBlock(sizes[place], width, kernel, norm) for place in range(depth)]
        blocks: list[Block] = [
            Shortcut(list(made[start : start + 3]), sizes[start], 4 * width)
            for start in range(0, depth, 3)
        ]
        blocks[-1] = Chain(blocks[-1], MeanOverTime())
        super().__init__(spec, blocks, 4 * width)


class Dual(SeriesEncoder):
    """A ConvNet on the series and one on its spectrum, read together (CondTSC, Liu et al. 2024).

    The spectrum is that of `torch.fft.rfft` (orthonormal), real and imaginary parts in turns, cut
    to T numbers a channel. Where a mask hides positions, they are zeros to it.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: int = 64,
        depth: int | None = None,
        kernel: int = 5,
        norm: str = "layer",
    ) -> None:
        sizes = (spec.channels, spec.steps, width, depth, kernel, norm)
        blocks, left = conv_blocks(*sizes)
        super().__init__(spec, blocks, 2 * width * left)
        self.spectral = nn.ModuleList(conv_blocks(*sizes)[0])

    def outputs_of_blocks(self, x: Tensor, mask: Mask) -> list[Tensor]:
        """Outputs of both chains side by side."""
        spectrum, found = interleaved(x), []
        for block, other in zip(self.blocks, self.spectral, strict=True):
            x, mask = block(x, mask)
            spectrum, _ = other(spectrum, None)
            found.append(torch.cat([x.flatten(1), spectrum.flatten(1)], dim=1))
        return found


def interleaved(x: Tensor) -> Tensor:
    """Real and imaginary parts of the spectrum in turns, [n, C, T] -> [n, C, T]."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    found = torch.view_as_real(torch.fft.rfft(wide, norm="ortho"))
    return found.flatten(-2)[..., : x.shape[-1]].to(x.dtype)
