"""Convolutional encoders: the field's ConvNet on log-mel spectra, and M5 on waveforms.

Shape suffixes in this file: n items, C channels, M mel bands, F frames, T samples.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmdd.errors import UserError
from mmdd.modalities.audio.base import AudioEncoder, coarser, convolution, mean_in_time
from mmdd.modalities.audio.space import LOG_MEL, WAVEFORM
from mmdd.modalities.images.convnet import POOLINGS, require_depth, usual_depth
from mmdd.modalities.images.norm import EPS, Norm, NormKind
from mmdd.modalities.nets.chain import outputs_of
from mmdd.modalities.nets.checks import require_at_least


class ConvNet(AudioEncoder):
    """ConvNet of Gidaris & Komodakis (2018), the field's net, on spectra as one-channel pictures.

    Each of `depth` blocks is a 3x3 convolution to `width` channels with bias, a norm, ReLU and a
    2x2 pooling. `depth` None is 3 for spectra of up to 48 bands or frames, more above, and fewer
    where the last maps would fall below 2x2: a norm of one number forgets it. The features keep
    the places in time and frequency.
    """

    spaces: ClassVar[tuple[str, ...]] = (LOG_MEL,)

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        width: int = 128,
        depth: int | None = None,
        norm: NormKind = "instance",
        pooling: str = "avg",
    ) -> None:
        _, bands, frames = shape
        if min(bands, frames) < 2:
            raise UserError(
                "the encoder 'convnet' needs spectra of 2 bands and 2 frames",
                got=(bands, frames),
                hint="Set data.hop lower or data.length higher, or use the encoder mlp.",
            )
        require_at_least("width", width, 1)
        depth = usual_depth((bands, frames)) if depth is None else depth
        require_depth(depth, (bands, frames), pooling)
        super().__init__(width * (bands >> depth) * (frames >> depth), classes)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                convolution(place, width),
                Norm(norm, width),
                nn.ReLU(),
                POOLINGS[pooling](),
            )
            for place in range(depth)
        )
        self.mixes_items = norm == "batch"

    def stages(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Maps after every block, [n, C, M', F']."""
        return outputs_of(self.blocks, x)


class InstanceNorm(nn.Module):
    """Every channel of every item to mean 0 and deviation 1 along time, then scaled and shifted.

    Ulyanov et al. 2016 for [n, C, T], written out: one scale and one shift of the input, whose
    derivatives of any order fuse.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1))
        self.bias = nn.Parameter(torch.empty(channels, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights one, biases zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [n, C, T]; half precision is widened for its sums."""
        wide = x.float() if x.dtype.itemsize < 4 else x
        var, mean = torch.var_mean(wide, dim=2, keepdim=True, correction=0)
        scale = self.weight * torch.rsqrt(var + EPS)
        return x * scale.to(x.dtype) + (self.bias - mean * scale).to(x.dtype)


class M5(AudioEncoder):
    """M5 (Dai et al. 2017) on waveforms, with instance norm in place of batch norm.

    A convolution of `kernel` samples every `stride`, then three of 3; each is followed by a norm,
    ReLU and a max-pooling by 4. `width`, `width`, 2 and 4 `width` channels (128 in the paper); the
    features are the mean over time. Poolings that would leave fewer than 2 places are left out.
    """

    spaces: ClassVar[tuple[str, ...]] = (WAVEFORM,)

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        width: int = 64,
        kernel: int = 80,
        stride: int = 4,
        norm: str = "instance",
    ) -> None:
        samples = shape[-1]
        for option, value in (("width", width), ("kernel", kernel), ("stride", stride)):
            require_at_least(option, value, 1)
        places = (samples + 2 * (kernel // 2) - kernel) // stride + 1
        if samples < kernel or places < 2:
            raise UserError(
                f"the encoder 'm5' needs {kernel + stride} samples for its first convolution",
                got=samples,
                hint="Set learner.kernel lower, or data.length higher.",
            )
        super().__init__(4 * width, classes)
        blocks: list[nn.Module] = []
        inputs = 1
        for place, outputs in enumerate((width, width, 2 * width, 4 * width)):
            if place == 0:
                convolution = nn.Conv1d(1, outputs, kernel, stride=stride, padding=kernel // 2)
            else:
                convolution = nn.Conv1d(inputs, outputs, 3, padding=1)
            parts: list[nn.Module] = [convolution]
            parts += [InstanceNorm(outputs) if norm == "instance" else nn.Identity()]
            pools = places // 4 >= 2
            parts += [nn.ReLU(), nn.MaxPool1d(4) if pools else nn.Identity()]
            blocks.append(nn.Sequential(*parts))
            places, inputs = places // 4 if pools else places, outputs
        self.blocks = nn.ModuleList(blocks)

    def stages(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Maps after every block but the last, [n, C, T'], and the mean of the last, [n, C]."""
        found = outputs_of(self.blocks, x)
        found[-1] = mean_in_time(found[-1], coarser(mask, found[-1].shape[-1]))
        return found
