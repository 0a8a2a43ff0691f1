"""Classification of items that have any number of classes each, none included.

Shape suffixes: n items, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mmdd.task import guided, guided_losses, unguided
from mmdd.trees import Tree

THRESHOLD = 0.5
"""Probability from which a class counts as told."""


class MultiLabel:
    """A yes or no for every class of an item. Targets are bools or probabilities [n, C].

    Labels of attention may stand beside them (`mmdd.task.guided`).
    """

    name = "multi-label"
    metric = "micro-F1"
    direction: Literal["max", "min"] = "max"
    coupled = False
    label_kinds = ("multi-hot", "soft", "attention")

    def item_losses(self, outputs: Tree, targets: Tree) -> Tensor:
        """[n, C] logits against [n, C] targets -> [n] binary cross-entropies, summed over classes.

        Summed, so that the classifier of each class learns as fast as if it were alone, however
        many others there are; a mean would ask for rates that grow with C.
        """
        if guided(targets):
            return guided_losses(self.item_losses, outputs, targets)
        wanted = targets.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").sum(dim=1)

    def score(self, outputs: Tree, targets: Tree) -> float:
        """Micro-averaged F1 at a probability of 0.5, in [0, 1]: of all yes and no together.

        0 where nothing is told and nothing is true.
        """
        right, told, true = (count.sum() for count in counts(outputs, targets))
        return (2 * right / (told + true).clamp_min(1)).item()

    def extras(self, outputs: Tree, targets: Tree) -> dict[str, float]:
        """``macro-F1``, ``subset accuracy`` and ``labels per item`` that the learner tells.

        Macro-averaged F1 is the mean over classes, of which one that is neither told nor true
        counts as 0; subset accuracy the share of items of which every class is right.
        """
        right, told, true = counts(outputs, targets)
        outputs, targets = unguided(outputs, targets)
        same = (told_classes(outputs) == (targets >= THRESHOLD)).all(dim=1)
        return {
            "macro-F1": (2 * right / (told + true).clamp_min(1)).mean().item(),
            "subset accuracy": same.double().mean().item(),
            "labels per item": (told.sum() / max(1, len(same))).item(),
        }


def told_classes(outputs: Tensor) -> Tensor:
    """[n, C] bool: the classes that logits tell."""
    return outputs.sigmoid() >= THRESHOLD


def counts(outputs: Tree, targets: Tree) -> tuple[Tensor, Tensor, Tensor]:
    """[C] float64 numbers of items that have a class rightly told, told, and truly."""
    outputs, targets = unguided(outputs, targets)
    told, true = told_classes(outputs), targets >= THRESHOLD
    return (told & true).sum(0).double(), told.sum(0).double(), true.sum(0).double()


__all__ = ["MultiLabel", "counts", "told_classes"]
