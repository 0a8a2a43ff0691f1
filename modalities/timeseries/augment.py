"""Differentiable siamese augmentation of series, the random draw kept apart from its application.

A draw is made once and applied to the real and to the synthetic batch, which so go through the very
same transform (Zhao & Bilen 2021). The operations are those of the field: jitter and scaling (Um et
al. 2017), low-pass filter and noise on phases and amplitudes of the spectrum (CondTSC, Liu et al.
2024), shift, and crop (window slicing, Le Guennec et al. 2016).

CondTSC sums the gradients of its views {raw, lowpass, phase, amplitude}: ``mode: views`` with
``strategy: raw_lowpass_phase_amplitude`` (`mmdd.views`). With ``mode: one`` every step draws one of
them: the same in expectation, up to a factor, at a quarter of the work.

Shape suffixes in this file: n items, K draws, C channels, T time steps, F = T / 2 + 1 frequencies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.nets.options import operations
from mmdd.modalities.timeseries.base import hidden_to_zero, taken_apart
from mmdd.trees import Tree

CLASSES = ("jitter", "scale", "lowpass", "phase", "amplitude", "shift", "crop")
FORECASTS = ("jitter",)
MOVES = ("scale", "shift", "crop")
"""Operations that would have to change what follows a window too."""

NOISY = ("jitter", "scale", "phase", "amplitude")
UNIFORMS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """K independent draws, on the CPU.

    Attributes
    ----------
    ops: [K] int64 which operation is picked.
    params: [K, ops or 1, 4] uniform in [0, 1).
    noise: [K, ops or 1, C, T] standard normal; C = T = 0 where no operation reads any.
    """

    ops: Tensor
    params: Tensor
    noise: Tensor


@dataclasses.dataclass(frozen=True)
class Strengths:
    """How strong the operations are; see ``options.DSA``."""

    jitter: float = 0.05
    scale: float = 0.1
    lowpass: float = 0.5
    phase: float = 0.785
    amplitude: float = 0.01
    shift: float = 0.125
    crop: float = 0.8


# Every op takes x [m, C, T], uniforms u [m, 4], noise z [m, C, T] on the device, and the strengths.


def _raw(x: Tensor, u: Tensor, z: Tensor, s: Strengths) -> Tensor:
    return x


def _jitter(x: Tensor, u: Tensor, z: Tensor, s: Strengths) -> Tensor:
    """Add white noise."""
    return x + s.jitter * z


def _scale(x: Tensor, u: Tensor, z: Tensor, s: Strengths) -> Tensor:
    """Multiply every channel by a factor of its own, from N(1, scale)."""
    return x * (1 + s.scale * z[..., :1])


def _lowpass(x: Tensor, u: Tensor, z: Tensor, s: Strengths) -> Tensor:
    """Keep the lowest frequencies."""
    spectrum = torch.fft.rfft(x)
    count = spectrum.shape[-1]
    kept = torch.arange(count, device=x.device) < max(1, math.ceil(s.lowpass * count))
    return torch.fft.irfft(spectrum * kept, n=x.shape[-1])


def _uniform(z: Tensor) -> Tensor:
    """Standard normal numbers to uniform ones in (-1, 1)."""
    return torch.erf(z / math.sqrt(2))


def _phase(x: Tensor, u: Tensor, z: Tensor, s: Strengths) -> Tensor:
    """Turn every frequency by a random angle (FTPP); the mean stays."""
    spectrum = torch.fft.rfft(x)
    angle = s.phase * _uniform(z[..., : spectrum.shape[-1]])
    angle = torch.cat([torch.zeros_like(angle[..., :1]), angle[..., 1:]], dim=-1)
    return torch.fft.irfft(spectrum * torch.polar(torch.ones_like(angle), angle), n=x.shape[-1])


def _amplitude(x: Tensor, u: Tensor, z: Tensor, s: Strengths) -> Tensor:
    """Add noise to the amplitudes, in multiples of their mean (FTMP); phases stay."""
    spectrum = torch.fft.rfft(x)
    size = spectrum.abs()
    added = s.amplitude * size.mean(dim=-1, keepdim=True) * z[..., : size.shape[-1]]
    factor = 1 + added / (size + 1e-6 * size.detach().mean(dim=-1, keepdim=True) + 1e-12)
    return torch.fft.irfft(spectrum * factor, n=x.shape[-1])


def _shift(x: Tensor, u: Tensor, z: Tensor, s: Strengths) -> Tensor:
    """Move in time, the same in all channels; zeros (the mean) come in."""
    steps = x.shape[-1]
    most = int(s.shift * steps + 0.5)
    by = (u[:, 0] * (2 * most + 1)).floor().long() - most
    place = torch.arange(steps, device=x.device) + by.to(x.device)[:, None]
    inside = (place >= 0) & (place < steps)
    moved = x.gather(2, (place % steps).unsqueeze(1).expand_as(x))
    return moved * inside.unsqueeze(1).to(x.dtype)


def _crop(x: Tensor, u: Tensor, z: Tensor, s: Strengths) -> Tensor:
    """Stretch a random part to the whole length, linearly between its steps."""
    steps = x.shape[-1]
    if steps < 2:
        return x
    length = (s.crop + (1 - s.crop) * u[:, 0]) * (steps - 1)
    start = u[:, 1] * (steps - 1 - length)
    place = start[:, None] + length[:, None] * torch.linspace(0, 1, steps, dtype=u.dtype)
    below = place.floor().clamp(0, steps - 2)
    share = (place - below).to(x).unsqueeze(1)
    index = below.long().to(x.device).unsqueeze(1).expand_as(x)
    return x.gather(2, index) * (1 - share) + x.gather(2, index + 1) * share


Op = Callable[[Tensor, Tensor, Tensor, Strengths], Tensor]
_OPS: dict[str, Op] = {
    "raw": _raw,
    "jitter": _jitter,
    "scale": _scale,
    "lowpass": _lowpass,
    "phase": _phase,
    "amplitude": _amplitude,
    "shift": _shift,
    "crop": _crop,
}


class SeriesAugmentation:
    """Picks one operation a draw (mode ``one``), or does all of them in the order named (``all``).

    Inputs are [n, C, T], or a dict of ``values`` and ``mask``: what the mask hides comes out as
    zero, and the mask itself stays as it is.

    Parameters
    ----------
    names: operations.
    shape: (C, T) of the items.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        shape: tuple[int, int],
        *,
        mode: str = "one",
        strengths: Strengths | None = None,
    ) -> None:
        self.names, self.mode = names, mode
        self.strengths = Strengths() if strengths is None else strengths
        self.shape = shape if set(names) & set(NOISY) else (0, 0)

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Draw:
        """`count` independent draws from a CPU generator; `shared_op`: one operation for all."""
        slots = 1 if self.mode == "one" else len(self.names)
        values = torch.rand(count, 1 + slots * UNIFORMS, generator=generator)
        ops = (values[:, 0] * max(1, len(self.names))).floor().long()
        noise = torch.randn(count, slots, *self.shape, generator=generator)
        return Draw(
            ops=ops[:1].repeat(count) if shared_op else ops,
            params=values[:, 1:].reshape(count, slots, UNIFORMS),
            noise=noise,
        )

    def __call__(self, inputs: Tree, draw: Draw, rows: Tensor | None = None) -> Tree:
        """Apply draw ``rows[i]`` to item i (draw i when `rows` is None)."""
        x, mask = taken_apart(inputs)
        if not self.names or not len(x):
            return inputs
        place = torch.arange(len(x)) if rows is None else rows.cpu()
        ops, u = draw.ops[place], draw.params[place].double()
        z = draw.noise.to(x)[place.to(x.device)]
        x = hidden_to_zero(x, mask)
        wide = x if x.dtype.itemsize >= 4 else x.float()
        if self.mode == "one":
            made = self._by_op(wide, ops, u[:, 0], z[:, 0].to(wide))
        else:
            made = wide
            for slot, name in enumerate(self.names):
                made = _OPS[name](made, u[:, slot], z[:, slot].to(wide), self.strengths)
        made = hidden_to_zero(made.to(x.dtype), mask)
        return {**inputs, "values": made} if isinstance(inputs, dict) else made

    def _by_op(self, x: Tensor, ops: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """Run each operation once, on all items whose pick it is."""
        used = torch.unique(ops)
        if len(used) == 1:
            return _OPS[self.names[int(used)]](x, u, z, self.strengths)
        parts, order = [], []
        for op in used.tolist():
            index = torch.nonzero(ops == op).flatten()
            here = index.to(x.device)
            parts.append(_OPS[self.names[op]](x[here], u[index], z[here], self.strengths))
            order.append(index)
        return torch.cat(parts)[torch.cat(order).argsort().to(x.device)]


def names_of(strategy: str | None, forecasts: bool) -> tuple[str, ...]:
    """Operations of a strategy; the task's own where there is none.

    Errors: UserError for an operation that makes a horizon wrong.
    """
    names = operations(strategy)
    if names is None:
        return FORECASTS if forecasts else CLASSES
    unfit = [name for name in names if forecasts and name in MOVES]
    if unfit:
        raise UserError(
            "these operations change what follows a window, which stays as it is",
            got="_".join(unfit),
            expected="some of jitter, lowpass, phase, amplitude, raw",
            hint="Set augment.strategy=jitter, or augment=none.",
        )
    return names
