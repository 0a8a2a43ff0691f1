"""Classification of items (images, nodes, clips, sentences): cross-entropy and accuracy."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


class Classification:
    """One class per item. Targets are class numbers [n] or class probabilities [n, C]."""

    name = "classification"
    metric = "accuracy"
    direction: Literal["max", "min"] = "max"
    coupled = False
    label_kinds = ("hard", "soft")

    def item_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """[n, C] logits against [n] classes or [n, C] probabilities -> [n] cross-entropies."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of items whose largest logit is at their class, in [0, 1]."""
        truth = targets.argmax(dim=1) if targets.ndim == 2 else targets
        return (outputs.argmax(dim=1) == truth).double().mean().item()
