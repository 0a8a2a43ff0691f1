"""Several views of every item, over which losses and objectives are summed (CondTSC).

Liu et al. 2024, "Dataset Condensation for Time Series Classification via Dual Domain Matching", add
the gradients of a series as it is, filtered, and with noise on its phases and its amplitudes.

Shape suffixes: n items, V views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmdd.batch import Batch
from mmdd.modality import Augmentation
from mmdd.trees import Tree, tree_leaves, tree_map


class Views:
    """Augmentations side by side: item i comes out as the items i V … i V + V - 1, one under each.

    The views of an item stay together, so that a batch of several learners' items, one learner
    after the other, keeps that order.

    Parameters
    ----------
    parts: one augmentation for each view.
    """

    def __init__(self, parts: Sequence[Augmentation]) -> None:
        self.parts = list(parts)

    @property
    def views(self) -> int:
        """V."""
        return len(self.parts)

    def draw(self, count: int, generator: torch.Generator, *, shared_op: bool = False) -> Any:
        """`count` independent draws of every view."""
        return [part.draw(count, generator, shared_op=shared_op) for part in self.parts]

    def __call__(self, inputs: Tree, draw: Any, rows: Tensor | None = None) -> Tree:
        """[n, ...] to [n V, ...]."""
        made = [part(inputs, own, rows) for part, own in zip(self.parts, draw, strict=True)]
        leaves = zip(*map(tree_leaves, made), strict=True)
        stacked = iter([torch.stack(views, dim=1).flatten(0, 1) for views in leaves])
        return tree_map(lambda _: next(stacked), made[0])


def views_of(augmentation: Augmentation | None) -> int:
    """How often an item comes out of an augmentation; most give one of each."""
    return getattr(augmentation, "views", 1)


def augmented(
    batch: Batch, augmentation: Augmentation | None, draw: Any, rows: Tensor | None = None
) -> Batch:
    """`batch` under an augmentation: [n V] items with the targets, groups and weights of theirs.

    A mean loss over it is the mean over the views: the sum that the paper takes, divided by V, so
    that a learned rate is also one for training on a single view.
    """
    if augmentation is None:
        return batch
    inputs, views = augmentation(batch.inputs, draw, rows), views_of(augmentation)
    if views == 1:
        return batch.with_inputs(inputs)
    assert not batch.joint, "views are of items, and a structure is one"
    about = (batch.targets, batch.groups, batch.weights)
    targets, groups, weights = tree_map(lambda leaf: leaf.repeat_interleave(views, dim=0), about)
    return Batch(inputs, targets, groups, weights)


def told_apart(batch: Batch, views: int) -> Batch:
    """Number group g of view v as group g V + v: a sum over groups becomes one over views too."""
    if views == 1:
        return batch
    view = torch.arange(len(batch), device=batch.groups.device) % views
    return dataclasses.replace(batch, groups=batch.groups * views + view)
