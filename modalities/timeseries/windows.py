"""Windows of one long series, real and synthetic: what is given, and what follows it.

Shape suffixes: T time steps of a series, C channels, L steps given, H to forecast, n windows.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.real import RealData
from mmdd.representations import Representation, clamped
from mmdd.trees import Tree


class WindowData(RealData):
    """Windows of a series: inputs [n, C, L] and targets [n, C, H], cut when they are read.

    Parameters
    ----------
    series: [C, T] normalised values.
    starts: [n] int64 first step of every window.
    """

    def __init__(
        self,
        series: Tensor,
        starts: Tensor,
        input_length: int,
        horizon: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(None, torch.zeros(len(starts), dtype=torch.int64), 1, device)
        self.series, self.starts = series.to(self.device), starts.to(self.device)
        self.input_length, self.horizon = input_length, horizon

    def _cut(self, index: Tensor, first: int, steps: int) -> Tensor:
        """Steps `first` to `first + steps` of the windows `index`: [n, C, steps]."""
        starts = self.starts[index.to(self.device)] + first
        places = starts[:, None] + torch.arange(steps, device=self.device)
        return self.series[:, places].transpose(0, 1)

    def read(self, index: Tensor) -> Tensor:
        """What is given, [n, C, L]."""
        return self._cut(index, 0, self.input_length)

    def select(self, index: Tensor) -> Batch:
        """Windows with what follows them."""
        targets = self._cut(index, self.input_length, self.horizon)
        return Batch(self.read(index), targets, self.groups[index.cpu()].to(self.device))

    def subset(self, index: Tensor) -> WindowData:
        """The chosen windows of the same series."""
        starts = self.starts[index.to(self.device)]
        return WindowData(self.series, starts, self.input_length, self.horizon, device=self.device)

    def stretch(self, steps: int, generator: torch.Generator) -> Tensor:
        """[T, C] `steps` consecutive steps at a random place."""
        room = self.series.shape[1] - steps
        if room < 0:
            raise UserError(
                "the training series is shorter than the synthetic one",
                got=steps,
                expected=f"at most {self.series.shape[1]} time steps",
            )
        start = int(torch.randint(room + 1, (), generator=generator))
        return self.series[:, start : start + steps].T.clone()

    def aggregate(self, counts: Tensor, generator: torch.Generator) -> Batch:
        """As many windows, one after another from a random place: a slice of the series.

        It stores as little as a synthetic series of that many windows does, where windows chosen
        one by one share no step.
        """
        count = int(counts.sum())
        start = int(torch.randint(len(self) - count + 1, (), generator=generator))
        return self.select(torch.arange(start, start + count))


def window_count(steps: int, span: int, stride: int) -> int:
    """Windows of `span` steps in a series, `stride` steps apart."""
    return 0 if steps < span else (steps - span) // stride + 1


class Series(Representation):
    """One continuous series; inputs and horizons are windows of it, views of the same leaf.

    Ding et al. 2024 (CondTSF). The leaf ``inputs`` is [T, C]: the series, or with `space`
    ``frequency`` its coefficients, in rising order of frequency: the mean, then cosine and sine of
    one period in T, of two, and so on. They are those of the real Fourier transform, scaled to an
    orthonormal basis, so that rates mean the same in both spaces. `keep` < 1 stores the first of
    them only: a smooth series in fewer bytes.

    The budget ``synthetic.items`` counts time steps. Steps at the end that no window reaches are
    not stored.

    Parameters
    ----------
    values: the stored tensor [K, C], K being `keep` x T.
    steps: T.
    input_length, horizon, stride: of the windows.
    bounds: lowest and highest value, [C] each.
    """

    continuous = True
    inputs: nn.Parameter
    low: Tensor
    high: Tensor

    def __init__(
        self,
        values: Tensor,
        steps: int,
        input_length: int,
        horizon: int,
        *,
        stride: int = 1,
        space: str = "time",
        keep: float = 1.0,
        bounds: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        expected = kept(steps, keep) if space == "frequency" else steps
        if len(values) != expected:
            raise UserError(
                "the stored series does not fit the options",
                got=f"{len(values)} rows",
                expected=f"{expected} for {steps} time steps",
            )
        self.inputs = nn.Parameter(values.detach().clone())
        self.steps, self.stride, self.space = steps, stride, space
        self.input_length, self.span = input_length, input_length + horizon
        self.bounded = bounds is not None
        if bounds is not None:
            self.register_buffer("low", bounds[0], persistent=False)
            self.register_buffer("high", bounds[1], persistent=False)
        self.register_buffer("length", torch.tensor(steps), persistent=True)

    @classmethod
    def stored(cls, counts: Tensor, example: Tree, **options: Any) -> Tensor:
        """[1] windows in a series of ``counts[0]`` steps; UserError where not one fits."""
        given, follows = lengths_of(example)
        span = given + follows
        steps = int(counts.sum())
        made = window_count(steps, span, options.get("stride", 1))
        if not made:
            raise UserError(
                "a synthetic series this short holds no window",
                got=f"{steps} time steps (synthetic.items)",
                expected=f"at least {span}: {given} that are given and {follows} to forecast",
            )
        return torch.tensor([made])

    @classmethod
    def of_series(
        cls,
        series: Tensor,
        *,
        example: Tree,
        bounds: tuple[Tree, Tree] | None = None,
        stride: int = 1,
        space: str = "time",
        keep: float = 1.0,
        **options: Any,
    ) -> Self:
        """Start from a slice [T, C]."""
        given, follows = lengths_of(example)
        span = given + follows
        count = window_count(len(series), span, stride)
        series = series[: span + (count - 1) * stride]
        values = series
        if space == "frequency":
            values = to_frequencies(series)[: kept(len(series), keep)]
        box = of_channels(bounds)
        made = (values, len(series), given, follows)
        return cls(*made, stride=stride, space=space, keep=keep, bounds=box)

    @classmethod
    def of_state(
        cls,
        tensors: dict[str, Tensor],
        *,
        example: Tree,
        bounds: tuple[Tree, Tree] | None = None,
        stride: int = 1,
        space: str = "time",
        keep: float = 1.0,
        **options: Any,
    ) -> Self:
        """Rebuild from the entries of a `state_dict`."""
        if set(tensors) != {"inputs", "length"}:
            raise UserError(
                "the stored tensors are no synthetic series",
                got=", ".join(sorted(tensors)),
                expected="inputs, length",
            )
        steps = int(tensors["length"])
        made = (tensors["inputs"], steps, *lengths_of(example))
        box = of_channels(bounds)
        return cls(*made, stride=stride, space=space, keep=keep, bounds=box)

    def series(self) -> Tensor:
        """[T, C] the series as it is."""
        if self.space == "time":
            return self.inputs
        return from_frequencies(self.inputs, self.steps)

    def decode(self, index: Tensor | None) -> dict[str, Tensor]:
        """Inputs [n, C, L] and targets [n, C, H] of the windows `index`."""
        windows = self.series().unfold(0, self.span, self.stride)
        windows = windows if index is None else windows[index]
        return {
            "inputs": windows[..., : self.input_length],
            "targets": windows[..., self.input_length :],
        }

    @torch.no_grad()
    def constrain_(self) -> None:
        """Bring the series into its bounds, as near as the stored coefficients can."""
        if not self.bounded:
            return
        series = self.series()
        inside = clamped(series, self.low, self.high)
        if self.space == "time":
            self.inputs.copy_(inside)
        elif bool((inside != series).any()):
            self.inputs.copy_(to_frequencies(inside)[: len(self.inputs)])


def kept(steps: int, share: float) -> int:
    """Coefficients that `share` keeps of a series of `steps`: at least one."""
    return max(1, round(share * steps))


def lengths_of(example: Tree) -> tuple[int, int]:
    """(L, H) of one blank window; UserError where an item is none."""
    if not (isinstance(example, dict) and set(example) == {"inputs", "targets"}):
        raise UserError(
            "representation series makes windows to forecast from",
            expected="task=forecasting",
            hint="Choose synthetic.representation=direct for items of their own.",
        )
    return example["inputs"].shape[-1], example["targets"].shape[-1]


def of_channels(bounds: tuple[Tree, Tree] | None) -> tuple[Tensor, Tensor] | None:
    """Bounds [C, 1] of a window's inputs as [C], for a row of the series."""
    if bounds is None:
        return None
    low, high = (side["inputs"].flatten() for side in bounds)
    return low, high


