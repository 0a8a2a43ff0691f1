"""From Python: distil, evaluate, save, load, hand back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from mmdd import artifact, build, machine
from mmdd.assembly import restore
from mmdd.budget import budget, told_budget
from mmdd.compose import from_flags, merge, modality_of, nested, read_yaml
from mmdd.earlier import require_fit
from mmdd.errors import UserError
from mmdd.experts import Experts
from mmdd.first_labels import require_attention
from mmdd.modality import DataInfo, Splits
from mmdd.progress import Progress
from mmdd.protocols import Split
from mmdd.recipe import Recipe, validate
from mmdd.recording import Stopped
from mmdd.results import Judge, Table, detached
from mmdd.rng import generator
from mmdd.run import CHECKPOINT, RECIPE, Interrupted, Run, begin, stop_on_signal
from mmdd.synthetic import SyntheticSet
from mmdd.trees import Tree, tree_leaves, tree_take

T = TypeVar("T")


class DistilledDataset(Dataset[tuple[Any, Any]]):
    """The synthetic items as an ordinary map-style torch data set of (inputs, target)."""

    def __init__(self, inputs: Tree, targets: Any) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return tree_leaves(self.inputs)[0].shape[0]

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        item = tree_take(self.inputs, place)
        target = tree_take(self.targets, place)
        is_number = isinstance(target, Tensor) and target.ndim == 0
        return item, int(target) if is_number else target


@dataclasses.dataclass
class Distilled:
    """A finished set: tensors, recipe, facts of its making and, once evaluated, its scores."""

    parts: build.Parts
    synthetic: SyntheticSet
    run: dict[str, Any]
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path | None = None
    _splits: Splits | None = dataclasses.field(default=None, repr=False)

    @property
    def recipe(self) -> Recipe:
        """Everything that decided the result."""
        return self.parts.recipe

    @property
    def info(self) -> DataInfo:
        """Facts of the real data."""
        return self.parts.info

    def evaluate(
        self,
        *,
        data: Any = None,
        encoders: Sequence[str] = (),
        learners: int | None = None,
        baselines: bool = True,
        split: Split = "test",
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Train fresh learners on the set and score them on the real test split.

        Parameters
        ----------
        data: the real data where it came from Python; else it is opened again by its name.
        encoders: names; the recipe's own when empty.
        baselines: score random, herding and full data beside it.
        split: ``validation`` while options are chosen; such scores are not kept with the set.
        options: values of the section ``evaluate`` by dotted key, in place of the recipe's, e.g.
            ``{"evaluate.protocol": "idc"}``; such scores are not kept either.

        Returns the object that ``mmdd evaluate --json`` prints. Raises `UserError` for options of
        other sections, which made the set, and for those that cannot be.
        """
        machine.keep_memory()
        parts = self._judged_by(options) if options else self.parts
        splits = self._open(data)
        judge = Judge(parts, splits, progress, split)
        table = judge.table(
            self.synthetic, encoders=encoders, learners=learners, baselines=baselines
        )
        report = self._report(judge, table, alone=bool(options))
        if split == "test" and not options:
            self.results = report
        return report

    def _judged_by(self, options: Mapping[str, Any]) -> build.Parts:
        """The parts of the set under other options of ``evaluate``."""
        for key in options:
            if key.partition(".")[0] != "evaluate":
                raise UserError(
                    "a set that is made can be scored otherwise, not made otherwise",
                    got=key,
                    expected="keys of the section evaluate, e.g. evaluate.protocol=idc",
                )
        values = merge(self.recipe.model_dump(mode="json"), nested(options))
        return build.parts(validate(values, "option"), self.info, self.parts.device)

    def _open(self, data: Any) -> Splits:
        if data is None and self._splits is not None:
            return self._splits
        splits = build.open_data(self.recipe, data, self.parts.device)
        if splits.info.fingerprint != self.info.fingerprint:
            raise UserError(
                "this is not the data that the set was distilled from",
                got=splits.info.fingerprint[:12],
                expected=f"fingerprint {self.info.fingerprint[:12]}",
                hint="Give the same data (and the same data.* options).",
            )
        self._splits = splits
        return splits

    def _report(self, judge: Judge, table: Table, alone: bool) -> dict[str, Any]:
        task = self.parts.task
        protocol = judge.protocol.model_dump()
        if not alone and judge.split == "test" and self.results.get("protocol") == protocol:
            # other encoders under the same protocol: one table
            table = {**self.results["results"], **table}
        return {
            "metric": task.metric,
            "direction": task.direction,
            "split": judge.split,
            "selection": judge.protocol.selection,
            "kept": self.recipe.run.keep,
            "protocol": protocol,
            "budget": self.budget,
            "results": table,
            "seconds": self.run["seconds"],
            "peak_memory_mb": max(
                self.run["peak_memory_mb"], round(machine.peak_memory_mb(self.parts.device), 1)
            ),
        }

    @property
    def budget(self) -> dict[str, int]:
        """Stored items and bytes."""
        return {"items": len(self.synthetic), "bytes": self.synthetic.nbytes}

    def save(self, folder: str | Path) -> Path:
        """Write the artifact: exact tensors, parquet, card, picture, manifest."""
        batch = detached(self.synthetic).to("cpu")
        modality, info = self.parts.modality, self.info
        beside = {"real": self._some_real()} if getattr(modality, "shows_real", False) else {}
        artifact.save(
            Path(folder),
            tensors={k: v.cpu() for k, v in self.synthetic.state_dict().items()},
            manifest={
                "recipe": self.recipe.model_dump(mode="json"),
                "info": info.as_dict(),
                "protocol": self.recipe.protocol.model_dump(mode="json"),
                "results": self.results,
                "run": self.run,
                "budget": self.budget,
            },
            info_tensors=info.tensors,
            columns=modality.to_columns(batch.inputs, batch.targets, info),
            picture=lambda path: modality.picture(
                batch.inputs, batch.targets, info, path, **beside
            ),
        )
        self.folder = Path(folder)
        return self.folder

    def _some_real(self, per_group: int = 50) -> tuple[Tree, Tensor] | None:
        """Inputs and groups of some training items, where the data are open."""
        if self._splits is None:
            return None
        train = self._splits.train
        index = train.draw_index(per_group, generator(self.recipe.run.seed, "picture"))
        return train.items(index), train.groups[index]

    def to_dataset(self) -> Any:
        """Return the set as a ``datasets.DatasetDict`` with one split ``train``."""
        import datasets

        batch = detached(self.synthetic).to("cpu")
        columns, features = self.parts.modality.to_columns(batch.inputs, batch.targets, self.info)
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        return datasets.DatasetDict({"train": made})

    def to_pyg(self) -> Any:
        """Return a condensed graph as ``torch_geometric.data.Data``, or a list for whole graphs.

        Raises `UserError` for other modalities.
        """
        modality = self.parts.modality
        if not hasattr(modality, "to_pyg"):
            raise UserError(
                "only graphs become PyG data", got=modality.name, expected="modality graphs"
            )
        batch = detached(self.synthetic).to("cpu")
        return modality.to_pyg(batch.inputs, batch.targets)

    def to_torch(self) -> DistilledDataset:
        """Return the exact, normalised inputs and targets as a torch data set."""
        batch = detached(self.synthetic).to("cpu")
        return DistilledDataset(batch.inputs, batch.targets)


