"""The honest number: a set beside random choice, herding and full data, under one protocol."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdd import build
from mmdd.batch import Batch
from mmdd.errors import UserError
from mmdd.evaluate import Scores, Trainer, score
from mmdd.files import write_json
from mmdd.modality import Splits
from mmdd.progress import Progress
from mmdd.rng import generator
from mmdd.synthetic import SyntheticSet

Table = dict[str, dict[str, dict[str, Any]]]
"""encoder -> row (synthetic, random, herding, full) -> mean, std, n."""


class Judge:
    """Scores sets on the test split of opened data.

    Every row trains learners with the same seeds, so that rows differ by their data alone.
    """

    def __init__(
        self, parts: build.Parts, splits: Splits, progress: Progress | None = None
    ) -> None:
        self.parts = parts
        self.splits = splits
        self.progress = progress or Progress()
        self.options = parts.recipe.evaluate
        self.protocol = self.options.resolved()
        if splits.test is None:
            raise UserError(
                "there is no labelled test split to score on",
                hint="Set data.test_split, or data.test to a share above 0.",
            )

    def table(
        self,
        synthetic: SyntheticSet,
        *,
        encoders: Sequence[str] = (),
        learners: int | None = None,
        baselines: bool = True,
    ) -> Table:
        """Score the set, and the baselines beside it, with every encoder."""
        names = list(encoders) or [self.parts.recipe.learner.encoder, *self.options.encoders]
        count = learners or self.options.learners
        return {name: self._rows(name, synthetic, count, baselines) for name in names}

    def _rows(
        self, encoder: str, synthetic: SyntheticSet, count: int, baselines: bool
    ) -> dict[str, dict[str, Any]]:
        batch = detached(synthetic)
        rows = 1 + (len(self.options.baselines) if baselines else 0)
        items = 3.0 * self.protocol.epochs * len(batch) * count * rows
        learner = self.parts.learner(items, encoder)
        trainer = self.parts.trainer(learner, self.protocol, self.splits.validation)
        found = {"synthetic": self._score(trainer, [batch] * count, f"{encoder}: synthetic")}
        if baselines:
            counts = synthetic.groups.cpu().bincount(minlength=synthetic.num_groups)
            for how in self.options.baselines:
                sets = self.chosen(how, counts, count)
                found[how] = self._score(trainer, sets, f"{encoder}: {how}")
            full = self._full(encoder, count)
            if full is not None:
                found["full"] = full
        return found

    def chosen(self, how: str, counts: Tensor, learners: int) -> list[Batch]:
        """One training set of real items per learner: random sets differ, others are the same."""
        train, seed = self.splits.train, self.parts.recipe.run.seed
        if how == "random":
            indices = [
                build.chosen_items(self.parts, how, train, counts, seed + 1000 * (place + 1))
                for place in range(learners)
            ]
            return [train.select(index) for index in indices]
        return [train.select(build.chosen_items(self.parts, how, train, counts, seed))] * learners

    def _score(self, trainer: Trainer, sets: Sequence[Any], name: str) -> dict[str, Any]:
        total = trainer.protocol.epochs * len(sets)
        test = self.splits.test
        assert test is not None
        with self.progress.task(name, total) as update:
            trainer.on_epoch = lambda done, of: update(done)
            trained = trainer.train(sets)
        return Scores(tuple(score(trainer.learner, params, test) for params in trained)).as_dict()

    # -- the full-data reference ---------------------------------------------------------------

    def _full(self, encoder: str, count: int) -> dict[str, Any] | None:
        if self.options.full is False:
            return None
        train = self.splits.train
        protocol = self.options.resolved_full(len(train))
        if self.splits.validation is None:
            protocol = protocol.model_copy(update={"selection": "last"})
        learner = self.parts.learner(3.0 * protocol.epochs * len(train) * count, encoder)
        trainer = self.parts.trainer(learner, protocol, self.splits.validation)
        cache = self._cache_file(trainer, encoder, count)
        if cache.is_file():
            return json.loads(cache.read_text())
        minutes = self._minutes(trainer, count)
        if self.options.full == "auto" and minutes > self.options.full_minutes:
            self.progress.say(
                f"full data left out: {count} learners of {protocol.epochs} epochs would take about"
                f" {minutes:.0f} minutes (limit {self.options.full_minutes:.0f}). Ask for them with"
                " evaluate.full=true."
            )
            return None
        found = self._score(trainer, [train] * count, f"{encoder}: full data")
        _store(cache, found)
        return found

    def _minutes(self, trainer: Trainer, count: int) -> float:
        """Estimate the time of `count` learners from a few mini-batches, after one to warm up."""
        protocol = trainer.protocol
        few = 4
        train = self.splits.train
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

    def _cache_file(self, trainer: Trainer, encoder: str, count: int) -> Path:
        key = {
            "data": self.parts.info.fingerprint,
            "encoder": [encoder, repr(trainer.learner.encoder)],
            "protocol": trainer.protocol.model_dump(),
            "augment": self.parts.recipe.augment.model_dump(),
            "precision": str(trainer.learner.dtype),
            "seed": trainer.seed,
            "learners": count,
            "revision": 1,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return cache_folder() / "full" / f"{digest}.json"


def detached(synthetic: SyntheticSet) -> Batch:
    """Decode the whole set once, without its graph: what a user would train on."""
    with torch.no_grad():
        return synthetic.batch()


def cache_folder() -> Path:
    """Where costly references are kept: ``MMDD_CACHE``, or the user's cache folder."""
    base = os.environ.get("MMDD_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmdd"


def _store(path: Path, found: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    except OSError:
        # a cache that cannot be written costs time, never a result
        return
