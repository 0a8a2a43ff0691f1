"""Outer optimisers: every leaf of the synthetic set has its own rate, momentum, clip, schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmdd.recipe import Leaf


class OuterOptimiser:
    """One ``torch.optim`` optimiser per leaf.

    Parameters
    ----------
    leaves: learnable tensors by name.
    options: options by leaf name; a leaf takes the entry with its longest matching prefix
        (``inputs.image`` before ``inputs``).
    steps: length of the schedules.
    """

    def __init__(
        self, leaves: Mapping[str, nn.Parameter], options: Mapping[str, Leaf], steps: int
    ) -> None:
        self.leaves = dict(leaves)
        self.options = {name: options_for(name, options) for name in self.leaves}
        self.steps = steps
        self.optimisers = {
            name: make_optimiser(leaf, self.options[name]) for name, leaf in self.leaves.items()
        }

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for leaf in self.leaves.values():
            leaf.grad = None

    def step(self, number: int) -> None:
        """Clip, set the scheduled rates of step `number` (0-based) and update every leaf."""
        for name, optimiser in self.optimisers.items():
            options, leaf = self.options[name], self.leaves[name]
            if leaf.grad is None or not (options.turn is None or options.turn.has(number)):
                continue
            if options.clip is not None:
                nn.utils.clip_grad_norm_([leaf], options.clip)
            for group in optimiser.param_groups:
                group["lr"] = options.lr * schedule_factor(options, number, self.steps)
            optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """State of every optimiser by leaf."""
        return {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[name])


def options_for(name: str, options: Mapping[str, Leaf]) -> Leaf:
    """Return the entry of the longest prefix of the dotted `name`."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in options:
            return options[prefix]
    raise KeyError(f"no optimiser options for leaf {name!r}; options exist for {sorted(options)}")


def make_optimiser(leaf: nn.Parameter, options: Leaf) -> torch.optim.Optimizer:
    """Build the optimiser of one leaf."""
    decay = options.weight_decay
    if options.optimiser == "sgd":
        return torch.optim.SGD([leaf], options.lr, options.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if options.optimiser == "adamw" else torch.optim.Adam
    return kind([leaf], options.lr, betas=(options.momentum, 0.999), weight_decay=decay)


def schedule_factor(options: Leaf, step: int, steps: int) -> float:
    """Multiple of the base rate at `step` of `steps`: linear warm-up, then the chosen decay."""
    done = step / max(steps, 1)
    if options.warmup > 0 and done < options.warmup:
        return (step + 1) / (options.warmup * steps + 1)
    left = min(1.0, (done - options.warmup) / max(1.0 - options.warmup, 1e-9))
    if options.schedule == "cosine":
        return options.final + (1 - options.final) * 0.5 * (1 + math.cos(math.pi * left))
    if options.schedule == "linear":
        return options.final + (1 - options.final) * (1 - left)
    return 1.0
