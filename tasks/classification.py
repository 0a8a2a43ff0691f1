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
        outputs, truth = _with_truth(outputs, targets)
        return (outputs.argmax(dim=1) == truth).double().mean().item()

    def extras(self, outputs: Tree, targets: Tree) -> dict[str, float]:
        """``ROC-AUC`` of two classes that both occur: what a rare class hides from accuracy."""
        outputs, truth = _with_truth(outputs, targets)
        if outputs.shape[1] != 2 or len(truth.unique()) < 2:
            return {}
        from sklearn.metrics import roc_auc_score

        second = (outputs[:, 1] - outputs[:, 0]).double().cpu()
        return {"ROC-AUC": float(roc_auc_score(truth.cpu().numpy(), second.numpy()))}


def _with_truth(outputs: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
    """Logits [n, C] and classes [n]."""
    outputs, targets = unguided(outputs, targets)
    return outputs, targets.argmax(dim=1) if targets.ndim == 2 else targets
