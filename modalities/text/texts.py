"""Texts of one split before they are tokenised, or ready vectors, and both perhaps.

Shape suffixes: N rows of the split, n of a read, D numbers of a vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmdd.errors import UserError
from mmdd.modalities.tables.arrays import Array

Fields = tuple[str, ...]
"""The parts of one text: a sentence, or a premise and a hypothesis."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """The rows of one split.

    Attributes
    ----------
    columns: one or several columns of N strings or nulls; none where there are only vectors.
    vectors: [N, D] float16 or float32, or None.
    """

    columns: tuple[pa.ChunkedArray, ...]
    vectors: Array | None = None

    def __len__(self) -> int:
        return len(self.columns[0]) if self.vectors is None else len(self.vectors)

    def read(self, rows: Array) -> list[Fields | None]:
        """The texts `rows` [n], their ends stripped; None where every field is empty or null."""
        index = pa.array(rows)
        parts = [column.take(index).to_pylist() for column in self.columns]
        found: list[Fields | None] = []
        for values in zip(*parts, strict=True):
            fields = tuple((value or "").strip() for value in values)
            found.append(fields if any(fields) else None)
        return found


def from_strings(values: Sequence[Any]) -> Texts:
    """Take N strings, or N tuples of as many strings.

    Errors: UserError when an item is neither, or when tuples differ in length.
    """
    rows = [value if isinstance(value, (tuple, list)) else (value,) for value in values]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise UserError("some texts have more fields than others", got=lengths, expected="one")
    strange = [v for row in rows for v in row if not (v is None or isinstance(v, str))]
    if strange or lengths == [0]:
        raise UserError(
            "these are no texts",
            got=type(strange[0] if strange else rows[0]),
            expected="strings, tuples of strings, or [N, D] floats",
        )
    count = lengths[0] if lengths else 1
    columns = [
        pa.chunked_array([pa.array([r[k] for r in rows], pa.string())]) for k in range(count)
    ]
    return Texts(tuple(columns))


def from_vectors(values: Array, column: str = "these values") -> Texts:
    """Take [N, D] floats; float16 and float32 stay, others become float32.

    Errors: UserError when they are no vectors of floats, or not finite.
    """
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiu":
        raise UserError(
            f"{column} are no vectors",
            got=(values.shape, str(values.dtype)),
            expected="[N, D] floats",
        )
    if values.dtype not in (np.float16, np.float32):
        values = values.astype(np.float32)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise UserError(
            f"{int(bad.sum())} vectors are NaN or infinite, the first in row {int(bad.argmax())}",
            expected="finite numbers",
        )
    return Texts((), values)
