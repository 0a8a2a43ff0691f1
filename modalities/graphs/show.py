"""A picture of a condensed set: its graph, and its nodes in the plane of their features.

Shape suffixes: n nodes, M stored graphs, d features, E pairs of nodes with an edge.
"""

from __future__ import annotations

import dataclasses
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmdd.basis import principal
from mmdd.card_header import public_name
from mmdd.files import write_atomic
from mmdd.modalities.graphs.layout import layout
from mmdd.modalities.tables.shown import class_numbers, counted, per_class
from mmdd.modality import DataInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRONG = 0.5
"""Weight above which an edge is drawn."""
EDGES_PER_NODE = 3
"""Of more edges the strongest are drawn, of denser graphs nothing could be seen."""
MOST_NODES, MOST_REAL, MOST_CLASSES, MOST_COLUMNS = 500, 3000, 20, 10

INK, GREY, LINE = "#1a1a1a", "#6b6b6b", "#b5b5b5"
PANEL, LEGEND, MARGIN, CELL, LABEL = 5.2, 2.5, 0.3, 1.15, 2.1
"""Inches: a panel's side, the legend's width, the margin, a small graph, the name of a row."""
ROW = 0.185
"""Inches between lines of text."""
TITLE, TEXT, DPI = 13.0, 9.0, 110
"""Sizes of letters in points, and pixels per inch."""


@dataclasses.dataclass(frozen=True)
class _Page:
    """What stands above the drawing, and the colours of the classes."""

    title: str
    notes: list[str]
    names: tuple[str, ...]
    colours: np.ndarray


