"""Images for people: 8-bit columns that other programs read, and one picture of a whole set.

Shape suffixes: M synthetic images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmdd.card_header import public_name
from mmdd.files import write_atomic
from mmdd.modalities.images import whiten
from mmdd.modalities.tables.shown import add_labels, class_numbers, counted, per_class
from mmdd.modality import DataInfo

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

MOST_CLASSES, MOST_COLUMNS = 20, 20
SMALLEST, LARGEST = 48, 144
"""Pixels of a side as drawn: the shorter one is brought to the first by whole factors, the longer
one to the second by shrinking."""

INK, GREY, LINE, PAPER = "#1a1a1a", "#6b6b6b", "#d8d8d8", "#ffffff"
MARGIN, GAP, NAME_WIDTH, TEXT_WIDTH = 20, 3, 220, 420


def denormalise(inputs: Tensor, info: DataInfo) -> Tensor:
    """[M, C, H, W] learner inputs -> float32 on the CPU in [0, 1], 1 being the brightest.

    Sources of floats outside [0, 1] are scaled from the range measured in training. Whitening is
    undone.
    """
    low, high = info.normalisation.get("range", (0.0, 1.0))
    units: Tensor = (_in_units(inputs, info) - low) / (high - low)
    return units.clamp(0, 1)


def _in_units(inputs: Tensor, info: DataInfo) -> Tensor:
    mean, std = (torch.tensor(info.normalisation[k]).view(-1, 1, 1) for k in ("mean", "std"))
    normalised = inputs.detach().cpu().float()
    whitening = whiten.of_info(info)
    return (normalised if whitening is None else whitening.undo(normalised)) * std + mean


def to_columns(
    inputs: Tensor, targets: Tensor, info: DataInfo
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the columns and ``datasets`` features that a user reads without this package.

    Parameters
    ----------
    inputs: [M, C, H, W] normalised images.
    targets: [M] class numbers, or [M, K] soft labels.

    ``image`` is an 8-bit PIL image (grey or RGB), ``label`` the class; soft labels stand in
    ``soft_label`` beside their largest class. Images of other than 1 or 3 channels, which no
    picture format holds, are ``pixels``: float32 [C, H, W] in the units of the source.
    """
    from datasets import Array3D
    from datasets import Image as ImageFeature

    columns: dict[str, list[Any]] = {}
    features: dict[str, Any] = {}
    if inputs.shape[1] in (1, 3):
        columns["image"] = _pil_images(inputs, info)
        features["image"] = ImageFeature()
    else:
        columns["pixels"] = list(_in_units(inputs, info).numpy())
        features["pixels"] = Array3D(tuple(inputs.shape[1:]), "float32")
    add_labels(columns, features, targets, info)
    return columns, features


def _pil_images(inputs: Tensor, info: DataInfo) -> list[Image.Image]:
    """One 8-bit image each; more than three channels show their first three, two their first."""
    from PIL import Image

    shown = 3 if inputs.shape[1] >= 3 else 1
    pixels = denormalise(inputs, info)[:, :shown].mul(255).round().to(torch.uint8)
    arrays = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    return [Image.fromarray(array.squeeze(-1) if shown == 1 else array) for array in arrays]


# -- the picture -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What is drawn: the texts above, and per row a name, the number of its images, and these."""

    title: str
    notes: list[str]
    rows: list[tuple[str, int, list[Image.Image]]]


def picture(inputs: Tensor, targets: Tensor, info: DataInfo, path: str | Path) -> None:
    """Draw the images into a PNG, one row per class, without smoothing.

    Parameters
    ----------
    inputs: [M, C, H, W] normalised images.
    targets: [M] class numbers, or [M, K] soft labels, whose largest class counts.
    path: the file to write; at most 20 classes of 20 images are drawn, and it says so.
    """
    sheet = _sheet(inputs, class_numbers(targets), info)
    drawn = draw(sheet)
    write_atomic(path, lambda place: drawn.save(place, format="PNG", optimize=True))


def _sheet(inputs: Tensor, numbers: Tensor, info: DataInfo) -> Sheet:
    sizes = torch.bincount(numbers, minlength=len(info.names))
    present = torch.nonzero(sizes).flatten().tolist()
    rows = []
    for number in present[:MOST_CLASSES]:
        chosen = torch.nonzero(numbers == number).flatten()[:MOST_COLUMNS]
        images = [_resized(image) for image in _pil_images(inputs[chosen], info)]
        rows.append((info.names[number], int(sizes[number]), images))
    counts = sizes[present]
    channels, height, width = inputs.shape[1:]
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    facts = (
        f"{counted(len(numbers), 'image')} of {width} x {height} pixels, {kind}; "
        f"{counted(len(present), 'class', 'classes')}, {per_class(counts)}"
    )
    title = f"Synthetic set distilled from {public_name(info.source)}"
    return Sheet(title, [facts, *_left_out(counts, channels)], rows)


