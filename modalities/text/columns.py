"""Which column of a table holds the texts, and which the ready vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import datasets
import numpy as np
import pyarrow as pa

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array
from mmdd.modalities.tables.columns import (
    ambiguous,
    choose_with,
    flat,
    is_text,
    is_vector,
    require_column,
    stored,
)
from mmdd.modalities.tables.labels import few_strings, looks_like_label
from mmdd.modalities.text.options import TextData
from mmdd.modalities.text.texts import Texts, from_vectors

TEXT_NAMES = ("text", "sentence", "content", "document", "review", "utterance", "query")
PAIRED = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
"""Columns that are one text together: the names that the tasks of GLUE gave them."""


@dataclasses.dataclass(frozen=True)
class TextColumns:
    """The chosen columns.

    Attributes
    ----------
    text: those that are joined; empty where the table has vectors alone.
    embedding: the column of vectors, or None.
    """

    text: tuple[str, ...]
    embedding: str | None

    @property
    def names(self) -> Mapping[str, str]:
        """``text``, or ``text 1``, ``text 2``; ``embedding``."""
        keys = ["text"] if len(self.text) == 1 else [f"text {n + 1}" for n in range(len(self.text))]
        found = dict(zip(keys, self.text, strict=True))
        return found if self.embedding is None else {**found, "embedding": self.embedding}

    def read(self, dataset: datasets.Dataset, split: str, root: str) -> Texts:
        """Return the texts and vectors of one split."""
        features = flat(dataset.features)
        for name in self.names.values():
            require_column(name, features, f"column in split {split!r}")
        columns = tuple(stored(dataset, name).cast(pa.string()) for name in self.text)
        if self.embedding is None:
            return Texts(columns)
        vectors = as_vectors(stored(dataset, self.embedding), self.embedding)
        return Texts(columns, from_vectors(vectors, f"values of column {self.embedding!r}").vectors)


def find_columns(dataset: datasets.Dataset, options: TextData) -> TextColumns:
    """Choose the columns of a table, by its training split (one row at least).

    Ready vectors are taken where the options leave the space open and there are some.

    Errors: UserError when a given name is unknown or unfit, when nothing fits, or several do.
    """
    vectors = _find_vectors(dataset, options)
    if vectors is None and options.space == "column":
        raise UserError(
            "no column holds vectors",
            got=dataset.column_names,
            expected="lists of floats, all of one length",
            hint=choose_with("embedding"),
        )
    return TextColumns(_find_texts(dataset, options, vectors is None), vectors)


def _find_vectors(dataset: datasets.Dataset, options: TextData) -> str | None:
    features = flat(dataset.features)
    found = [name for name in features if is_vector(features[name])]
    given = options.embedding
    if given is not None:
        require_column(given, features, "embedding column")
        if given not in found:
            raise UserError(
                f"column {given!r} holds no vectors",
                got=str(features[given]),
                expected="lists of floats, all of one length",
            )
        return given
    asked = options.text is not None or options.model is not None or options.tokenizer is not None
    if options.space not in ("auto", "column") or (asked and options.space == "auto"):
        return None
    if len(found) > 1:
        raise ambiguous("embedding", found)
    return found[0] if found else None


def _find_texts(dataset: datasets.Dataset, options: TextData, needed: bool) -> tuple[str, ...]:
    features = flat(dataset.features)
    strings = [name for name in features if is_text(features[name])]
    given = options.text_columns
    if given is not None:
        for name in given:
            require_column(name, features, "text column")
            if name not in strings:
                got = str(features[name])
                raise UserError(f"column {name!r} holds no texts", got=got, expected="strings")
        return tuple(given)
    free = [name for name in strings if name != options.label and not name.startswith("__")]
    free = [name for name in free if not looks_like_label(name, features[name])]
    found = free if len(free) < 2 else _likely(dataset, free)
    if not needed:
        return tuple(found) if len(found) == 1 else ()  # shown beside the vectors, no more
    if not found:
        raise UserError("no column holds texts", got=[*features], hint=choose_with("text"))
    if len(found) > 1 and tuple(found) not in PAIRED:
        raise ambiguous("text", found)
    return tuple(found)


def _likely(dataset: datasets.Dataset, free: list[str]) -> list[str]:
    """Those of several string columns that are the text by name, or no classes by content."""
    lowered = {name.lower(): name for name in free}
    for pair in PAIRED:
        if all(name in lowered for name in pair):
            return [lowered[name] for name in pair]
    named = [lowered[name] for name in TEXT_NAMES if name in lowered]
    if len(named) == 1:
        return named
    many = [name for name in free if not few_strings(dataset, name)]
    if len(many) == 1:
        return many
    return named or many or free


def as_vectors(column: pa.ChunkedArray, name: str) -> Array:
    """[N, D] numbers of a column of lists.

    Errors: UserError when a list is missing or of another length.
    """
    lists = column.combine_chunks()
    lists = lists.storage if isinstance(lists, pa.ExtensionArray) else lists
    if lists.null_count:
        missing = int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(
            f"{lists.null_count} vectors of column {name!r} are missing, the first in row {missing}"
        )
    if pa.types.is_fixed_size_list(lists.type):
        length = lists.type.list_size
    else:
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        length = int(lengths[0]) if len(lengths) else 0
        if (lengths != length).any():
            row = int((lengths != length).argmax())
            raise UserError(
                f"the vectors of column {name!r} are not all of one length",
                got=f"{int(lengths[row])} numbers in row {row}",
                expected=f"{length}, as in row 0",
            )
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), length)
