"""The typed recipe: a method is a page of YAML, and every mistake in it is one clear line.

Loaded before any heavy package: this module imports neither torch nor a modality's code, only the
modalities' option models.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from mmdd import catalog, method_sections, sections
from mmdd.errors import UserError
from mmdd.explain import Origin, PlacedError, SectionError, at, explain
from mmdd.protocols import PROTOCOLS, Evaluate, Protocol
from mmdd.section import Section, named
from mmdd.sections import Leaf, Run

__all__ = ["PROTOCOLS", "Evaluate", "Leaf", "Protocol", "Recipe", "Run", "validate"]


class Recipe(Section):
    """Everything that decides a result. Stored with it, every default included."""

    method: str = "dm"
    modality: str = "images"
    task: str = "classification"
    data: Any = Field(default_factory=dict)
    synthetic: sections.Synthetic = Field(default_factory=sections.Synthetic)
    learner: Any = Field(default_factory=dict)
    source: method_sections.Source = Field(default_factory=method_sections.Fresh)
    experts: method_sections.Experts = Field(default_factory=method_sections.Experts)
    objective: method_sections.Objective = Field(default_factory=method_sections.Distribution)
    augment: Any = Field(default_factory=dict)
    real: sections.Real = Field(default_factory=sections.Real)
    optimise: sections.Optimise = Field(default_factory=sections.Optimise)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    run: Run = Field(default_factory=Run)

    @property
    def terms(self) -> list[Any]:
        """The objectives that are summed; one alone is a sum of one."""
        return getattr(self.objective, "terms", None) or [self.objective]

    @property
    def protocol(self) -> Protocol:
        """How the set is judged; a momentum that is to be the learned rate's is a number here."""
        protocol = self.evaluate.resolved()
        if protocol.momentum != "learned":
            return protocol
        inner = [term.momentum for term in self.terms if term.kind == "trajectory"]
        return protocol.model_copy(update={"momentum": inner[0] if inner else 0.0})

    @model_validator(mode="after")
    def _modality_sections(self) -> Recipe:
        # data, learner and augment are typed by the modality: its option models are their schema.
        with at("modality"):
            options = catalog.options(self.modality)
        if "task" not in self.model_fields_set:
            self.task = getattr(options, "TASK", self.task)
        with at("task"):
            catalog.require("task", self.task, catalog.TASKS)
        self.data = _checked(options.DATA, self.data, "data")
        self.learner = _union(options.ENCODERS, self.learner, "learner", "encoder")
        self.augment = _union(options.AUGMENTATIONS, named(self.augment), "augment", "kind")
        if self.evaluate.augment is not None:
            section = named(self.evaluate.augment)
            judging = _union(options.AUGMENTATIONS, section, "evaluate.augment", "kind")
            self.evaluate = self.evaluate.model_copy(update={"augment": judging})
        if self.evaluate.learner is not None:
            section = self._beside_learner(self.evaluate.learner)
            judge = _union(options.ENCODERS, section, "evaluate.learner", "encoder")
            self.evaluate = self.evaluate.model_copy(update={"learner": judge})
        for name in self.evaluate.encoders:
            with at("evaluate.encoders"):
                catalog.require("encoder", name, options.ENCODERS)
        return self

    def _beside_learner(self, section: Any) -> Any:
        """``evaluate.learner`` with what it leaves out: a net of the same kind is `learner`'s."""
        section = {"encoder": section} if isinstance(section, str) else section
        if not isinstance(section, dict):
            return section
        own = self.learner.model_dump()
        same = section.get("encoder", own["encoder"]) == own["encoder"]
        return {**own, **section} if same else section

    @model_validator(mode="after")
    def _combinations(self) -> Recipe:
        if self.protocol.full not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise ValueError(f"evaluate.protocol.full must be one of {known}")
        if self.run.keep == "validation" and not self.evaluate.every:
            raise ValueError(
                "run.keep=validation needs scores during the run: set evaluate.every to a number"
                " of steps"
            )
        if self.protocol.lr == "learned" and self.synthetic.step_size is None:
            raise ValueError(
                f"protocol {self.evaluate.protocol.name} trains at the learned step size and this"
                " method learns none: set evaluate.lr=0.01"
            )
        by_validation = self.protocol.selection == "validation" or self.evaluate.every
        if by_validation and getattr(self.data, "validation", None) == 0:
            raise ValueError("scores on validation need a validation split: data.validation is 0")
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> Recipe:
        kinds = {section.kind for section in self.terms}
        labels, source = self.synthetic.labels.kind, self.source.kind
        if "trajectory" in kinds and source != "experts":
            raise ValueError(f"objective trajectory needs source experts, not {source}")
        if "trajectory" in kinds and self.synthetic.step_size is None:
            raise ValueError("objective trajectory needs synthetic.step_size, e.g. 0.01")
        if "trajectory" not in kinds and self.synthetic.step_size is not None:
            raise ValueError("synthetic.step_size is learned by objective trajectory alone")
        shape = self.synthetic.representation.kind
        if "penalty" in kinds and shape != "bernoulli":
            raise ValueError(f"objective penalty needs representation bernoulli, not {shape}")
        if self.synthetic.per_step is not None:
            self._require_some_fit(kinds)
        if labels in ("soft", "relation", "attention") and kinds <= {"distribution", "penalty"}:
            raise ValueError(
                f"{labels} labels: objective distribution reads no labels to learn them by"
            )
        for section in self.terms:
            self._require_related_nets(section)
        if isinstance(self.source, method_sections.Segments):
            self._require_segments_fit(self.source)
        return self

    def _require_some_fit(self, kinds: set[str]) -> None:
        if kinds == {"trajectory"}:
            raise ValueError(
                "synthetic.per_step is for comparisons; an inner step of objective trajectory takes"
                " objective.batch_size items"
            )
        if any(getattr(section, "by_size", False) for section in self.terms):
            raise ValueError("objective.by_size counts all items: leave synthetic.per_step out")

    def _require_segments_fit(self, source: method_sections.Segments) -> None:
        if self.experts.keep == "ends":
            raise ValueError("source experts needs every snapshot: set experts.keep=epochs")
        tops = (source.max_start, source.first_max_start)
        last = max((top - 1 for top in tops if top is not None), default=source.min_start)
        if source.length + last > self.experts.epochs:
            raise ValueError(
                f"segments of {source.length} epochs that start below {last + 1} do not fit into"
                f" experts.epochs={self.experts.epochs}"
            )

    def _require_related_nets(self, section: Any) -> None:
        trained = ("interpolated", "pool", "real-trained", "experts")
        if section.kind != "cross-entropy":
            return
        if section.at == "trained" and self.source.kind not in trained:
            raise ValueError(
                "objective cross-entropy at the trained net needs a source that has one: one of"
                f" {', '.join(trained)}, not {self.source.kind}"
            )
        if section.by_accuracy and self.source.kind != "pool":
            raise ValueError(f"by_accuracy needs source pool, not {self.source.kind}")


