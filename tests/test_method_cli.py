"""Methods as a person runs them: experts ahead, every shipped digits recipe, soft labels."""

from __future__ import annotations

import json

import pytest
import torch
from fakes import stopped_after
from test_cli import mmdd as run

import mmdd
from mmdd import compose

EXPERTS = ["experts.epoch_steps=3", "experts.batch_size=32", "learner.width=8"]
SHORT = {
    "learner.width": 8,
    "real.per_group": 8,
    "experts.count": 2,
    "experts.epoch_steps": 2,
    "experts.batch_size": 32,
    "evaluate.epochs": 2,
    "evaluate.learners": 2,
    "evaluate.full": False,
}
DIGITS = sorted(name for name in compose.recipes() if name.startswith("images/digits_"))


def test_experts_are_recorded_found_again_and_extended(tmp_path):
    words = ["experts", "digits", "--epochs", 3, "source.max_start=1", "--out", tmp_path / "e"]
    code, out, err = run(*words, "--count", 2, *EXPERTS)
    assert code == 0, err
    assert "2 experts of 3 epochs" in out
    assert "mmdd distill digits --method mtt experts.count=2 experts.epochs=3" in out
    assert "recording 2 experts" in err + out, "the size is told before it starts"
    code, out, err = run(*words, "--count", 2, *EXPERTS, "--json")
    assert code == 0, err
    first = json.loads(out)
    assert (first["count"], first["epochs"]) == (2, 3)
    assert "recording" not in err
    code, out, err = run(*words, "--count", 3, *EXPERTS, "--json")
    assert code == 0, err
    assert json.loads(out)["bytes"] == first["bytes"] // 2 * 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["experts", "digits", "--method", "mt"], "Did you mean 'mtt'?"),
        (["experts", "nowhere/at-all"], "nowhere/at-all"),
        (["experts", "digits", "--epochs", 3], "do not fit into experts.epochs=3"),
        (["experts", "digits", "experts.lr=-1"], "experts.lr"),
    ],
)
def test_a_mistake_about_experts_is_one_clear_line(words, expected):
    code, _, err = run(*words)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", DIGITS)
def test_every_digits_recipe_runs_saves_and_loads(name, tmp_path):
    done = mmdd.distill(recipe=name, steps=2, options=SHORT, out=tmp_path / "run")
    report = done.evaluate(baselines=False)
    again = mmdd.load(tmp_path / "run")
    ours, theirs = done.to_torch(), again.to_torch()
    assert torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(ours.targets, theirs.targets)
    assert again.budget == done.budget
    row = report["results"]["convnet"]["synthetic"]
    assert 0 <= row["mean"] <= 1
    soft = done.recipe.synthetic.labels.kind != "hard"
    assert row["labels"] == ("soft" if soft else "hard")
    if soft:
        assert ours.targets.shape == (len(ours), 10)
        torch.testing.assert_close(ours.targets.sum(dim=1), torch.ones(len(ours)))
        columns = done.to_dataset()["train"].column_names
        assert "soft_label" in columns


def test_bytes_count_labels_and_step_size():
    done = mmdd.distill(recipe="images/digits_datm", steps=1, options=SHORT)
    assert done.budget["bytes"] == 10 * 64 * 4 + 10 * 10 * 4 + 10 * 8 + 4


def test_a_run_with_soft_labels_resumes_with_the_same_bits(tmp_path):
    whole = mmdd.distill(recipe="images/digits_datm", steps=4, options=SHORT)
    options = {**SHORT, "run.checkpoint_seconds": 0}
    with stopped_after(2):
        mmdd.distill(recipe="images/digits_datm", steps=4, options=options, out=tmp_path / "run")
    late = mmdd.resume(tmp_path / "run")
    for name, value in whole.synthetic.state_dict().items():
        assert torch.equal(value, late.synthetic.state_dict()[name]), name


def test_a_run_whose_threshold_skips_every_step_says_so():
    said = []

    class Heard(mmdd.progress.Progress):
        def say(self, sentence):
            said.append(sentence)

    options = {**SHORT, "objective.skip_above": 1e-9}
    done = mmdd.distill(recipe="images/digits_mtt", steps=12, options=options, progress=Heard())
    assert done.run["idle_steps"] == 12
    told = [sentence for sentence in said if "objective.skip_above" in sentence]
    assert told[0].startswith("10 of 10 steps left the set as it was")
    assert told[1].startswith("12 of 12 steps")
