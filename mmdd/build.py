"""From a recipe and opened data to the parts of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mmdd import catalog
from mmdd.budget import budget
from mmdd.cache import cache_folder
from mmdd.distiller import Distiller
from mmdd.errors import UserError
from mmdd.expert_options import Recording, key
from mmdd.experts import Experts
from mmdd.modality import Splits
from mmdd.optimise import OuterOptimiser
from mmdd.parts import Parts, fitted, open_data, parts
from mmdd.progress import Progress
from mmdd.recipe import Leaf, Recipe
from mmdd.recording import record
from mmdd.rng import Streams
from mmdd.selection import RealSelector
from mmdd.sources import ParameterSource, Surroundings
from mmdd.start import synthetic_set
from mmdd.step import WeightedSum
from mmdd.teacher import Teacher

__all__ = [
    "Parts",
    "distiller",
    "experts",
    "fitted",
    "objective",
    "open_data",
    "parts",
    "rates",
    "record_experts",
    "selector",
    "source",
]


def objective(recipe: Recipe) -> WeightedSum:
    """Build the weighted sum of the recipe's objectives."""
    terms = []
    for section in recipe.terms:
        options = section.model_dump()
        weight, kind = options.pop("weight"), options.pop("kind")
        terms.append((weight, catalog.load("objective", kind, catalog.OBJECTIVES)(**options)))
    return WeightedSum(terms)


def needs_experts(recipe: Recipe) -> bool:
    """True when the recipe reads recorded trajectories."""
    labels = getattr(recipe.synthetic.labels, "classes", recipe.synthetic.labels)
    kinds = catalog.load("task", recipe.task, catalog.TASKS).label_kinds
    learned = getattr(labels, "initialise", None) == "experts" and "soft" in kinds
    asked = labels.kind == "teacher" or learned
    return recipe.source.kind in ("interpolated", "experts") or asked


def experts(
    parts: Parts,
    splits: Splits,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Experts | None:
    """Open the recorded trajectories that the recipe asks for; record what is missing of them.

    They lie in ``experts.folder``, or in the cache under a name made of everything that they
    depend on, so that equal ones are recorded once. `stopped` is asked after every step.
    """
    if not needs_experts(parts.recipe):
        return None
    return record_experts(parts, splits, progress, stopped)


def record_experts(
    parts: Parts,
    splits: Splits,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Experts:
    """Record trajectories by the recipe's section ``experts``, or open those that are there."""
    options = parts.recipe.experts.model_dump()
    folder, seed = options.pop("folder"), options.pop("seed")
    recording = Recording(**options)
    steps = recording.epoch_steps or -(-len(splits.train) // recording.batch_size)
    items = recording.count * recording.epochs * steps * recording.batch_size
    learner = parts.learner(items=3.0 * items)
    augment = parts.recipe.augment.model_dump()
    about = {"encoder": repr(learner.encoder), "augment": augment, "precision": str(learner.dtype)}
    more = {"precision": about["precision"], "task": parts.task.name}
    name = key(parts.info.fingerprint, about["encoder"], recording, augment, seed, **more)
    return record(
        cache_folder() / "experts" / name if folder is None else Path(folder),
        learner,
        splits.train.seen_by(learner.encoder),
        recording,
        seed=seed,
        augmentation=parts.augmentation() if recording.augment else None,
        fingerprint=parts.info.fingerprint,
        about=about,
        progress=progress,
        stopped=stopped,
    )


def source(recipe: Recipe, around: Surroundings) -> ParameterSource:
    """Build the parameter source from its options."""
    options = recipe.source.model_dump()
    return catalog.load("source", options.pop("kind"), catalog.SOURCES)(around, **options)


def selector(recipe: Recipe) -> RealSelector | None:
    """Build the choice of real items; None draws them at random."""
    options = recipe.real.selector.model_dump()
    kind = options.pop("kind")
    if kind == "random":
        return None
    return RealSelector(catalog.load("selector", kind, catalog.SELECTORS), **options)


def distiller(parts: Parts, splits: Splits, experts: Experts | None = None) -> Distiller:
    """Build the parts of a run at step 0."""
    recipe = parts.recipe
    counts = budget(recipe, splits.train.group_sizes, parts.info)
    streams = Streams(recipe.run.seed)
    learner = parts.learner(items=work(recipe, counts), minutes=recipe.run.minutes)
    train = splits.train.seen_by(learner.encoder)
    teacher = None
    if experts is not None:
        every = getattr(recipe.synthetic.labels, "every", 1)
        teacher = Teacher(learner, experts, every=every)
    synthetic = synthetic_set(parts, splits.train, counts, learner, teacher)
    augmentation = parts.augmentation()
    around = Surroundings(learner, streams, synthetic, train, augmentation, experts)
    return Distiller(
        synthetic=synthetic,
        real=train,
        learner=learner,
        source=source(recipe, around),
        objective=objective(recipe),
        optimiser=OuterOptimiser(synthetic.leaves(), rates(recipe, counts), recipe.optimise.steps),
        streams=streams,
        augmentation=augmentation,
        selector=selector(recipe),
        teacher=teacher if synthetic.labels.kind == "teacher" else None,
        per_group=recipe.real.per_group,
        synthetic_per_group=per_step(recipe, synthetic.joint),
        pass_items=recipe.real.pass_items,
    )


def per_step(recipe: Recipe, joint: bool) -> int | None:
    """Items of a group that a step sees; `UserError` where the set cannot be taken apart."""
    if recipe.synthetic.per_step is not None and joint:
        raise UserError(
            "synthetic.per_step takes some items of a set; these are one structure",
            got=recipe.synthetic.per_step,
            hint="Leave it out.",
        )
    return recipe.synthetic.per_step


def rates(recipe: Recipe, counts: Tensor) -> dict[str, Leaf]:
    """Optimiser options by leaf, rates multiplied by the items per class where that is asked."""
    per_class = float(counts.sum()) / max(1, int((counts > 0).sum()))
    return {
        name: leaf.model_copy(update={"lr": leaf.lr * per_class}) if leaf.by_items else leaf
        for name, leaf in recipe.optimise.by_leaf().items()
    }


def work(recipe: Recipe, counts: Tensor) -> float:
    """Forward passes of one item that a run is worth, a backward pass counting as two."""
    made = int(counts.sum())
    most = recipe.synthetic.per_step
    seen = made if most is None else min(made, most * len(counts))
    a_step = float(recipe.real.per_group * len(counts) + 3 * seen)
    for section in recipe.terms:
        if section.kind == "gradient":
            a_step += 2.0 * recipe.real.per_group * len(counts) + 6 * seen
        elif section.kind == "trajectory":
            a_step += 9.0 * section.steps * min(section.batch_size or made, made)
    return recipe.optimise.steps * a_step
