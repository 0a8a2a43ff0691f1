"""The typed recipe: a method is a page of YAML, and every mistake in it is one clear line.

Loaded before any heavy package: this module imports neither torch nor a modality's code, only the
modalities' option models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from mmdd import catalog
from mmdd.errors import UserError, nearest
from mmdd.explain import Origin, PlacedError, SectionError, at, explain

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys and wrong types stop at once."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


def _named(value: Any) -> Any:
    """Allow ``kind`` alone as a short form: ``representation: direct``."""
    return {"kind": value} if isinstance(value, str) else value


class Direct(Section):
    """The items themselves."""

    kind: Literal["direct"] = "direct"


class Hard(Section):
    """Fixed class labels."""

    kind: Literal["hard"] = "hard"


class Synthetic(Section):
    """What is learned. Exactly one of per_class, items and fraction is the budget."""

    per_class: Positive | None = None
    items: Positive | None = None
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    representation: Direct = Field(default_factory=Direct)
    labels: Hard = Field(default_factory=Hard)
    initialise: Literal["real", "herding", "k-center", "noise"] = "real"
    clamp: bool = Field(True, description="keep the values inside the range of real items")

    _short = field_validator("representation", "labels", mode="before")(_named)

    @model_validator(mode="after")
    def _one_budget(self) -> Synthetic:
        given = [k for k in ("per_class", "items", "fraction") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give one budget, not {' and '.join(given)}")
        if not given:
            self.per_class = 10
        return self


class Fresh(Section):
    """A new random net at every `every`-th step."""

    kind: Literal["fresh"] = "fresh"
    every: Positive = 1


class Distribution(Section):
    """Match feature distributions per group (DM)."""

    kind: Literal["distribution"] = "distribution"
    features: Literal["last", "all"] = "last"
    moments: Annotated[int, Field(ge=1, le=4)] = 1
    moment_weights: list[float] | None = None
    kernel: Literal["linear", "polynomial", "gaussian"] | None = None
    bandwidths: list[Rate] = Field(default=[0.5, 1.0, 2.0], min_length=1)

    @model_validator(mode="after")
    def _weights_fit(self) -> Distribution:
        if self.moment_weights is not None and len(self.moment_weights) != self.moments:
            raise ValueError(
                f"moment_weights has {len(self.moment_weights)} values for moments={self.moments}"
            )
        if self.kernel is not None and self.moments != 1:
            raise ValueError("kernel compares whole samples; it replaces moments, leave moments=1")
        return self


class Real(Section):
    """Real items that a step sees."""

    per_group: Positive = 256
    pass_items: Positive = Field(
        8192, description="largest real batch of one pass; more groups are taken in several passes"
    )


class Leaf(Section):
    """Optimiser of one learnable tensor."""

    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Rate = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Rate | None = Field(None, description="largest gradient norm")
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of the steps")
    final: Share = Field(0.0, description="last rate as a share of lr")


class Optimise(Section):
    """How the synthetic set is stepped. One entry per learnable tensor, prefixes allowed."""

    steps: Positive = 1000
    inputs: Leaf = Field(default_factory=Leaf)
    labels: Leaf = Field(default_factory=Leaf)
    leaves: dict[str, Leaf] = Field(default={}, description="written as 'inputs.image: {…}'")

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        dotted = {
            key: value
            for key, value in values.items()
            if isinstance(key, str) and key.startswith(("inputs.", "labels."))
        }
        if not dotted:
            return values
        rest = {key: value for key, value in values.items() if key not in dotted}
        return {**rest, "leaves": {**rest.get("leaves", {}), **dotted}}

    @model_serializer(mode="wrap")
    def _spread(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made = handler(self)
        return {**made, **made.pop("leaves", {})}

    def by_leaf(self) -> dict[str, Leaf]:
        """Options by (prefix of) a leaf's name."""
        return {"inputs": self.inputs, "labels": self.labels, **self.leaves}


class Protocol(Section):
    """How a learner is trained on a small set, and which of its states is scored."""

    name: str = "custom"
    epochs: Positive
    batch_size: Positive = 256
    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: Rate = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["dc", "cosine", "onecycle", "constant"] = "dc"
    augment: bool = True
    selection: Literal["last", "validation"] = "last"
    checks: Positive = Field(10, description="scores on validation during training, if selected by")


PROTOCOLS: dict[str, Protocol] = {
    # DC / DSA / DM (Zhao & Bilen): 1000 epochs with augmentation, lr x0.1 and momentum forgotten
    # after half of them, last epoch.
    "dc": Protocol(name="dc", epochs=1000),
    "quick": Protocol(name="quick", epochs=200, lr=0.03, schedule="cosine"),
    # Fit for a full training set: few epochs, one cycle, the epoch that validation prefers.
    "full": Protocol(
        name="full",
        epochs=12,
        batch_size=128,
        lr=0.05,
        schedule="onecycle",
        selection="validation",
        checks=12,
    ),
}


