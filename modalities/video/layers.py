"""Layers of the video encoders: convolutions of few channels, norms, poolings, frames, a GRU.

Shape suffixes in this file: n clips, C channels, T frames, H and W pixels, D features of a frame.
A size is (frames, height, width).
"""

from __future__ import annotations

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdd.modalities.images.norm import EPS, Norm
from mmdd.modalities.nets.recurrent import GRU

Size = tuple[int, int, int]
SHORT = 4
"""Maps of fewer frames are never convolved in half precision on a CPU."""


def fit_for_code(x: Tensor) -> Tensor:
    """[n, C, T, H, W] with its channels innermost in memory, where code is made for the step.

    Norms, activations and poolings are then vectors over channels: in the order of a clip the code
    that `torch.compile` makes for a pooling and its derivative takes longer than the convolution.
    """
    if not torch.compiler.is_compiling():
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


class FewChannels3d(nn.Conv3d):
    """A 3-D convolution of one to four channels, on CPUs as a product of patches with weights.

    The processor's convolution kernels are made for many channels. Same parameters, same result up
    to rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, T, H, W] -> [n, out, T', H', W']."""
        if x.is_cuda:
            return super().forward(x)
        sides = [int(side) for side in self.padding]
        x = F.pad(x, [side for side in reversed(sides) for _ in range(2)])
        # Shifted slices rather than `unfold`: every derivative is slices again.
        axes = [
            [slice(first, length - size + first + 1, step) for first in range(size)]
            for length, size, step in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        ]
        shifts = [x[(slice(None), slice(None), *place)] for place in itertools.product(*axes)]
        patches = torch.stack(shifts, dim=2).flatten(1, 2)
        weight = self.weight.flatten(1).expand(len(x), -1, -1)
        made = torch.bmm(weight, patches.flatten(2))
        made = made if self.bias is None else made + self.bias[:, None]
        return fit_for_code(made.unflatten(2, patches.shape[2:]))


class ManyChannels3d(nn.Conv3d):
    """A 3-D convolution that is right in half precision on CPUs.

    oneDNN, as in PyTorch 2.14, gives wrong weight gradients in bfloat16 for maps of two frames,
    without a word (cosines of 0 to 0.6 with those of float32). Maps that short are small: they are
    convolved in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, T, H, W] -> [n, out, T', H', W']."""
        if x.is_cuda or x.dtype != torch.bfloat16 or x.shape[2] >= SHORT:
            return super().forward(x if x.is_cuda else fit_for_code(x))
        bias = None if self.bias is None else self.bias.float()
        made = F.conv3d(x.float(), self.weight.float(), bias, self.stride, self.padding)
        return made.to(x.dtype)


def convolution(
    inputs: int, outputs: int, kernel: Size, stride: Size = (1, 1, 1), *, bias: bool = True
) -> nn.Conv3d:
    """A convolution that keeps the size at stride 1, of the kind that suits its channels."""
    kind = FewChannels3d if inputs <= 4 else ManyChannels3d
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return kind(inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)


class ClipNorm(Norm):
    """The norm of images over all pixels of all frames, [n, C, T, H, W] -> the same.

    Frames may also come as items of their own, [n, C, H, W].
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; for batch norm, frames below each other are one tall picture."""
        if self.weight is None or self.bias is None:
            flat = super().forward(x.flatten(2, -2))
            return flat.unflatten(2, x.shape[2:-1])
        # Mean and squares apart: over many pixels this is several times faster than the running
        # update of `var_mean` in one pass, and as exact.
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        grouped = wide.flatten(2).unflatten(1, (self.groups, -1)).flatten(2)
        mean = grouped.mean(dim=2, keepdim=True)
        var = (grouped - mean).square().mean(dim=2, keepdim=True)
        each = self.channels // self.groups
        mean, var = (part.expand(-1, -1, each).flatten(1) for part in (mean, var))
        scale = self.weight * torch.rsqrt(var + EPS)
        shift = self.bias - mean * scale
        places = [1] * (x.ndim - 2)
        scale, shift = (part.unflatten(1, (-1, *places)).to(x.dtype) for part in (scale, shift))
        return torch.addcmul(shift, x, scale)


class PerFrame(nn.Module):
    """A layer of images on every frame: [n, C, T, H, W] -> [n, C', T, H', W']."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Fold the frames into the batch; what comes out is folded again without a copy."""
        folded = self.layer(x.transpose(1, 2).flatten(0, 1))
        return folded.unflatten(0, (-1, x.shape[2])).transpose(1, 2)


class Pool(nn.Module):
    """Halve height and width of maps [n, C, T, H, W], and the frames if so asked; rests are cut.

    ``avg`` or ``max`` of 2x2x2 or 1x2x2, frame by frame and then in time: processors have no 3-D
    pooling in half precision, and a slow one otherwise.
    """

    def __init__(self, kind: str, frames: bool) -> None:
        super().__init__()
        self.kind, self.frames = kind, frames

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, T, H, W] -> [n, C, T // 2 or T, H // 2, W // 2]."""
        if torch.compiler.is_compiling():
            return self._of_slices(x)
        folded = x.flatten(1, 2)
        small = F.avg_pool2d(folded, 2) if self.kind == "avg" else F.max_pool2d(folded, 2)
        maps = small.unflatten(1, x.shape[1:3])
        if not self.frames:
            return maps
        pairs = maps[:, :, : x.shape[2] // 2 * 2].unflatten(2, (-1, 2))
        return pairs.mean(dim=3) if self.kind == "avg" else pairs.amax(dim=3)

    def _of_slices(self, x: Tensor) -> Tensor:
        """The same of every second place, one elementwise pass of the code that is made."""
        halved = [self.frames, True, True]
        axes = [
            [slice(first, length // 2 * 2, 2) for first in (0, 1)] if half else [slice(None)]
            for half, length in zip(halved, x.shape[2:], strict=True)
        ]
        parts = [x[(slice(None), slice(None), *place)] for place in itertools.product(*axes)]
        if self.kind == "avg":
            return functools.reduce(torch.add, parts) / len(parts)
        return functools.reduce(torch.maximum, parts)

    def extra_repr(self) -> str:
        """Show what is halved."""
        return f"{self.kind}, {2 if self.frames else 1}x2x2"


class MeanOverTime(nn.Module):
    """Frames' features, averaged: [n, C, T, H, W] -> [n, C H W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Average over T."""
        return x.mean(dim=2).flatten(1)


class GRUOverTime(nn.Module):
    """The mean state of a GRU that reads the frames' maps: [n, C, T, H, W] -> [n, hidden]."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.gru = GRU(size, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Average the states, so that every frame is near the output."""
        return self.gru(x.transpose(1, 2).flatten(2)).mean(dim=1)


class Sum(nn.Module):
    """A residual block: activation of branch(x) + shortcut(x)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, T, H, W] -> [n, C', T', H', W']."""
        return F.relu(self.branch(x) + self.shortcut(x))
