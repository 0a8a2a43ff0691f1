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
    "graphs": Entry("mmdd.modalities.graphs.modality:GRAPHS", "nodes of a graph, or whole graphs"),
    "text": Entry(
        "mmdd.modalities.text.modality:TEXT", "sentences: token embeddings, or one vector each"
    ),
    "timeseries": Entry(
        "mmdd.modalities.timeseries.modality:TIMESERIES",
        "series of one channel or several: classes, values, forecasts",
    ),
    "audio": Entry("mmdd.modalities.audio.modality:AUDIO", "clips: log-mel spectra or waveforms"),
    "video": Entry("mmdd.modalities.video.modality:VIDEO", "clips of a fixed number of frames"),
    "pairs": Entry(
        "mmdd.modalities.pairs.modality:PAIRS", "images with captions, or any two fields"
    ),
}
TASKS = {
    "classification": Entry(
        "mmdd.tasks.classification:Classification", "one class per item; accuracy"
    ),
    "multi-label": Entry(
        "mmdd.tasks.multilabel:MultiLabel", "any number of classes per item; micro- and macro-F1"
    ),
    "regression": Entry("mmdd.tasks.regression:Regression", "numbers per item; mse, mae and r2"),
    "forecasting": Entry(
        "mmdd.tasks.forecasting:Forecasting", "what follows a window of a series; mse and mae"
    ),
    "retrieval": Entry(
        "mmdd.tasks.retrieval:Retrieval", "either side of pairs finds the other; InfoNCE, recall"
    ),
    "retrieval-wbce": Entry(
        "mmdd.tasks.retrieval:WeightedRetrieval", "the same by weighted binary cross-entropy (LoRS)"
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
    "penalty": Entry(
        "mmdd.objectives.penalty:Penalty",
        "what the representation holds against itself, e.g. edges beyond the start's (DosCond)",
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
    "pairwise": Entry(
        "mmdd.modalities.graphs.pairwise:Pairwise",
        "nodes, and an adjacency made from their features (GCond)",
    ),
    "bernoulli": Entry(
        "mmdd.modalities.graphs.adjacency:FreeAdjacency",
        "nodes or whole graphs, and a sampled adjacency (DosCond)",
    ),
    "low-rank": Entry(
        "mmdd.modalities.graphs.adjacency:LowRank", "nodes, and an adjacency of low rank"
    ),
    "series": Entry(
        "mmdd.modalities.timeseries.windows:Series",
        "one continuous series; inputs and horizons are windows of it (CondTSF)",
    ),
    "static-dynamic": Entry(
        "mmdd.modalities.video.memories:StaticDynamic",
        "a still, a small memory of motion and a shared decoder for every clip (VDSD)",
    ),
    "key-frames": Entry(
        "mmdd.modalities.video.memories:KeyFrames", "some frames, the others between them (PRISM)"
    ),
}
LABELS = {
    "hard": Entry("mmdd.labels:HardLabels", "fixed class labels"),
    "soft": Entry("mmdd.labels:SoftLabels", "logits that are learned with the items (DATM)"),
    "teacher": Entry("mmdd.labels:SoftLabels", "what trained nets say of the items (TESLA)"),
    "relation": Entry(
        "mmdd.labels:RelationLabels", "similarities of all pairs, learned with them (LoRS)"
    ),
    "attention": Entry(
        "mmdd.labels:AttentionLabels",
        "class labels, and where a transformer is to look, learned with the items",
    ),
}
SELECTORS = {
    "random": Entry("mmdd.selection:random", "uniformly random items of each class"),
    "herding": Entry("mmdd.selection:herding", "greedy match of the class's mean feature"),
    "k-center": Entry("mmdd.selection:k_center", "greedy farthest-first cover of the class"),
    "k-means": Entry("mmdd.selection:k_means", "items nearest to k-means centres (DREAM)"),
}
EXPORTS = {
    "parquet": Entry("mmdd.artifact:to_parquet", "a folder for datasets.load_dataset"),
    "imagefolder": Entry("mmdd.modalities.images.export:to_imagefolder", "PNG files by class"),
    "safetensors": Entry("mmdd.artifact:to_safetensors", "the exact tensors"),
    "npz": Entry("mmdd.modalities.graphs.export:to_npz", "arrays of a condensed graph"),
    "wav": Entry("mmdd.modalities.audio.export:to_wav", "WAV files by class, and a player page"),
    "gif": Entry("mmdd.modalities.video.export:to_gif", "an animated GIF per clip, by class"),
    "frames": Entry("mmdd.modalities.video.export:to_frames", "PNG files of all frames, by class"),
    "strips": Entry("mmdd.modalities.video.export:to_strips", "a PNG strip per clip, by class"),
    "mp4": Entry("mmdd.modalities.video.export:to_mp4", "a video per clip, by class (PyAV)"),
}
GUESS = Entry("mmdd.modalities.guess:modality_of", "tells the modality of a source by its columns")
FAMILIES: dict[str, Mapping[str, Entry]] = {
    "modalities": MODALITIES,
    "tasks": TASKS,
    "objectives": OBJECTIVES,
    "sources": SOURCES,
    "representations": REPRESENTATIONS,
    "labels": LABELS,
    "selectors": SELECTORS,
    "exports": EXPORTS,
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
