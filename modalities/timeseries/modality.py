"""Time series as a modality: the room's doors in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdd.modalities.timeseries import show
from mmdd.modalities.timeseries.augment import SeriesAugmentation, Strengths, names_of
from mmdd.modalities.timeseries.base import Spec
from mmdd.modalities.timeseries.data import open_series
from mmdd.modalities.timeseries.encoders import build
from mmdd.modality import Augmentation, DataInfo, Mixer, Splits
from mmdd.real import RealData
from mmdd.tasks.forecasting import naive_scores
from mmdd.trees import Tree
from mmdd.views import Views


class TimeSeries:
    """Inputs are [n, C, T] in normalised space: (value - mean) / std per channel.

    Series of several lengths are dicts of ``values`` [n, C, T] and a ``mask`` [n, T], true where
    there are values. To forecast, items are windows: inputs [n, C, L], targets [n, C, H].
    """

    name = "timeseries"
    eager = True
    shows_real = True

    def __init__(self) -> None:
        self.mixers: Mapping[str, Mixer] = {}

    def open(self, source: Any, options: Any, device: torch.device) -> Splits:
        """Open a source; see `open_series`."""
        return open_series(source, options, device)

    def encoder(self, options: Any, info: DataInfo) -> nn.Module:
        """Build the encoder that the options name, with a head for the set's task."""
        chosen = options.model_dump()
        return build(chosen.pop("encoder"), spec_of(info), **chosen)

    def example(self, info: DataInfo) -> Tree:
        """One blank item [1, C, T]; with a mask that hides nothing where there is one."""
        blank = torch.zeros(1, *info.shape)
        if not info.normalisation["masked"]:
            return blank
        return {"values": blank, "mask": torch.ones(1, info.shape[1], dtype=torch.bool)}

    def blank_targets(self, info: DataInfo) -> Tensor:
        """Targets of one blank item: [1, K] values, or [1, C, H] what follows a window."""
        return torch.zeros(1, *spec_of(info).outputs)

    def augmentation(self, options: Any, info: DataInfo) -> Augmentation | None:
        """DSA, several views of every item, or None."""
        if options.kind == "none":
            return None
        chosen = options.model_dump(exclude={"kind", "strategy", "mode"})
        names = names_of(options.strategy, info.task == "forecasting")
        shape = (info.shape[0], info.shape[1])
        strengths = Strengths(**chosen)
        if options.mode == "views" and len(names) > 1:
            return Views([SeriesAugmentation((n,), shape, strengths=strengths) for n in names])
        return SeriesAugmentation(names, shape, mode=options.mode, strengths=strengths)

    def noise(self, count: int, info: DataInfo, generator: torch.Generator) -> Tree:
        """[count, C, T] standard normal numbers, of the whole length."""
        values = torch.randn(count, *info.shape, generator=generator)
        if not info.normalisation["masked"]:
            return values
        return {"values": values, "mask": torch.ones(count, info.shape[1], dtype=torch.bool)}

    def bounds(self, info: DataInfo) -> tuple[Tree, Tree]:
        """Lowest and highest training value of every channel, [C, 1] each, normalised."""
        facts = info.normalisation
        mean, std = (torch.tensor(facts[name])[:, None] for name in ("mean", "std"))
        low, high = ((torch.tensor(facts[name])[:, None] - mean) / std for name in ("low", "high"))
        if facts["masked"]:
            return {"values": low}, {"values": high}
        return low, high

    def naive(self, test: RealData, info: DataInfo) -> dict[str, dict[str, float]]:
        """Scores of forecasts that need no training; none for other tasks."""
        if info.task != "forecasting":
            return {}
        return naive_scores(test, info.normalisation["season"])

    def to_columns(
        self, inputs: Tree, targets: Tensor, info: DataInfo
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """Lists of numbers and labels, or the rows of a series to forecast from."""
        return show.to_columns(inputs, targets, info)

    def picture(
        self,
        inputs: Tree,
        targets: Tensor,
        info: DataInfo,
        path: Path,
        real: tuple[Tree, Tensor] | None = None,
    ) -> None:
        """Series class by class, or the series to forecast from with its first window."""
        show.picture(inputs, targets, info, path, real)


def spec_of(info: DataInfo) -> Spec:
    """What an encoder has to read and to say."""
    facts, (channels, steps) = info.normalisation, info.shape
    outputs: tuple[int, ...] = (info.classes,)
    if info.task == "regression":
        outputs = (len(facts["target_mean"]),)
    elif info.task == "forecasting":
        outputs = (channels, facts["horizon"])
    return Spec(channels, steps, outputs, facts["masked"])


TIMESERIES = TimeSeries()
