"""Forecasting and regression: losses by formula, and whole runs on windows, series and values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import ALL, Case, seeded

import mmdd
from mmdd import build, catalog, start
from mmdd.assembly import restore
from mmdd.budget import budget, told_budget
from mmdd.compose import compose
from mmdd.errors import UserError
from mmdd.labels import DerivedLabels, HardLabels
from mmdd.modalities.timeseries.base import Spec
from mmdd.modalities.timeseries.data import open_series
from mmdd.modalities.timeseries.encoders import build as net_of
from mmdd.modalities.timeseries.options import SeriesData
from mmdd.modalities.timeseries.windows import Series
from mmdd.recipe import Leaf
from mmdd.representations import Direct
from mmdd.synthetic import SyntheticSet
from mmdd.tasks.classification import Classification
from mmdd.tasks.forecasting import Forecasting, last_value, naive_scores, seasonal_naive
from mmdd.tasks.regression import Regression


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMDD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def waves(count=300):
    time = np.arange(count)[:, None] * np.array([[0.3, 0.17]])
    return np.sin(time) + 0.1 * np.random.default_rng(0).normal(size=(count, 2))


def curves(count=48, steps=16):
    """[N, C, T] waves of three lengths, their classes and a number that goes with them."""
    rng = np.random.default_rng(0)
    codes = np.arange(count) % 3
    phase = rng.uniform(0, 1, (count, 1, 1))
    time = np.arange(steps) * np.array([0.25, 0.5])[:, None]
    values = np.sin(time[None] * (codes[:, None, None] + 1) + phase)
    values = (values + 0.2 * rng.normal(size=values.shape)).astype("f4")
    return values, codes, values[:, 0, :8].mean(axis=1) * 4 + 10


# -- the tasks -------------------------------------------------------------------------------------


def test_errors_are_means_over_channels_and_steps():
    task, outputs, targets = Forecasting(), noise(5, 2, 3), noise(5, 2, 3, seed=1)
    wrong = (outputs - targets).numpy()
    expected = (wrong**2).mean(axis=(1, 2))
    np.testing.assert_allclose(task.item_losses(outputs, targets).numpy(), expected, rtol=1e-5)
    assert task.score(outputs, targets) == pytest.approx((wrong**2).mean())
    assert task.extras(outputs, targets)["mae"] == pytest.approx(np.abs(wrong).mean())
    assert task.direction == "min"


def test_r2_is_that_of_scikit_learn():
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    task, targets = Regression(), noise(20, 2)
    outputs = targets + 0.3 * noise(20, 2, seed=1)
    found = task.extras(outputs, targets)
    pair = (targets.numpy(), outputs.numpy())
    assert found["r2"] == pytest.approx(r2_score(*pair), rel=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(*pair), rel=1e-5)
    assert task.score(outputs, targets) == pytest.approx(mean_squared_error(*pair), rel=1e-5)
    assert task.extras(torch.ones(4, 1), torch.ones(4, 1))["r2"] == 0.0


def test_forecasts_without_training():
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    assert last_value(x, 3).tolist() == [[[5.0, 5.0, 5.0]]]
    assert seasonal_naive(x, 5, 2).tolist() == [[[4.0, 5.0, 4.0, 5.0, 4.0]]]
    assert seasonal_naive(x, 3, 5).tolist() == [[[1.0, 2.0, 3.0]]]
    with pytest.raises(UserError, match="a period of 1 to 5 steps"):
        seasonal_naive(x, 3, 6)
    chosen = SeriesData(task="forecasting", input_length=8, horizon=4)
    test = open_series(waves(), chosen).test
    found = naive_scores(test, period=8, size=7)
    whole = test.select(torch.arange(len(test)))
    task = Forecasting()
    for name, made in (
        ("last-value", last_value(whole.inputs, 4)),
        ("seasonal-naive", seasonal_naive(whole.inputs, 4, 8)),
    ):
        assert found[name]["mse"] == pytest.approx(task.score(made, whole.targets), rel=1e-6)
        assert found[name]["mae"] == pytest.approx(
            task.extras(made, whole.targets)["mae"], rel=1e-6
        )
    assert set(naive_scores(test)) == {"last-value"}


# -- every objective on series, windows and one continuous series ---------------------------------


def windows_of(series, count):
    whole = series.unfold(0, 12, 1)[:count]
    return {"inputs": whole[..., :8].clone(), "targets": whole[..., 8:].clone()}


def forecast_case(kind):
    chosen = SeriesData(task="forecasting", input_length=8, horizon=4, borders=[60, 20, 20])
    splits = open_series(waves(100), chosen)
    example = {"inputs": torch.zeros(1, 2, 8), "targets": torch.zeros(1, 2, 4)}

    def begin():
        if kind == "windows":
            return SyntheticSet(
                Direct(windows_of(noise(17, 2, seed=5), 6)), DerivedLabels(), torch.zeros(6), 1
            )
        own = Series.of_series(noise(17, 2, seed=5), example=example, space=kind)
        return SyntheticSet(own, DerivedLabels(), torch.zeros(6), 1)

    return Case(
        name=kind,
        net=lambda: net_of("mlp", Spec(2, 8, (2, 4)), width=12),
        task=Forecasting(),
        train=splits.train,
        test=splits.test,
        start=begin,
        leaves=("inputs.inputs", "inputs.targets") if kind == "windows" else ("inputs",),
        nbytes=0,
    )


def class_case(masked):
    values, codes, _ = curves()
    if masked:
        values = [row[:, : 10 + place % 7] for place, row in enumerate(values)]
    chosen = SeriesData(order="CT", validation=0, test=0.3)
    splits = open_series((values, codes), chosen)

    def begin():
        inputs = splits.train.sample(2, seeded(4)).inputs
        groups = torch.arange(3).repeat_interleave(2)
        return SyntheticSet(Direct(inputs), HardLabels(groups), groups, 3)

    return Case(
        name="masked" if masked else "plain",
        net=lambda: net_of("convnet", Spec(2, 16, (3,), masked), width=4, norm="layer"),
        task=Classification(),
        train=splits.train,
        test=splits.test,
        start=begin,
        leaves=("inputs.values",) if masked else ("inputs",),
        nbytes=0,
    )


CASES = {
    "windows": lambda: forecast_case("windows"),
    "series": lambda: forecast_case("time"),
    "frequencies": lambda: forecast_case("frequency"),
    "classes": lambda: class_case(False),
    "ragged": lambda: class_case(True),
}
OBJECTIVES = {
    "distribution": {},
    "gradient": {},
    "trajectory": {"steps": 3},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_learns_every_kind_of_series(name, kind):
    case = CASES[name]()
    objective = catalog.load("objective", kind, catalog.OBJECTIVES)(**OBJECTIVES[kind])
    synthetic = case.begin(0.1 if kind == "trajectory" else None)
    run = case.distiller(
        objective,
        synthetic=synthetic,
        source="taught" if kind == "trajectory" else "fresh",
        rates={"inputs": Leaf(optimiser="adam", lr=0.1, momentum=0.9)},
        per_group=ALL,
        every=10**9,
    )
    before = {key: leaf.detach().clone() for key, leaf in synthetic.leaves().items()}
    losses = [run.step() for _ in range(6)]
    assert losses[-1] < 0.95 * losses[0], losses
    for leaf_name in case.leaves:
        moved = not torch.equal(synthetic.leaves()[leaf_name].detach(), before[leaf_name])
        # features alone say nothing of what follows a window
        assert moved or (kind == "distribution" and leaf_name == "inputs.targets"), leaf_name
    if name == "ragged":
        mask = synthetic.representation.decode(None)["mask"]
        gradient = synthetic.leaves()["inputs.values"].grad.transpose(1, 2)
        assert (gradient[~mask] == 0).all()


# -- from a recipe to a finished set ---------------------------------------------------------------


FORECASTS = {
    "modality": "timeseries",
    "task": "forecasting",
    "data.input_length": 12,
    "data.horizon": 6,
    "run.device": "cpu",
    "optimise.steps": 2,
    "real.per_group": 32,
    "evaluate.epochs": 4,
    "evaluate.learners": 2,
    "evaluate.full": False,
}
SERIES = {**FORECASTS, "synthetic.representation": "series", "learner.encoder": "mlp"}
FOLLOWING = {
    "experts.count": 2,
    "experts.epochs": 3,
    "experts.epoch_steps": 2,
    "experts.batch_size": 32,
    "source.max_start": 2,
}
CLASSES = {
    key: value for key, value in FORECASTS.items() if not key.startswith(("task", "data."))
} | {"learner.width": 8}


def parts_of(recipe, source):
    splits = build.open_data(recipe, source, torch.device("cpu"))
    return build.parts(recipe, splits.info, torch.device("cpu")), splits


@pytest.mark.parametrize("space", ["time", "frequency"])
def test_a_series_is_distilled_scored_saved_and_read_again(space, tmp_path):
    kind = {"kind": "series", "space": space}
    made = mmdd.distill(
        waves(), method="dm", items=40, out=tmp_path / "run",
        options={**SERIES, "synthetic.representation": kind},
    )  # fmt: skip
    assert len(made.synthetic) == 40 - 18 + 1
    assert list(made.synthetic.leaves()) == ["inputs"]
    row = made.evaluate()["results"]["mlp"]
    assert row["synthetic"]["labels"] == "own"
    assert row["synthetic"]["extras"]["mae"]["n"] == 2
    assert row["random"]["extras"]["mae"]["mean"] > 0
    again = mmdd.load(tmp_path / "run")
    first, second = made.synthetic.batch(), again.synthetic.batch()
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)
    rows = made.to_dataset()["train"]
    assert rows["step"][:] == list(range(40))
    assert set(rows.column_names) == {"step", "channel_0", "channel_1"}


def test_plain_descent_is_the_same_in_both_spaces():
    found = []
    for space in ("time", "frequency"):
        kind = {"kind": "series", "space": space}
        options = {**SERIES, "synthetic.representation": kind, "synthetic.clamp": False}
        made = mmdd.distill(waves(), method="dm", items=40, options=options)
        found.append(made.synthetic.batch().inputs.detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_budgets_of_a_series_are_time_steps(tmp_path):
    recipe = compose(method="dm", options={**SERIES, "synthetic.items": 40})
    _, splits = parts_of(recipe, waves())
    counts = budget(recipe, splits.train.group_sizes, splits.info)
    assert counts.tolist() == [40]
    told = told_budget(counts, splits.train.group_sizes, splits.info, recipe)
    assert told == "a synthetic series of 40 time steps, 0.19 of the training steps"
    share = compose(method="dm", options={**SERIES, "synthetic.fraction": 0.2})
    assert budget(share, splits.train.group_sizes, splits.info).tolist() == [42]
    for options, message in (
        ({"synthetic.items": 17}, "at least 18: 12 that are given and 6 to forecast"),
        ({"synthetic.items": 210}, "fewer than 210"),
        ({"synthetic.per_class": 5}, "the number of its time steps"),
    ):
        with pytest.raises(UserError, match=message):
            mmdd.distill(waves(), method="dm", out=tmp_path / "none", options={**SERIES, **options})
    assert not (tmp_path / "none").exists()


def test_a_series_starts_from_a_real_slice_or_from_noise():
    options = {**SERIES, "synthetic.items": 40}
    recipe = compose(method="dm", options=options)
    parts, splits = parts_of(recipe, waves())
    counts = torch.tensor([40])
    learner = parts.learner(1.0)
    made = start.synthetic_set(parts, splits.train, counts, learner)
    leaf = made.leaves()["inputs"].detach()
    whole = splits.train.series.T
    assert any(torch.equal(whole[k : k + 40], leaf) for k in range(171))
    for how, ok in (("noise", True), ("herding", False)):
        recipe = compose(method="dm", options={**options, "synthetic.initialise": how})
        parts, _ = parts_of(recipe, waves())
        if ok:
            other = start.synthetic_set(parts, splits.train, counts, learner)
            assert other.leaves()["inputs"].shape == leaf.shape
        else:
            with pytest.raises(UserError, match="one slice of the real series, or from noise"):
                start.synthetic_set(parts, splits.train, counts, learner)


@pytest.mark.parametrize("initialise", ["real", "noise", "aggregate"])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_windows_keep_or_learn_what_follows_them(labels, initialise):
    options = {
        **FORECASTS,
        **FOLLOWING,
        "objective.steps": 2,
        "synthetic.labels": {"kind": labels},
        "synthetic.initialise": initialise,
        "learner.encoder": "dlinear",
    }
    recipe = compose(method="mtt", options={**options, "synthetic.items": 5})
    parts, splits = parts_of(recipe, waves())
    learner = parts.learner(1.0)
    made = start.synthetic_set(parts, splits.train, torch.tensor([5]), learner)
    learned = {"inputs.inputs"} | ({"inputs.targets"} if labels == "soft" else set())
    assert set(made.leaves()) == learned | {"step_size"}
    assert made.batch().targets.shape == (5, 2, 6)
    again = restore(parts, dict(made.state_dict()))
    assert torch.equal(again.batch().targets, made.batch().targets)
    # the horizons are those of real windows
    real = splits.train.select(torch.arange(len(splits.train))).targets
    for horizon in made.batch().targets:
        assert (real == horizon).flatten(1).all(dim=1).any()
    done = mmdd.distill(waves(), method="mtt", items=5, options=options)
    assert build.needs_experts(recipe)
    assert done.evaluate()["results"]["dlinear"]["synthetic"]["n"] == 2


def test_soft_labels_of_values_need_no_experts():
    options = {**FORECASTS, "synthetic.labels": "soft", "source.kind": "fresh"}
    assert not build.needs_experts(compose(method="dsa", options=options))
    assert build.needs_experts(compose(method="dsa", options={"synthetic.labels": "soft"}))


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_values_are_regressed(labels):
    values, _, numbers = curves()
    options = {
        **CLASSES,
        "task": "regression",
        "data.bins": 3,
        "synthetic.labels": labels,
        "source.outer": 2,
        "source.inner": 1,
        "optimise.inputs.lr": 0.01,
    }
    made = mmdd.distill((values, numbers), method="dsa", per_class=2, options=options)
    batch = made.synthetic.batch()
    assert batch.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.targets.shape == (6, 1)
    means = batch.targets.detach().view(3, 2).mean(dim=1)
    assert means[0] < means[1] < means[2]
    assert ("inputs.targets" in made.synthetic.leaves()) == (labels == "soft")
    row = made.evaluate()["results"]["convnet"]["synthetic"]
    assert set(row["extras"]) == {"mae", "r2"}
    label = np.asarray(made.to_dataset()["train"]["label"])
    assert 5 < label.mean() < 15


METHODS = {
    "dm": {},
    "dc": {"source.outer": 2, "source.inner": 1},
    "dsa": {"source.outer": 2, "source.inner": 1},
    "mtt": {**FOLLOWING, "objective.steps": 3},
    "condtsc": {**FOLLOWING, "learner.width": 4},
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_take_two_steps_on_classes(method):
    values, codes, _ = curves()
    made = mmdd.distill(
        (values, codes), method=method, per_class=2, options={**CLASSES, **METHODS[method]}
    )
    assert len(made.synthetic) == 6
    assert all(torch.isfinite(leaf).all() for leaf in made.synthetic.leaves().values())


def test_condtsf_takes_two_steps():
    options = {k: v for k, v in FORECASTS.items() if k not in ("modality", "task")}
    made = mmdd.distill(waves(), method="condtsf", items=40, options={**options, **FOLLOWING})
    assert len(made.synthetic) == 23
    assert made.recipe.modality == "timeseries"
    row = made.evaluate()["results"]["dlinear"]
    assert set(row) == {"synthetic", "random", "herding", "aggregate", "last-value"}
    assert row["last-value"]["n"] == 1


@pytest.mark.parametrize("leak", [False, True])
def test_a_card_tells_a_leaking_protocol(leak, tmp_path):
    options = {**SERIES, "data.leak": leak, "evaluate.learners": 1}
    made = mmdd.distill(waves(), method="dm", items=40, options=options)
    made.evaluate(baselines=False)
    card = (made.save(tmp_path / "set") / "README.md").read_text()
    assert ("Not an honest score" in card) == leak
    assert ("Nothing was chosen on the test split" in card) == (not leak)


def test_recurrent_learners_are_judged_one_by_one():
    values, codes, _ = curves(steps=10)
    options = {**CLASSES, "learner.encoder": "gru", "evaluate.learners": 2}
    made = mmdd.distill((values, codes), method="dm", per_class=1, options=options)
    assert made.evaluate(baselines=False)["results"]["gru"]["synthetic"]["n"] == 2


def test_tasks_and_data_have_to_agree():
    with pytest.raises(UserError, match=r"opened for classification; got 'task forecasting'"):
        mmdd.distill("digits", method="dm", options={"task": "forecasting"})
    with pytest.raises(UserError, match="a teacher's labels are class probabilities"):
        mmdd.distill(
            waves(), method="dm", items=40, options={**SERIES, "synthetic.labels": "teacher"}
        )
    values, codes, _ = curves()
    with pytest.raises(UserError, match="task=forecasting"):
        mmdd.distill(
            (values, codes), method="dm", items=6,
            options={**CLASSES, "synthetic.representation": "series"},
        )  # fmt: skip
    with pytest.raises(UserError, match="what follows a window"):
        mmdd.distill(
            waves(), method="dm", items=40,
            options={**SERIES, "augment": {"kind": "dsa", "strategy": "scale"}},
        )  # fmt: skip
    with pytest.raises(UserError, match="keep is a share of coefficients"):
        compose(options={"synthetic.representation": {"kind": "series", "keep": 0.5}})
