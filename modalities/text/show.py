"""Synthetic texts for people: columns that other programs read, and a picture with words.

Shape suffixes: M synthetic items, L positions, h numbers per token, D numbers of a vector, K classes.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmdd.card_header import public_name
from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.sets import NO_LABEL, rarest
from mmdd.modalities.tables.shown import add_soft_labels, class_numbers
from mmdd.modalities.text import models
from mmdd.modalities.text.neighbours import (
    TextsInMemory,
    as_vectors,
    nearest_items,
    nearest_tokens,
    recall,
)
from mmdd.modalities.text.space import Lookup, Standardise
from mmdd.modalities.text.tokenise import OwnTokeniser, Tokeniser, stored_model
from mmdd.modality import DataInfo
from mmdd.task import guided
from mmdd.trees import Tree, tree_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 20
MOST_REAL = 2000
MOST_SENTENCES = 24
LONGEST = 130  # letters of a sentence in the picture
INK, GREY = "#1a1a1a", "#9a9a9a"


@dataclasses.dataclass(frozen=True)
class Words:
    """What synthetic items look like in words; None where it is not known.

    Attributes
    ----------
    texts: [M] the nearest training texts, and their distances.
    tokens: per item, the nearest token of every shown position, and their distances.
    """

    texts: tuple[list[str], list[float]] | None
    tokens: tuple[list[list[str]], list[list[float]]] | None


def in_words(inputs: Tree, info: DataInfo) -> Words:
    """Nearest training texts (while the data is open here) and nearest tokens (in token space)."""
    inputs = tree_map(lambda leaf: leaf.detach().cpu(), inputs)
    real = recall(info.fingerprint)
    texts = None
    if real is not None and real.words:
        found = nearest_items(inputs, real)
        shown = [real.words[place] for place in found.index.tolist()]
        texts = (shown, [round(value, 4) for value in found.distances.tolist()])
    return Words(texts, _tokens(inputs, info, real) if isinstance(inputs, dict) else None)


def _tokens(
    inputs: dict[str, Tensor], info: DataInfo, real: TextsInMemory | None
) -> tuple[list[list[str]], list[list[float]]] | None:
    try:
        table, tokeniser = _table(info, real), _tokeniser(info)
    except UserError:  # the encoder is no longer where it was; only the words are lost
        return None
    table = table[: tokeniser.size]
    ids, distances = nearest_tokens(inputs["values"], table)
    shown = inputs["mask"]
    pieces = [tokeniser.pieces(row[keep].tolist()) for row, keep in zip(ids, shown, strict=True)]
    far = [
        [round(value, 4) for value in row[keep].tolist()]
        for row, keep in zip(distances, shown, strict=True)
    ]
    return pieces, far


def _table(info: DataInfo, real: TextsInMemory | None) -> Tensor:
    if "table" in info.tensors:
        return info.tensors["table"]
    if real is not None and isinstance(real.prepare, Lookup):
        return real.prepare.table.cpu()
    name = str(info.normalisation["model"])
    values = models.token_embeddings(models.load_model(name), name)
    return values / float(info.normalisation["scale"])


def _tokeniser(info: DataInfo) -> Tokeniser:
    own = stored_model(info.tensors)
    if own is not None:
        return own
    return OwnTokeniser(info.normalisation.get("tokenizer") or info.normalisation["model"])


def to_columns(
    inputs: Tree, targets: Tree, info: DataInfo
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the columns and ``datasets`` features that a user reads without this package.

    Parameters
    ----------
    inputs: vectors [M, D], or token embeddings.
    targets: [M] class numbers, [M, K] soft labels, or [M, K] bools where a text has any number of
        labels; or a dict with these under ``classes``, what else it holds being left out.

    ``embedding``: vectors in the units of the source (token embeddings are not written out: they
    mean nothing without the encoder, and the exact ones are in the safetensors file). ``label``,
    and ``soft_label`` where labels are soft; ``labels``, a list, where there is any number of them
    (with soft ones those of a half or more). ``nearest_text`` and ``nearest_distance``: the
    training text whose vector (or mean token embedding) is nearest, while the data is open.
    ``tokens`` and ``token_distances``: the nearest token of every position.
    """
    from datasets import List, Value

    columns: dict[str, list[Any]] = {}
    features: dict[str, Any] = {}
    if isinstance(inputs, Tensor):
        columns["embedding"] = in_units(inputs, info).tolist()
        features["embedding"] = List(Value("float32"), length=inputs.shape[1])
    _add_labels(columns, features, _classes_of(targets), info)
    words = in_words(inputs, info)
    if words.texts is not None:
        columns["nearest_text"], columns["nearest_distance"] = words.texts
        features |= {"nearest_text": Value("string"), "nearest_distance": Value("float32")}
    if words.tokens is not None:
        columns["tokens"], columns["token_distances"] = words.tokens
        features["tokens"] = List(Value("string"))
        features["token_distances"] = List(Value("float32"))
    return columns, features


def _add_labels(
    columns: dict[str, list[Any]], features: dict[str, Any], targets: Tensor, info: DataInfo
) -> None:
    from datasets import ClassLabel, List

    if _several(info):
        columns["labels"] = [row.nonzero().flatten().tolist() for row in targets.cpu() >= 0.5]
        features["labels"] = List(ClassLabel(names=list(info.names[: targets.shape[1]])))
    else:
        columns["label"] = class_numbers(targets).tolist()
        features["label"] = ClassLabel(names=list(info.names))
    if targets.is_floating_point():
        add_soft_labels(columns, features, targets)


def _several(info: DataInfo) -> bool:
    """True where a text has any number of labels."""
    return "labels" in info.normalisation


