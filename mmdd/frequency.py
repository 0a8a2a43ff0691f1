"""Items as some of the coefficients of their discrete cosine transform (DCT).

Shape suffixes: K = M stored items, m of them in a batch, N places along an axis.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Size, Tensor, nn

from mmdd.errors import UserError, unknown_name
from mmdd.representations import (
    FieldWise,
    along,
    part_of,
    require_names,
    require_shape,
    short_name,
)
from mmdd.trees import Tree

KEPT = "kept"
CHOICES = ("low", "energy", "variance")
DENSE = 1024
"""Longest axis that is transformed by a matrix product; beyond it a fast Fourier transform is
used, since the matrix grows with the square of the axis."""

Axes = Sequence[int] | Mapping[str, Sequence[int]] | None


class Frequency(FieldWise):
    """The kept coefficients of the orthonormal DCT-II of every item; the others are zero.

    Shin et al. 2023 (FreD), with one choice of coefficients for all items in place of one per
    class. The leaf ``inputs`` is [M, kept]: the kept coefficients of the flattened item, in
    rising order of their places.

    `constrain_` clamps the decoded items and keeps the kept coefficients of the outcome: the
    nearest items that can be stored, which need not be in range when some coefficients are not.

    Parameters
    ----------
    keep: share of the coefficients that is stored, in (0, 1].
    choose: ``low`` keeps the lowest sums of normalised frequencies u_1 / N_1 + u_2 / N_2 + ..., the
        same in every channel, and costs nothing to store. ``energy`` keeps the largest mean
        squares over the start items, which gives the least squared error; ``variance`` the largest
        variances (FreD). Their places are chosen once and stored beside the items.
    axes: item axes to transform, e.g. ``[0]`` for sequences [L, D], or a dict of them by field. By
        default all but the first of an item; the only one of a vector.
    fixed: dotted names of fields that stay as they are.
    """

    def __init__(
        self,
        example: Tree,
        *,
        keep: float = 0.5,
        choose: str = "energy",
        axes: Axes = None,
        fixed: Collection[str] = (),
    ) -> None:
        super().__init__(example, fixed=fixed)
        if not 0 < keep <= 1:
            raise UserError("keep is a share of the coefficients", got=keep, expected="in (0, 1]")
        if choose not in CHOICES:
            raise unknown_name("choice of coefficients", choose, CHOICES)
        self.keep, self.choose = keep, choose
        self._axes = self._axes_of(axes)
        self._boxes: dict[str, Size] = {}
        self.register_load_state_dict_post_hook(_prepare_again)

    def _is_coded(self, item: Size) -> bool:
        return len(item) > 0

    def _axes_of(self, given: Axes) -> dict[str, tuple[int, ...]]:
        if isinstance(given, Mapping):
            require_names(given, [short_name(field) for field in self._items], "axes")
        found = {}
        for field, item in self._items.items():
            own = given.get(short_name(field)) if isinstance(given, Mapping) else given
            default = range(min(1, len(item) - 1), len(item))
            found[field] = checked_axes(short_name(field), item, default if own is None else own)
        return found

    # -- what is stored --------------------------------------------------------------------------

    def _parts(self, field: str) -> list[str]:
        return [field] if self.choose == "low" else [field, part_of(field, KEPT)]

    def _encode(self, field: str, items: Tensor) -> dict[str, Tensor]:
        whole = items
        for axis in self._axes[field]:
            whole = dct(whole, axis + 1)
        places = self._choice(field, whole)
        parts = (whole.flatten(1)[:, places.to(whole.device)], compact(places, whole[0].numel()))
        return dict(zip(self._parts(field), parts, strict=False))

    def _choice(self, field: str, whole: Tensor) -> Tensor:
        if self.choose == "low":
            return lowest(self._items[field], self._axes[field], self.keep)
        centre = whole.mean(dim=0) if self.choose == "variance" else 0.0
        return largest((whole - centre).square().mean(dim=0), self.keep)

    def _places(self, field: str) -> Tensor:
        """[kept] int64, flat places in an item; checked, because they come out of a file."""
        item, leaf = self._items[field], getattr(self, field)
        if self.choose == "low":
            return lowest(item, self._axes[field], self.keep).to(leaf.device)
        places = getattr(self, part_of(field, KEPT)).long()
        wanted = (count_of(item.numel(), self.keep),)
        rising = bool((places.diff() > 0).all()) and tuple(places.shape) == wanted
        if not rising or int(places[0]) < 0 or int(places[-1]) >= item.numel():
            raise UserError(
                f"the kept places of field {short_name(field)!r} do not fit the options",
                got=f"shape {tuple(places.shape)}",
                expected=f"{wanted[0]} rising places below {item.numel()}",
            )
        return places.to(leaf.device)

    def _prepare(self, field: str) -> None:
        """Find the box that holds the kept places, the places in it and its axes' matrices."""
        item, leaf, places = self._items[field], getattr(self, field), self._places(field)
        require_shape(field, leaf, tuple(places.shape))
        where = torch.unravel_index(places, item)
        box = list(item)
        for axis in self._axes[field]:
            # beyond the highest kept frequency there are zeros for every item
            box[axis] = int(where[axis].max()) + 1
            if item[axis] <= DENSE:
                matrix = dct_matrix(item[axis])[: box[axis]].to(leaf)
                self.register_buffer(f"dct:{field}:{axis}", matrix, persistent=False)
        self._boxes[field] = Size(box)
        flat = torch.zeros_like(places)
        for place, side in zip(where, box, strict=True):
            flat = flat * side + place
        self.register_buffer(f"at:{field}", flat, persistent=False)

    # -- decode ----------------------------------------------------------------------------------

    def _decode(self, field: str, index: Tensor | None) -> Tensor:
        rows, box = self._rows(field, index), self._boxes[field]
        grid = rows.new_zeros(len(rows), box.numel())
        grid = grid.index_copy(1, getattr(self, f"at:{field}"), rows).unflatten(1, box)
        for axis in reversed(self._axes[field]):
            side = self._items[field][axis]
            if side <= DENSE:
                grid = along(grid, getattr(self, f"dct:{field}:{axis}").T, axis + 1)
            else:
                grid = fast_idct(grid, axis + 1, side)
        return grid

    def _correct_(self, field: str, excess: Tensor) -> None:
        """Orthonormal: the kept coefficients of the excess are its least-squares fit."""
        for axis in self._axes[field]:
            if self._items[field][axis] <= DENSE:
                excess = along(excess, getattr(self, f"dct:{field}:{axis}"), axis + 1)
            else:
                excess = dct(excess, axis + 1).narrow(axis + 1, 0, self._boxes[field][axis])
        getattr(self, field).add_(excess.flatten(1)[:, getattr(self, f"at:{field}")])


