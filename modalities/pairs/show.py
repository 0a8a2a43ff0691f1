"""Synthetic pairs for people: columns that other programs read, and a picture.

Real images are not copied into what is written: a synthetic one is shown as it is where it has
pixels; where it is a vector, the row of the nearest training item is told. Texts are shown by the
nearest training text.

Shape suffixes: M synthetic pairs, D numbers of a vector, N real items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmdd.card_header import public_name
from mmdd.modalities.images.normalise import Normalise
from mmdd.modalities.pairs.data import flat
from mmdd.modalities.pairs.memory import PairsInMemory, recall
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.text.neighbours import nearest_tokens
from mmdd.modalities.text.space import Standardise
from mmdd.modalities.text.tokenise import stored_model
from mmdd.modality import DataInfo
from mmdd.trees import Tree, tree_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

MOST_SHOWN = 24
MOST_WRITTEN = 48  # lines beneath the maps, in two columns
LONGEST = 82  # letters of a line in the picture
MOST_REAL = 2000
CHUNK = 2048
INK, REAL, MADE = "#1a1a1a", "#b4b4b4", "#c2410c"


@dataclasses.dataclass(frozen=True)
class Nearest:
    """For each synthetic pair, the training value that its half is nearest to.

    Attributes
    ----------
    rows: [M] places: of items for the first field, of pairs for the second one.
    distances: [M] Euclidean, in the space that learners read (pixels and tokens: of their means).
    """

    rows: list[int]
    distances: list[float]


@torch.no_grad()
def nearest(inputs: Tree, read: Callable[[Tensor], Tree], count: int) -> Nearest:
    """Compare synthetic halves with all `count` real ones that `read` gives."""
    wanted = flat(inputs).float().cpu()
    best = torch.full((len(wanted),), torch.inf)
    rows = torch.zeros(len(wanted), dtype=torch.int64)
    for index in torch.arange(count).split(CHUNK):
        found, place = torch.cdist(wanted, flat(read(index)).float().cpu()).min(dim=1)
        rows = torch.where(found < best, index[place], rows)
        best = torch.minimum(found, best)
    return Nearest(rows.tolist(), [round(value, 4) for value in best.tolist()])


def nearest_texts(inputs: Tree, real: PairsInMemory) -> tuple[list[str], list[float]] | None:
    """Nearest training texts of the second field and their distances; None where it has none."""
    if not real.words:
        return None
    found = nearest(
        inputs[real.second.name],
        lambda index: real.second.read(index.to(real.device)),
        real.pairs,
    )
    return [real.words[row] for row in found.rows], found.distances


def nearest_items(inputs: Tree, real: PairsInMemory) -> Nearest:
    """Nearest training items by the first field; their rows count the training part."""
    return nearest(
        inputs[real.first.name], lambda index: real.first.read(index.to(real.device)), len(real)
    )


# -- columns ---------------------------------------------------------------------------------------


def to_columns(
    inputs: Tree, targets: Tree, info: DataInfo
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the columns and ``datasets`` features that a user reads without this package.

    ``pair`` numbers the pairs. A field of vectors becomes ``NAME_embedding`` in the units of its
    source, one of pixels ``NAME``, one of tokens ``NAME_tokens`` (the nearest token of every
    position). ``similarity``: the row of learned similarities, where there are such.
    ``nearest_NAME`` (text), ``nearest_NAME_row`` (training item) and their distances: while the
    data is open.
    """
    from datasets import List, Value

    inputs = tree_map(lambda leaf: leaf.detach().cpu(), inputs)
    facts = info.normalisation["fields"]
    count = len(flat(next(iter(inputs.values()))))
    columns: dict[str, list[Any]] = {"pair": list(range(count))}
    features: dict[str, Any] = {"pair": Value("int64")}
    for name, about in facts.items():
        made = {"vectors": _vectors, "pixels": _pixels, "tokens": _tokens}[about["kind"]]
        key, values, feature = made(name, inputs[name], info)
        columns[key], features[key] = values, feature
    if isinstance(targets, dict):
        columns["similarity"] = targets["similarity"].detach().cpu().float().tolist()
        features["similarity"] = List(Value("float32"), length=targets["similarity"].shape[1])
    real = recall(info.fingerprint)
    if real is not None:
        _add_neighbours(columns, features, inputs, real)
    return columns, features


