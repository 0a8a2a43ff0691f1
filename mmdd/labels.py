"""Labels of the synthetic items: what their targets are and what they cost."""

from __future__ import annotations

from torch import Tensor, nn

from mmdd.trees import Tree


class Labels(nn.Module):
    """Base: maps stored items and their decoded inputs to (inputs, targets)."""

    kind: str

    def attach(self, index: Tensor | None, decoded: Tree, expand: int) -> tuple[Tree, Tree]:
        """Return the inputs and targets of the decoded items."""
        raise AssertionError("labels define attach")


class HardLabels(Labels):
    """Fixed targets [M], e.g. class numbers; a packed item hands its own to all its parts."""

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
    what a `Teacher` says. A packed item hands its own to all its parts.
    """

    logits: Tensor

    def __init__(self, logits: Tensor, *, temperature: float = 1.0, learned: bool = True) -> None:
        super().__init__()
        self.kind = "soft" if learned else "teacher"
        self.temperature = temperature
        if learned:
            self.logits = nn.Parameter(logits.detach().clone())
        else:
            self.register_buffer("logits", logits.detach().clone())

    def attach(self, index: Tensor | None, decoded: Tree, expand: int) -> tuple[Tree, Tree]:
        """Turn the logits into probabilities."""
        logits = self.logits if index is None else self.logits[index]
        targets = (logits / self.temperature).softmax(dim=-1)
        return decoded, targets if expand == 1 else targets.repeat_interleave(expand, dim=0)


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
