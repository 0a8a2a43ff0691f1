"""Differentiable siamese augmentation (DSA) with the random draw kept apart from its application.

Source: Zhao & Bilen 2021, "Dataset Condensation with Differentiable Siamese Augmentation"
(ICML). An augmentation is *siamese* when the real and the synthetic batch go through the very
same transform. Here :meth:`DSA.draw` makes the random numbers once, from a generator the caller
owns, and :meth:`DSA.__call__` applies them to as many batches as wanted::

    draw = dsa.draw(num_groups, generator)              # one transform for each group
    real = dsa(real, draw, rows=real_groups)
    synthetic = dsa(synthetic, draw, rows=synthetic_groups)

    train = dsa(train, dsa.draw(len(train), generator, shared_op=True))   # evaluation

Images are ``[n, C, H, W]`` in normalised space, so that filling with zero fills with the mean
colour. Every op is linear or affine in the image, and gradients flow back to it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

PARAMS_PER_DRAW = 4


@dataclass(frozen=True, eq=False)  # eq: comparing tensors gives tensors, not a bool
class Draw:
    """K independent draws, held on the CPU; raw uniforms, so that they fit images of any size.

    Attributes:
        ops: ``[K]`` int64, index into the strategy's list of ops.
        params: ``[K, 4]`` float32, uniform in [0, 1); each op reads the columns it needs.
    """

    ops: Tensor
    params: Tensor


@dataclass(frozen=True)
class Strengths:
    """How strong each op is; the defaults are those of Zhao & Bilen 2021.

    Attributes:
        brightness: full width of the uniform shift, in units of the normalised image.
        saturation: largest factor on the difference from the pixel's grey value.
        contrast: smallest factor on the difference from the image's mean (largest: 1 more).
        scale: largest zoom factor, at least 1; the smallest is its inverse.
        rotate: largest angle either way, in degrees.
        crop: largest translation, as a fraction of the side.
        cutout: side of the erased window, as a fraction of the side.
        flip: probability of a horizontal flip.
    """

    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a strength outside the range in which its op means something."""
        for field in fields(self):
            low = 1.0 if field.name == "scale" else 0.0
            high = 1.0 if field.name in ("crop", "cutout", "flip") else math.inf
            value = getattr(self, field.name)
            if not (math.isfinite(value) and low <= value <= high):
                raise _error(
                    f"strength {field.name!r}",
                    value,
                    f"a finite number in [{low}, {high}]",
                    f"the usual value is {field.default}",
                )


def _error(what: str, got: object, expected: str, hint: str) -> ValueError:
    """Make a user error in the package's one form: what is wrong, got, expected, hint."""
    return ValueError(f"{what}: got {got!r}, expected {expected}; hint: {hint}")


