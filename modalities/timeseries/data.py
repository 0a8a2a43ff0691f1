"""Open sets of labelled series: find, split, check, measure, normalise, keep on a device.

Shape suffixes: N items of a part, C channels, T time steps, K numbers of a target.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import torch

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.labels import CLASSES, Targets
from mmdd.modalities.tables.parts import Part, Parts, make_parts
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.timeseries.arrays import (
    Moments,
    SeriesItems,
    channels_first,
    filled,
    order_of,
    require_channels,
    require_steps,
    stacked,
)
from mmdd.modalities.timeseries.forecasting import open_forecasting
from mmdd.modalities.timeseries.options import SeriesData
from mmdd.modalities.timeseries.raw import RawSeries
from mmdd.modalities.timeseries.values import Bins, Numbers, Values
from mmdd.modality import DataInfo, Splits
from mmdd.real import RealData, ResidentData

__all__ = ["open_series"]

ROLES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Aims:
    """What is to be predicted, part by part.

    Attributes
    ----------
    targets: [N] classes, or [N, K] normalised numbers.
    groups: [N] int64.
    names: of the groups.
    facts: what was applied to numbers.
    """

    targets: dict[str, torch.Tensor]
    groups: dict[str, torch.Tensor]
    names: tuple[str, ...]
    facts: dict[str, Any]


def open_series(source: Any, options: SeriesData, device: torch.device | str = "cpu") -> Splits:
    """Open a set of series for the task that the options name (classification by default).

    Parameters
    ----------
    source: what `options.source` may be, or from Python: a ``datasets`` Dataset or DatasetDict, a
        torch Dataset of (series, label), a pair (series, labels), or a dict of these by split; for
        forecasts an array [T, C]. None for `options.source`.
    device: where batches are delivered: [n, C, T] float32, or a dict with ``values`` [n, C, T] and
        ``mask`` [n, T] where series differ in length.

    Errors: UserError, one line, for anything about the source or the options that cannot be used.
    """
    if options.task == "forecasting":
        return open_forecasting(source, options, device)
    task = options.task or "classification"
    numeric = task == "regression"
    targets: Targets = Numbers() if numeric else CLASSES
    opened = open_source(source, options, RawSeries(options, targets), targets)
    parts, names, notes = make_parts(opened, options, "series", fewest=1 if numeric else 2)
    items = _series(parts, options, notes)
    moments = Moments.empty(len(items["train"][0]))
    for item in items["train"]:
        moments.add(item)
    facts: dict[str, Any] = dict(moments.facts(options.normalise == "channel"))
    steps = _steps(items, options, notes)
    inputs, masked = _inputs(items, steps, facts)
    aims = _values(parts, options) if numeric else _classes(parts, names)
    facts |= {"masked": masked} | aims.facts
    data: dict[str, RealData] = {
        role: ResidentData(
            inputs[role], aims.targets[role], aims.groups[role], len(aims.names), device=device
        )
        for role in parts
    }
    info = DataInfo(
        modality="timeseries",
        task=task,
        source=opened.name,
        shape=(len(facts["mean"]), steps),
        classes=len(aims.names),
        names=aims.names,
        fingerprint=_digest(inputs, aims, facts),
        normalisation=facts,
        columns=dict(opened.columns),
        sizes={role: len(data.get(role, ())) for role in ROLES},
        notes=tuple(notes),
    )
    return Splits(data["train"], data.get("validation"), data.get("test"), info)


def _series(
    parts: Parts[SeriesItems], options: SeriesData, notes: list[str]
) -> dict[str, list[Array]]:
    """Every part as a list of [C, T] series without gaps (but NaN that become the mean)."""
    train = parts["train"]
    shapes = train.items.shapes
    order = order_of([shapes[row] for row in train.rows], options.order, notes)
    found, filled_in = {}, 0
    usual: int | None = None
    for role, part in parts.items():
        own = [channels_first(part.items[row], order) for row in part.rows]
        where = f"split {part.split!r}"
        channels = require_channels([len(item) for item in own], where)
        usual = channels if usual is None else usual
        if channels != usual:
            raise UserError(
                f"series of {where} differ in their number of channels from training",
                got=channels,
                expected=str(usual),
            )
        require_steps([item.shape[1] for item in own], where)
        filled_in += sum(int(np.isnan(item).any()) for item in own)
        found[role] = [
            filled(item, options.missing, f"series {row} of {where}")
            for row, item in zip(part.rows, own, strict=True)
        ]
    if filled_in:
        notes.append(f"{filled_in} series with missing values were filled ({options.missing})")
    return found


def _steps(items: dict[str, list[Array]], options: SeriesData, notes: list[str]) -> int:
    """Time steps of all items, as the options and the training series say."""
    lengths = [item.shape[1] for item in items["train"]]
    every = [item.shape[1] for part in items.values() for item in part]
    shortest, longest = min(lengths), max(lengths)
    if options.length is not None:
        steps = options.length
    else:
        steps = shortest if options.ragged == "crop" else longest
    if shortest == longest and options.length is None and set(every) == {longest}:
        return steps
    told = f"series have {min(every)} to {max(every)} time steps"
    cut, padded = sum(n > steps for n in every), sum(n < steps for n in every)
    done = [f"{cut} are cut"] if cut else []
    done += [f"{padded} are padded under a mask"] if padded else []
    notes.append(f"{told}: brought to {steps}{''.join(f', {word}' for word in done)}")
    return steps


def _inputs(
    items: dict[str, list[Array]], steps: int, facts: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Normalised inputs of every part, with masks where a series is shorter than `steps`."""
    made = {role: stacked(own, steps, facts) for role, own in items.items()}
    masked = any(not mask.all() for _, mask in made.values())
    inputs: dict[str, Any] = {}
    for role, (values, mask) in made.items():
        tensor = torch.from_numpy(values)
        inputs[role] = {"values": tensor, "mask": torch.from_numpy(mask)} if masked else tensor
    return inputs, masked