FULL_UPDATES = 800


class Evaluate(Section):
    """How the result is judged. Unset fields come from the named protocol."""

    protocol: Protocol = Field(
        default_factory=lambda: PROTOCOLS["dc"], description="a name, or a protocol written out"
    )
    learners: Positive = 3
    encoders: list[str] = Field(default=[], description="others than the one it was distilled with")
    selection: Literal["last", "validation"] | None = None
    epochs: Positive | None = None
    lr: Rate | None = None
    baselines: list[Literal["random", "herding", "k-center"]] = ["random", "herding"]
    full: Literal["auto", True, False] = Field(
        "auto", description="full-data reference; auto leaves it out beyond full_minutes"
    )
    full_epochs: Positive | None = None
    full_minutes: Rate = 10.0
    every: Annotated[int, Field(ge=0)] = Field(
        0, description="score one learner on validation every so many steps; 0: never"
    )

    @field_validator("protocol", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in PROTOCOLS:
            close = nearest(value, PROTOCOLS)
            hint = f"; did you mean {close!r}?" if close else ""
            raise ValueError(
                f"unknown protocol {value!r}, expected one of {', '.join(PROTOCOLS)}{hint}"
            )
        if isinstance(value, str):
            return PROTOCOLS[value]
        if isinstance(value, dict) and value.get("name") in PROTOCOLS:
            # {name: quick, epochs: 300}: what is not said comes from the named one
            return PROTOCOLS[value["name"]].model_dump() | value
        return value

    def resolved(self) -> Protocol:
        """The protocol with this section's fields written over it."""
        fields = {"epochs": self.epochs, "lr": self.lr, "selection": self.selection}
        return self.protocol.model_copy(update={k: v for k, v in fields.items() if v is not None})

    def resolved_full(self, items: int) -> Protocol:
        """The protocol of the full-data reference for a training set of `items`.

        A small set gets more epochs: at least `FULL_UPDATES` steps.
        """
        full = PROTOCOLS["full"]
        per_epoch = -(-items // full.batch_size)
        epochs = self.full_epochs or max(full.epochs, -(-FULL_UPDATES // per_epoch))
        return full.model_copy(update={"epochs": epochs, "checks": min(epochs, full.checks)})


class Run(Section):
    """Where and how it runs; nothing here changes the method."""

    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", True, False] = "auto"
    minutes: Rate | None = Field(None, description="fit the number of steps into this time")
    threads: Positive | None = None
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0
    keep: Literal["last", "validation"] = Field(
        "last", description="hand back the last state, or the one validation preferred"
    )
    deterministic: bool = False


Objective = Distribution
Source = Fresh


class Recipe(Section):
    """Everything that decides a result. Stored with it, every default included."""

    method: str = "dm"
    modality: str = "images"
    task: str = "classification"
    data: Any = Field(default_factory=dict)
    synthetic: Synthetic = Field(default_factory=Synthetic)
    learner: Any = Field(default_factory=dict)
    source: Source = Field(default_factory=Fresh)
    objective: Objective = Field(default_factory=Distribution)
    augment: Any = Field(default_factory=dict)
    real: Real = Field(default_factory=Real)
    optimise: Optimise = Field(default_factory=Optimise)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    run: Run = Field(default_factory=Run)

    _short = field_validator("source", "objective", mode="before")(_named)

    @model_validator(mode="after")
    def _modality_sections(self) -> Recipe:
        # data, learner and augment are typed by the modality: its option models are their schema.
        with at("modality"):
            options = catalog.options(self.modality)
        with at("task"):
            catalog.require("task", self.task, catalog.TASKS)
        self.data = _checked(options.DATA, self.data, "data")
        self.learner = _union(options.ENCODERS, self.learner, "learner", "encoder")
        self.augment = _union(options.AUGMENTATIONS, _named(self.augment), "augment", "kind")
        for name in self.evaluate.encoders:
            with at("evaluate.encoders"):
                catalog.require("encoder", name, options.ENCODERS)
        return self

    @model_validator(mode="after")
    def _combinations(self) -> Recipe:
        if self.run.keep == "validation" and not self.evaluate.every:
            raise ValueError(
                "run.keep=validation needs scores during the run: set evaluate.every to a number"
                " of steps"
            )
        by_validation = self.evaluate.resolved().selection == "validation" or self.evaluate.every
        if by_validation and getattr(self.data, "validation", None) == 0:
            raise ValueError("scores on validation need a validation split: data.validation is 0")
        return self


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
