"""Opening labelled series: where they come from, their axes, gaps, lengths and units."""

import datasets
import numpy as np
import pytest
import torch

from mmdd.errors import UserError
from mmdd.modalities.timeseries.arrays import Moments
from mmdd.modalities.timeseries.data import open_series
from mmdd.modalities.timeseries.options import SeriesData
from mmdd.modalities.timeseries.values import Bins


def options(**more):
    return SeriesData(**{"validation": 0, "test": 0.0, **more})


def series(count=12, channels=2, steps=7, seed=0):
    """[N, T, C] with labels a, b in turns."""
    values = np.random.default_rng(seed).normal(3, 2, (count, steps, channels)).astype("f4")
    return values, ["a", "b"] * (count // 2)


def opened(source, **more):
    splits = open_series(source, options(**more))
    batch = splits.train.select(torch.arange(len(splits.train)))
    return splits, batch


def in_units(inputs, info):
    mean, std = (torch.tensor(info.normalisation[k])[:, None] for k in ("mean", "std"))
    return inputs * std + mean


def table(values, labels, features=None):
    given = None if features is None else datasets.Features(features)
    return datasets.Dataset.from_dict({"values": values, "label": labels}, features=given)


# -- where they come from --------------------------------------------------------------------------


def test_columns_of_every_kind_give_the_same_tensors():
    values, labels = series()
    shape = values.shape[1:]
    label = datasets.Value("string")
    fixed = {"values": datasets.Array2D(shape, "float32"), "label": label}
    sources = {
        "lists of lists": table(values.tolist(), labels),
        "array2d": table(list(values), labels, fixed),
        "channels first": table(values.transpose(0, 2, 1).tolist(), labels),
        "two columns": datasets.Dataset.from_dict(
            {"x": values[..., 0].tolist(), "y": values[..., 1].tolist(), "label": labels}
        ),
        "pair": (values, labels),
        "tensor": (torch.from_numpy(values), labels),
        "list": (list(values), labels),
        "torch": list(zip(values, labels, strict=True)),
    }
    for name, source in sources.items():
        more = {"values": ["x", "y"]} if name == "two columns" else {}
        splits, batch = opened(source, **more)
        found = in_units(batch.inputs, splits.info)
        expected = torch.from_numpy(values).transpose(1, 2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)
        assert splits.info.shape == (2, 7), name
        assert [splits.info.names[c] for c in batch.targets.tolist()] == labels, name


def test_a_table_after_a_filter_is_read_by_its_own_rows():
    values, labels = series(channels=1)
    whole = table(values[..., 0].tolist(), labels)
    splits, batch = opened(whole.select([3, 8, 1, 4]))
    expected = torch.from_numpy(values[[3, 8, 1, 4], :, 0])
    torch.testing.assert_close(in_units(batch.inputs, splits.info)[:, 0], expected)


def test_time_is_the_axis_that_varies_or_the_longer_one():
    ragged = [np.ones((length, 3)) * np.arange(3) for length in (2, 5)]
    splits, batch = opened((ragged * 2, list("aabb")))
    assert splits.info.shape == (3, 5)
    assert torch.equal(batch.inputs["mask"].sum(dim=1), torch.tensor([2, 5, 2, 5]))
    values, labels = series(steps=3, channels=8)
    assert open_series((values, labels), options()).info.shape == (3, 8)
    assert open_series((values, labels), options(order="TC")).info.shape == (8, 3)
    assert "data.order=TC" in open_series((values, labels), options()).info.notes[0]


TS = """# a comment
@problemName toy
@timeStamps false
@univariate false
@classLabel true up down
@data
1,2,3:4,5,6:up
3,2,1:6,5,?:down
1,2,3,4:0,0,0,0:up
"""


def test_ucr_files_come_with_their_test_split(tmp_path):
    (tmp_path / "Toy_TRAIN.ts").write_text(TS)
    (tmp_path / "Toy_TEST.ts").write_text(TS.replace("?", "7"))
    for source in (tmp_path / "Toy_TRAIN.ts", tmp_path, tmp_path / "Toy_TEST.ts"):
        splits = open_series(str(source), options(missing="linear"))
        assert splits.info.sizes == {"train": 3, "validation": 0, "test": 3}
        assert splits.info.names == ("down", "up")
        assert splits.info.shape == (2, 4)
    train = splits.train.select(torch.arange(3))
    assert train.inputs["mask"].tolist()[0] == [True, True, True, False]
    # the gap at the end repeats the last value
    assert in_units(train.inputs["values"], splits.info)[1, 1, 2] == pytest.approx(5.0)


def test_ucr_files_with_numbers_are_for_regression(tmp_path):
    text = "@timestamps false\n@targetlabel true\n@data\n" + "".join(
        f"{k},{k + 1},{k + 2}:{k / 4}\n" for k in range(12)
    )
    (tmp_path / "x_TRAIN.ts").write_text(text)
    splits = open_series(str(tmp_path / "x_TRAIN.ts"), options(task="regression", bins=3))
    facts = splits.info.normalisation
    batch = splits.train.select(torch.arange(12))
    targets = batch.targets[:, 0] * facts["target_std"][0] + facts["target_mean"][0]
    torch.testing.assert_close(targets, torch.arange(12) / 4)
    assert splits.train.group_sizes.tolist() == [4, 4, 4]
    assert splits.info.names[0].startswith("below ")


# -- units, lengths, gaps --------------------------------------------------------------------------


def test_units_are_measured_on_training_items_alone():
    values, labels = series(count=40)
    splits = open_series((values, labels), options(validation=0.2, test=0.3))
    train = splits.train.select(torch.arange(len(splits.train))).inputs
    torch.testing.assert_close(train.mean(dim=(0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        train.std(dim=(0, 2), correction=0), torch.ones(2), atol=1e-5, rtol=0
    )
    test = splits.test.select(torch.arange(len(splits.test))).inputs
    assert test.mean(dim=(0, 2)).abs().max() > 1e-4
    plain = open_series((values, labels), options(normalise="none"))
    assert plain.info.normalisation["mean"] == [0.0, 0.0]
    assert plain.info.fingerprint != splits.info.fingerprint


def test_moments_in_pieces_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(50, 3, (2, 60))
    values[0, :5] = np.nan
    moments = Moments.empty(2)
    for start in (0, 7, 30):
        moments.add(values[:, start : {0: 7, 7: 30, 30: 60}[start]])
    facts = moments.facts(True)
    np.testing.assert_allclose(facts["mean"], np.nanmean(values, axis=1))
    np.testing.assert_allclose(facts["std"], np.nanstd(values, axis=1))
    np.testing.assert_allclose(facts["high"], np.nanmax(values, axis=1))


def test_a_constant_channel_keeps_its_unit():
    values, labels = series()
    values[..., 1] = 0.1
    splits, batch = opened((values, labels))
    assert splits.info.normalisation["std"][1] == 1.0
    assert batch.inputs[:, 1].abs().max() < 1e-5


def test_series_of_several_lengths_are_padded_or_cropped():
    values = [np.arange(length, dtype="f4") for length in (3, 6, 4, 6)]
    labels = list("abab")
    splits, batch = opened((values, labels))
    assert splits.info.shape == (1, 6)
    mask = batch.inputs["mask"]
    assert mask.sum(dim=1).tolist() == [3, 6, 4, 6]
    assert (batch.inputs["values"][:, 0][~mask] == 0).all()
    found = in_units(batch.inputs["values"], splits.info)[:, 0]
    torch.testing.assert_close(found[mask], torch.cat([torch.from_numpy(v) for v in values]))
    assert any("2 are padded under a mask" in note for note in splits.info.notes)
    cropped, batch = opened((values, labels), ragged="crop")
    assert batch.inputs.shape == (4, 1, 3)
    assert any("3 are cut" in note for note in cropped.info.notes)
    four, batch = opened((values, labels), length=4)
    assert batch.inputs["mask"].sum(dim=1).tolist() == [3, 4, 4, 4]
    assert four.info.shape == (1, 4)


def test_gaps_are_refused_or_filled():
    values, labels = series(channels=1, steps=5)
    values[2, 1:3, 0] = np.nan
    with pytest.raises(UserError) as caught:
        open_series((values, labels), options())
    message = str(caught.value)
    assert "2 of 5 values of series 2 of split 'train' are missing (NaN)" in message
    assert "channel 0 at time step 1" in message
    assert "data.missing=linear" in message
    splits, batch = opened((values, labels), missing="linear")
    found = in_units(batch.inputs, splits.info)[2, 0]
    before, after = values[2, 0, 0], values[2, 3, 0]
    torch.testing.assert_close(
        found[1:3], torch.tensor([2 * before + after, before + 2 * after]) / 3
    )
    assert any("1 series with missing values were filled" in note for note in splits.info.notes)
    splits, batch = opened((values, labels), missing="zero")
    assert batch.inputs[2, 0, 1:3].tolist() == [0.0, 0.0]
    known = values[np.isfinite(values)]
    assert splits.info.normalisation["mean"][0] == pytest.approx(known.mean(), rel=1e-5)


def test_groups_of_values_are_quantiles_of_training():
    train = np.arange(10.0)[:, None]
    bins = Bins(train, 5)
    assert np.bincount(bins(train)).tolist() == [2, 2, 2, 2, 2]
    assert bins(np.array([[-5.0], [50.0]])).tolist() == [0, 4]
    equal = Bins(np.ones((6, 1)), 5)
    assert equal(np.ones((3, 1))).tolist() == [0, 0, 0]
    assert equal.names(0, 1) == ("all",)
    halves = Bins(np.array([[0.0]] * 5 + [[1.0]] * 5), 4)
    assert np.bincount(halves(np.array([[0.0], [1.0]]))).tolist() == [1, 1]


def test_the_fingerprint_is_that_of_the_items():
    values, labels = series()
    first = open_series((values, labels), options()).info.fingerprint
    assert open_series((values.copy(), labels), options()).info.fingerprint == first
    values[0, 0, 0] += 1
    assert open_series((values, labels), options()).info.fingerprint != first


# -- what cannot be used ---------------------------------------------------------------------------


def bad(name):
    values, labels = series()
    ragged = values.tolist()
    if name == "inner":
        ragged[3][2] = [1.0]
        return table(ragged, labels)
    if name == "null":
        ragged[4] = None
        return table(ragged, labels)
    if name == "empty":
        return [(np.zeros((0, 2)), "a"), (np.zeros((3, 2)), "b")] * 2
    if name == "channels":
        return [(np.zeros((9, 2)), "a"), (np.zeros((9, 3)), "b"), (np.ones((9, 2)), "a")]
    if name == "infinite":
        values[1, 2, 1] = np.inf
        return values, labels
    if name == "several":
        return datasets.Dataset.from_dict({"p": [[1.0]] * 4, "q": [[2.0]] * 4, "label": [0, 1] * 2})
    if name == "numbers":
        return datasets.Dataset.from_dict({"p": [1.0] * 4, "q": [2.0] * 4, "label": [0, 1] * 2})
    if name == "words":
        return (["one", "two"], ["a", "b"])
    return np.zeros((4, 2, 2, 2)), ["a", "b"] * 2


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("inner", {}, "row 3 of column 'values' has lists of different lengths"),
        ("null", {}, "1 rows of column 'values' have no series, the first is row 4"),
        ("empty", {}, "item 0 of split 'train' has no time step"),
        ("channels", {"order": "TC"}, "series differ in their number of channels: item 1"),
        ("infinite", {"missing": "linear"}, "are infinite, the first in channel 1 at time step 2"),
        ("several", {}, "several columns could be the values"),
        ("numbers", {}, "task=forecasting"),
        ("words", {}, "this is no series of numbers"),
        ("axes", {}, r"these are no series of numbers; got 'float64 \[4, 2, 2, 2\]'"),
        ("several", {"values": "r"}, "unknown series column 'r'"),
        ("numbers", {"values": "p"}, "column 'p' does not hold one series per row"),
        ("several", {"task": "regression", "label": "p", "values": "q"}, "one number per series"),
    ],
)
def test_bad_series_are_one_clear_line(name, more, message):
    with pytest.raises(UserError, match=message) as caught:
        open_series(bad(name), options(**more))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3,2,1:6,5,?:down", "3,x,1:6,5,4:down", "line 8: could not convert string to float: 'x'"),
        ("3,2,1:6,5,?:down", "3,2:6,5,4:down", "line 8: the dimensions differ in length"),
        ("3,2,1:6,5,?:down", "down", "line 8: a series without label"),
        ("@timeStamps false", "@timeStamps true", "files with time stamps are not read"),
        ("@data\n", "", "line 6: data before '@data'"),
    ],
)
def test_bad_files_name_the_line(tmp_path, old, new, message):
    (tmp_path / "x.ts").write_text(TS.replace(old, new))
    with pytest.raises(UserError, match=message):
        open_series(str(tmp_path / "x.ts"), options())


def test_targets_that_are_no_numbers_are_refused():
    values, _ = series(count=4)
    with pytest.raises(UserError, match="are no numbers"):
        open_series((values, ["a", "b", "c", "d"]), options(task="regression"))
    with pytest.raises(UserError, match="infinite, the first in row 2"):
        open_series((values, [1.0, 2.0, np.inf, 3.0]), options(task="regression"))
    splits = open_series((values, [1.0, 2.0, np.nan, 3.0]), options(task="regression", bins=1))
    assert len(splits.train) == 3


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("gunpoint", (1, 150), 2), ("synthetic_control", (1, 60), 6), ("ucihar_subset", (9, 128), 6)],
)
def test_shared_sets_open(name, shape, classes):
    import os
    from pathlib import Path

    folder = Path(os.environ.get("MMDD_SHARED_DATA", "shared/data")) / "timeseries" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    splits = open_series(str(folder), SeriesData())
    assert splits.info.shape == shape
    assert splits.info.classes == classes
    assert splits.validation is not None
