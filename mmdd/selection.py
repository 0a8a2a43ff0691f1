"""Choosing real items: baselines of every table, and initialisers of synthetic sets.

All work group by group on features [N_g, D]; they return indices into the group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmdd.learner import Learner, Params
from mmdd.real import RealData

Choose = Callable[[Tensor, int, torch.Generator], Tensor]


def random(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different items, uniformly."""
    return torch.randperm(features.shape[0], generator=generator)[:count]


def herding(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedy mean matching (Welling 2009; as in iCaRL): each pick brings the mean closest."""
    target = features.mean(dim=0)
    total = torch.zeros_like(target)
    square = features.square().sum(dim=1)
    free = torch.ones(features.shape[0], dtype=torch.bool, device=features.device)
    chosen = []
    for picked in range(1, count + 1):
        # argmin |target - (total + f) / picked|^2 without forming the differences
        wanted = picked * target - total
        score = (square - 2 * features @ wanted).masked_fill(~free, float("inf"))
        best = int(score.argmin())
        free[best] = False
        total = total + features[best]
        chosen.append(best)
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedy farthest-first cover (Sener & Savarese 2018), started at the item nearest the mean."""
    first = int((features - features.mean(dim=0)).square().sum(dim=1).argmin())
    chosen = [first]
    distance = (features - features[first]).square().sum(dim=1)
    for _ in range(count - 1):
        distance[chosen] = -1.0
        best = int(distance.argmax())
        chosen.append(best)
        distance = torch.minimum(distance, (features - features[best]).square().sum(dim=1))
    return torch.tensor(chosen)


def select(
    choose: Choose,
    data: RealData,
    counts: Tensor,
    generator: torch.Generator,
    *,
    learner: Learner | None = None,
    params: Params | None = None,
    pool: int = 10_000,
) -> Tensor:
    """Choose ``counts[g]`` items of every group g; return indices into `data`, group by group.

    Features are those of `learner` at `params` (the inputs are not read when both are None, as
    random choice needs none). Groups larger than `pool` are sub-sampled first, so that cost and
    memory stay bounded.
    """
    parts = []
    for group, count in enumerate(counts.tolist()):
        if count == 0:
            continue
        members = data.members(group)
        if len(members) > max(pool, count):
            kept = torch.randperm(len(members), generator=generator)[: max(pool, count)]
            members = members[kept]
        features = torch.zeros(len(members), 0)
        if learner is not None and params is not None:
            features = group_features(learner, params, data, members)
        parts.append(members[choose(features, count, generator)])
    return torch.cat(parts)


@torch.no_grad()
def group_features(
    learner: Learner, params: Params, data: RealData, members: Tensor, size: int = 1024
) -> Tensor:
    """[N_g, D] float32 features of the items `members`, on the CPU."""
    parts = []
    for index in members.split(size):
        batch = data.select(index)
        features = learner.features(params, batch, train=False)
        parts.append((features[data_rows(data, index)] if batch.joint else features).cpu())
    return torch.cat(parts).float()


def data_rows(data: RealData, index: Tensor) -> Tensor:
    """Rows of a joint structure that the items `index` of `data` are."""
    rows = getattr(data, "index", None)
    return index if rows is None else rows[index]
