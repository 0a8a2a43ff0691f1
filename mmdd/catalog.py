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
        "feature means, moments, covariances, characteristic functions or kernel MMD per group"
        " (DM, DANCE)",
    ),
    "gradient": Entry(
        "mmdd.objectives.gradient:GradientMatching",
        "gradients of the loss per group (DC, DSA, IDC)",
    ),
    "trajectory": Entry(
        "mmdd.objectives.trajectory:TrajectoryMatching",
        "where training on the set leads, against an expert (MTT, TESLA, DATM)",
    ),
    "cross-entropy": Entry(
        "mmdd.objectives.cross_entropy:CrossEntropy",
        "the task's loss at a net that knows the real items (DANCE, IDM)",
    ),
}
SOURCES = {
    "fresh": Entry("mmdd.sources:Fresh", "a newly initialised net at every step"),
    "synthetic-trained": Entry(
        "mmdd.trained_sources:SyntheticTrained", "a net in training on the synthetic set (DC)"
    ),
    "real-trained": Entry(
        "mmdd.trained_sources:RealTrained", "a net in training on real items (IDC)"
    ),
    "pool": Entry("mmdd.trained_sources:Pool", "nets of staggered ages (IDM, FRePo)"),
    "interpolated": Entry(
        "mmdd.expert_sources:Interpolated",
        "between start and end of a recorded training, with that end (DANCE)",
    ),
    "experts": Entry(
        "mmdd.expert_sources:Segments", "segments of recorded expert trajectories (MTT, DATM)"
    ),
}
REPRESENTATIONS = {
    "direct": Entry("mmdd.representations:Direct", "the items themselves"),
    "packed": Entry("mmdd.packed:Packed", "several small items in one (IDC, IDM)"),
    "basis": Entry("mmdd.basis:Basis", "shared bases and an address for every item (LinBa)"),
    "frequency": Entry("mmdd.frequency:Frequency", "some cosine coefficients (FreD)"),
}
LABELS = {
    "hard": Entry("mmdd.labels:HardLabels", "fixed class labels"),
    "soft": Entry("mmdd.labels:SoftLabels", "logits that are learned with the items (DATM)"),
    "teacher": Entry("mmdd.labels:SoftLabels", "what trained nets say of the items (TESLA)"),
}
SELECTORS = {
    "random": Entry("mmdd.selection:random", "uniformly random items of each class"),
    "herding": Entry("mmdd.selection:herding", "greedy match of the class's mean feature"),
    "k-center": Entry("mmdd.selection:k_center", "greedy farthest-first cover of the class"),
    "k-means": Entry("mmdd.selection:k_means", "items nearest to k-means centres (DREAM)"),
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