def _checked(model: type[BaseModel], value: Any, section: str) -> BaseModel:
    if isinstance(value, model):
        return value
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise SectionError(error, (section,), model) from None


def _union(models: dict[str, type[BaseModel]], value: Any, section: str, tag: str) -> BaseModel:
    """Validate a section whose key `tag` names the model; the first model is the default."""
    if isinstance(value, BaseModel):
        return value
    with at(section):
        if not isinstance(value, dict):
            raise UserError(f"section '{section}'", got=value, expected="keys and values")
    name = value.get(tag, next(iter(models)))
    with at(f"{section}.{tag}"):
        model = catalog.require(tag if tag == "encoder" else f"{section} kind", name, models)
    return _checked(model, {**value, tag: name}, section)


def validate(values: dict[str, Any], origin: Origin) -> Recipe:
    """Validate `values`; their origin (a file, the command line) is named in the error.

    Raises `UserError`: one line with the origin, the key, what came and what was expected.
    """
    try:
        return Recipe.model_validate(values)
    except SectionError as error:
        raise explain(error.error, error.model, origin, error.prefix) from None
    except PlacedError as error:
        named = origin if isinstance(origin, str) else origin(error.key)
        raise UserError(f"{named}: {error}") from None
    except ValidationError as error:
        raise explain(error, Recipe, origin) from None
