"""Series for people: columns in the units of the data, and pictures.

Shape suffixes: M synthetic items, C channels, T time steps, L given, H forecast, K numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdd.card_header import public_name
from mmdd.files import write_atomic
from mmdd.modalities.tables.shown import add_labels, class_numbers
from mmdd.modalities.timeseries.base import Mask, taken_apart
from mmdd.modality import DataInfo
from mmdd.trees import Tree

MOST_CLASSES, MOST_CHANNELS, MOST_SERIES = 12, 4, 10
COLOURS = ("#1f5f8b", "#c8553d", "#588157", "#8e6c8a", "#bc6c25", "#3d405b")


def denormalised(values: Tensor, info: DataInfo) -> Tensor:
    """[..., C, T] normalised -> float32 on the CPU in the units of the source."""
    facts = info.normalisation
    mean, std = (torch.tensor(facts[name]).double()[:, None] for name in ("mean", "std"))
    return (values.detach().cpu().double() * std + mean).float()


def joined(inputs: Tensor, targets: Tensor) -> Tensor | None:
    """The series [C, T] that windows [M, C, L] and [M, C, H] were cut from, at one stride.

    None where they are no windows of one series.
    """
    whole = torch.cat([inputs, targets], dim=-1)
    if len(whole) == 1:
        return whole[0]
    span = whole.shape[-1]
    for stride in range(1, span):
        if torch.equal(whole[:-1, :, stride:], whole[1:, :, : span - stride]):
            rest = whole[1:, :, span - stride :].transpose(0, 1).flatten(1)
            return torch.cat([whole[0], rest], dim=1)
    return None


def to_columns(
    inputs: Tree, targets: Tensor, info: DataInfo
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Columns and ``datasets`` features that a user reads without this package.

    Classes and values: ``values``, a list of T lists of C numbers (of T numbers for one channel),
    and ``label``; soft labels also stand in ``soft_label``. Forecasts: one row for every time step,
    ``step`` and a column for each channel; windows that are of no one series have a ``window``
    number besides. All in the units of the source.
    """
    if info.task == "forecasting":
        return _rows(inputs, targets, info)
    from datasets import List, Value

    values, mask = taken_apart(inputs)
    series = [_listed(*item) for item in zip(denormalised(values, info), _masks(values, mask))]  # noqa: B905
    number = Value("float32")
    columns: dict[str, list[Any]] = {"values": series}
    features: dict[str, Any] = {"values": List(number if values.shape[1] == 1 else List(number))}
    if info.task == "regression":
        columns["label"], features["label"] = _targets(targets, info)
        return columns, features
    add_labels(columns, features, targets, info)
    return columns, features


def _masks(values: Tensor, mask: Mask) -> Iterable[Mask]:
    return [None] * len(values) if mask is None else mask.cpu()


def _listed(item: Tensor, mask: Mask) -> list[Any]:
    """[C, T] as T numbers, or T lists of C, without what is hidden."""
    shown = item if mask is None else item[:, mask]
    return (shown[0] if len(item) == 1 else shown.T).tolist()


def _targets(targets: Tensor, info: DataInfo) -> tuple[list[Any], Any]:
    from datasets import List, Value

    facts = info.normalisation
    mean, std = (torch.tensor(facts[f"target_{name}"]) for name in ("mean", "std"))
    numbers = targets.detach().cpu() * std + mean
    if numbers.shape[1] == 1:
        return numbers[:, 0].tolist(), Value("float32")
    return numbers.tolist(), List(Value("float32"))


