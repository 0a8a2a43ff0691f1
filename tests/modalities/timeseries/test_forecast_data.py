"""Opening one long series: rows in the order of time, borders, windows."""

import datasets
import numpy as np
import pytest
import torch

from mmdd.errors import UserError
from mmdd.modalities.timeseries.data import open_series
from mmdd.modalities.timeseries.options import SeriesData


def options(**more):
    return SeriesData(**{"task": "forecasting", "input_length": 6, "horizon": 3, **more})


def waves(count=100, channels=2):
    time = np.arange(count)[:, None] * np.array([0.5, 0.8, 0.3])[:channels]
    return np.sin(time) + np.arange(count)[:, None] / 50


def stamped(order=None, days=None, count=40):
    values = waves(count)
    days = np.arange(count) if days is None else days
    order = np.arange(count) if order is None else order
    stamps = np.datetime64("2020-01-01") + days.astype("timedelta64[D]")
    return datasets.Dataset.from_dict(
        {
            "date": [str(stamp) for stamp in stamps[order]],
            "a": values[order, 0],
            "b": values[order, 1],
        }
    )


def everything(data):
    return data.select(torch.arange(len(data)))


def in_units(values, info):
    mean, std = (torch.tensor(info.normalisation[k])[:, None] for k in ("mean", "std"))
    return values * std + mean


def test_windows_are_slices_of_their_part():
    values = waves()
    splits = open_series(values, options(borders=[60, 20, 20], stride=2))
    whole = torch.from_numpy(values).float().T
    assert splits.info.sizes == {"train": 26, "validation": 18, "test": 18, "steps": 60}
    train = everything(splits.train)
    for row in (0, 3, 25):
        start = 2 * row
        given = in_units(train.inputs[row], splits.info)
        follows = in_units(train.targets[row], splits.info)
        torch.testing.assert_close(given, whole[:, start : start + 6], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(follows, whole[:, start + 6 : start + 9], rtol=1e-5, atol=1e-5)
    # validation and test reach back for what is given: their first target is their first row
    for part, first in ((splits.validation, 60), (splits.test, 80)):
        targets = in_units(everything(part).targets, splits.info)
        torch.testing.assert_close(targets[0, :, 0], whole[:, first], rtol=1e-5, atol=1e-5)
        last = whole[:, first + 17 : first + 20]
        torch.testing.assert_close(targets[-1], last, rtol=1e-5, atol=1e-5)


def test_no_training_target_lies_in_another_part_and_units_are_trainings():
    values = waves()
    splits = open_series(values, options(borders=[0.6, 0.2, 0.2]))
    rows = values[:60]
    np.testing.assert_allclose(splits.info.normalisation["mean"], rows.mean(axis=0))
    np.testing.assert_allclose(splits.info.normalisation["std"], rows.std(axis=0))
    changed = values.copy()
    changed[60:] += 100
    same = open_series(changed, options(borders=[0.6, 0.2, 0.2]))
    first, second = everything(splits.train), everything(same.train)
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)


def test_the_leaking_protocol_is_labelled():
    values = waves()
    splits = open_series(values, options(borders=[60, 20, 20], leak=True))
    validation, test = everything(splits.validation), everything(splits.test)
    assert torch.equal(validation.targets, test.targets)
    np.testing.assert_allclose(splits.info.normalisation["mean"], values.mean(axis=0))
    assert any(note.startswith("LEAKING") for note in splits.info.notes)
    honest = open_series(values, options(borders=[60, 20, 20]))
    assert not any("LEAKING" in note for note in honest.info.notes)
    assert honest.info.fingerprint != splits.info.fingerprint


def test_rows_are_sorted_by_their_stamps_and_it_is_said():
    sorted_ = open_series(stamped(), options(borders=[20, 10, 10]))
    shuffled = stamped(order=np.random.default_rng(0).permutation(40))
    splits = open_series(shuffled, options(borders=[20, 10, 10]))
    assert torch.equal(everything(splits.train).inputs, everything(sorted_.train).inputs)
    assert "rows were sorted by their time stamps in column 'date'" in splits.info.notes
    assert not any("sorted" in note for note in sorted_.info.notes)
    assert sorted_.info.columns == {"time": "date", "values.0": "a", "values.1": "b"}
    assert sorted_.info.normalisation["channels"] == ["a", "b"]


def test_uneven_stamps_are_told_and_repeated_ones_refused():
    days = np.arange(40) + (np.arange(40) > 10)
    splits = open_series(stamped(days=days), options(borders=[20, 10, 10]))
    assert any("1 of 39 time steps" in note for note in splits.info.notes)
    assert any("86400 seconds" in note for note in splits.info.notes)
    days = np.arange(40) - (np.arange(40) > 10)
    with pytest.raises(UserError, match=r"1 rows repeat the time stamp .*2020-01-11"):
        open_series(stamped(days=days), options())
    broken = stamped().to_dict()
    broken["date"][7] = "soon"
    table = datasets.Dataset.from_dict(broken)
    with pytest.raises(UserError, match=r"cannot be read, the first in row 7; got 'soon'"):
        open_series(table, options())


