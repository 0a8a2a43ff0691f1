"""Sections of a recipe that make a method: parameter sources, experts and objectives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mmdd import catalog
from mmdd.section import Momentum, NotNegative, Positive, Rate, Section, Share, of_family

# -- parameter sources -----------------------------------------------------------------------------


class Fresh(Section):
    """A new random net at every `every`-th step."""

    kind: Literal["fresh"] = "fresh"
    every: Positive = 1
    nets: Positive = Field(1, description="nets that are compared at once, stacked")


class SyntheticTrained(Section):
    """A net that is trained on the synthetic set between comparisons (DC)."""

    kind: Literal["synthetic-trained"] = "synthetic-trained"
    outer: Positive | None = Field(
        None, description="comparisons in a net's life; by default from the items per class"
    )
    inner: Positive | None = Field(
        None, description="epochs between two comparisons; by default from the items per class"
    )
    batch_size: Positive = 256
    lr: Rate = 0.01
    momentum: Momentum = 0.0
    weight_decay: NotNegative = 0.0
    augment: bool = True
    optimiser: Literal["sgd", "adam"] = "sgd"


class RealTrained(Section):
    """A net that is trained on real items between comparisons (IDC)."""

    kind: Literal["real-trained"] = "real-trained"
    life: Positive = Field(100, description="comparisons until the next fresh net")
    updates: Positive = Field(8, description="SGD steps between two comparisons")
    batch_size: Positive = 64
    lr: Rate = 0.01
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 5e-4
    augment: bool = True
    optimiser: Literal["sgd", "adam"] = "sgd"


class Pool(Section):
    """Nets of staggered ages, some of them trained a little after every step (IDM, FRePo)."""

    kind: Literal["pool"] = "pool"
    nets: Positive = Field(100, description="most nets held; a new one pushes the oldest out")
    start: Positive = Field(3, description="nets at the first step")
    push_every: Positive = Field(30, description="steps between two new nets")
    life: Positive | None = Field(
        None, description="updates after which a net is drawn anew; none: only when pushed out"
    )
    train_on: Literal["real", "synthetic"] = "real"
    students: Positive = Field(2, description="nets trained after a step")
    updates: Positive = Field(10, description="SGD steps of each of them")
    batch_size: Positive = 256
    lr: Rate = 0.01
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 5e-4
    augment: bool = True
    optimiser: Literal["sgd", "adam"] = "sgd"

    @model_validator(mode="after")
    def _fits(self) -> Pool:
        if self.start > self.nets:
            raise ValueError(f"start={self.start} is more than nets={self.nets}")
        return self


class Interpolated(Section):
    """A net between the start and the end of a recorded training, with that end (DANCE)."""

    kind: Literal["interpolated"] = "interpolated"


class Segments(Section):
    """Segments of recorded expert trajectories (MTT, DATM)."""

    kind: Literal["experts"] = "experts"
    length: Positive = Field(2, description="epochs from start to target (M)")
    min_start: Annotated[int, Field(ge=0)] = 0
    max_start: Positive | None = Field(None, description="starts lie below; none: wherever it fits")
    first_max_start: Positive | None = Field(
        None, description="max_start at the first step, widened from there (DATM)"
    )
    widen_steps: Positive = Field(1000, description="steps over which it is widened")
    independent: bool = Field(False, description="every group of parameters has a start of its own")

    @model_validator(mode="after")
    def _ordered(self) -> Segments:
        for name in ("max_start", "first_max_start"):
            top = getattr(self, name)
            if top is not None and top <= self.min_start:
                raise ValueError(f"{name}={top} must be above min_start={self.min_start}")
        if self.first_max_start and self.max_start and self.first_max_start > self.max_start:
            raise ValueError("first_max_start is above max_start: the window would shrink")
        return self


Source = Annotated[
    Annotated[
        Fresh | SyntheticTrained | RealTrained | Pool | Interpolated | Segments,
        Field(discriminator="kind"),
    ],
    of_family("source", catalog.SOURCES),
]


class Experts(Section):
    """How expert trajectories are recorded; equal ones are recorded once and used again."""

    folder: str | None = Field(None, description="where they lie; by default in the cache")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the experts, not of the run")
    count: Positive = 10
    epochs: Positive = 20
    epoch_steps: Positive | None = Field(
        None, description="SGD steps of an epoch; by default one pass over the data"
    )
    batch_size: Positive = 256
    lr: Rate = 0.01
    momentum: Momentum = 0.0
    weight_decay: NotNegative = 0.0
    augment: bool = True
    sharpness: bool = Field(False, description="sharpness-aware steps (FTD)")
    rho: Rate = 0.01
    alpha: NotNegative = 0.3
    keep: Literal["epochs", "ends"] = Field(
        "epochs", description="snapshots: after every epoch, or only the first and the last"
    )
    optimiser: Literal["sgd", "adam"] = "sgd"
    curriculum: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the items, the easiest, that an expert begins with (GEOM)"
    )
    curriculum_epochs: Positive = Field(1, description="by which it has grown to all of them")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the rate; cosine falls to zero at the end of the last epoch"
    )
    average: NotNegative | None = Field(
        None,
        description="snapshots are averages of the parameters so far, weights growing as"
        " step^average: paths without the noise of mini-batches; none: the parameters",
    )


# -- objectives ------------------------------------------------------------------------------------


class Weighted(Section):
    """What all objectives share."""

    weight: Rate = Field(1.0, description="factor in a sum of objectives")


class Distribution(Weighted):
    """Match feature distributions per group (DM)."""

    kind: Literal["distribution"] = "distribution"
    features: Literal["last", "all"] = "last"
    statistic: Literal["moments", "covariance", "characteristic"] = "moments"
    moments: Annotated[int, Field(ge=1, le=4)] = 1
    moment_weights: list[float] | None = None
    kernel: Literal["linear", "polynomial", "gaussian"] | None = None
    bandwidths: list[Rate] = Field(default=[0.5, 1.0, 2.0], min_length=1)
    covariance_weight: NotNegative = Field(1.0, description="factor of the covariances")
    frequencies: Positive = Field(1024, description="of the characteristic function")
    amplitude: Share = Field(0.5, description="weight of amplitudes; the rest is on phases")

    @model_validator(mode="after")
    def _weights_fit(self) -> Distribution:
        if self.moment_weights is not None and len(self.moment_weights) != self.moments:
            raise ValueError(
                f"moment_weights has {len(self.moment_weights)} values for moments={self.moments}"
            )
        if self.kernel is not None and self.moments != 1:
            raise ValueError("kernel compares whole samples; it replaces moments, leave moments=1")
        if self.statistic != "moments" and (self.moments != 1 or self.kernel is not None):
            raise ValueError(f"statistic={self.statistic} takes the place of moments and kernel")
        return self


class Gradient(Weighted):
    """Match the gradients of the loss (DC, DSA, IDC)."""

    kind: Literal["gradient"] = "gradient"
    distance: Literal["layerwise-cosine", "cosine", "mse", "relative-mse", "l1"] = (
        "layerwise-cosine"
    )
    parameters: Literal["all", "weights", "convolutions", "head"] = Field(
        "all", description="which parameters' gradients are matched"
    )
    per_group: bool = Field(True, description="one gradient per group, or one of all items")
    by_size: bool = Field(
        False, description="weigh groups by their synthetic items, over the largest (GCond)"
    )


class Trajectory(Weighted):
    """Train on the set for some steps and come close to an expert (MTT, TESLA, DATM)."""

    kind: Literal["trajectory"] = "trajectory"
    steps: Positive = Field(20, description="inner steps on the synthetic set (N)")
    memory: Literal["exact", "unrolled", "tesla"] = "exact"
    batch_size: Positive | None = Field(None, description="items of an inner step; none: all")
    order: Literal["random", "fixed"] = "random"
    momentum: Momentum = 0.0
    skip_above: Rate | None = Field(None, description="skip the update when the loss is above")
    root: bool = Field(False, description="ratio of distances, not of their squares (GEOM)")

    @model_validator(mode="after")
    def _fits(self) -> Trajectory:
        if self.memory == "tesla" and self.momentum:
            raise ValueError("memory=tesla is defined without momentum; memory=exact takes it")
        return self


class CrossEntropy(Weighted):
    """The task's loss of the synthetic items at a net that knows the real ones."""

    kind: Literal["cross-entropy"] = "cross-entropy"
    at: Literal["trained", "drawn"] = "trained"
    by_accuracy: bool = Field(False, description="times the net's training accuracy (IDM)")


class Penalty(Weighted):
    """What the representation holds against itself, e.g. edges beyond those of the start."""

    kind: Literal["penalty"] = "penalty"


Term = Annotated[
    Annotated[
        Distribution | Gradient | Trajectory | CrossEntropy | Penalty, Field(discriminator="kind")
    ],
    of_family("objective", catalog.OBJECTIVES),
]


class Sum(Section):
    """Several objectives, each with its weight; a list stands for it."""

    kind: Literal["sum"] = "sum"
    terms: list[Term] = Field(min_length=1)


def as_sum(value: Any) -> Any:
    """A list of objectives is their sum."""
    return {"kind": "sum", "terms": value} if isinstance(value, list) else value


Objective = Annotated[
    Annotated[
        Distribution | Gradient | Trajectory | CrossEntropy | Penalty | Sum,
        Field(discriminator="kind"),
    ],
    of_family(
        "objective", {**catalog.OBJECTIVES, "sum": catalog.Entry("mmdd.step:WeightedSum", "")}
    ),
    BeforeValidator(as_sum),
]
