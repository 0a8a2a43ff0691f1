"""Siamese augmentation of audio: the random draw is kept apart from its application.

    draw = augment.draw(num_groups, generator)              # one transform for each group
    real = augment(real, draw, rows=real_groups)
    synthetic = augment(synthetic, draw, rows=synthetic_groups)

Zhao & Bilen 2021 (siamese augmentation), with the operations of audio; masks in time and frequency
are SpecAugment's (Park et al. 2019). Every operation is affine in the input, on a whole batch at
once, and gradients flow back to it.

Shape suffixes: K draws, n items, M mel bands, L places in time (frames F or samples T).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.audio.part_options import (
    AUGMENTATION_OPS,
    SPECTRAL_OPS,
    Siamese,
)
from mmdd.modalities.audio.space import LOG_MEL, audio_of, normalisation_of
from mmdd.modalities.nets.options import operations
from mmdd.modality import DataInfo
from mmdd.trees import Tree

NATURAL_PER_DB = math.log(10) / 10
"""What one decibel adds to the natural logarithm of a power."""

UNIFORMS = 7
GAIN, SHIFT, NOISE, TIME, TIME_START, BANDS, BANDS_START = range(UNIFORMS)
BITS = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)  # eq: comparing tensors gives tensors, not a bool
class Draw:
    """K independent draws, held on the CPU; raw uniforms, so that they fit clips of any size.

    Attributes
    ----------
    ops: [K] int64, index into the operations.
    params: [K, 7] float32 in [0, 1).
    seeds: [K] int64, of the noise.
    """

    ops: Tensor
    params: Tensor
    seeds: Tensor


class AudioAugment:
    """Gain, shift, noise and masks.

    In the mode "one" each draw picks one operation, in the mode "all" it applies every one.

    Parameters
    ----------
    options: the strengths.
    info: the space: what a decibel and what silence are in normalised inputs.

    Raises `UserError` for an operation that the space does not know.
    """

    def __init__(self, options: Siamese, info: DataInfo) -> None:
        self.options = options
        self.spectral = info.normalisation["space"] == LOG_MEL
        known = [op for op in AUGMENTATION_OPS if self.spectral or op not in SPECTRAL_OPS]
        chosen = operations(options.strategy)
        self.names = tuple(known) if chosen is None else chosen
        for name in self.names:
            if name not in known:
                raise UserError(
                    f"waveforms have no bands for the augmentation {name!r} to mask",
                    expected=f"some of {', '.join(known)}",
                    hint="Change augment.strategy, or set data.space=log-mel.",
                )
        found = normalisation_of(info)
        self.decibel = NATURAL_PER_DB / torch.tensor(found.std)
        # with masks there is nothing beyond the ends, which every net reads as zero
        silent = self.spectral and not info.normalisation["mask"]
        axes = len(info.shape)
        self.silence = found.silence(axes) if silent else torch.zeros((1,) * axes)

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Draw:
        """Make `count` draws from a CPU generator.

        Takes as many numbers from the generator whatever the operations. With `shared_op` all
        draws pick the same operation, with parameters of their own.
        """
        values = torch.rand(count, 1 + UNIFORMS, generator=generator)
        seeds = torch.randint(2**32, (count,), generator=generator)
        ops = (values[:, 0].double() * len(self.names)).floor().long()
        if shared_op:
            ops = ops[:1].repeat(count)
        return Draw(ops, values[:, 1:].contiguous(), seeds)

    def __call__(self, inputs: Tree, draw: Draw, rows: Tensor | None = None) -> Tree:
        """Apply draw ``rows[i]`` [n] to item i of `inputs` (draw i when `rows` is None)."""
        x, mask = audio_of(inputs)
        if not self.names or x.numel() == 0:
            return inputs
        rows = torch.arange(len(draw.ops)) if rows is None else rows.cpu()
        assert len(rows) == len(x), "one draw for each item"
        for place, name in enumerate(self.names):
            active = torch.full_like(draw.ops, True, dtype=torch.bool)
            if self.options.mode == "one":
                active = draw.ops == place
            if not bool(active[rows].any()):
                continue
            if name == "noise":
                x = x + self._noise(x, draw, active)[rows.to(x.device)]
                continue
            u = draw.params[rows].double()
            if name == "shift":
                x, mask = self._shifted(x, mask, u, active[rows])
            elif name == "gain":
                x = self._gained(x, u, active[rows])
            else:
                x = self._masked(x, u, active[rows], name)
        return {**inputs, "audio": x, "mask": mask} if isinstance(inputs, dict) else x

    # Parameters are worked out on the CPU, where float64 always exists, and only then moved: the
    # same draw is the same transform on every device. An item that is not `active` gets the
    # strength zero.

    def _gained(self, x: Tensor, u: Tensor, active: Tensor) -> Tensor:
        """Louder or quieter by up to `gain` dB."""
        decibels = (2 * u[:, GAIN] - 1) * self.options.gain * active
        if not self.spectral:
            return x * _per_item(10 ** (decibels / 20), x)
        return x + _per_item(decibels, x) * self.decibel.to(x).view(1, 1, -1, 1)

    def _shifted(
        self, x: Tensor, mask: Tensor | None, u: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Later or earlier by up to `shift` of the clip; what is left free is silent.

        Done as a circular shift, then a fill: a permutation sends each gradient to a place of its
        own, in the same order on every machine.
        """
        places = x.shape[-1]
        most = int(places * self.options.shift + 0.5)
        steps = ((u[:, SHIFT] * (2 * most + 1)).floor() - most).long() * active
        source = torch.arange(places, device=x.device) + steps.to(x.device)[:, None]
        inside = (source >= 0) & (source < places)
        index = source % places
        shape = (len(x), *(1,) * (x.ndim - 2), places)
        moved = x.gather(-1, index.view(shape).expand(x.shape))
        x = torch.where(inside.view(shape), moved, self.silence.to(x))
        return x, None if mask is None else mask.gather(1, index) & inside

    def _noise(self, x: Tensor, draw: Draw, active: Tensor) -> Tensor:
        """[K, 1, ...] noise of up to `noise` deviations; one draw gives all its items the same."""
        level = draw.params[:, NOISE].double() * self.options.noise * active
        numbers = standard_normal(draw.seeds.to(x.device), x[0].numel()).to(x.dtype)
        return numbers.view(-1, *x.shape[1:]) * _per_item(level, x)

    def _masked(self, x: Tensor, u: Tensor, active: Tensor, name: str) -> Tensor:
        """Set a stretch of time, or some neighbouring bands, to the mean."""
        in_time = name == "time"
        size = x.shape[-1] if in_time else x.shape[-2]
        share = self.options.time if in_time else self.options.frequency
        first = TIME if in_time else BANDS
        widest = int(size * share + 0.5)
        width = (u[:, first] * (widest + 1)).floor() * active
        start = (u[:, first + 1] * (size - width + 1)).floor()
        place = torch.arange(size, device=x.device)
        begin, end = (edge.long().to(x.device)[:, None] for edge in (start, start + width))
        hidden = (place >= begin) & (place < end)
        shape = (len(x), *(1,) * (x.ndim - 2), size) if in_time else (len(x), 1, size, 1)
        return x.masked_fill(hidden.view(shape), 0.0)


def _per_item(value: Tensor, x: Tensor) -> Tensor:
    """Move [n] to x's device and type, as [n, 1, ...]."""
    return value.to(x).view(-1, *(1,) * (x.ndim - 1))


def standard_normal(seeds: Tensor, count: int) -> Tensor:
    """[K] seeds below 2^32 -> [K, `count`] float32; a row depends on its seed alone.

    Box & Muller 1958 on hashes of (seed, place). The same on every device up to the rounding of
    logarithm and cosine.
    """
    keys = _hashed(seeds)[:, None]
    places = torch.arange(2 * count, device=seeds.device)
    bits = _hashed(_hashed(places) ^ keys)
    first, second = (bits[:, half::2].float() for half in (0, 1))
    radius = torch.sqrt(-2 * torch.log((first + 1) / 2**32))
    return radius * torch.cos(second * (2 * math.pi / 2**32))


def _hashed(x: Tensor) -> Tensor:
    """32-bit hash of numbers below 2^32 in int64 (``lowbias32`` of Wellons 2018)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & BITS
    x = ((x ^ (x >> 15)) * 0x846CA68B) & BITS
    return x ^ (x >> 16)