def _prepare_again(module: nn.Module, keys: object) -> None:
    """Other kept places may have been loaded."""
    assert isinstance(module, Frequency)
    for field in module._items:
        module._prepare(field)


# -- which coefficients ----------------------------------------------------------------------------


def checked_axes(field: str, item: Size, axes: Sequence[int]) -> tuple[int, ...]:
    """Rising item axes, without repeats."""
    found = sorted({axis + len(item) if axis < 0 else axis for axis in axes})
    if not found or len(found) < len(axes) or found[0] < 0 or found[-1] >= len(item):
        raise UserError(
            f"axes of field {field!r}",
            got=list(axes),
            expected=f"different axes of an item of shape {tuple(item)}, counted from 0",
        )
    return tuple(found)


def count_of(values: int, keep: float) -> int:
    """How many of `values` the share `keep` is: rounded, at least one."""
    return max(1, round(keep * values))


def lowest(item: Size, axes: tuple[int, ...], keep: float) -> Tensor:
    """[kept] int64: rising flat places of the lowest frequencies along `axes`, on every other axis.

    Ranks are whole numbers, sums of u x lcm / N, so that equal frequencies tie on every machine; of
    those the one that comes first in the item is kept.
    """
    sides = [item[axis] for axis in axes]
    common = math.lcm(*sides)
    rank = torch.zeros([1] * len(item), dtype=torch.int64)
    for axis, side in zip(axes, sides, strict=True):
        shape = [side if place == axis else 1 for place in range(len(item))]
        rank = rank + (torch.arange(side) * (common // side)).view(shape)
    shown = torch.zeros(rank.numel(), dtype=torch.bool)
    order = torch.argsort(rank.flatten(), stable=True)
    shown[order[: count_of(rank.numel(), keep)]] = True
    return torch.nonzero(shown.view(rank.shape).expand(item).flatten()).flatten()


def largest(score: Tensor, keep: float) -> Tensor:
    """[kept] int64: rising flat places of the largest scores; of equal ones the first are kept."""
    order = torch.argsort(score.flatten(), descending=True, stable=True)
    return torch.sort(order[: count_of(score.numel(), keep)]).values


def compact(places: Tensor, count: int) -> Tensor:
    """Places below `count` in as few bytes as they fit in: they are stored with the items."""
    for kind in (torch.int16, torch.int32):
        if count - 1 <= torch.iinfo(kind).max:
            return places.to(kind)
    return places


# -- the transform ---------------------------------------------------------------------------------


def dct_matrix(side: int) -> Tensor:
    """[N, N] float64: row u is sqrt(2 / N) cos(pi (n + 1/2) u / N); row 0 is sqrt(1 / N)."""
    place = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(torch.pi / side * place[:, None] * (place + 0.5))
    return waves * weights(side)[:, None]


def weights(side: int) -> Tensor:
    """[N] float64: what makes the rows of the DCT-II orthonormal."""
    found = torch.full((side,), math.sqrt(2 / side), dtype=torch.float64)
    found[0] = math.sqrt(1 / side)
    return found


def dct(values: Tensor, axis: int) -> Tensor:
    """Orthonormal DCT-II along `axis`."""
    side = values.shape[axis]
    if side <= DENSE:
        return along(values, dct_matrix(side).to(values), axis)
    return fast_dct(values, axis)


def fast_dct(values: Tensor, axis: int) -> Tensor:
    """Orthonormal DCT-II along `axis` by one FFT of the same length (Makhoul 1980)."""
    side = values.shape[axis]
    shuffled = values.movedim(axis, -1).index_select(-1, shuffle(side).to(values.device))
    turned = torch.fft.fft(shuffled) * twiddle(side, -1.0).to(complex_like(values))
    return (turned.real * weights(side).to(values)).movedim(-1, axis)


def fast_idct(values: Tensor, axis: int, side: int) -> Tensor:
    """The inverse of `fast_dct` for an axis that holds the lowest of `side` coefficients."""
    low = values.movedim(axis, -1) / weights(side)[: values.shape[axis]].to(values)
    whole = nn.functional.pad(low, (0, side - low.shape[-1]))
    mirrored = nn.functional.pad(whole[..., 1:].flip(-1), (1, 0))
    turned = torch.complex(whole, -mirrored) * twiddle(side, 1.0).to(complex_like(values))
    shuffled = torch.fft.irfft(turned[..., : side // 2 + 1], n=side)
    back = torch.argsort(shuffle(side)).to(values.device)
    return shuffled.index_select(-1, back).movedim(-1, axis)


def shuffle(side: int) -> Tensor:
    """[N]: the even places rising, then the odd ones falling."""
    return torch.cat([torch.arange(0, side, 2), torch.arange(1, side, 2).flip(0)])


def twiddle(side: int, sign: float) -> Tensor:
    """[N] complex128: exp(sign i pi k / 2 N)."""
    angle = sign * torch.pi / (2 * side) * torch.arange(side, dtype=torch.float64)
    return torch.polar(torch.ones_like(angle), angle)


def complex_like(values: Tensor) -> Tensor:
    """An empty complex tensor of the precision and device of `values`."""
    return values.new_empty(0, dtype=values.dtype.to_complex())
