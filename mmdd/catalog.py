"""One explicit dictionary per family. Adding a part = one file + one line here (+ one recipe).

Values are ``"module:name"`` and are imported when asked for, so that listing and validating names
needs no heavy package.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mmdd.errors import unknown_name

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A listed part: where it is and one line about it."""

    target: str
    about: str

    def load(self) -> Any:
        """Import the part."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


MODALITIES = {
    "images": Entry("mmdd.modalities.images.modality:IMAGES", "pictures: grey or RGB, 8 to 224 px"),
}
TASKS = {
    "classification": Entry(
        "mmdd.tasks.classification:Classification", "one class per item; accuracy"
    ),
}
OBJECTIVES = {
    "distribution": Entry(
        "mmdd.objectives.distribution:DistributionMatching",
        "feature means, moments or kernel MMD per group (DM)",
    ),
}
SOURCES = {
    "fresh": Entry("mmdd.sources:Fresh", "a newly initialised net at every step"),
}
REPRESENTATIONS = {
    "direct": Entry("mmdd.representations:Direct", "the items themselves"),
}
LABELS = {
    "hard": Entry("mmdd.labels:HardLabels", "fixed class labels"),
}
SELECTORS = {
    "random": Entry("mmdd.selection:random", "uniformly random items of each class"),
    "herding": Entry("mmdd.selection:herding", "greedy match of the class's mean feature"),
    "k-center": Entry("mmdd.selection:k_center", "greedy farthest-first cover of the class"),
}
FAMILIES: dict[str, Mapping[str, Entry]] = {
    "modalities": MODALITIES,
    "tasks": TASKS,
    "objectives": OBJECTIVES,
    "sources": SOURCES,
    "representations": REPRESENTATIONS,
    "labels": LABELS,
    "selectors": SELECTORS,
}


def require(kind: str, name: str, family: Mapping[str, T] | Iterable[str]) -> Any:
    """Return ``family[name]``; an unknown name is a `UserError` with the nearest suggestion."""
    if not isinstance(name, str) or name not in family:
        raise unknown_name(kind, name, family)
    return family[name] if isinstance(family, Mapping) else name


def load(kind: str, name: str, family: Mapping[str, Entry]) -> Any:
    """Import the part called `name`."""
    return require(kind, name, family).load()


def options(modality: str) -> Any:
    """Return the option models of a modality: DATA, ENCODERS, AUGMENTATIONS. Imports no torch."""
    require("modality", modality, MODALITIES)
    return importlib.import_module(f"mmdd.modalities.{modality}.options")
