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

from mmdd.errors import UserError

PARAMS_PER_DRAW = {"one": 4, "all": 8}
"""Uniforms of one draw by mode, beside the one that picks the op."""

RUN_VALUES = 2**16  # shorter runs of one op cost more in calls than sorting the batch by op
GEOMETRIC = ("crop", "scale", "rotate")
COLUMNS = {"color": slice(0, 3), "flip": slice(3, 4), "cutout": slice(4, 6)}
"""Which uniforms an op that is always applied reads; the picked op reads those from 6 on."""


@dataclass(frozen=True, eq=False)  # eq: comparing tensors gives tensors, not a bool
class Draw:
    """K independent draws, held on the CPU; raw uniforms, so that they fit images of any size.

    Attributes:
        ops: ``[K]`` int64, index into the ops that one is picked from.
        params: ``[K, 4]`` float32, or ``[K, 8]`` in the mode "all", uniform in [0, 1); each op
            reads the columns it needs.
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


def _error(what: str, got: object, expected: str, hint: str) -> UserError:
    """Make a user error in one line: what is wrong, got, expected, hint."""
    return UserError(f"{what}: got {got!r}, expected {expected}; hint: {hint}")


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
    """Brightness, then saturation, then contrast; in place after the first sum, which is new."""
    x = x + _per_item((u[:, 0] - 0.5) * strengths.brightness, x)
    if x.shape[1] > 1:  # one channel is its own grey value: saturation would change nothing
        grey = x.mean(dim=1, keepdim=True)
        x = x.sub_(grey).mul_(_per_item(u[:, 1] * strengths.saturation, x)).add_(grey)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return x.sub_(mean).mul_(_per_item(u[:, 2] + strengths.contrast, x)).add_(mean)


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
    return moved.masked_fill_(~inside[:, None], 0.0)


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


def _runs(x: Tensor, ops: Tensor) -> list[int]:
    """Sizes of the pieces in which a batch is worked on: where the op changes, or the whole.

    Batches come class by class, and a class shares its op. On a CPU such a run stays in the cache
    from one op to the next, and nothing need be sorted; a GPU is faster with few, large calls.
    """
    sizes: list[int] = torch.unique_consecutive(ops, return_counts=True)[1].tolist()
    long = x.numel() >= RUN_VALUES * len(sizes)
    return sizes if long and x.device.type == "cpu" else [len(ops)]


class DSA:
    """Differentiable siamese augmentation.

    In the mode "one" (Zhao & Bilen 2021, their mode 'S') each draw picks one op uniformly from the
    strategy. "color" is one op, which applies brightness, saturation and contrast one after
    another. In the mode "all" (Kim et al. 2022, IDC, "Dataset Condensation via Efficient
    Synthetic-Data Parameterization") colour, flip and cutout are applied to every image where the
    strategy names them, with parameters of their own, and one of its geometric ops (crop, scale,
    rotate) is picked; the order is colour, geometric op, flip, cutout. IDC flips first, which is
    the same in distribution: every geometric op is as likely as its mirror image.

    Args:
        strategy: op names, in a sequence or joined by underscores as the field writes them;
            "none" or nothing is the identity. A name given twice is picked twice as often.
        ratios: strengths that replace the defaults, by name or as a whole.
        mode: "one" or "all".
    """

    def __init__(
        self,
        strategy: str | Sequence[str] = ("color", "crop", "cutout", "flip", "scale", "rotate"),
        *,
        ratios: Strengths | Mapping[str, float] | None = None,
        mode: str = "one",
    ) -> None:
        _check_names("mode", (mode,), tuple(PARAMS_PER_DRAW))
        self.names = _parse(strategy)
        self.strengths = _strengths(ratios)
        self.mode = mode
        every = mode == "one"
        self.choices = tuple(name for name in self.names if every or name in GEOMETRIC)

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Draw:
        """Make ``count`` draws from a CPU generator.

        Takes 5 values per draw from the generator (9 in the mode "all") whatever the strategy and
        the ops picked, so that changing the strategy leaves the rest of a seeded run as it was.

        Args:
            count: number of draws K.
            generator: source of every random number; on the CPU.
            shared_op: pick one op for all the draws, with parameters of their own.
        """
        if count < 0:
            raise _error("number of draws", count, "0 or more", "give the number of groups")
        if generator.device.type != "cpu":
            raise _error(
                "generator", str(generator.device), "a CPU generator", "draws are made on the CPU"
            )
        width = 1 + PARAMS_PER_DRAW[self.mode]
        values = torch.rand(count, width, generator=generator, dtype=torch.float32)
        ops = _integers(values[:, 0].double(), len(self.choices))
        if shared_op:
            ops = ops[:1].repeat(count)
        return Draw(ops=ops, params=values[:, 1:].contiguous())

    def __call__(self, x: Tensor, draw: Draw, rows: Tensor | None = None) -> Tensor:
        """Apply a draw to a batch.

        Args:
            x: images ``[n, C, H, W]``, floating point; never changed.
            draw: K draws of a DSA with the same strategy and mode.
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
        apply = self._by_op if self.mode == "one" else self._all
        sizes = _runs(work, ops)
        parts = zip(*(each.split_with_sizes(sizes) for each in (work, ops, u)), strict=True)
        done = [apply(*part) for part in parts]
        return (torch.cat(done) if len(done) > 1 else done[0]).to(x.dtype)

    def _all(self, x: Tensor, ops: Tensor, u: Tensor) -> Tensor:
        """Run colour, the picked geometric op, flip and cutout on the images ``[n, C, H, W]``."""
        for step in ("color", "geometric", "flip", "cutout"):
            if step in self.names:
                x = _OPS[step](x, u[:, COLUMNS[step]], self.strengths)
            elif step == "geometric" and self.choices:
                x = self._by_op(x, ops, u[:, 6:])
        return x

    def _by_op(self, x: Tensor, ops: Tensor, u: Tensor) -> Tensor:
        """Run each op once, on all the images ``[n, C, H, W]`` whose ``ops`` ``[n]`` it is."""
        order = ops.argsort(stable=True)
        used, sizes = torch.unique_consecutive(ops[order], return_counts=True)
        if len(used) == 1:
            return _OPS[self.choices[int(used)]](x, u, self.strengths)
        # Sort, split, join, sort back: the backward pass then costs two gathers in all, where
        # selecting op by op would add up a full-size gradient for each op.
        images = x.index_select(0, order.to(x.device)).split_with_sizes(sizes.tolist())
        params = u[order].split_with_sizes(sizes.tolist())
        parts = [
            _OPS[self.choices[op]](part, own, self.strengths)
            for op, part, own in zip(used.tolist(), images, params, strict=True)
        ]
        return torch.cat(parts).index_select(0, order.argsort().to(x.device))

    def _rows(self, x: Tensor, draw: Draw, rows: Tensor | None) -> Tensor:
        """Check the arguments of a call; returns ``rows`` ``[n]`` on the CPU."""
        count = len(draw.ops)
        if x.dim() != 4 or not x.dtype.is_floating_point:
            got = f"{x.dtype} {list(x.shape)}"
            raise _error("images", got, "floating point [n, C, H, W]", "convert and normalise")
        hint = "apply a draw with the strategy and mode that made it"
        if draw.params.shape[1:] != (PARAMS_PER_DRAW[self.mode],):
            expected = f"{PARAMS_PER_DRAW[self.mode]} for each"
            raise _error("parameters of the draw", list(draw.params.shape), expected, hint)
        if self.names and count and int(draw.ops.max()) >= max(1, len(self.choices)):
            got = f"op {int(draw.ops.max())}"
            raise _error("draw", got, f"an op below {len(self.choices)}", hint)
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
