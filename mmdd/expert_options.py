"""How experts are recorded, and the name under which equal ones are found again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from mmdd.errors import UserError

FORMAT = 1
"""Of a folder of experts."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """How experts are trained and which of their snapshots are kept.

    Attributes
    ----------
    count: experts. It does not change any expert: a larger count extends the folder.
    epochs: snapshots are taken at the start and after every epoch.
    epoch_steps: SGD steps of one epoch; None for one pass over the data, ``ceil(N / batch_size)``.
    batch_size, lr, momentum, weight_decay: plain SGD.
    schedule: of the rate: ``constant``, or ``cosine``, down to zero at the end of the last epoch.
    average: snapshots are averages of the parameters so far, with weights that grow as step^average
        (polynomial-decay averaging, Shamir and Zhang 2013): those of about the latest share
        ``1 / (average + 1)`` of the steps count. None: the parameters themselves.
    augment: train under the recipe's augmentation.
    sharpness: flat trajectories (FTD): adaptive GSAM with the radius `rho` and, times `alpha`, the
        part of the old gradient orthogonal to the new one taken off; see `mmdd.cohort`.
    keep: all snapshots, or only the first and the last (all that interpolated pairs need).
    optimiser: ``sgd``, or ``adam``, for which `momentum` is not read.
    curriculum: share of the training items, the easiest ones, that an expert begins with; it grows
        evenly to all of them by epoch `curriculum_epochs` (GEOM). For data that know difficulty.

    Raises `UserError` for a value that cannot be trained with.
    """

    count: int = 10
    epochs: int = 20
    epoch_steps: int | None = None
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    augment: bool = True
    sharpness: bool = False
    rho: float = 0.01
    alpha: float = 0.3
    keep: Literal["epochs", "ends"] = "epochs"
    optimiser: Literal["sgd", "adam"] = "sgd"
    curriculum: float | None = None
    curriculum_epochs: int = 1
    schedule: Literal["constant", "cosine"] = "constant"
    average: float | None = None

    def __post_init__(self) -> None:
        for name in ("count", "epochs", "batch_size", "epoch_steps"):
            value = getattr(self, name)
            no_steps = name == "epoch_steps" and value is None
            if not no_steps and not (isinstance(value, int) and value >= 1):
                raise _refused(name, value, "a whole number, at least 1")
        for name in ("lr", "momentum", "weight_decay", "rho", "alpha", "average"):
            value = getattr(self, name)
            if name == "average" and value is None:
                continue
            if not (math.isfinite(value) and value >= 0):
                raise _refused(name, value, "a finite number, 0 or more")
        if self.lr == 0:
            raise _refused("lr", self.lr, "more than 0")
        if self.momentum >= 1:
            raise _refused("momentum", self.momentum, "less than 1")
        if self.keep not in ("epochs", "ends"):
            raise _refused("keep", self.keep, "'epochs' or 'ends'")
        if self.optimiser not in ("sgd", "adam"):
            raise _refused("optimiser", self.optimiser, "'sgd' or 'adam'")
        if self.schedule not in ("constant", "cosine"):
            raise _refused("schedule", self.schedule, "'constant' or 'cosine'")
        if self.curriculum is not None and not 0 < self.curriculum <= 1:
            raise _refused("curriculum", self.curriculum, "a share above 0")
        if self.curriculum_epochs < 1:
            raise _refused("curriculum_epochs", self.curriculum_epochs, "1 or more")

    @property
    def kept(self) -> tuple[int, ...]:
        """Epochs whose snapshots are stored; 0 is the start."""
        return (0, self.epochs) if self.keep == "ends" else tuple(range(self.epochs + 1))

    def rate(self, done: float) -> float:
        """The rate when the share `done` of the training is over."""
        falls = self.schedule == "cosine"
        return self.lr * 0.5 * (1 + math.cos(math.pi * done)) if falls else self.lr

    def weight_of_latest(self, steps: int) -> float:
        """Share of the parameters after step number `steps` in their average."""
        if self.average is None:
            return 1.0
        return min(1.0, (self.average + 1) / (steps + self.average))

    def share(self, epoch: int) -> float:
        """Share of the items, the easiest ones, that epoch number `epoch` trains on."""
        if self.curriculum is None:
            return 1.0
        done = min(1.0, epoch / self.curriculum_epochs)
        return self.curriculum + done * (1 - self.curriculum)

    def of_one(self) -> dict[str, Any]:
        """Everything that decides one expert: all but their number."""
        values = dataclasses.asdict(self)
        del values["count"]
        # what came later is named where it is used: older recordings keep their names
        for name in ("optimiser", "curriculum", "curriculum_epochs", "schedule", "average"):
            if values[name] == getattr(Recording, name):
                del values[name]
        return values


def _refused(name: str, value: Any, expected: str) -> UserError:
    return UserError(f"experts.{name} cannot be used", got=value, expected=expected)


def key(
    fingerprint: str,
    encoder: str,
    recording: Recording,
    augment: Mapping[str, Any],
    seed: int,
    **more: Any,
) -> str:
    """Digest that names a folder of experts: equal keys mean equal experts, whatever their number.

    Parameters
    ----------
    fingerprint: of the data.
    encoder: text that tells the net and all its options.
    augment: options of the augmentation.
    more: whatever else decides a trajectory, as plain JSON values (task, precision, …).
    """
    told = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "encoder": encoder,
        "recording": recording.of_one(),
        "augment": dict(augment),
        "seed": seed,
        "more": more,
    }
    text = json.dumps(told, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
