"""What the names of a recipe stand for, for one opened data set."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from mmdd import catalog, machine
from mmdd.errors import UserError
from mmdd.evaluate import Trainer
from mmdd.learner import Learner
from mmdd.modality import Augmentation, DataInfo, Modality, Splits
from mmdd.real import RealData
from mmdd.recipe import Protocol, Recipe
from mmdd.task import Task


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a recipe's names stand for, for one opened data set."""

    recipe: Recipe
    info: DataInfo
    modality: Modality
    task: Task
    device: torch.device

    def learner(
        self, items: float, encoder: str | None = None, minutes: float | None = None
    ) -> Learner:
        """Build a learner for `items` forward passes of one item in all, or for so many minutes.

        `encoder` names the one that judges: ``evaluate.learner`` if that is its name, or the
        recipe's own, or another with its default options.
        """
        options = self.recipe.learner
        judge = self.recipe.evaluate.learner
        if encoder is not None and judge is not None and judge.encoder == encoder:
            options = judge
        elif encoder is not None and encoder != options.encoder:
            options = catalog.options(self.recipe.modality).ENCODERS[encoder]()
        module = self.modality.encoder(options, self.info)
        example = self.modality.example(self.info)
        eager = getattr(self.modality, "eager", False)
        how = machine.execution(
            self.recipe.run, self.device, module, example, items, eager=eager, minutes=minutes
        )
        return Learner(module, self.task, device=self.device, **how)

    @property
    def judge(self) -> str:
        """Name of the encoder that judges first."""
        return str((self.recipe.evaluate.learner or self.recipe.learner).encoder)

    def augmentation(self) -> Augmentation | None:
        """The recipe's augmentation."""
        return self.modality.augmentation(self.recipe.augment, self.info)

    def judging_augmentation(self) -> Augmentation | None:
        """What judging learners train under: the recipe's, unless ``evaluate`` says otherwise."""
        chosen = self.recipe.evaluate.augment
        options = self.recipe.augment if chosen is None else chosen
        return self.modality.augmentation(options, self.info)

    def trainer(
        self, learner: Learner, protocol: Protocol, validation: RealData | None, **more: Any
    ) -> Trainer:
        """A trainer whose randomness depends on the run's seed alone."""
        if protocol.selection == "validation" and validation is None:
            raise UserError(
                "selection by validation needs a validation split",
                hint="Set data.validation to a share above 0, or evaluate.selection=last.",
            )
        seed = self.recipe.run.seed
        augmentation = self.judging_augmentation()
        mixers = self.modality.mixers
        return Trainer(learner, protocol, seed, augmentation, validation, mixers=mixers, **more)


def fitted(recipe: Recipe, info: DataInfo) -> Recipe:
    """The recipe as the data settle it, where a person left it open.

    A modality says what it opened its data for: of texts that have several labels each, it is no
    classification, and a person who did not choose a task need not know. One whose usual encoder
    depends on the items has ``settled(learner, shape)``, which names it.
    """
    options = catalog.options(recipe.modality)
    changes: dict[str, Any] = {}
    if recipe.task == getattr(options, "TASK", "classification"):
        changes["task"] = info.task
    settled = getattr(options, "settled", None)
    if settled is not None:
        changes["learner"] = settled(recipe.learner, info.shape)
    return recipe.model_copy(update=changes)


def parts(recipe: Recipe, info: DataInfo, device: torch.device) -> Parts:
    """Look the recipe's names up."""
    modality = catalog.load("modality", recipe.modality, catalog.MODALITIES)
    task = catalog.load("task", recipe.task, catalog.TASKS)()
    if info.task != recipe.task:
        raise UserError(
            f"these data were opened for {info.task}",
            got=f"task {recipe.task}",
            hint=f"Set task={info.task}.",
        )
    _require_labels(task, recipe.synthetic.labels.kind)
    return Parts(recipe, info, modality, task, device)


def _require_labels(task: Task, kind: str) -> None:
    """Refuse synthetic labels that the task's loss cannot read."""
    if kind == "attention" and "attention" not in task.label_kinds:
        raise UserError(
            "labels of attention stand beside the classes of an item",
            got=f"task {task.name}",
            expected="task classification or multi-label",
        )
    if kind == "relation" and "relation" not in task.label_kinds:
        raise UserError(
            "relation labels are similarities between pairs",
            got=f"task {task.name}",
            expected="a task that compares pairs, e.g. retrieval",
        )
    if kind in ("soft", "teacher") and "relation" in task.label_kinds:
        raise UserError(
            f"labels of kind {kind} are per item, and this task compares pairs",
            got=f"task {task.name}",
            expected="labels hard (item i belongs to item i) or relation (learned similarities)",
        )
    if "values" in task.label_kinds and kind == "teacher":
        raise UserError(
            "a teacher's labels are class probabilities",
            got=f"task {task.name}",
            expected="labels hard (targets are kept) or soft (targets are learned)",
        )


def open_data(recipe: Recipe, source: Any, device: torch.device) -> Splits:
    """Open the recipe's data; `source` is a Python object or None for ``data.source``."""
    modality = catalog.load("modality", recipe.modality, catalog.MODALITIES)
    wanted = recipe.data.source if source is None else source
    if wanted is None:
        raise UserError(
            "no data named",
            expected="a data set: 'digits', a folder or file, or a Hub name (owner/name)",
            hint="Give it on the command line or as data.source in the recipe.",
        )
    options = recipe.data
    if "task" in type(options).model_fields:
        options = options.model_copy(update={"task": recipe.task})
    return modality.open(wanted, options, device)