def to_frequencies(series: Tensor) -> Tensor:
    """[T, C] -> [T, C] orthonormal coefficients, the lowest frequency first."""
    steps = len(series)
    found = torch.view_as_real(torch.fft.rfft(series, dim=0, norm="ortho"))
    pairs = found.movedim(-1, 1).flatten(0, 1)  # mean, 0, cosine and sine of one period, ...
    kept = torch.cat([pairs[:1], pairs[2 : steps + 1]])
    return kept * _scales(steps).to(kept)[:, None]


def from_frequencies(values: Tensor, steps: int) -> Tensor:
    """The inverse; missing high frequencies are zero: [K, C] -> [T, C]."""
    scaled = values / _scales(steps)[: len(values)].to(values)[:, None]
    length = 2 * (steps // 2 + 1)
    zeros = scaled.new_zeros(length - 1 - len(scaled), scaled.shape[1])
    pairs = torch.cat([scaled[:1], torch.zeros_like(scaled[:1]), scaled[1:], zeros])
    whole = torch.view_as_complex(pairs.unflatten(0, (-1, 2)).movedim(1, -1).contiguous())
    return torch.fft.irfft(whole, n=steps, dim=0, norm="ortho")


def _scales(steps: int) -> Tensor:
    """[T] float64: sqrt 2 but for the mean, and the highest frequency of an even length."""
    found = torch.full((steps,), math.sqrt(2), dtype=torch.float64)
    found[0] = 1.0
    if steps % 2 == 0:
        found[-1] = 1.0
    return found
