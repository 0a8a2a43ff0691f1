"""The honest number: a set beside random choice, herding and full data, under one protocol."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmdd import build, start
from mmdd.batch import Batch
from mmdd.cache import cache_folder
from mmdd.errors import UserError
from mmdd.evaluate import Trainer, no_step_size, predictions
from mmdd.files import write_json
from mmdd.learner import Learner, Params
from mmdd.modality import Splits
from mmdd.progress import Progress
from mmdd.protocols import Protocol, Split
from mmdd.real import RealData
from mmdd.rng import generator
from mmdd.scores import Scores
from mmdd.synthetic import SyntheticSet
from mmdd.targets import label_kind, labelled, readable
from mmdd.trees import tree_map

Row = dict[str, Any]
"""mean, std, n and values of a row, the labels that it was trained on, and its rate if learned."""

Table = dict[str, dict[str, Row]]
"""encoder -> row (synthetic, random, herding, full) -> `Row`."""

REVISION = 2
"""Of what a cached row depends on beside its key: raised when the same key gives other numbers."""


class Judge:
    """Scores sets on a split of opened data: `test`, or `validation` while options are chosen.

    Every row trains learners with the same seeds, so that rows differ by their data alone. Where a
    protocol picks a state by validation, a score on validation is that of the state picked by it.

    Raises `UserError` where the data has no such split.
    """

    def __init__(
        self,
        parts: build.Parts,
        splits: Splits,
        progress: Progress | None = None,
        split: Split = "test",
    ) -> None:
        self.parts = parts
        self.splits = splits
        self.progress = progress or Progress()
        self.options = parts.recipe.evaluate
        self.protocol = parts.recipe.protocol
        self.split = split
        self.scored = _scored(splits, split)

    def table(
        self,
        synthetic: SyntheticSet,
        *,
        encoders: Sequence[str] = (),
        learners: int | None = None,
        baselines: bool = True,
    ) -> Table:
        """Score the set, and the baselines beside it, with every encoder.

        Raises `UserError` where the protocol asks for a learned step size and the set has none.
        """
        if self.protocol.lr == "learned" and synthetic.step_size is None:
            raise no_step_size()
        names = list(encoders) or [self.parts.judge, *self.options.encoders]
        count = learners or self.options.learners
        return {name: self._rows(name, synthetic, count, baselines) for name in names}

    def _rows(
        self, encoder: str, synthetic: SyntheticSet, count: int, baselines: bool
    ) -> dict[str, Row]:
        batch = labelled(detached(synthetic), self.parts.task, self.protocol.labels)
        rows = 1 + (len(self.options.baselines) if baselines else 0)
        items = 3.0 * self.protocol.epochs * len(batch) * count * rows
        learner = self.parts.learner(items, encoder)
        batch = self._readable(batch, learner, encoder)
        # baselines too are trained at the rate that was learned: rows differ by their data alone
        protocol, rates = with_rates(self.protocol, synthetic, learner)
        trainer = self._trainer(learner, protocol, rates=rates)
        found = {"synthetic": self._score(trainer, [batch] * count, f"{encoder}: synthetic")}
        if baselines:
            counts = synthetic.groups.cpu().bincount(minlength=synthetic.num_groups)
            for how in self.options.baselines:
                found[how] = self._baseline(how, encoder, trainer, counts, count)
        if self.protocol.lr == "learned":
            for row in found.values():
                row["lr"] = list(rates or [float(protocol.lr)])
        if baselines:
            full = self._full(encoder, count)
            if full is not None:
                found["full"] = full
            found |= self._naive()
        return found

    def _readable(self, batch: Batch, learner: Learner, encoder: str) -> Batch:
        """`batch` as the learner can read it; says what it cannot."""
        found = readable(batch, learner)
        if found is not batch:
            told = learner.attention_shape
            why = f"it has {told[0]} heads over {told[1]} positions" if told else "it tells none"
            self.progress.say(
                f"{encoder} cannot read the set's labels of attention ({why}): it is trained on the"
                " class labels alone"
            )
        return found

    def _naive(self) -> dict[str, Row]:
        """Scores of what needs no training, where the modality knows such."""
        naive = getattr(self.parts.modality, "naive", None)
        if naive is None:
            return {}
        rows: dict[str, Row] = {}
        for name, scores in naive(self.scored, self.parts.info).items():
            value = scores.pop(self.parts.task.metric)
            rows[name] = Scores((value,)).as_dict() | {"labels": "none"}
            rows[name]["extras"] = {k: Scores((v,)).as_dict() for k, v in scores.items()}
        return rows

    def _trainer(self, learner: Learner, protocol: Protocol, **more: Any) -> Trainer:
        validation = self.splits.validation
        seen = None if validation is None else validation.seen_by(learner.encoder)
        return self.parts.trainer(learner, protocol, seen, **more)

    def _baseline(
        self, how: str, encoder: str, trainer: Trainer, counts: Tensor, count: int
    ) -> Row:
        recipe = self.parts.recipe
        # features of the recipe's own encoder decide which items are chosen
        chosen_in = [recipe.learner.model_dump(), recipe.run.precision, recipe.run.compile]
        key = self._key(trainer, encoder, count) | {
            "how": how,
            "counts": counts.tolist(),
            "chosen_in": None if how == "random" else chosen_in,
        }

        def compute() -> Row:
            return self._score(trainer, self.chosen(how, counts, count), f"{encoder}: {how}")

        return remembered(how, key, compute)

    def chosen(self, how: str, counts: Tensor, learners: int) -> list[Batch]:
        """One training set of real items per learner: random sets differ, others are the same."""
        train, seed = self.splits.train, self.parts.recipe.run.seed
        if how == "random":
            indices = [
                start.chosen_items(self.parts, how, train, counts, seed + 1000 * (place + 1))
                for place in range(learners)
            ]
            return [train.coreset(index) for index in indices]
        if how == "aggregate":
            batch = train.aggregate(counts, generator(seed, "select/aggregate"))
            return [batch.to(self.parts.device)] * learners
        return [train.coreset(start.chosen_items(self.parts, how, train, counts, seed))] * learners

    def _score(self, trainer: Trainer, sets: Sequence[Any], name: str) -> Row:
        total = trainer.protocol.epochs * len(sets)
        scored = self.scored.seen_by(trainer.learner.encoder)
        with self.progress.task(name, total) as update:
            trainer.on_epoch = lambda done, of: update(done)
            trained = trainer.train(sets)
        row = measured(trainer.learner, trained, scored)
        first = sets[0] if isinstance(sets[0], Batch) else sets[0].select(torch.arange(1))
        return row | {"labels": label_kind(first, self.parts.task)}

    # -- the full-data reference ---------------------------------------------------------------

    def _full(self, encoder: str, count: int) -> Row | None:
        if self.options.full is False:
            return None
        train = self.splits.train
        protocol = self.options.resolved_full(len(train))
        if self.splits.validation is None:
            protocol = protocol.model_copy(update={"selection": "last"})
        learner = self.parts.learner(3.0 * protocol.epochs * len(train) * count, encoder)
        trainer = self._trainer(learner, protocol)
        key = self._key(trainer, encoder, count)
        return remembered("full", key, lambda: self._full_row(trainer, encoder, count))

    def _full_row(self, trainer: Trainer, encoder: str, count: int) -> Row | None:
        """Train on the whole training split, unless that takes too long."""
        protocol = trainer.protocol
        minutes = self._minutes(trainer, count)
        if self.options.full == "auto" and minutes > self.options.full_minutes:
            self.progress.say(
                f"full data left out: {count} learners of {protocol.epochs} epochs would take about"
                f" {minutes:.0f} minutes (limit {self.options.full_minutes:.0f}). Ask for them with"
                " evaluate.full=true."
            )
            return None
        train = self.splits.train.seen_by(trainer.learner.encoder)
        return self._score(trainer, [train] * count, f"{encoder}: full data")

    def _minutes(self, trainer: Trainer, count: int) -> float:
        """Estimate the time of `count` learners from a few mini-batches, after one to warm up."""
        protocol = trainer.protocol
        few = 4
        train = self.splits.train.seen_by(trainer.learner.encoder)
        size = min(len(train), protocol.batch_size)
        order = torch.randperm(len(train), generator=generator(0, "probe"))
        first = train.select(order[:size])
        short = protocol.model_copy(
            update={"epochs": 1, "schedule": "constant", "selection": "last"}
        )
        timed = Trainer(trainer.learner, short, 0, trainer.augmentation)
        timed.train([first])
        started = time.perf_counter()
        for _ in range(few):
            timed.train([first])
        seconds = (time.perf_counter() - started) / few
        steps = protocol.epochs * len(train) / size
        return count * steps * seconds / 60

    # -- rows that are kept ----------------------------------------------------------------------

    def _key(self, trainer: Trainer, encoder: str, count: int) -> dict[str, Any]:
        """What decides the bits of a row, but for the choice of its training sets."""
        recipe, learner = self.parts.recipe, trainer.learner
        return {
            "data": self.parts.info.fingerprint,
            "task": self.parts.task.name,
            "encoder": [encoder, repr(learner.encoder)],
            "protocol": trainer.protocol.model_dump(),
            "rates": trainer.rates,
            "augment": (recipe.evaluate.augment or recipe.augment).model_dump(mode="json"),
            "precision": str(learner.dtype),
            "compiled": learner.compiled,
            # the order of a sum, and so its last bits, is the machine's and the library's
            "machine": [learner.device.type, torch.get_num_threads(), torch.__version__],
            "seed": trainer.seed,
            "learners": count,
            "revision": REVISION,
            **({} if self.split == "test" else {"split": self.split}),
        }


def _scored(splits: Splits, split: Split) -> RealData:
    found = splits.test if split == "test" else splits.validation
    if found is not None:
        return found
    if split == "test":
        raise UserError(
            "there is no labelled test split to score on",
            hint="Set data.test_split, or data.test to a share above 0.",
        )
    raise UserError(
        "there is no validation split to score on",
        hint="Distil with data.validation, a share of the training items, above 0.",
    )


def measured(learner: Learner, trained: Sequence[Params], real: RealData) -> Row:
    """Scores of trained nets, and under ``extras`` those of the task's further metrics by name."""
    task = learner.task
    values: list[float] = []
    more: dict[str, list[float]] = {}
    for params in trained:
        outputs, targets = predictions(learner, params, real)
        values.append(task.score(outputs, targets))
        extras = getattr(task, "extras", None)
        for name, value in ({} if extras is None else extras(outputs, targets)).items():
            more.setdefault(name, []).append(value)
    row: Row = Scores(tuple(values)).as_dict()
    if more:
        row["extras"] = {name: Scores(tuple(found)).as_dict() for name, found in more.items()}
    return row


