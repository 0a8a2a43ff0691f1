"""What messages call the items of a modality."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Words:
    """The nouns of messages.

    Attributes
    ----------
    one, many: an item, e.g. ``"image"`` and ``"images"``.
    source: what a source may be, e.g. ``"a name or path, e.g. digits"``.
    folder: what a local folder may hold, e.g. ``"parquet files, train/<class>/*.png"``.
    unlabelled: what to do when a folder gives no labels.
    """

    one: str
    many: str
    source: str
    folder: str
    unlabelled: str
