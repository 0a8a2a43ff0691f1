"""Where learner parameters come from at each step."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmdd.learner import Learner, Params
from mmdd.modality import Augmentation
from mmdd.real import RealData
from mmdd.rng import Streams
from mmdd.synthetic import SyntheticSet

if TYPE_CHECKING:
    from mmdd.experts import Experts


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a source drew for one step.

    Attributes
    ----------
    params: the net at which synthetic and real items are compared; stacked ones lead with [K].
    trained: a related net that was trained on real items.
    target: where training from `params` is to arrive (the end of an expert's segment).
    accuracy: score of `params` on the real items it was last trained on, as a share.
    stacked: K, or None for a single net.
    """

    params: Params
    trained: Params | None = None
    target: Params | None = None
    accuracy: float | None = None
    stacked: int | None = None

    def each(self) -> list[Drawn]:
        """The nets of a stacked draw one by one."""
        if self.stacked is None:
            return [self]
        return [
            Drawn({name: value[k] for name, value in self.params.items()})
            for k in range(self.stacked)
        ]


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a source may work with."""

    learner: Learner
    streams: Streams
    synthetic: SyntheticSet
    real: RealData
    augmentation: Augmentation | None = None
    experts: Experts | None = None


class ParameterSource:
    """Base: draws parameters for a step and moves on after it. State is check-pointed."""

    def draw(self, step: int) -> Drawn:
        """Parameters (or a segment, or related nets) for step number `step`."""
        raise AssertionError("a source defines draw")

    def advance(self) -> None:
        """Move on after the synthetic set was stepped."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; random streams are saved by their owner."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` left off."""


class Fresh(ParameterSource):
    """A newly initialised net at every step, or at every `every`-th step (DM: 1).

    `nets` > 1 draws so many at once, stacked.
    """

    def __init__(self, around: Surroundings, every: int = 1, nets: int = 1) -> None:
        self.learner = around.learner
        self.streams = around.streams
        self.every = every
        self.stacked = nets if nets > 1 else None
        self._held: Params | None = None

    def draw(self, step: int) -> Drawn:
        """Initialise from the stream ``source``."""
        if self._held is None or step % self.every == 0:
            self._held = self.learner.init(self.streams["source"], self.stacked)
        return Drawn(self._held, stacked=self.stacked)

    def state_dict(self) -> dict[str, Any]:
        """Return the held net; the stream that drew it is saved by the run."""
        return {} if self._held is None or self.every == 1 else {"held": dict(self._held)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the held net back."""
        held = state.get("held")
        self._held = None if held is None else on_device(held, self.learner)


def on_device(params: dict[str, Tensor], learner: Learner) -> Params:
    """Parameters where the learner works."""
    return {name: value.to(learner.device) for name, value in params.items()}
