"""Differentiable siamese augmentation of clips: one draw for all frames, and one in time.

Every op of DSA (Zhao & Bilen 2021) is linear or affine in the picture. Applied to a clip it must
be the same in every frame. Frames are therefore handed to the image's ops as channels of one
picture; colours, which mix the channels of a pixel, get them as one tall picture instead.

Shape suffixes: n clips, C channels, T frames, H height, W width, K draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.modalities.images import mixing
from mmdd.modalities.images.augment import DSA, Draw


@dataclass(frozen=True, eq=False)  # eq: comparing tensors gives tensors, not a bool
class ClipDraw:
    """K independent draws, held on the CPU.

    Attributes:
        frames: what happens to every frame of a clip.
        times: ``[K, 2]`` float32, uniform in [0, 1): shift and speed.
    """

    frames: Draw
    times: Tensor


class ClipDSA:
    """DSA of clips ``[n, C, T, H, W]`` in normalised space, and a change of their time.

    Args:
        strategy: op names as `DSA` takes them; "none" or nothing leaves the frames alone.
        mode: "one" or "all", see `DSA`.
        shift: largest shift by whole frames, either way, as a fraction of T.
        speed: largest factor of time lapse, at least 1; the smallest is its inverse. Below 1 a
            part of the clip is shown, more slowly. The factor is uniform in its logarithm.

    Times outside the clip read its first or last frame. Both changes in time are one linear
    interpolation between frames, applied to every clip beside the op that is picked.
    """

    def __init__(
        self, strategy: str, *, mode: str = "one", shift: float = 0.125, speed: float = 1.0
    ) -> None:
        if not 0 <= shift < 1:
            raise UserError("shift is a share of the frames", got=shift, expected="in [0, 1)")
        if not 1 <= speed < float("inf"):
            raise UserError("speed is the largest factor", got=speed, expected="1 or more")
        self.frames = DSA(strategy, mode=mode)
        self.colour = DSA("color" if "color" in self.frames.names else "none", mode=mode)
        rest = [name for name in self.frames.names if name != "color"]
        # in the mode "one" an op is known by its number, so that the list stays whole
        self.others = self.frames if mode == "one" else DSA(rest, mode=mode)
        self.shift, self.speed = shift, speed

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> ClipDraw:
        """Make ``count`` draws from a CPU generator; ``shared_op``: one op for all of them.

        Takes two values per draw more than `DSA`, whatever the options.
        """
        frames = self.frames.draw(count, generator, shared_op=shared_op)
        return ClipDraw(frames, torch.rand(count, 2, generator=generator))

    def __call__(self, x: Tensor, draw: ClipDraw, rows: Tensor | None = None) -> Tensor:
        """Apply a draw to clips ``[n, C, T, H, W]``; clip i uses draw ``rows[i]`` (i if None)."""
        if x.ndim != 5 or not x.is_floating_point():
            got = f"{x.dtype} {list(x.shape)}"
            raise UserError("these are no clips", got=got, expected="floats [n, C, T, H, W]")
        if rows is None:
            rows = torch.arange(len(draw.times))
        x = self._in_frames(x, draw.frames, rows.cpu())
        return self._in_time(x, draw.times[rows.cpu()])

    # -- frames ----------------------------------------------------------------------------------

    def _in_frames(self, x: Tensor, draw: Draw, rows: Tensor) -> Tensor:
        if not self.frames.names:
            return x
        if self.frames.mode == "all":
            # colour comes first there too, and reads uniforms of its own
            x = self._coloured(x, draw, rows)
            return _as_channels(self.others, x, draw, rows)
        coloured = torch.zeros(len(draw.ops), dtype=torch.bool)
        for number, name in enumerate(self.frames.names):
            coloured |= (draw.ops == number) & (name == "color")
        return self._each(x, draw, rows, coloured[rows])

    def _each(self, x: Tensor, draw: Draw, rows: Tensor, coloured: Tensor) -> Tensor:
        """Split the clips by whether their op is one of colours."""
        if bool(coloured.all()):
            return self._coloured(x, draw, rows)
        if not bool(coloured.any()):
            return _as_channels(self.others, x, draw, rows)
        first, second = (torch.nonzero(mask).flatten() for mask in (coloured, ~coloured))
        parts = [
            self._coloured(x[first.to(x.device)], draw, rows[first]),
            _as_channels(self.others, x[second.to(x.device)], draw, rows[second]),
        ]
        back = torch.cat([first, second]).argsort().to(x.device)
        return torch.cat(parts).index_select(0, back)

    def _coloured(self, x: Tensor, draw: Draw, rows: Tensor) -> Tensor:
        """Brightness, saturation and contrast; the last about the mean of the whole clip."""
        alone = Draw(torch.zeros_like(draw.ops), draw.params)
        return self.colour(x.flatten(2, 3), alone, rows).unflatten(2, x.shape[2:4])

    # -- time ------------------------------------------------------------------------------------

    def _in_time(self, x: Tensor, times: Tensor) -> Tensor:
        """Read each clip at other times, by a matrix: its gradient has a fixed order."""
        frames = x.shape[2]
        most = int(frames * self.shift + 0.5)
        if frames == 1 or (most == 0 and self.speed == 1):
            return x
        matrix = self.times(times.double(), frames).to(x)
        moved = torch.einsum("nts,ncsp->nctp", matrix, x.flatten(3))
        return moved.unflatten(3, x.shape[3:])

    def times(self, times: Tensor, frames: int) -> Tensor:
        """[K, T, T]: output frame t is a mean of neighbouring input frames; rows sum to one."""
        most = int(frames * self.shift + 0.5)
        shift = (times[:, 0] * (2 * most + 1)).floor() - most
        speed = self.speed ** (2 * times[:, 1] - 1)
        middle = (frames - 1) / 2
        place = torch.arange(frames, dtype=times.dtype)
        at = (place - middle) * speed[:, None] + middle + shift[:, None]
        distance = (at.clamp(0, frames - 1)[..., None] - place).abs()
        return (1 - distance).clamp_min(0)


def _as_channels(dsa: DSA, x: Tensor, draw: Draw, rows: Tensor) -> Tensor:
    """Apply ops that treat all channels alike to all frames: [n, C, T, H, W] -> the same."""
    return dsa(x.flatten(1, 2), draw, rows).unflatten(1, x.shape[1:3])


def cutmix(x: Tensor, partner: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Paste one box of `partner` [n, C, T, H, W] into all frames of `x`; see `mixing.cutmix`."""
    mixed, kept = mixing.cutmix(x.flatten(1, 2), partner.flatten(1, 2), generator)
    return mixed.unflatten(1, x.shape[1:3]), kept
