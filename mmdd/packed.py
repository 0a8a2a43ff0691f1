"""Several small items in one stored item: IDC's multi-formation, IDM's partition and expansion.

Shape suffixes: K start items, M stored items, m of them in a batch, P parts of a stored item,
C channels, S spatial axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from mmdd.errors import UserError
from mmdd.representations import (
    FieldWise,
    along,
    clamped,
    fields,
    require_shape,
    short_name,
)
from mmdd.trees import Tree

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""PyTorch's name of linear interpolation over 1, 2 and 3 axes."""
DENSE = 128
"""Longest axis that is interpolated by a matrix product. Forward and backward then take 0.2 (28
pixels, 1 channel) to 0.9 (128 pixels) of the time of one batched ``F.interpolate`` on a CPU;
beyond, the product grows faster than the picture."""


class Packed(FieldWise):
    """A stored item is a grid of small items, each of which is decoded by upsampling.

    Multi-formation of Kim et al. 2022 (IDC); partition and expansion of Zhao et al. 2023 (IDM),
    with factor 2. A stored item has the shape [C, s_1, ..., s_S] of an item. Every spatial
    axis is cut into `factor` parts of ceil(s / factor); part i starts at floor(i s / factor), so
    that neighbours share one row where the division leaves a rest: nothing is padded and every
    stored number is read. A part becomes an item by linear interpolation (``align_corners`` False).
    Parts come in row-major order, those of stored item 0 first.

    A stored item starts from factor^S items, each shrunk to a part by averaging areas; numbers that
    two parts share start at the mean of both.

    Parameters
    ----------
    factor: parts per spatial axis.
    multi: decode with every factor from 1 to `factor`, in that order (IDC's ``multi``).
    fixed: dotted names of fields that stay as they are. These, and all fields without a spatial
        axis, are not packed: they have one row for each decoded item.
    """

    def __init__(
        self,
        example: Tree,
        *,
        factor: int = 2,
        multi: bool = False,
        fixed: Collection[str] = (),
    ) -> None:
        super().__init__(example, fixed=fixed)
        if factor < 2:
            raise UserError("factor counts the parts of an axis", got=factor, expected="2 or more")
        spatial = self._spatial_axes(example)
        self._check_sides(factor)
        self.factors = tuple(range(1, factor + 1)) if multi else (factor,)
        self.starts = factor**spatial
        self.expand = sum(part**spatial for part in self.factors)
        self._check_others(multi)

    @classmethod
    def needs(cls, example: Tree, **options: Any) -> int:
        """factor^S: one start item for each part of the finest grid."""
        return cls(example, **options).starts

    # -- what can be packed ----------------------------------------------------------------------

    def _is_coded(self, item: Size) -> bool:
        return len(item) > 1

    def _spatial_axes(self, example: Tree) -> int:
        """S, the same for all packed fields."""
        counts = {short_name(field): len(item) - 1 for field, item in self._items.items()}
        if not counts:
            raise UserError(
                "items without a spatial axis cannot be packed",
                got={short_name(k): tuple(v.shape[1:]) for k, v in fields(example).items()},
                expected="a floating-point field of shape [channels, length], "
                "[channels, height, width] or [channels, time, height, width]",
                hint="Vectors, node features and adjacencies have no parts that could be enlarged;"
                " use the representation direct or basis.",
            )
        if len(set(counts.values())) > 1 or max(counts.values()) > max(MODES):
            raise UserError(
                "these fields cannot be packed together",
                got=counts,
                expected="the same number of spatial axes in each, at most 3",
                hint="Name those that are not to be packed in fixed.",
            )
        self._refuse_sequences(fields(example))
        return next(iter(counts.values()))

    def _refuse_sequences(self, example: dict[str, Tensor]) -> None:
        """A mask over the first axis says that it counts positions, not channels."""
        masks = [leaf.shape[1:] for leaf in example.values() if leaf.dtype == torch.bool]
        for field, item in self._items.items():
            if item[:1] in masks:
                raise UserError(
                    f"masked sequences cannot be packed: a mask runs over the first axis of "
                    f"{short_name(field)!r}",
                    got=tuple(item),
                    expected="channels first",
                    hint="Enlarging the other axis would mix features; use the representation "
                    "direct, basis, or frequency with axes=[0].",
                )

    def _check_sides(self, factor: int) -> None:
        for field, item in self._items.items():
            if min(item[1:]) < factor:
                raise UserError(
                    f"field {short_name(field)!r} is too small for factor {factor}",
                    got=tuple(item),
                    expected=f"spatial axes of at least {factor}",
                )

    def _check_others(self, multi: bool) -> None:
        others = [short_name(field) for field in self._fields if field not in self._items]
        if multi and others:
            raise UserError(
                "multi decodes enlargements that belong to no single start item, so that other "
                "fields have no value for them",
                got=", ".join(others),
                hint="Set multi=false.",
            )

    # -- start -----------------------------------------------------------------------------------

    def _as_rows(self, items: Tensor) -> Tensor:
        return self._grouped(items)

    def _grouped(self, items: Tensor) -> Tensor:
        """[K, ...] -> [M, P, ...]."""
        if len(items) % self.starts:
            raise UserError(
                "the start items do not fill the stored items",
                got=len(items),
                expected=f"a multiple of {self.starts}",
            )
        return items.unflatten(0, (-1, self.starts))

    def _encode(self, field: str, items: Tensor) -> dict[str, Tensor]:
        """Shrink [K, C, s_1, ...] and lay groups of factor^S out as grids [M, C, s_1, ...]."""
        sides, factor = items.shape[2:], self.factors[-1]
        small = F.interpolate(items, size=[-(-side // factor) for side in sides], mode="area")
        spatial = len(sides)
        grid = self._grouped(small).unflatten(1, (factor,) * spatial)
        # [M, f, f, C, z, z] -> [M, C, f, z, f, z]
        pairs = [k for axis in range(spatial) for k in (1 + axis, 2 + spatial + axis)]
        grid = grid.permute(0, 1 + spatial, *pairs)
        for axis, side in enumerate(sides, start=2):
            grid = paste(grid, axis, side)
        return {field: grid}

    # -- decode ----------------------------------------------------------------------------------

    def _prepare(self, field: str) -> None:
        """Interpolation matrices, which cost no stored bytes."""
        item, leaf = self._items[field], getattr(self, field)
        require_shape(field, leaf, item)
        finer = [factor for factor in self.factors if factor > 1 and _dense(item)]
        for factor, (axis, side) in itertools.product(finer, enumerate(item[1:])):
            matrix = enlarging(-(-side // factor), side).to(leaf)
            self.register_buffer(f"enlarge:{field}:{axis}:{factor}", matrix, persistent=False)

    def _decode(self, field: str, index: Tensor | None) -> Tensor:
        stored = self._rows(field, index)
        parts = [self._parts_of(field, stored, factor) for factor in self.factors]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return whole.flatten(0, 1)

    def _parts_of(self, field: str, stored: Tensor, factor: int) -> Tensor:
        """[m, C, s_1, ...] -> [m, P, C, s_1, ...]."""
        if factor == 1:
            return stored.unsqueeze(1)
        small = partition(stored, factor)
        if not _dense(self._items[field]):
            sides, mode = self._items[field][1:], MODES[stored.ndim - 2]
            large = F.interpolate(small.flatten(0, 1), size=sides, mode=mode, align_corners=False)
            return large.unflatten(0, small.shape[:2])
        # the last axis first: the axes before it are still short
        for axis in reversed(range(stored.ndim - 2)):
            small = along(small, getattr(self, f"enlarge:{field}:{axis}:{factor}"), axis + 3)
        return small

    # -- bounds ----------------------------------------------------------------------------------

    def _bound(self, low: Tree, high: Tree) -> None:
        super()._bound(low, high)
        for field in self._bounded:
            if field in self._items:
                for side in ("low", "high"):
                    self._require_even(field, getattr(self, f"{side}:{field}"))

    def _require_even(self, field: str, bound: Tensor) -> None:
        """Raise unless the bound is the same all over a channel: parts move when decoded."""
        item = self._items[field]
        whole = bound.broadcast_to(item).flatten(1)
        if not torch.equal(whole, whole[:, :1].expand_as(whole)):
            raise UserError(
                f"the bounds of {short_name(field)!r} change over its spatial axes",
                expected="one lowest and one highest value per channel for packed items",
            )

    def _project_(self, field: str, low: Tensor, high: Tensor) -> None:
        """Clamp: what is decoded are averages of what is stored."""
        leaf = getattr(self, field)
        leaf.copy_(clamped(leaf, low, high))


def _dense(item: Size) -> bool:
    return max(item[1:]) <= DENSE


def enlarging(size: int, side: int) -> Tensor:
    """[side, size] float64: linear interpolation of `size` numbers at `side` places."""
    unit = torch.eye(size, dtype=torch.float64)[None]
    return F.interpolate(unit, size=side, mode="linear", align_corners=False)[0].T.contiguous()


def first_of(part: int, side: int, factor: int) -> int:
    """Where a part of an axis starts."""
    return part * side // factor


def partition(values: Tensor, factor: int) -> Tensor:
    """[m, C, s_1, ..., s_S] -> [m, factor^S, C, z_1, ..., z_S] with z = ceil(s / factor)."""
    spatial = values.ndim - 2
    for axis in reversed(range(2, values.ndim)):
        values = cut(values, axis, factor)
    # [m, C, f, z, f, z] -> [m, f, f, C, z, z]
    order = [*range(2, 2 + 2 * spatial, 2), 1, *range(3, 3 + 2 * spatial, 2)]
    return values.permute(0, *order).flatten(1, spatial)


def cut(values: Tensor, axis: int, factor: int) -> Tensor:
    """[..., s, ...] -> [..., factor, ceil(s / factor), ...]; neighbours may share one row."""
    side = values.shape[axis]
    size = -(-side // factor)
    if side == factor * size:
        return values.unflatten(axis, (factor, size))
    parts = [values.narrow(axis, first_of(part, side, factor), size) for part in range(factor)]
    return torch.stack(parts, dim=axis)


def paste(parts: Tensor, axis: int, side: int) -> Tensor:
    """[..., factor, z, ...] -> [..., side, ...], the inverse of `cut`; shared rows are averaged."""
    factor, size = parts.shape[axis : axis + 2]
    if side == factor * size:
        return parts.flatten(axis, axis + 1)
    shape = [*parts.shape[:axis], side, *parts.shape[axis + 2 :]]
    total, count = parts.new_zeros(shape), parts.new_zeros(side)
    for part in range(factor):
        start = first_of(part, side, factor)
        total.narrow(axis, start, size).add_(parts.select(axis, part))
        count[start : start + size] += 1
    return total / count.view(side, *[1] * (len(shape) - axis - 1))