def _check_names(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raise for the first of ``names`` that is not ``known``, suggesting the nearest that is."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else "check the spelling"
            raise _error(f"unknown {what}", name, f"one of {', '.join(known)}", hint)


# Every op takes x [m, C, H, W] (float32 or float64), u [m, 4] (float64, on the CPU) and the
# strengths. Parameters are worked out from u on the CPU, where float64 always exists, and only
# then moved: the same draw is the same transform on every device.


def _per_item(value: Tensor, x: Tensor) -> Tensor:
    """Move ``value`` ``[m]`` to x's device and dtype, as ``[m, 1, 1, 1]``."""
    return value.to(x).view(-1, 1, 1, 1)


def _integers(u: Tensor, count: int) -> Tensor:
    """Uniforms ``[m]`` in [0, 1) to integers ``[m]`` uniform in [0, count)."""
    return (u * count).floor().long()


def _color(x: Tensor, u: Tensor, strengths: Strengths) -> Tensor:
    """Brightness, then saturation, then contrast."""
    x = x + _per_item((u[:, 0] - 0.5) * strengths.brightness, x)
    if x.shape[1] > 1:  # one channel is its own grey value: saturation would change nothing
        grey = x.mean(dim=1, keepdim=True)
        x = (x - grey) * _per_item(u[:, 1] * strengths.saturation, x) + grey
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * _per_item(u[:, 2] + strengths.contrast, x) + mean


def _flip(x: Tensor, u: Tensor, strengths: Strengths) -> Tensor:
    """Mirror left and right with probability ``strengths.flip``."""
    flipped = (u[:, 0] < strengths.flip).to(x.device).view(-1, 1, 1, 1)
    return torch.where(flipped, x.flip(3), x)


def _source(u: Tensor, side: int, ratio: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Translate one axis: which pixel each output pixel reads, and whether it exists.

    Returns:
        Indices ``[m, side]`` int64 taken modulo ``side``, and a mask ``[m, side]`` bool.
    """
    pad = int(side * ratio + 0.5)
    shift = (_integers(u, 2 * pad + 1) - pad).to(device)
    position = torch.arange(side, device=device) + shift[:, None]
    return position % side, (position >= 0) & (position < side)


def _crop(x: Tensor, u: Tensor, strengths: Strengths) -> Tensor:
    """Pad with zeros and crop back: a translation by whole pixels, different in x and y.

    Done as a circular shift, then a mask: a permutation sends each gradient to a pixel of its
    own, where clamped indices would pile many onto the border, in no fixed order on a GPU.
    """
    height, width = x.shape[2:]
    col, col_inside = _source(u[:, 0], width, strengths.crop, x.device)
    row, row_inside = _source(u[:, 1], height, strengths.crop, x.device)
    index = (row[:, :, None] * width + col[:, None, :]).view(-1, 1, height * width)
    moved = x.flatten(2).gather(2, index.expand(-1, x.shape[1], -1)).view(x.shape)
    inside = row_inside[:, :, None] & col_inside[:, None, :]
    return moved.masked_fill(~inside[:, None], 0.0)


def _window(u: Tensor, side: int, ratio: float, device: torch.device) -> Tensor:
    """Mask ``[m, side]``, true inside a window whose centre is uniform over the side."""
    size = int(side * ratio + 0.5)
    start = (_integers(u, side + 1 - size % 2) - size // 2).to(device)[:, None]
    position = torch.arange(side, device=device)
    return (position >= start) & (position < start + size)


def _cutout(x: Tensor, u: Tensor, strengths: Strengths) -> Tensor:
    """Fill a window with zero; the part of it beyond the border is lost."""
    cols = _window(u[:, 0], x.shape[3], strengths.cutout, x.device)
    rows = _window(u[:, 1], x.shape[2], strengths.cutout, x.device)
    return x.masked_fill((rows[:, :, None] & cols[:, None, :])[:, None], 0.0)


def _warp(x: Tensor, theta: Tensor) -> Tensor:
    """Sample x at ``theta`` ``[m, 2, 2]`` times each output position, in [-1, 1] coordinates.

    Bilinear, zero beyond the border, ``align_corners=False``: what the field's code gets from
    torch's defaults. The grid is ``functional.affine_grid``'s, but written out, because that
    one is a matrix product, which reduced-precision settings (TF32) would round.
    """
    height, width = x.shape[2:]
    theta = theta.to(x)[..., None, None]
    ys = ((torch.arange(height).double() * 2 + 1) / height - 1).to(x)[:, None]
    xs = ((torch.arange(width).double() * 2 + 1) / width - 1).to(x)
    grid = (theta[:, :, 0] * xs + theta[:, :, 1] * ys).permute(0, 2, 3, 1)
    return functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def _scale(x: Tensor, u: Tensor, strengths: Strengths) -> Tensor:
    """Zoom x and y by independent factors; a factor above 1 shows the image smaller."""
    low = 1 / strengths.scale
    return _warp(x, torch.diag_embed(low + u[:, :2] * (strengths.scale - low)))


def _rotate(x: Tensor, u: Tensor, strengths: Strengths) -> Tensor:
    """Turn about the centre; by pixel distances, so that an oblong image is not sheared."""
    angle = (u[:, 0] * 2 - 1) * math.radians(strengths.rotate)
    cos, sin = angle.cos(), angle.sin()
    aspect = x.shape[2] / x.shape[3]
    return _warp(x, torch.stack([cos, -sin * aspect, sin / aspect, cos], dim=1).view(-1, 2, 2))


_OPS: dict[str, Callable[[Tensor, Tensor, Strengths], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


def _parse(strategy: str | Sequence[str]) -> tuple[str, ...]:
    """Read the op names of a strategy; empty for the identity."""
    parts = strategy.split("_") if isinstance(strategy, str) else strategy
    names = tuple(part.strip().lower() for part in parts)
    if names in ((), ("",), ("none",)):
        return ()
    _check_names("augmentation", names, tuple(_OPS))
    return names


def _strengths(ratios: Strengths | Mapping[str, float] | None) -> Strengths:
    """Put ``ratios`` over the default strengths."""
    if isinstance(ratios, Strengths):
        return ratios
    _check_names("strength", ratios or (), tuple(field.name for field in fields(Strengths)))
    return replace(Strengths(), **(ratios or {}))


class DSA:
    """Differentiable siamese augmentation (Zhao & Bilen 2021, their mode 'S').

    Each draw picks one op uniformly from the strategy. "color" is one op, which applies
    brightness, saturation and contrast one after another.

    Args:
        strategy: op names, in a sequence or joined by underscores as the field writes them;
            "none" or nothing is the identity. A name given twice is picked twice as often.
        ratios: strengths that replace the defaults, by name or as a whole.
    """

    def __init__(
        self,
        strategy: str | Sequence[str] = ("color", "crop", "cutout", "flip", "scale", "rotate"),
        *,
        ratios: Strengths | Mapping[str, float] | None = None,
    ) -> None:
        self.names = _parse(strategy)
        self.strengths = _strengths(ratios)

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Draw:
        """Make ``count`` draws from a CPU generator.

        Takes 5 values per draw from the generator whatever the strategy and the ops picked, so
        that changing the augmentation leaves the rest of a seeded run as it was.

        Args:
            count: number of draws K.
            generator: source of every random number; on the CPU.
            shared_op: use one op for all the draws, with parameters of their own.
        """
        if count < 0:
            raise _error("number of draws", count, "0 or more", "give the number of groups")
        if generator.device.type != "cpu":
            raise _error(
                "generator", str(generator.device), "a CPU generator", "draws are made on the CPU"
            )
        values = torch.rand(count, 1 + PARAMS_PER_DRAW, generator=generator, dtype=torch.float32)
        ops = _integers(values[:, 0].double(), len(self.names))
        if shared_op:
            ops = ops[:1].repeat(count)
        return Draw(ops=ops, params=values[:, 1:].contiguous())

    def __call__(self, x: Tensor, draw: Draw, rows: Tensor | None = None) -> Tensor:
        """Apply a draw to a batch.

        Args:
            x: images ``[n, C, H, W]``, floating point; never changed.
            draw: K draws of a DSA with the same strategy.
            rows: ``[n]`` int64, the draw each image uses (best on the CPU: it is read there).
                None: K equals n, and image i uses draw i.

        Returns:
            ``[n, C, H, W]`` with x's dtype and device; x itself where nothing is to be done.
        """
        rows = self._rows(x, draw, rows)
        if not self.names or x.numel() == 0:
            return x
        ops, u = draw.ops.cpu()[rows], draw.params.cpu().double()[rows]
        # Half precision is too coarse for sampling positions: work in float32, round once.
        work = x.float() if x.dtype.itemsize < 4 else x
        return self._by_op(work, ops, u).to(x.dtype)

    def _by_op(self, x: Tensor, ops: Tensor, u: Tensor) -> Tensor:
        """Run each op once, on all the images ``[n, C, H, W]`` whose ``ops`` ``[n]`` it is."""
        order = ops.argsort(stable=True)
        used, sizes = torch.unique_consecutive(ops[order], return_counts=True)
        if len(used) == 1:
            return _OPS[self.names[int(used)]](x, u, self.strengths)
        # Sort, split, join, sort back: the backward pass then costs two gathers in all, where
        # selecting op by op would add up a full-size gradient for each op.
        images = x.index_select(0, order.to(x.device)).split_with_sizes(sizes.tolist())
        params = u[order].split_with_sizes(sizes.tolist())
        parts = [
            _OPS[self.names[op]](part, own, self.strengths)
            for op, part, own in zip(used.tolist(), images, params, strict=True)
        ]
        return torch.cat(parts).index_select(0, order.argsort().to(x.device))

    def _rows(self, x: Tensor, draw: Draw, rows: Tensor | None) -> Tensor:
        """Check the arguments of a call; returns ``rows`` ``[n]`` on the CPU."""
        count = len(draw.ops)
        if x.dim() != 4 or not x.dtype.is_floating_point:
            got = f"{x.dtype} {list(x.shape)}"
            raise _error("images", got, "floating point [n, C, H, W]", "convert and normalise")
        if self.names and count and int(draw.ops.max()) >= len(self.names):
            got = f"op {int(draw.ops.max())}"
            hint = "apply a draw with the strategy that made it"
            raise _error("draw", got, f"an op below {len(self.names)}", hint)
        if rows is None:
            rows = torch.arange(count)
        if rows.shape != x.shape[:1] or rows.dtype != torch.int64:
            hint = "without rows, make one draw per image"
            got = f"{rows.dtype} {list(rows.shape)}"
            raise _error("rows", got, f"int64 [{len(x)}], one per image", hint)
        rows = rows.cpu()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
            got = f"{int(rows.min())} to {int(rows.max())}"
            raise _error("rows", got, f"0 to {count - 1}", "make one draw for each group")
        return rows