def picture(
    inputs: Mapping[str, Tensor],
    targets: Tensor,
    info: DataInfo,
    path: str | Path,
    *,
    real: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Draw a condensed graph, or condensed graphs, into a PNG.

    Nodes of one graph are drawn twice: where their edges put them (edges of weight above one half;
    of many, the strongest), and in the plane of the two largest principal components of their
    features. Sets without edges have the second panel alone. Whole graphs stand in a row per
    class. What is left out is said.

    Parameters
    ----------
    inputs: {"x": [n, d]}, with "adjacency" [n, n] or without; or {"x": [M, n, d], "adjacency":
        [M, n, n], "mask": [M, n]}.
    targets: class numbers, or soft labels, whose largest class counts.
    real: features [N, d] and class numbers [N] of real nodes, in the space of the synthetic ones:
        they define the plane and stand behind.
    """
    import matplotlib

    own = {name: leaf.detach().cpu() for name, leaf in inputs.items()}
    numbers = class_numbers(targets)
    plain: Any = {"text.parse_math": False, "font.size": TEXT, "text.color": INK}
    with matplotlib.rc_context(plain), warnings.catch_warnings():
        # no font has the signs of all languages: an empty box says enough
        warnings.filterwarnings("ignore", message="Glyph")
        if own["x"].ndim == 2:
            figure = _nodes(own, numbers, info, real)
        else:
            figure = _graphs(own, numbers, info)
        write_atomic(path, lambda place: figure.savefig(place, format="png", dpi=DPI))


# -- the nodes of one graph ------------------------------------------------------------------------


def _nodes(
    inputs: Mapping[str, Tensor],
    numbers: Tensor,
    info: DataInfo,
    real: tuple[Tensor, Tensor] | None,
) -> Figure:
    x = inputs["x"].float()
    kept = _spread(len(x), MOST_NODES)
    facts = [f"{counted(len(x), 'node')} of {counted(x.shape[1], 'feature')}", _shares(numbers)]
    edges = None
    if "adjacency" in inputs:
        edges, said = _drawn_edges(inputs["adjacency"], kept)
        facts += said
    else:
        facts.append("no edges: every node stands alone")
    notes = ["; ".join(facts)]
    if len(kept) < len(x):
        notes.append(f"Shown: {len(kept)} of the nodes, evenly chosen, and their edges")
    page = _page(info, notes)
    panels = 1 if edges is None else 2
    figure, bottom = _figure(page, panels * (PANEL + MARGIN) + LEGEND, PANEL + 0.55)
    if edges is not None:
        axes = _panel(figure, MARGIN, bottom, "The graph")
        colours = page.colours[numbers[kept].numpy()]
        _draw_graph(axes, layout(len(kept), edges), edges, colours, size=34)
    left = MARGIN + (panels - 1) * (PANEL + MARGIN)
    axes = _panel(figure, left, bottom, "The plane of the features")
    _draw_plane(axes, x[kept], numbers[kept], page, real)
    shown = sorted({*numbers.tolist(), *([] if real is None else real[1].tolist())})
    _legend(figure, page, shown, real is not None)
    return figure


def _drawn_edges(adjacency: Tensor, kept: Tensor) -> tuple[np.ndarray, list[str]]:
    """Return the pairs [E, 2] of places in `kept` that are drawn, and what to say of all edges."""
    upper = torch.maximum(adjacency, adjacency.T).float().triu(1)
    said = [f"{counted(int((upper > STRONG).sum()), 'edge')} of weight above {STRONG}"]
    upper = upper[kept][:, kept]
    strong, some = int((upper > STRONG).sum()), int((upper > 0).sum())
    count = min(strong, EDGES_PER_NODE * len(kept)) if strong else min(some, len(kept))
    if count != strong:
        said.append(f"the {count} strongest are drawn")
    order = upper.flatten().argsort(descending=True, stable=True)[:count]
    return torch.stack([order // len(kept), order % len(kept)], dim=1).numpy(), said


def _draw_plane(
    axes: Axes,
    x: Tensor,
    numbers: Tensor,
    page: _Page,
    real: tuple[Tensor, Tensor] | None,
) -> None:
    basis = x if real is None else real[0].detach().cpu().float()
    centre, plane, shares = principal_plane(basis)
    if real is not None:
        some = _spread(len(basis), MOST_REAL)
        places = ((basis[some] - centre) @ plane.T).numpy()
        colours = page.colours[real[1].cpu()[some].numpy()]
        axes.scatter(
            places[:, 0], places[:, 1], s=7, c=colours, alpha=0.45, linewidths=0, rasterized=True
        )
    places = ((x - centre) @ plane.T).numpy()
    colours = page.colours[numbers.numpy()]
    axes.scatter(
        places[:, 0], places[:, 1], s=38, c=colours, edgecolors=INK, linewidths=0.7, zorder=3
    )
    names = [
        f"principal component {number} ({share:.0%} of the variance)"
        for number, share in enumerate(shares, start=1)
    ]
    axes.set_xlabel(names[0], color=GREY)
    axes.set_ylabel(names[1], color=GREY)
    axes.margins(0.06)


def principal_plane(x: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """Mean [d], the two directions [2, d] of largest variance of [n, d], their shares of it.

    Directions point to where their entry of largest modulus is positive. Of a single feature the
    second direction is zero.
    """
    centre = x.mean(dim=0)
    spread = x - centre
    plane = torch.zeros(2, x.shape[1])
    found = principal(spread, min(2, x.shape[1]))
    largest = found.abs().argmax(dim=1, keepdim=True)
    plane[: len(found)] = found * found.gather(1, largest).sign()
    total = spread.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    return centre, plane, ((spread @ plane.T).square().sum(dim=0) / total).tolist()


# -- whole graphs ----------------------------------------------------------------------------------


def _graphs(inputs: Mapping[str, Tensor], numbers: Tensor, info: DataInfo) -> Figure:
    present = torch.unique(numbers).tolist()
    rows = [torch.nonzero(numbers == number).flatten() for number in present[:MOST_CLASSES]]
    page = _page(info, _graph_notes(inputs["mask"], numbers, len(present), rows))
    columns = max(min(len(row), MOST_COLUMNS) for row in rows)
    wide = max(LABEL + columns * CELL + 2 * MARGIN, 6.5)
    figure, bottom = _figure(page, wide, len(rows) * CELL + MARGIN)
    for place, (number, row) in enumerate(zip(present, rows, strict=False)):
        low = bottom + (len(rows) - 1 - place) * CELL
        middle = (low + CELL / 2) / figure.get_figheight()
        end = (MARGIN + LABEL - 0.15) / figure.get_figwidth()
        name = f"{_fitted(page.names[number], LABEL - 0.2)}\n{counted(len(row), 'graph')}"
        figure.text(end, middle, name, ha="right", va="center", linespacing=1.4)
        for column, graph in enumerate(row[:MOST_COLUMNS].tolist()):
            box = (MARGIN + LABEL + column * CELL, low, CELL, CELL)
            _small_graph(_axes(figure, *box), inputs, graph, page.colours[number])
    return figure


def _small_graph(axes: Axes, inputs: Mapping[str, Tensor], graph: int, colour: np.ndarray) -> None:
    keep = inputs["mask"][graph]
    adjacency = inputs["adjacency"][graph][keep][:, keep]
    edges, _ = _drawn_edges(adjacency, torch.arange(len(adjacency)))
    axes.axis("off")
    size = float(np.clip(220 / max(1, len(adjacency)), 3, 22))
    colours = np.repeat(colour[None], len(adjacency), axis=0)
    _draw_graph(axes, layout(len(adjacency), edges), edges, colours, size=size)
    axes.margins(0.18)


def _graph_notes(mask: Tensor, numbers: Tensor, classes: int, rows: Sequence[Tensor]) -> list[str]:
    sizes = mask.sum(dim=1)
    low, high = int(sizes.min()), int(sizes.max())
    each = f"{low}" if low == high else f"{low} to {high}"
    notes = [
        f"{counted(len(mask), 'graph')} of {each} nodes; {_shares(numbers)}; edges of weight "
        f"above {STRONG}, at most {EDGES_PER_NODE} times as many as nodes"
    ]
    if classes > MOST_CLASSES:
        notes.append(f"Shown: the first {MOST_CLASSES} of {classes} classes")
    if max(len(row) for row in rows) > MOST_COLUMNS:
        notes.append(f"Shown: the first {MOST_COLUMNS} graphs of each class")
    return notes


# -- the page --------------------------------------------------------------------------------------


def _draw_graph(
    axes: Axes, places: np.ndarray, edges: np.ndarray, colours: np.ndarray, size: float
) -> None:
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(list(places[edges]), colors=LINE, linewidths=0.8, zorder=1))
    axes.scatter(
        places[:, 0], places[:, 1], s=size, c=colours, edgecolors=INK, linewidths=0.5, zorder=2
    )
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)


def _page(info: DataInfo, notes: list[str]) -> _Page:
    title = f"Synthetic set distilled from {public_name(info.source)}"
    return _Page(title, notes, tuple(info.names), palette(len(info.names)))


def palette(count: int) -> np.ndarray:
    """[count, 4] colours of the classes: distinct ones up to 20, then a spectrum."""
    from matplotlib import colormaps

    if count <= 20:
        table = colormaps["tab10" if count <= 10 else "tab20"]
        return np.array([table(number) for number in range(count)])
    return np.asarray(colormaps["turbo"](np.linspace(0.02, 0.98, count)))


def _figure(page: _Page, wide: float, high: float) -> tuple[Figure, float]:
    """Return a figure with its texts on top, and the height at which the drawing starts."""
    from matplotlib.figure import Figure

    signs = int((wide - 2 * MARGIN) * 14)
    lines = [line for note in page.notes for line in textwrap.wrap(note, signs)]
    head = MARGIN + 0.3 + ROW * len(lines) + 0.1
    figure = Figure(figsize=(wide, head + high + MARGIN), facecolor="white")
    top = figure.get_figheight()
    title = _fitted(page.title, wide - 2 * MARGIN, TITLE, "bold")
    left = MARGIN / wide
    figure.text(left, 1 - MARGIN / top, title, va="top", fontsize=TITLE, fontweight="bold")
    for place, line in enumerate(lines):
        y = 1 - (MARGIN + 0.32 + ROW * place) / top
        figure.text(left, y, line, va="top", color=GREY)
    return figure, MARGIN


def _axes(figure: Figure, left: float, bottom: float, wide: float, high: float) -> Axes:
    """Axes at a place given in inches."""
    w, h = figure.get_figwidth(), figure.get_figheight()
    return figure.add_axes((left / w, bottom / h, wide / w, high / h))


def _panel(figure: Figure, left: float, bottom: float, title: str) -> Axes:
    """Axes without ticks, under a line of text, with room for labels."""
    axes = _axes(figure, left + 0.2, bottom + 0.2, PANEL - 0.2, PANEL)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(LINE)
    return axes


def _legend(figure: Figure, page: _Page, shown: Sequence[int], real: bool) -> None:
    from matplotlib.lines import Line2D

    def sign(**style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", marker="o", **style)

    entries = []
    for number in shown[:MOST_CLASSES]:
        colour = page.colours[number]
        handle = sign(color=colour, markersize=7, markeredgecolor=INK, markeredgewidth=0.6)
        # an entry that begins with an underscore would be left out
        entries.append((f"\u200b{_fitted(page.names[number], LEGEND - 0.55)}", handle))
    if len(shown) > MOST_CLASSES:
        entries.append((f"and {len(shown) - MOST_CLASSES} more", sign(alpha=0.0)))
    if real:
        entries.append(("synthetic node", sign(color="white", markersize=7, markeredgecolor=INK)))
        entries.append(("real node", sign(color=GREY, markersize=3)))
    labels, handles = zip(*entries, strict=True)
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(
            1 - (LEGEND - 0.1) / figure.get_figwidth(),
            (MARGIN + 0.2 + PANEL + 0.1) / figure.get_figheight(),
        ),
        frameon=False,
        handletextpad=0.3,
        labelspacing=0.45,
    )


def _spread(count: int, most: int) -> Tensor:
    """Up to `most` places below `count`, evenly spaced."""
    return torch.arange(count) if count <= most else torch.arange(most) * count // most


def _shares(numbers: Tensor) -> str:
    counts = torch.bincount(numbers)
    counts = counts[counts > 0]
    return f"{counted(len(counts), 'class', 'classes')}, {per_class(counts)}"


def _fitted(text: str, inches: float, size: float = TEXT, weight: str = "normal") -> str:
    """`text` in one line, its middle replaced by an ellipsis where it is wider than `inches`."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    text, font, renderer = " ".join(text.split()), FontProperties(size=size), RendererAgg(1, 1, DPI)
    font.set_weight(weight)

    def fits(line: str) -> bool:
        return bool(renderer.get_text_width_height_descent(line, font, False)[0] <= inches * DPI)

    if fits(text):
        return text
    for kept in range(len(text) - 1, 1, -1):
        tail = kept // 3
        line = f"{text[: kept - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"
        if fits(line):
            return line
    return "…"
