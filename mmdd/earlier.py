"""A set that begins where an earlier one ended: ``synthetic.initialise=FOLDER``.

So a set that is cheaply made (by a method of few seconds, or at a narrow net) is the start of one
that is dear. What both recipes say alike goes on as it was: the stored tensors of the
representation, learned labels, the step size. Otherwise the earlier set is decoded, and its items
are the start items of the new one.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdd import artifact, files
from mmdd.assembly import (
    bounds_of,
    has_values,
    representation_of,
    restore,
    tensors_of,
    with_targets,
)
from mmdd.errors import UserError
from mmdd.labels import Labels
from mmdd.parts import Parts
from mmdd.parts import parts as parts_of
from mmdd.recipe import Recipe, validate
from mmdd.representations import Representation
from mmdd.rng import generator
from mmdd.sections import STARTS
from mmdd.synthetic import SyntheticSet
from mmdd.task import has_sets
from mmdd.trees import Tree


@dataclasses.dataclass
class Earlier:
    """A finished set that another one goes on from.

    Attributes
    ----------
    parts: of the new set; both are of the same data.
    recipe, made: of the earlier one.
    """

    parts: Parts
    folder: Path
    recipe: Recipe
    made: SyntheticSet
    tensors: dict[str, Tensor]

    def representation(self, stored: Tensor) -> tuple[Representation, Tensor | None]:
        """What `stored` [G] items per group start as; for sets of classes, these sets [M, C].

        Raises `UserError` where the earlier set has other numbers of items.
        """
        kind, options = representation_of(self.parts)
        example = with_targets(self.parts.modality, self.parts.task.name, self.parts.info)
        bounds, sets = bounds_of(self.parts), self._sets()
        before = type(self.made.representation)
        if before.settle is not Representation.settle:
            raise self._other_kind("what it was learned with is not kept in a finished set")
        if self._is_kept("representation"):
            self._require(self.made.groups, stored)
            own = tensors_of(self.tensors, "representation")
            return kind.of_state(own, example=example, bounds=bounds, **options), sets
        if kind.continuous or before.continuous:
            raise self._other_kind("it is one series")
        values, groups = self._items()
        self._require(groups, stored * kind.needs(example, **options))
        stream = generator(self.parts.recipe.run.seed, "representation")
        made = kind.of_items(values, bounds=bounds, generator=stream, **options)
        return made, sets

    def labels(self) -> Labels | None:
        """Learned labels that go on; None where the new set's start by a rule of their own."""
        learned = self.parts.recipe.synthetic.labels.kind not in ("hard", "teacher")
        return self.made.labels if learned and self._is_kept("labels") else None

    @torch.no_grad()
    def continue_rates(self, made: SyntheticSet) -> None:
        """Set the rates of inner training to those that were learned, where both sets have any."""
        ours, theirs = made.step_size, self.made.step_size
        if ours is not None and theirs is not None and ours.log.shape == theirs.log.shape:
            ours.log.copy_(theirs.log)

    def _is_kept(self, part: str) -> bool:
        ours, theirs = self.parts.recipe.synthetic, self.recipe.synthetic
        return bool(getattr(ours, part) == getattr(theirs, part))

    @torch.no_grad()
    def _items(self) -> tuple[Tree, Tensor]:
        """Decoded items, group by group, and the group of each [K]."""
        batch = self.made.batch()
        values = batch.inputs
        if has_values(self.parts.task):
            values = {"inputs": values, "targets": batch.targets}
        assert batch.groups is not None
        return values, batch.groups

    def _sets(self) -> Tensor | None:
        if not has_sets(self.parts.task):
            return None
        if self.made.labels.kind != "hard" or self.made.representation.expand > 1:
            raise UserError(
                "a set of items with several classes begins with one whose classes are fixed",
                got=f"labels {self.made.labels.kind} in {str(self.folder)!r}",
                expected="labels hard, one item in each stored one",
            )
        return self.tensors["labels.targets"]

    def _require(self, groups: Tensor, wanted: Tensor) -> None:
        """Refuse other numbers of items per group than `wanted` [G]."""
        there = torch.bincount(groups, minlength=len(wanted))
        if torch.equal(there, wanted):
            return
        first = int(torch.nonzero(there != wanted).flatten()[0])
        names = self.parts.info.names
        whose = f" of class {names[first]!r}" if first < len(names) else ""
        raise UserError(
            f"the set in {str(self.folder)!r} has other numbers of items than the new one needs",
            got=int(there[first]),
            expected=f"{int(wanted[first])} items{whose}",
            hint="Give the same budget and representation as the earlier set.",
        )

    def _other_kind(self, why: str) -> UserError:
        ours = self.parts.recipe.synthetic.representation.kind
        theirs = self.recipe.synthetic.representation.kind
        return UserError(
            f"the set in {str(self.folder)!r} cannot be the start of this one: {why}",
            got=f"representation {theirs}, and {ours} for the new set",
            hint="Start from real items: synthetic.initialise=real.",
        )


