"""UCR/UEA files (``.ts``): one series a line, dimensions between colons, the label last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmdd.errors import UserError
from mmdd.modalities.timeseries.arrays import SeriesItems

PARTS = {"train": "_train.ts", "test": "_test.ts"}


def find_files(name: str) -> dict[str, Path] | None:
    """Files by split: of a folder, or of a file and its neighbour; None where `name` is no such.

    ``X_TRAIN.ts`` brings ``X_TEST.ts`` along, and a file with neither ending is the training split.

    Errors: UserError for a folder that holds several sets.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = [p for p in sorted(path.iterdir()) if p.name.lower().endswith(PARTS["train"])]
        if len(files) > 1:
            raise UserError(
                f"the folder {name!r} holds several sets",
                got=[p.name for p in files],
                hint="Name one file",
            )
        path = files[0] if files else path
    if path.suffix.lower() != ".ts" or not path.is_file():
        return None
    own = [end for end in PARTS.values() if path.name.lower().endswith(end)]
    if not own:
        return {"train": path}
    stem = path.name[: -len(own[0])].lower()
    near = {p.name.lower(): p for p in path.parent.iterdir()}
    return {part: near[stem + end] for part, end in PARTS.items() if stem + end in near}


def read_ts(path: Path) -> tuple[SeriesItems, list[Any] | None]:
    """Read one file: series [C, T] and their labels (words, or numbers of a target label).

    A question mark is a missing value, NaN.

    Errors: UserError with file and line for anything that does not keep the format.
    """
    header: dict[str, list[str]] = {}
    series: list[np.ndarray[Any, Any]] = []
    labels: list[Any] = []
    in_data = False
    with path.open(encoding="utf8", errors="replace") as lines:
        for number, raw in enumerate(lines, start=1):
            line = raw.strip()
            if not line or line.startswith(("#", "%")):
                continue
            if not in_data and line.startswith("@"):
                word, *rest = line[1:].split()
                in_data = word.lower() == "data"
                header[word.lower()] = rest
                if word.lower() == "timestamps" and _true(rest):
                    raise UserError(f"{str(path)!r}: files with time stamps are not read")
                continue
            if not in_data:
                raise UserError(f"{str(path)!r}, line {number}: data before '@data'")
            _take(line, f"{str(path)!r}, line {number}", _labelled(header), series, labels)
    if not series:
        raise UserError(f"{str(path)!r} holds no series", expected="lines after '@data'")
    numbers = _true(header.get("targetlabel", []))
    labels = [_number(label, path) for label in labels] if numbers else labels
    return SeriesItems(series), labels or None


def _true(words: list[str]) -> bool:
    return bool(words) and words[0].lower() == "true"


def _labelled(header: dict[str, list[str]]) -> bool:
    return _true(header.get("classlabel", [])) or _true(header.get("targetlabel", []))


def _take(
    line: str, where: str, labelled: bool, series: list[np.ndarray[Any, Any]], labels: list[Any]
) -> None:
    *dimensions, last = line.split(":")
    if not labelled:
        dimensions = [*dimensions, last]
    elif not dimensions:
        raise UserError(f"{where}: a series without label", expected="dimensions and label, by ':'")
    else:
        labels.append(last.strip())
    channels = [_values(part, where) for part in dimensions]
    if len({len(channel) for channel in channels}) > 1:
        raise UserError(
            f"{where}: the dimensions differ in length",
            got=[len(channel) for channel in channels][:8],
            expected="one length",
        )
    series.append(np.stack(channels))


def _values(text: str, where: str) -> np.ndarray[Any, Any]:
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    try:
        return np.array([np.nan if w in ("?", "NaN", "nan") else float(w) for w in words], "f4")
    except ValueError as error:
        expected = "numbers, or ? where one is missing"
        raise UserError(f"{where}: {error}", expected=expected) from None


def _number(word: str, path: Path) -> float:
    try:
        return float(word)
    except ValueError:
        raise UserError(f"{str(path)!r}: a target is no number", got=word) from None
