"""The synthetic set: a representation, its labels and its groups.

Shape suffixes: M stored items, m items of a batch, G groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmdd.batch import Batch
from mmdd.errors import NonFiniteError
from mmdd.labels import Labels
from mmdd.representations import Representation
from mmdd.trees import tree_bytes


class StepSize(nn.Module):
    """Rates of inner training, one per group of parameters [P]; kept as logarithms: never negative.

    A step of size r on the logarithm changes a rate a like a step of size r a^2 on itself.
    """

    log: nn.Parameter

    def __init__(self, initial: float, groups: int = 1) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((groups,), math.log(initial)))

    def values(self) -> Tensor:
        """[P] positive rates."""
        return self.log.exp()


class SyntheticSet(nn.Module):
    """What is learned and what is handed back.

    Parameters
    ----------
    groups: [M] int64, the matching group of each stored item.
    joint: True when the stored items form one structure (a graph).
    step_size: rates of the inner training, learned with the items (trajectory matching).
    """

    groups: Tensor

    def __init__(
        self,
        representation: Representation,
        labels: Labels,
        groups: Tensor,
        num_groups: int,
        *,
        joint: bool = False,
        step_size: StepSize | None = None,
    ) -> None:
        super().__init__()
        self.step_size = step_size
        self.representation = representation
        self.labels = labels
        self.num_groups = num_groups
        self.joint = joint
        self.register_buffer("groups", groups.to(torch.int64).clone())

    def __len__(self) -> int:
        return self.groups.shape[0]

    def batch(self, index: Tensor | None = None, *, groups: Tensor | None = None) -> Batch:
        """Decode the stored items `index` [m], or those of `groups`, or all of them.

        A joint set is decoded whole and re-weighted.
        """
        if groups is not None:
            index = torch.nonzero(torch.isin(self.groups, groups.to(self.groups.device))).flatten()
        if self.joint:
            whole = self._decode(None)
            return whole if index is None else whole.select(index)
        return self._decode(index)

    def sample(self, most: int, generator: torch.Generator, groups: Tensor | None = None) -> Tensor:
        """Stored items [m], drawn at random, that decode into at most `most` items of each group.

        One of a group at least; of `groups` or of all. The draw does not depend on `groups`.
        """
        count = max(1, most // self.representation.expand)
        order = torch.randperm(len(self), generator=generator).to(self.groups.device)
        order = order[torch.argsort(self.groups[order], stable=True)]
        sizes = torch.unique_consecutive(self.groups[order], return_counts=True)[1]
        first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        place = torch.arange(len(self), device=order.device) - first
        keep = place < count
        if groups is not None:
            keep &= torch.isin(self.groups[order], groups.to(order.device))
        return order[keep].sort().values

    def _decode(self, index: Tensor | None) -> Batch:
        expand = self.representation.expand
        decoded = self.representation.decode(index)
        inputs, targets = self.labels.attach(index, decoded, expand)
        groups = self.groups if index is None else self.groups[index]
        if expand > 1:
            groups = groups.repeat_interleave(expand)
        return Batch(inputs, targets, groups, joint=self.joint)

    def leaves(self) -> dict[str, nn.Parameter]:
        """Everything that is optimised, by the name that the recipe's `optimise` section uses."""
        found = self.representation.leaves()
        found.update({f"labels.{name}": leaf for name, leaf in self.labels.named_parameters()})
        if self.step_size is not None:
            found["step_size"] = self.step_size.log
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of every stored tensor: items, labels and decoders. Groups are not stored twice."""
        return tree_bytes(self.stored())

    def stored(self) -> dict[str, Tensor]:
        """The tensors that make up the set, as the artifact stores them."""
        return {
            name: value.detach()
            for name, value in self.state_dict().items()
            if not (name == "groups" and self._groups_are_labels())
        }

    def _groups_are_labels(self) -> bool:
        targets = getattr(self.labels, "targets", None)
        return isinstance(targets, Tensor) and torch.equal(targets, self.groups)

    def check_finite(self, when: str) -> None:
        """Raise `NonFiniteError` naming the first leaf that holds a NaN or an infinity."""
        for name, leaf in self.leaves().items():
            bad = int((~torch.isfinite(leaf)).sum())
            if bad:
                raise NonFiniteError(
                    f"{when}: {bad} of {leaf.numel()} values of {name!r} are not finite"
                )
