"""The task's loss of the synthetic items at a net that knows the real ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmdd.errors import UserError
from mmdd.learner import Params
from mmdd.step import Objective, Step


class CrossEntropy(Objective):
    """Calibration of DANCE (Zhang et al. 2024) and class-aware regulariser of IDM (Zhao et al.
    2023): sum over groups of the mean loss of their synthetic items.

    Parameters
    ----------
    at: the related ``trained`` net, or the net as ``drawn``.
    by_accuracy: multiply by the training accuracy of the net in percent (IDM).
    """  # noqa: D205

    by_group = True

    def __init__(
        self, at: Literal["trained", "drawn"] = "trained", by_accuracy: bool = False
    ) -> None:
        self.at = at
        self.by_accuracy = by_accuracy

    def __call__(self, step: Step) -> Tensor:
        """Sum over the groups of the batch."""
        batch = step.synthetic_batch()
        losses = step.learner.item_losses(self._net(step), batch)
        # numbered anew, so that a pass over a few of many classes costs no more than they do
        known, groups = torch.unique(batch.groups, return_inverse=True)
        weights = batch.item_weights
        totals = torch.zeros(len(known), dtype=losses.dtype, device=losses.device)
        sums = totals.index_add(0, groups, losses * weights)
        counts = totals.index_add(0, groups, weights.to(losses.dtype))
        value = (sums / counts.clamp_min(torch.finfo(losses.dtype).tiny)).sum()
        return value * self._factor(step)

    def _net(self, step: Step) -> Params:
        if self.at == "drawn":
            return step.drawn.params
        if step.drawn.trained is None:
            raise UserError(
                "the cross-entropy at a trained net needs a source that has one",
                expected="source interpolated, pool, real-trained or experts",
                hint="Or set the objective's at to 'drawn'.",
            )
        return step.drawn.trained

    def _factor(self, step: Step) -> float:
        if not self.by_accuracy:
            return 1.0
        if step.drawn.accuracy is None:
            raise UserError(
                "by_accuracy needs a source that knows the accuracy of its nets",
                expected="source pool",
            )
        return 100.0 * step.drawn.accuracy