def test_a_csv_file_gives_its_columns(tmp_path):
    stamped().to_csv(str(tmp_path / "x.csv"))
    path = str(tmp_path / "x.csv")
    splits = open_series(path, options(borders=[20, 10, 10]))
    assert splits.info.source == path
    assert splits.info.shape == (2, 6)
    one = open_series(path, options(borders=[20, 10, 10], values="b"))
    assert one.info.shape == (1, 6)
    assert torch.equal(everything(one.train).inputs[:, 0], everything(splits.train).inputs[:, 1])


def test_splits_of_a_source_are_the_borders():
    whole = stamped()
    parts = datasets.DatasetDict(
        train=whole.select(range(20)),
        validation=whole.select(range(20, 30)),
        test=whole.select(range(30, 40)),
    )
    splits = open_series(parts, options())
    expected = open_series(whole, options(borders=[20, 10, 10]))
    for role in ("train", "validation", "test"):
        found, same = everything(getattr(splits, role)), everything(getattr(expected, role))
        assert torch.equal(found.inputs, same.inputs)
        assert torch.equal(found.targets, same.targets)
    del parts["validation"]
    with pytest.raises(UserError, match="a series in splits needs all three"):
        open_series(parts, options())


def test_gaps_are_interpolated_inside_their_part():
    values = waves(channels=1)
    gone = values.copy()
    gone[[10, 59, 60]] = np.nan
    with pytest.raises(UserError, match="2 of 60 values of rows 0 to 59 are missing"):
        open_series(gone, options(borders=[60, 20, 20]))
    splits = open_series(gone, options(borders=[60, 20, 20], missing="linear"))
    series = in_units(splits.train.series, splits.info)[0]
    assert series[10] == pytest.approx((values[9, 0] + values[11, 0]) / 2, rel=1e-4)
    # the last training row may not look at the first one of validation
    assert series[59] == pytest.approx(values[58, 0], rel=1e-4)


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        (waves(20), {"borders": [8, 6, 6]}, "the train part is shorter than one window; got '8 r"),
        (waves(20), {"borders": [12, 2, 6]}, "the validation part is shorter than one window"),
        (waves(20), {"borders": [12, 6, 6]}, "more rows than the series"),
        (np.zeros((4, 3, 2)), {}, "this is no long series"),
        (np.array([["a", "b"]]), {}, "this is no long series"),
        ((waves(20), [1] * 20), {}, "this is no long series|cannot be opened as one long series"),
        (stamped(), {"label": "a"}, "a forecast has no label column"),
        (stamped(), {"time": "when"}, "unknown time column 'when'"),
        (stamped(), {"values": ["a", "date"]}, "column 'date' holds no numbers"),
    ],
)
def test_bad_series_are_one_clear_line(source, more, message):
    with pytest.raises(UserError, match=message) as caught:
        open_series(source, options(**more))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("borders", "message"),
    [
        ([0.7, 10, 0.2], "three shares"),
        ([0.7, 0.4, 0.2], "add up to 1.3"),
        ([0, 10, 10], "no row to train on"),
        ([0.7, 0.3], "at least 3 items"),
    ],
)
def test_bad_borders_are_refused(borders, message):
    with pytest.raises(ValueError, match=message):
        SeriesData(borders=borders)


def test_parts_may_be_left_out():
    splits = open_series(waves(), options(borders=[0.8, 0, 0.2]))
    assert splits.validation is None
    assert len(splits.test) == 18


def test_chosen_windows_and_slices_belong_to_the_series():
    splits = open_series(waves(), options(borders=[60, 20, 20]))
    train = splits.train
    part = train.subset(torch.tensor([5, 2]))
    assert torch.equal(part.select(torch.arange(2)).targets, everything(train).targets[[5, 2]])
    stream = torch.Generator().manual_seed(0)
    slice_ = train.stretch(15, stream)
    assert slice_.shape == (15, 2)
    starts = [k for k in range(46) if torch.equal(train.series[:, k : k + 15].T, slice_)]
    assert len(starts) == 1
    with pytest.raises(UserError, match="at most 60 time steps"):
        train.stretch(61, stream)
    together = train.aggregate(torch.tensor([7]), stream)
    assert torch.equal(together.inputs[1:, :, 0], together.inputs[:-1, :, 1])
    assert len(together) == 7


def test_etth1_naive_forecasts():
    import os
    from pathlib import Path

    from mmdd.tasks.forecasting import naive_scores

    folder = Path(os.environ.get("MMDD_SHARED_DATA", "shared/data")) / "timeseries" / "etth1"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    chosen = SeriesData(task="forecasting", borders=[8640, 2880, 2880], season=24)
    splits = open_series(str(folder), chosen)
    assert splits.info.sizes == {"train": 8449, "validation": 2785, "test": 2785, "steps": 8640}
    found = naive_scores(splits.test, splits.info.normalisation["season"])
    # "repeat" of Zeng et al. 2023, table 2
    assert found["last-value"]["mse"] == pytest.approx(1.295, abs=2e-3)
    assert found["last-value"]["mae"] == pytest.approx(0.713, abs=2e-3)
    assert found["seasonal-naive"]["mse"] < found["last-value"]["mse"]