def _classes(parts: Parts[SeriesItems], names: tuple[str, ...]) -> Aims:
    codes = {role: torch.from_numpy(part.codes) for role, part in parts.items()}
    return Aims(codes, codes, names, {})


def _numbers(part: Part[SeriesItems]) -> Array:
    assert isinstance(part.labels, Values), "regression reads values"
    return np.asarray(part.labels.values)[part.rows]


def _values(parts: Parts[SeriesItems], options: SeriesData) -> Aims:
    """Targets normalised by the training ones, in groups of neighbouring values."""
    train = _numbers(parts["train"])
    mean, std = train.mean(axis=0), train.std(axis=0)
    std[std <= 1e-12 * np.maximum(1, np.abs(mean))] = 1.0
    scaled = {role: (_numbers(part) - mean) / std for role, part in parts.items()}
    bins = Bins(scaled["train"], options.bins)
    groups = {role: torch.from_numpy(bins(own)) for role, own in scaled.items()}
    targets = {role: torch.from_numpy(own.astype(np.float32)) for role, own in scaled.items()}
    one = len(mean) == 1
    names = bins.names(float(mean[0]), float(std[0])) if one else bins.names(0.0, 1.0)
    facts = {"target_mean": mean.tolist(), "target_std": std.tolist()}
    return Aims(targets, groups, names, facts)


def _digest(inputs: dict[str, Any], aims: Aims, facts: dict[str, Any]) -> str:
    """Fingerprint inputs, targets, names and what was applied."""
    hasher = hashlib.sha256(repr((aims.names, facts)).encode())
    for role, own in inputs.items():
        values = own["values"] if isinstance(own, dict) else own
        hasher.update(repr((role, tuple(values.shape))).encode())
        hasher.update(values.numpy().data)
        if isinstance(own, dict):
            hasher.update(own["mask"].numpy().data)
        hasher.update(aims.targets[role].contiguous().numpy().data)
    return hasher.hexdigest()
