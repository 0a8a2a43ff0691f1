"""Clips as stills, small memories of their motion, and key frames.

These know no pixels: they code tensors [C, T, H, W], whatever the axes mean.

Shape suffixes: K = M stored items, m of them in a batch, C channels, T frames, H height, W width,
c channels of the memory, h and w its height and width, k key frames.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from mmdd import rng
from mmdd.errors import UserError
from mmdd.packed import enlarging
from mmdd.representations import (
    FieldWise,
    along,
    clamped,
    fields,
    part_of,
    require_shape,
    short_name,
)
from mmdd.trees import Tree

STATIC, DYNAMIC = "inputs/static", "inputs/dynamic"
OF_STATIC, OF_DYNAMIC = "inputs/decoder/static", "inputs/decoder/dynamic"
BIAS = "inputs/decoder/bias"


class _OfClips(FieldWise):
    """Base of codes of fields [C, T, H, W]; other fields are stored as they are."""

    def __init__(self, example: Tree, *, fixed: Collection[str] = ()) -> None:
        super().__init__(example, fixed=fixed)
        if not self._items:
            raise UserError(
                "these items have no frames",
                got={short_name(k): tuple(v.shape[1:]) for k, v in fields(example).items()},
                expected="a floating-point field of shape [channels, time, height, width]",
                hint="Use the representation direct, packed, basis or frequency.",
            )

    @classmethod
    def needs(cls, example: Tree, **options: Any) -> int:
        """One item, if it and the options fit."""
        cls(example, **options)
        return 1

    def _is_coded(self, item: Size) -> bool:
        return len(item) == 4


class StaticDynamic(_OfClips):
    """A still, a memory of the motion in few channels, and one small decoder for all items.

    Wang et al. 2024, "Dancing with Still Images: Video Distillation via Static-Dynamic
    Disentanglement" (CVPR): frames are a 3x3x3 convolution over the still, repeated in time, and
    the memory. Written by linearity as ::

        frames[t] = conv2d(static, W_s) + conv3d(enlarged(dynamic), W_d)[t] + b

    where a still is the same for all three frames that a filter sees, so that its filters need no
    time axis. The memory is enlarged bilinearly by `factor`; beyond the ends of the clip its first
    and last frames are held.

    The leaves are ``inputs.static`` [M, C, H, W], ``inputs.dynamic`` [M, c, T, h, w] with
    h = ceil(H / factor), and, shared by all items, ``inputs.decoder.static`` [C, C, 3, 3],
    ``inputs.decoder.dynamic`` [C, c, 3, 3, 3] and ``inputs.decoder.bias`` [C]; those of field
    ``video`` are ``inputs.static.video`` and so on. The decoder counts as bytes of the set.

    They start at the mean frame and the memory nearest to the rest of the item (least squares over
    the memory, and over the c directions in the channels that it is read in): with factor 1 and
    c >= C the start decodes into the item. The gradient of the still is a sum over T frames and
    that of the decoder over all items: give the decoder a rate of its own (Adam for all, or a rate
    some hundred times smaller).

    `constrain_` moves still and memory down the square of what lies out of range, by the best step
    along its gradient; the decoder stays. Numbers out of range become fewer, not none.

    Parameters
    ----------
    channels: c.
    factor: how much smaller the memory is than a frame, per side.
    fixed: dotted names of fields that stay as they are.
    """

    def __init__(
        self, example: Tree, *, channels: int = 1, factor: int = 2, fixed: Collection[str] = ()
    ) -> None:
        super().__init__(example, fixed=fixed)
        if channels < 1:
            raise UserError("channels are those of the memory", got=channels, expected="1 or more")
        if factor < 1:
            raise UserError("factor shrinks the memory", got=factor, expected="1 or more")
        self.channels, self.factor = channels, factor

    def _parts(self, field: str) -> list[str]:
        return [part_of(field, part) for part in (STATIC, DYNAMIC, OF_STATIC, OF_DYNAMIC, BIAS)]

    def _small(self, field: str) -> tuple[int, int]:
        """(h, w)."""
        height, width = self._items[field][2:]
        return -(-height // self.factor), -(-width // self.factor)

    def _prepare(self, field: str) -> None:
        channels, frames, height, width = self._items[field]
        parts = [getattr(self, name) for name in self._parts(field)]
        static, dynamic, of_static, of_dynamic, bias = parts
        require_shape(field, static, (channels, height, width))
        require_shape(field, dynamic, (self.channels, frames, *self._small(field)))
        require_shape(field, of_static, (channels, 3, 3))
        require_shape(field, of_dynamic, (self.channels, 3, 3, 3))
        for shared in (of_static, of_dynamic, bias):
            require_shape(field, shared[None], (channels, *shared.shape[1:]))
        require_shape(field, dynamic[None], (len(static), *dynamic.shape[1:]))
        for axis, (small, side) in enumerate(self._sides(field)):
            matrix = enlarging(small, side).to(static)
            self.register_buffer(f"enlarge:{field}:{axis}", matrix, persistent=False)

    def _sides(self, field: str) -> list[tuple[int, int]]:
        return list(zip(self._small(field), self._items[field][2:], strict=True))

    def _encode(self, field: str, items: Tensor) -> dict[str, Tensor]:
        channels = items.shape[1]
        static = items.mean(dim=2)
        rest = items - static.unsqueeze(2)
        directions = principal_channels(rest, self.channels)
        dynamic = torch.einsum("kcthw,cd->kdthw", rest, directions)
        for axis, (small, side) in enumerate(self._sides(field)):
            shrink = torch.linalg.pinv(enlarging(small, side)).to(items)
            dynamic = along(dynamic, shrink, axis + 3)
        of_static, of_dynamic = (
            items.new_zeros(channels, inner, *kernel)
            for inner, kernel in ((channels, (3, 3)), (self.channels, (3, 3, 3)))
        )
        of_static[:, :, 1, 1] = torch.eye(channels)
        of_dynamic[:, :, 1, 1, 1] = directions
        stored = (static, dynamic, of_static, of_dynamic, items.new_zeros(channels))
        return dict(zip(self._parts(field), stored, strict=True))

    def _decode(self, field: str, index: Tensor | None) -> Tensor:
        static, dynamic, of_static, of_dynamic, bias = self._parts(field)
        still = F.conv2d(
            self._rows(static, index), getattr(self, of_static), getattr(self, bias), padding=1
        )
        memory = self._rows(dynamic, index)
        # the last axis first: the axis before it is still short
        for axis in (1, 0):
            memory = along(memory, getattr(self, f"enlarge:{field}:{axis}"), axis + 3)
        return still.unsqueeze(2) + moving(memory, getattr(self, of_dynamic))

    def _project_(self, field: str, low: Tensor, high: Tensor) -> None:
        """One step of steepest descent with the best step width."""
        static, dynamic = (getattr(self, name) for name in self._parts(field)[:2])
        with torch.enable_grad():
            decoded = self._decode(field, None)
            excess = decoded.detach() - clamped(decoded.detach(), low, high)
            if not bool(excess.any()):
                return
            down = torch.autograd.grad(decoded, (static, dynamic), excess)
        static.sub_(down[0])
        dynamic.sub_(down[1])
        change = decoded.detach() - self._decode(field, None)
        # |excess - step change|^2 is least, item by item, at:
        inner = (excess * change).flatten(1).sum(dim=1)
        norm = change.square().flatten(1).sum(dim=1)
        step = torch.where(norm > 0, inner / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)
        for leaf, by in zip((static, dynamic), down, strict=True):
            leaf.add_(by * (1 - step).view(-1, *[1] * (by.ndim - 1)))


def principal_channels(rest: Tensor, count: int) -> Tensor:
    """[C, count]: the channel directions in which items [K, C, T, H, W] vary most, orthonormal.

    Where there are more than C, small random columns follow, drawn from a fixed stream: a memory
    of zeros that is read with zeros would never learn.
    """
    flat = rest.transpose(0, 1).flatten(1).double()
    found = torch.linalg.eigh(flat @ flat.T).eigenvectors.flip(1)[:, :count]
    # the sign of an eigenvector is arbitrary: its largest entry is positive here
    largest = found.gather(0, found.abs().argmax(dim=0, keepdim=True))
    found = found * torch.where(largest < 0, -1.0, 1.0)
    missing = count - found.shape[1]
    stream = rng.generator(0, "static-dynamic")
    drawn = 0.1 * torch.randn(len(found), missing, generator=stream, dtype=torch.float64)
    return torch.cat([found, drawn.to(found)], dim=1).to(rest)


def moving(memory: Tensor, weight: Tensor) -> Tensor:
    """Convolve [m, c, T, H, W] with [C, c, 3, 3, 3]; zeros around frames, ends held in time.

    The three frames that a filter sees are laid beside each other as channels, since convolutions
    of few channels are much faster in two dimensions.
    """
    frames = memory.transpose(1, 2)
    before, after = (torch.cat(pair, dim=1) for pair in _neighbours(frames))
    beside = torch.stack([before, frames, after], dim=3).flatten(2, 3)  # [m, T, c x 3, H, W]
    flat = F.conv2d(beside.flatten(0, 1), weight.flatten(1, 2), padding=1)
    return flat.unflatten(0, (-1, memory.shape[2])).transpose(1, 2)


def _neighbours(frames: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Halves of [m, T, ...] one frame earlier and one frame later."""
    return (frames[:, :1], frames[:, :-1]), (frames[:, 1:], frames[:, -1:])


