"""Runs in a folder: stopping at any moment and continuing gives the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import mmdd
from mmdd import machine
from mmdd.api import run_recipe
from mmdd.compose import compose
from mmdd.errors import NonFiniteError, UserError
from mmdd.recipe import Run
from mmdd.run import CHECKPOINT, Interrupted

QUICK = {
    "learner.width": 8,
    "real.per_group": 16,
    "run.threads": 1,
    "run.checkpoint_seconds": 0,
    "evaluate.protocol": "quick",
    "evaluate.epochs": 2,
    "evaluate.full": False,
}


def recipe(**more):
    return compose("images/digits_dm", options={**QUICK, **more})


def leaves(done):
    return {k: v.clone() for k, v in done.synthetic.state_dict().items()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.fixture
def whole(tmp_path):
    """The uninterrupted run."""
    return leaves(run_recipe(recipe(**{"optimise.steps": 12}), out=tmp_path / "whole"))


def interrupt_after(monkeypatch, step, how):
    from mmdd.distiller import Distiller

    original = Distiller.step

    def stepped(self):
        if how is not None and self.number == step:
            how()
        return original(self)

    monkeypatch.setattr(Distiller, "step", stepped)


@pytest.mark.parametrize("momentum_optimiser", ["sgd", "adam"])
def test_ctrl_c_and_resume_equals_the_whole_run(tmp_path, monkeypatch, momentum_optimiser):
    options = {
        "optimise.steps": 12,
        "optimise.inputs.optimiser": momentum_optimiser,
        "optimise.inputs.lr": 0.05,
        "optimise.inputs.schedule": "cosine",
        "source.every": 3,
        "evaluate.every": 4,
        "run.keep": "validation",
    }
    whole = run_recipe(recipe(**options), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            run_recipe(recipe(**options), out=tmp_path / "cut")
    assert (tmp_path / "cut" / CHECKPOINT).exists()
    assert not (tmp_path / "cut" / "mmdd.json").exists()
    resumed = mmdd.resume(tmp_path / "cut")
    assert_same_bits(leaves(whole), leaves(resumed))
    assert resumed.run["history"] == whole.run["history"]
    # the parts that are stored are the same, too
    assert_same_bits(leaves(mmdd.load(tmp_path / "cut")), leaves(whole))


CHILD = """
import sys
from mmdd.api import run_recipe
from mmdd.compose import compose
from mmdd.distiller import Distiller
import time
step = Distiller.step
def slow(self):
    time.sleep(0.05)
    return step(self)
