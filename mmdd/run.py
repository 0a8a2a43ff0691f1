"""A run: a folder that holds a recipe, a log, a check-point, and in the end the artifact.

After Ctrl-C, a crash or ``kill -9`` at any moment the run continues from its last check-point and
ends with the same bits as an uninterrupted one (on the CPU, with the same number of threads).
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from mmdd import build, earlier, machine
from mmdd.assembly import settled
from mmdd.distiller import Distiller
from mmdd.errors import NonFiniteError, UserError
from mmdd.evaluate import Trainer, score
from mmdd.experts import Experts
from mmdd.files import load_tree, require_writable, save_tree, write_atomic
from mmdd.modality import Splits
from mmdd.progress import Progress
from mmdd.recipe import PROTOCOLS, Protocol, Recipe
from mmdd.results import detached
from mmdd.task import is_better

RECIPE = "recipe.yaml"
LOG = "log.jsonl"
CHECKPOINT = Path("state") / "checkpoint.safetensors"
WARM_STEPS = 2
"""Steps that compile and warm up; their time says nothing about the others."""
FIRST_FIT = 8
IDLE_STEPS = 10
"""That many steps without effect at the start of a run are told at once."""


class Interrupted(Exception):
    """The user stopped the run; its state is saved."""


def begin(recipe: Recipe, folder: Path) -> None:
    """Write the recipe with every default, before any long work: from here `resume` goes on."""
    require_writable(folder, 2**20)
    dump = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    write_atomic(folder / RECIPE, dump.encode())


class Run:
    """A distillation in a folder.

    Parameters
    ----------
    folder: where the state is kept; None keeps nothing (from Python, without ``out``).
    """

    def __init__(
        self,
        recipe: Recipe,
        splits: Splits,
        parts: build.Parts,
        folder: Path | None,
        progress: Progress | None = None,
        experts: Experts | None = None,
    ) -> None:
        self.recipe = recipe
        self.splits = splits
        self.parts = parts
        self.folder = folder
        self.progress = progress or Progress()
        self.begun_with = earlier.told(recipe)
        self.distiller: Distiller = build.distiller(parts, splits, experts)
        self.steps = recipe.optimise.steps
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.best_score: float | None = None
        self._saved = time.monotonic()
        self._timed: list[float] = []
        self.first_step: float | None = None
        self._trainer: Trainer | None = None

    # -- starting and continuing -----------------------------------------------------------------

    def require_room(self) -> None:
        """Raise `UserError` if the folder cannot hold check-point and artifact."""
        if self.folder is not None:
            require_writable(self.folder, 6 * self.distiller.synthetic.nbytes + 2**20)

    def restore(self) -> None:
        """Continue from the check-point; a run without one starts at step 0."""
        assert self.folder is not None
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = load_tree(path)
        if state["fingerprint"] != self.parts.info.fingerprint:
            raise UserError(
                "the data changed since this run began",
                got=self.parts.info.fingerprint[:12],
                expected=f"fingerprint {state['fingerprint'][:12]}",
                hint="Bring the same data back, or start a new run.",
            )
        self.distiller.load_state_dict(state["distiller"])
        self.set_steps(state["steps"])
        self.seconds = state["seconds"]
        self.history = state["history"]
        self.best, self.best_score = state["best"], state["best_score"]

    def set_steps(self, steps: int) -> None:
        """Change the length of the run and of its schedules."""
        self.steps = self.distiller.optimiser.steps = steps

    # -- the loop --------------------------------------------------------------------------------

    def go(self) -> None:
        """Step to the end.

        Raises `Interrupted` after Ctrl-C (state saved) and `NonFiniteError` with the last good
        state kept.
        """
        with stop_on_signal() as stopped, self.progress.task("distilling", self.steps) as update:
            while self.distiller.number < self.steps and not self._out_of_time():
                started = time.perf_counter()
                try:
                    loss = self.distiller.step()
                except NonFiniteError as error:
                    raise NonFiniteError(self._advice(error)) from None
                self.seconds += time.perf_counter() - started
                self._after(loss, time.perf_counter() - started)
                update(self.distiller.number, total=self.steps, loss=loss, **self._latest())
                if stopped.is_set():
                    self.save()
                    raise Interrupted
        if self.distiller.idle and not self.distiller.number == self.distiller.idle == IDLE_STEPS:
            self._tell_idle()
        self.save()

    def _out_of_time(self) -> bool:
        minutes = self.recipe.run.minutes
        return minutes is not None and self.seconds >= 60 * minutes

    def _after(self, loss: float, seconds: float) -> None:
        number = self.distiller.number
        self._tell_compiling(seconds)
        if number == self.distiller.idle == IDLE_STEPS:
            self._tell_idle()
        self._fit_time(number, seconds)
        every = self.recipe.evaluate.every
        record: dict[str, Any] = {"step": number, "loss": loss}
        if every and (number % every == 0 or number == self.steps):
            record["validation"] = self._validate()
        if "validation" in record or number % max(1, self.steps // 200) == 0 or number == 1:
            self.history.append(record)
        if time.monotonic() - self._saved >= self.recipe.run.checkpoint_seconds:
            self.save()

    def _tell_compiling(self, seconds: float) -> None:
        """Say once what the compiler cost; its work is kept for the next run of the same shapes."""
        if self.first_step is None:
            self.first_step = seconds
            if self.distiller.learner.compiled:
                self.progress.say(f"compiled: the first step took {seconds:.0f} s")

    def _tell_idle(self) -> None:
        """Say how many steps changed nothing: a threshold may leave a set as it was begun."""
        done = self.distiller
        self.progress.say(
            f"{done.idle} of {done.number} steps left the set as it was: their loss was above"
            " objective.skip_above. Raise it, or set it to null to skip none."
        )

    def _fit_time(self, number: int, seconds: float) -> None:
        """Say how many steps fit into the minutes given, anew at steps 8, 16, 32 and so on.

        Later estimates know the machine better, and the schedules bend with them.
        """
        minutes = self.recipe.run.minutes
        if minutes is None or number <= WARM_STEPS:
            return
        self._timed.append(seconds)
        if number >= FIRST_FIT and number & (number - 1) == 0:
            each = sum(self._timed) / len(self._timed)
            self._timed.clear()
            # a little in reserve, so that the schedule ends before the clock does
            left = int(0.98 * (60 * minutes - self.seconds) / each)
            self.set_steps(min(self.recipe.optimise.steps, number + max(1, left)))

    def _validate(self) -> float:
        """Score one fresh learner on validation; its draws touch no stream of the run."""
        validation = self.splits.validation
        if validation is None:
            raise UserError(
                "evaluate.every needs a validation split",
                hint="Set data.validation to a share above 0.",
            )
        batch = detached(self.distiller.synthetic)
        if self._trainer is None:
            # kept: every new learner would be compiled anew
            protocol = self._quick()
            checks = max(1, self.steps // self.recipe.evaluate.every)
            items = 3.0 * protocol.epochs * len(batch) * checks
            learner = self.parts.learner(items, self.parts.judge)
            self._trainer = self.parts.trainer(learner, protocol, None)
        trained = self._trainer.train([batch], "during")
        learner = self._trainer.learner
        value = score(learner, trained[0], validation.seen_by(learner.encoder))
        if is_better(self.parts.task, value, self.best_score):
            self.best_score = value
            self.best = {
                name: tensor.clone()
                for name, tensor in self.distiller.synthetic.state_dict().items()
            }
        return value

    def _quick(self) -> Protocol:
        """A short protocol of the kind that the recipe judges by."""
        own = self.recipe.protocol
        if own.full == "full":
            return PROTOCOLS["quick"]
        return own.model_copy(update={"epochs": max(1, own.epochs // 3), "selection": "last"})

    def _latest(self) -> dict[str, float]:
        scored = [record["validation"] for record in self.history if "validation" in record]
        return {"validation": scored[-1]} if scored else {}

    def _advice(self, error: NonFiniteError) -> str:
        lower = "Lower optimise.inputs.lr, or set optimise.inputs.clip."
        if self.folder is None:
            return f"{error}. {lower}"
        self.save()
        return f"{error}. The state before this step is kept in {self.folder}. {lower}"

    def finish(self) -> None:
        """Take the state that is handed back: the last, or the one validation preferred."""
        if self.recipe.run.keep == "validation" and self.best is not None:
            self.distiller.synthetic.load_state_dict(self.best)
        elif self.distiller.teacher is not None:
            self.distiller.teacher.renew(self.distiller.synthetic)
        self.distiller.synthetic.check_finite("at the end of the run")
        self.distiller.synthetic = settled(self.parts, self.distiller.synthetic)

    # -- files -----------------------------------------------------------------------------------

    def save(self) -> None:
        """Write check-point and log; each file is replaced as a whole."""
        self._saved = time.monotonic()
        if self.folder is None:
            return
        state = {
            "fingerprint": self.parts.info.fingerprint,
            "distiller": self.distiller.state_dict(),
            "steps": self.steps,
            "seconds": self.seconds,
            "history": self.history,
            "best": self.best,
            "best_score": self.best_score,
        }
        path = self.folder / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tree(path, state)
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomic(self.folder / LOG, lines.encode())

    def facts(self) -> dict[str, Any]:
        """What the artifact records of the run."""
        return {
            "steps": self.distiller.number,
            "idle_steps": self.distiller.idle,
            "seconds": round(self.seconds, 3),
            **({"begun_with": self.begun_with} if self.begun_with else {}),
            "peak_memory_mb": round(machine.peak_memory_mb(self.parts.device), 1),
            "seed": self.recipe.run.seed,
            "device": str(self.parts.device),
            "threads": torch.get_num_threads(),
            "precision": str(self.distiller.learner.dtype).removeprefix("torch."),
            "compiled": self.distiller.learner.compiled,
            "first_step_seconds": None if self.first_step is None else round(self.first_step, 1),
            "kept": self.recipe.run.keep,
            "history": self.history,
        }


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a wish to stop after the step; a second Ctrl-C stops at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def wish(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {sig: signal.signal(sig, wish) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