class KeyFrames(_OfClips):
    """Some frames of every clip; the others are linear interpolations in time.

    Key frames as in PRISM (CVPR 2026), here at fixed, even distances, the first and the last frame
    among them. The leaf ``inputs`` is [M, C, k, H, W]. It starts at the key frames nearest to the
    item in the sum of squares over all frames.

    Parameters
    ----------
    frames: k; a single one is held all the time.
    fixed: dotted names of fields that stay as they are.
    """

    def __init__(self, example: Tree, *, frames: int = 4, fixed: Collection[str] = ()) -> None:
        super().__init__(example, fixed=fixed)
        if frames < 1:
            raise UserError("frames counts the key frames", got=frames, expected="1 or more")
        for field, item in self._items.items():
            if frames > item[1]:
                raise UserError(
                    f"field {short_name(field)!r} has fewer frames than key frames",
                    got=frames,
                    expected=f"at most {item[1]}",
                )
        self.frames = frames

    def _prepare(self, field: str) -> None:
        channels, frames, height, width = self._items[field]
        leaf = getattr(self, field)
        require_shape(field, leaf, (channels, self.frames, height, width))
        matrix = between(self.frames, frames).to(leaf)
        self.register_buffer(f"between:{field}", matrix, persistent=False)

    def _encode(self, field: str, items: Tensor) -> dict[str, Tensor]:
        nearest = torch.linalg.pinv(between(self.frames, items.shape[2]))
        return {field: along(items, nearest.to(items), 2)}

    def _decode(self, field: str, index: Tensor | None) -> Tensor:
        return along(self._rows(field, index), getattr(self, f"between:{field}"), 2)

    def _bound(self, low: Tree, high: Tree) -> None:
        super()._bound(low, high)
        for field in self._bounded:
            for side in ("low", "high"):
                if field in self._items:
                    self._require_steady(field, getattr(self, f"{side}:{field}"))

    def _require_steady(self, field: str, bound: Tensor) -> None:
        """Raise unless the bound is the same at all times: a key frame stands for several."""
        whole = bound.broadcast_to(self._items[field])
        if bool((whole != whole[:, :1]).any()):
            raise UserError(
                f"the bounds of {short_name(field)!r} change over time",
                expected="the same lowest and highest values for all frames",
            )

    def _project_(self, field: str, low: Tensor, high: Tensor) -> None:
        """Clamp: the frames between are means of key frames."""
        leaf, whole = getattr(self, field), self._items[field]
        low, high = (bound.broadcast_to(whole)[:, :1] for bound in (low, high))
        leaf.copy_(clamped(leaf, low, high))


def between(keys: int, frames: int) -> Tensor:
    """[T, k] float64: linear interpolation of k numbers at T times, ends included."""
    if keys == 1:
        return torch.ones(frames, 1, dtype=torch.float64)
    at = torch.arange(frames, dtype=torch.float64) * (keys - 1) / max(1, frames - 1)
    return (1 - (at[:, None] - torch.arange(keys)).abs()).clamp_min(0)
