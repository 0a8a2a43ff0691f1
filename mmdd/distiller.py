"""The loop: draw, compare, step, constrain. The same few lines run every method."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mmdd.errors import NonFiniteError
from mmdd.learner import Learner
from mmdd.modality import Augmentation
from mmdd.optimise import OuterOptimiser
from mmdd.real import RealData
from mmdd.rng import Streams
from mmdd.selection import RealSelector
from mmdd.sources import ParameterSource
from mmdd.step import Objective, Step
from mmdd.synthetic import SyntheticSet
from mmdd.teacher import Teacher
from mmdd.views import views_of


@dataclasses.dataclass
class Distiller:
    """The parts of a method and the state of its run.

    Attributes
    ----------
    per_group: real items of each group that a step sees.
    teacher: renews the labels of the set, where they are a teacher's.
    synthetic_per_group: decoded synthetic items of each group that a step sees; None: all.
    pass_items: largest real batch of one pass; an objective that is a sum over groups is computed
        and differentiated some groups at a time when a step would need more.
    number: steps done.
    idle: of these, steps that left the set as it is, since their loss had no gradient.
    """

    synthetic: SyntheticSet
    real: RealData
    learner: Learner
    source: ParameterSource
    objective: Objective
    optimiser: OuterOptimiser
    streams: Streams
    augmentation: Augmentation | None = None
    selector: RealSelector | None = None
    teacher: Teacher | None = None
    per_group: int = 256
    synthetic_per_group: int | None = None
    pass_items: int = 8192
    number: int = 0
    idle: int = 0

    def step(self) -> float:
        """Do one step and return its loss.

        Raises `NonFiniteError`, leaving the synthetic set as it was, when the loss or a gradient
        is not finite.
        """
        comparison = self._comparison()
        self.optimiser.zero_grad()
        representation = self.synthetic.representation
        representation.resample(comparison.random("representation"), self.number)
        total, moved = 0.0, False
        for groups in self._passes():
            loss = self.objective(
                comparison.of_groups(groups) if groups is not None else comparison
            )
            if loss.requires_grad:
                loss.backward()
                moved = True
            total += float(loss.detach())
        representation.resample(None)
        self._require_finite(total)
        self.optimiser.step(self.number)
        self.synthetic.representation.constrain_()
        if self.teacher is not None:
            self.teacher.after_step(self.synthetic, self.number)
        self.source.advance()
        self.number += 1
        self.idle += not moved
        return total

    def _comparison(self) -> Step:
        draw = None
        if self.augmentation is not None:
            draw = self.augmentation.draw(self.real.num_groups, self.streams["augment"])
        return Step(
            number=self.number,
            learner=self.learner,
            drawn=self.source.draw(self.number),
            synthetic=self.synthetic,
            real=self.real,
            per_group=self.per_group,
            generator=self.streams["real"],
            seed=self.streams.seed,
            augmentation=self.augmentation,
            draw=draw,
            selector=self.selector,
            synthetic_per_group=self.synthetic_per_group,
        )

    def _passes(self) -> list[Tensor | None]:
        groups = torch.nonzero(self.real.group_sizes).flatten()
        at_once = max(1, self.pass_items // (self.per_group * views_of(self.augmentation)))
        if not self.objective.by_group or self.synthetic.joint or len(groups) <= at_once:
            return [None]
        if self.learner.mixes_items:
            # batch statistics are taken over all classes at once, as in the published code
            return [None]
        return list(groups.split(at_once))

    def _require_finite(self, loss: float) -> None:
        where = f"step {self.number + 1}"
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise NonFiniteError(f"{where}: the loss is {loss}")
        for name, leaf in self.synthetic.leaves().items():
            if leaf.grad is not None and not _finite(leaf.grad):
                raise NonFiniteError(f"{where}: the gradient of {name!r} is not finite")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "number": self.number,
            "idle": self.idle,
            "synthetic": dict(self.synthetic.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "source": self.source.state_dict(),
            "streams": self.streams.state_dict(),
            "selector": None if self.selector is None else self.selector.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self.number, self.idle = state["number"], state.get("idle", 0)
        self.synthetic.load_state_dict(state["synthetic"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.streams.load_state_dict(state["streams"])
        self.source.load_state_dict(state["source"])
        if self.selector is not None and state["selector"] is not None:
            self.selector.load_state_dict(state["selector"])


def _finite(values: Tensor) -> bool:
    """True if no number is infinite or none: their ends tell, in one pass."""
    return not values.numel() or bool(torch.stack(values.aminmax()).isfinite().all())
