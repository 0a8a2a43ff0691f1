"""Sections of a recipe that every modality shares: what is learned, compared and stepped.

Families that are chosen by ``kind`` are discriminated unions; a bare word is the kind alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from mmdd import catalog
from mmdd.errors import unknown_name
from mmdd.section import Positive, Rate, Section, Share, of_family

# -- representations and labels --------------------------------------------------------------------


class Direct(Section):
    """The items themselves."""

    kind: Literal["direct"] = "direct"


class Packed(Section):
    """Several sub-items per stored item, decoded by upsampling (IDC, IDM)."""

    kind: Literal["packed"] = "packed"
    factor: Annotated[int, Field(ge=2)] = 2
    multi: bool = Field(False, description="decode with every factor from 1 up")


class Basis(Section):
    """Shared bases and an address for every item (LinBa)."""

    kind: Literal["basis"] = "basis"
    bases: Positive = 32


class Frequency(Section):
    """Some coefficients of the discrete cosine transform (FreD)."""

    kind: Literal["frequency"] = "frequency"
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    choose: Literal["low", "energy", "variance"] = "energy"
    axes: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="axes of an item that are transformed; by default all but the first"
    )


class Pairwise(Section):
    """Nodes, and an adjacency that a net makes from pairs of them (GCond)."""

    kind: Literal["pairwise"] = "pairwise"
    width: Positive = 128


class Bernoulli(Section):
    """Nodes or whole graphs, with free logits of every edge that are sampled (DosCond)."""

    kind: Literal["bernoulli"] = "bernoulli"
    nodes: Positive | None = Field(
        None, description="nodes of a synthetic graph; by default the mean of the real ones"
    )
    anneal: Positive = Field(200, description="steps in which the temperature falls to 0.01")


class LowRank(Section):
    """Nodes, and an adjacency of low rank."""

    kind: Literal["low-rank"] = "low-rank"
    rank: Positive = 16
    tied: bool = Field(False, description="one factor instead of two")
    nodes: Positive | None = Field(
        None, description="nodes of a synthetic graph; by default the mean of the real ones"
    )


class Series(Section):
    """One continuous series; inputs and horizons are windows of it (CondTSF)."""

    kind: Literal["series"] = "series"
    stride: Positive = Field(1, description="time steps between the starts of two windows")
    space: Literal["time", "frequency"] = Field(
        "time", description="'frequency': coefficients of the real Fourier transform are stored"
    )
    keep: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the coefficients that is stored, the lowest frequencies"
    )

    @model_validator(mode="after")
    def _keep_needs_frequencies(self) -> Series:
        if self.keep < 1 and self.space == "time":
            raise ValueError("keep is a share of coefficients: it needs space=frequency")
        return self


class StaticDynamic(Section):
    """A still, a memory of the motion and one decoder for all clips (VDSD)."""

    kind: Literal["static-dynamic"] = "static-dynamic"
    channels: Positive = Field(1, description="of the memory")
    factor: Positive = Field(2, description="how much smaller the memory is, per side of a frame")


class KeyFrames(Section):
    """Some frames of every clip, and linear interpolations between them (PRISM)."""

    kind: Literal["key-frames"] = "key-frames"
    frames: Positive = 4


Representation = Annotated[
    Annotated[
        Direct
        | Packed
        | Basis
        | Frequency
        | Pairwise
        | Bernoulli
        | LowRank
        | Series
        | StaticDynamic
        | KeyFrames,
        Field(discriminator="kind"),
    ],
    of_family("representation", catalog.REPRESENTATIONS),
]


class Hard(Section):
    """Fixed class labels."""

    kind: Literal["hard"] = "hard"


class Soft(Section):
    """Logits that are learned with the items."""

    kind: Literal["soft"] = "soft"
    temperature: Rate = 1.0
    initialise: Literal["experts", "classes"] = "experts"
    margin: Rate = Field(4.0, description="first logit of an item's class, without experts")


class Teacher(Section):
    """What trained nets say of the items, renewed as the items change."""

    kind: Literal["teacher"] = "teacher"
    temperature: Rate = 1.0
    every: Positive = Field(50, description="steps between renewals")


class Relation(Section):
    """Similarities between the items, learned with them: for tasks that compare pairs (LoRS)."""

    kind: Literal["relation"] = "relation"
    rank: Positive | None = Field(
        10, description="of what is added to the diagonal; null: the whole matrix is learned"
    )
    alpha: Rate = Field(3.0, description="factor of that product, divided by the rank")


ClassLabels = Annotated[
    Annotated[Hard | Soft, Field(discriminator="kind")],
    of_family("labels", {name: catalog.LABELS[name] for name in ("hard", "soft")}),
]


class Attention(Section):
    """Class labels, and where a learner is to look (Maekawa et al. 2023)."""

    kind: Literal["attention"] = "attention"
    classes: ClassLabels = Field(default_factory=Hard, description="labels of the classes")
    weight: Rate = Field(1.0, description="lambda of the loss that compares attention")
    initialise: Literal["net", "noise"] = Field(
        "net", description="'net': where the experts look, or a fresh net if there are none"
    )


Labels = Annotated[
    Annotated[Hard | Soft | Teacher | Relation | Attention, Field(discriminator="kind")],
    of_family("labels", catalog.LABELS),
]


STARTS = ("real", "herding", "k-center", "k-means", "aggregate", "noise")
"""What a synthetic set starts from, where it does not go on from another one."""


class Synthetic(Section):
    """What is learned. Exactly one of per_class, items and fraction is the budget."""

    per_class: Positive | None = None
    items: Positive | None = None
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    fraction_of: Literal["train", "all"] = Field(
        "train", description="of the labelled training items, or of all (of a graph: every node)"
    )
    balance: Literal["proportional", "uniform"] = Field(
        "proportional", description="how items and fraction are shared out among the classes"
    )
    representation: Representation = Field(default_factory=Direct)
    labels: Labels = Field(default_factory=Hard)
    initialise: str = Field(
        "real",
        description=f"{', '.join(STARTS)}, or the folder of a finished set that this one goes on"
        " from",
    )
    per_step: Positive | None = Field(
        None,
        description="decoded items of a class that a step compares at most, drawn at random; none:"
        " all (IDC 128, DANCE 200)",
    )
    clamp: bool = Field(True, description="keep the values inside the range of real items")
    step_size: Rate | None = Field(
        None, description="rate of the inner training at the start; learned with the set (MTT)"
    )

    @field_validator("initialise")
    @classmethod
    def _start_or_folder(cls, value: str) -> str:
        if value in STARTS:
            return value
        if (folder := Path(value).expanduser()).is_dir():
            # so it is a folder's name wherever, and from wherever, the recipe is read again
            return str(folder.resolve())
        if os.sep in value:
            return value
        raise ValueError(str(unknown_name("start or folder", value, STARTS)))

    @model_validator(mode="after")
    def _one_budget(self) -> Synthetic:
        given = [k for k in ("per_class", "items", "fraction") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give one budget, not {' and '.join(given)}")
        if not given:
            self.per_class = 10
        return self


# -- real items and optimisers ---------------------------------------------------------------------


class Selector(Section):
    """How the real items of a step are chosen."""

    kind: Literal["random", "herding", "k-center", "k-means"] = "random"
    every: Positive = Field(10, description="steps for which a choice by features is kept")
    pool: Positive = Field(1024, description="items of a group that are chosen from")


class Real(Section):
    """Real items that a step sees."""

    per_group: Positive = 256
    pass_items: Positive = Field(
        8192, description="largest real batch of one pass; more groups are taken in several passes"
    )
    selector: Annotated[Selector, of_family("selector", catalog.SELECTORS)] = Field(
        default_factory=Selector
    )


class Turn(Section):
    """Steps ``first`` to ``last`` (exclusive) of every cycle of ``cycle`` steps."""

    first: Annotated[int, Field(ge=0)] = 0
    last: Positive
    cycle: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Turn:
        if not self.first < self.last <= self.cycle:
            raise ValueError("a turn needs first < last <= cycle")
        return self

    def has(self, step: int) -> bool:
        """True where step number `step` is in the turn."""
        return self.first <= step % self.cycle < self.last


class Leaf(Section):
    """Optimiser of one learnable tensor."""

    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Rate = 1.0
    turn: Turn | None = Field(None, description="moves in a part of every cycle of steps only")
    by_items: bool = Field(
        False, description="times the items per class, whose gradients shrink alike (IDC, DANCE)"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Rate | None = Field(None, description="largest gradient norm")
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of the steps")
    final: Share = Field(0.0, description="last rate as a share of lr")


def _taken_apart(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a leaf, and those of leaves below it by dotted name: ``inputs: {x: {lr: 1}}``."""
    own: dict[str, Any] = {}
    below: dict[str, Any] = {}
    for key, value in options.items():
        if key in Leaf.model_fields or not isinstance(value, dict):
            own[key] = value
            continue
        mine, deeper = _taken_apart(f"{name}.{key}", value)
        below |= {f"{name}.{key}": mine} | deeper if mine or not deeper else deeper
    return own, below


