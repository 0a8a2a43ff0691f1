"""Classification of items (images, nodes, clips, sentences): cross-entropy and accuracy."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mmdd.task import guided, guided_losses, unguided
from mmdd.trees import Tree


class Classification:
    """One class per item. Targets are class numbers [n] or class probabilities [n, C].

    Labels of attention may stand beside them (`mmdd.task.guided`).
    """

    name = "classification"
    metric = "accuracy"
    direction: Literal["max", "min"] = "max"
    coupled = False
    label_kinds = ("hard", "soft", "attention")

    def item_losses(self, outputs: Tree, targets: Tree) -> Tensor:
        """[n, C] logits against [n] classes or [n, C] probabilities -> [n] cross-entropies."""
        if guided(targets):
            return guided_losses(self.item_losses, outputs, targets)
        return F.cross_entropy(outputs, targets, reduction="none")

    def score(self, outputs: Tree, targets: Tree) -> float:
        """Share of items whose largest logit is at their class, in [0, 1]."""
        outputs, targets = unguided(outputs, targets)
        truth = targets.argmax(dim=1) if targets.ndim == 2 else targets
        return (outputs.argmax(dim=1) == truth).double().mean().item()
