"""How texts are found in tables and taken from Python: what `modalities.tables` asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import to_numpy
from mmdd.modalities.tables.items import Reader
from mmdd.modalities.tables.words import Words
from mmdd.modalities.text.columns import TextColumns, find_columns
from mmdd.modalities.text.options import TextData
from mmdd.modalities.text.texts import Texts, from_strings, from_vectors

WORDS = Words(
    one="text",
    many="texts",
    source="a name or path, e.g. a folder of parquet files",
    folder="parquet, csv or json files with a text and a label column",
    unlabelled="Texts need a column of classes beside them",
)


class RawTexts(Reader[Texts]):
    """Texts in columns, files and Python objects."""

    words = WORDS

    def __init__(self, options: TextData) -> None:
        self.options = options
        columns = options.text_columns
        self.field = options.embedding or (columns[0] if columns else "text")
        self.workers = 0  # strings cost nothing to read, and much to send

    def find(self, dataset: datasets.Dataset) -> TextColumns:
        """Choose the columns; see `find_columns`."""
        return find_columns(dataset, self.options)

    def pick(self, sample: Mapping[str, Any]) -> Any:
        """The chosen fields of a sample that is a dict."""
        columns = self.options.text_columns
        if columns is None or len(columns) == 1 or self.options.embedding is not None:
            return sample[self.field]
        return tuple(sample[name] for name in columns)

    def of_values(self, values: Any) -> Texts:
        """A list of strings or of tuples of them; [N, D] vectors."""
        return from_strings(values) if _is_strings(values) else from_vectors(to_numpy(values))

    def convert(self, item: Any) -> Any:
        """One text, or one vector as a numpy array."""
        if isinstance(item, str) or (isinstance(item, (tuple, list)) and _is_strings([item])):
            return item
        if not hasattr(item, "shape"):
            raise UserError("this is no text", got=type(item), expected="a string or a vector")
        return np.array(to_numpy(item))  # copied: a data set may reuse its buffer

    def collect(self, items: list[Any]) -> Texts:
        """Join what `convert` returned."""
        if all(isinstance(item, np.ndarray) for item in items) and items:
            shapes = sorted({item.shape for item in items})
            if len(shapes) > 1:
                raise UserError("the vectors are not all of one length", got=shapes[:3])
            return from_vectors(np.stack(items))
        return from_strings(items)


def _is_strings(values: Any) -> bool:
    """Tell texts from numbers by the first value."""
    if hasattr(values, "dtype"):
        return str(values.dtype) in ("object", "str") or str(values.dtype).startswith("<U")
    first = next(iter(values), "")
    if isinstance(first, (tuple, list)):
        first = next(iter(first), "")
    return first is None or isinstance(first, str)