def distill(
    data: Any = None,
    *,
    method: str | None = None,
    recipe: str | Path | Recipe | None = None,
    per_class: int | None = None,
    items: int | None = None,
    fraction: float | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Distil `data` and return the set.

    Parameters
    ----------
    data: a name or path as on the command line, a ``datasets.Dataset`` or ``DatasetDict``, a torch
        data set of (image, label), or a pair of tensors.
    method, recipe: a method of ``mmdd list methods``, or a recipe's file or name.
    per_class, items, fraction: the budget.
    out: folder for the run's state and the artifact; without it nothing is written.
    options: further recipe values by dotted key, ``{"optimise.inputs.lr": 0.5}``.

    Raises `UserError` for anything a person can mend, before long work starts.
    """
    named = isinstance(data, (str, Path))
    if not named and (known := modality_of(data)):
        options = {"modality": known, **(options or {})}
    made = (
        recipe
        if isinstance(recipe, Recipe)
        else from_flags(
            str(data) if named else None,
            recipe=recipe,
            method=method,
            per_class=per_class,
            items=items,
            fraction=fraction,
            steps=steps,
            minutes=minutes,
            seed=seed,
            device=device,
            options=options,
        )
    )
    return run_recipe(
        made, source=None if named else data, out=out, progress=progress or Progress()
    )


def run_recipe(
    recipe: Recipe,
    *,
    source: Any = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> Distilled:
    """Run a validated recipe in the folder `out`, from the start or from its check-point."""
    progress = progress or Progress()
    folder = None if out is None else Path(out)
    if folder is not None and not resume:
        _require_unused(folder)
    device = machine.device(recipe.run.device)
    machine.settle(recipe.run)
    splits = build.open_data(recipe, source, device)
    recipe = build.fitted(recipe, splits.info)
    parts = build.parts(recipe, splits.info, device)
    # before anything is written or recorded
    require_attention(parts)
    build.per_step(recipe, splits.train.joint)
    counts = budget(recipe, splits.train.group_sizes, splits.info)
    require_fit(parts, counts)
    told = told_budget(counts, splits.train.group_sizes, splits.info, recipe)
    for note in (*splits.info.notes, told):
        progress.say(note)
    if folder is not None and not resume:
        begin(recipe, folder)
    experts = _interruptible(lambda stop: build.experts(parts, splits, progress, stop))
    run = Run(recipe, splits, parts, folder, progress, experts)
    run.require_room()
    if resume:
        run.restore()
    run.go()
    run.finish()
    done = Distilled(parts, run.distiller.synthetic, run.facts(), _splits=splits)
    if folder is not None:
        done.save(folder)
    return done


def record_experts(
    recipe: Recipe, *, source: Any = None, progress: Progress | None = None
) -> Experts:
    """Record the expert trajectories of a recipe (section ``experts``), or what is missing of them.

    A method that follows experts does so by itself; recorded ones are found again by data, net,
    augmentation and options.
    """
    device = machine.device(recipe.run.device)
    machine.settle(recipe.run)
    splits = build.open_data(recipe, source, device)
    recipe = build.fitted(recipe, splits.info)
    parts = build.parts(recipe, splits.info, device)
    said = progress or Progress()
    return _interruptible(lambda stop: build.record_experts(parts, splits, said, stop))


def _interruptible(work: Callable[[Callable[[], bool]], T]) -> T:
    """Let Ctrl-C end a recording after a step, its state saved."""
    with stop_on_signal() as stopped:
        try:
            return work(stopped.is_set)
        except Stopped:
            raise Interrupted from None


def _require_unused(folder: Path) -> None:
    if (folder / CHECKPOINT).exists() or (folder / artifact.MANIFEST).exists():
        raise UserError(
            f"the folder {str(folder)!r} holds a run already",
            hint=f"Continue it with `mmdd resume {folder}`, or choose another --out.",
        )
    artifact.require_place(folder)


def resume(folder: str | Path, *, data: Any = None, progress: Progress | None = None) -> Distilled:
    """Continue the run in `folder`; a finished one is only loaded.

    `data` hands the real set over again where it came from Python.
    """
    folder = Path(folder)
    if (folder / artifact.MANIFEST).exists():
        return load(folder)
    if not (folder / RECIPE).exists():
        raise UserError(
            f"{str(folder)!r} holds no run",
            expected=f"a folder with {RECIPE}, as `mmdd distill --out` makes it",
        )
    recipe = validate(read_yaml(folder / RECIPE), str(folder / RECIPE))
    if data is None and recipe.data.source is None:
        raise UserError(
            "this run's data came from Python", hint="Use mmdd.resume(folder, data=...)."
        )
    return run_recipe(recipe, source=data, out=folder, progress=progress, resume=True)


def load(folder: str | Path) -> Distilled:
    """Load a finished set; hashes are checked and nothing is unpickled."""
    found = artifact.load(Path(folder))
    recipe = validate(found.manifest["recipe"], str(Path(folder) / artifact.MANIFEST))
    facts = {k: _tuples(v) for k, v in found.manifest["info"].items()}
    info = DataInfo(**facts, tensors=found.info_tensors)
    # a set that was made on a GPU is read everywhere
    device = machine.device("cpu" if recipe.run.device == "cpu" else "auto")
    parts = build.parts(recipe, info, device)
    return Distilled(
        parts,
        restore(parts, found.tensors),
        found.manifest["run"],
        found.manifest.get("results", {}),
        Path(folder),
    )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


__all__ = ["Distilled", "DistilledDataset", "distill", "load", "record_experts", "resume"]