def earlier(parts: Parts) -> Earlier | None:
    """Open the set that the recipe begins with; None where it begins otherwise.

    Raises `UserError` when there is none, or it is of other data.
    """
    if parts.recipe.synthetic.initialise in STARTS:
        return None
    folder = Path(parts.recipe.synthetic.initialise)
    try:
        found = artifact.load(folder)
    except UserError as error:
        raise UserError(f"synthetic.initialise: {error}") from None
    recipe = validate(found.manifest["recipe"], str(folder / artifact.MANIFEST))
    _require_same_data(parts, recipe, found.manifest["info"], folder)
    made = restore(parts_of(recipe, parts.info, parts.device), found.tensors)
    return Earlier(parts, folder, recipe, made, found.tensors)


def require_fit(parts: Parts, counts: Tensor) -> None:
    """Refuse an earlier set that cannot be the start of this one, before any work.

    `counts` [G] is the budget. Raises `UserError`.
    """
    if (begun := earlier(parts)) is not None:
        kind, options = representation_of(parts)
        example = with_targets(parts.modality, parts.task.name, parts.info)
        begun.representation(kind.stored(counts, example, **options))


def _require_same_data(parts: Parts, recipe: Recipe, info: dict[str, Any], folder: Path) -> None:
    """Items of other data, or of another space, are no start."""
    ours = {
        "modality": parts.recipe.modality,
        "task": parts.recipe.task,
        "fingerprint of the data": parts.info.fingerprint[:12],
        "shape": list(parts.info.shape),
        "normalisation": json.loads(files.json_text(parts.info.normalisation)),
    }
    theirs = {
        "modality": recipe.modality,
        "task": recipe.task,
        "fingerprint of the data": info["fingerprint"][:12],
        "shape": list(info["shape"]),
        "normalisation": info["normalisation"],
    }
    other = next((key for key in ours if ours[key] != theirs[key]), None)
    if other is not None:
        raise UserError(
            f"the set in {str(folder)!r} was made from other data",
            got=f"{other} {theirs[other]}",
            expected=f"{ours[other]}",
            hint="Begin with a set of the same data and data options.",
        )


def told(recipe: Recipe) -> dict[str, Any] | None:
    """What a manifest says of the set that another one began with; None where there is none."""
    if recipe.synthetic.initialise in STARTS:
        return None
    before = artifact.load(Path(recipe.synthetic.initialise)).manifest
    run = before.get("run", {})
    earlier_still = (run.get("begun_with") or {}).get("seconds", 0.0)
    return {
        "digest": before["digest"],
        "method": before["recipe"]["method"],
        "steps": run.get("steps"),
        # of all that came before
        "seconds": round(float(run.get("seconds") or 0.0) + earlier_still, 3),
    }
