"""Retrieval between the two sides of pairs (images and captions), by contrastive losses.

Outputs are a dict of two entries [n, k], first and second side, whose dot products are the logits:
cosines over the temperature. Targets say which of a batch's items belong together:

- None: item i to item i alone;
- [n] whole numbers: those with the same number (captions of one image);
- ``{"similarity": [n, M], "place": [n]}``: learned similarities; that of items i and j of the batch
  is ``similarity[i, place[j]]`` (`mmdd.labels.RelationLabels`), so that choosing rows chooses
  columns too.

Shape suffixes: n items of a batch, N images (of a gallery), C captions, k numbers of an embedding.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DEPTHS = (1, 5, 10)
"""How many of the first ones found are looked at: R@1, R@5, R@10."""
ROWS = 1024  # queries whose similarities with the whole gallery are held at once


class Retrieval:
    """InfoNCE both ways (van den Oord et al. 2018; CLIP, Radford et al. 2021).

    The score is the mean of recall at 1, 5 and 10 in both directions, in [0, 1] (``r_mean`` of the
    field's tables), over the whole gallery of the split: all its images, and all their captions.
    """

    name = "retrieval"
    metric = "mean recall"
    direction: Literal["max", "min"] = "max"
    coupled = True
    label_kinds: tuple[str, ...] = ("derived", "relation")

    def item_losses(self, outputs: Any, targets: Any) -> Tensor:
        r"""[n] :math:`-\frac12 \sum_j s_{ij} \log P(t_j | v_i) + s_{ji} \log P(v_j | t_i)`.

        With the identity it is InfoNCE; with learned similarities the extended one of LoRS (Xu et
        al. 2024). Several partners of one item share its weight of 1.
        """
        logits = similarities(outputs)
        to_second, to_first = shares(targets, logits)
        second, first = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
        return -((to_second * second).sum(dim=1) + (to_first * first).sum(dim=0)) / 2

    def score(self, outputs: Any, targets: Any) -> float:
        """Mean of the six recalls over a whole set of pairs; see `recalls`."""
        found = recalls(outputs, targets)
        return sum(found.values()) / len(found)

    def extras(self, outputs: Any, targets: Any) -> dict[str, float]:
        """The recalls, ``R@10`` (mean of both ways), and the sizes of the gallery."""
        found = recalls(outputs, targets)
        first, second = sides(outputs)
        return {
            **found,
            "R@10": (found["TR@10"] + found["IR@10"]) / 2,
            "gallery_images": float(len(torch.unique(_numbers(targets, first)))),
            "gallery_texts": float(len(second)),
        }


class WeightedRetrieval(Retrieval):
    """Weighted binary cross-entropy of every pair's logit (LoRS, Xu et al. 2024)."""

    name = "retrieval-wbce"

    def item_losses(self, outputs: Any, targets: Any) -> Tensor:
        r"""[n] losses whose mean is half the mean over :math:`s_{ij} > 0.5` plus half the rest's.

        Each term is the cross-entropy of sigmoid(logit) and :math:`s_{ij}`, which is
        softplus(x) - s x. Item i has the terms of row i.
        """
        logits = similarities(outputs)
        relation = relations(targets, logits)
        terms = F.softplus(logits) - relation * logits
        alike = (relation.detach() > 0.5).to(terms.dtype)
        weights = sum(part / part.sum().clamp_min(1) for part in (alike, 1 - alike)) / 2
        return len(terms) * (weights * terms).sum(dim=1)


def sides(outputs: Any) -> tuple[Tensor, Tensor]:
    """First and second side [n, k] of a learner's outputs."""
    first, second = outputs.values()
    return first, second


def similarities(outputs: Any) -> Tensor:
    """[n, n] logits: row i is item i of the first side."""
    first, second = sides(outputs)
    return first @ second.T


def relations(targets: Any, logits: Tensor) -> Tensor:
    """[n, n] which items of a batch belong together, from targets of any form."""
    if targets is None:
        return torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    if isinstance(targets, Tensor):
        return (targets[:, None] == targets[None, :]).to(logits.dtype)
    found: Tensor = targets["similarity"][:, targets["place"]]
    return found


def shares(targets: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the second sides for each row, and of the first sides for each column.

    Learned similarities are taken as they are; several real partners share a weight of 1.
    """
    relation = relations(targets, logits)
    if isinstance(targets, dict):
        return relation, relation
    return relation / relation.sum(dim=1, keepdim=True), relation / relation.sum(dim=0)


def recalls(outputs: Any, targets: Any) -> dict[str, float]:
    """``TR@k`` (an image finds one of its texts) and ``IR@k`` (a text finds its image), k in 1, 5, 10.

    Parameters
    ----------
    outputs: all pairs of a split [C, k]; an image stands there once for each of its captions.
    targets: [C] numbers of the images, or None where each has one caption.

    A rank is the number of wrong ones that are at least as similar: ties count against. In a
    gallery of at most k, R@k is 1.
    """  # noqa: E501
    first, second = sides(outputs)
    known, owner = torch.unique(_numbers(targets, first), return_inverse=True)
    rows = torch.full_like(known, len(owner))
    places = torch.arange(len(owner), device=owner.device)
    rows = rows.scatter_reduce(0, owner, places, "amin")
    images = first[rows]
    ranks = {"TR": _text_ranks(images, second, owner), "IR": _image_ranks(images, second, owner)}
    return {
        f"{way}@{depth}": (rank < depth).double().mean().item()
        for way, rank in ranks.items()
        for depth in DEPTHS
    }


def _numbers(targets: Any, first: Tensor) -> Tensor:
    if isinstance(targets, Tensor):
        return targets
    return torch.arange(len(first), device=first.device)


def _text_ranks(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """[N] wrong texts that are at least as similar to an image as the best of its own."""
    found = []
    for start in range(0, len(images), ROWS):
        alike = images[start : start + ROWS] @ texts.T
        own = (
            owner[None, :] == torch.arange(start, start + len(alike), device=owner.device)[:, None]
        )
        best = alike.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        found.append(((alike >= best) & ~own).sum(dim=1))
    return torch.cat(found)


def _image_ranks(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """[C] wrong images that are at least as similar to a text as its own."""
    found = []
    for start in range(0, len(texts), ROWS):
        alike = texts[start : start + ROWS] @ images.T
        mine = owner[start : start + ROWS, None]
        own = alike.gather(1, mine)
        found.append((alike >= own).sum(dim=1) - 1)
    return torch.cat(found)
