"""Labels of the synthetic items: what their targets are and what they cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdd.trees import Tree


class Labels(nn.Module):
    """Base: maps stored items and their decoded inputs to (inputs, targets)."""

    kind: str

    def attach(self, index: Tensor | None, decoded: Tree, expand: int) -> tuple[Tree, Tree]:
        """Return the inputs and targets of the decoded items."""
        raise AssertionError("labels define attach")


class HardLabels(Labels):
    """Fixed targets [M, ...]: class numbers, or the classes of an item as a row of bools.

    A packed item hands its own to all its parts.
    """

    kind = "hard"
    targets: Tensor

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        self.register_buffer("targets", targets.clone())

    def attach(self, index: Tensor | None, decoded: Tree, expand: int) -> tuple[Tree, Tree]:
        """Look the targets up."""
        targets = self.targets if index is None else self.targets[index]
        return decoded, targets if expand == 1 else targets.repeat_interleave(expand, dim=0)


class SoftLabels(Labels):
    """Probabilities softmax(logits / temperature) [M, C]; the logits are learned or renewed.

    Learned with the items they are DATM's labels (Guo et al. 2024); with `learned` False they are
    what a `Teacher` says. A packed item hands its own to all its parts. With `independent`, where
    an item has any number of classes, each of them has its own sigmoid in place of the softmax.
    """

    logits: Tensor

    def __init__(
        self,
        logits: Tensor,
        *,
        temperature: float = 1.0,
        learned: bool = True,
        independent: bool = False,
    ) -> None:
        super().__init__()
        self.kind = "soft" if learned else "teacher"
        self.temperature, self.independent = temperature, independent
        if learned:
            self.logits = nn.Parameter(logits.detach().clone())
        else:
            self.register_buffer("logits", logits.detach().clone())

    def attach(self, index: Tensor | None, decoded: Tree, expand: int) -> tuple[Tree, Tree]:
        """Turn the logits into probabilities."""
        logits = self.logits if index is None else self.logits[index]
        logits = logits / self.temperature
        targets = logits.sigmoid() if self.independent else logits.softmax(dim=-1)
        return decoded, targets if expand == 1 else targets.repeat_interleave(expand, dim=0)


class AttentionLabels(Labels):
    r"""Class labels, and where a learner is to look (Maekawa et al. 2023).

    A stored item has logits of the attention that a learner's output pays to its positions, learned
    with the items; their softmax over the positions that the item shows is the label. Targets are a
    dict: ``classes``, those of the class labels; ``attention`` [m, H, L]; ``weight`` [m], lambda of
    the loss that compares attention (`mmdd.task.guided_losses`).

    Parameters
    ----------
    classes: hard or soft labels of the items' classes.
    logits: [M, H, L] of H heads and L positions.
    """

    kind = "attention"

    def __init__(self, classes: Labels, logits: Tensor, *, weight: float = 1.0) -> None:
        super().__init__()
        self.classes = classes
        self.attention = nn.Parameter(logits.detach().clone())
        self.weight = weight

    @property
    def targets(self) -> Tensor | None:
        """Fixed labels of the classes, where they are."""
        return getattr(self.classes, "targets", None)

    def attach(self, index: Tensor | None, decoded: Tree, expand: int) -> tuple[Tree, Tree]:
        """Attach the class labels; turn the logits into shares of the positions that are shown."""
        assert expand == 1, "refused when the set is built"
        inputs, classes = self.classes.attach(index, decoded, expand)
        logits = self.attention if index is None else self.attention[index]
        shown = inputs.get("mask") if isinstance(inputs, dict) else None
        if shown is not None:
            logits = logits.masked_fill(~shown[:, None, :], torch.finfo(logits.dtype).min)
        weight = torch.full((len(logits),), self.weight, dtype=logits.dtype, device=logits.device)
        found = {"classes": classes, "attention": logits.softmax(dim=-1), "weight": weight}
        return inputs, found


class DerivedLabels(Labels):
    """Targets made by the representation: its decode returns ``{"inputs": …, "targets": …}``.

    A forecast horizon that is a view of the synthetic series, or the relation between pairs
    (``targets`` None: item i belongs to item i).
    """

    kind = "derived"

    def attach(self, index: Tensor | None, decoded: Tree, expand: int) -> tuple[Tree, Tree]:
        """Take the two parts apart."""
        if isinstance(decoded, dict) and set(decoded) == {"inputs", "targets"}:
            return decoded["inputs"], decoded["targets"]
        return decoded, None


class RelationLabels(Labels):
    r"""Learned similarities of all pairs of stored items (LoRS, Xu et al. 2024).

    Of rank r they are :math:`S = \mathrm{diag}(w) + \frac{\alpha}{r} L R^\top`, with M (2 r + 1)
    numbers, w = 1, L standard normal and R = 0 at the start; without a rank the whole matrix is
    learned. Either starts as the identity: every item belongs to itself alone.

    Parameters
    ----------
    tensors: ``matrix`` [M, M], or ``diagonal`` [M], ``left`` [M, r] and ``right`` [M, r].
    """

    kind = "relation"

    def __init__(self, tensors: dict[str, Tensor], *, alpha: float = 1.0) -> None:
        super().__init__()
        assert set(tensors) in ({"matrix"}, {"diagonal", "left", "right"})
        self.alpha = alpha
        for name, value in tensors.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    @classmethod
    def start(
        cls, count: int, rank: int | None, generator: torch.Generator, *, alpha: float = 1.0
    ) -> RelationLabels:
        """The identity of `count` items."""
        if rank is None:
            return cls({"matrix": torch.eye(count)})
        left = torch.randn(count, rank, generator=generator)
        right = torch.zeros(count, rank)
        found = {"diagonal": torch.ones(count), "left": left, "right": right}
        return cls(found, alpha=alpha)

    def similarity(self, index: Tensor | None = None) -> Tensor:
        """[m, m] similarities of the stored items `index` [m] (all of them if None)."""
        own: dict[str, Tensor] = dict(self.named_parameters())
        if "matrix" in own:
            return own["matrix"] if index is None else own["matrix"][index[:, None], index]
        if index is not None:
            own = {name: value[index] for name, value in own.items()}
        product = own["left"] @ own["right"].T
        return own["diagonal"].diag() + self.alpha / own["left"].shape[1] * product

    def attach(self, index: Tensor | None, decoded: Tree, expand: int) -> tuple[Tree, Tree]:
        """Rows of similarities, and the places of the items among their columns.

        A choice of items of the batch chooses rows and places, and so columns too.
        """
        assert expand == 1, "refused when the set is built"
        found = self.similarity(index)
        return decoded, {
            "similarity": found,
            "place": torch.arange(len(found), device=found.device),
        }
