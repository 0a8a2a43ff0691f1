"""How a result is judged: training protocols by name, and the ``evaluate`` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mmdd.errors import nearest
from mmdd.section import Positive, Rate, Section, Share

Split = Literal["test", "validation"]
"""What a set may be scored on."""

LearningRate = Rate | Literal["learned"]
"""A rate, or the step size that was learned with the set (MTT)."""
Momentum = Annotated[float, Field(ge=0, lt=1)] | Literal["learned"]
"""A momentum, or that of the inner steps for which a step size was learned."""


class Protocol(Section):
    """How a learner is trained on a small set, and which of its states is scored."""

    name: str = "custom"
    epochs: Positive
    batch_size: Positive = 256
    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: LearningRate = 0.01
    momentum: Momentum = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["dc", "idc", "cosine", "onecycle", "constant"] = "dc"
    augment: bool = True
    mix: Literal["none", "mixup", "cutmix"] = Field(
        "none", description="mix pairs of a mini-batch and their losses"
    )
    mix_probability: Share = Field(0.5, description="share of the mini-batches that are mixed")
    labels: Literal["own", "hard"] = Field(
        "own", description="the set's own labels (soft where it has such), or its classes"
    )
    selection: Literal["last", "validation"] = "last"
    checks: Positive = Field(10, description="scores on validation during training, if selected by")
    full: str = Field("full", description="protocol of the full-data reference: another one's name")


PROTOCOLS: dict[str, Protocol] = {
    # DC / DSA / DM (Zhao & Bilen): 1000 epochs with augmentation, lr x0.1 and momentum forgotten
    # after half of them, last epoch.
    "dc": Protocol(name="dc", epochs=1000),
    # IDC (Kim et al. 2022): batches of 64, CutMix on half of them, lr x0.2 at 2/3 and 5/6.
    "idc": Protocol(name="idc", epochs=1000, batch_size=64, schedule="idc", mix="cutmix"),
    # MTT (Cazenavette et al. 2022): as dc, at the step size that was learned with the set.
    "mtt": Protocol(name="mtt", epochs=1000, lr="learned"),
    # Ours: the same by the steps that the rate was learned for. Under a momentum of 0.9 a rate of
    # plain steps is ten times too large in the long run.
    "learned": Protocol(name="learned", epochs=1000, lr="learned", momentum="learned"),
    # GCond (Jin et al. 2022) and the graph field after it: Adam on the whole set, rate x0.1 and
    # moments forgotten half-way, the state that validation on the real graph prefers. The same
    # recipe for full data.
    "gcond": Protocol(
        name="gcond",
        epochs=600,
        batch_size=1_000_000,
        optimiser="adam",
        selection="validation",
        checks=120,
        augment=False,
        full="gcond",
    ),
    # DosCond on whole graphs (Jin et al. 2022): Adam 0.001, x0.1 after half, batches of 128, 500
    # epochs, the state that validation prefers. Full data alike.
    "doscond": Protocol(
        name="doscond",
        epochs=500,
        batch_size=128,
        optimiser="adam",
        lr=0.001,
        weight_decay=0.0,
        selection="validation",
        checks=50,
        augment=False,
        full="doscond",
    ),
    # Image-text pairs (Wu et al. 2024, MTT-VL): 100 epochs on the pairs.
    "pairs": Protocol(
        name="pairs", epochs=100, batch_size=128, lr=0.1, schedule="cosine", augment=False
    ),
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
    learner: Any = Field(
        None,
        description="net that judges; one of the kind of `learner` has what is unset from there",
    )
    encoders: list[str] = Field(default=[], description="others that judge too")
    selection: Literal["last", "validation"] | None = None
    labels: Literal["own", "hard"] | None = None
    epochs: Positive | None = None
    batch_size: Positive | None = None
    lr: LearningRate | None = None
    momentum: Momentum | None = None
    mix: Literal["none", "mixup", "cutmix"] | None = None
    augment: Any = Field(
        None, description="augmentation of the learners that judge; none: the recipe's own"
    )
    baselines: list[Literal["random", "herding", "k-center", "k-means", "aggregate"]] = Field(
        default=["random", "herding"]
    )
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
        names = ("epochs", "batch_size", "lr", "momentum", "mix", "selection", "labels")
        given = {name: getattr(self, name) for name in names}
        return self.protocol.model_copy(update={k: v for k, v in given.items() if v is not None})

    def resolved_full(self, items: int) -> Protocol:
        """The protocol of the full-data reference for a training set of `items`.

        A small set gets more epochs: at least `FULL_UPDATES` steps.
        """
        full = PROTOCOLS[self.resolved().full]
        if full.name != "full":
            return full.model_copy(update={"epochs": self.full_epochs or full.epochs})
        per_epoch = -(-items // full.batch_size)
        epochs = self.full_epochs or max(full.epochs, -(-FULL_UPDATES // per_epoch))
        return full.model_copy(update={"epochs": epochs, "checks": min(epochs, full.checks)})
