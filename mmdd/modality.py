"""What the core asks of a modality, and what it learns of an opened data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from mmdd.real import RealData
from mmdd.trees import Tree

if TYPE_CHECKING:
    from pathlib import Path


Mixer = Callable[[Tree, Tree, torch.Generator], tuple[Tree, float]]
"""Mixes the items of a batch with those of another of the same shapes, item by item, while a
learner is trained: ``(inputs, partner, generator)`` gives the mixed inputs and the share of the
first ones in them, by which the two losses are weighted. The generator is on the CPU."""


@dataclasses.dataclass(frozen=True, eq=False)
class DataInfo:
    """Facts of an opened set that outlive it: they are stored in the artifact.

    Attributes
    ----------
    modality, task: names in the catalog.
    source: what was opened, as the user named it.
    shape: shape of one item, e.g. ``(C, H, W)``.
    classes: number of groups / classes.
    names: their names, in label order.
    fingerprint: hex digest of the data as read; equal digests mean equal items, labels and order.
    normalisation: what `prepare` applied, e.g. ``{"mean": [...], "std": [...]}`` of
        pixels in [0, 1].
    columns: the column that gives each field, e.g. ``{"image": "img", "label": "fine_label"}``.
    sizes: items per split.
    notes: what was decided on the way, in sentences to print once.
    tensors: what of `prepare` is too large for `normalisation`, on the CPU, e.g. the matrices that
        whiten items and undo it. The artifact stores them beside the set; they describe the space
        and do not count as the set's bytes.
    """

    modality: str
    task: str
    source: str
    shape: tuple[int, ...]
    classes: int
    names: tuple[str, ...]
    fingerprint: str
    normalisation: Mapping[str, Any]
    columns: Mapping[str, str]
    sizes: Mapping[str, int]
    notes: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: everything but `tensors`."""
        facts = dataclasses.asdict(dataclasses.replace(self, tensors={}))
        del facts["tensors"]
        return facts

    def __eq__(self, other: object) -> bool:
        """Compare all facts, and the tensors to the bit."""
        if not isinstance(other, DataInfo):
            return NotImplemented
        return (
            self.as_dict() == other.as_dict()
            and self.tensors.keys() == other.tensors.keys()
            and all(torch.equal(own, other.tensors[name]) for name, own in self.tensors.items())
        )


@dataclasses.dataclass(frozen=True)
class Splits:
    """An opened data set. `validation` never overlaps `train`; `test` is only ever scored."""

    train: RealData
    validation: RealData | None
    test: RealData | None
    info: DataInfo

    def close(self) -> None:
        """Release what the three parts hold."""
        for part in (self.train, self.validation, self.test):
            if part is not None:
                part.close()


class Augmentation(Protocol):
    """A differentiable augmentation whose random draw is separate from its application.

    One draw applied to the real and to the synthetic batch makes them siamese.
    """

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Any:
        """`count` independent draws."""

    def __call__(self, inputs: Tree, draw: Any, rows: Tensor | None = None) -> Tree:
        """Apply draw ``rows[i]`` to item i of `inputs` (draw i when `rows` is None)."""


class Modality(Protocol):
    """One folder of ``modalities/``: how items are read, encoded, augmented and shown.

    A modality whose nets are not worth compiling sets ``eager = True``. One that opens its data
    for tasks whose targets are values has a field ``task`` in its data options, which the recipe's
    task fills in, and offers ``blank_targets(info)``: the targets of one blank item [1, ...]. One
    that knows forecasts without training offers ``naive(test, info)``: scores by row and metric.
    One with ``shows_real = True`` takes real items, ``real=(inputs, groups)``, into its picture.
    """

    name: str
    mixers: Mapping[str, Mixer]
    """Ways to mix two batches in a protocol's training, by name; empty where none makes sense."""

    def open(self, source: Any, options: Any, device: torch.device) -> Splits:
        """Open a source that the user named or handed over."""

    def encoder(self, options: Any, info: DataInfo) -> nn.Module:
        """Build a fresh encoder with its head for the opened data."""

    def example(self, info: DataInfo) -> Tree:
        """One blank item, with an axis of length 1 in front."""

    def augmentation(self, options: Any, info: DataInfo) -> Augmentation | None:
        """Build the augmentation, or None."""

    def noise(self, count: int, info: DataInfo, generator: torch.Generator) -> Tree:
        """`count` items of standard noise in the learner's input space."""

    def bounds(self, info: DataInfo) -> Tree | None:
        """Lowest and highest valid value of every input field, or None where there is no box."""

    def to_columns(
        self, inputs: Tree, targets: Tree, info: DataInfo
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """Columns and their ``datasets`` features: what a user reads without this package."""

    def picture(self, inputs: Tree, targets: Tree, info: DataInfo, path: Path) -> None:
        """Draw the items, group by group, into a PNG."""
