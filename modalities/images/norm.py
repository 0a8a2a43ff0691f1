"""Normalisation of feature maps, written once for every image encoder.

Shape suffixes in this file: n items, C channels, H and W pixels, g groups of channels.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mmdd.errors import UserError, unknown_name

NormKind = Literal["instance", "group", "layer", "batch", "none"]
NORM_KINDS: tuple[str, ...] = get_args(NormKind)

EPS = 1e-5
GROUPS = 4
"""Groups of ``norm="group"``, as in the ConvNet of dataset condensation (Zhao et al. 2021)."""


def group_count(kind: str, channels: int) -> int:
    """Channel groups that a per-item norm of this kind uses: C, 4 or 1."""
    if kind == "group" and channels % GROUPS:
        raise UserError(
            f"norm 'group' splits the channels into {GROUPS} groups",
            got=channels,
            expected=f"a multiple of {GROUPS} channels",
            hint="Change the width, or choose norm 'instance' or 'layer'.",
        )
    return {"instance": channels, "group": GROUPS}.get(kind, 1)


def item_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Biased variance and mean of each item's groups; [n, C, H, W] -> twice [n, C or 1, 1, 1].

    Half precision is widened first: a sum over thousands of pixels would otherwise lose the mean.
    """
    n, channels = x.shape[:2]
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    if groups == channels:
        return torch.var_mean(wide, dim=(2, 3), keepdim=True, correction=0)
    if groups == 1:
        return torch.var_mean(wide, dim=(1, 2, 3), keepdim=True, correction=0)
    per_group = channels // groups
    grouped = wide.reshape(n, groups, per_group, *x.shape[2:])
    var, mean = torch.var_mean(grouped, dim=(2, 3, 4), keepdim=True, correction=0)
    spread = (n, groups, per_group, 1, 1)
    return var.expand(spread).flatten(1, 2), mean.expand(spread).flatten(1, 2)


class Norm(nn.Module):
    """One norm layer, [n, C, H, W] -> [n, C, H, W], chosen by name.

    ``instance`` is group norm with C groups (Ulyanov et al. 2016, as the field uses it), ``group``
    has 4 groups (Wu & He 2018), ``layer`` has one group. The three have a weight and a bias per
    channel, so a ``layer`` norm here does not fix the map's size; published code also has layer
    norms with a weight per channel and pixel. ``batch`` is `nn.BatchNorm2d` and the only kind that
    mixes items; ``none`` passes the input on.

    The per-item kinds are one scale and one shift of the input rather than `F.group_norm`, which
    leaves channels-last memory and does not fuse with its neighbours under `torch.compile`. On a
    map of one pixel, ``instance`` returns the bias, exactly as the definition says: encoders
    keep at least two pixels wherever they normalise.
    """

    def __init__(self, kind: NormKind, channels: int) -> None:
        super().__init__()
        if kind not in NORM_KINDS:
            raise unknown_name("norm", kind, NORM_KINDS)
        self.kind = kind
        self.channels = channels
        self.groups = group_count(kind, channels)
        self.batch = nn.BatchNorm2d(channels, eps=EPS) if kind == "batch" else None
        per_item = kind in ("instance", "group", "layer")
        self.weight = nn.Parameter(torch.empty(channels)) if per_item else None
        self.bias = nn.Parameter(torch.empty(channels)) if per_item else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weights to one and biases to zero (batch norm is a submodule and resets itself)."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the maps x [n, C, H, W]."""
        if self.batch is not None:
            return self.batch(x)
        if self.weight is None or self.bias is None:
            return x
        var, mean = item_statistics(x, self.groups)
        scale = self.weight.reshape(1, -1, 1, 1) * torch.rsqrt(var + EPS)
        shift = self.bias.reshape(1, -1, 1, 1) - mean * scale
        # One pass over the maps; x leads so that the result keeps its memory format.
        return x * scale.to(x.dtype) + shift.to(x.dtype)

    def extra_repr(self) -> str:
        """Show the kind and the channels."""
        return f"{self.kind}, {self.channels}"
