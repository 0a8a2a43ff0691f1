"""How pairs are found in tables and taken from Python: what `modalities.tables` asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import datasets
import numpy as np

from mmdd.errors import UserError
from mmdd.modalities.images.columns import IMAGE_FILES, ImageColumn, find_images
from mmdd.modalities.pairs.fields import Field, PairItems, Vectors, of_texts, of_values, of_vectors
from mmdd.modalities.pairs.options import CAPTION_NAMES, PairData
from mmdd.modalities.tables.columns import (
    ambiguous,
    choose_with,
    flat,
    holds_files,
    is_file,
    is_text,
    is_vector,
    require_column,
    stored,
)
from mmdd.modalities.tables.items import Opened, RawSplit, Reader
from mmdd.modalities.tables.labels import Labels
from mmdd.modalities.tables.sources import open_source
from mmdd.modalities.tables.splits import require_split
from mmdd.modalities.tables.words import Words
from mmdd.modalities.text.columns import as_vectors

WORDS = Words(
    one="pair",
    many="pairs",
    source="a name or path, e.g. a folder of parquet files",
    folder="parquet files with an image and a caption column, or metadata.csv beside images",
    unlabelled="Pairs need no labels",
)


class Unlabelled:
    """Pairs have no classes: all of them are one stratum."""

    def find(
        self, dataset: datasets.Dataset, given: str | None, taken: Collection[str], words: Words
    ) -> str:
        """Name a column, as the loader asks for one: it is not read."""
        return next(iter(taken))

    def read(self, dataset: datasets.Dataset, name: str) -> Labels:
        """Put every row into the one stratum."""
        return one_stratum(len(dataset))

    def of_values(self, values: Any, words: Words) -> Labels:
        """Put every item into the one stratum."""
        return one_stratum(len(values))


def one_stratum(count: int) -> Labels:
    """`count` items of one kind."""
    return Labels(np.zeros(count, np.int64), ("all pairs",))


def open_raw(source: Any, options: PairData) -> Opened[PairItems]:
    """Find out what `source` is and open it; see `open_pairs`."""
    source = options.source if source is None else source
    plain = isinstance(source, (tuple, list, Mapping)) or _is_samples(source)
    tables = isinstance(source, Mapping) and _all_tables(source)
    if not plain or tables:
        opened = open_source(source, options, RawPairs(options), Unlabelled())
        columns = {k: v for k, v in opened.columns.items() if k != "label"}
        return dataclasses.replace(opened, columns=columns)
    if options.group is not None:
        raise UserError(
            "data.group names a column, and these data have none",
            got=type(source),
            expected="a datasets.Dataset or a DataFrame",
            hint="Without data.group, items with the same first half are one.",
        )
    splits = {options.train_split: source}
    if isinstance(source, Mapping) and set(source) != set(options.names):
        splits = {str(name): split for name, split in source.items()}
        require_split(options.train_split, dict.fromkeys(splits, 1), "train_split")
    found = {name: _of_python(split, options, name) for name, split in splits.items()}
    return Opened(f"{type(source).__name__} in memory", found, {})


def _all_tables(source: Mapping[Any, Any]) -> bool:
    return all(isinstance(split, datasets.Dataset) for split in source.values())


def _is_samples(source: Any) -> bool:
    """True for a map-style data set of PyTorch."""
    table = isinstance(source, datasets.Dataset) or hasattr(source, "columns")
    sized = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return sized and not isinstance(source, str) and not table


def _of_python(source: Any, options: PairData, split: str) -> RawSplit[PairItems]:
    """Take one split: (first, second), a dict by field, or samples of both."""
    names = options.names
    if isinstance(source, Mapping):
        lacking = [name for name in names if name not in source]
        if lacking:
            raise UserError(
                f"split {split!r} lacks the field {lacking[0]!r}", got=[*map(str, source)],
                expected=f"{names[0]!r} and {names[1]!r}",
                hint="Name the fields with data.names.",
            )  # fmt: skip
        values = [source[name] for name in names]
    elif isinstance(source, tuple) and len(source) == 2:
        values = list(source)
    else:
        values = _columns_of(source, options)
    first, second = (
        of_values(value, name, second=place == 1)
        for place, (value, name) in enumerate(zip(values, names, strict=True))
    )
    require_one_to_one(first, second, options, split)
    return RawSplit(PairItems(first, second), one_stratum(len(first)))


def _columns_of(source: Any, options: PairData) -> list[list[Any]]:
    """The two fields of samples (first, second), or of dicts that hold both."""
    found: list[list[Any]] = [[], []]
    keys = (options.image or options.names[0], options.text or options.names[1])
    for place in range(len(source)):
        sample = source[place]
        if isinstance(sample, Mapping) and all(key in sample for key in keys):
            sample = [sample[key] for key in keys]
        if not isinstance(sample, (tuple, list)) or len(sample) < 2:
            raise UserError(
                f"item {place} is no pair",
                got=type(sample),
                expected=f"({options.names[0]}, {options.names[1]})",
            )
        for values, value in zip(found, sample, strict=False):
            values.append(value)
    if not found[0]:
        raise UserError("the data set is empty")
    return found


def require_one_to_one(first: Field, second: Field, options: PairData, split: str) -> None:
    """Refuse fields of which one has more items than the other."""
    if len(first) != len(second):
        raise UserError(
            f"the fields of split {split!r} differ in number",
            got=dict(zip(options.names, (len(first), len(second)), strict=True)),
            expected="equal",
        )


@dataclasses.dataclass(frozen=True)
class PairColumns:
    """The chosen columns, and how the first one is read where it holds images.

    Attributes
    ----------
    group: the column that tells which rows are one item, where one is named.
    """

    names: Mapping[str, str]
    image: ImageColumn | None
    group: str | None = None

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> PairItems:
        """Return the pairs of one split."""
        features = flat(dataset.features)
        for field, name in self.names.items():
            require_column(name, features, f"{field} column in split {split!r}")
        first, second = self.names.values()
        keys = None
        if self.group is not None:
            require_column(self.group, features, f"group column in split {split!r}")
            keys = stored(dataset, self.group).to_pylist()
        if self.image is None:
            return PairItems(_column(dataset, first), _column(dataset, second), keys)
        return PairItems(self.image.read(dataset, split, root), _column(dataset, second), keys)


def _column(dataset: datasets.Dataset, name: str) -> Field:
    """Vectors or texts of a column."""
    feature = flat(dataset.features)[name]
    if not is_vector(feature):
        return of_texts(stored(dataset, name).to_pylist(), name, second=True)
    return of_vectors(as_vectors(stored(dataset, name), name), f"values of column {name!r}")


class RawPairs(Reader[PairItems]):
    """Pairs in columns; what comes from Python is taken apart before."""

    words = WORDS
    builders: Mapping[str, str] = {".zip": "imagefolder"}

    def __init__(self, options: PairData) -> None:
        self.options = options

    def find(self, dataset: datasets.Dataset) -> PairColumns:
        """Choose the two columns.

        Errors: UserError when a given one is unknown or unfit, when none fits, or several do.
        """
        features = flat(dataset.features)
        for given in (self.options.image, self.options.text, self.options.group):
            if given is not None:
                require_column(given, features, "column")
        _require_key(features, self.options.group)
        second = self.options.text or self._second(dataset)
        if not (is_texts(features[second]) or is_vector(features[second])):
            raise UserError(
                f"column {second!r} holds no captions",
                got=str(features[second]),
                expected="strings, lists of strings, or vectors",
            )
        first, image = self._first(dataset, second)
        if first == second:
            raise UserError("both fields would be the same column", got=first,
                            hint=f"{choose_with('image')} and {choose_with('text')}")  # fmt: skip
        names = dict(zip(self.options.names, (first, second), strict=True))
        return PairColumns(names, image, self.options.group)

    def _first(self, dataset: datasets.Dataset, second: str) -> tuple[str, ImageColumn | None]:
        features, given = flat(dataset.features), self.options.image
        if given is None and not any(map(_is_image, features.values())):
            free = [name for name, f in features.items() if is_vector(f) and name != second]
            if free:
                return _by_name(free, self.options.names[0], "image"), None
        if given is not None and (is_vector(features[given]) or is_texts(features[given])):
            files = is_text(features[given]) and _names_files(dataset, given)
            if not files:
                return given, None
        if given is not None:
            found = find_images(dataset, given)
        else:
            kept = [name for name in dataset.column_names if name != second.partition(".")[0]]
            if not kept:
                raise UserError("no column holds images", got=dataset.column_names,
                                hint=choose_with("image"))  # fmt: skip
            found = find_images(dataset.select_columns(kept), None)
        return found.column, found

    def _second(self, dataset: datasets.Dataset) -> str:
        features = flat(dataset.features)
        free = [
            name
            for name, feature in features.items()
            if name not in (self.options.image, self.options.group)
            and is_texts(feature)
            and not name.startswith("__")
        ]
        free = [name for name in free if not _names_files(dataset, name)]
        named = [name for name in free if name.rsplit(".", 1)[-1].lower() in CAPTION_NAMES]
        found = named or free
        if len(found) > 1:
            raise ambiguous("text", found)
        if found:
            return found[0]
        vectors = [n for n, f in features.items() if is_vector(f) and n != self.options.image]
        if not vectors:
            raise UserError("no column holds captions", got=[*features], hint=choose_with("text"))
        if len(vectors) == 1 and not any(map(_is_image, features.values())):
            raise UserError(
                "there is one column of vectors, and no other field",
                got=[*features],
                expected="an image and a caption column, or two of vectors",
            )
        return _by_name(vectors, self.options.names[1], "text", "caption")

    def of_values(self, values: Any) -> PairItems:
        """Not asked for: see `open_raw`."""
        raise AssertionError("pairs from Python are taken apart before")

    def convert(self, item: Any) -> Any:
        """Not asked for: see `open_raw`."""
        raise AssertionError("pairs from Python are taken apart before")

    def collect(self, items: list[Any]) -> PairItems:
        """Not asked for: see `open_raw`."""
        raise AssertionError("pairs from Python are taken apart before")


def _require_key(features: Mapping[str, Any], name: str | None) -> None:
    """Refuse a group column whose values cannot tell rows apart."""
    if name is None:
        return
    whole = getattr(features[name], "dtype", "").startswith(("int", "uint"))
    if not (is_text(features[name]) or whole):
        raise UserError(
            f"column {name!r} cannot tell which rows are one item",
            got=str(features[name]),
            expected="strings or whole numbers, e.g. a file name or an id",
        )


def _by_name(found: list[str], *words: str) -> str:
    """The one of several columns whose name tells that it is meant."""
    told = [name for name in found if any(word in name.lower() for word in words)]
    if len(found) == 1 or len(told) == 1:
        return (told or found)[0]
    raise ambiguous(words[1], found)


def is_texts(feature: Any) -> bool:
    """True for a column of strings, or of lists of strings."""
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return is_text(feature.feature)
    return is_text(feature)


def _is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image) or is_file(feature)


def _names_files(dataset: datasets.Dataset, name: str) -> bool:
    """Tell a column of image files' names, as find_images reads them."""
    return name in dataset.column_names and holds_files(dataset, name, IMAGE_FILES)


__all__ = ["PairColumns", "RawPairs", "Vectors", "open_raw"]
