"""A learner in training: what parameter sources and expert recordings step."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.learner import Learner, Params
from mmdd.rng import derive, draws_noise, lent_generators
from mmdd.task import weighted_mean
from mmdd.trees import tree_map


class Student:
    """Parameters of one net and the optimiser that trains them.

    Parameters
    ----------
    params: where training starts; they are copied, so that the caller's stay as they are.
    optimiser: ``sgd``, or ``adam``, for which `momentum` is not read.
    noise: seed of what dropout draws; None leaves it to the caller.
    """

    def __init__(
        self,
        learner: Learner,
        params: Params,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        optimiser: Literal["sgd", "adam"] = "sgd",
        noise: int | None = None,
    ) -> None:
        self.learner = learner
        self._params = {name: value.detach().clone() for name, value in params.items()}
        leaves = [value.requires_grad_() for value in learner.trainable(self._params).values()]
        self._optimiser: torch.optim.Optimizer
        if optimiser == "adam":
            self._optimiser = torch.optim.Adam(leaves, lr, weight_decay=weight_decay)
        else:
            self._optimiser = torch.optim.SGD(leaves, lr, momentum, weight_decay=weight_decay)
        self.noise = noise if draws_noise(learner.encoder) else None
        self.steps = 0

    @property
    def params(self) -> Params:
        """The present parameters without their graph. They change with the next `step`."""
        return {name: value.detach() for name, value in self._params.items()}

    def snapshot(self) -> Params:
        """A copy that later steps leave alone.

        On a CPU `params` shares memory with the net in training: recorded as they are, all the
        snapshots of a trajectory would be its end.
        """
        return {name: value.detach().clone() for name, value in self._params.items()}

    def step(self, batch: Batch) -> Any:
        """One step on the mean loss of `batch`; returns the outputs that it was taken at."""
        self._optimiser.zero_grad(set_to_none=True)
        with self._noisy():
            outputs = self.learner.outputs(self._params, batch)
        losses = self.learner.task.item_losses(outputs, batch.targets)
        weighted_mean(losses, batch.weights).backward()
        self._optimiser.step()
        self.steps += 1
        return tree_map(Tensor.detach, outputs)

    def _noisy(self) -> contextlib.AbstractContextManager[None]:
        """Random numbers that depend on the net and its age alone."""
        if self.noise is None:
            return contextlib.nullcontext()
        return lent_generators(derive(self.noise, str(self.steps)), self.learner.device)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, moments and age, copied."""
        moments = {
            name: {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)}
            for name, leaf in self.learner.trainable(self._params).items()
            if (state := self._optimiser.state.get(leaf))
        }
        found = {"params": self.snapshot(), "velocity": moments, "steps": self.steps}
        return found if self.noise is None else {**found, "noise": self.noise}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        for name, value in self._params.items():
            value.copy_(state["params"][name])
        for name, leaf in self.learner.trainable(self._params).items():
            self._optimiser.state.pop(leaf, None)
            if name in state["velocity"]:
                # Adam counts its steps on the CPU
                self._optimiser.state[leaf] = {
                    key: value.to("cpu" if key == "step" else leaf.device, copy=True)
                    for key, value in state["velocity"][name].items()
                }
        self.steps = state["steps"]
        self.noise = state.get("noise", self.noise)
