"""The command line as a person meets it: help, mistakes, one whole session."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmdd import cli

TINY = [
    "--steps",
    "2",
    "learner.width=8",
    "real.per_group=8",
    "evaluate.protocol=quick",
    "evaluate.epochs=2",
    "evaluate.learners=2",
    "evaluate.full=false",
]


def mmdd(*words, cwd=None, timeout=240):
    done = subprocess.run(
        [sys.executable, "-m", "mmdd.cli", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "digits"
    code, out, err = mmdd("distill", "digits", "--out", folder, *TINY)
    assert code == 0, err
    return folder, out


def test_distil_ends_with_a_table_the_place_and_what_is_next(finished):
    folder, out = finished
    for word in ("synthetic", "random", "herding", "convnet", str(folder), "Next:", "mmdd show"):
        assert word in out
    for name in ("mmdd.json", "synthetic.safetensors", "README.md", "picture.png", "recipe.yaml"):
        assert (folder / name).is_file(), name


def test_evaluate_json_is_one_object(finished):
    folder, _ = finished
    code, out, err = mmdd(
        "evaluate", folder, "--encoders", "mlp,convnet", "--learners", 2, "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["metric"] == "accuracy"
    assert report["direction"] == "max"
    assert report["selection"] == "last"
    assert report["budget"]["items"] == 10
    assert report["budget"]["bytes"] == 10 * 64 * 4 + 10 * 8
    assert set(report["results"]) == {"mlp", "convnet"}
    for rows in report["results"].values():
        assert {"synthetic", "random", "herding"} <= set(rows)
        assert rows["synthetic"]["n"] == 2
        assert 0 <= rows["synthetic"]["mean"] <= 1
    # what was scored before stays in the set's own record
    kept = json.loads((folder / "mmdd.json").read_text())["results"]["results"]
    assert set(kept) == {"mlp", "convnet"}
    assert report["seconds"] > 0
    assert report["peak_memory_mb"] > 0


def test_a_score_on_validation_is_told_and_not_kept(finished):
    folder, _ = finished
    before = (folder / "mmdd.json").read_text()
    words = ["evaluate", folder, "--learners", 2, "--split"]
    code, out, err = mmdd(*words, "validation", "--no-baselines")
    assert code == 0, err
    assert "on the real validation split" in out
    assert (folder / "mmdd.json").read_text() == before
    code, _, err = mmdd(*words, "validatoin")
    assert code == 2
    assert "Did you mean 'validation'?" in err


def test_a_score_under_another_protocol_is_told_and_not_kept(finished):
    folder, _ = finished
    before = (folder / "mmdd.json").read_text()
    code, out, err = mmdd("evaluate", folder, "evaluate.protocol=idc", "--no-baselines")
    assert code == 0, err
    # what the recipe sets beside its protocol stays
    assert "protocol idc: 2 epochs" in out
    assert (folder / "mmdd.json").read_text() == before
    for word, told in {
        "evaluate.protocol=icd": "did you mean 'idc'?",
        "evaluate.protocol=learned": "trains at the learned step size",
        "learner.width=4": "got 'learner.width'",
        "idc": "expected key=value",
    }.items():
        code, out, err = mmdd("evaluate", folder, word)
        assert code == 2
        assert told in err
        assert len(err.strip().splitlines()) == 1


def test_show_and_export_and_list(finished, tmp_path):
    folder, _ = finished
    code, out, _ = mmdd("show", folder)
    assert code == 0
    assert "digits" in out
    assert json.loads(mmdd("show", folder, "--json")[1])["budget"]["items"] == 10
    for to in ("parquet", "imagefolder", "safetensors"):
        code, out, err = mmdd("export", folder, "--to", to, tmp_path / to)
        assert code == 0, err
    methods = json.loads(mmdd("list", "methods", "--json")[1])
    assert methods["dm"]["objective"]["kind"] == "distribution"
    assert "convnet" in mmdd("list", "encoders")[1]


def test_resume_of_a_finished_run_shows_it(finished):
    folder, _ = finished
    code, out, err = mmdd("resume", folder)
    assert code == 0, err
    assert "synthetic" in out


MISTAKES = {
    "missing path": (["distill", "./nowhere/at/all"], "nowhere"),
    "hub without network": (["distill", "nobody/nothing"], "nobody/nothing"),
    "per-class zero": (["distill", "digits", "--per-class", "0"], "per_class"),
    "per-class too large": (["distill", "digits", "--per-class", "5000"], "at most"),
    "negative items": (["distill", "digits", "--items", "-3"], "items"),
    "fewer items than classes": (["distill", "digits", "--items", "3"], "fewer"),
    "fraction above one": (["distill", "digits", "--fraction", "1.5"], "fraction"),
    "unknown method": (["distill", "digits", "--method", "dmm"], "Did you mean 'dm'"),
    "unknown encoder": (["distill", "digits", "learner.encoder=convnt"], "'convnet'"),
    "unknown key": (["distill", "digits", "optimise.stesp=3"], "Did you mean 'steps'"),
    "wrong type": (["distill", "digits", "optimise.steps=many"], "optimise.steps"),
    "not an override": (["distill", "digits", "learner"], "key=value"),
    "no such recipe": (["distill", "digit_dm.yaml"], "no recipe"),
    "unknown device": (["distill", "digits", "--device", "gpu"], "device"),
    "cuda that is not there": (["distill", "digits", "--device", "cuda:99"], "cuda:99"),
    "unknown family": (["list", "encodrs"], "Did you mean 'encoders'"),
    "no such folder": (["evaluate", "nowhere"], "no such folder"),
    "nan rate": (["distill", "digits", "optimise.inputs.lr=.nan"], "optimise.inputs.lr"),
    "two budgets": (["distill", "digits", "--per-class", "1", "--items", "20"], "one budget"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(name, tmp_path):
    words, expected = MISTAKES[name]
    code, out, err = mmdd(*words, cwd=tmp_path)
    assert code == 2, (out, err)
    assert expected in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert not list(tmp_path.iterdir()), "something half-written was left"


def test_unwritable_place(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("x")
    code, _, err = mmdd("distill", "digits", *TINY, "--out", blocker / "run")
    assert code != 0
    assert "Traceback" not in err
    assert str(blocker) in err


def test_wrong_yaml_names_file_and_key(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {source: digits}\noptimise: {steps: lots}\n")
    code, _, err = mmdd("distill", path)
    assert code == 2
    assert "mine.yaml" in err
    assert "optimise.steps" in err
    path.write_text("data: {source: digits\n")
    code, _, err = mmdd("distill", path)
    assert code == 2
    assert "line" in err


@pytest.mark.parametrize(
    "words", [["--help"], ["distil"], ["distill", "digits", "optimise.stesp=3"]]
)
def test_help_and_typos_answer_within_a_second(words, tmp_path):
    best = float("inf")
    for _ in range(3):
        started = time.monotonic()
        mmdd(*words, cwd=tmp_path)
        best = min(best, time.monotonic() - started)
    assert best < 1.0


def test_importing_pulls_in_nothing_heavy():
    code = (
        "import sys, mmdd.cli, mmdd.compose; "
        "print([m for m in ('torch','torchvision','torchaudio','transformers','torch_geometric',"
        "'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    heavy = (
        "import sys, mmdd.api, mmdd.modalities.images.modality; "
        "print([m for m in ('torchvision','torchaudio','transformers','torch_geometric')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_readme_commands_are_the_ones_the_gate_runs():
    root = Path(__file__).parents[1]
    readme = (root / "README.md").read_text()
    for line in (
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ."
        " && .venv/bin/mmdd distill digits",
        'python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[test]"'
        " && .venv/bin/pytest",
    ):
        assert line in readme


def test_ctrl_c_says_how_to_go_on_and_resume_finishes(tmp_path):
    folder = tmp_path / "run"
    words = ["distill", "digits", "--out", str(folder), *TINY, "--no-evaluate"]
    words[words.index("--steps") + 1] = "100000"
    child = subprocess.Popen(
        [sys.executable, "-m", "mmdd.cli", *words, "run.checkpoint_seconds=0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "state" / "checkpoint.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert f"mmdd resume {folder}" in err
    assert "Traceback" not in err
    # an unfinished run says so wherever a finished one is asked for
    code, _, err = mmdd("show", folder)
    assert code == 2
    assert "mmdd resume" in err


@pytest.mark.parametrize(
    ("told", "given", "expected"),
    [
        ("0.97 0.40 0.20 1/120 4242", None, None),
        ("0.00 0.00 0.00 3/120 4242", None, "PASSIVE"),
        ("none of the usual", None, "PASSIVE"),
        (None, None, "PASSIVE"),
        ("0.00 0.00 0.00 3/120 4242", "ACTIVE", "ACTIVE"),
    ],
)
def test_threads_spin_only_where_nothing_else_runs(monkeypatch, tmp_path, told, given, expected):
    load = tmp_path / "loadavg"
    if told is not None:
        load.write_text(told)
    monkeypatch.setattr(cli, "LOAD", load)
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setenv("HF_HUB_VERBOSITY", "error")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    # what main sets is forgotten with the test
    monkeypatch.setattr(os, "environ", dict(os.environ))
    cli.main()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