Distiller.step = slow
run_recipe(compose("images/digits_dm", options={options!r}), out=sys.argv[1])
"""


def test_kill_9_and_resume_equals_the_whole_run(tmp_path, whole):
    options = {**QUICK, "optimise.steps": 12}
    code = CHILD.format(options=options)
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cut")])
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / CHECKPOINT).exists():
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert not (tmp_path / "cut" / "mmdd.json").exists(), "killed too late to show anything"
    assert_same_bits(leaves(mmdd.resume(tmp_path / "cut")), whole)


def test_resuming_a_run_that_was_killed_before_its_first_checkpoint(tmp_path, whole):
    folder = tmp_path / "early"
    run_recipe(recipe(**{"optimise.steps": 12}), out=folder)
    for name in ("mmdd.json", str(CHECKPOINT)):
        (folder / name).unlink()
    assert_same_bits(leaves(mmdd.resume(folder)), whole)


def test_resuming_a_finished_run_only_loads_it(tmp_path):
    done = run_recipe(recipe(**{"optimise.steps": 3}), out=tmp_path / "done")
    assert_same_bits(leaves(mmdd.resume(tmp_path / "done")), leaves(done))


def test_changed_data_is_refused(tmp_path, monkeypatch):
    pixels, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    options = {**QUICK, "optimise.steps": 4}
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            mmdd.distill((pixels, labels), per_class=1, out=tmp_path / "run", options=options)
    with pytest.raises(UserError, match="came from Python"):
        mmdd.resume(tmp_path / "run")
    with pytest.raises(UserError, match="data changed"):
        mmdd.resume(tmp_path / "run", data=(1 - pixels, labels))
    assert len(mmdd.resume(tmp_path / "run", data=(pixels, labels)).synthetic) == 3


def test_non_finite_loss_stops_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    from mmdd.files import load_tree
    from mmdd.objectives.distribution import DistributionMatching

    value = DistributionMatching.__call__
    calls = []
    constant = {"optimise.inputs.schedule": "constant"}

    def poisoned(self, step):
        calls.append(step.number)
        return value(self, step) * (float("nan") if step.number == 3 else 1.0)

    monkeypatch.setattr(DistributionMatching, "__call__", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 4: the loss is nan\. .*kept in"):
        run_recipe(recipe(**{"optimise.steps": 9, **constant}), out=tmp_path / "bad")
    assert calls == [0, 1, 2, 3]
    monkeypatch.undo()
    state = load_tree(tmp_path / "bad" / CHECKPOINT)
    three = leaves(run_recipe(recipe(**{"optimise.steps": 3, **constant})))
    assert_same_bits(state["distiller"]["synthetic"], three)
    assert not (tmp_path / "bad" / "mmdd.json").exists()


def test_an_exploding_gradient_stops_before_it_is_applied(tmp_path, monkeypatch):
    from mmdd.objectives.distribution import DistributionMatching

    value = DistributionMatching.__call__
    monkeypatch.setattr(
        DistributionMatching,
        "__call__",
        # a finite value whose derivative is not: d sqrt(0)
        lambda self, step: value(self, step) + (0 * step.synthetic.leaves()["inputs"]).sum().sqrt(),
    )
    with pytest.raises(NonFiniteError, match=r"gradient of 'inputs' is not finite"):
        run_recipe(recipe(**{"optimise.steps": 3}))


def test_minutes_fit_the_number_of_steps(tmp_path, monkeypatch):
    from mmdd.distiller import Distiller

    step = Distiller.step

    def slow(self):
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(Distiller, "step", slow)
    minutes = 0.15
    done = run_recipe(
        recipe(**{"optimise.steps": 10**6, "run.minutes": minutes, "run.checkpoint_seconds": 30}),
        out=tmp_path / "timed",
    )
    assert 7 < done.run["steps"] < 10**6
    assert not done.run["compiled"]
    assert done.run["seconds"] <= 60 * minutes * 1.5
    log = [json.loads(line) for line in (tmp_path / "timed" / "log.jsonl").read_text().splitlines()]
    assert log[0]["step"] == 1


@pytest.mark.parametrize(("minutes", "compiled"), [(None, True), (1.0, False), (60.0, True)])
def test_a_short_run_stays_eager_however_many_steps_it_may_make(monkeypatch, minutes, compiled):
    monkeypatch.setattr(machine, "can_compile", lambda: True)
    net, example, cpu = torch.nn.Linear(100, 100), torch.zeros(1, 100), torch.device("cpu")
    how = machine.execution(Run(), cpu, net, example, 1e12, minutes=minutes)
    assert how["compiled"] == compiled


def test_a_used_folder_is_not_written_over(tmp_path):
    run_recipe(recipe(**{"optimise.steps": 2}), out=tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already"):
        run_recipe(recipe(**{"optimise.steps": 2}), out=tmp_path / "run")


def test_validation_scores_do_not_change_the_result(tmp_path, whole):
    watched = run_recipe(recipe(**{"optimise.steps": 12, "evaluate.every": 5}))
    assert_same_bits(leaves(watched), whole)
    assert [r["step"] for r in watched.run["history"] if "validation" in r] == [5, 10, 12]


def test_without_validation_the_full_reference_takes_the_last_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("MMDD_CACHE", str(tmp_path / "cache"))
    options = {"data.validation": 0, "evaluate.full": True, "evaluate.full_epochs": 2}
    done = run_recipe(recipe(**{"optimise.steps": 2, "evaluate.learners": 2, **options}))
    first = done.evaluate()["results"]["convnet"]["full"]
    assert first["n"] == 2
    # the second time it is read, not trained
    monkeypatch.setattr("mmdd.results.Judge._score", lambda *a, **k: {"mean": -1, "std": 0, "n": 1})
    assert done.evaluate()["results"]["convnet"]["full"] == {**first, "values": [*first["values"]]}


def test_without_a_test_split_nothing_can_be_scored(tmp_path):
    pixels, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 2
    done = mmdd.distill(
        (pixels, labels), per_class=1, options={**QUICK, "optimise.steps": 1, "data.test": 0}
    )
    with pytest.raises(UserError, match="no labelled test split"):
        done.evaluate()
