"""Series for people: columns in the units of the data, and pictures."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch

from mmdd.modalities.timeseries import show
from mmdd.modalities.timeseries.data import open_series
from mmdd.modalities.timeseries.modality import TIMESERIES
from mmdd.modalities.timeseries.options import SeriesData


def opened(task="classification", channels=2, ragged=False):
    rng = np.random.default_rng(0)
    steps = [5 + 2 * (k % 2) * ragged for k in range(12)]
    values = [rng.normal(5, 3, (n, channels)).astype("f4") for n in steps]
    labels = rng.normal(10, 4, 12) if task == "regression" else ["a", "b", "b$"] * 4
    chosen = SeriesData(task=task, validation=0, test=0.0, bins=2, order="TC")
    splits = open_series((values, labels), chosen)
    return values, labels, splits, splits.train.select(torch.arange(12))


def as_table(columns, features):
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("ragged", [False, True])
def test_columns_are_what_was_read(channels, ragged):
    values, labels, splits, batch = opened(channels=channels, ragged=ragged)
    table = as_table(*TIMESERIES.to_columns(batch.inputs, batch.targets, splits.info))
    assert [table.features["label"].names[code] for code in table["label"]] == labels
    for row, expected in zip(table["values"], values, strict=True):
        found = np.asarray(row).reshape(len(row), channels)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # and can be opened again
    again = open_series(table, SeriesData(validation=0, test=0.0, order="TC"))
    second = again.train.select(torch.arange(12))
    first, second = (b.inputs["values"] if ragged else b.inputs for b in (batch, second))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_soft_labels_stand_beside_the_largest():
    _, _, splits, batch = opened()
    soft = torch.eye(3)[batch.targets] * 0.7 + 0.1
    table = as_table(*show.to_columns(batch.inputs, soft, splits.info))
    assert table["label"][:] == batch.targets.tolist()
    np.testing.assert_allclose(np.asarray(table["soft_label"][:]), soft.numpy(), rtol=1e-6)


def test_values_come_back_in_their_units():
    _, labels, splits, batch = opened("regression")
    table = as_table(*show.to_columns(batch.inputs, batch.targets, splits.info))
    np.testing.assert_allclose(table["label"][:], labels, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_series_to_forecast_is_rows_with_a_step_number(stride):
    rows = np.random.default_rng(1).normal(3, 2, (40, 2))
    names = {"a": rows[:, 0], "step": rows[:, 1]}
    chosen = SeriesData(
        task="forecasting", input_length=4, horizon=3, borders=[20, 10, 10], stride=stride
    )
    splits = open_series(datasets.Dataset.from_dict(names), chosen)
    batch = splits.train.aggregate(torch.tensor([5]), torch.Generator().manual_seed(0))
    table = as_table(*show.to_columns(batch.inputs, batch.targets, splits.info))
    length = 7 + 4 * stride
    assert table["step"][:] == list(range(length))
    found = np.stack([table["a"][:], table["channel_step"][:]], axis=1)
    starts = [k for k in range(20) if abs(rows[k, 0] - found[0, 0]) < 1e-5]
    np.testing.assert_allclose(found, rows[starts[0] : starts[0] + length], rtol=1e-4, atol=1e-5)
    apart = splits.train.select(torch.tensor([0, 4, 5]))
    table = as_table(*show.to_columns(apart.inputs, apart.targets, splits.info))
    assert table["window"][:] == [0] * 7 + [1] * 7 + [2] * 7
    np.testing.assert_allclose(table["a"][7:14], rows[4 * stride : 4 * stride + 7, 0], rtol=1e-4)


def drawn(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_pictures_show_the_series_and_the_real_ones_behind(tmp_path):
    _, _, splits, batch = opened(ragged=True)
    real = (batch.inputs, batch.targets)
    few = batch.select(torch.arange(3))
    show.picture(few.inputs, few.targets, splits.info, tmp_path / "plain.png")
    show.picture(few.inputs, few.targets, splits.info, tmp_path / "band.png", real=real)
    plain, band = drawn(tmp_path / "plain.png"), drawn(tmp_path / "band.png")
    grey = np.array([0xD8, 0xD8, 0xD8])
    assert (plain == grey).all(axis=2).sum() < 0.1 * (band == grey).all(axis=2).sum()
    # many classes and channels are cut, and values to predict stand together
    many = dataclasses.replace(
        splits.info, names=tuple(map(str, range(30))), shape=(6, 6), normalisation={
            "mean": [0.0] * 6, "std": [1.0] * 6, "masked": False,
        }
    )  # fmt: skip
    show.picture(torch.zeros(14, 6, 6), torch.arange(14), many, tmp_path / "many.png")
    _, _, numbers, batch = opened("regression")
    show.picture(batch.inputs, batch.targets, numbers.info, tmp_path / "values.png")
    assert drawn(tmp_path / "many.png").shape[0] > drawn(tmp_path / "values.png").shape[0]


def test_a_picture_of_forecasts_marks_the_first_window(tmp_path):
    rows = np.random.default_rng(1).normal(size=(40, 2))
    chosen = SeriesData(task="forecasting", input_length=4, horizon=3, borders=[20, 10, 10])
    splits = open_series(rows, chosen)
    batch = splits.train.aggregate(torch.tensor([5]), torch.Generator().manual_seed(0))
    for name, own in (("series", batch), ("windows", batch.select(torch.tensor([0, 3])))):
        show.picture(own.inputs, own.targets, splits.info, tmp_path / f"{name}.png")
        pixels = drawn(tmp_path / f"{name}.png")
        for shade in (0xEEF2F5, 0xF7E6DF):
            colour = np.array([shade >> 16, shade >> 8 & 255, shade & 255])
            assert (pixels == colour).all(axis=2).sum() > 500