def with_rates(
    protocol: Protocol, synthetic: SyntheticSet, learner: Learner
) -> tuple[Protocol, list[float] | None]:
    """Put the step size that was learned with the set into a protocol that asks for it.

    Returns the protocol with a number for its rate, and one rate per group of the learner's
    parameters where the set has as many. A learner with other groups gets their geometric mean:
    rates live on a logarithmic scale.

    Raises `UserError` if the set has none.
    """
    if protocol.lr != "learned":
        return protocol, None
    if synthetic.step_size is None:
        raise no_step_size()
    rates = synthetic.step_size.values().detach().double().flatten().tolist()
    mean = rates[0]
    if len(rates) > 1:
        mean = math.exp(sum(map(math.log, rates)) / len(rates))
    fits = len(rates) > 1 and len(rates) == len(learner.groups_of_parameters)
    return protocol.model_copy(update={"lr": mean}), rates if fits else None


def detached(synthetic: SyntheticSet) -> Batch:
    """Decode the whole set once, without its graph: what a user would train on."""
    with torch.no_grad():
        batch = synthetic.batch()
    # a decode may hand out the learnable tensor itself, which training would send gradients to
    return tree_map(torch.Tensor.detach, batch)


R = TypeVar("R")


def remembered(name: str, key: Mapping[str, Any], compute: Callable[[], R]) -> R:
    """Read the row of `key` from the cache, or compute it and keep it unless it is None.

    JSON keeps every bit of a float: a row that is read equals the one that was computed. With
    ``MMDD_RECOMPUTE=1`` in the environment nothing is read; what is computed replaces what is kept.

    Parameters
    ----------
    name: folder inside the cache.
    key: everything that decides the row, as JSON values.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / name / f"{digest}.json"
    anew = os.environ.get("MMDD_RECOMPUTE", "") not in ("", "0")
    found = None if anew else _read(path)
    if found is None:
        found = compute()
        if found is not None:
            _store(path, found)
    return found


def _read(path: Path) -> Any:
    """Return the row in `path`; None where there is none, or something else than a row."""
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("values"), list) else None


def _store(path: Path, found: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    except OSError:
        # a cache that cannot be written costs time, never a result
        return