def _classes_of(targets: Tree) -> Tensor:
    found: Tensor = targets["classes"] if guided(targets) else targets
    return found


def in_units(inputs: Tensor, info: DataInfo) -> Tensor:
    """[M, D] vectors in the units of the source, float32 on the CPU."""
    space = Standardise(info.tensors["mean"], float(info.normalisation["std"]))
    return space.inverse(inputs.detach().cpu().float())


# -- the picture -----------------------------------------------------------------------------------


def picture(inputs: Tree, targets: Tree, info: DataInfo, path: str | Path) -> None:
    """Draw the items as a map (two principal components) with the nearest texts beneath.

    Real training items are small points, as far as the data is open here. At most 20 classes are
    coloured and 24 texts written, and it says so. An item of several labels has the colour of the
    rarest of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    codes, names = _codes(_classes_of(targets), info)
    words = in_words(inputs, info)
    lines = _sentences(words, names)
    figure = Figure(figsize=(10, 6.2 + 0.17 * len(lines)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, height_ratios=[6, max(0.17 * len(lines), 0.2)])
    _draw_map(axes[0], inputs, codes, info)
    axes[1].axis("off")
    if lines:
        axes[1].text(0, 1, "\n".join(lines), va="top", fontsize=8, color=INK, parse_math=False)
    figure.savefig(path, format="png", metadata={"Software": None})


def _codes(targets: Tensor, info: DataInfo) -> tuple[Array, list[str]]:
    """[M] group of every item, as the training items are grouped, and its labels in words."""
    if not _several(info):
        numbers = class_numbers(targets).numpy()
        return numbers, [info.names[code] for code in numbers]
    members = (targets.cpu() >= 0.5).numpy()
    real = recall(info.fingerprint)
    known = members if real is None or real.targets is None else real.targets.numpy()
    said = [", ".join(info.names[place] for place in np.flatnonzero(row)) for row in members]
    codes = np.minimum(rarest(members, known.sum(axis=0)), info.classes - 1)
    return codes, [names or NO_LABEL for names in said]


def _draw_map(axes: Axes, inputs: Tree, codes: Array, info: DataInfo) -> None:
    synthetic = as_vectors(tree_map(lambda leaf: leaf.detach().cpu(), inputs)).float().numpy()
    real, classes = _real_sample(info)
    basis = real if len(real) > 2 else synthetic
    mean, plane = _plane(basis)
    colours = _colours(min(info.classes, MOST_CLASSES))
    if len(real):
        spots = (real - mean) @ plane
        shown = [colours[c] if c < MOST_CLASSES else GREY for c in classes]
        axes.scatter(spots[:, 0], spots[:, 1], s=5, c=shown, alpha=0.35, linewidths=0)
    spots = (synthetic - mean) @ plane
    for code in range(min(info.classes, MOST_CLASSES)):
        own = spots[codes == code]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=70,
            color=[colours[code]],
            edgecolors=INK,
            label=info.names[code],
        )
    rest = spots[codes >= MOST_CLASSES]
    if len(rest):
        label = f"{info.classes - MOST_CLASSES} more classes"
        axes.scatter(rest[:, 0], rest[:, 1], s=70, color=GREY, edgecolors=INK, label=label)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    axes.set_title(
        f"{public_name(info.source)}: {len(codes)} synthetic items (large)"
        + (f" among {len(real)} real ones (small)" if len(real) else "")
        + ", two principal components",
        fontsize=10,
    )
    axes.set_xticks([])
    axes.set_yticks([])


def _real_sample(info: DataInfo) -> tuple[Array, Array]:
    """Vectors and classes of evenly spread training items; none where the data is not open."""
    real = recall(info.fingerprint)
    if real is None:
        return np.zeros((0, info.shape[-1]), np.float32), np.zeros(0, np.int64)
    rows = torch.linspace(0, len(real) - 1, min(len(real), MOST_REAL)).long()
    with torch.no_grad():
        vectors = as_vectors(real.read(rows)).float().cpu().numpy()
    return vectors, real.groups[rows].numpy()


def _plane(vectors: Array) -> tuple[Array, Array]:
    """Mean [D] and the two directions [D, 2] of most variance; a lone dimension is repeated."""
    mean = vectors.mean(axis=0)
    _, found = np.linalg.eigh(np.cov((vectors - mean).T.astype(np.float64)).reshape(len(mean), -1))
    two = found[:, [-1, -2]] if found.shape[1] > 1 else found[:, [0, 0]]
    # an eigenvector has no sign of its own
    signs = np.sign(two[np.abs(two).argmax(axis=0), [0, 1]])
    return mean, two * signs


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    name = "tab10" if count <= 10 else "tab20"
    return [colormaps[name](number) for number in range(count)]


def _sentences(words: Words, names: list[str]) -> list[str]:
    """One line per item: its class, distance and nearest text, or nearest tokens without texts."""
    if words.texts is not None:
        shown = [f"{far:.2f}  {text}" for text, far in zip(*words.texts, strict=True)]
        title = "Distances and texts of the nearest training items:"
    elif words.tokens is not None:
        shown = [" ".join(pieces) for pieces in words.tokens[0]]
        title = "Nearest tokens:"
    else:
        return []
    lines = [
        f"{name}:  {' '.join(text.split())}"
        for name, text in zip(names[:MOST_SENTENCES], shown, strict=False)
    ]
    cut = [line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for line in lines]
    more = [f"… and {len(names) - MOST_SENTENCES} more"] if len(names) > MOST_SENTENCES else []
    return [title, *cut, *more]


__all__ = ["Words", "in_units", "in_words", "picture", "to_columns"]
