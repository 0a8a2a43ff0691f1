"""Sources whose nets are trained between comparisons: on the synthetic set, on real items, a pool.

Nets are compared at the state that training left them in, and every state is check-pointed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from mmdd.batch import Batch
from mmdd.real import RealData
from mmdd.rng import draws_noise
from mmdd.sources import Drawn, ParameterSource, Surroundings
from mmdd.synthetic import SyntheticSet
from mmdd.training import Student
from mmdd.trees import tree_map
from mmdd.views import augmented

PUBLISHED_LOOPS = {1: 1, 10: 50, 20: 25, 30: 20, 40: 15, 50: 10, 100: 2}
"""Epochs of training between comparisons by items per class (Zhao et al. 2021, `get_loops`; 100 by
the authors' advice)."""


def loops(per_class: int) -> tuple[int, int]:
    """DC's (outer, inner) loops for any number of items per class.

    A net is compared `outer` times (as often as a class has items, at most 100) and trained for
    `inner` epochs in between, read off the straight lines between the published pairs.
    """
    known = sorted(PUBLISHED_LOOPS)
    inner = np.interp(per_class, known, [PUBLISHED_LOOPS[n] for n in known])
    return min(per_class, 100), max(1, round(float(inner)))


class _Trained(ParameterSource):
    """Base: how a net is born and what it is trained on."""

    def __init__(
        self,
        around: Surroundings,
        *,
        batch_size: int,
        lr: float,
        momentum: float,
        weight_decay: float,
        augment: bool,
        optimiser: Literal["sgd", "adam"],
    ) -> None:
        self.around = around
        self.batch_size = batch_size
        self._rates: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "optimiser": optimiser,
        }
        self._augmentation = around.augmentation if augment else None

    def _born(self) -> Student:
        learner, noise = self.around.learner, None
        params = learner.init(self.around.streams["source"])
        if draws_noise(learner.encoder):
            noise = int(torch.randint(2**62, (1,), generator=self.around.streams["source/noise"]))
        return Student(learner, params, noise=noise, **self._rates)

    def _revived(self, state: dict[str, Any]) -> Student:
        student = Student(self.around.learner, self._blank(state), **self._rates)
        student.load_state_dict(state)
        return student

    def _blank(self, state: dict[str, Any]) -> dict[str, torch.Tensor]:
        device = self.around.learner.device
        return {name: value.to(device) for name, value in state["params"].items()}

    def _augmented(self, batch: Batch) -> Batch:
        if self._augmentation is None:
            return batch
        stream = self.around.streams["source/augment"]
        draw = self._augmentation.draw(len(batch), stream, shared_op=True)
        return augmented(batch, self._augmentation, draw)

    def _real_batch(self) -> Batch:
        stream = self.around.streams["source/data"]
        return self._augmented(random_items(self.around.real, self.batch_size, stream))

    def _synthetic_batches(self, whole: Batch) -> Iterator[Batch]:
        """One pass over the detached set `whole`."""
        if whole.joint or len(whole) <= self.batch_size:
            yield self._augmented(whole)
            return
        order = torch.randperm(len(whole), generator=self.around.streams["source/data"])
        for index in order.to(whole.groups.device).split(self.batch_size):
            yield self._augmented(whole.select(index))


def random_items(real: RealData, size: int, stream: torch.Generator) -> Batch:
    """`size` different real items of any class; a joint set as a whole."""
    if real.joint or len(real) <= size:
        return real.select(torch.arange(len(real)))
    return real.select(real.permutation(stream)[:size])


def detached(synthetic: SyntheticSet) -> Batch:
    """The decoded set without its graph."""
    with torch.no_grad():
        batch = synthetic.batch()
    # a decode may hand out the learnable tensor itself, which training would send gradients to
    return tree_map(torch.Tensor.detach, batch)