def _add_neighbours(
    columns: dict[str, list[Any]], features: dict[str, Any], inputs: Tree, real: PairsInMemory
) -> None:
    from datasets import Value

    first, second = f"nearest_{real.first.name}", f"nearest_{real.second.name}"
    items, texts = nearest_items(inputs, real), nearest_texts(inputs, real)
    columns |= {f"{first}_row": items.rows, f"{first}_distance": items.distances}
    features |= {f"{first}_row": Value("int64"), f"{first}_distance": Value("float32")}
    if texts is not None:
        columns[second], columns[f"{second}_distance"] = texts
        features |= {second: Value("string"), f"{second}_distance": Value("float32")}


def _vectors(name: str, values: Tensor, info: DataInfo) -> tuple[str, list[Any], Any]:
    from datasets import List, Value

    space = Standardise(info.tensors[f"{name}.mean"], info.normalisation["fields"][name]["std"])
    found = space.inverse(values.float())
    feature = List(Value("float32"), length=values.shape[1])
    return f"{name}_embedding", found.tolist(), feature


def _pixels(name: str, values: Tensor, info: DataInfo) -> tuple[str, list[Any], Any]:
    from datasets import Array3D
    from datasets import Image as ImageFeature

    if values.shape[1] in (1, 3):
        return name, _pictures(name, values, info), ImageFeature()
    units = _unit(name, values, info).numpy()
    return f"{name}_pixels", list(units), Array3D(tuple(values.shape[1:]), "float32")


def _unit(name: str, values: Tensor, info: DataInfo) -> Tensor:
    """Normalised pixels back in [0, 1], 1 being the brightest."""
    about = info.normalisation["fields"][name]
    low, high = about["range"]
    found = Normalise(about["mean"], about["std"]).inverse(values.float())
    return ((found - low) / (high - low)).clamp(0, 1)


def _pictures(name: str, values: Tensor, info: DataInfo) -> list[Image.Image]:
    from PIL import Image

    pixels = _unit(name, values, info).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [
        Image.fromarray(np.ascontiguousarray(image.squeeze(-1) if image.shape[2] == 1 else image))
        for image in pixels.numpy()
    ]


def _tokens(name: str, values: Tree, info: DataInfo) -> tuple[str, list[Any], Any]:
    from datasets import List, Value

    own = {"tokeniser": info.tensors[f"{name}.tokeniser"]}
    tokeniser = stored_model(own)
    assert tokeniser is not None
    ids, _ = nearest_tokens(values["values"], info.tensors[f"{name}.table"])
    shown = values["mask"]
    pieces = [tokeniser.pieces(row[keep].tolist()) for row, keep in zip(ids, shown, strict=True)]
    return f"{name}_tokens", pieces, List(Value("string"))


# -- the picture -----------------------------------------------------------------------------------


