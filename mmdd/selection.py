"""Choosing real items: baselines of every table, and initialisers of synthetic sets.

All work group by group on features [N_g, D]; they return indices into the group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdd.learner import Learner, Params
from mmdd.real import RealData

if TYPE_CHECKING:
    from mmdd.step import Step

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


def k_means(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The items nearest to `count` k-means centres (DREAM, Liu et al. 2023); all different."""
    from sklearn.cluster import KMeans

    if count >= features.shape[0]:
        return torch.arange(features.shape[0])
    seed = int(torch.randint(2**31, (1,), generator=generator))
    found = KMeans(count, n_init=1, max_iter=20, random_state=seed).fit(features.numpy())
    distances = torch.cdist(torch.from_numpy(found.cluster_centers_).to(features), features)
    chosen = []
    for row in distances:
        # identical items may be nearest to two centres: each is taken once
        best = int(row.argmin())
        chosen.append(best)
        distances[:, best] = float("inf")
    return torch.tensor(chosen)


class RealSelector:
    """Chooses the real items of a step by a selector's rule in features of the present net.

    A choice by features is kept for `every` steps, as in DREAM. `pool` items of a group, drawn at
    random, are chosen from.
    """

    def __init__(self, choose: Choose, *, every: int = 10, pool: int = 1024) -> None:
        self.choose, self.every, self.pool = choose, every, pool
        self._kept: dict[int, Tensor] = {}
        self._until = -1

    def __call__(self, step: Step) -> Tensor:
        """Indices of the real items of the step's groups."""
        if step.number > self._until:
            self._kept = {}
            self._until = step.number - step.number % self.every + self.every - 1
        groups = range(step.real.num_groups) if step.groups is None else step.groups.tolist()
        return torch.cat([self._of_group(step, group) for group in groups])

    def _of_group(self, step: Step, group: int) -> Tensor:
        if group not in self._kept:
            counts = torch.zeros(step.real.num_groups, dtype=torch.int64)
            counts[group] = min(step.per_group, int(step.real.group_sizes[group]))
            self._kept[group] = select(
                self.choose,
                step.real,
                counts,
                step.random(f"selector/{group}"),
                learner=step.learner,
                params=step.drawn.each()[0].params,
                pool=self.pool,
            )
        return self._kept[group]

    def state_dict(self) -> dict[str, Any]:
        """The present choice and how long it is kept."""
        kept = {str(group): index for group, index in self._kept.items()}
        return {"kept": kept, "until": self._until}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a choice back."""
        self._kept = {int(group): index for group, index in state["kept"].items()}
        self._until = state["until"]


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
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


@torch.no_grad()
def group_features(
    learner: Learner, params: Params, data: RealData, members: Tensor, size: int = 1024
) -> Tensor:
    """[N_g, D] float32 features of the items `members`, on the CPU."""
    parts = []
    for index in members.split(size):
        batch = data.select(index)
        features = learner.features(params, batch, train=False)
        parts.append((features[data.rows(index)] if batch.joint else features).cpu())
    return torch.cat(parts).float()