class _OneNet(_Trained):
    """Base: one net, compared `life` times and trained by `_train` in between; then the next."""

    life: int
    _student: Student | None = None
    _compared = 0

    def draw(self, step: int) -> Drawn:
        """The net in training."""
        if self._student is None:
            self._student = self._born()
        return Drawn(self._student.params)

    def advance(self) -> None:
        """Train the net, or let it go after its last comparison."""
        self._compared += 1
        if self._compared >= self.life or self._student is None:
            self._student, self._compared = None, 0
        else:
            self._train(self._student)

    def _train(self, student: Student) -> None:
        raise AssertionError("a source of one net defines _train")

    def state_dict(self) -> dict[str, Any]:
        """The net and its age."""
        student = None if self._student is None else self._student.state_dict()
        return {"student": student, "compared": self._compared}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take net and age back."""
        self._compared = state["compared"]
        self._student = None if state["student"] is None else self._revived(state["student"])


class SyntheticTrained(_OneNet):
    """DC (Zhao et al. 2021, alg. 1): compare, train on the synthetic set, compare again.

    After `outer` comparisons the net is drawn anew; between two of them it is trained for `inner`
    epochs on the set as it then is. Where not given, `loops` decides both.
    """

    def __init__(
        self,
        around: Surroundings,
        *,
        outer: int | None = None,
        inner: int | None = None,
        batch_size: int = 256,
        lr: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        augment: bool = True,
        optimiser: Literal["sgd", "adam"] = "sgd",
    ) -> None:
        super().__init__(
            around,
            batch_size=batch_size,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            augment=augment,
            optimiser=optimiser,
        )
        counts = torch.bincount(around.synthetic.groups.cpu())
        usual = loops(int(counts.max()))
        self.outer = usual[0] if outer is None else outer
        self.inner = usual[1] if inner is None else inner
        self.life = self.outer

    def _train(self, student: Student) -> None:
        whole = detached(self.around.synthetic)
        for _ in range(self.inner):
            for batch in self._synthetic_batches(whole):
                student.step(batch)


class RealTrained(_OneNet):
    """IDC (Kim et al. 2022): compare, train on real items, compare again.

    `updates` SGD steps lie between two of the `life` comparisons of a net.
    """

    def __init__(
        self,
        around: Surroundings,
        *,
        life: int = 100,
        updates: int = 8,
        batch_size: int = 64,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        augment: bool = True,
        optimiser: Literal["sgd", "adam"] = "sgd",
    ) -> None:
        super().__init__(
            around,
            batch_size=batch_size,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            augment=augment,
            optimiser=optimiser,
        )
        self.life, self.updates = life, updates

    def draw(self, step: int) -> Drawn:
        """The net in training, which after its first comparison is also a trained one."""
        params = super().draw(step).params
        return Drawn(params, trained=params)

    def _train(self, student: Student) -> None:
        for _ in range(self.updates):
            student.step(self._real_batch())


class Pool(_Trained):
    """Nets of staggered ages (IDM, Zhao et al. 2023; FRePo, Zhou et al. 2022).

    Each step compares at one of them, drawn at random. Afterwards `students` of them, drawn at
    random, do `updates` SGD steps on real or synthetic items. A new net joins every `push_every`
    steps; beyond `nets` the oldest leaves. A net that has done `life` updates is drawn anew.
    """

    def __init__(
        self,
        around: Surroundings,
        *,
        nets: int = 100,
        start: int = 3,
        push_every: int = 30,
        life: int | None = None,
        train_on: Literal["real", "synthetic"] = "real",
        students: int = 2,
        updates: int = 10,
        batch_size: int = 256,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        augment: bool = True,
        optimiser: Literal["sgd", "adam"] = "sgd",
    ) -> None:
        super().__init__(
            around,
            batch_size=batch_size,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            augment=augment,
            optimiser=optimiser,
        )
        self.nets, self.push_every, self.life = nets, push_every, life
        self.train_on, self.students, self.updates = train_on, students, updates
        self._start = start
        self._pool: list[Student] = []
        self._accuracy: list[float] = []
        self._steps = 0

    def draw(self, step: int) -> Drawn:
        """One of the pool."""
        while len(self._pool) < self._start and self._steps == 0:
            self._push()
        stream = self.around.streams["source/pool"]
        place = int(torch.randint(len(self._pool), (1,), generator=stream))
        params = self._pool[place].params
        return Drawn(params, trained=params, accuracy=self._accuracy[place])

    def _push(self) -> None:
        self._pool.append(self._born())
        self._accuracy.append(0.0)
        del self._pool[: -self.nets], self._accuracy[: -self.nets]

    def advance(self) -> None:
        """Train some nets, renew those at the end of their life, push a new one when it is time."""
        stream = self.around.streams["source/pool"]
        for place in torch.randperm(len(self._pool), generator=stream)[: self.students].tolist():
            self._train(place)
        self._steps += 1
        if self._steps % self.push_every == 0:
            self._push()

    def _train(self, place: int) -> None:
        student = self._pool[place]
        if self.life is not None and student.steps >= self.life:
            self._pool[place], self._accuracy[place] = self._born(), 0.0
            return
        scores = [self._update(student, batch) for batch in self._lessons()]
        self._accuracy[place] = sum(scores) / len(scores)

    def _lessons(self) -> Iterator[Batch]:
        if self.train_on == "real":
            yield from (self._real_batch() for _ in range(self.updates))
            return
        whole, done = detached(self.around.synthetic), 0
        while done < self.updates:
            for batch in self._synthetic_batches(whole):
                if done < self.updates:
                    yield batch
                done += 1

    def _update(self, student: Student, batch: Batch) -> float:
        outputs = student.step(batch)
        if batch.joint:
            rows = torch.nonzero(batch.item_weights != 0).flatten()
            outputs, targets = outputs[rows], batch.targets[rows]
        else:
            targets = batch.targets
        return self.around.learner.task.score(outputs, targets)

    def state_dict(self) -> dict[str, Any]:
        """Every net with its age and score."""
        return {
            "pool": [student.state_dict() for student in self._pool],
            "accuracy": list(self._accuracy),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the pool back."""
        self._pool = [self._revived(saved) for saved in state["pool"]]
        self._accuracy, self._steps = list(state["accuracy"]), state["steps"]