def picture(inputs: Tree, targets: Tree, info: DataInfo, path: str | Path) -> None:
    """Draw the pairs into a PNG: images beside their texts, or two maps with the texts beneath.

    A map shows two principal components of a field; real training items are small points, as far
    as the data is open here. At most 24 images or 48 texts are written out, and it says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inputs = tree_map(lambda leaf: leaf.detach().cpu(), inputs)
    real = recall(info.fingerprint)
    pixels = [n for n, f in info.normalisation["fields"].items() if f["kind"] == "pixels"]
    lines = _lines(inputs, real, MOST_SHOWN if pixels else MOST_WRITTEN)
    height = 1.6 * -(-min(len(lines), MOST_SHOWN) // 4) if pixels else 5 + _beneath(lines)
    figure = Figure(figsize=(11, max(3.0, height)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    source = public_name(info.source)
    figure.suptitle(f"{source}: {_count(inputs)} synthetic pairs", fontsize=10)
    if pixels:
        _draw_images(figure, _pictures(pixels[0], inputs[pixels[0]][:MOST_SHOWN], info), lines)
    else:
        _draw_maps(figure, inputs, info, real, lines)
    figure.savefig(path, format="png", metadata={"Software": None})


def _count(inputs: Tree) -> int:
    return len(flat(next(iter(inputs.values()))))


def _lines(inputs: Tree, real: PairsInMemory | None, most: int) -> list[str]:
    """One line for each of the first `most` pairs: its nearest training text and the distance."""
    count = _count(inputs)
    found = None if real is None else nearest_texts(inputs, real)
    if found is None:
        return [f"pair {number}" for number in range(min(count, most))]
    lines = [_line(*told) for told in zip(range(min(count, most)), *found, strict=False)]
    return lines + ([f"… and {count - most} more"] if count > most else [])


def _line(number: int, text: str, far: float) -> str:
    words, end = f"{number}: {' '.join(text.split())}", f" ({far:.2f})"
    room = LONGEST - len(end)
    return (words if len(words) <= room else f"{words[: room - 1]}…") + end


def _beneath(lines: list[str]) -> float:
    """Inches that the lines take in two columns, with a heading."""
    return 0.14 * (-(-len(lines) // 2) + 1.5)


def _draw_images(figure: Any, images: list[Image.Image], lines: list[str]) -> None:
    import textwrap

    axes = np.atleast_1d(figure.subplots(-(-len(images) // 4), 4)).ravel()
    for place, ax in enumerate(axes):
        ax.axis("off")
        if place < len(images):
            grey = images[place].mode == "L"
            ax.imshow(np.asarray(images[place]), cmap="gray" if grey else None, vmin=0, vmax=255)
            words = "\n".join(textwrap.wrap(lines[place], 34))
            ax.set_title(words, fontsize=6, color=INK, parse_math=False)


def _draw_maps(
    figure: Any, inputs: Tree, info: DataInfo, real: PairsInMemory | None, lines: list[str]
) -> None:
    grid = figure.add_gridspec(2, 2, height_ratios=[5, _beneath(lines)])
    for place, name in enumerate(info.normalisation["fields"]):
        vectors = flat(inputs[name]).float().numpy()
        others = None
        if real is not None:
            side, count = (real.first, len(real)) if place == 0 else (real.second, real.pairs)
            rows = torch.linspace(0, count - 1, min(count, MOST_REAL)).long().to(real.device)
            others = flat(side.read(rows)).float().cpu().numpy()
        _draw_map(figure.add_subplot(grid[0, place]), name, vectors, others)
        half = -(-len(lines) // 2)
        column = lines[half:] if place else lines[:half]
        ax = figure.add_subplot(grid[1, place])
        ax.axis("off")
        near = real is not None and bool(real.words)
        if near and place == 0:
            ax.set_title("nearest training texts (distance)", fontsize=7, color=INK, loc="left")
        ax.text(0, 1, "\n".join(column), va="top", fontsize=7, color=INK, parse_math=False)


def _draw_map(ax: Axes, name: str, vectors: Array, others: Array | None) -> None:
    basis = vectors if others is None or len(others) < 3 else others
    mean = basis.mean(axis=0)
    _, _, axes = np.linalg.svd(basis - mean, full_matrices=False)
    plane = np.zeros((2, basis.shape[1]), basis.dtype)
    plane[: min(2, len(axes))] = axes[:2]
    if others is not None:
        spots = (others - mean) @ plane.T
        ax.scatter(spots[:, 0], spots[:, 1], s=5, c=REAL, linewidths=0, label="real")
    spots = (vectors - mean) @ plane.T
    ax.scatter(spots[:, 0], spots[:, 1], s=28, c=MADE, edgecolors=INK, label="synthetic")
    for number, place in enumerate(spots[:MOST_WRITTEN].tolist()):
        ax.annotate(str(number), place, (3.5, 2), textcoords="offset points", fontsize=6, color=INK)
    ax.set_title(f"{name}: two principal components", fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.legend(fontsize=7, frameon=False)
