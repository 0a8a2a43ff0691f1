"""Sources that read recorded expert trajectories (`mmdd.experts`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmdd.learner import Params
from mmdd.sources import Drawn, ParameterSource, Surroundings

if TYPE_CHECKING:
    from mmdd.experts import Experts


class _FromExperts(ParameterSource):
    """Base: holds the reader. What is drawn depends on the streams alone, so there is no state."""

    def __init__(self, around: Surroundings) -> None:
        assert around.experts is not None, "the experts are opened before the source is made"
        self.experts: Experts = around.experts
        self.learner = around.learner
        self._streams = around.streams

    def _any_expert(self) -> int:
        return int(torch.randint(self.experts.count, (1,), generator=self._streams["source"]))

    def _at(self, expert: int, epoch: int) -> Params:
        return self.experts.params(expert, epoch, self.learner.device)


class Interpolated(_FromExperts):
    """DANCE (Zhang et al. 2024): a net on the line between the start and the end of a training.

    theta = u theta_0 + (1 - u) theta_T with u uniform in [0, 1); theta_T is at hand as the trained
    net.
    """

    def draw(self, step: int) -> Drawn:
        """A pair and a place between its two nets."""
        expert = self._any_expert()
        share = float(torch.rand((), generator=self._streams["source"]))
        first, last = self._at(expert, 0), self._at(expert, self.experts.epochs)
        between = {name: torch.lerp(last[name], first[name], share) for name in first}
        return Drawn(between, trained=last)


class Segments(_FromExperts):
    """Segments of trajectories (MTT, Cazenavette et al. 2022; the window as in DATM, Guo et al.
    2024).

    The start t is uniform in [min_start, top) and the target lies `length` epochs later. `top`
    grows from `first_max_start` to `max_start` over `widen_steps` steps. With `independent`, each
    group of parameters draws a start of its own (LoRS).
    """  # noqa: D205

    def __init__(
        self,
        around: Surroundings,
        *,
        length: int = 2,
        min_start: int = 0,
        max_start: int | None = None,
        first_max_start: int | None = None,
        widen_steps: int = 1000,
        independent: bool = False,
    ) -> None:
        super().__init__(around)
        self.length, self.min_start = length, min_start
        fits = self.experts.epochs - length + 1
        self.max_start = fits if max_start is None else max_start
        self.first_max_start = first_max_start
        self.widen_steps = widen_steps
        self.groups = [list(around.learner.trainable_names)]
        if independent:
            self.groups = list(around.learner.groups_of_parameters.values())

    def top(self, step: int) -> int:
        """Starts lie below this epoch at step number `step`."""
        if self.first_max_start is None:
            return self.max_start
        done = min(1.0, step / self.widen_steps)
        return int(self.first_max_start + done * (self.max_start - self.first_max_start))

    def draw(self, step: int) -> Drawn:
        """A segment of one expert."""
        expert = self._any_expert()
        start: Params = {}
        target: Params = {}
        for names in self.groups:
            span = (self.min_start, self.top(step))
            epoch = int(torch.randint(*span, (1,), generator=self._streams["source"]))
            here, there = self._at(expert, epoch), self._at(expert, epoch + self.length)
            if not start:
                start, target = dict(here), dict(there)
            start |= {name: here[name] for name in names}
            target |= {name: there[name] for name in names}
        return Drawn(start, trained=self._at(expert, self.experts.epochs), target=target)
