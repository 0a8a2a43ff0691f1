"""Batch norms under gradient matching: affine layers with the statistics of real items."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmdd.batch import Batch
from mmdd.learner import Learner, Params
from mmdd.objectives.pairs import members
from mmdd.trees import tree_map

STATISTICS = 16
"""Real items per group from which the statistics of batch norms are taken (Zhao et al. 2021)."""


def widened(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in `dtype`, where it is a floating-point number."""
    return value.to(dtype) if value.is_floating_point() else value


def _batch_norms(encoder: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    kind = nn.modules.batchnorm._BatchNorm
    return [module for module in encoder.modules() if isinstance(module, kind)]


def with_statistics(learner: Learner, params: Params, real: Batch) -> Params:
    """`params` with the batch norm statistics of `real` (`STATISTICS` items of each group)."""
    copies = {name: value.clone() for name, value in params.items()}
    if not real.joint:
        groups = torch.unique(real.groups).tolist()
        real = real.select(torch.cat([members(real, g)[:STATISTICS] for g in groups]))
    norms = _batch_norms(learner.encoder)
    momenta = [norm.momentum for norm in norms]
    learner.encoder.train()
    for norm in norms:
        norm.momentum = 1.0
    inputs = tree_map(lambda leaf: widened(leaf, learner.dtype), real.inputs)
    functional_call(learner.encoder, copies, (inputs,))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return copies


@contextmanager
def frozen_statistics(learner: Learner) -> Iterator[None]:
    """Training mode for all layers but batch norms."""
    learner.encoder.train()
    for norm in _batch_norms(learner.encoder):
        norm.eval()
    yield
    learner.encoder.train()