def _left_out(counts: Tensor, channels: int) -> list[str]:
    """Sentences about what is not drawn."""
    said = []
    more_classes, longest = len(counts) - MOST_CLASSES, int(counts[:MOST_CLASSES].max())
    if more_classes > 0:
        said.append(f"the first {MOST_CLASSES} classes; {more_classes:,} more are left out")
    if longest > MOST_COLUMNS:
        said.append(f"the first {MOST_COLUMNS} images of each class; the rest is left out")
    if channels not in (1, 3):
        said.append("the first channel" if channels == 2 else "channels 1 to 3 as RGB")
    return [f"Shown: {sentence}" for sentence in said]


def _resized(image: Image.Image) -> Image.Image:
    """Enlarge small images by a whole factor, pixel by pixel; shrink large ones smoothly."""
    from PIL import Image

    short, long = min(image.size), max(image.size)
    factor = min(-(-SMALLEST // short), LARGEST // long)
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    if long <= LARGEST:
        return image
    shrunk = image.copy()
    shrunk.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return shrunk


def _fonts() -> tuple[Any, Any, Any]:
    """Title, text and small fonts: the ones that come with matplotlib know most alphabets."""
    from PIL import ImageFont

    try:
        import matplotlib

        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        plain, bold = str(fonts / "DejaVuSans.ttf"), str(fonts / "DejaVuSans-Bold.ttf")
        return (
            ImageFont.truetype(bold, 16),
            ImageFont.truetype(plain, 13),
            ImageFont.truetype(plain, 11),
        )
    except (ImportError, OSError):
        return tuple(ImageFont.load_default(size) for size in (16, 13, 11))  # type: ignore[return-value]


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text`, its middle replaced by an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        tail = kept // 3
        short = f"{text[: kept - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"
        if font.getlength(short) <= width:
            return short
    return "…"


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def draw(sheet: Sheet) -> Image.Image:
    """The page."""
    from PIL import Image, ImageDraw

    title_font, font, small = _fonts()
    names = [_fitted(name, font, NAME_WIDTH) for name, _, _ in sheet.rows]
    wide = max(image.width for _, _, images in sheet.rows for image in images)
    # very flat images leave no room for two lines of text
    high = max(36, *(image.height for _, _, images in sheet.rows for image in images))
    columns = max(len(images) for _, _, images in sheet.rows)
    left = MARGIN + int(max(font.getlength(name) for name in names)) + 14
    width = max(left + columns * (wide + GAP) - GAP, MARGIN + TEXT_WIDTH) + MARGIN
    notes = [line for note in sheet.notes for line in _wrapped(note, font, width - 2 * MARGIN)]
    top = MARGIN + 26 + 18 * len(notes) + 14
    height = top + len(sheet.rows) * (high + GAP) - GAP + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    title = _fitted(sheet.title, title_font, width - 2 * MARGIN)
    pen.text((MARGIN, MARGIN), title, INK, title_font)
    for place, line in enumerate(notes):
        pen.text((MARGIN, MARGIN + 26 + 18 * place), line, GREY, font)
    several = len({count for _, count, _ in sheet.rows}) > 1
    for place, (name, (_, count, images)) in enumerate(zip(names, sheet.rows, strict=True)):
        y = top + place * (high + GAP)
        _draw_name(pen, (left - 12, y + high // 2), name, count if several else None, font, small)
        _draw_images(page, pen, (left, y), wide, images)
    return page


def _draw_name(
    pen: ImageDraw.ImageDraw,
    end: tuple[int, int],
    name: str,
    count: int | None,
    font: ImageFont.FreeTypeFont,
    small: ImageFont.FreeTypeFont,
) -> None:
    """Write a class's name, and its number of images below, before the middle of its row."""
    x, y = end
    lift = 0 if count is None else 8
    pen.text((x, y - lift), name, INK, font, anchor="rm")
    if count is not None:
        pen.text((x, y + 9), f"{count:,}", GREY, small, anchor="rm")


def _draw_images(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    start: tuple[int, int],
    wide: int,
    images: Sequence[Image.Image],
) -> None:
    x, y = start
    for place, image in enumerate(images):
        corner = (x + place * (wide + GAP), y)
        page.paste(image.convert("RGB"), corner)
        # keeps white images apart from the white page, and hides no pixel of theirs
        frame = (corner[0] - 1, y - 1, corner[0] + image.width, y + image.height)
        pen.rectangle(frame, outline=LINE)