class Optimise(Section):
    """How the synthetic set is stepped. One entry per learnable tensor, prefixes allowed."""

    steps: Positive = 1000
    inputs: Leaf = Field(default_factory=Leaf)
    labels: Leaf = Field(default_factory=Leaf)
    step_size: Leaf = Field(
        default_factory=lambda: Leaf(lr=0.1), description="of its logarithm: it stays positive"
    )
    leaves: dict[str, Leaf] = Field(default={}, description="written as 'inputs.image: {…}'")

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        rest = dict(values)
        dotted = {
            key: rest.pop(key)
            for key in values
            if isinstance(key, str) and key.startswith(("inputs.", "labels."))
        }
        for family in ("inputs", "labels"):
            if isinstance(rest.get(family), dict):
                own, below = _taken_apart(family, rest[family])
                rest[family] = own
                for name, options in below.items():
                    # an override of some options leaves the others as they are
                    dotted[name] = {**dotted.get(name, {}), **options}
        if not dotted:
            return rest
        return {**rest, "leaves": {**rest.get("leaves", {}), **dotted}}

    @model_serializer(mode="wrap")
    def _spread(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made = handler(self)
        return {**made, **made.pop("leaves", {})}

    def by_leaf(self) -> dict[str, Leaf]:
        """Options by (prefix of) a leaf's name."""
        named = {"inputs": self.inputs, "labels": self.labels, "step_size": self.step_size}
        return {**named, **self.leaves}


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