def _rows(
    inputs: Tensor, targets: Tensor, info: DataInfo
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    from datasets import Value

    series = joined(inputs.detach().cpu(), targets.detach().cpu())
    whole = torch.cat([inputs, targets], dim=-1) if series is None else series[None]
    numbers = denormalised(whole, info)
    count, _, steps = numbers.shape
    columns: dict[str, list[Any]] = {"step": list(range(steps)) * count}
    features: dict[str, Any] = {"step": Value("int64")}
    if series is None:
        columns["window"] = [window for window in range(count) for _ in range(steps)]
        features["window"] = Value("int64")
    for place, name in enumerate(info.normalisation["channels"]):
        own = f"channel_{name}" if name in columns or name.isdigit() else name
        columns[own] = numbers[:, place].flatten().tolist()
        features[own] = Value("float32")
    return columns, features


# -- pictures --------------------------------------------------------------------------------------


def picture(
    inputs: Tree,
    targets: Tensor,
    info: DataInfo,
    path: str | Path,
    real: tuple[Tree, Tensor] | None = None,
) -> None:
    """Draw the set into a PNG: a row of panels per class, or the series to forecast from.

    Parameters
    ----------
    real: inputs and classes of real items, whose mean and deviation are drawn behind.
    """
    from matplotlib.figure import Figure

    if info.task == "forecasting":
        figure = _forecast_figure(inputs, targets, info, Figure)
    else:
        figure = _class_figure(inputs, targets, info, Figure, real)
    write_atomic(path, lambda place: figure.savefig(place, format="png", dpi=80))


def _class_figure(
    inputs: Tree, targets: Tensor, info: DataInfo, make: Any, real: tuple[Tree, Tensor] | None
) -> Any:
    values, mask = taken_apart(inputs)
    series = denormalised(values, info)
    groups = _groups_of(targets, info)
    present = torch.unique(groups).tolist()
    shown = present[:MOST_CLASSES]
    channels = min(series.shape[1], MOST_CHANNELS)
    size = (3.2 * channels + 1.5, 1.7 * len(shown) + 0.9)
    figure = make(figsize=size, layout="constrained")
    panels = figure.subplots(len(shown), channels, squeeze=False, sharex=True)
    for row, group in zip(panels, shown, strict=True):
        members = torch.nonzero(groups == group).flatten()[:MOST_SERIES]
        for channel, panel in enumerate(row):
            if real is not None:
                _band(panel, real, group, channel, info)
            for colour, place in enumerate(members.tolist()):
                line = series[place, channel]
                line = line if mask is None else line[mask[place].cpu()]
                panel.plot(line.numpy(), color=COLOURS[colour % len(COLOURS)], linewidth=1)
            panel.tick_params(labelsize=7)
        row[0].set_ylabel(_short(info.names[group]), fontsize=9)
    for channel, panel in enumerate(panels[0]):
        panel.set_title(f"channel {channel}", fontsize=9) if channels > 1 else None
    left = (
        [f"{len(present) - len(shown)} more groups not drawn"] if len(present) > len(shown) else []
    )
    if series.shape[1] > channels:
        left.append(f"{series.shape[1] - channels} more channels not drawn")
    figure.suptitle(_title(info, f"{len(series)} series", left), fontsize=10)
    if real is not None:
        figure.supxlabel("time step; grey: mean and deviation of real series", fontsize=8)
    return figure


def _groups_of(targets: Tensor, info: DataInfo) -> Tensor:
    """Class of every item; with values to predict all items stand together."""
    if info.task == "regression":
        return torch.zeros(len(targets), dtype=torch.int64)
    return class_numbers(targets)


def _band(panel: Any, real: tuple[Tree, Tensor], group: int, channel: int, info: DataInfo) -> None:
    """Mean ± deviation of the real series of a class; hidden positions do not count."""
    values, mask = taken_apart(real[0])
    own = torch.nonzero(real[1].cpu() == group).flatten()
    if not len(own):
        return
    numbers = denormalised(values[own], info)[:, channel]
    shown = torch.ones_like(numbers) if mask is None else mask[own].cpu().float()
    count = shown.sum(dim=0)
    mean = (numbers * shown).sum(dim=0) / count.clamp_min(1)
    spread = (((numbers - mean).square() * shown).sum(dim=0) / count.clamp_min(1)).sqrt()
    time = torch.arange(len(mean))[count > 0].numpy()
    mean, spread = mean[count > 0], spread[count > 0]
    low, high = (mean - spread).numpy(), (mean + spread).numpy()
    panel.fill_between(time, low, high, color="#d8d8d8", linewidth=0)
    panel.plot(time, mean.numpy(), color="#8a8a8a", linewidth=1, linestyle="--")


def _forecast_figure(inputs: Tensor, targets: Tensor, info: DataInfo, make: Any) -> Any:
    series = joined(inputs.detach().cpu(), targets.detach().cpu())
    windows = torch.cat([inputs, targets], dim=-1)
    whole = denormalised(windows[0] if series is None else series, info)
    given, names = inputs.shape[-1], info.normalisation["channels"]
    channels = min(len(whole), MOST_CHANNELS)
    figure = make(figsize=(9, 1.5 * channels + 0.9), layout="constrained")
    panels = figure.subplots(channels, 1, squeeze=False, sharex=True)[:, 0]
    span = windows.shape[-1]
    for place, panel in enumerate(panels):
        panel.axvspan(0, given - 1, color="#eef2f5", linewidth=0)
        panel.axvspan(given - 1, span - 1, color="#f7e6df", linewidth=0)
        panel.plot(whole[place].numpy(), color=COLOURS[0], linewidth=1)
        panel.set_ylabel(_short(str(names[place])), fontsize=9)
        panel.tick_params(labelsize=7)
    panels[-1].set_xlabel("time step; shaded: the first window, given and to forecast", fontsize=8)
    what = f"{len(windows)} windows" + ("" if series is None else f" of {whole.shape[1]} steps")
    left = [f"{len(whole) - channels} more channels not drawn"] if len(whole) > channels else []
    if series is None:
        left.append("the first window is drawn")
    figure.suptitle(_title(info, what, left), fontsize=10)
    return figure


def _title(info: DataInfo, what: str, left: list[str]) -> str:
    more = f" ({', '.join(left)})" if left else ""
    return _plain(f"Synthetic set distilled from {public_name(info.source)}: {what}{more}")


def _short(name: str) -> str:
    return _plain(name if len(name) <= 18 else f"{name[:16]}…")


def _plain(text: str) -> str:
    """Text in which a dollar sign begins no formula."""
    return text.replace("$", r"\$")
