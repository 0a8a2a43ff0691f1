"""One picture of a whole set: spectrograms or waveforms, a row per class, in seconds and hertz.

Shape suffixes: M synthetic items, B mel bands, F frames, T samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdd.card_header import public_name
from mmdd.files import write_atomic
from mmdd.modalities.audio.space import in_units, spectrum_of
from mmdd.modalities.audio.spectra import LogMel
from mmdd.modalities.tables.shown import class_numbers
from mmdd.modality import DataInfo
from mmdd.trees import Tree, tree_take

MOST_CLASSES, MOST_COLUMNS = 20, 10
WIDE, HIGH = 1.7, 1.05
"""Inches of one spectrogram."""
LEFT, TOP, BOTTOM, RIGHT = 1.6, 0.85, 0.5, 0.2
TICKS = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)
INK, GREY = "#1a1a1a", "#6b6b6b"


def picture(inputs: Tree, targets: Tensor, info: DataInfo, path: str | Path) -> None:
    """Draw the items into a PNG, one row per class, all on the same scale of loudness.

    Parameters
    ----------
    inputs: of M items, normalised.
    targets: [M] class numbers, or [M, K] soft labels, whose largest class counts.
    path: the file to write; at most 20 classes of 10 items are drawn, and it says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    numbers = class_numbers(targets)
    sizes = torch.bincount(numbers, minlength=len(info.names))
    present = torch.nonzero(sizes).flatten().tolist()
    shown = present[:MOST_CLASSES]
    columns = min(MOST_COLUMNS, int(sizes[shown].max()))
    width = max(LEFT + columns * WIDE + RIGHT, 6.5)
    height = TOP + len(shown) * HIGH + BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    _headings(figure, (width, height), sizes, len(present), info)
    whole = in_units(inputs, info)[:, 0]
    limits = (float(whole.min()), float(whole.max()))
    for row, number in enumerate(shown):
        chosen = torch.nonzero(numbers == number).flatten()[:columns]
        for column, item in enumerate(tree_take(whole, chosen)):
            corner = (
                (LEFT + column * WIDE) / width,
                1 - (TOP + (row + 1) * HIGH) / height,
                (WIDE - 0.08) / width,
                (HIGH - 0.12) / height,
            )
            axes = figure.add_axes(corner)
            _draw(axes, item, info, limits)
            _label(axes, column, row == len(shown) - 1, _fitted(info.names[number]))
    write_atomic(path, lambda place: figure.savefig(place, format="png", dpi=100))


def _headings(
    figure: Any, size: tuple[float, float], sizes: Tensor, classes: int, info: DataInfo
) -> None:
    """Title, and the facts of what is shown."""
    width, height = size
    facts = info.normalisation
    counts = sizes[sizes > 0]
    low, high = int(counts.min()), int(counts.max())
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    kind = "log-mel spectra" if facts["space"] == "log-mel" else "waveforms"
    items, ones = int(sizes.sum()), "clip" if int(sizes.sum()) == 1 else "clips"
    text = (
        f"{items:,} {ones} of {facts['samples'] / facts['rate']:.3g} s at {facts['rate']:,} Hz, as "
        f"{kind}; {classes:,} classes, {each} per class"
    )
    left_out = []
    if classes > MOST_CLASSES:
        left_out.append(f"the first {MOST_CLASSES} classes")
    if high > MOST_COLUMNS:
        left_out.append(f"the first {MOST_COLUMNS} clips of each")
    text += f"; shown: {', '.join(left_out)}" if left_out else ""
    title = _escaped(f"Synthetic set distilled from {public_name(info.source)}")
    figure.text(0.2 / width, 1 - 0.25 / height, title, size=12, weight="bold", color=INK, va="top")
    figure.text(0.2 / width, 1 - 0.52 / height, text, size=8.5, color=GREY, va="top")


def _draw(axes: Any, item: Tensor, info: DataInfo, limits: tuple[float, float]) -> None:
    facts = info.normalisation
    seconds = facts["samples"] / facts["rate"]
    spectrum = spectrum_of(info)
    if spectrum is None:
        times = torch.linspace(0, seconds, item.shape[-1])
        axes.plot(times.numpy(), item.numpy(), linewidth=0.4, color="#1f5fa8")
        most = max(abs(limit) for limit in limits) or 1.0
        axes.set(xlim=(0, seconds), ylim=(-most, most))
        axes.set_yticks([])
        return
    axes.imshow(
        item.numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=limits[0],
        vmax=limits[1],
        extent=(0, seconds, 0, spectrum.mels),
        interpolation="nearest",
    )
    places, names = band_ticks(spectrum)
    axes.set_yticks(places, names)


def band_ticks(spectrum: LogMel) -> tuple[list[float], list[str]]:
    """Places on an axis of B bands, and the frequencies that stand there, up to four."""
    import numpy as np

    centres = spectrum.centres.numpy()
    hertz = [tick for tick in TICKS if centres[0] <= tick <= centres[-1]][-4:]
    places = np.interp(hertz, centres, np.arange(len(centres)) + 0.5)
    return places.tolist(), [
        f"{tick // 1000} kHz" if tick >= 1000 else f"{tick} Hz" for tick in hertz
    ]


def _label(axes: Any, column: int, lowest: bool, name: str) -> None:
    """Class names on the left, hertz beside the first column, seconds under the last row."""
    axes.tick_params(labelsize=6, length=2, pad=1, colors=GREY)
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, color=GREY)
    if column > 0:
        axes.set_yticklabels([])
    else:
        axes.annotate(
            name,
            (0, 0.5),
            xytext=(-34, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="center",
            size=9,
            color=INK,
        )
    if lowest:
        axes.set_xlabel("s", size=7, labelpad=0, color=GREY)
    else:
        axes.set_xticklabels([])


def _fitted(name: str, most: int = 16) -> str:
    """`name` on one line, its end replaced by an ellipsis where it is long."""
    line = " ".join(name.split())
    return _escaped(line if len(line) <= most else f"{line[: most - 1]}…")


def _escaped(text: str) -> str:
    """Dollars would start a formula."""
    return text.replace("$", r"\$")
