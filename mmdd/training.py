"""A learner in training by plain SGD: what parameter sources and expert recordings step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.learner import Learner, Params
from mmdd.task import weighted_mean
from mmdd.trees import tree_map


class Student:
    """Parameters of one net and the optimiser that trains them.

    Parameters
    ----------
    params: where training starts; they are copied, so that the caller's stay as they are.
    """

    def __init__(
        self,
        learner: Learner,
        params: Params,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.learner = learner
        self._params = {name: value.detach().clone() for name, value in params.items()}
        leaves = [value.requires_grad_() for value in learner.trainable(self._params).values()]
        self._optimiser = torch.optim.SGD(leaves, lr, momentum, weight_decay=weight_decay)
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
        """One SGD step on the mean loss of `batch`; returns the outputs that it was taken at."""
        self._optimiser.zero_grad(set_to_none=True)
        outputs = self.learner.outputs(self._params, batch)
        losses = self.learner.task.item_losses(outputs, batch.targets)
        weighted_mean(losses, batch.weights).backward()
        self._optimiser.step()
        self.steps += 1
        return tree_map(Tensor.detach, outputs)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, momentum and age, copied."""
        velocity = {
            name: self._optimiser.state[leaf]["momentum_buffer"].clone()
            for name, leaf in self.learner.trainable(self._params).items()
            if self._optimiser.state.get(leaf, {}).get("momentum_buffer") is not None
        }
        return {"params": self.snapshot(), "velocity": velocity, "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        for name, value in self._params.items():
            value.copy_(state["params"][name])
        for name, leaf in self.learner.trainable(self._params).items():
            self._optimiser.state.pop(leaf, None)
            if name in state["velocity"]:
                buffer = state["velocity"][name].to(leaf.device, copy=True)
                self._optimiser.state[leaf] = {"momentum_buffer": buffer}
        self.steps = state["steps"]
