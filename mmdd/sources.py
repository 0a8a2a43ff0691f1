"""Where learner parameters come from at each step."""

from __future__ import annotations

from typing import Any

from mmdd.learner import Learner, Params
from mmdd.rng import Streams


class ParameterSource:
    """Base: draws parameters for a step and moves on after it. State is check-pointed."""

    def draw(self, step: int) -> Any:
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
    """A newly initialised net at every step, or at every `every`-th step (DM: 1)."""

    def __init__(self, learner: Learner, streams: Streams, every: int = 1) -> None:
        self.learner = learner
        self.streams = streams
        self.every = every
        self._held: Params | None = None

    def draw(self, step: int) -> Params:
        """Initialise from the stream ``source``."""
        if self._held is None or step % self.every == 0:
            self._held = self.learner.init(self.streams["source"])
        return self._held

    def state_dict(self) -> dict[str, Any]:
        """Return the held net; the stream that drew it is saved by the run."""
        return {} if self._held is None or self.every == 1 else {"held": dict(self._held)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the held net back."""
        held = state.get("held")
        self._held = None
        if held is not None:
            self._held = {name: value.to(self.learner.device) for name, value in held.items()}
